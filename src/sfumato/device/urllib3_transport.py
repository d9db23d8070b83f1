"""The blocking transport. Its coroutines never suspend; see `blocking`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Unpack

import urllib3

from sfumato.device.deadline import connection_pool, is_over
from sfumato.device.transport import ConnectionOptions, Lost, Reply, Transport
from sfumato.errors import EndpointError

_CHUNK_BYTES = 2**16
_KEPT_CONNECTIONS = 32  # made only when several threads ask at once


class Urllib3Transport(Transport):
    """Talks to one server over HTTP, blocking; several threads may use it. See `Transport`.

    urllib3's own retries are switched off: before each of them it reads the refused response to its end, however
    long a hostile server makes it.
    """

    def __init__(self, server_url: str, **options: Unpack[ConnectionOptions]) -> None:
        super().__init__(server_url, **options)
        to = self.connection
        self._pool = connection_pool(tls=to.tls() if to.secure else None, proxy=to.proxy, kept=_KEPT_CONNECTIONS)

    async def reconnect(self) -> None:
        """See `Transport`."""
        self._pool.clear()

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def _once(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        try:
            response = self._pool.request(
                method, url, body=body, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if is_over():
                raise self.connection.late() from None
            if isinstance(error, urllib3.exceptions.SSLError):
                raise self._untrusted() from None
            raise self._unconnected(error) from None
        try:
            content = self._read(response)
        except (EndpointError, Lost):
            response.close()  # a connection with unread bytes on it must not be used again
            raise
        finally:
            response.release_conn()
        return Reply(response.status, {key.lower(): value for key, value in response.headers.items()}, content)

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        content = bytearray()
        try:
            while chunk := response.read1(_CHUNK_BYTES):
                content += chunk
                if len(content) > self.connection.max_response_bytes:
                    raise self.connection.too_long()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if is_over():
                raise self.connection.late(" completely") from None
            raise self._broken_off(error) from None
        return bytes(content)

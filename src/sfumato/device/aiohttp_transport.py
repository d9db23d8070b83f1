"""The transport of asyncio, for the extra `[async]`.

It uses aiohttp, which took a small part of the processor time of httpx with 64 requests in flight (docs/log.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from sfumato.device.deadline import left_s, look_up
from sfumato.device.transport import ConnectionOptions, Reply, Transport
from sfumato.errors import EndpointError

try:
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
    from yarl import URL
except ImportError as error:
    raise EndpointError(
        "AsyncClient needs what pip install 'sfumato[async]' brings; install it, or use Client"
    ) from error

_LARGE_BODY_BYTES = 2**20
"""From here on aiohttp wants a body as a stream, so that other tasks have their turn."""


class AiohttpTransport(Transport):
    """Talks to one server over HTTP in an event loop: the one in which it makes its first request. See `Transport`."""

    def __init__(self, server_url: str, **options: Unpack[ConnectionOptions]) -> None:
        super().__init__(server_url, **options)
        self._sessions = _Sessions(self.connection.tls() if self.connection.secure else True)

    async def reconnect(self) -> None:
        """See `Transport`."""
        await self._sessions.retire()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _once(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        large = body is not None and len(body) > _LARGE_BODY_BYTES
        begun = False
        try:
            async with (
                asyncio.timeout(left_s()),
                self._sessions.lease() as session,
                session.request(
                    method,
                    URL(url, encoded=True),
                    data=io.BytesIO(body or b"") if large else body,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self.connection.proxy,
                ) as response,
            ):
                begun = True
                content = await self._read(response)
        except TimeoutError:
            raise self.connection.late(" completely" if begun else "") from None
        except aiohttp.ClientSSLError:
            raise self._untrusted() from None
        except (aiohttp.ClientError, OSError) as error:
            raise (self._broken_off(error) if begun else self._unconnected(error)) from None
        return Reply(response.status, {key.lower(): value for key, value in response.headers.items()}, content)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > self.connection.max_response_bytes:
                response.close()  # a connection with unread bytes on it must not be used again
                raise self.connection.too_long()
        return bytes(content)


@dataclass
class _Lease:
    session: aiohttp.ClientSession
    loop: asyncio.AbstractEventLoop
    users: int = 0
    retired: bool = False


class _Sessions:
    """The session in use, which is replaced once its connections are not to be used again.

    aiohttp's own `close` would break off requests that are under way.
    """

    def __init__(self, ssl: Any) -> None:
        self._ssl = ssl
        self._current: _Lease | None = None

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield a session; a retired one is closed after its last user."""
        current = self._current = self._current or self._opened()
        if current.loop is not asyncio.get_running_loop():
            raise EndpointError("an AsyncClient belongs to the event loop of its first request; open another one here")
        current.users += 1
        try:
            yield current.session
        finally:
            current.users -= 1
            await self._close_unused(current)

    async def retire(self) -> None:
        """Close the session, or let its last user do so; the next request opens another one."""
        retired, self._current = self._current, None
        if retired is not None:
            retired.retired = True
            await self._close_unused(retired)

    async def _close_unused(self, lease: _Lease) -> None:
        if lease.retired and not lease.users:
            await lease.session.close()

    def _opened(self) -> _Lease:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl, resolver=_Resolver()),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the call has its deadline
            auto_decompress=False,
            trust_env=False,
        )
        return _Lease(session, asyncio.get_running_loop())


class _Resolver(AbstractResolver):
    """Looks names up in threads that nobody has to wait for, unlike asyncio's."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await asyncio.wrap_future(look_up(host, port, family))
        except UnicodeError:
            raise OSError("the name is none") from None
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=numeric,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        pass

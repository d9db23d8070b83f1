"""Limits on each connection that uvicorn does not have, and responses in one piece.

Without limits on how many connections there are, how long a head is, and how long a request takes to arrive, a client
that sends a byte a minute, or a header without an end, holds a connection and memory forever.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 100


class GuardedProtocol(HttpToolsProtocol):
    """One connection; beyond `max_connections`, it gets a 503 and is closed."""

    def __init__(self, *arguments: Any, max_connections: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._max_connections = max_connections
        self._begun_s: float | None = self.loop.time()
        self._in_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or turn it away."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Joining(transport, self.loop))
        if len(self.connections) > self._max_connections:
            self._turn_away(b"503 Service Unavailable", b"retry-after: 1\r\n")

    def data_received(self, data: bytes) -> None:
        """Parse, unless the head has become too long."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._turn_away(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Note when a request begins."""
        super().on_message_begin()
        self._begun_s = self.loop.time()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Check the number of headers."""
        self._in_head = False
        if len(self.headers) > MAX_HEADERS:
            self._turn_away(b"431 Request Header Fields Too Large")
        elif not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request is complete."""
        self._begun_s = None
        if self.cycle is not None:
            super().on_message_complete()

    def cut_if_late(self, now_s: float, timeout_s: float) -> None:
        """End the connection if a request began longer than `timeout_s` ago and is not complete."""
        if self._begun_s is not None and now_s - self._begun_s > timeout_s:
            self.transport.abort()

    def _turn_away(self, status: bytes, headers: bytes = b"") -> None:
        if not self.transport.is_closing():
            head = b"HTTP/1.1 " + status + b"\r\n" + headers
            self.transport.write(head + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()


class _Joining:
    """A transport that sends in one piece what is written in one moment.

    uvicorn writes a response's head and body one after the other, and each would be a system call and a packet.
    """

    __slots__ = ("_loop", "_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()

"""What each connection may cost: one request at a time, a deadline for all that its client does, and little memory.

uvicorn's protocol reads ahead whatever a client sends, and waits without an end for one that sends or takes nothing.
Here a request is checked on its head, before anything of its body is kept; a body is counted before it is kept, and
read no faster than it is used; and nothing is read of a further request until the response has been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sfumato.cloud.exchange import EXTENSION, Exchange, Headers
from sfumato.cloud.limits import PIECE_BYTES, Limits

if TYPE_CHECKING:
    from sfumato.cloud.app import Application
    from sfumato.cloud.batching import Arrays

MAX_HEAD_BYTES = 64 * 2**10
"""Of a request's head, and of all in it that is not its body: the trailers and sizes of chunks have as much again,
and a quarter of the body."""
MAX_HEADERS = 100
_DROPPING_S = 2.0
"""How long what a client still sends is dropped after a refusal; closing at once could take the response with it."""
_SETTLING_S = 0.1
"""How long a connection is not idle yet: a request may be under way, or a response."""
_PATIENCE_S = 1.0
"""How long a connection with a request waits for its client before it may have to make room for another."""


_RESET = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes closing a reset."""
_IDLE, _HEAD, _BODY, _SERVING, _DROPPING = range(5)
"""The phases of a connection: between requests; while a head, a body arrives; while there is a response to make or
send; and after a refusal."""


class _Stop(Exception):
    """Ends the parsing of what a client has sent."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        arguments, more: uvicorn's.
        application: makes the exchange of a request's head, which may be refused, and serves it.
        limits: the server's.
        max_connections: how many connections there may be.
    """

    def __init__(
        self, *arguments: Any, application: Application, limits: Limits, max_connections: int, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self._application = application
        self._max_connections = max_connections
        most = limits.receive_timeout_s
        self._allowed_s = (
            min(limits.idle_timeout_s, most), min(limits.head_timeout_s, most), most, math.inf, _DROPPING_S
        )  # fmt: skip
        self._send_timeout_s = limits.send_timeout_s
        self._sending: _Joining
        self._phase = _IDLE
        self._since_s = self.loop.time()
        self._received_bytes = 0
        self._keep_alive = False
        self._refuses_more = False
        self._exchange: Exchange
        self._put_off = False
        self._unsent_since_s: float | None = None
        self._taken_bytes = 0
        self._evicted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or turn it away."""
        super().connection_made(transport)
        self._sending = _Joining(transport, self.loop, self._close)
        self.transport = cast(asyncio.Transport, self._sending)
        if len(self.connections) > self._max_connections and not self._make_room():
            transport.write(_refusal("503 Service Unavailable", "retry-after: 1\r\n"))
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse what belongs to the current request, or the next; drop anything else."""
        if self._phase >= _SERVING:
            self._refuse_more()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse_more()
        except httptools.HttpParserError:
            if not self._refuses_more:
                self._turn_away("400 Bad Request")
        if self._phase == _HEAD or self._phase == _BODY:
            self._received_bytes += len(data)
            body_bytes = self._exchange.body_bytes if self._phase == _BODY else 0
            if self._received_bytes - body_bytes > MAX_HEAD_BYTES + body_bytes // 4 and not self._is_refused():
                self._turn_away("431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Begin a request, unless one is in progress."""
        if self._phase != _IDLE:
            self._refuse_more()
            raise _Stop
        super().on_message_begin()
        self._phase = _HEAD
        self._since_s = self.loop.time()
        self._received_bytes = 0

    def on_headers_complete(self) -> None:
        """Check the head; what is refused is answered without its body."""
        if len(self.headers) > MAX_HEADERS:
            self._turn_away("431 Request Header Fields Too Large")
            raise _Stop
        super().on_headers_complete()
        self._phase = _BODY
        scope = cast(Scope, self.scope)
        self._exchange = exchange = self._application.begin(scope)
        exchange.respond_at_once = self._respond
        scope["extensions"] = {EXTENSION: exchange}
        if exchange.named is None or exchange.refused is not None or self.expect_100_continue:
            self._start_task()
        self._keep_alive = self.cycle.keep_alive and not self._refuses_more
        self.cycle.keep_alive = False  # for a response that comes before the body is complete

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, if it is wanted and there is room."""
        cycle = self.cycle
        if self._exchange.take(len(body)):
            if not cycle.body:
                cycle.body = body  # type: ignore[assignment]  # the first piece is mostly the only one: no copy
            else:
                if isinstance(cycle.body, bytes):
                    cycle.body = bytearray(cycle.body)
                cycle.body += body
            if len(cycle.body) > PIECE_BYTES:
                self.flow.pause_reading()  # until the application has taken it
        if self._put_off and (self._exchange.refused is not None or len(cycle.body) > PIECE_BYTES):
            self._start_task()
        cycle.message_event.set()  # also if it is refused: the application looks why

    def on_message_complete(self) -> None:
        """Note that a request is complete."""
        self._phase = _SERVING
        self.cycle.keep_alive = self._keep_alive
        self.cycle.more_body = False
        if self._put_off:
            self._infer()
        else:
            self.cycle.message_event.set()

    def _start_asgi_task(self, *_: Any) -> None:
        """Put off what uvicorn does at every request's head: an inference that arrives in one piece needs no task."""
        self._put_off = True

    def _start_task(self) -> None:
        self._put_off = False
        super()._start_asgi_task(self.cycle, self.app)

    def _infer(self) -> None:
        """Serve an inference that is here, by a task only if that fails."""
        self._put_off = False
        body, self.cycle.body = bytes(self.cycle.body), bytearray()
        try:
            results = self._application.enqueue(self._exchange, body)
        except Exception as error:
            self._exchange.outcome = error
            self._start_task()
            return
        self.tasks.add(cast("asyncio.Task[None]", results))  # so that uvicorn can cancel it
        results.add_done_callback(self._reply)

    def _reply(self, results: asyncio.Future[Arrays]) -> None:
        """Respond to an inference; by a task if it failed, or if the client has to take the response piece by piece."""
        self.tasks.discard(cast("asyncio.Task[None]", results))
        exchange = self._exchange
        try:
            exchange.outcome = reply = self._application.reply(exchange, results.result())
        except (Exception, asyncio.CancelledError) as error:
            exchange.outcome = error
        else:
            if exchange.try_to_respond(*reply):
                self._application.finish(cast(Scope, self.scope), exchange)
                return
        self._start_task()

    def on_response_complete(self) -> None:
        """Wait for the next request. The deadlines replace uvicorn's timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._refuses_more:
            self.transport.close()
            return
        self.flow.resume_reading()
        self._phase = _IDLE
        self._since_s = self.loop.time()

    def _respond(self, headers: Headers, body: bytes) -> bool:
        """Send a whole response in one piece, as uvicorn would; if the client does not take what it has, do nothing."""
        cycle = self.cycle
        if self.flow.write_paused:
            return False
        if cycle.disconnected:
            return True
        cycle.response_started = cycle.response_complete = True
        head = _head((*self.server_state.default_headers, *headers), keep_alive=cycle.keep_alive)
        self._sending.write(head + body, at_once=True)
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End a request that has not arrived."""
        super().connection_lost(exc)
        if self._put_off:
            self._start_task()

    def shutdown(self) -> None:
        """Close the connection after the response in progress, if there is one."""
        self._keep_alive = False
        if self._put_off:
            self._start_task()  # which can be cancelled
        if self._phase == _DROPPING:
            self.transport.abort()
        else:
            super().shutdown()

    def cut_if_late(self, now_s: float) -> None:
        """End the connection if its client has taken too long to send, or to take the response."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent_since_s = None
            if now_s - self._since_s > self._allowed_s[self._phase]:
                self._cut()
            return
        taken = self._sending.written_bytes - unsent
        if self._unsent_since_s is None or taken >= self._taken_bytes + PIECE_BYTES:
            self._unsent_since_s, self._taken_bytes = now_s, taken
        elif now_s - self._unsent_since_s > self._send_timeout_s:
            self._cut()

    def _make_room(self) -> bool:
        """End the connection that has been idle longest, or else waited longest for its client."""
        now_s = self.loop.time()
        others = [other for other in self.connections if isinstance(other, GuardedProtocol) and other is not self]
        longest = max(others, key=lambda other: other._waits(now_s), default=self)
        if longest._waits(now_s) <= (False, _PATIENCE_S):
            return False
        longest._evicted = True  # it counts until the event loop has closed it
        longest._cut()
        return True

    def _waits(self, now_s: float) -> tuple[bool, float]:
        """Return whether there is no request, and the seconds for which this has waited for its client."""
        if self._evicted:
            return False, 0.0
        if self._unsent_since_s is not None:
            return False, now_s - self._unsent_since_s
        if self._phase == _SERVING:
            return False, 0.0
        waited_s = now_s - self._since_s
        return self._phase == _IDLE and waited_s > _SETTLING_S, waited_s

    def _cut(self) -> None:
        """End the connection now. With a request, reset it: the kernel then drops what it has not sent, too."""
        if self._phase != _IDLE or self._unsent_since_s is not None:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def _refuse_more(self) -> None:
        """Read nothing more; close after the response in progress."""
        self._refuses_more = True
        if self._phase != _DROPPING:
            self.cycle.keep_alive = self._keep_alive = False
            self.flow.pause_reading()

    def _is_refused(self) -> bool:
        """Return whether the application is about to refuse the request, so that its body is not counted."""
        return self._phase == _BODY and self._exchange.refused is not None

    def _turn_away(self, status: str) -> None:
        """Respond without the application, and close."""
        self._refuses_more = True
        if self._phase != _BODY or not self.cycle.response_started:
            self.transport.write(_refusal(status))
        self.transport.close()

    def _close(self, transport: asyncio.Transport) -> None:
        """Close; while the client may still be sending, drop that first, because it would reset the connection."""
        if transport.is_closing():
            return
        if self._phase != _BODY and not self._refuses_more:
            transport.close()
            return
        self._phase = _DROPPING
        self._since_s = self.loop.time()
        if transport.can_write_eof():
            transport.write_eof()
        self.flow.resume_reading()


@lru_cache(maxsize=64)
def _head(headers: tuple[tuple[bytes, bytes], ...], *, keep_alive: bool) -> bytes:
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join((STATUS_LINE[200], *lines, b"" if keep_alive else b"connection: close\r\n", b"\r\n"))


def _refusal(status: str, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n".encode()


class _Joining:
    """A transport that sends in one piece what is written in one moment.

    uvicorn writes a response's head and body one after the other, and each would be a system call and a packet.
    """

    __slots__ = ("_close", "_closed", "_loop", "_pieces", "_transport", "written_bytes")

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[asyncio.Transport], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close = close
        self._closed = False
        self._pieces: list[bytes] = []
        self.written_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes, *, at_once: bool = False) -> None:
        if self._closed:
            return
        at_once = at_once or len(data) >= PIECE_BYTES  # of that size, so that a client that takes nothing is noticed
        if not self._pieces and not at_once:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        if at_once:
            self._flush()

    def is_closing(self) -> bool:
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        if not self._closed:
            self._flush()
            self._closed = True
            self._close(self._transport)

    def _flush(self) -> None:
        if self._pieces:
            joined = b"".join(self._pieces)
            self._pieces.clear()
            self.written_bytes += len(joined)
            self._transport.write(joined)

"""One request and its response, from the head on: what the connection, the application and the logs know of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from sfumato.cloud.limits import PIECE_BYTES, Limits
from sfumato.errors import Overloaded

if TYPE_CHECKING:
    from sfumato.cloud.callers import Caller
    from sfumato.cloud.dataplane import ServedModel
    from sfumato.wire import InferRequest

EXTENSION = "sfumato.exchange"
"""Where a connection of ours puts the exchange into the ASGI scope's `extensions`."""
Headers = Sequence[tuple[bytes, bytes]]
_CLOSE = (b"connection", b"close")


class Held:
    """The bytes of all requests in memory."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Exchange:
    """One request and its response.

    Attributes:
        headers: the request's, by name in lower case.
        refused: why it is not served.
        request: the decoded inference, until it is over.
        outcome: headers and body of a response of status 200, or why there is none, until it is over.
        caller: who asks, if that matters.
        named: the model's name and version, if it is an inference.
        model: the model, once it is known.
        rows: images.
        status: the response's.
        body_bytes, sent_bytes: the lengths of the bodies.
        started: whether the response has begun.
        respond_at_once: sends a whole response with its headers, if the connection can; returns whether it has.
        begun_s: when it began, of `time.perf_counter`.
    """

    refused: Exception | None = None
    request: InferRequest | None = None
    outcome: tuple[Headers, bytes] | BaseException | None = None
    caller: Caller | None = None
    named: tuple[str, str | None] | None = None
    model: ServedModel | None = None
    rows = 0
    status = 500
    body_bytes = 0
    sent_bytes = 0
    started = False
    respond_at_once: Callable[[Headers, bytes], bool] | None = None
    _done = False

    def __init__(self, scope: Scope, held: Held, limits: Limits, *, close: bool) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.begun_s = time.perf_counter()
        self._held = held
        self._limits = limits
        self._close = close
        self._send: Send = _to_nobody

    def take(self, count: int) -> bool:
        """Make room for a part of the body, before it is kept; if it cannot be, refuse the request."""
        if self.refused is not None or self._done:
            return False
        if self._held.bytes + count > self._limits.max_held_bytes:
            self.refused = Overloaded(f"{self._held.bytes} bytes of requests are in memory already; try again later")
            return False
        if self.body_bytes + count > self._limits.max_body_bytes:
            self.refused = too_long(self._limits)
            return False
        self._held.bytes += count
        self.body_bytes += count
        return True

    def counting(self, receive: Receive) -> Receive:
        """Wrap `receive` of a server that does not count what it reads itself."""

        async def counted() -> Message:
            message = await receive()
            self.take(len(message.get("body", b"")))
            return message

        return counted

    def sending_to(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        """Return `send` for the response."""
        self._send = send
        return self.send

    async def send(self, message: Message) -> None:
        """Send a part of the response, in pieces that a client has to take one after the other."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started = True
            if self._close:
                message["headers"] = [*message.get("headers", ()), _CLOSE]
            await self._send(message)
            return
        body = message.get("body", b"")
        self.sent_bytes += len(body)
        if len(body) <= PIECE_BYTES:
            await self._send(message)
            return
        more = message.get("more_body", False)
        for start in range(0, len(body), PIECE_BYTES):
            end = start + PIECE_BYTES
            await self._send({**message, "body": body[start:end], "more_body": more or end < len(body)})

    def try_to_respond(self, headers: Headers, body: bytes) -> bool:
        """Send a whole response of status 200, if that is possible at once; return whether it is."""
        at_once = None if self._close or len(body) > PIECE_BYTES else self.respond_at_once
        if at_once is None or not at_once(headers, body):
            return False
        self.status, self.started, self.sent_bytes = 200, True, len(body)
        return True

    async def respond(self, headers: Headers, body: bytes) -> None:
        """Send a whole response of status 200."""
        if self.try_to_respond(headers, body):
            return
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def end(self) -> None:
        """Give back the body's memory; the request is over."""
        self._done = True
        self._held.bytes -= self.body_bytes
        self.request = self.outcome = None  # the connection keeps the exchange until its next request
        # These lead back here: a cycle would keep the body until the garbage collector comes.
        self._send, self.respond_at_once = _to_nobody, None


async def _to_nobody(_: Message) -> None:
    """Send nothing: the request is over, or its response has not begun."""


def too_long(limits: Limits) -> HTTPException:
    """Return the refusal of a body that is too long."""
    return HTTPException(413, f"the body is longer than {limits.max_body_bytes} bytes; send fewer rows")

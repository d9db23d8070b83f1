"""The server over HTTP: routes, limits, the token, and which error becomes which status. No logic."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfumato import __version__
from sfumato.cloud import logs
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.metrics import CONTENT_TYPE, Metrics, Siblings
from sfumato.cloud.model_repository import Catalogue
from sfumato.errors import ModelNotFound, Overloaded, ServingError, WireError
from sfumato.wire import HEADER_LENGTH, decode_request, encode_metadata, encode_response, fields, paths

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
METRICS = "/metrics"
_OPEN_PATHS = frozenset({paths.LIVE, paths.READY})
_LENGTH_KEY = HEADER_LENGTH.lower().encode()
_CLOSE = (b"connection", b"close")
_GONE = 499  # the log's status for a client that hung up; it is never sent


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_body_bytes: the longest request body that is read.
        max_held_bytes: how many bytes of bodies may be in memory at once, being received or waiting for a model.
        max_connections: how many connections there may be at once; the limit of open files may allow fewer.
        receive_timeout_s: how long a request may take to arrive.
        linger_s: how long after SIGTERM the server reports "not ready" and still serves, before it takes no
            further connections. SIGINT, and a second SIGTERM, end that.
        grace_s: how long requests in progress may take then.
    """

    max_body_bytes: int = 16 * 2**20
    max_held_bytes: int = 256 * 2**20
    max_connections: int = 1000
    receive_timeout_s: float = 60.0
    linger_s: float = 1.0
    grace_s: float = 10.0


class ApplicationOptions(TypedDict, total=False):
    """Options of the application.

    Attributes:
        token: if given, everything but the health endpoints needs `Authorization: Bearer <token>`.
        limits: its limits.
        pages: an ASGI application that serves every path outside `/v2` but `/metrics`, to everybody: the token is for
            the models.
        access_log: whether a line is logged for each request.
    """

    token: str | None
    limits: Limits | None
    pages: ASGIApp | None
    access_log: bool


class Application:
    """The ASGI application.

    Args:
        models: what is served.
        options: see `ApplicationOptions`.
        siblings: other processes with the same models, whose metrics are reported together with its own.

    Attributes:
        models: what is served.
        limits: its limits.

    Raises:
        ServingError: no model, two of one name, or an unusable token.
    """

    def __init__(
        self,
        models: Catalogue | Iterable[ServedModel],
        *,
        siblings: Siblings | None = None,
        **options: Unpack[ApplicationOptions],
    ) -> None:
        self.models = models if isinstance(models, Catalogue) else Catalogue.of(models)
        token = options.get("token")
        if token is not None and not fields.is_token(token):
            raise ServingError("the token must be printable ASCII without spaces")
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._pages = options.get("pages")
        self.limits = options.get("limits") or Limits()
        self._access_log = options.get("access_log", False)
        self._held_bytes = 0
        self._metrics = Metrics(lambda: self.models, lambda: self._held_bytes)
        self._siblings = siblings
        self._draining = False
        models_at = (paths.MODEL, paths.VERSION)
        self._router = Router(
            [
                *(Route(path, self._server) for path in (paths.SERVER, f"{paths.SERVER}/")),  # both are in use
                Route(paths.LIVE, self._live),
                Route(paths.READY, self._server_ready),
                Route(METRICS, self._report_metrics),
                *(Route(path, self._metadata) for path in models_at),
                *(Route(f"{path}/ready", self._model_ready) for path in models_at),
                *(Route(f"{path}/infer", self._infer_elsewhere, methods=["POST"]) for path in models_at),
            ],
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    def drain(self) -> None:
        """Report "not ready" from now on, and close every connection after its next response."""
        self._draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's start and end."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        exchange = _Exchange(send, close=self._draining)
        try:
            self._authorise(scope)
            named = paths.parse_infer(scope["path"])
            if named is not None and scope["method"] == "POST":
                await self._infer(named, scope, receive, exchange)
            else:
                scope["app"] = self  # lets the router raise its 404 and 405, so that they become JSON, too
                app = self._router if self._pages is None or self._is_ours(scope["path"]) else self._pages
                await app(scope, receive, exchange.send)
        except _ClientGone:
            exchange.status = _GONE
        except Exception as error:
            await _error_response(error)(scope, receive, exchange.send)
        finally:
            self._held_bytes -= exchange.held_bytes
            self._note(exchange)

    async def _infer(self, named: tuple[str, str | None], scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        exchange.model = self.models.find(*named)
        exchange.model.batcher.refuse_if_full()  # before its body takes memory
        headers = dict(scope["headers"])
        body = await self._body(headers, receive, exchange)
        length = headers.get(_LENGTH_KEY)
        request = decode_request(body, None if length is None else length.decode("latin-1"))
        exchange.model = model = self.models.find(*named)  # it may have been replaced while the body came
        exchange.rows = model.rows(request)
        encoded = encode_response(await model.infer(request), request)
        head = [(key.lower().encode(), value.encode()) for key, value in encoded.headers().items()]
        head.append((b"content-length", str(len(encoded.body)).encode()))
        await exchange.send({"type": "http.response.start", "status": 200, "headers": head})
        await exchange.send({"type": "http.response.body", "body": encoded.body})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, exchange: _Exchange) -> bytes:
        """Read the request's body; refuse it as soon as it is known to be too long."""
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise HTTPException(415, "compressed bodies are not supported; send it as it is")
        length = headers.get(b"content-length", b"0")
        self._check_length(int(length) if length.isdigit() else 0)
        chunks, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            chunk = message.get("body", b"")
            if self._held_bytes + len(chunk) > self.limits.max_held_bytes:
                raise Overloaded(f"{self._held_bytes} bytes of requests are in memory already; try again later")
            self._held_bytes += len(chunk)
            exchange.held_bytes += len(chunk)
            self._check_length(exchange.held_bytes)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _check_length(self, length: int) -> None:
        if length > self.limits.max_body_bytes:
            raise HTTPException(413, f"the body is longer than {self.limits.max_body_bytes} bytes; send fewer rows")

    def _authorise(self, scope: Scope) -> None:
        path = scope["path"]
        if self._expected is None or path in _OPEN_PATHS or not self._is_ours(path):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._expected):
            raise HTTPException(401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    def _is_ours(self, path: str) -> bool:
        return self._pages is None or path.startswith(paths.SERVER) or path == METRICS

    def _note(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        self._metrics.count(exchange.model, exchange.status, exchange.rows, seconds)
        if self._access_log:
            logs.request_line(
                model=exchange.model and exchange.model.name,
                version=exchange.model and exchange.model.version,
                rows=exchange.rows,
                status=exchange.status,
                ms=round(1000 * seconds, 3),
                bytes_in=exchange.held_bytes,
                bytes_out=exchange.sent_bytes,
            )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if self._siblings is not None:
                await stack.enter_async_context(self._siblings.sharing(self._metrics.text))
            yield
        self._draining = True
        await self.models.close()

    async def _server(self, _: Request) -> Response:
        return _json({"name": "sfumato", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _server_ready(self, _: Request) -> Response:
        return _json({"ready": not self._draining}, status=503 if self._draining else 200)

    async def _report_metrics(self, _: Request) -> Response:
        own = self._metrics.text()
        text = own if self._siblings is None else await self._siblings.merged(own)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def _metadata(self, request: Request) -> Response:
        metadata = self.models.metadata(*_named(request))
        return Response(encode_metadata(metadata), media_type="application/json")

    async def _model_ready(self, request: Request) -> Response:
        return _json({"name": self.models.find(*_named(request)).name, "ready": True})

    async def _infer_elsewhere(self, _: Request) -> Response:
        """Never called, as `_infer` takes every POST; its route turns other methods into 405."""
        raise HTTPException(404, "no such path")


class _Exchange:
    """One request and its response: what metrics and log record, and how the response is sent."""

    __slots__ = ("_close", "_send", "held_bytes", "model", "rows", "sent_bytes", "started", "status")

    def __init__(self, send: Send, *, close: bool) -> None:
        self._send = send
        self._close = close
        self.started = time.perf_counter()
        self.model: ServedModel | None = None
        self.rows = 0
        self.status = 500
        self.held_bytes = 0
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._close:
                message["headers"] = [*message.get("headers", ()), _CLOSE]
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)


class _ClientGone(Exception):
    """The client hung up before its request was complete."""


def _error_response(error: Exception) -> Response:
    match error:
        case HTTPException():
            return _json({"error": error.detail}, status=error.status_code, headers=error.headers)
        case WireError():
            return _json({"error": str(error)}, status=400)
        case ModelNotFound():
            return _json({"error": str(error)}, status=404)
        case Overloaded():
            return _json({"error": str(error)}, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})
        case ServingError():
            return _json({"error": str(error)}, status=500)
    # Neither the message nor the traceback is logged: both might hold what was sent.
    log.error("unexpected %s while serving a request", type(error).__name__)
    return _json({"error": "internal error"}, status=500)


def _json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status_code=status, headers=headers, media_type="application/json")


def _named(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")

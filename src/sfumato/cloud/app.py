"""The server over HTTP: routes, limits, the token, and which error becomes which status. No logic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypedDict, Unpack

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sfumato import __version__
from sfumato.cloud import logs
from sfumato.cloud.batching import Arrays
from sfumato.cloud.callers import Callers
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.exchange import EXTENSION, Exchange, Headers, Held, too_long
from sfumato.cloud.hosts import Hosts
from sfumato.cloud.limits import Limits
from sfumato.cloud.metrics import CONTENT_TYPE, Metrics, Siblings
from sfumato.cloud.model_repository import Catalogue
from sfumato.errors import ModelNotFound, Overloaded, ServingError, WireError
from sfumato.wire import HEADER_LENGTH, Encoded, decode_request, encode_metadata, encode_response, paths
from sfumato.wire.tracing import record_inference

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
METRICS = "/metrics"
_OPEN_PATHS = frozenset({paths.LIVE, paths.READY})
_LENGTH_KEY = HEADER_LENGTH.lower().encode()
_GONE = 499  # the log's status for a client that hung up; it is never sent


class ApplicationOptions(TypedDict, total=False):
    """Options of the application.

    Attributes:
        token: if given, everything but the health endpoints needs `Authorization: Bearer <token>`.
        token_file: the same, for each of the tokens in a file; see `Callers`.
        limits: its limits.
        allowed_hosts: further names by which it may be asked. On the loopback, and wherever some are given, requests to
            other names, and from pages of other origins, are refused; see `Hosts`.
        audit_log: a file to which a line is added for each request for a model: who asked, and without any content.
        pages: an ASGI application that serves every path outside `/v2` but `/metrics`, to everybody: the token is for
            the models.
        access_log: whether a line is logged for each request.
    """

    token: str | None
    token_file: str | os.PathLike[str] | None
    limits: Limits | None
    allowed_hosts: Sequence[str]
    audit_log: str | os.PathLike[str] | None
    pages: ASGIApp | None
    access_log: bool


class Application:
    """The ASGI application.

    Args:
        models: what is served.
        options: see `ApplicationOptions`.
        siblings: other processes with the same models, whose metrics are reported together with its own.
        loopback: whether only this machine reaches it.

    Attributes:
        models: what is served.
        limits: its limits.

    Raises:
        ServingError: no model, two of one name, an unusable token, file of tokens, or host name, or an audit log that
            cannot be written.
    """

    def __init__(
        self,
        models: Catalogue | Iterable[ServedModel],
        *,
        siblings: Siblings | None = None,
        loopback: bool = False,
        **options: Unpack[ApplicationOptions],
    ) -> None:
        self.models = models if isinstance(models, Catalogue) else Catalogue.of(models)
        self._pages = options.get("pages")
        self.limits = options.get("limits") or Limits()
        self._access_log = options.get("access_log", False)
        self._callers = Callers(options.get("token"), options.get("token_file"), rate=self.limits.max_rate)
        names = options.get("allowed_hosts", ())
        self._hosts = Hosts(names, loopback=loopback) if names or loopback else None
        audit_log = options.get("audit_log")
        self._audit_log = None if audit_log is None else logs.AuditLog(audit_log)
        self._held = Held()
        self._metrics = Metrics(lambda: self.models, lambda: self._held.bytes)
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

    async def reload(self) -> None:
        """Read again what may have changed: tokens and models. Open the audit log anew, so that it can be rotated."""
        self._callers.reload(always=True)
        if self._audit_log is not None:
            self._audit_log.reopen()
        await self.models.reload()

    def begin(self, scope: Scope) -> Exchange:
        """Begin an exchange with a request's head; if it is not served, the exchange says why."""
        exchange = Exchange(scope, self._held, self.limits, close=self._draining)
        try:
            self._admit(scope, exchange)
        except Exception as error:
            exchange.refused = error
        return exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's start and end."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        begun = (scope.get("extensions") or {}).get(EXTENSION)
        exchange = begun or self.begin(scope)
        if begun is None:  # the server is not ours
            receive = exchange.counting(receive)
        send = exchange.sending_to(send)
        try:
            if exchange.refused is not None:
                raise exchange.refused
            if exchange.named is not None:
                if exchange.outcome is None:
                    results = await self.enqueue(exchange, await _body(receive, exchange))
                    exchange.outcome = self.reply(exchange, results)
                if isinstance(exchange.outcome, BaseException):
                    raise exchange.outcome  # no name for it here: that would keep this frame, and the request
                await exchange.respond(*exchange.outcome)
            else:
                scope["app"] = self  # lets the router raise its 404 and 405, so that they become JSON, too
                app = self._router if self._pages is None or self._is_ours(scope["path"]) else self._pages
                await app(scope, receive, send)
        except _ClientGone:
            exchange.status = _GONE
        except asyncio.CancelledError:  # the time for open requests is over, or the client has hung up
            exchange.status = _GONE
            if begun is None:
                raise
        except Exception as error:
            response = _error_response(error)
            if not exchange.started:
                await response(scope, receive, send)
        finally:
            self.finish(scope, exchange)

    def enqueue(self, exchange: Exchange, body: bytes) -> asyncio.Future[Arrays]:
        """Let an inference wait for its model; return what will have the model's outputs."""
        assert exchange.named is not None
        length = exchange.headers.get(_LENGTH_KEY)
        exchange.request = request = decode_request(body, None if length is None else length.decode("latin-1"))
        exchange.model = model = self.models.find(*exchange.named)  # it may have been replaced while the body came
        exchange.rows = model.rows(request)
        if exchange.caller is not None and exchange.rows > 1:
            exchange.caller.charge(exchange.rows - 1)
        return model.enqueue(request)

    def reply(self, exchange: Exchange, results: Arrays) -> tuple[Headers, bytes]:
        """Return headers and body of the response to an inference, made of the model's outputs."""
        model, request = exchange.model, exchange.request
        assert model is not None and request is not None  # since `enqueue`
        encoded = encode_response(model.response(request, results), request)
        return _headers(encoded.header_length, len(encoded.body)), encoded.body

    def finish(self, scope: Scope, exchange: Exchange) -> None:
        """End an exchange, and note it in metrics, traces and logs."""
        exchange.end()
        self._note(scope, exchange)

    def _admit(self, scope: Scope, exchange: Exchange) -> None:
        """Refuse a request that its head already shows to be unwanted."""
        path, headers = scope["path"], exchange.headers
        if path in _OPEN_PATHS:
            return
        if self._hosts is not None:
            self._hosts.check(scope["headers"], headers, http10=scope["http_version"] == "1.0")
        if not self._is_ours(path):
            return
        exchange.caller = caller = self._callers.find(headers.get(b"authorization", b""), exchange.begun_s)
        if caller is None:
            raise HTTPException(401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        named = paths.parse_infer(path) if scope["method"] == "POST" else None
        if named is None:
            return
        exchange.named = named
        exchange.model = self.models.find(*named)
        wait_s = caller.wait_s(exchange.begun_s)
        if wait_s:
            raise HTTPException(
                429,
                f"this token may have {self.limits.max_rate:g} images per second classified; try again later",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        exchange.model.batcher.refuse_if_full()
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise HTTPException(415, "compressed bodies are not supported; send it as it is")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            raise too_long(self.limits)

    def _is_ours(self, path: str) -> bool:
        return self._pages is None or path.startswith(paths.SERVER) or path == METRICS

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.begun_s
        self._metrics.count(exchange.model, exchange.status, exchange.rows, seconds)
        if exchange.model is not None:
            record_inference(
                exchange.headers,
                model=exchange.model.name,
                version=exchange.model.version,
                images=exchange.rows,
                status=exchange.status,
                seconds=seconds,
            )
        if self._access_log:
            logs.request_line(
                model=exchange.model and exchange.model.name,
                version=exchange.model and exchange.model.version,
                rows=exchange.rows,
                status=exchange.status,
                ms=round(1000 * seconds, 3),
                bytes_in=exchange.body_bytes,
                bytes_out=exchange.sent_bytes,
            )
        if self._audit_log is not None and scope["path"] not in _OPEN_PATHS and self._is_ours(scope["path"]):
            client = scope.get("client")
            self._audit_log.write(
                token=exchange.caller and exchange.caller.name,
                address=client and client[0],
                model=exchange.model and exchange.model.name,
                version=exchange.model and exchange.model.version,
                rows=exchange.rows,
                status=exchange.status,
            )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if self._siblings is not None:
                await stack.enter_async_context(self._siblings.sharing(self._metrics.text))
            yield
        self._draining = True
        await self.models.close()
        if self._audit_log is not None:
            self._audit_log.close()

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


@lru_cache(maxsize=256)
def _headers(header_length: int | None, body_bytes: int) -> Headers:
    headers = {**Encoded(b"", header_length).headers(), "Content-Length": str(body_bytes)}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def check_options(options: ApplicationOptions) -> None:
    """Raise what an application with these options would raise, so that it is raised once, before there are many."""
    Callers(options.get("token"), options.get("token_file"))
    Hosts(options.get("allowed_hosts", ()), loopback=True)
    audit_log = options.get("audit_log")
    if audit_log is not None:
        logs.AuditLog(audit_log).close()


async def _body(receive: Receive, exchange: Exchange) -> bytes:
    """Read the request's body, which is counted as it arrives; stop as soon as there is too much."""
    chunks, more = [], True
    while more:
        message = await receive()
        if exchange.refused is not None:
            raise exchange.refused
        if message["type"] == "http.disconnect":
            raise _ClientGone
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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

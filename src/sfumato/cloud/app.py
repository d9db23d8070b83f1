"""The server's HTTP surface: routes, limits, the token, and which error becomes which status. No logic."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sfumato import __version__
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.errors import ModelNotFound, Overloaded
from sfumato.errors import ServingError, WireError
from sfumato.wire import HEADER_LENGTH, decode_request, encode_metadata, encode_response

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20
RETRY_AFTER_S = 1
_OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
_LENGTH_KEY = HEADER_LENGTH.lower().encode()


class Application:
    """The ASGI application.

    Args:
        models: what is served.
        token: if given, everything but the health endpoints wants `Authorization: Bearer <token>`.
        max_body_bytes: the longest request body that is read.
        pages: if given, it answers every path outside `/v2`, to everybody: the token is for the models.

    Raises:
        ServingError: no model, two of one name, or an unusable token.
    """

    def __init__(
        self,
        models: Iterable[ServedModel],
        *,
        token: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        pages: ASGIApp | None = None,
    ) -> None:
        self._pages = pages
        self._models = _by_name(models)
        self._expected = None if token is None else b"Bearer " + _checked_token(token)
        self._max_body_bytes = max_body_bytes
        self._ready = True
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        infer = _Infer(self)
        self._router = Router(
            [
                # The path that is hot comes first.
                Route(f"{model}/infer", infer, methods=["POST"]),
                Route(f"{version}/infer", infer, methods=["POST"]),
                *(Route(path, self._server) for path in ("/v2", "/v2/")),  # the protocol's texts have it both ways
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._server_ready),
                *(Route(path, self._metadata) for path in (model, version)),
                *(Route(f"{path}/ready", self._model_ready) for path in (model, version)),
            ],
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the server's start and end."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        scope["app"] = self  # lets the router raise its 404 and 405, so that they get our form
        try:
            if self._pages is not None and not scope["path"].startswith("/v2"):
                await self._pages(scope, receive, send)
                return
            self._authorise(scope)
            await self._router(scope, receive, send)
        except _ClientGone:
            return
        except Exception as error:
            await _error_response(error)(scope, receive, send)

    def model(self, path: Mapping[str, str]) -> ServedModel:
        """The model that a path names.

        Raises:
            ModelNotFound: there is none, or not in that version.
        """
        model = self._models.get(path["model"])
        if model is None:
            raise ModelNotFound(f"no such model; this server has {', '.join(self._models)}")
        if path.get("version", model.metadata.versions[0]) not in model.metadata.versions:
            raise ModelNotFound(f"no such version; {model.name} has {', '.join(model.metadata.versions)}")
        return model

    async def body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body, refused as soon as it is known to be too long.

        Raises:
            HTTPException: 413, too long; 415, compressed.
        """
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise HTTPException(415, "compressed bodies are not supported; send it as it is")
        length = headers.get(b"content-length", b"0")
        received, more = int(length) if length.isdigit() else 0, True
        self._check_length(received)
        chunks, received = [], 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            chunk = message.get("body", b"")
            received += len(chunk)
            self._check_length(received)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _check_length(self, length: int) -> None:
        if length > self._max_body_bytes:
            raise HTTPException(413, f"the body is longer than {self._max_body_bytes} bytes; send fewer rows")

    def _authorise(self, scope: Scope) -> None:
        if self._expected is None or scope["path"] in _OPEN_PATHS:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._expected):
            raise HTTPException(401, "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        yield
        self._ready = False
        for model in self._models.values():
            await model.close()

    async def _server(self, _: Request) -> Response:
        return _json({"name": "sfumato", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _server_ready(self, _: Request) -> Response:
        return _json({"ready": self._ready}, status=200 if self._ready else 503)

    async def _metadata(self, request: Request) -> Response:
        return Response(encode_metadata(self.model(request.path_params).metadata), media_type="application/json")

    async def _model_ready(self, request: Request) -> Response:
        return _json({"name": self.model(request.path_params).name, "ready": True})


class _Infer:
    """The inference endpoint, as bare ASGI: it serves thousands of requests a second, the others do not."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = self._application.model(scope["path_params"])
        body = await self._application.body(scope, receive)
        length = dict(scope["headers"]).get(_LENGTH_KEY)
        request = decode_request(body, None if length is None else length.decode("latin-1"))
        encoded = encode_response(await model.infer(request), request)
        headers = [(key.lower().encode(), value.encode()) for key, value in encoded.headers().items()]
        headers.append((b"content-length", str(len(encoded.body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": encoded.body})


class _ClientGone(Exception):
    """The client hung up before its request was complete; nobody is left to answer."""


def create_app(
    models: Iterable[ServedModel],
    *,
    token: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    pages: ASGIApp | None = None,
) -> ASGIApp:
    """Builds the ASGI application, for any ASGI server; `serve` runs it. See `Application`."""
    return Application(models, token=token, max_body_bytes=max_body_bytes, pages=pages)


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
    # Neither the message nor the traceback: both might hold what was sent.
    log.error("unexpected %s while serving a request", type(error).__name__)
    return _json({"error": "internal error"}, status=500)


def _json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status_code=status, headers=headers, media_type="application/json")


def _by_name(models: Iterable[ServedModel]) -> dict[str, ServedModel]:
    named: dict[str, ServedModel] = {}
    for model in models:
        if model.name in named:
            raise ServingError(f"two models are called {model.name!r}; give one of them another name")
        named[model.name] = model
    if not named:
        raise ServingError("there is no model to serve")
    return named


def _checked_token(token: str) -> bytes:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ServingError("the token must be printable ASCII without spaces")
    return token.encode("ascii")

"""Runs the application on a socket until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from sfumato.cloud.app import MAX_BODY_BYTES, create_app
from sfumato.cloud.dataplane import ServedModel
from sfumato.errors import ServingError

log = logging.getLogger(__name__)

BACKLOG = 2048
GRACE_S = 10
_START_TIMEOUT_S = 30


def serve(
    models: Iterable[ServedModel],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    pages: ASGIApp | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves models until SIGTERM or SIGINT; requests under way are answered first.

    Args:
        models: what is served.
        host: the address to listen on. Anything but a loopback address is open to the network.
        port: the port; 0 takes a free one.
        token: if given, everything but the health endpoints wants it as a bearer token.
        tls_cert: PEM file with the certificate chain; makes it HTTPS.
        tls_key: PEM file with the private key, unless it lies in `tls_cert`.
        max_body_bytes: the longest request body that is read.
        pages: an ASGI application that answers every path outside `/v2`.
        on_ready: called with the server's URL once it answers.

    Raises:
        ServingError: the port is taken or not allowed, a TLS file is missing or unusable, or there is no model.
    """
    server, listener = _prepare(models, host, port, token, tls_cert, tls_key, max_body_bytes, pages, on_ready)
    with listener, _stopping_on_signals(server):
        server.run(sockets=[listener])


@contextlib.contextmanager
def running(models: Iterable[ServedModel], *, port: int = 0, **options: Any) -> Iterator[str]:
    """Serves models in a background thread, for notebooks and tests.

    Args:
        models: what is served.
        port: the port; by default a free one.
        options: as for `serve`.

    Yields:
        The server's URL.

    Raises:
        ServingError: as for `serve`.
    """
    urls: list[str] = []
    ready = threading.Event()

    def note(url: str) -> None:
        urls.append(url)
        ready.set()

    arguments = {"host": "127.0.0.1", "token": None, "tls_cert": None, "tls_key": None, "pages": None, **options}
    arguments.setdefault("max_body_bytes", MAX_BODY_BYTES)
    server, listener = _prepare(models, port=port, on_ready=note, **arguments)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sfumato-server", daemon=True)
    thread.start()
    try:
        if not ready.wait(_START_TIMEOUT_S):
            raise ServingError("the server did not start in time")
        yield urls[0]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def _prepare(
    models: Iterable[ServedModel],
    host: str,
    port: int,
    token: str | None,
    tls_cert: str | os.PathLike[str] | None,
    tls_key: str | os.PathLike[str] | None,
    max_body_bytes: int,
    pages: ASGIApp | None,
    on_ready: Callable[[str], None] | None,
) -> tuple[_Server, socket.socket]:
    """Everything that can go wrong for a user goes wrong here, before anything runs."""
    app = create_app(models, token=token, max_body_bytes=max_body_bytes, pages=pages)
    tls = _tls_context(tls_cert, tls_key)
    listener = _bind(host, port)
    if token is None and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        log.warning("listening on %s without a token: everybody who reaches it may use the model", host)
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    url = _url(listener, host, secure=tls is not None)
    return _Server(config, lambda: on_ready(url) if on_ready else None), listener


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServingError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    # Connections inherit it. Without it an answer, sent as head and body, waits 40 ms for the client's delayed
    # acknowledgement; asyncio sets it only on sockets that were made with the protocol's number.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket, host: str, *, secure: bool) -> str:
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"


def _tls_context(cert: str | os.PathLike[str] | None, key: str | os.PathLike[str] | None) -> ssl.SSLContext | None:
    if cert is None:
        if key is not None:
            raise ServingError("a TLS key without a certificate was given; give both")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An empty password makes an encrypted key an error instead of a question on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = " and ".join(os.fspath(file) for file in (cert, key) if file is not None)
        raise ServingError(
            f"cannot use {names} for TLS: {error.strerror if isinstance(error, OSError) else error}"
        ) from error
    return context


@contextlib.contextmanager
def _stopping_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Lets signals end the server rather than the process.

    uvicorn handles them while it runs and repeats them when it has stopped; ours then have nothing left to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

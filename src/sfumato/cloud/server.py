"""Run the application on a socket until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import queue
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Unpack

import uvicorn

from sfumato.artifacts.signals import Handler, handled
from sfumato.cloud.app import Application, ApplicationOptions
from sfumato.cloud.connection_limits import GuardedProtocol
from sfumato.cloud.dataplane import ServedModel
from sfumato.cloud.hosts import is_loopback
from sfumato.cloud.metrics import Siblings
from sfumato.cloud.model_repository import Catalogue
from sfumato.errors import ServingError

log = logging.getLogger(__name__)

BACKLOG = 2048
_SPARE_FILES = 64  # descriptors that are left for anything but connections
_START_TIMEOUT_S = 30


class ServerOptions(ApplicationOptions, total=False):
    """Options of a server.

    Attributes:
        tls_cert: PEM file with the certificate chain; makes it HTTPS.
        tls_key: PEM file with the private key, unless it lies in `tls_cert`.
        client_ca: PEM file with authorities; makes a client certificate of one of them necessary.
    """

    tls_cert: str | os.PathLike[str] | None
    tls_key: str | os.PathLike[str] | None
    client_ca: str | os.PathLike[str] | None


def serve(
    models: Catalogue | Iterable[ServedModel],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_ready: Callable[[str], None] | None = None,
    **options: Unpack[ServerOptions],
) -> None:
    """Serve models until SIGTERM or SIGINT; finish requests in progress first. SIGHUP reloads a `Catalogue` and tokens.

    Args:
        models: what is served.
        host: the address to listen on. Anything but a loopback address is open to the network.
        port: the port; 0 takes a free one.
        on_ready: called with the server's URL once it is ready.
        options: see `ServerOptions`.

    Raises:
        ServingError: the port is taken or not allowed, a file is missing or unusable, or there is no model.
    """
    with listen(host, port) as listener:
        warn_if_open(listener, host, options)
        run(build_server(models, listener, host, on_ready=on_ready, **options), [listener])


@contextlib.contextmanager
def running(
    models: Catalogue | Iterable[ServedModel],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    **options: Unpack[ServerOptions],
) -> Iterator[str]:
    """Serve models in a background thread, by default on a free port, for notebooks and tests; yield the URL.

    Arguments and errors are those of `serve`.
    """
    ready: queue.SimpleQueue[str] = queue.SimpleQueue()
    with listen(host, port) as listener:
        warn_if_open(listener, host, options)
        server = build_server(models, listener, host, on_ready=ready.put, **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sfumato-server", daemon=True)
        thread.start()
        try:
            try:
                url = ready.get(timeout=_START_TIMEOUT_S)
            except queue.Empty:
                raise ServingError("the server did not start in time") from None
            yield url
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """uvicorn's server, which reports when it is ready, drains, reloads, and cuts off requests that are too slow."""

    def __init__(self, config: uvicorn.Config, app: Application, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._application, self._limits, self._on_ready = app, app.limits, on_ready
        self._leave_at_s: float | None = None
        self._reload_wanted = False
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn's own way has no deadline for a TLS handshake."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_exception)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(1)
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        connection = partial(make, self.config, self.server_state, self.lifespan.state)
        tls = self.config.ssl
        handshake_s = None if tls is None else self._limits.head_timeout_s
        self.servers = [
            await loop.create_server(
                connection, sock=listener, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake_s
            )
            for listener in sockets or ()
        ]
        self.started = True
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM, report "not ready" and leave after `linger_s`; on anything more, leave now."""
        if sig == signal.SIGTERM and self._leave_at_s is None and self._limits.linger_s > 0:
            self._leave_at_s = time.monotonic() + self._limits.linger_s
            self._application.drain()
        else:
            self._application.drain()
            super().handle_exit(sig, frame)

    def stop(self, _: int, __: FrameType | None) -> None:
        self.should_exit = True

    def want_reload(self, _: int, __: FrameType | None) -> None:
        self._reload_wanted = True

    async def on_tick(self, counter: int) -> bool:
        if self._leave_at_s is not None and time.monotonic() >= self._leave_at_s:
            self.should_exit = True
        now_s = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.cut_if_late(now_s)
        if self._reload_wanted and (self._reloading is None or self._reloading.done()):
            self._reload_wanted = False
            self._reloading = asyncio.create_task(self._application.reload())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._reloading is not None:
            await self._reloading
        await super().shutdown(sockets)


def listen(host: str, port: int, *, share: bool = False) -> socket.socket:
    """Open a listening socket; port 0 takes a free one.

    With `share`, further sockets may listen there, opened in the same way; the kernel then distributes connections.

    Raises:
        ServingError: the port is taken or not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=share)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServingError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    # Connections inherit it. Without it a response, sent as head and body, waits 40 ms for the client's delayed
    # acknowledgement; asyncio sets it only on sockets that were made with the protocol's number.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def warn_if_open(listener: socket.socket, host: str, options: ServerOptions) -> None:
    """Log a warning if other machines reach the server without a token."""
    closed = any(options.get(key) is not None for key in ("token", "token_file", "client_ca"))
    if not closed and not is_loopback(listener.getsockname()[0]):
        log.warning("listening on %s without a token: everybody who reaches it can use the model", host)


def build_server(
    models: Catalogue | Iterable[ServedModel],
    listener: socket.socket,
    host: str,
    *,
    siblings: Siblings | None = None,
    on_ready: Callable[[str], None] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    client_ca: str | os.PathLike[str] | None = None,
    **options: Unpack[ApplicationOptions],
) -> _Server:
    """Build the server, so that user errors show before anything runs; raise as `serve`."""
    app = Application(models, siblings=siblings, loopback=is_loopback(listener.getsockname()[0]), **options)
    limits, tls = app.limits, tls_context(tls_cert, tls_key, client_ca)
    connections = _affordable(limits.max_connections)
    config = uvicorn.Config(
        app,
        http=partial(GuardedProtocol, application=app, limits=limits, max_connections=connections),  # type: ignore[arg-type]
        lifespan="on",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(limits.grace_s),
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    shown = f"[{host}]" if ":" in host else host
    url = f"{'http' if tls is None else 'https'}://{shown}:{listener.getsockname()[1]}"
    return _Server(config, app, lambda: on_ready(url) if on_ready else None)


def run(server: _Server, listeners: list[socket.socket]) -> None:
    """Run a server until a signal ends it, or reload its models on SIGHUP.

    uvicorn handles SIGINT and SIGTERM while it runs and repeats them when it has stopped; these handlers then have
    nothing left to do.
    """
    handlers: dict[int, Handler] = {signal.SIGINT: server.stop, signal.SIGTERM: server.stop}
    if hasattr(signal, "SIGHUP"):  # not on Windows
        handlers[signal.SIGHUP] = server.want_reload
    with handled(handlers):
        server.run(sockets=listeners)


def _affordable(connections: int) -> int:
    """Limit connections by the limit of open files, so that one more can still get a 503."""
    try:
        import resource
    except ImportError:  # not on Windows
        return connections
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return connections if allowed == resource.RLIM_INFINITY else max(1, min(connections, allowed - _SPARE_FILES))


def tls_context(
    cert: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None,
    client_ca: str | os.PathLike[str] | None = None,
) -> ssl.SSLContext | None:
    """Make a TLS context of PEM files; None without them.

    Raises:
        ServingError: a file is missing or unusable.
    """
    if cert is None:
        if key is not None:
            raise ServingError("a TLS key without a certificate was given; give both")
        if client_ca is not None:
            raise ServingError("authorities for client certificates need TLS; give a certificate and a key, too")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = [cert, key]
    try:
        # An empty password makes an encrypted key an error instead of a question on the terminal.
        context.load_cert_chain(cert, key, password="")
        if client_ca is not None:
            files = [client_ca]
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = " and ".join(os.fspath(file) for file in files if file is not None)
        raise ServingError(
            f"cannot use {names} for TLS: {error.strerror if isinstance(error, OSError) else error}"
        ) from error
    return context


def _log_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop reports in one line: a traceback could hold what was sent, and clients can cause it."""
    error = context.get("exception")
    kind = "" if error is None else f" ({type(error).__name__})"
    log.error("%s%s", context.get("message", "unexpected error in the event loop"), kind)

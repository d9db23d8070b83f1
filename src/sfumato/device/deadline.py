"""One deadline for a whole call, and connections on which nothing outlasts it.

A socket's own timeout starts anew with every byte, so that a server that drips them is waited for without end. Here
each operation waits for what is left of the call: looking up the name, connecting, TLS, sending, and every read.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextvars import ContextVar
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

_SLACK_S = 1e-3
"""A wait may end this much early."""
_ends_s: ContextVar[float | None] = ContextVar("ends_s", default=None)


@contextlib.contextmanager
def deadline(timeout_s: float) -> Iterator[None]:
    """End what is done inside after `timeout_s` seconds; inside another deadline, that one holds."""
    if _ends_s.get() is not None:
        yield
        return
    token = _ends_s.set(time.monotonic() + timeout_s)
    try:
        yield
    finally:
        _ends_s.reset(token)


def left_s() -> float:
    """Return how many seconds the call has left, not negative; infinity outside a deadline."""
    ends_s = _ends_s.get()
    return float("inf") if ends_s is None else max(0.0, ends_s - time.monotonic())


def is_over() -> bool:
    """Return whether the call has no time left."""
    return left_s() <= _SLACK_S


class _Socket(socket.socket):
    """A socket whose operations take what is left of the call, or raise a `TimeoutError`."""

    def recv_into(self, *args: Any, **named: Any) -> int:
        self._wait_no_longer()
        return super().recv_into(*args, **named)

    def send(self, *args: Any) -> int:
        self._wait_no_longer()
        return super().send(*args)

    def sendall(self, *args: Any) -> None:
        self._wait_no_longer()
        super().sendall(*args)

    def _wait_no_longer(self) -> None:
        if is_over():  # a timeout of 0 would mean not to wait, and to fail in another way
            raise TimeoutError
        self.settimeout(min(left_s(), threading.TIMEOUT_MAX))


class _TlsSocket(_Socket, ssl.SSLSocket):
    """The same under TLS."""

    def do_handshake(self, block: bool = False) -> None:
        self._wait_no_longer()
        super().do_handshake(block)


class _HttpConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        """Connect to the first address that responds."""
        try:
            found = look_up(self._dns_host.strip("[]"), self.port)
            addresses = found.result(min(left_s(), threading.TIMEOUT_MAX))
        except TimeoutError:
            raise ConnectTimeoutError(self, f"the look-up of {self.host} took too long") from None
        except (OSError, UnicodeError) as error:
            raise NameResolutionError(self.host, self, cast(socket.gaierror, error)) from None
        reason: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            sock = _Socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock._wait_no_longer()
                sock.connect(address)
            except OSError as error:
                sock.close()
                reason = error
            else:
                return sock
        raise NewConnectionError(self, f"no connection: {reason}")


class _HttpsConnection(_HttpConnection, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def connection_pool(*, tls: ssl.SSLContext | None, proxy: str | None, kept: int) -> urllib3.PoolManager:
    """Return a pool of connections that heed the `deadline` and try nothing again.

    Args:
        tls: for `https://` addresses; its sockets are made to heed the deadline, too.
        proxy: the `http://` address of an HTTP proxy.
        kept: connections that are kept open.
    """
    if tls is not None:
        tls.sslsocket_class = _TlsSocket
    options: dict[str, Any] = {"retries": False, "timeout": None, "maxsize": kept, "ssl_context": tls}
    pool = urllib3.PoolManager(**options) if proxy is None else urllib3.ProxyManager(proxy, **options)
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


def look_up(host: str, port: int, family: int = socket.AF_UNSPEC) -> Future[list[Any]]:
    """Look a name up in a thread of its own: the system's resolver knows no deadline.

    Returns:
        What `socket.getaddrinfo` gives, once it does.
    """
    found: Future[list[Any]] = Future()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
            try:
                found.set_result(socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM))
            except BaseException as error:
                found.set_exception(error)

    threading.Thread(target=run, name="sfumato-looks-up", daemon=True).start()
    return found

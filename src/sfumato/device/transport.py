"""HTTP as a device needs it: bounded, retried, never redirected; every failure is a kind of `EndpointError`.

Nothing here sends: `urllib3_transport` and `aiohttp_transport` do. All else is written once, as coroutines, so that the
blocking and the asynchronous client cannot drift apart; see `blocking`.
"""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import os
import random
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypedDict, Unpack

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url
from urllib3.util.ssl_ import create_urllib3_context

from sfumato.device.deadline import deadline, left_s
from sfumato.device.retry_budget import RetryBudget
from sfumato.errors import (
    EndpointError,
    EndpointFailed,
    EndpointModelNotFound,
    EndpointRefused,
    EndpointResponseInvalid,
    EndpointUnreachable,
    WireError,
)
from sfumato.wire import fields
from sfumato.wire.tracing import trace_headers

MAX_RESPONSE_BYTES = 16 * 2**20
BACKOFF_S = 0.1
TIMEOUT_S = 10.0
_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
"""500, too: a proxy says so when its server dies over a request. Repeating an inference request is harmless."""
_MAX_REASON_CHARS = 200


@dataclass(frozen=True)
class Reply:
    """A complete HTTP response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ConnectionOptions(TypedDict, total=False):
    """Options of a connection to a server, over HTTP or gRPC.

    Attributes:
        token: the bearer token, if the server wants one. Never shown.
        timeout_s: for a whole call: looking up the name, connecting, TLS, sending, the response to its last byte,
            further attempts with the pauses before them, and what the first call asks the server of itself; by default
            10.
        retries: further attempts after a broken connection, or status 429, 500, 502, 503 or 504; by default 2. The
            calls of a client together make no more than its `RetryBudget` allows.
        ca_file: PEM file with the authorities to trust instead of the system's.
        cert_file: PEM file with the client's own certificate chain, for servers that ask for one.
        key_file: PEM file with its private key, not encrypted; by default in `cert_file`.
        proxy: an HTTP proxy to connect through, `http://host:port`; those of the environment are not used.
        allow_insecure_token: send the token without TLS to another machine, where others can read it.
        max_response_bytes: the longest response that is read; by default 16 MiB.
    """

    token: str | None
    timeout_s: float
    retries: int
    ca_file: str | os.PathLike[str] | None
    cert_file: str | os.PathLike[str] | None
    key_file: str | os.PathLike[str] | None
    proxy: str | None
    allow_insecure_token: bool
    max_response_bytes: int


class CallOptions(TypedDict, total=False):
    """Those of the `ConnectionOptions` that may differ from call to call on the same connections."""

    timeout_s: float
    retries: int


@dataclass
class Lifetime:
    """Whether connections were closed for good."""

    closed: bool = False


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A server's address with `ConnectionOptions`.

    Connections that differ in their options alone share the `budget` for further attempts and the `lifetime`.

    Raises:
        EndpointError: the token, a file, the proxy, the time or the number of retries cannot be used, or the token
            would be sent in the clear.
    """

    url: Url
    token: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S
    retries: int = 2
    ca_file: str | os.PathLike[str] | None = None
    cert_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None
    proxy: str | None = None
    allow_insecure_token: bool = False
    max_response_bytes: int = MAX_RESPONSE_BYTES
    budget: RetryBudget = field(default_factory=RetryBudget, repr=False, compare=False)
    lifetime: Lifetime = field(default_factory=Lifetime, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.token is not None:
            if not fields.is_token(self.token):
                raise EndpointError("the token must be printable ASCII without spaces")
            if not (self.secure or self.allow_insecure_token or self._stays_here()):
                raise EndpointError(
                    f"the token would be sent in the clear to {self.server}; use {self.url.scheme}s, or allow it with "
                    "allow_insecure_token"
                )
        if self.proxy is not None:
            checked_url(self.proxy, ("http",), "a proxy's address must look like http://host:port")
        if (self.cert_file or self.key_file) and not self.secure:
            raise EndpointError(f"a client certificate needs TLS; use {self.url.scheme}s")
        if self.key_file and not self.cert_file:
            raise EndpointError("a client's key needs its certificate: give cert_file, too")
        for what, file in (
            ("certificate authorities", self.ca_file),
            ("the client's certificate", self.cert_file),
            ("the client's key", self.key_file),
        ):
            if file is not None and not Path(file).is_file():
                raise EndpointError(f"no file with {what} at {os.fspath(file)}")
        if self.retries < 0:
            raise EndpointError(f"retries must not be negative, got {self.retries}")
        if not 0 < self.timeout_s < float("inf"):
            raise EndpointError(f"timeout_s must be positive and finite, got {self.timeout_s}")

    def _stays_here(self) -> bool:
        """Return whether what is sent without TLS stays on this machine."""
        return _is_loopback(self.url.host or "") and (
            self.proxy is None or _is_loopback(parse_url(self.proxy).host or "")
        )

    @property
    def secure(self) -> bool:
        """Whether TLS is used."""
        return self.url.scheme in ("https", "grpcs")

    @property
    def server(self) -> str:
        """The address without a path."""
        return f"{self.url.scheme}://{self.url.netloc}"

    def tls(self) -> ssl.SSLContext:
        """Return what to trust, and the client's own certificate, if it has one.

        Raises:
            EndpointError: a file is not what it should be.
        """
        context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
        try:
            if self.ca_file is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(os.fspath(self.ca_file))
        except (OSError, ValueError):
            raise EndpointError(f"{os.fspath(self.ca_file or '')} has no certificate authorities in PEM") from None
        if self.cert_file is not None:
            key = None if self.key_file is None else os.fspath(self.key_file)
            try:
                context.load_cert_chain(os.fspath(self.cert_file), key, password="")  # never ask the terminal for one
            except (OSError, ValueError):
                raise EndpointError(
                    f"{os.fspath(self.cert_file)} and its key cannot be used: a certificate chain and its private key, "
                    "not encrypted, are needed in PEM"
                ) from None
        return context

    def changed(self, options: CallOptions) -> Connection:
        """Return the same connection with other options.

        Raises:
            EndpointError: one of them cannot be used.
        """
        return replace(self, **options)

    def check_open(self) -> None:
        """Raise an `EndpointError` if it was closed for good. Called before each attempt."""
        if self.lifetime.closed:
            raise EndpointError("the client is closed; open another one")

    def pause_s(self, attempt: int, asked_s: float = 0.0) -> float | None:
        """Return how long to wait before the next attempt: longer each time, and not equally long on all devices.

        Args:
            attempt: further attempts that were made already.
            asked_s: how long the server asks to wait at least.

        Returns:
            None if there is to be no further attempt: `retries` were made, the call has less time than that, or the
            budget is used up.
        """
        pause_s: float = max(asked_s, BACKOFF_S * 2**attempt * random.uniform(1, 1.5))
        if attempt >= self.retries or pause_s >= left_s() or not self.budget.take():
            return None
        return pause_s

    def without_token(self, text: str) -> str:
        """Remove the token, which a proxy may have quoted back."""
        return text.replace(self.token, "…") if self.token else text

    def hint(self) -> str:
        """Return what may be wrong if the server does not accept the request."""
        if self.token is None:
            return "it needs a token; give one (--token-file or $SFUMATO_TOKEN; in Python token=)"
        return "the token was not accepted"

    def too_long(self) -> EndpointResponseInvalid:
        """Return the error for a response that is too long."""
        return EndpointResponseInvalid(f"{self.server} responded with more than {self.max_response_bytes} bytes")

    def late(self, how: str = "") -> EndpointUnreachable:
        """Return the error for a response that does not come in time."""
        return EndpointUnreachable(f"{self.server} did not respond{how} within {self.timeout_s:g} s")


class Transport(ABC):
    """Talks to one server over HTTP.

    Args:
        server_url: `http://` or `https://`, host, and a path prefix if the server has one.
        options: see `ConnectionOptions`.

    Raises:
        EndpointError: the URL or an option cannot be used, or the token would be sent in the clear.
    """

    def __init__(self, server_url: str, **options: Unpack[ConnectionOptions]) -> None:
        self.connection = to = Connection(url=checked_url(server_url, ("http", "https")), **options)
        self.server = to.server
        self._base = self.server + (to.url.path or "").rstrip("/")
        self._headers = {"Accept-Encoding": "identity"}
        if to.token is not None:
            self._headers["Authorization"] = f"Bearer {to.token}"

    def with_options(self, options: CallOptions) -> Self:
        """Return a transport with other options over the same connections."""
        other = copy.copy(self)
        other.connection = self.connection.changed(options)
        return other

    async def get(self, path: str) -> Reply:
        """Fetch a path. Raise as `request` does."""
        return await self.request("GET", path, None, {})

    async def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send one request, again if that can help, and return the response if its status is 200.

        Raises:
            EndpointUnreachable: no connection, or no response in time.
            EndpointRefused: status 4xx, or a redirect, which is never followed: it could take the data elsewhere.
            EndpointFailed: status 5xx.
            EndpointResponseInvalid: the response breaks off, is too long, or has another status.
        """
        attempt = 0
        self.connection.budget.add()
        with deadline(self.connection.timeout_s):
            while True:
                self.connection.check_open()
                try:
                    sent = {**self._headers, **trace_headers(), **headers}
                    reply = await self._once(method, self._base + path, body, sent)
                    if reply.status == 200:
                        return reply
                    error, retry_after = self._error(reply), reply.headers.get("retry-after", "").strip()
                    if reply.status not in _RETRIED_STATUSES:
                        raise error
                except Lost as lost:
                    error, retry_after = lost.error, ""
                asked_s = float(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after) else 0.0
                pause_s = self.connection.pause_s(attempt, asked_s)
                if pause_s is None:
                    raise error
                await self._sleep(pause_s)
                attempt += 1

    async def close(self) -> None:
        """Close the connections for good, each once no request is using it. No further attempt is made."""
        self.connection.lifetime.closed = True
        await self.reconnect()

    @abstractmethod
    async def reconnect(self) -> None:
        """Close the connections, each once no request is using it; further requests make new ones."""

    @abstractmethod
    async def _once(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send one request, follow no redirect, and read the response to its end, within the `deadline`.

        Raises:
            Lost: no connection, or it broke.
            EndpointError: anything else that is no complete response.
        """

    @abstractmethod
    async def _sleep(self, seconds: float) -> None:
        """Wait."""

    def _untrusted(self) -> EndpointUnreachable:
        return EndpointUnreachable(
            f"no secure connection to {self.server}: it does not speak TLS, its certificate is not trusted, or it does "
            "not accept this client's"
        )

    def _unconnected(self, error: Exception) -> Lost:
        return Lost(EndpointUnreachable(f"no connection to {self.server} ({type(error).__name__})"))

    def _broken_off(self, error: Exception) -> Lost:
        kind = type(error).__name__
        return Lost(EndpointResponseInvalid(f"the response of {self.server} breaks off ({kind})"))

    def _error(self, reply: Reply) -> EndpointError:
        what = f"{self.server} responded with status {reply.status}"
        if reply.status in (401, 403):
            return EndpointRefused(f"{what}: {self.connection.hint()}")
        if 300 <= reply.status < 400:
            return EndpointRefused(f"{what}, a redirect, which is not followed; give the final address")
        if reply.status == HTTPStatus.NOT_FOUND:
            return EndpointModelNotFound(what + self._reason(reply))
        if 400 <= reply.status < 500:
            return EndpointRefused(what + self._reason(reply))
        if reply.status >= 500:
            return EndpointFailed(what + self._reason(reply))
        return EndpointResponseInvalid(f"{what}; 200 was expected")

    def _reason(self, reply: Reply) -> str:
        """Return the server's own `{"error": ...}`, if it is one, fit to be shown."""
        with contextlib.suppress(WireError):
            text = fields.parse_object(reply.body, "the error").get("error")
            if isinstance(text, str):
                return f": {printable(self.connection.without_token(text))}"
        return ""


class Lost(Exception):
    """No connection, or it broke before the response's end, as when a server dies; trying again may help."""

    def __init__(self, error: EndpointError) -> None:
        super().__init__(str(error))
        self.error = error


def printable(text: str, most: int = _MAX_REASON_CHARS) -> str:
    """Cut text from elsewhere and make it harmless for a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:most])


def checked_url(
    server_url: str,
    schemes: tuple[str, ...],
    wanted: str = "the server's address must look like https://host:port, or grpcs://host:port for gRPC",
) -> Url:
    """Parse an address with one of these schemes and a host, and nothing else than a path; `wanted` says so.

    Raises:
        EndpointError: it is something else.
    """
    try:
        url = parse_url(server_url)
    except LocationParseError:
        url = Url()
    if url.scheme not in schemes or not url.host:
        raise EndpointError(wanted)
    if url.auth is not None or url.query is not None or url.fragment is not None:
        raise EndpointError("a URL must hold no user name, password, query or fragment; use a token")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

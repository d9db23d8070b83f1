"""By which names a server may be asked, so that a page from elsewhere cannot use it through a visitor's browser.

A browser lets a page talk to the host that it came from. With DNS rebinding, that host's name is made to stand for
127.0.0.1 once the page is loaded; what gives it away is the name itself, in `Host` and `Origin`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

from starlette.exceptions import HTTPException

from sfumato.errors import ServingError

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(\d{0,5}))?")
_ORIGIN = re.compile(r"(https?)://([^/?#@\\]+)")
_PORTS = {"http": "80", "https": "443"}
_KNOWN_MOST = 64

Headers = Sequence[tuple[bytes, bytes]]


def is_loopback(address: str) -> bool:
    """Return whether an IP address can only be reached from this machine."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


class Hosts:
    """The names of a server.

    Addresses of this machine and `localhost` always are. IP addresses are names too unless the server listens on
    the loopback alone: they cannot be rebound.

    Args:
        names: further ones, without ports.
        loopback: whether the server listens on the loopback alone.

    Raises:
        ServingError: a name is none.
    """

    def __init__(self, names: Iterable[str] = (), *, loopback: bool) -> None:
        self._names = {"localhost"} | {_checked(name) for name in names}
        self._loopback = loopback
        self._known: set[bytes] = set()

    def check(self, headers: Headers, by_name: Mapping[bytes, bytes], *, http10: bool) -> None:
        """Refuse a request to another name, or from a page of another origin.

        Args:
            headers: the request's, in lower case.
            by_name: the same.
            http10: whether it may have no `Host`.

        Raises:
            HTTPException: 421 for another name, 403 for another origin, 400 for no name or several.
        """
        host, origin = by_name.get(b"host"), by_name.get(b"origin")
        if host in self._known and origin is None and len(by_name) == len(headers):
            return
        names = [name for name, _ in headers]
        if host is None and http10:
            return
        if host is None or names.count(b"host") > 1 or names.count(b"origin") > 1:
            raise HTTPException(400, "a request has one Host header, and at most one Origin header")
        if not self._is_name(_split(host.decode("latin-1"))[0]):
            raise HTTPException(421, "this server does not go by that name; allow it with --allowed-host NAME")
        if origin is not None and not self._is_own(origin.decode("latin-1"), host.decode("latin-1")):
            raise HTTPException(403, "pages of other origins may not use this server")
        if len(self._known) < _KNOWN_MOST:
            self._known.add(host)

    def _is_name(self, name: str) -> bool:
        if name in self._names:
            return True
        bare = name.strip("[]")
        if self._loopback:
            return is_loopback(bare)
        try:
            return bool(ipaddress.ip_address(bare))
        except ValueError:
            return False

    def _is_own(self, origin: str, host: str) -> bool:
        """Return whether an origin is the host that was asked, or one of the names that were given.

        Schemes are not compared: a proxy with TLS may stand before the server.
        """
        found = _ORIGIN.fullmatch(origin.lower())
        if found is None:  # "null", too: pages in files, and sandboxes
            return False
        usual = _PORTS[found[1]]
        (name, port), (asked, at) = _split(found[2]), _split(host)
        if name in self._names - {"localhost"}:
            return True
        return bool(name) and (name, port or usual) == (asked, at or usual)


def _split(host: str) -> tuple[str, str]:
    """Return a host's name, in lower case without a trailing dot, and its port; empty where there is none."""
    found = _HOST.fullmatch(host.lower())
    return (found[1].removesuffix("."), found[2] or "") if found else ("", "")


def _checked(given: str) -> str:
    shown = f"[{given}]" if ":" in given and not given.startswith("[") and given.count(":") > 1 else given
    name, port = _split(shown)
    if not name or port:
        raise ServingError(f"an allowed host is a name such as models.example.org, without a port; got {given!r}")
    return name

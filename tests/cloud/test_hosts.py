"""By which names a server may be asked, and from pages of which origins."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from sfumato.cloud.hosts import Hosts, is_loopback
from sfumato.errors import ServingError


def status(hosts: Hosts, *headers: tuple[str, str], http10: bool = False) -> int:
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    try:
        hosts.check(given, dict(given), http10=http10)
    except HTTPException as error:
        return error.status_code
    return 200


LOCAL = Hosts(loopback=True)
NAMED = Hosts(["Models.Example.org.", "::5"], loopback=True)
OPEN = Hosts(["models.example.org"], loopback=False)


@pytest.mark.parametrize(
    ("host", "local", "named", "opened"),
    [
        ("localhost", 200, 200, 200),
        ("LOCALHOST.:8080", 200, 200, 200),
        ("127.0.0.1:8080", 200, 200, 200),
        ("127.8.9.1", 200, 200, 200),
        ("[::1]:8080", 200, 200, 200),
        ("[0:0:0:0:0:0:0:1]", 200, 200, 200),
        ("[::ffff:127.0.0.1]", 200, 200, 200),
        ("models.example.org", 421, 200, 200),
        ("MODELS.example.org.:443", 421, 200, 200),
        ("[::5]", 421, 200, 200),
        ("10.0.0.1:8080", 421, 421, 200),
        ("0.0.0.0:8080", 421, 421, 200),
        ("[::]", 421, 421, 200),
        ("evil.example", 421, 421, 421),
        ("localhost.evil.example", 421, 421, 421),
        ("evil.example:localhost", 421, 421, 421),
        ("127.0.0.1.evil.example", 421, 421, 421),
        ("localhost@evil.example", 421, 421, 421),
        ("localhost/", 421, 421, 421),
        ("localhost, evil.example", 421, 421, 421),
        ("2130706433", 421, 421, 421),
        ("127.1", 421, 421, 421),
        ("::1", 421, 421, 421),
        ("löcalhost", 421, 421, 421),
        ("", 421, 421, 421),
    ],
)
def test_names(host: str, local: int, named: int, opened: int) -> None:
    for _ in range(2):  # the second time, it is known
        assert [status(hosts, ("Host", host)) for hosts in (LOCAL, NAMED, OPEN)] == [local, named, opened]


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("localhost:8080", "http://localhost:8080", 200),
        ("localhost:8080", "HTTP://LOCALHOST.:8080", 200),
        ("localhost", "http://localhost:80", 200),
        ("localhost:443", "https://localhost", 200),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", 200),
        ("[::1]:8080", "http://[::1]:8080", 200),
        ("localhost:8080", "http://localhost:3000", 403),
        ("localhost:8080", "http://localhost", 403),
        ("localhost:8080", "http://127.0.0.1:8080", 403),
        ("localhost:8080", "http://evil.example:8080", 403),
        ("localhost:8080", "http://evil.example", 403),
        ("localhost:8080", "http://localhost:8080.evil.example", 403),
        ("localhost:8080", "http://localhost:8080/", 403),
        ("localhost:8080", "null", 403),
        ("localhost:8080", "", 403),
        ("localhost:8080", "file://", 403),
        ("localhost:8080", "chrome-extension://abc", 403),
        ("localhost:8080", "https://models.example.org", 200),
    ],
)
def test_origins(host: str, origin: str, expected: int) -> None:
    assert status(NAMED, ("Host", host), ("Origin", origin)) == expected


def test_there_is_one_host() -> None:
    assert status(LOCAL) == 400
    assert status(LOCAL, http10=True) == 200
    assert status(LOCAL, ("Host", "localhost"), ("Host", "localhost")) == 400
    assert status(LOCAL, ("Host", "localhost"), ("Origin", "null"), ("Origin", "http://localhost")) == 400
    assert status(LOCAL, ("Host", "localhost"), ("Accept", "a"), ("Accept", "b")) == 200


@pytest.mark.parametrize("name", ["", "a b", "models.example.org:8080", "https://models.example.org", "*.example.org"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ServingError, match="without a port"):
        Hosts([name], loopback=True)


def test_the_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost", "")))

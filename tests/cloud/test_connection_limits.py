"""What clients that mean no good cost: over real sockets, and with a memory of what the server kept for them."""

from __future__ import annotations

import resource
import socket
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from sfumato import cloud, wire
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud.limits import PIECE_BYTES

TOKEN = "s3cret"
INFER = "/v2/models/tiny/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SERVER = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
ENCODED = wire.encode_request(wire.InferRequest((wire.Tensor("input", np.zeros((1, 3, 8, 8), np.float32)),)))
BIG = 40 * 2**20


def post(length: int | None = None, body: bytes = b"", token: str | None = TOKEN, *more: str) -> bytes:
    lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in ENCODED.headers().items()), *more]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


GOOD = post(len(ENCODED.body), ENCODED.body)


@contextmanager
def served(bundle: Bundle, **options: object) -> Iterator[str]:
    with cloud.running([cloud.ServedModel(bundle.path)], **options) as url:  # type: ignore[arg-type]
        yield url


def connect(url: str, receive_buffer: int | None = None) -> socket.socket:
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    opened = socket.socket()
    if receive_buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    opened.settimeout(10)
    opened.connect((host, int(port)))
    return opened


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionError):
        while part := connection.recv(2**20):
            found += part
    return found


def ask(url: str, request: bytes) -> bytes:
    """Send, and read to the end of a response that is one packet."""
    with connect(url) as connection:
        connection.sendall(request)
        return connection.recv(2**20)


def held_bytes(url: str) -> float:
    """What the server says that it keeps."""
    metrics = ask(url, f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    return float(metrics.split(b"\nsfumato_held_bytes ")[1].split()[0])


def rss_mb() -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith("VmRSS"))


def wait_until_closed(connections: list[socket.socket], within_s: float) -> float:
    """Return after how long the server has ended all of them; nothing is read before."""
    start = time.monotonic()
    while time.monotonic() - start < within_s:
        time.sleep(0.05)
        if all(_is_closed(connection) for connection in connections):
            return time.monotonic() - start
    raise AssertionError(f"connections were left open for {within_s} s")


def _is_closed(connection: socket.socket) -> bool:
    """Ask the kernel: TCP_INFO begins with the state, of which 1 is an established connection."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1


# --- one request at a time ------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 1000])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_second_request_is_not_taken_before_the_first_is_answered(
    classifier_bundle: Bundle, times: int, in_pieces: bool
) -> None:
    with served(classifier_bundle, token=TOKEN) as url, connect(url) as connection:
        if in_pieces:
            with suppress(ConnectionError):
                for _ in range(times):
                    connection.sendall(GOOD)
        else:
            connection.sendall(GOOD * min(times, 20))
        responses = read_all(connection)
        if not in_pieces:
            assert responses.count(b"HTTP/1.1 200 OK") == 1
            assert b"connection: close" in responses
        assert ask(url, GOOD).startswith(b"HTTP/1.1 200")


def test_one_after_the_other_works(classifier_bundle: Bundle) -> None:
    with served(classifier_bundle, token=TOKEN) as url, connect(url) as connection:
        for _ in range(5):
            connection.sendall(GOOD)
            assert connection.recv(2**20).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_", [SERVER, LIVE, post(2, b"{}", "wrong"), post(2, b"{}")])
def test_pipelining_takes_no_memory(classifier_bundle: Bundle, request_: bytes) -> None:
    with served(classifier_bundle, token=TOKEN) as url, ExitStack() as stack:
        ask(url, LIVE)
        before, flood = rss_mb(), request_ * (400_000 // len(request_))
        for _ in range(40):
            connection = stack.enter_context(connect(url, receive_buffer=2048))
            connection.setblocking(False)
            with suppress(OSError):
                connection.send(flood)
        time.sleep(1)
        assert rss_mb() - before < 60, "it was 500 and more"
        assert ask(url, LIVE).startswith(b"HTTP/1.1 200")


# --- refused on the head --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(BIG, token=None), 413),
        (post(15 * 2**20, token=None), 401),
        (post(15 * 2**20, token="wrong"), 401),
        (post(None, token="wrong"), 401),
        (post(15 * 2**20, b"", TOKEN, "Content-Encoding: gzip"), 415),
        (post(15 * 2**20, b"", TOKEN, "Expect: 100-continue", "Origin: http://evil.example"), 403),
        (post(15 * 2**20).replace(b"localhost", b"evil.example"), 421),
        (post(15 * 2**20).replace(b"tiny", b"other"), 404),
    ],
)
def test_what_the_head_forbids_is_refused_before_the_body(
    classifier_bundle: Bundle, request_: bytes, status: int
) -> None:
    status = 401 if b"Bearer" not in request_ else status
    with served(classifier_bundle, token=TOKEN) as url, connect(url) as connection:
        connection.sendall(request_)
        response = read_all(connection)
        assert response.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"connection: close" in response and b"100 Continue" not in response


def test_a_refusal_arrives_although_the_body_is_still_sent(classifier_bundle: Bundle) -> None:
    with served(classifier_bundle, token=TOKEN) as url, connect(url) as connection:
        connection.sendall(post(4 * 2**20, token="wrong"))
        with suppress(ConnectionError):
            connection.sendall(bytes(4 * 2**20))
        assert read_all(connection).startswith(b"HTTP/1.1 401 ")


def test_a_refused_body_that_is_there_already_keeps_the_connection(classifier_bundle: Bundle) -> None:
    with served(classifier_bundle, token=TOKEN) as url, connect(url) as connection:
        for request, status in ((post(2, b"{}", "wrong"), b" 401 "), (GOOD, b" 200 ")):
            connection.sendall(request)
            assert status in connection.recv(2**20)


def test_bodies_are_held_back_by_what_is_in_memory(classifier_bundle: Bundle) -> None:
    limits = cloud.Limits(max_held_bytes=2**20)
    with served(classifier_bundle, token=TOKEN, limits=limits) as url, ExitStack() as stack:
        holders = [stack.enter_context(connect(url)) for _ in range(8)]
        statuses = []
        for count, holder in enumerate(holders, start=1):  # one after the other: together, parts of all would be held
            holder.settimeout(0.05)
            holder.sendall(post(2**18) + bytes(200_000))
            while held_bytes(url) < 200_000 * count:
                with suppress(TimeoutError):
                    statuses.append(holder.recv(100)[9:12])
                    break
        assert statuses == [b"503"] * 3, "five of them fit"


@pytest.mark.parametrize("filler", [b"1;" + b"x" * 60_000 + b"\r\na\r\n", b"0\r\n" + b"X: " + b"x" * 60_000])
def test_sizes_and_trailers_of_chunks_are_bounded(classifier_bundle: Bundle, filler: bytes) -> None:
    with served(classifier_bundle, token=TOKEN) as url, connect(url) as connection:
        connection.sendall(post(None))
        with suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(filler)
        assert read_all(connection).startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 this is TLS",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 1000,
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        post(None, b"5\r\nhello\r\nzz\r\n"),
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nHost: localhost\r\n\r\n",
    ],
)
def test_nothing_that_a_client_says_gives_a_traceback(
    classifier_bundle: Bundle, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with served(classifier_bundle, token=TOKEN) as url:
        with connect(url) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in read_all(connection) and b" 500 " not in read_all(connection)
        with connect(url) as connection:  # and resets in the middle
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert ask(url, GOOD).startswith(b"HTTP/1.1 200")
    assert not any(record.exc_info for record in caplog.records), caplog.text
    assert "Traceback" not in caplog.text and "\xff" not in caplog.text


# --- deadlines ------------------------------------------------------------------------------------

QUICK = cloud.Limits(idle_timeout_s=0.5, head_timeout_s=0.5, receive_timeout_s=1.0, send_timeout_s=0.5)


class Big:
    """Pages of one large file, which no buffer of the kernel's takes."""

    async def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
        head = [(b"content-length", str(BIG).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": _BYTES})


_BYTES = bytes(BIG)
PAGE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"GET", SERVER[:-2], post(100, b"abc"), post(None, b"1\r\na\r\n"), LIVE, GOOD, PAGE]
)
def test_who_stops_anywhere_is_cut(classifier_bundle: Bundle, sent: bytes) -> None:
    with (
        served(classifier_bundle, token=TOKEN, limits=QUICK, pages=Big()) as url,
        connect(url, receive_buffer=2048) as connection,
    ):
        connection.sendall(sent)
        wait_until_closed([connection], within_s=5)
        assert ask(url, GOOD).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("drip", [b"\r\n", b"X", b"X: y\r\n"])
def test_who_drips_a_head_is_cut(classifier_bundle: Bundle, drip: bytes) -> None:
    with served(classifier_bundle, limits=QUICK) as url, connect(url) as connection:
        if drip != b"\r\n":
            connection.sendall(b"GET /v2 HTTP/1.1\r\n")
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - start < 5 and not _is_closed(connection):
                connection.sendall(drip)
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_who_reads_by_the_byte_is_cut_and_holds_little(classifier_bundle: Bundle) -> None:
    with served(classifier_bundle, limits=QUICK, pages=Big()) as url, ExitStack() as stack:
        ask(url, LIVE)
        before = rss_mb()
        slow = [stack.enter_context(connect(url, receive_buffer=2048)) for _ in range(20)]
        for connection in slow:
            connection.sendall(PAGE)
        time.sleep(0.3)
        assert rss_mb() - before < 30, "not 20 times 40 MiB"
        start = time.monotonic()
        while time.monotonic() - start < 5 and not all(map(_is_closed, slow)):
            for connection in slow:
                with suppress(OSError):
                    connection.recv(1)
            time.sleep(0.05)
        assert time.monotonic() - start < 4


def test_who_reads_slowly_but_steadily_gets_it_all(classifier_bundle: Bundle) -> None:
    """The whole takes several times what one piece may take."""
    limits = cloud.Limits(send_timeout_s=0.4)
    with (
        served(classifier_bundle, limits=limits, pages=Big()) as url,
        connect(url, receive_buffer=4 * PIECE_BYTES) as connection,
    ):
        connection.sendall(PAGE)
        got, start = 0, time.monotonic()
        while got < BIG:
            part = connection.recv(2**20)
            assert part
            got += len(part)
            time.sleep(0.01)
        assert time.monotonic() - start > 0.8


# --- many of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", post(100, b"abc"), PAGE, GOOD])
def test_sixty_of_them_do_not_stop_the_server(classifier_bundle: Bundle, sent: bytes) -> None:
    """Long before their deadlines: who has waited for its client longest makes room."""
    limits = cloud.Limits(max_connections=60)
    with served(classifier_bundle, token=TOKEN, limits=limits, pages=Big()) as url, ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(url, receive_buffer=2048)).sendall(sent)
        time.sleep(1.5)
        for _ in range(5):
            assert ask(url, GOOD).startswith(b"HTTP/1.1 200")


def test_the_longest_idle_goes_first(classifier_bundle: Bundle) -> None:
    limits = cloud.Limits(max_connections=3)
    with served(classifier_bundle, limits=limits) as url, ExitStack() as stack:
        used, younger, busy = (stack.enter_context(connect(url)) for _ in range(3))
        busy.sendall(post(100, b"abc"))
        time.sleep(0.3)
        used.sendall(SERVER)
        assert used.recv(1000)
        time.sleep(0.3)
        with connect(url) as new:
            new.sendall(SERVER)
            assert new.recv(1000).startswith(b"HTTP/1.1 200")
            assert [_is_closed(connection) for connection in (used, younger, busy)] == [False, True, False]


def test_a_thousand_do_not_stop_the_studio(classifier_bundle: Bundle) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("too few open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        with served(classifier_bundle, token=TOKEN, pages=Big()) as url, ExitStack() as stack:
            for sent in (PAGE, b"GET", post(100, b"abc"), b""):
                for _ in range(250):
                    stack.enter_context(connect(url, receive_buffer=2048)).sendall(sent)
            time.sleep(1.5)
            for _ in range(5):
                assert ask(url, GOOD).startswith(b"HTTP/1.1 200")
            assert len(list(Path("/proc/self/fd").iterdir())) < 2200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

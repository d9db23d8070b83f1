"""One table of faults, for every way to ask an endpoint: over HTTP, over gRPC, and with image files.

Whatever the fault: an error of the stated kind, no label, in time, and nothing of the image on the wire.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tiny
from recording import Exchange, expected_probabilities, leaked, metadata, recording, respond_with
from sfumato import wire
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client, FileClient
from sfumato.errors import (
    EndpointError,
    EndpointFailed,
    EndpointRefused,
    EndpointResponseInvalid,
    EndpointUnreachable,
)

IMAGE = tiny.image(11)
TIMEOUT_S = 0.6
MOST_S = 2.0
"""Far less than the faults go on for, and enough for a busy machine."""
DRIP_S, DRIPS = 0.1, 60


def patience(error: type[EndpointError]) -> float:
    """The timeout of a client that is to raise this error: on a busy machine nothing else may time out."""
    return TIMEOUT_S if error is EndpointUnreachable else 5


Fault = Callable[[Exchange, bytes, dict[str, str]], None]


def drip(exchange: Exchange, piece: bytes) -> None:
    for _ in range(DRIPS):
        exchange.wfile.write(piece)
        time.sleep(DRIP_S)


def write(exchange: Exchange, data: bytes) -> None:
    exchange.wfile.write(data)


def head(headers: dict[str, str], **more: str) -> bytes:
    lines = [f"{key.replace('_', '-')}: {value}" for key, value in {**headers, **more}.items()]
    return "\r\n".join(["HTTP/1.1 200 OK", *lines]).encode() + b"\r\n\r\n"


def stalled(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    time.sleep(DRIP_S * DRIPS)


def dripped_head(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    write(exchange, b"HTTP/1.1 200 OK\r\nX: ")
    drip(exchange, b"y")


def dripped_status(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    drip(exchange, b"HTTP/1.1 100 Continue\r\n\r\n")


def dripped_body(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    write(exchange, head(headers, Content_Length="5000"))
    drip(exchange, b"{")


def dripped_trailers(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    write(exchange, head(headers, Transfer_Encoding="chunked") + chunk + b"0\r\n")
    drip(exchange, b"X: y\r\n")


def dripped_chunks(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    write(exchange, head(headers, Transfer_Encoding="chunked"))
    drip(exchange, b"1\r\n \r\n")


def truncated(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    exchange.reply(200, body[:-3], length=len(body), **headers)
    exchange.connection.shutdown(socket.SHUT_RDWR)


def short(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    exchange.reply(200, body[:-3], **headers)


def compressed(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    exchange.reply(200, gzip.compress(body), **headers, Content_Encoding="gzip")


def redirected(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    exchange.reply(307, b"", Location="/elsewhere")


def wrong_kind(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    exchange.reply(200, b"\x89PNG\r\n\x1a\n" + body, Content_Type="image/png")


def waits_for_later(exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
    exchange.reply(503, b"", Retry_After="3600")


FAULTS: dict[str, tuple[Fault, type[EndpointError]]] = {
    "stalled": (stalled, EndpointUnreachable),
    "dripped head": (dripped_head, EndpointUnreachable),
    "endless 100 Continue": (dripped_status, EndpointUnreachable),
    "dripped body": (dripped_body, EndpointUnreachable),
    "dripped chunks": (dripped_chunks, EndpointUnreachable),
    "endless trailers": (dripped_trailers, EndpointUnreachable),
    "truncated": (truncated, EndpointResponseInvalid),
    "short": (short, EndpointResponseInvalid),
    "compressed": (compressed, EndpointResponseInvalid),
    "redirected": (redirected, EndpointRefused),
    "of another kind": (wrong_kind, EndpointResponseInvalid),
    "says to come back later": (waits_for_later, EndpointFailed),
}


class _Captured:
    """Takes a good reply instead of the connection."""

    def __init__(self, exchange: Exchange) -> None:
        self.body, self.headers = exchange.body, exchange.headers
        self.good: tuple[bytes, dict[str, str]] = (b"", {})

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.good = body, headers


def with_a_good_body(fault: Fault) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        captured = _Captured(exchange)
        respond_with(tiny.logits)(captured)  # type: ignore[arg-type]
        fault(exchange, *captured.good)

    return behave


@contextmanager
def in_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < MOST_S


@pytest.mark.usefixtures("both_clients")
@pytest.mark.parametrize("name", FAULTS)
def test_http(name: str, obfuscator_bundle: Bundle) -> None:
    fault, error = FAULTS[name]
    with (
        recording(infer=with_a_good_body(fault)) as server,
        Client(server.url, obfuscator_bundle, timeout_s=patience(error), retries=3) as it,
        in_time(),
        pytest.raises(error) as caught,
    ):
        it.classify(IMAGE)
    assert type(caught.value) is error
    assert leaked(server.recorded, IMAGE) == set() and "/elsewhere" not in server.paths


@pytest.mark.parametrize("name", FAULTS)
def test_image_files(name: str, tmp_path: Path) -> None:
    fault, error = FAULTS[name]
    bundle, _ = tiny.save_bundles(tmp_path, "8-bit")
    good = json.dumps({"label": "cat", "score": 1.0}).encode()
    with (
        recording(classify=lambda exchange: fault(exchange, good, {})) as server,
        FileClient(f"{server.url}/classify", bundle, timeout_s=patience(error), retries=3) as it,
        in_time(),
        pytest.raises(error) as caught,
    ):
        it.classify(IMAGE)
    assert type(caught.value) is error
    assert leaked(server.recorded, IMAGE) == set() and "/elsewhere" not in server.paths


# --- responses to other requests ------------------------------------------------------------------

ANOTHERS: dict[str, dict[str, str]] = {
    "another request's id": {"id": "0123456789abcdef"},
    "another model": {"model_name": "other"},
    "another version": {"model_version": "7"},
}


def another(**changes: str) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        request = wire.decode_request(exchange.body, exchange.headers.get(wire.HEADER_LENGTH.lower()))
        output = wire.Tensor("logits", tiny.logits(request.inputs[0].array))
        said = {"model_name": "tiny", "model_version": "1", "id": request.id, **changes}
        encoded = wire.encode_response(wire.InferResponse(outputs=(output,), **said), request)
        exchange.reply(200, encoded.body, **{k.replace("-", "_"): v for k, v in encoded.headers().items()})

    return behave


@pytest.mark.usefixtures("both_clients")
@pytest.mark.parametrize("name", ANOTHERS)
def test_a_response_to_another_request_closes_the_connection(name: str, obfuscator_bundle: Bundle) -> None:
    answers = iter([another(), another(**ANOTHERS[name]), another()])
    sockets: list[Any] = []

    def behave(exchange: Exchange) -> None:
        sockets.append(exchange.client_address)
        next(answers)(exchange)

    with recording(infer=behave) as server, Client(server.url, obfuscator_bundle, retries=0) as it:
        good = it.classify(IMAGE)
        with pytest.raises(EndpointResponseInvalid, match="connection was closed"):
            it.classify(IMAGE)
        assert it.classify(IMAGE).probabilities == good.probabilities
    assert sockets[0] == sockets[1] != sockets[2]


@pytest.mark.usefixtures("both_clients")
def test_two_requests_whose_responses_are_exchanged(obfuscator_bundle: Bundle) -> None:
    both, ids = threading.Barrier(2), []

    def exchanged(exchange: Exchange) -> None:
        own = wire.decode_request(exchange.body, exchange.headers.get(wire.HEADER_LENGTH.lower())).id
        ids.append(own)
        both.wait(5)
        another(id=next(one for one in ids if one != own))(exchange)

    with (
        recording(infer=exchanged) as server,
        Client(server.url, obfuscator_bundle, retries=0, encoding="binary") as it,
    ):
        it.plan()
        found = it.classify_many([IMAGE, tiny.image(2)], in_flight=2)
        with pytest.raises(EndpointResponseInvalid, match="id of another request"):
            next(found)
    assert len(set(ids)) == 2, "each request has an id of its own"


@pytest.mark.usefixtures("both_clients")
def test_a_response_that_comes_twice_is_not_taken_for_the_next_one(obfuscator_bundle: Bundle) -> None:
    def twice(exchange: Exchange) -> None:
        another()(exchange)
        another()(exchange)

    pixels = [tiny.image(seed) for seed in range(8)]
    with recording(infer=twice) as server, Client(server.url, obfuscator_bundle, retries=0) as it:
        for one in pixels:
            try:
                found = it.classify(one).probabilities
            except EndpointResponseInvalid as error:
                assert "id of another request" in str(error)
            else:
                assert found == pytest.approx(expected_probabilities(one), abs=1e-4)


@pytest.mark.usefixtures("both_clients")
def test_a_server_that_repeats_no_id_is_believed(obfuscator_bundle: Bundle) -> None:
    with recording(infer=another(id="")) as server, Client(server.url, obfuscator_bundle, retries=0) as it:
        assert it.classify(IMAGE).label in tiny.LABELS


@pytest.mark.usefixtures("both_clients")
def test_a_version_that_was_loaded_since_is_asked_for_its_metadata(obfuscator_bundle: Bundle) -> None:
    told = iter([metadata(), metadata(versions=["7"], parameters={"fingerprint": "sha256:0"})])
    with (
        recording(infer=another(model_version="7"), tiny=lambda e: e.reply(200, next(told))) as server,
        Client(server.url, obfuscator_bundle, retries=0) as it,
    ):
        assert it.classify(IMAGE).label in tiny.LABELS
        assert it.fingerprint == "differs"


# --- before there is a response -------------------------------------------------------------------


@pytest.mark.usefixtures("both_clients")
def test_a_name_that_is_looked_up_for_ever(obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(DRIP_S * DRIPS))
    with (
        Client("http://slow.example", obfuscator_bundle, timeout_s=TIMEOUT_S) as it,
        in_time(),
        pytest.raises(EndpointUnreachable, match="did not respond"),
    ):
        it.classify(IMAGE)


@pytest.mark.usefixtures("both_clients")
@pytest.mark.parametrize("scheme", ["https", "grpcs", "grpc"])
def test_a_handshake_that_never_ends(scheme: str, obfuscator_bundle: Bundle) -> None:
    if scheme.startswith("grpc"):
        pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def endless() -> None:
            try:
                near, _ = server.accept()
                # A TLS record of 16 KB that comes a byte at a time, or HTTP/2 settings likewise.
                near.sendall(b"\x16\x03\x03\x40\x00" if scheme != "grpc" else b"\x00\x40\x00\x04\x00\x00\x00\x00\x00")
                for _ in range(DRIPS):
                    near.sendall(b"\x02")
                    time.sleep(DRIP_S)
            except OSError:
                pass

        threading.Thread(target=endless, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with Client(url, obfuscator_bundle, timeout_s=TIMEOUT_S) as it, in_time(), pytest.raises(EndpointUnreachable):
            it.classify(IMAGE)


@pytest.mark.usefixtures("both_clients")
def test_one_deadline_for_metadata_retries_and_pauses(obfuscator_bundle: Bundle) -> None:
    def slow(exchange: Exchange) -> None:
        time.sleep(0.25)
        exchange.reply(503)

    with (
        recording(tiny=slow) as server,
        Client(server.url, obfuscator_bundle, timeout_s=TIMEOUT_S, retries=50) as it,
        in_time(),
        pytest.raises(EndpointError),
    ):
        it.classify(IMAGE)
    assert 1 < len(server.paths) < 6


# --- gRPC -----------------------------------------------------------------------------------------


def _grpc_faults() -> dict[str, tuple[Callable[[Any, Any], Any], type[EndpointError]]]:
    grpc = pytest.importorskip("grpc")
    import grpc_fake

    good = grpc_fake.GOOD["ModelInfer"]

    def said(**changes: str) -> Callable[[Any, Any], Any]:
        def respond(request: Any, context: Any) -> Any:
            response = good(request, context)
            response.id = request.id
            response.model_version = "1"
            for key, value in changes.items():
                setattr(response, key, value)
            return response

        return respond

    def truncated_rows(request: Any, context: Any) -> Any:
        response = good(request, context)
        response.raw_output_contents[0] = response.raw_output_contents[0][:-3]
        return response

    def later(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAVAILABLE, "later")

    def compressed_zeros(request: Any, context: Any) -> Any:
        context.set_compression(grpc.Compression.Gzip)
        response = good(request, context)
        response.raw_output_contents[0] = bytes(40 * 2**20)
        return response

    return {
        "good": (said(), EndpointError),
        "stalled": (lambda request, context: time.sleep(DRIP_S * DRIPS / 3), EndpointUnreachable),
        "truncated": (truncated_rows, EndpointResponseInvalid),
        "compressed and huge": (compressed_zeros, EndpointResponseInvalid),
        "says to come back later": (later, EndpointUnreachable),
        **{name: (said(**changes), EndpointResponseInvalid) for name, changes in ANOTHERS.items()},
    }


@pytest.mark.parametrize("name", ["stalled", "truncated", "compressed and huge", "says to come back later", *ANOTHERS])
def test_grpc(name: str, obfuscator_bundle: Bundle) -> None:
    faults = _grpc_faults()
    import grpc_fake

    fault, error = faults[name]
    answers = iter([fault] * (1 if error is EndpointResponseInvalid else 9))
    behave = lambda request, context: next(answers, faults["good"][0])(request, context)  # noqa: E731
    with (
        grpc_fake.serving(ModelInfer=behave) as server,
        Client(server.url, obfuscator_bundle, timeout_s=patience(error), retries=3) as it,
    ):
        it.plan()
        with pytest.raises(error) as caught:
            start = time.monotonic()
            it.classify(IMAGE)
        assert type(caught.value) is error and time.monotonic() - start < MOST_S
        if error is EndpointResponseInvalid:
            assert it.classify(IMAGE).label in tiny.LABELS, "on a new connection"
    assert leaked(bytes(server.recorded), IMAGE) == set()

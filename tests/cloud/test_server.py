"""The server over a real socket, asked by a client that is not ours, and by people who mean no good."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

import tiny
from serving import NEEDS_RAY, on_ray, serving
from sfumato import cloud, wire
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import server
from sfumato.cloud.batching import Batcher
from sfumato.device import Client
from sfumato.errors import BundleError, EndpointRefused, EndpointUnreachable, ServingError

TOKEN = "s3cret"


def inputs(*seeds: int) -> Any:
    return np.concatenate([np.random.default_rng(s).normal(size=(1, 3, 8, 8)) for s in seeds]).astype(np.float32)


@pytest.fixture(scope="module", params=["embedded", "replicas", pytest.param("ray", marks=NEEDS_RAY)])
def url(request: pytest.FixtureRequest, tiny_bundles: tuple[Bundle, Bundle]) -> Iterator[str]:
    """The protocol is the same on either engine, and in several processes."""
    if request.param != "embedded":
        start = on_ray if request.param == "ray" else serving
        with start(tiny_bundles[1].path, "--replicas", 2, "--max-body-mb", 100_000 / 2**20) as (said, _):
            yield said["url"]
        return
    with cloud.running([cloud.ServedModel(tiny_bundles[1].path)], limits=cloud.Limits(max_body_bytes=100_000)) as url:
        yield url


@pytest.fixture
def foreign(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urllib.parse.urlsplit(url).netloc, concurrency=4) as client:
        yield client


def ask(
    url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=5)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data else None, response.headers
    finally:
        connection.close()


# --- a foreign client -----------------------------------------------------------------------------


def test_health_and_metadata(url: str, foreign: triton.InferenceServerClient, classifier_bundle: Bundle) -> None:
    assert foreign.is_server_live()
    assert foreign.is_server_ready()
    assert foreign.is_model_ready("tiny")
    assert foreign.is_model_ready("tiny", "1")
    assert not foreign.is_model_ready("other")
    assert "binary_tensor_data" in foreign.get_server_metadata()["extensions"]
    assert ask(url, "GET", "/v2/")[:2] == ask(url, "GET", "/v2")[:2], "the protocol's texts have it both ways"
    metadata = foreign.get_model_metadata("tiny")
    assert metadata == foreign.get_model_metadata("tiny", "1")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["parameters"]["fingerprint"] == classifier_bundle.classifier_fingerprint
    assert json.loads(metadata["parameters"]["labels"]) == list(tiny.LABELS)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("version", ["", "1"])
def test_inference(
    foreign: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None, version: str
) -> None:
    x = inputs(1, 2)
    given = triton.InferInput("input", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary_in)
    wanted = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = foreign.infer("tiny", [given], model_version=version, outputs=wanted, request_id="mine")
    np.testing.assert_allclose(result.as_numpy("logits"), tiny.logits(x), rtol=1e-4, atol=1e-4)
    assert result.get_response()["id"] == "mine"
    has_bytes = "parameters" in result.get_output("logits")
    assert has_bytes == (binary_out is not False)


def test_many_at_once_each_get_their_own(foreign: triton.InferenceServerClient) -> None:
    xs = [inputs(*range(i, i + 1 + i % 4)) for i in range(80)]
    pending = []
    for x in xs:
        given = triton.InferInput("input", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        pending.append(foreign.async_infer("tiny", [given]))
    for x, answer in zip(xs, pending, strict=True):
        np.testing.assert_allclose(answer.get_result().as_numpy("logits"), tiny.logits(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "x", "output"),
    [
        ("other", inputs(1), "logits"),
        ("input", inputs(1).astype(np.float64), "logits"),
        ("input", inputs(1)[:, :, :4], "logits"),
        ("input", inputs(1)[0], "logits"),
        ("input", inputs(1)[:0], "logits"),
        ("input", inputs(1), "other"),
    ],
)
def test_wrong_requests_are_told_so(foreign: triton.InferenceServerClient, name: str, x: Any, output: str) -> None:
    kind = wire.datatype_of(x.dtype)
    given = triton.InferInput(name, list(x.shape), kind)
    given.set_data_from_numpy(x, binary_data=bool(x.size))
    with pytest.raises(InferenceServerException) as caught:
        foreign.infer("tiny", [given], outputs=[triton.InferRequestedOutput(output)])
    assert caught.value.status() == "400"


def test_our_own_client(url: str, obfuscator_bundle: Bundle) -> None:
    with Client(url, obfuscator_bundle) as client:
        assert client.check().fingerprint == "match"
        images = [tiny.image(seed) for seed in range(40)]
        with ThreadPoolExecutor(8) as pool:
            at_once = list(pool.map(client.classify, images))
        together = client.classify_batch(images)
    assert [a.label for a in at_once] == [a.label for a in together]
    assert len({a.label for a in at_once}) > 1


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Head and body of an answer are two packets; with Nagle's algorithm the second takes 40 ms under asyncio."""
    with server.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- people who mean no good ----------------------------------------------------------------------

INFER = "/v2/models/tiny/infer"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2//", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/tiny/versions/2", 404),
        ("GET", "/v2/models/..%2F..%2Fetc", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/tiny/versions/2/infer", 404),
    ],
)
def test_wrong_paths(url: str, method: str, path: str, status: int) -> None:
    got, body, _ = ask(url, method, path, b"{}" if method == "POST" else None)
    assert got == status
    assert set(body) == {"error"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b"[" * 50_000, {}),
        (b"\xff" * 10, {}),
        (b"{}", {wire.HEADER_LENGTH: "-1"}),
        (b"{}", {wire.HEADER_LENGTH: "99999"}),
        (b"{}", {wire.HEADER_LENGTH: "two"}),
        (b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', {}),
    ],
)
def test_malformed_requests(url: str, body: bytes, headers: dict[str, str]) -> None:
    got, answer, _ = ask(url, "POST", INFER, body, headers)
    assert got == 400
    assert set(answer) == {"error"}


def test_compressed_requests_are_refused(url: str) -> None:
    assert ask(url, "POST", INFER, b"{}", {"Content-Encoding": "gzip"})[0] == 415


def test_a_body_that_says_it_is_too_long_is_not_read(url: str) -> None:
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100001\r\n\r\n".encode())
        assert b" 413 " in connection.recv(1000)


def test_a_body_that_turns_out_too_long_is_cut_off(url: str) -> None:
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            connection.sendall(b"c350\r\n" + bytes(50_000) + b"\r\n")
        assert b" 413 " in connection.recv(1000)
    assert ask(url, "GET", "/v2/health/live")[0] == 200


def test_who_hangs_up_does_no_harm(url: str) -> None:
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nabc".encode())
    assert ask(url, "GET", "/v2/health/live")[0] == 200


def test_the_token(classifier_bundle: Bundle, obfuscator_bundle: Bundle) -> None:
    with cloud.running([cloud.ServedModel(classifier_bundle.path)], token=TOKEN) as url:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert ask(url, "GET", path)[0] == 200
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}):
            for method, path in (("GET", "/v2"), ("GET", "/v2/models/tiny"), ("POST", INFER), ("GET", "/nowhere")):
                status, _, headers = ask(url, method, path, b"{}" if method == "POST" else None, given)
                assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert ask(url, "GET", "/v2", headers={"Authorization": f"bEARER {TOKEN}"})[0] == 200
        with Client(url, obfuscator_bundle, token=TOKEN) as client:
            client.classify(tiny.image())
        with Client(url, obfuscator_bundle, token="wrong") as client, pytest.raises(EndpointRefused, match="token"):
            client.classify(tiny.image())


def test_pages_from_elsewhere_cannot_use_it(classifier_bundle: Bundle) -> None:
    """As after DNS rebinding; `allowed_hosts` lets a name in. Load balancers ask for health by any."""
    models = [cloud.ServedModel(classifier_bundle.path)]
    names = ["models.example.org"]
    for host, given, statuses in (
        ("127.0.0.1", [], (421, 421)),
        ("127.0.0.1", names, (421, 200)),
        ("0.0.0.0", [], (200, 200)),
    ):
        with cloud.running(models, host=host, allowed_hosts=given) as url:
            at = url.replace("0.0.0.0", "127.0.0.1")
            found = [ask(at, "GET", "/v2", headers={"Host": name})[0] for name in ("evil.example", *names)]
            assert tuple(found) == statuses
            assert ask(at, "GET", "/v2/health/live", headers={"Host": "evil.example"})[0] == 200
            assert ask(at, "GET", "/v2")[0] == 200
        models = [cloud.ServedModel(classifier_bundle.path)]


def test_overload_is_503_with_retry_after(classifier_bundle: Bundle) -> None:
    model = cloud.ServedModel(classifier_bundle.path, max_queue=0)
    encoded = wire.encode_request(wire.InferRequest((wire.Tensor("input", inputs(1)),)))
    with cloud.running([model]) as url:
        status, body, headers = ask(url, "POST", INFER, encoded.body, encoded.headers())
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "waiting" in body["error"]


def test_a_model_that_breaks_is_500_without_details(
    classifier_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def broken(*_: Any) -> Any:
        raise RuntimeError("value 0.12345 is wrong")

    model = cloud.ServedModel(classifier_bundle.path)
    monkeypatch.setattr(model, "batcher", Batcher(broken))
    encoded = wire.encode_request(wire.InferRequest((wire.Tensor("input", inputs(1)),)))
    with cloud.running([model]) as url:
        status, body, _ = ask(url, "POST", INFER, encoded.body, encoded.headers())
    assert status == 500
    assert "0.12345" not in body["error"]
    assert "RuntimeError" in caplog.text and "0.12345" not in caplog.text


# --- starting -------------------------------------------------------------------------------------


def test_a_taken_port_is_told(classifier_bundle: Bundle) -> None:
    model = cloud.ServedModel(classifier_bundle.path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServingError, match="cannot listen"):
        cloud.serve([model], port=taken.getsockname()[1])
    for host, port in (("no.such.host.invalid", 0), ("127.0.0.1", 99_999), ("203.0.113.1", 0)):
        with pytest.raises(ServingError, match="cannot listen"):
            cloud.serve([model], host=host, port=port)


def test_models_that_cannot_be_served(tmp_path: Path, tiny_bundles: tuple[Bundle, Bundle]) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for path in (tmp_path / "missing.onnx", tmp_path / "junk.onnx"):
        with pytest.raises(ServingError):
            cloud.ServedModel(path)
    for path in (tmp_path, tiny_bundles[0].path):
        with pytest.raises(BundleError):
            cloud.ServedModel(path)
    text = helper.make_tensor_value_info("t", TensorProto.STRING, ["n"])
    out = helper.make_tensor_value_info("u", TensorProto.STRING, ["n"])
    file = tiny.save_model(tmp_path / "text.onnx", [helper.make_node("Identity", ["t"], ["u"])], {}, [text], [out])
    with pytest.raises(ServingError, match="string"):
        cloud.ServedModel(file)
    good = tiny_bundles[1].path
    for name in ("a/b", "../x", "ü", "a b", "x" * 200):
        with pytest.raises(ServingError, match="called"):
            cloud.ServedModel(good, name=name)
    with pytest.raises(ServingError, match="two models"):
        cloud.Application([cloud.ServedModel(good), cloud.ServedModel(good)])
    with pytest.raises(ServingError, match="no model"):
        cloud.Application([])
    for token in ("", "a b", "é"):
        with pytest.raises(ServingError, match="token"):
            cloud.Application([cloud.ServedModel(good)], token=token)


def test_a_bare_onnx_file_with_a_fixed_batch(tmp_path: Path) -> None:
    model = cloud.ServedModel(tiny.save_classifier(tmp_path / "fixed.onnx", batch=1), name="fixed-1")
    assert model.batches is False
    assert model.metadata.inputs[0].shape == (1, 3, 8, 8)
    with cloud.running([model]) as url, ThreadPoolExecutor(8) as pool:

        def one(seed: int) -> bool:
            encoded = wire.encode_request(wire.InferRequest((wire.Tensor("input", inputs(seed)),)))
            status, body, _ = ask(url, "POST", "/v2/models/fixed-1/infer", encoded.body, encoded.headers())
            got = body["outputs"][0]["data"]
            return status == 200 and np.allclose(got, tiny.logits(inputs(seed)).ravel(), rtol=1e-4, atol=1e-4)

        assert all(pool.map(one, range(30)))
        encoded = wire.encode_request(wire.InferRequest((wire.Tensor("input", inputs(1, 2)),)))
        assert ask(url, "POST", "/v2/models/fixed-1/infer", encoded.body, encoded.headers())[0] == 400


def test_too_many_rows(classifier_bundle: Bundle) -> None:
    model = cloud.ServedModel(classifier_bundle.path, max_rows=2)
    encoded = wire.encode_request(wire.InferRequest((wire.Tensor("input", inputs(1, 2, 3)),)))
    with cloud.running([model]) as url:
        status, body, _ = ask(url, "POST", INFER, encoded.body, encoded.headers())
    assert status == 400
    assert "1 to 2 rows" in body["error"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    return cert, key


def test_tls(certificate: tuple[Path, Path], classifier_bundle: Bundle, obfuscator_bundle: Bundle) -> None:
    cert, key = certificate
    model = cloud.ServedModel(classifier_bundle.path)
    with cloud.running([model], tls_cert=cert, tls_key=key) as url:
        assert url.startswith("https://")
        with Client(url, obfuscator_bundle, ca_file=cert, token=TOKEN) as client:
            assert client.classify(tiny.image()).label in tiny.LABELS
        with Client(url, obfuscator_bundle, retries=0) as client, pytest.raises(EndpointUnreachable, match="secure"):
            client.classify(tiny.image())


def test_client_certificates(
    certificate: tuple[Path, Path], classifier_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is its own authority; and nothing is said of those who have none, or do not speak TLS."""
    cert, key = certificate
    model = cloud.ServedModel(classifier_bundle.path)
    with cloud.running([model], tls_cert=cert, tls_key=key, client_ca=cert) as url:
        host, port = urllib.parse.urlsplit(url).netloc.split(":")
        for has_one in (True, False):
            context = ssl.create_default_context(cafile=cert)
            if has_one:
                context.load_cert_chain(cert, key)
            with socket.create_connection((host, int(port)), timeout=5) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname="localhost") as secure:
                        secure.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                        response = secure.recv(1000)
                except (ssl.SSLError, ConnectionError):
                    response = b""
            assert response.startswith(b"HTTP/1.1 200") == has_one
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            plain.recv(1000)
    assert "Traceback" not in caplog.text and not any(record.exc_info for record in caplog.records)


def test_a_tls_handshake_has_a_deadline(certificate: tuple[Path, Path], classifier_bundle: Bundle) -> None:
    cert, key = certificate
    limits = cloud.Limits(head_timeout_s=0.5)
    with (
        cloud.running([cloud.ServedModel(classifier_bundle.path)], tls_cert=cert, tls_key=key, limits=limits) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as silent,
        contextlib.suppress(ConnectionError),
    ):
        assert silent.recv(1) == b""


def test_tls_files_that_cannot_be_used(
    certificate: tuple[Path, Path], tmp_path: Path, classifier_bundle: Bundle
) -> None:
    cert, key = certificate
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:abcd", "-in", str(key), "-out", str(encrypted)]
    subprocess.run(command, check=True, capture_output=True)
    model = cloud.ServedModel(classifier_bundle.path)
    for pair in ((tmp_path / "none.pem", key), (junk, key), (cert, junk), (cert, None), (None, key), (cert, encrypted)):
        with pytest.raises(ServingError):
            cloud.serve([model], port=0, tls_cert=pair[0], tls_key=pair[1])
    for authorities in (tmp_path / "none.pem", junk):
        with pytest.raises(ServingError, match=authorities.name):
            cloud.serve([model], port=0, tls_cert=cert, tls_key=key, client_ca=authorities)
    with pytest.raises(ServingError, match="need TLS"):
        cloud.serve([model], port=0, client_ca=cert)


def test_an_open_server_without_a_token_is_warned_of(
    classifier_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    for token, warned in ((None, True), (TOKEN, False)):
        caplog.clear()
        with cloud.running([cloud.ServedModel(classifier_bundle.path)], host="0.0.0.0", token=token):
            pass
        assert ("without a token" in caplog.text) == warned


def test_the_cloud_knows_nothing_of_the_device() -> None:
    code = (
        "import sys, sfumato.cloud;"
        "bad = {'torch', 'sfumato.device', 'sfumato.lab'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""gRPC as a device needs it: the same predictions, the same errors, and as silent about the image as HTTP."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recording import expected_probabilities, leaked, recording
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client
from sfumato.errors import (
    EndpointError,
    EndpointFailed,
    EndpointModelNotFound,
    EndpointRefused,
    EndpointResponseInvalid,
    EndpointUnreachable,
)
from tiny import LABELS, SIZE, image, logits, obfuscate

grpc = pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
service_pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

from grpc_fake import GOOD, Behaviour, client, metadata, respond_with, serving  # noqa: E402 - needs the extra

IMAGE = image(11)
TOKEN = "s3cret-token"

# --- when all is well -----------------------------------------------------------------------------


@pytest.mark.parametrize("typed", [False, True])
def test_it_reads_the_label(typed: bool, obfuscator_bundle: Bundle) -> None:
    with (
        serving(ModelInfer=respond_with(logits, typed=typed)) as server,
        client(server, obfuscator_bundle) as it,
    ):
        assert it.check().platform == "test"
        prediction = it.classify(IMAGE)
    np.testing.assert_allclose(prediction.probabilities, expected_probabilities(IMAGE), atol=1e-4)
    assert prediction.label == LABELS[expected_probabilities(IMAGE).argmax()]
    assert 4 * 3 * SIZE * SIZE < prediction.payload_bytes < 4 * 3 * SIZE * SIZE + 100
    assert leaked(bytes(server.recorded), IMAGE) == set()
    sent = obfuscate((IMAGE.transpose(2, 0, 1)[None] / 255).astype(np.float32))
    assert sent.tobytes()[:64] in server.recorded, "the relay sees what is sent"


def test_a_foreign_response_closes_the_channel_of_clients_with_other_options_too(obfuscator_bundle: Bundle) -> None:
    def foreign(request: Any, context: Any) -> Any:
        response = GOOD["ModelInfer"](request, context)
        response.id = "another" if next(asked, None) else request.id
        return response

    asked = iter([True])
    with serving(ModelInfer=foreign) as server, client(server, obfuscator_bundle) as it:
        other = it.with_options(retries=1, timeout_s=5.0)
        with pytest.raises(EndpointResponseInvalid):
            it.classify(IMAGE)
        assert other.classify(IMAGE).label == it.classify(IMAGE).label
        other.close()
        with pytest.raises(EndpointError, match="the client is closed"):
            it.classify(IMAGE)


def test_batches_keep_their_order_and_half_precision_takes_half_the_bytes(obfuscator_bundle: Bundle) -> None:
    images = [image(seed) for seed in range(5)]
    with serving(ModelMetadata=metadata("FP16")) as server, client(server, obfuscator_bundle) as it:
        predictions = it.classify_batch(images, batch_size=3)
        assert it.datatype == "FP16"
    for prediction, pixels in zip(predictions, images, strict=True):
        np.testing.assert_allclose(prediction.probabilities, expected_probabilities(pixels), atol=1e-2)
        assert prediction.payload_bytes < 2 * 3 * SIZE * SIZE + 100
    assert server.calls == ["ModelMetadata", "ModelInfer", "ModelInfer"]


def test_the_token_is_sent_and_never_shown(obfuscator_bundle: Bundle) -> None:
    def refuse(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.INTERNAL, f"bad header Bearer {TOKEN}\x1b[31m")

    with serving(ModelInfer=refuse) as server, client(server, obfuscator_bundle, token=TOKEN) as it:
        with pytest.raises(EndpointFailed, match="bad header Bearer …") as caught:
            it.classify(IMAGE)
        assert server.metadata["authorization"] == f"Bearer {TOKEN}"
        assert TOKEN not in str(caught.value) + repr(it) and "\x1b" not in str(caught.value)


def test_proxies_from_the_environment_are_not_used(obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording() as proxy, serving() as server:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, proxy.url)
        with client(server, obfuscator_bundle) as it:
            it.classify(IMAGE)
        assert not proxy.recorded


# --- when the endpoint misbehaves -----------------------------------------------------------------


def status(code: str) -> Behaviour:
    return lambda request, context: context.abort(getattr(grpc.StatusCode, code), "no\x1b[31m")


def slow(request: Any, context: Any) -> Any:
    time.sleep(0.6)


def garbage(request: Any, context: Any) -> Any:
    prediction = service_pb2.ModelInferResponse(model_name="m")
    prediction.outputs.add(name="logits", datatype="FP32", shape=[1, len(LABELS)])
    prediction.raw_output_contents.append(b"abc")
    return prediction


def wildcard(request: Any, context: Any) -> Any:
    prediction = GOOD["ModelInfer"](request, context)
    prediction.outputs[0].shape[:] = [-1, len(LABELS)]
    return prediction


def huge(request: Any, context: Any) -> Any:
    return service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[bytes(17 * 2**20)])


MISBEHAVIOURS: dict[str, tuple[Behaviour, type[EndpointError]]] = {
    "slow": (slow, EndpointUnreachable),
    "UNAVAILABLE": (status("UNAVAILABLE"), EndpointUnreachable),
    "UNAUTHENTICATED": (status("UNAUTHENTICATED"), EndpointRefused),
    "PERMISSION_DENIED": (status("PERMISSION_DENIED"), EndpointRefused),
    "NOT_FOUND": (status("NOT_FOUND"), EndpointModelNotFound),
    "INVALID_ARGUMENT": (status("INVALID_ARGUMENT"), EndpointRefused),
    "RESOURCE_EXHAUSTED": (status("RESOURCE_EXHAUSTED"), EndpointRefused),
    "UNIMPLEMENTED": (status("UNIMPLEMENTED"), EndpointRefused),
    "INTERNAL": (status("INTERNAL"), EndpointFailed),
    "UNKNOWN": (status("UNKNOWN"), EndpointFailed),
    "huge": (huge, EndpointResponseInvalid),
    "nothing": (lambda request, context: service_pb2.ModelInferResponse(model_name="m"), EndpointResponseInvalid),
    "no name": (lambda request, context: service_pb2.ModelInferResponse(), EndpointResponseInvalid),
    "garbage": (garbage, EndpointResponseInvalid),
    "wildcard": (wildcard, EndpointResponseInvalid),
    "wrong classes": (respond_with(lambda x: logits(x)[:, :3]), EndpointResponseInvalid),
    "nan": (respond_with(lambda x: logits(x) * np.float32(np.nan)), EndpointResponseInvalid),
    "integers": (respond_with(lambda x: np.zeros((1, 4), np.int64)), EndpointResponseInvalid),
}
CASES = [("ModelInfer", name) for name in MISBEHAVIOURS] + [
    ("ModelMetadata", name) for name in MISBEHAVIOURS if name.isupper() or name == "slow"
]


@pytest.mark.parametrize(("where", "name"), CASES)
def test_it_fails_closed(where: str, name: str, obfuscator_bundle: Bundle) -> None:
    behaviour, error = MISBEHAVIOURS[name]
    timeout = 0.3 if name == "slow" else 5.0
    with serving(**{where: behaviour}) as server, client(server, obfuscator_bundle, timeout_s=timeout) as it:
        with pytest.raises(error) as caught:
            it.classify(IMAGE)
        assert type(caught.value) is error
        assert "\x1b" not in str(caught.value)
    assert leaked(bytes(server.recorded), IMAGE) == set()


def test_connecting_may_take_as_long_as_the_call(obfuscator_bundle: Bundle) -> None:
    with serving() as server, client(server, obfuscator_bundle, timeout_s=10.0) as it:
        server.connects_after_s = 0.5  # a distant server, or a busy one
        assert it.classify(IMAGE).label in LABELS


def test_a_model_that_does_not_fit_is_not_sent_anything(obfuscator_bundle: Bundle) -> None:
    for told in (metadata("UINT8"), metadata(shape=(-1, 3, 224, 224)), metadata(shape=(-9, 3, SIZE, SIZE))):
        with (
            serving(ModelMetadata=told) as server,
            client(server, obfuscator_bundle) as it,
            pytest.raises(EndpointResponseInvalid),
        ):
            it.classify(IMAGE)
        assert server.calls == ["ModelMetadata"]


def test_check_tells_of_a_server_that_is_not_ready(obfuscator_bundle: Bundle) -> None:
    not_ready = {"ServerReady": lambda request, context: service_pb2.ServerReadyResponse(ready=False)}
    with serving(**not_ready) as server, client(server, obfuscator_bundle) as it:
        assert it.check().ready is False


def test_no_endpoint_and_a_server_of_another_kind(obfuscator_bundle: Bundle) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"grpc://127.0.0.1:{reserved.getsockname()[1]}"
        with Client(url, obfuscator_bundle, retries=1) as it, pytest.raises(EndpointUnreachable):
            it.classify(IMAGE)
    with recording() as server:
        url = server.url.replace("http://", "grpc://")
        with Client(url, obfuscator_bundle, retries=0, timeout_s=1.0) as it, pytest.raises(EndpointUnreachable):
            it.classify(IMAGE)


# --- trying again ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "calls"), [("UNAVAILABLE", 3), ("RESOURCE_EXHAUSTED", 3), ("INTERNAL", 1)])
def test_it_tries_again_where_that_helps(code: str, calls: int, obfuscator_bundle: Bundle) -> None:
    left = iter([status(code), status(code)])

    def failing(request: Any, context: Any) -> Any:
        return next(left, GOOD["ModelInfer"])(request, context)

    with (
        serving(ModelInfer=failing) as server,
        client(server, obfuscator_bundle, retries=2) as it,
        contextlib.nullcontext() if calls == 3 else pytest.raises(EndpointFailed),
    ):
        assert it.classify(IMAGE).label in LABELS
    assert server.calls.count("ModelInfer") == calls


# --- addresses, tokens, TLS -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["grpc://", "grpc://host", "grpc://host:1/path", "grpc://u:p@host:1", "grpc://host:1?a=b", "grpcs://[::1"]
)
def test_bad_addresses_are_refused(url: str, obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError) as caught:
        Client(url, obfuscator_bundle)
    assert "u:p" not in str(caught.value)


def test_tokens_are_not_sent_in_the_clear_unasked(obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError, match="use grpcs") as caught:
        Client("grpc://example.org:1", obfuscator_bundle, token=TOKEN)
    assert TOKEN not in str(caught.value)
    Client("grpc://example.org:1", obfuscator_bundle, token=TOKEN, allow_insecure_token=True).close()
    for url in ("grpc://localhost:1", "grpc://[::1]:1", "grpcs://example.org:1"):
        Client(url, obfuscator_bundle, token=TOKEN).close()


def test_tls(tmp_path: Path, obfuscator_bundle: Bundle) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    for name in ("own", "other"):
        cert, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        made = [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
        try:
            subprocess.run(made, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl to make a certificate with")
    own = tmp_path / "own.pem"
    tls = grpc.ssl_server_credentials([((tmp_path / "own.key").read_bytes(), own.read_bytes())])
    with serving(tls) as server:
        url = server.url.replace("grpc://", "grpcs://")
        with Client(url, obfuscator_bundle, ca_file=own, token=TOKEN) as it:
            assert it.classify(IMAGE).label in LABELS
        for ca_file in (None, tmp_path / "other.pem"):
            with Client(url, obfuscator_bundle, ca_file=ca_file, retries=0) as it, pytest.raises(EndpointUnreachable):
                it.classify(IMAGE)
    with pytest.raises(EndpointError, match="no file"):
        Client("grpcs://localhost:1", obfuscator_bundle, ca_file=tmp_path / "none.pem")


@pytest.mark.parametrize("missing", ["grpc", "tritonclient.grpc"])
def test_without_the_extra_it_says_what_to_install(
    missing: str, obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sfumato.device.grpc_endpoint", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EndpointError, match=r"pip install 'sfumato\[grpc\]'"):
        Client("grpc://127.0.0.1:1", obfuscator_bundle)
    Client("http://127.0.0.1:1", obfuscator_bundle).close()

"""The client: right when all is well, and silent about the image whatever the endpoint does."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recording import (
    Behaviour,
    Exchange,
    client,
    expected_probabilities,
    leaked,
    metadata,
    recording,
    respond_with,
)
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client, FingerprintWarning, Obfuscator, prepare
from sfumato.device.blocking import finished
from sfumato.errors import (
    BundleError,
    EndpointError,
    EndpointFailed,
    EndpointModelNotFound,
    EndpointRefused,
    EndpointResponseInvalid,
    EndpointUnreachable,
    ImageError,
)
from tiny import (
    LABELS,
    PREPROCESSING,
    SIZE,
    image,
    logits,
    obfuscate,
    save_bundles,
    sure_image,
    unsure_image,
)

pytestmark = pytest.mark.usefixtures("both_clients")

IMAGE = image(11)
TOKEN = "s3cret-token"


def status_of(code: int, **headers: str) -> Behaviour:
    return lambda exchange: exchange.reply(code, b'{"error": "no\x1b[31m"}', **headers)


def body_of(data: bytes) -> Behaviour:
    return lambda exchange: exchange.reply(200, data)


# --- when all is well -----------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_it_reads_the_label(binary: bool, obfuscator_bundle: Bundle) -> None:
    with recording() as server, client(server, obfuscator_bundle, encoding="binary" if binary else "json") as it:
        prediction = it.classify(IMAGE)
    expected = expected_probabilities(IMAGE)
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-4)
    assert prediction.index == expected.argmax()
    assert prediction.label == LABELS[prediction.index]
    assert prediction.probability == max(prediction.probabilities)
    assert prediction.top(2)[0] == (prediction.index, prediction.probability)
    assert prediction.payload_bytes > 4 * 3 * SIZE * SIZE
    assert prediction.obfuscate_ms > 0 < prediction.round_trip_ms
    assert prediction.predicted_by == "cloud"
    assert leaked(server.recorded, IMAGE) == set()


def test_batches_keep_their_order(obfuscator_bundle: Bundle) -> None:
    images = [image(seed) for seed in range(7)]
    with recording() as server, client(server, obfuscator_bundle) as it:
        predictions = it.classify_batch(iter(images), batch_size=3)
        assert it.classify_batch([]) == []
    for prediction, pixels in zip(predictions, images, strict=True):
        np.testing.assert_allclose(prediction.probabilities, expected_probabilities(pixels), atol=1e-4)
    assert sum(path.endswith("infer") for path in server.paths) == 3


def test_metadata_is_fetched_once(obfuscator_bundle: Bundle) -> None:
    with recording() as server, client(server, obfuscator_bundle) as it:
        it.classify(IMAGE)
        it.classify(IMAGE)
    assert server.paths == ["/v2/models/tiny", "/v2", "/v2/models/tiny/infer", "/v2/models/tiny/infer"]


def test_the_token_is_sent_and_never_shown(obfuscator_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with recording(infer=lambda e: e.reply(401)) as server, client(server, obfuscator_bundle, token=TOKEN) as it:
        with pytest.raises(EndpointRefused) as caught:
            it.classify(IMAGE)
        assert "token" in str(caught.value)
        assert TOKEN not in str(caught.value) + repr(it) + caplog.text
    assert f"Bearer {TOKEN}".encode() in server.recorded


def test_a_token_that_a_proxy_quotes_back_is_not_shown(obfuscator_bundle: Bundle) -> None:
    def echo(exchange: Exchange) -> None:
        exchange.reply(500, json.dumps({"error": f"bad header {exchange.headers['authorization']}"}).encode())

    with recording(infer=echo) as server, client(server, obfuscator_bundle, token=TOKEN) as it:
        with pytest.raises(EndpointFailed, match="bad header Bearer …") as caught:
            it.classify(IMAGE)
        assert TOKEN not in str(caught.value)


def test_check_says_why_a_server_is_not_ready(obfuscator_bundle: Bundle) -> None:
    elsewhere = "https://elsewhere.example"
    with recording(ready=lambda e: e.reply(301, Location=elsewhere)) as server, client(server, obfuscator_bundle) as it:
        assert "redirect" in it.check().reason


@pytest.mark.parametrize("served", ["match", "differs", "unknown"])
def test_the_fingerprint_is_compared(served: str, obfuscator_bundle: Bundle) -> None:
    value = {"match": obfuscator_bundle.classifier_fingerprint, "differs": "sha256:0", "unknown": None}[served]
    told = metadata(parameters={} if value is None else {"fingerprint": value})
    with recording(tiny=lambda e: e.reply(200, told)) as server, client(server, obfuscator_bundle) as it:
        status = it.check()
        assert (status.ready, status.fingerprint, status.platform) == (True, served, "test")
        if served == "differs":
            with pytest.warns(FingerprintWarning):
                it.classify(IMAGE)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                it.classify(IMAGE)


def test_check_tells_of_a_server_that_is_not_ready(obfuscator_bundle: Bundle) -> None:
    with recording(ready=lambda e: e.reply(503)) as server, client(server, obfuscator_bundle) as it:
        assert it.check().ready is False


@pytest.mark.parametrize(("given", "name"), [(None, "input"), ("pixels", "pixels")])
def test_metadata_without_inputs_gets_the_usual_ones(given: str | None, name: str, obfuscator_bundle: Bundle) -> None:
    silent = metadata(inputs=[], outputs=[])
    with (
        recording(tiny=lambda e: e.reply(200, silent)) as server,
        client(server, obfuscator_bundle, input_name=given) as it,
    ):
        assert it.classify(IMAGE).label in LABELS
        assert it.datatype == "FP32"
    assert f'"name":"{name}","datatype":"FP32","shape":[1,3,8,8]'.encode() in server.recorded


# --- how images are sent ------------------------------------------------------------------------


LISTED = b'{"name": "x", "version": "1", "extensions": ["binary_tensor_data"]}'


@pytest.mark.parametrize(
    ("stated", "given", "as_bytes"),
    [
        (body_of(LISTED), None, True),
        (body_of(b'{"name": "x", "version": "1", "extensions": ["model_repository"]}'), None, False),
        (body_of(b"{}"), None, False),
        (status_of(404), None, False),
        (status_of(404), "binary", True),
        (body_of(LISTED), "json", False),
    ],
)
def test_bytes_are_sent_where_the_server_lists_them_and_numbers_elsewhere(
    stated: Behaviour, given: str | None, as_bytes: bool, obfuscator_bundle: Bundle
) -> None:
    with recording(v2=stated) as server, client(server, obfuscator_bundle, encoding=given) as it:
        prediction = it.classify(IMAGE)
    np.testing.assert_allclose(prediction.probabilities, expected_probabilities(IMAGE), atol=1e-4)
    assert (b"binary_data_size" in server.recorded) == as_bytes
    assert ("/v2" in server.paths) == (given is None)
    assert leaked(server.recorded, IMAGE) == set()


def test_an_encoding_of_another_name_is_refused(obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError, match="binary, json"):
        Client("http://localhost", obfuscator_bundle, encoding="protobuf")


def takes(datatype: str) -> Behaviour:
    told = metadata(inputs=[{"name": "input", "datatype": datatype, "shape": [-1, 3, SIZE, SIZE]}])
    return lambda exchange: exchange.reply(200, told)


def answer_in_float32(exchange: Exchange) -> None:
    respond_with(lambda inputs: logits(inputs.astype(np.float32)))(exchange)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "FP64"])
@pytest.mark.parametrize("asked", [False, True])
def test_it_sends_what_the_model_takes_or_what_it_is_told_to(
    datatype: str, asked: bool, obfuscator_bundle: Bundle
) -> None:
    stated = takes("FP32" if asked else datatype)
    with (
        recording(tiny=stated, infer=answer_in_float32) as server,
        client(server, obfuscator_bundle, datatype=datatype if asked else None) as it,
    ):
        prediction = it.classify(IMAGE)
        assert it.datatype == datatype
    np.testing.assert_allclose(prediction.probabilities, expected_probabilities(IMAGE), atol=1e-2)
    sent = obfuscate(prepare(IMAGE, PREPROCESSING)[None]).astype({"FP32": "f4", "FP16": "f2", "FP64": "f8"}[datatype])
    assert f'"datatype":"{datatype}"'.encode() in server.recorded
    assert sent.nbytes < prediction.payload_bytes < sent.nbytes + 300
    assert leaked(server.recorded, IMAGE) == set()


@pytest.mark.parametrize("datatype", ["UINT8", "INT8", "BYTES", "BF16"])
def test_a_model_that_takes_something_else_is_sent_nothing(datatype: str, obfuscator_bundle: Bundle) -> None:
    with (
        recording(tiny=takes(datatype)) as server,
        client(server, obfuscator_bundle) as it,
        pytest.raises(EndpointResponseInvalid, match=f"takes {datatype}; this client sends FP32, FP16, FP64"),
    ):
        it.classify(IMAGE)
    assert b"POST" not in server.recorded


@pytest.mark.parametrize("datatype", ["UINT8", "INT8", "fp32", ""])
def test_a_datatype_that_cannot_be_is_refused_before_anything_is_sent(datatype: str, obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError, match="datatype must be one of FP32, FP16, FP64"):
        Client("http://localhost", obfuscator_bundle, datatype=datatype)


# --- when the endpoint misbehaves -----------------------------------------------------------------


def slow(exchange: Exchange) -> None:
    time.sleep(0.6)
    exchange.reply(200, b"{}")


def dripping(exchange: Exchange) -> None:
    exchange.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        exchange.wfile.write(b"x")
        time.sleep(0.02)


def hangs_up(exchange: Exchange) -> None:
    exchange.connection.shutdown(socket.SHUT_RDWR)


def not_http(exchange: Exchange) -> None:
    exchange.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    hangs_up(exchange)


def cut(exchange: Exchange) -> None:
    exchange.reply(200, b'{"model_name":', length=5000)
    hangs_up(exchange)


def huge(exchange: Exchange) -> None:
    exchange.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    for _ in range(1000):
        exchange.wfile.write(bytes(2**16))


MISBEHAVIOURS: dict[str, tuple[Behaviour, type[EndpointError]]] = {
    "slow": (slow, EndpointUnreachable),
    "dripping": (dripping, EndpointUnreachable),
    "hangs up": (hangs_up, EndpointUnreachable),
    "not http": (not_http, EndpointUnreachable),
    "400": (status_of(400), EndpointRefused),
    "401": (status_of(401), EndpointRefused),
    "403": (status_of(403), EndpointRefused),
    "404": (status_of(404), EndpointModelNotFound),
    "413": (status_of(413), EndpointRefused),
    "429": (status_of(429), EndpointRefused),
    "500": (status_of(500), EndpointFailed),
    "503": (status_of(503, Retry_After="99999999999999"), EndpointFailed),
    "redirect": (status_of(307, Location="/v2/elsewhere"), EndpointRefused),
    "204": (lambda exchange: exchange.reply(204), EndpointResponseInvalid),
    "html": (body_of(b"<html><body>Welcome</body></html>"), EndpointResponseInvalid),
    "nothing": (body_of(b""), EndpointResponseInvalid),
    "json": (body_of(b'{"hello": 1}'), EndpointResponseInvalid),
    "cut": (cut, EndpointResponseInvalid),
    "huge": (huge, EndpointResponseInvalid),
    "wrong classes": (respond_with(lambda x: logits(x)[:, :3]), EndpointResponseInvalid),
    "wrong batch": (respond_with(lambda x: np.repeat(logits(x), 2, axis=0)), EndpointResponseInvalid),
    "no batch": (respond_with(lambda x: logits(x)[0]), EndpointResponseInvalid),
    "nan": (respond_with(lambda x: logits(x) * np.float32(np.nan)), EndpointResponseInvalid),
    "infinite": (respond_with(lambda x: np.full((1, 4), np.inf, np.float32)), EndpointResponseInvalid),
    "integers": (respond_with(lambda x: np.zeros((1, 4), np.int64)), EndpointResponseInvalid),
    "another output": (
        body_of(b'{"model_name":"m","outputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'),
        EndpointResponseInvalid,
    ),
}


# What can go wrong with a response's numbers cannot go wrong with metadata.
CASES = [("infer", name) for name in MISBEHAVIOURS] + [
    (where, name)
    for where in ("tiny", "v2")
    for name, (behaviour, error) in MISBEHAVIOURS.items()
    if "respond_with" not in behaviour.__qualname__
    # Of itself a server need not say anything; it then gets JSON.
    and not (where == "v2" and (issubclass(error, EndpointRefused) or name in ("json", "another output")))
]


@pytest.mark.parametrize(("where", "name"), CASES)
def test_it_fails_closed(where: str, name: str, obfuscator_bundle: Bundle) -> None:
    behaviour, error = MISBEHAVIOURS[name]
    timeout = 0.3 if error is EndpointUnreachable else 2.0
    with recording(**{where: behaviour}) as server, client(server, obfuscator_bundle, timeout_s=timeout) as it:
        with pytest.raises(error) as caught:
            it.classify(IMAGE)
        assert type(caught.value) is error
        assert "\x1b" not in str(caught.value)
    assert leaked(server.recorded, IMAGE) == set()
    assert "/v2/elsewhere" not in server.paths


@pytest.mark.parametrize(("where", "name"), CASES)
def test_it_fails_closed_with_a_gate(where: str, name: str, gated_bundle: Bundle) -> None:
    behaviour, error = MISBEHAVIOURS[name]
    timeout = 0.3 if error is EndpointUnreachable else 2.0
    with (
        recording(**{where: behaviour}) as server,
        client(server, gated_bundle, timeout_s=timeout) as it,
        pytest.raises(error),
    ):
        it.classify_batch([sure_image(), unsure_image()])
    assert leaked(server.recorded, sure_image()) | leaked(server.recorded, unsure_image()) == set()


def test_no_endpoint(obfuscator_bundle: Bundle) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with Client(url, obfuscator_bundle, retries=1) as it, pytest.raises(EndpointUnreachable):
            it.classify(IMAGE)


def test_the_detector_detects(obfuscator_bundle: Bundle) -> None:
    """Without this, the tests above would also pass with a detector that sees nothing."""
    unit = prepare(IMAGE, PREPROCESSING)
    png = io.BytesIO()
    Image.fromarray(IMAGE).save(png, "PNG")
    forms = {
        "uint8 HWC": IMAGE.tobytes(),
        "uint8 CHW": IMAGE.transpose(2, 0, 1).tobytes(),
        "float32 CHW": unit.tobytes(),
        "float32 HWC": unit.transpose(1, 2, 0).tobytes(),
        "json": json.dumps({"data": unit.ravel().tolist()}, separators=(",", ":")).encode(),
        "png": png.getvalue(),
    }
    for form, data in forms.items():
        with recording(infer=status_of(200)) as server:
            urllib.request.urlopen(f"{server.url}/v2/models/tiny/infer", data=b"junk" + data).read()
        assert form in leaked(server.recorded, IMAGE)


@pytest.mark.parametrize("kind", ["identity", "normalised", "nan", "shape"])
def test_nothing_is_sent_if_the_obfuscator_does_not_hide(kind: str, tmp_path: Any) -> None:
    bundle, _ = save_bundles(tmp_path, kind)
    with recording() as server, pytest.raises(BundleError), client(server, bundle) as it:
        it.classify(IMAGE)
    assert server.recorded == b""


def test_nothing_is_sent_of_a_bad_image(obfuscator_bundle: Bundle) -> None:
    with recording() as server, client(server, obfuscator_bundle) as it, pytest.raises(ImageError):
        it.classify(b"no image")
    assert server.recorded == b""


def test_only_obfuscated_images_can_be_sent(obfuscator_bundle: Bundle) -> None:
    raw = prepare(IMAGE, PREPROCESSING)
    with recording() as server, client(server, obfuscator_bundle) as it, pytest.raises(TypeError):
        finished(it._send([Obfuscator(obfuscator_bundle).obfuscate(IMAGE), raw], obfuscate_ms=0.0))  # type: ignore[list-item]
    assert server.recorded == b""


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [-1, 3, SIZE, SIZE]}]},
        {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]},
        {"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, SIZE]}]},
        {"inputs": 2 * [{"name": "input", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}]},
        {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}]},
        {"inputs": "all"},
        {"name": None},
    ],
)
def test_a_model_that_does_not_fit_is_not_sent_anything(changes: dict[str, Any], obfuscator_bundle: Bundle) -> None:
    told = metadata(**changes)
    with recording(tiny=lambda e: e.reply(200, told)) as server, client(server, obfuscator_bundle) as it:
        with pytest.raises(EndpointResponseInvalid):
            it.check()
        with pytest.raises(EndpointResponseInvalid):
            it.classify(IMAGE)
    assert not any("infer" in path for path in server.paths)


# --- trying again ---------------------------------------------------------------------------------


def failing(times: int, behaviour: Behaviour) -> Behaviour:
    left: Iterator[int] = iter(range(times))
    good = respond_with(logits)
    return lambda exchange: (good if next(left, None) is None else behaviour)(exchange)


@pytest.mark.parametrize(
    "behaviour", [status_of(500), status_of(503), status_of(429, Retry_After="0"), status_of(502), hangs_up, cut]
)
def test_it_tries_again_where_that_helps(behaviour: Behaviour, obfuscator_bundle: Bundle) -> None:
    with recording(infer=failing(2, behaviour)) as server, client(server, obfuscator_bundle, retries=2) as it:
        assert it.classify(IMAGE).label in LABELS
    assert leaked(server.recorded, IMAGE) == set()


@pytest.mark.parametrize("code", [400, 401, 404])
def test_it_does_not_where_it_does_not(code: int, obfuscator_bundle: Bundle) -> None:
    with recording(infer=status_of(code)) as server, client(server, obfuscator_bundle, retries=2) as it:
        for _ in range(2):
            with pytest.raises(EndpointError):
                it.classify(IMAGE)
    assert sum(path.endswith("infer") for path in server.paths) == 2


def test_it_waits_as_long_as_the_server_asks(obfuscator_bundle: Bundle) -> None:
    busy = failing(1, status_of(503, Retry_After="1"))
    with recording(infer=busy) as server, client(server, obfuscator_bundle, retries=1) as it:
        start = time.monotonic()
        it.classify(IMAGE)
        assert 1.0 <= time.monotonic() - start < 1.9


# --- other options, and the end -------------------------------------------------------------------


def test_other_options_go_over_the_same_connection(gated_bundle: Bundle) -> None:
    addresses: list[Any] = []

    def failing_at_first(exchange: Exchange) -> None:
        addresses.append(exchange.client_address)
        (status_of(503) if len(addresses) == 1 else respond_with(logits))(exchange)

    with recording(infer=failing_at_first) as server, client(server, gated_bundle, retries=0) as it:
        with pytest.raises(EndpointFailed):
            it.classify(unsure_image())
        other = it.with_options(gate=False, retries=1, timeout_s=1.0)
        assert it.classify(sure_image()).predicted_by == "device"
        assert other.classify(sure_image()).predicted_by == "cloud"
        assert (it.gate_enabled, other.gate_enabled) == (True, False)
    assert len(set(addresses)) == 1 and server.paths.count("/v2/models/tiny") == 1


@pytest.mark.parametrize(("options", "behaviour", "most_s"), [({"retries": 2}, 503, 9.0), ({"timeout_s": 0.2}, 0, 0.5)])
def test_other_options_hold_for_the_other_client_alone(
    options: dict[str, Any], behaviour: int, most_s: float, obfuscator_bundle: Bundle
) -> None:
    def bad(exchange: Exchange) -> None:
        time.sleep(0 if behaviour else 0.7)
        exchange.reply(behaviour or 400)

    with recording(infer=bad) as server, client(server, obfuscator_bundle) as it:
        start = time.monotonic()
        with pytest.raises((EndpointFailed, EndpointUnreachable)):
            it.with_options(**options).classify(IMAGE)
        assert time.monotonic() - start < most_s
        sent = sum(path.endswith("infer") for path in server.paths)
        assert sent == 1 + options.get("retries", 0)
        with pytest.raises((EndpointFailed, EndpointRefused)):
            it.classify(IMAGE)
        assert sum(path.endswith("infer") for path in server.paths) == sent + 1


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"retries": -1}])
def test_other_options_are_checked(options: dict[str, Any], obfuscator_bundle: Bundle) -> None:
    with recording() as server, client(server, obfuscator_bundle) as it, pytest.raises(EndpointError):
        it.with_options(**options)


def test_a_closed_client_sends_nothing_and_says_so(gated_bundle: Bundle) -> None:
    with recording() as server, client(server, gated_bundle) as it:
        new, asked = it.with_options(retries=1), it.with_options(retries=1)
        asked.plan()
        before = bytes(server.recorded)
        new.close()
        for closed in (it, new, asked):
            for ask in (closed.classify, lambda _: closed.check()):  # noqa: B023
                with pytest.raises(EndpointError, match="the client is closed"):
                    ask(unsure_image())
            assert closed.classify(sure_image()).predicted_by == "device"
        assert server.recorded == before


def test_a_warning_points_at_the_code_that_called(obfuscator_bundle: Bundle) -> None:
    told = metadata(parameters={"fingerprint": "sha256:0"})
    with recording(tiny=lambda e: e.reply(200, told)) as server, client(server, obfuscator_bundle) as it:
        with pytest.warns(FingerprintWarning) as caught:
            it.classify(IMAGE)
        assert "sfumato/device" not in caught[0].filename


# --- addresses and tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "localhost:80", "ftp://host", "http://", "http://u:p@host", "http://host/?a=b", "http://[::1", "file:///x"],
)
def test_bad_addresses_are_refused(url: str, obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError) as caught:
        Client(url, obfuscator_bundle)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.0.0.2", "http://[::1]:9", "https://example.org"])
def test_tokens_may_go_to_this_machine_or_over_tls(url: str, obfuscator_bundle: Bundle) -> None:
    Client(url, obfuscator_bundle, token=TOKEN).close()


def test_tokens_are_not_sent_in_the_clear_unasked(obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError) as caught:
        Client("http://example.org", obfuscator_bundle, token=TOKEN)
    assert TOKEN not in str(caught.value)
    Client("http://example.org", obfuscator_bundle, token=TOKEN, allow_insecure_token=True).close()
    for token in ("", "a b", "a\r\nX: y", "é"):
        with pytest.raises(EndpointError):
            Client("http://localhost", obfuscator_bundle, token=token)


def test_a_missing_ca_file_is_told_at_once(obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointError, match="no file"):
        Client("https://localhost", obfuscator_bundle, ca_file="/nowhere.pem")


def test_a_path_prefix_is_kept(obfuscator_bundle: Bundle) -> None:
    with recording() as server, Client(server.url + "/prefix/", obfuscator_bundle, model="a/b") as it:
        it.check()
    assert server.paths == ["/prefix/v2/health/ready", "/prefix/v2/models/a%2Fb"]

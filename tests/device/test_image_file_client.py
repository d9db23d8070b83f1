"""The client for endpoints that take files: the bytes on the wire, and silence when something is wrong."""

from __future__ import annotations

import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from file_endpoint import FileEndpoint
from recording import Behaviour, Exchange, RecordingServer, leaked, recording, softmax
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device import Client, FileClient, Obfuscator
from sfumato.device.blocking import finished
from sfumato.device.image import from_pixels
from sfumato.errors import (
    BundleError,
    EndpointError,
    EndpointFailed,
    EndpointRefused,
    EndpointResponseInvalid,
    EndpointUnreachable,
    ImageError,
)

TOKEN = "s3cret-token"
IMAGE = tiny.image(11)
NESTED: dict[str, Any] = {"template": {"parts": [{"url": "data:{type};base64,{base64}"}]}, "field": "unused"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundles(tmp_path_factory.mktemp("8-bit"), "8-bit")[0]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundles(tmp_path_factory.mktemp("gated-8-bit"), "8-bit", threshold=0.9)[0]


def endpoint(**options: Any) -> FileEndpoint:
    return FileEndpoint(tiny.logits, tiny.LABELS, tiny.PREPROCESSING, **options)


def client(server: RecordingServer, bundle: Bundle, **options: Any) -> FileClient:
    return FileClient(f"{server.url}/v1/classify", bundle, **{"retries": 0, "timeout_s": 2.0, **options})


def expected(pixels: np.ndarray) -> np.ndarray:
    return softmax(tiny.logits(from_pixels(tiny.negative(pixels)[None], tiny.PREPROCESSING)))[0]


# --- when all is well -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "webp", "smallest"])
@pytest.mark.parametrize("style", ["form", "body", "json"])
def test_the_obfuscated_image_arrives_exactly_and_the_label_comes_back(style: Any, kind: Any, bundle: Bundle) -> None:
    at = endpoint()
    with recording(classify=at) as server, client(server, bundle, style=style, file_format=kind) as it:
        prediction = it.classify(IMAGE)
    np.testing.assert_array_equal(at.images(), [tiny.negative(IMAGE)])
    np.testing.assert_allclose(prediction.probabilities, expected(IMAGE), atol=1e-4)
    assert prediction.label == tiny.LABELS[expected(IMAGE).argmax()] and prediction.predicted_by == "cloud"
    assert prediction.top(2)[0] == (prediction.index, prediction.probability)
    assert prediction.payload_bytes >= len(at.files[0][0]) and prediction.round_trip_ms > 0 < prediction.obfuscate_ms
    assert server.paths == ["/v1/classify"], "nothing else is asked"
    assert leaked(server.recorded, IMAGE) == set()


def test_nested_json_and_a_nested_answer(bundle: Bundle) -> None:
    def file_of(body: Any) -> str:
        head, _, text = body["parts"][0]["url"].partition(",")
        assert head in ("data:image/png;base64", "data:image/webp;base64")
        return text

    def reply(found: list[dict[str, Any]]) -> Any:
        return {"responses": [{"found": [{"name": one["label"], "p": one["score"]} for one in found[:2]]}]}

    at = endpoint(file_of=file_of, reply=reply)
    place = {"prediction_path": "responses.0.found", "label_key": "name", "score_key": "p"}
    with recording(classify=at) as server, client(server, bundle, style="json", **NESTED, **place) as it:
        prediction = it.classify(IMAGE)
    np.testing.assert_array_equal(at.images(), [tiny.negative(IMAGE)])
    assert prediction.label == tiny.LABELS[expected(IMAGE).argmax()]
    assert [index for index, _ in prediction.top(4)] == list(np.argsort(-expected(IMAGE))[:2]), "two are named"
    assert np.isnan(prediction.probabilities).sum() == 2


def test_nothing_of_the_images_own_file_payload(bundle: Bundle, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x8298] = "a private description", "Jane Doe"
    file = tmp_path / "jane-on-holiday.jpg"
    Image.fromarray(IMAGE).save(file, exif=exif, comment=b"a private comment", quality=95)
    assert b"Jane Doe" in file.read_bytes()
    at = endpoint()
    with recording(classify=at) as server:
        for style in ("form", "body", "json"):
            with client(server, bundle, style=style) as it:
                it.classify(file)
    for secret in (b"jane", b"Jane", b"private", b"Exif", b"JFIF", str(tmp_path).encode()):
        assert secret not in server.recorded
        assert all(secret not in data for data, _, _ in at.files)
    decoded = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(at.images(), 3 * [tiny.negative(decoded)])
    assert at.files[0][2] == f"image.{at.files[0][1].removeprefix('image/')}", "always the same name"
    assert leaked(server.recorded, decoded) == set()


def test_a_gate_keeps_what_the_device_is_sure_of(gated: Bundle) -> None:
    at, images = endpoint(), [tiny.sure_image(1), tiny.unsure_image(2), tiny.sure_image(3)]
    with recording(classify=at) as server, client(server, gated) as it:
        predictions = it.classify_batch(iter(images))
        assert it.classify_locally(images[1]) is None
        assert it.classify_locally(images[0]) is not None
    assert [prediction.predicted_by for prediction in predictions] == ["device", "cloud", "device"]
    np.testing.assert_array_equal(at.images(), [tiny.negative(images[1])])
    with recording(classify=at) as server, client(server, gated, gate=False) as it:
        assert it.classify(images[0]).predicted_by == "cloud" and it.classify_locally(images[0]) is None


def test_a_slash_at_the_end_of_the_address_stays(bundle: Bundle) -> None:
    with recording(**{"": endpoint()}) as server:
        for address in (f"{server.url}/v1/", server.url, f"{server.url}/"):
            with FileClient(address, bundle, retries=0) as it:
                assert it.classify(IMAGE).label in tiny.LABELS
    assert server.paths == ["/v1/", "/", "/"]


def test_it_is_tried_again_with_the_same_file(bundle: Bundle) -> None:
    at, left = endpoint(), iter([503])

    def busy_once(exchange: Exchange) -> None:
        for status in left:
            return exchange.reply(status)
        return at(exchange)

    with recording(classify=busy_once) as server, client(server, bundle, retries=1) as it:
        assert it.classify(IMAGE).label in tiny.LABELS
    assert server.paths == 2 * ["/v1/classify"]


@pytest.mark.parametrize("style", ["form", "body", "json"])
def test_shipped_images_get_the_label_of_the_tensor_path(style: Any) -> None:
    classifier = Bundle.load(shipped.classifier_bundle())
    look, samples = classifier.preprocessing, [sample.pixels for sample in shipped.samples()]
    sketch = Obfuscator(shipped.obfuscator_bundle())
    tensors = np.stack([image.tensor for image in sketch.obfuscate_batch(samples)])
    wanted = softmax(OnnxFunction(classifier.file(CLASSIFIER_ONNX))(tensors))
    at = FileEndpoint.of(classifier)
    with recording(classify=at) as server, client(server, sketch.bundle, style=style, rounding=True, gate=False) as it:
        predictions = it.classify_batch(samples)
    assert [prediction.index for prediction in predictions] == wanted.argmax(axis=1).tolist()
    np.testing.assert_allclose([prediction.probabilities for prediction in predictions], wanted, atol=0.02)
    mean, std = (np.array(value)[:, None, None] for value in (look.mean, look.std))
    off = np.stack(at.images()).transpose(0, 3, 1, 2) - (tensors * std + mean) * 255
    assert 0.3 < np.abs(off).max() < 0.501, "the drawing, to the nearest level"


# --- when something is wrong ----------------------------------------------------------------------


def status(code: int, **headers: str) -> Behaviour:
    return lambda exchange: exchange.reply(code, b'{"error": "no\x1b[31m"}', **headers)


def body(data: bytes) -> Behaviour:
    return lambda exchange: exchange.reply(200, data)


def slow(exchange: Exchange) -> None:
    time.sleep(0.6)
    exchange.reply(200, b'"cat"')


MISBEHAVIOURS: dict[str, tuple[Behaviour, type[EndpointError]]] = {
    "slow": (slow, EndpointUnreachable),
    "hangs up": (lambda exchange: exchange.connection.shutdown(socket.SHUT_RDWR), EndpointUnreachable),
    "400": (status(400), EndpointRefused),
    "401": (status(401), EndpointRefused),
    "redirect": (status(307, Location="/elsewhere"), EndpointRefused),
    "500": (status(500), EndpointFailed),
    "html": (body(b"<html>"), EndpointResponseInvalid),
    "another label": (body(b'"zebra"'), EndpointResponseInvalid),
    "no scores": (body(b"[]"), EndpointResponseInvalid),
    "huge": (body(b'"' + bytes(17 * 2**20) + b'"'), EndpointResponseInvalid),
}


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_it_fails_closed(name: str, bundle: Bundle) -> None:
    behaviour, error = MISBEHAVIOURS[name]
    timeout = 0.3 if error is EndpointUnreachable else 2.0
    with recording(classify=behaviour) as server, client(server, bundle, timeout_s=timeout) as it:
        with pytest.raises(error) as caught:
            it.classify(IMAGE)
        assert type(caught.value) is error and "\x1b" not in str(caught.value)
    assert leaked(server.recorded, IMAGE) == set()
    assert set(server.paths) == {"/v1/classify"}


@pytest.mark.parametrize("style", ["form", "body", "json"])
def test_the_detector_would_see_the_image_itself(style: Any, bundle: Bundle, monkeypatch: Any) -> None:
    """`leaked` cannot look into base64 or compressed pixels; what arrives is decoded, and that can fail."""
    monkeypatch.setattr("sfumato.device.obfuscator.to_pixels", lambda *_: IMAGE[None].copy())
    monkeypatch.setattr(Obfuscator, "_check_pixels", lambda *_: None)
    at = endpoint()
    with recording(classify=at) as server, client(server, bundle, style=style) as it:
        it.classify(IMAGE)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(at.images(), [tiny.negative(IMAGE)])


@pytest.mark.parametrize(
    ("kind", "rounding"),
    [
        *((kind, rounding) for kind in ("identity", "normalised", "nan", "shape") for rounding in (False, True)),
        ("mix", False),
        ("unit", False),
        ("almost", False),
        ("almost", True),
    ],
)
def test_nothing_is_sent_if_the_output_is_not_fit_for_a_file(kind: str, rounding: bool, tmp_path: Path) -> None:
    bad, _ = tiny.save_bundles(tmp_path, kind)
    with recording() as server, pytest.raises(BundleError), client(server, bad, rounding=rounding) as it:
        it.classify(IMAGE)
    assert server.recorded == b""


def test_nothing_is_sent_of_a_bad_image(bundle: Bundle) -> None:
    with recording() as server, client(server, bundle) as it, pytest.raises(ImageError):
        it.classify(b"no image")
    assert server.recorded == b""


def test_both_clients_share_what_decides_and_what_sends() -> None:
    for name in ("classify", "classify_batch", "classify_many", "classify_locally", "_classify_group", "_send"):
        assert getattr(Client, name) is getattr(FileClient, name)


def test_other_options_and_a_closed_client(bundle: Bundle) -> None:
    with recording(classify=lambda exchange: exchange.reply(503)) as server, client(server, bundle) as it:
        with pytest.raises(EndpointFailed):
            it.with_options(retries=1).classify(IMAGE)
        assert len(server.paths) == 2
        it.close()
        with pytest.raises(EndpointError, match="the client is closed"):
            it.classify(IMAGE)
        assert len(server.paths) == 2


def test_only_obfuscated_images_can_be_sent(bundle: Bundle) -> None:
    of_floats = Obfuscator(bundle).obfuscate(IMAGE)
    with recording() as server, client(server, bundle) as it:
        for wrong in (IMAGE, of_floats):
            with pytest.raises(TypeError):
                finished(it._send([wrong], obfuscate_ms=0.0))  # type: ignore[list-item]
    assert server.recorded == b""


def test_the_token_is_sent_and_never_shown(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echoes: Iterator[tuple[int, Any]] = iter([(500, {"error": f"Bearer {TOKEN}"}), (200, TOKEN), (200, {TOKEN: []})])

    def echo(exchange: Exchange) -> None:
        assert exchange.headers["authorization"] == f"Bearer {TOKEN}"
        code, value = next(echoes)
        exchange.reply(code, json.dumps(value).encode())

    with recording(classify=echo) as server, client(server, bundle, token=TOKEN, prediction_path="") as it:
        for _ in range(3):
            with pytest.raises(EndpointError) as caught:
                it.classify(IMAGE)
            assert TOKEN not in str(caught.value) + repr(it) + caplog.text


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("ftp://host/x", {}),
        ("https://host/x?key=1", {}),
        ("http://example.org/x", {"token": TOKEN}),
        ("https://host/x", {"ca_file": "/nowhere.pem"}),
        ("https://host/x", {"style": "ftp"}),
        ("https://host/x", {"file_format": "jpeg"}),
        ("https://host/x", {"style": "json", "template": {"a": "b"}}),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(address: str, options: dict[str, Any], bundle: Bundle) -> None:
    with pytest.raises(EndpointError):
        FileClient(address, bundle, **options)


def test_a_file_never_is_a_jpeg(bundle: Bundle) -> None:
    at = endpoint()
    with recording(classify=at) as server, client(server, bundle) as it:
        it.classify_batch([tiny.image(seed) for seed in range(5)])
    assert {Image.open(io.BytesIO(data)).format for data, _, _ in at.files} <= {"PNG", "WEBP"}

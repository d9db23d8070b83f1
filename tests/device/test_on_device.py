"""The client of a bundle that predicts on the device alone: the same results, and nothing to send."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from commands import sfumato
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
from sfumato.device import Client
from sfumato.errors import BundleError, EndpointError, ImageError

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.usefixtures("both_clients")
def test_a_classifier_predicts_what_its_network_computes(classifier_bundle: Bundle) -> None:
    images = [tiny.image(seed) for seed in range(5)]
    size = tiny.PREPROCESSING
    inputs = size.normalize(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    scores = tiny.logits(inputs).astype(np.float64)
    expected = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    with Client(None, classifier_bundle) as client:
        found = client.classify_batch(images, batch_size=2)
        assert client.classify_locally(images[0]).index == found[0].index
        assert [one.index for one in client.classify_many(images)] == [one.index for one in found]
        assert client.on_device and client.gate_enabled
    for one, row in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(row, abs=1e-5)
        assert one.label == tiny.LABELS[row.argmax()]
        assert (one.predicted_by, one.payload_bytes, one.round_trip_ms) == ("device", 0, 0)


@pytest.mark.usefixtures("both_clients")
def test_there_is_nothing_to_ask_and_nothing_to_send(classifier_bundle: Bundle, obfuscator_bundle: Bundle) -> None:
    with Client(None, classifier_bundle) as client:
        with pytest.raises(EndpointError, match="there is no endpoint"):
            client.check()
        with pytest.raises(BundleError, match="no obfuscator"):
            _ = client.obfuscator
        with pytest.raises(ImageError):
            client.classify(b"no image")
    for how in ({"gate": False}, {"split": True}):
        with pytest.raises(BundleError, match="nothing to send"):
            Client(None, classifier_bundle, **how)
    with pytest.raises(BundleError, match="give its address"):
        Client(None, obfuscator_bundle)
    with pytest.raises(BundleError, match="classifier"):
        Client("http://127.0.0.1:1", classifier_bundle)


@pytest.mark.usefixtures("both_clients")
def test_logits_that_are_not_finite_are_no_prediction(classifier_bundle: Bundle, tmp_path: Path) -> None:
    _, classifier = tiny.save_bundles(tmp_path)
    weights = np.full_like(tiny.WEIGHT, np.nan)
    tiny.save_model(
        classifier.path / CLASSIFIER_ONNX,
        [
            tiny.helper.make_node("Flatten", ["input"], ["flat"]),
            tiny.helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        {"weight": weights},
        [tiny.floats("input", "batch", 3, tiny.SIZE, tiny.SIZE)],
        [tiny.floats("logits", "batch", len(tiny.LABELS))],
    )
    with Client(None, classifier.save()) as client, pytest.raises(BundleError, match="no finite logits"):
        client.classify(tiny.image())


def test_the_commands_need_no_server(classifier_bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(tiny.image()).save(tmp_path / "photo.png")
    said = json.loads(sfumato("classify", tmp_path / "photo.png", "--bundle", classifier_bundle.path, "--json").stdout)
    assert said["predictions"][0]["predicted_by"] == "device" and said["server"] is None
    assert "on the device alone" in " ".join(sfumato("doctor", classifier_bundle.path).stdout.split())

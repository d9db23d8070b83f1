"""The split form: a code of a few bytes is sent, and the decoder in the cloud decodes it for the same classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recording import leaked, recording
from sfumato.artifacts.bundle import Bundle
from sfumato.cloud import ServedModel, running
from sfumato.device import Client, Obfuscator, prepare
from sfumato.errors import BundleError, EndpointResponseInvalid, ImageError, ServingError
from tiny import (
    PREPROCESSING,
    code_of,
    decode,
    image,
    logits,
    save_bundles,
    save_split_bundles,
    sure_image,
    unsure_image,
)

IMAGES = [image(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    return save_split_bundles(tmp_path_factory.mktemp("split"))


def test_the_code_alone_is_computed_and_it_is_the_code_of_what_would_be_drawn(bundles: tuple[Bundle, Bundle]) -> None:
    unit = np.stack([prepare(pixels, PREPROCESSING) for pixels in IMAGES])
    codes = Obfuscator(bundles[0], split=True)(unit)
    assert codes.dtype == np.uint8 and codes.tolist() == code_of(unit).tolist()
    np.testing.assert_allclose(Obfuscator(bundles[0])(unit), decode(codes), atol=1e-6)


def test_a_code_has_no_preview(bundles: tuple[Bundle, Bundle]) -> None:
    code = Obfuscator(bundles[0], split=True).obfuscate(IMAGES[0])
    with pytest.raises(ImageError, match="a code has no preview"):
        code.preview()


@pytest.mark.parametrize("binary", [True, False])
def test_the_cloud_draws_the_code_and_the_same_classifier_answers(binary: bool, bundles: tuple[Bundle, Bundle]) -> None:
    obfuscator, classifier = bundles
    models = [ServedModel(classifier.path), ServedModel(classifier.path, name="tiny-split", decoder=obfuscator.path)]
    with (
        running(models) as url,
        Client(url, obfuscator, split=True, encoding="binary" if binary else "json") as split,
        Client(url, obfuscator) as whole,
    ):
        codes, drawings = split.classify_batch(IMAGES), whole.classify_batch(IMAGES)
        assert (split.fingerprint, whole.fingerprint) == ("match", "match"), "the classifier is the same one"
    for ours, theirs in zip(codes, drawings, strict=True):
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)
    unit = np.stack([prepare(pixels, PREPROCESSING) for pixels in IMAGES])
    wanted = logits(decode(code_of(unit))).argmax(axis=1)
    assert [np.argmax(prediction.probabilities) for prediction in codes] == wanted.tolist()
    if binary:
        assert drawings[0].payload_bytes > 3 * 8 * 8 * 4 and codes[0].payload_bytes < 64, "per image, of five"


def test_with_a_gate_only_the_codes_of_some_images_are_sent(tmp_path: Path) -> None:
    obfuscator, classifier = save_split_bundles(tmp_path, threshold=0.9)
    with (
        running([ServedModel(classifier.path, name="tiny-split", decoder=obfuscator.path)]) as url,
        Client(url, obfuscator, split=True) as client,
    ):
        predictions = client.classify_batch([unsure_image(0), sure_image(1)])
    assert [prediction.predicted_by for prediction in predictions] == ["cloud", "device"]


def test_a_model_that_takes_images_gets_no_code_and_nothing_else(bundles: tuple[Bundle, Bundle]) -> None:
    with recording() as server, Client(server.url, bundles[0], split=True, model="tiny") as client:
        with pytest.raises(EndpointResponseInvalid, match="takes FP32; this client sends UINT8"):
            client.classify(IMAGES[0])
        assert b"POST" not in server.recorded
        assert leaked(server.recorded, IMAGES[0]) == set()


@pytest.mark.parametrize(("code", "message"), [("wide", "B at most 64"), ("floats", "uint8"), ("rows", "the code of")])
def test_what_is_no_code_does_not_leave_in_its_place(code: str, message: str, tmp_path: Path) -> None:
    bundle, _ = save_split_bundles(tmp_path, code)
    with pytest.raises(BundleError, match=message):
        Obfuscator(bundle, split=True).obfuscate(IMAGES[0])


def test_an_obfuscator_without_a_decoder_has_no_split_form(
    obfuscator_bundle: Bundle, classifier_bundle: Bundle
) -> None:
    with pytest.raises(BundleError, match=r"has no decoder\.onnx"):
        Obfuscator(obfuscator_bundle, split=True)
    with pytest.raises(ServingError, match=r"has no decoder\.onnx"):
        ServedModel(classifier_bundle.path, decoder=obfuscator_bundle.path)


def test_a_decoder_serves_its_own_classifier_only(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    _, other = save_bundles(tmp_path)
    (other.path / "model.onnx").write_bytes((other.path / "model.onnx").read_bytes() + b"\x7a\x00")
    other = other.save()
    with pytest.raises(ServingError, match="made for another classifier"):
        ServedModel(other.path, decoder=bundles[0].path)


def test_codes_are_not_sent_to_the_decoder_of_another_obfuscator(
    bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    other, _ = save_split_bundles(tmp_path)
    (other.path / "decoder.onnx").write_bytes((other.path / "decoder.onnx").read_bytes() + b"\x7a\x00")
    other = other.save()
    with (
        running([ServedModel(bundles[1].path, name="tiny-split", decoder=bundles[0].path)]) as url,
        Client(url, other, split=True) as client,
        pytest.raises(EndpointResponseInvalid, match="the decoder of another obfuscator"),
    ):
        client.classify(IMAGES[0])


def test_a_bundle_with_a_deobfuscator_is_not_served(tmp_path: Path) -> None:
    obfuscator, classifier = save_split_bundles(tmp_path)
    (obfuscator.path / "deobfuscator.onnx").write_bytes((obfuscator.path / "decoder.onnx").read_bytes())
    obfuscator.save()
    with pytest.raises(BundleError, match=r"training images may be read.*sfumato export --device"):
        ServedModel(classifier.path, decoder=obfuscator.path)

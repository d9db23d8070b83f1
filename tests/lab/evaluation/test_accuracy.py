"""The figures of a bundle's ONNX files against the same figures from torch."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from json_schema import faults, schema
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.lab_files import lab_file, write_device_bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device.image import to_pixels
from sfumato.errors import BundleError
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.data import ImageSet, load_images
from sfumato.lab.evaluation import accuracy
from sfumato.lab.evaluation.accuracy import PlainAccuracy, evaluate_classifier, evaluate_obfuscator
from sfumato.lab.models import Deobfuscator, Obfuscator
from synthetic import image_set
from tiny import LABELS, PREPROCESSING, logits, negative, obfuscate, own_logits, save_bundles, save_obfuscator


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Noise among the images, so that the classifier is not always correct or always incorrect."""
    clean = image_set(22, seed=3)
    return replace(clean, labels=(clean.labels + (torch.arange(22) % 3 == 0)) % 4)


@pytest.fixture(autouse=True, params=[5, 250], ids=["in batches", "at once"])
def batch(request, monkeypatch):
    monkeypatch.setattr("sfumato.lab.data.image_set.INFERENCE_BATCH", request.param)


@pytest.fixture(scope="module")
def in_torch(trained, images) -> dict[str, torch.Tensor]:
    """What the networks compute from their weights, without any ONNX."""
    frozen = load_classifier(trained[0].path)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (frozen.preprocessing.mean, frozen.preprocessing.std))
    nets = []
    for network, file in ((Obfuscator, "obfuscator.safetensors"), (Deobfuscator, "deobfuscator.safetensors")):
        net = network().eval()
        net.load_state_dict(load_file(lab_file(trained[1], file)))
        nets.append(net)
    batch = images.images.float() / 255
    with torch.no_grad():
        obfuscated = nets[0](batch)
        return {
            "images": batch,
            "plain": frozen.net((batch - mean) / std).argmax(dim=1),
            "obfuscated": frozen.net((obfuscated - mean) / std).argmax(dim=1),
            "reconstructed": nets[1](obfuscated),
        }


def test_plain_accuracy_is_that_of_torch(trained, images, in_torch):
    expected = float((in_torch["plain"] == images.labels).double().mean())
    assert evaluate_classifier(trained[0], images) == PlainAccuracy(expected, 22)


def test_obfuscated_accuracy_is_that_of_torch(trained, images, in_torch):
    figures = evaluate_obfuscator(trained[1], trained[0], images)
    assert figures.accuracy_plain == float((in_torch["plain"] == images.labels).double().mean())
    assert figures.accuracy_obfuscated == float((in_torch["obfuscated"] == images.labels).double().mean())
    assert figures.test_images == 22


def test_the_joint_deobfuscators_figures_are_those_of_torch(trained, images, in_torch):
    figures = evaluate_obfuscator(trained[1], trained[0], images)
    pair = in_torch["reconstructed"].clamp(0, 1), in_torch["images"]
    mse = float(((pair[0].double() - pair[1].double()) ** 2).mean())
    assert figures.joint_deobfuscator_mse == pytest.approx(mse, rel=1e-4)
    reconstructed, original = (part.double().numpy() for part in pair)
    psnr = peak_signal_noise_ratio(original, reconstructed, data_range=1)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
    ssim = sum(structural_similarity(*one, **how) for one in zip(original, reconstructed, strict=True)) / len(original)
    assert figures.joint_deobfuscator_psnr_db == pytest.approx(psnr, abs=1e-3)
    assert figures.joint_deobfuscator_ssim == pytest.approx(ssim, abs=1e-4)
    # By definition, so that no two figures contradict each other.
    assert figures.joint_deobfuscator_psnr_db == pytest.approx(-10 * torch.tensor(mse).log10().item(), abs=1e-3)


def test_the_figures_in_a_bundle_are_those_of_its_test_images(trained, image_folder):
    classifier, obfuscator = trained
    test_set = load_images(str(image_folder), "test")
    assert classifier.figures.to_json() == pytest.approx(evaluate_classifier(classifier, test_set).to_json())
    assert obfuscator.figures.to_json() == pytest.approx(
        evaluate_obfuscator(obfuscator, classifier, test_set).to_json()
    )


def test_what_is_reconstructed_is_clipped_to_what_an_image_can_hold(tmp_path):
    obfuscator, classifier = save_bundles(tmp_path)
    save_obfuscator(obfuscator.path / "deobfuscator.onnx")  # reconstructs nothing, far outside [0, 1]
    obfuscator = obfuscator.save()
    images = replace(image_set(3, size=(8, 8)), names=LABELS)
    plain = images.images.numpy().astype("float32") / 255
    reconstructed = obfuscate(obfuscate(plain))
    assert reconstructed.min() < -0.1 or reconstructed.max() > 1.1
    figures = evaluate_obfuscator(obfuscator, classifier, images)
    assert figures.joint_deobfuscator_mse == pytest.approx(((reconstructed.clip(0, 1) - plain) ** 2).mean(), rel=1e-4)


def test_an_obfuscator_without_deobfuscator_has_no_figures_of_it(trained, images, tmp_path):
    figures = evaluate_obfuscator(write_device_bundle(trained[1], tmp_path / "mine"), trained[0], images)
    assert figures.to_json().keys() == {"accuracy_plain", "accuracy_obfuscated", "test_images"}


def test_rounding_is_what_an_endpoint_that_takes_files_sees(tmp_path):
    obfuscator, classifier = save_bundles(tmp_path, "unit")
    images = replace(image_set(22, size=(8, 8)), names=LABELS)
    pixels = images.images.permute(0, 2, 3, 1).numpy()
    rounded = (negative(pixels).astype(int) * 2 + 2) // 5  # 0.4 times as much, to the nearest level
    predicted = logits(PREPROCESSING.normalize((rounded.transpose(0, 3, 1, 2) / 255).astype("float32"))).argmax(axis=1)
    figures = evaluate_obfuscator(obfuscator, classifier, images, rounding=True)
    assert figures.accuracy_obfuscated == (predicted == images.labels.numpy()).mean()


def test_what_cannot_be_rounded_is_refused(trained, images):
    with pytest.raises(BundleError, match="leaves"):
        evaluate_obfuscator(trained[1], trained[0], images, rounding=True)


def test_rounding_happens_at_all(monkeypatch, tmp_path):
    """Labels hardly change by rounding, so the test above would pass without it."""
    obfuscator, classifier = save_bundles(tmp_path, "unit")
    seen = []
    monkeypatch.setattr(accuracy, "to_pixels", lambda *arguments: seen.append(arguments) or to_pixels(*arguments))
    evaluate_obfuscator(obfuscator, classifier, replace(image_set(3, size=(8, 8)), names=LABELS), rounding=True)
    assert seen


def test_an_obfuscator_for_another_classifier_is_refused(trained, images):
    other = replace(trained[0], classifier_fingerprint="sha256:" + "0" * 64)
    with pytest.raises(BundleError, match="was trained for classifier"):
        evaluate_obfuscator(trained[1], other, images)


def test_images_of_another_size_are_refused(trained):
    small = image_set(4, size=(16, 16))
    with pytest.raises(BundleError, match=r"\(16, 16\), \(32, 32\) is needed"):
        evaluate_classifier(trained[0], small)
    with pytest.raises(BundleError, match=r"\(16, 16\), \(32, 32\) is needed"):
        evaluate_obfuscator(trained[1], trained[0], small)


def test_a_classifier_that_is_always_correct_has_accuracy_one(tiny_bundles):
    _, classifier = tiny_bundles
    plain = replace(classifier, preprocessing=Preprocessing(8, 8))
    images = replace(image_set(9, size=(8, 8)), names=LABELS)
    predictions = logits(images.images.numpy().astype("float32") / 255)
    correct = replace(images, labels=torch.from_numpy(predictions.argmax(axis=1)))
    incorrect = replace(correct, labels=(correct.labels + 1) % 4)
    assert evaluate_classifier(plain, correct).accuracy_plain == 1.0
    assert evaluate_classifier(plain, incorrect).accuracy_plain == 0.0


def test_the_order_of_the_images_does_not_matter(trained, images):
    turned = replace(images, images=images.images.flip(0).contiguous(), labels=images.labels.flip(0).contiguous())
    assert evaluate_obfuscator(trained[1], trained[0], turned).to_json() == pytest.approx(
        evaluate_obfuscator(trained[1], trained[0], images).to_json(), rel=1e-5
    )


def test_a_bundle_loaded_again_gives_the_same(trained, images):
    assert evaluate_classifier(Bundle.load(trained[0].path), images) == evaluate_classifier(trained[0], images)


def gated_images() -> ImageSet:
    """Images that a tiny gated obfuscator is sure of, unsure of, and in between, with labels at random."""
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    pixels[::4, 0] = 255
    pixels[1::4] = pixels[1::4, :1]
    return replace(
        image_set(40, size=(8, 8)),
        images=torch.from_numpy(pixels),
        labels=torch.from_numpy(rng.integers(0, 4, 40)),
        names=LABELS,
    )


@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.99, 1.0])
def test_the_figures_of_a_gate(tmp_path, threshold):
    obfuscator, classifier = save_bundles(tmp_path, threshold=threshold)
    images = gated_images()
    device, sent, gated, cloud = [], [], [], []
    for pixels, label in zip(images.images.numpy(), images.labels.tolist(), strict=True):
        unit = pixels[None].astype(np.float32) / 255
        exponentials = [math.exp(value) for value in own_logits(unit)[0]]
        device.append(max(range(4), key=lambda index, row=exponentials: row[index]) == label)
        cloud.append(int(logits(obfuscate(unit)).argmax()) == label)
        sent.append(max(exponentials) / sum(exponentials) < threshold)
        gated.append(cloud[-1] if sent[-1] else device[-1])
    figures = evaluate_obfuscator(obfuscator, classifier, images)
    assert figures.accuracy_obfuscated == sum(cloud) / 40
    assert figures.accuracy_device == sum(device) / 40
    assert figures.offload_rate == sum(sent) / 40
    assert figures.accuracy_gated == sum(gated) / 40
    assert len({sum(device), sum(cloud)}) == 2, "these images could not tell the two apart"
    assert (0 < sum(sent) < 40) == (0 < threshold < 1)


@pytest.mark.parametrize("own", [None, "nan", "rows", "fixed columns", "three outputs"])
def test_a_gate_without_usable_logits_has_no_figures(tmp_path, own):
    obfuscator, classifier = save_bundles(tmp_path, threshold=0.5, own=own)
    with pytest.raises(BundleError, match="second output of finite logits"):
        evaluate_obfuscator(obfuscator, classifier, gated_images())


def test_trained_bundles_follow_the_schema(trained):
    for bundle in trained:
        assert faults(json.loads((bundle.path / "bundle.json").read_text(encoding="utf-8")), schema("bundle")) == []

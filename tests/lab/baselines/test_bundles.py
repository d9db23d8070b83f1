"""Baselines as bundles: what ONNX Runtime computes is what torch computes, and all of it comes back from disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import BundleError, TrainingError
from sfumato.lab.baselines import METHODS, build, load_module, make, refit, write_baseline
from sfumato.lab.baselines.bundles import BaselineRecipe, Payload, _check_noise, as_payload
from sfumato.lab.baselines.method import NoisyMethod
from sfumato.lab.classifiers import FrozenClassifier
from synthetic import image_set

SIZE = 16
PREPROCESSING = Preprocessing(SIZE, SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5))
CLASSIFIER = FrozenClassifier(nn.Flatten(), "toy", ("a", "b"), PREPROCESSING, "sha256:0")
ENCODERS = {"nopeek", "max-entropy", "joint"}
STRENGTHS = {"scramble-blocks": 8, "pca": 10}


def images() -> torch.Tensor:
    return image_set(4, size=(SIZE, SIZE)).images.float() / 255


QUICK = {"identity", "noise", "pca", "scramble-blocks", "scramble-pixels"}
"""The others are computed in the same ways; an export takes seconds."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """`written(name)` is the bundle of a method."""

    @cache
    def write(name: str) -> Bundle:
        torch.manual_seed(0)
        method = build(name, SIZE, SIZE, strength=STRENGTHS.get(name), seed=3)
        with torch.no_grad():
            if name == "pca":
                method.components.normal_(std=0.1)
            if name == "shredder":
                method.location.uniform_(-1, 1)
                method.log_scale.uniform_(-3, 0)
            if name == "cloak":
                method.rho.uniform_(-2, 2)
                method.kept[:, :5] = 0
        folder = tmp_path_factory.mktemp(name)
        write_baseline(
            folder,
            method,
            recipe=BaselineRecipe(name, method.seed, method.strength, note="made up"),
            classifier=CLASSIFIER,
            images_for_check=images(),
        )
        return Bundle.load(folder, kind="obfuscator")

    return write


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in sorted(METHODS.keys() - ENCODERS)],
)
def test_a_baseline_comes_back_from_its_bundle(name, written):
    bundle, x = written(name), images()
    assert bundle.recipe.kind == "baseline"
    assert bundle.recipe.method == name
    assert bundle.recipe.note == "made up"
    assert bundle.preprocessing == PREPROCESSING
    module, function = load_module(bundle), OnnxFunction(bundle.file("obfuscator.onnx"))
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    x.requires_grad_()
    payload = module(x)
    payload.sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    got = function(x.detach().numpy())
    if not METHODS[name].stochastic:
        np.testing.assert_allclose(got, payload.detach().numpy(), atol=2e-4)
        assert not hasattr(module, "noise_std")
        return
    assert not np.array_equal(got, function(x.detach().numpy()))
    assert not torch.equal(payload, module(x))
    noise = np.stack([function(x.detach().numpy()) for _ in range(300)]) - module.mean(x).detach().numpy()
    std = module.noise_std()
    assert std.shape == (3, SIZE, SIZE)
    np.testing.assert_allclose(noise.std(axis=(0, 1)), std.numpy(), rtol=0.25, atol=1e-6)
    assert module.noise_kind == METHODS[name].noise_kind


def test_the_payload_is_normalised(written):
    expected = PREPROCESSING.normalize(images().numpy())
    np.testing.assert_allclose(load_module(written("identity"))(images()).numpy(), expected, atol=1e-6)
    std = load_module(written("noise")).noise_std()[:, 0, 0]
    torch.testing.assert_close(std, 0.05 / torch.tensor(PREPROCESSING.std))


def test_writing_leaves_the_method_as_it_was(tmp_path: Path):
    method = build("shredder", SIZE, SIZE)
    as_payload(method, PREPROCESSING)
    assert method.training
    assert method.location.requires_grad


def test_refit_makes_another_key_and_nothing_of_what_is_learned(written):
    x = images()
    for name in ("scramble-pixels", "scramble-blocks"):
        same, other = refit(written(name), 3), refit(written(name), 4)
        assert same is not None
        assert other is not None
        assert torch.equal(same(x), load_module(written(name))(x))
        assert not torch.equal(other(x), same(x))
    assert refit(written("noise"), 1) is not None
    assert {name for name in QUICK if refit(written(name), 1) is None} == {
        name for name in QUICK if METHODS[name].learns
    }


def test_a_bundle_that_is_no_baseline_or_does_not_fit(written):
    good = written("pca")
    for recipe, says in (
        ({**good.recipe.to_json(), "kind": "obfuscator"}, "is no baseline"),
        ({**good.recipe.to_json(), "method": "sharpen"}, "no baseline is called 'sharpen'"),
        ({**good.recipe.to_json(), "strength": -1}, "above 0"),
        ({**good.recipe.to_json(), "strength": "strong"}, "does not make a baseline"),
        ({"kind": "baseline"}, "does not make a baseline"),
        ({**good.recipe.to_json(), "strength": 11}, "weights do not fit"),
    ):
        with pytest.raises(BundleError, match=says):
            load_module(replace(good, recipe=RecipeRecord.from_json(recipe)))


def test_a_file_with_other_noise_is_found_out(written):
    weaker = build("noise", SIZE, SIZE, strength=0.04)
    assert isinstance(weaker, NoisyMethod)
    with pytest.raises(TrainingError, match="spread"):
        _check_noise(written("noise").file("obfuscator.onnx"), as_payload(weaker, PREPROCESSING), images())
    still = written("identity").file("obfuscator.onnx")
    with pytest.raises(TrainingError, match="noise differs"):
        _check_noise(still, load_module(written("noise")), images())


def test_a_deterministic_module_claims_no_noise():
    assert type(as_payload(build("identity", SIZE, SIZE), PREPROCESSING)) is Payload


def test_images_that_do_not_fit_the_classifier_are_refused(tmp_path: Path):
    classifier = Bundle.load(shipped.classifier_bundle(), kind="classifier")
    images = image_set(4)
    foreign = replace(images, labels=torch.tensor([0, 1, 2, 10]))
    for test, says in ((foreign, "11 classes, the classifier knows 10"), (images.subset(1), "at least 2 test")):
        with pytest.raises(TrainingError, match=says):
            make(build("identity", 32, 32), "identity", tmp_path, classifier, images, test)
    assert not any(tmp_path.iterdir())

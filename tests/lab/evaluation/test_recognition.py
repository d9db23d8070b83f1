"""Recognition against numpy, with an evaluator whose features are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.stats import sem
from torch import Tensor, nn

from sfumato.errors import AuditError
from sfumato.lab.evaluation.evaluator import Evaluator
from sfumato.lab.evaluation.recognition import SUBSETS, Recogniser, Recognition, RecognitionScale, kernel_distance
from synthetic import image_set


class Tints(nn.Module):
    """The mean colour as features, and the nearest class's colour as the prediction."""

    def __init__(self) -> None:
        super().__init__()
        known = image_set(400)
        self.colours = torch.stack([tint(known.images[known.labels == label]).mean(dim=0) for label in range(4)])

    def features(self, x: Tensor) -> Tensor:
        return (x * 0.25 + 0.5).mean(dim=(2, 3)) - 0.3

    def head(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.colours)


def tint(images: Tensor) -> Tensor:
    return images.float().mean(dim=(2, 3)) / 255 - 0.3


EVALUATOR = Evaluator(Tints(), 400)
ASKED, PUBLIC = image_set(120, seed=1), image_set(200, seed=2)


def recogniser() -> Recogniser:
    return Recogniser(EVALUATOR, ASKED.images, ASKED.labels)


def blend(share: float) -> Tensor:
    """The originals, mixed with the next image, which is of another class."""
    plain = ASKED.images.float() / 255
    return torch.lerp(plain.roll(1, 0), plain, share)


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, lemma 6, sum by sum."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    m = len(x)
    within = sum(kernel(of[i], of[j]) for of in (x, y) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / m**2


def test_figures_agree_with_numpy_and_scipy():
    reconstructed = blend(0.7)[:90]
    found = recogniser().measure(reconstructed)
    features, originals = tint(reconstructed * 255).double().numpy(), tint(ASKED.images[:90]).double().numpy()
    colours = EVALUATOR.net.colours.numpy()
    nearest = np.linalg.norm(features[:, None] - colours[None], axis=2).argmin(axis=1)
    assert found.label_agreement == pytest.approx((nearest == ASKED.labels[:90].numpy()).mean())
    assert found.label_low < found.label_agreement < found.label_high and found.images == 90
    cosines = np.array([1 - cosine(a, b) for a, b in zip(features, originals, strict=True)])
    assert found.feature_cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert found.cosine_error == pytest.approx(sem(cosines), rel=1e-3)


def test_the_kernel_distance_is_the_mean_of_disjoint_parts():
    rng = np.random.default_rng(0)
    features, originals = rng.normal(0.4, 1.2, (130, 5)), rng.normal(0, 1, (130, 5))
    value, error = kernel_distance(torch.from_numpy(features), torch.from_numpy(originals), seed=3)
    half, order = 130 // (2 * SUBSETS), torch.randperm(130, generator=torch.Generator().manual_seed(3)).numpy()
    parts = [
        unbiased(features[order[at : at + half]], originals[order[at + half : at + 2 * half]])
        for at in range(0, 2 * half * SUBSETS, 2 * half)
    ]
    assert value == pytest.approx(np.mean(parts), rel=1e-9) and error == pytest.approx(sem(parts), rel=1e-9)


def test_equal_distributions_are_at_distance_0_within_the_error_and_others_are_not():
    source = torch.Generator().manual_seed(0)
    originals = torch.randn(4_000, 8, generator=source)
    value, error = kernel_distance(originals, originals, seed=0)
    assert abs(value) < 3 * error < 0.1, "the image itself"
    spread = [kernel_distance(torch.randn(400, 8, generator=source), originals[:400], seed=0)[0] for _ in range(40)]
    assert abs(np.mean(spread)) < 3 * sem(spread), "unbiased"
    moved, error = kernel_distance(originals + 0.5, originals, seed=0)
    assert moved > 10 * error


def test_few_images_have_no_kernel_distance_and_broken_features_are_refused():
    x = torch.rand(39, 3)
    assert kernel_distance(x, x, seed=0) == (None, None)
    with pytest.raises(AuditError, match="need"):
        kernel_distance(x, x[:, :2], seed=0)
    with pytest.raises(AuditError, match="not finite"):
        kernel_distance(x * torch.nan, x, seed=0)


def test_the_scale_has_its_ends_where_it_says():
    judge = recogniser()
    scale = judge.scale(PUBLIC)
    assert scale.image.feature_cosine == pytest.approx(1) and scale.learned_from == 400
    assert set(scale.label_only) == {
        "the mean image of the same class",
        "a random training image of the same class",
        "the most typical training image of the same class",
    }
    mean = torch.stack([PUBLIC.images[PUBLIC.labels == label].float().mean(dim=0) / 255 for label in range(4)])
    assert scale.label_only["the mean image of the same class"] == judge.measure(mean[ASKED.labels])
    assert scale == judge.scale(PUBLIC), "the same from the same seed"
    for guess in scale.label_only.values():
        assert (scale.share("feature_cosine", guess) or 0) == 0
    with pytest.raises(AuditError, match="no public images of date"):
        judge.scale(dataclasses.replace(PUBLIC, labels=PUBLIC.labels % 3))


def figures(agreement: float, cosine: float, distance: float | None) -> Recognition:
    return Recognition(agreement, 0, 1, cosine, 0.01, distance, None if distance is None else 0.01, 100)


def test_shares_lie_between_the_best_guess_from_the_label_and_the_image():
    scale = RecognitionScale(
        {"mean": figures(0.9, 0.3, 2.0), "random": figures(0.5, 0.5, 1.0)}, figures(0.8, 1.0, 0.0), 10
    )
    assert scale.ends("feature_cosine") == (0.5, 1.0) and scale.ends("kernel_distance") == (1.0, 0.0)
    found = figures(0.85, 0.75, 0.25)
    assert scale.share("feature_cosine", found) == pytest.approx(0.5)
    assert scale.share("kernel_distance", found) == pytest.approx(0.75)
    assert scale.share("label_agreement", found) is None, "the label alone reaches more than the image"
    assert scale.share("feature_cosine", figures(0, 0.1, 0)) == 0
    assert scale.share("kernel_distance", figures(0, 0.1, None)) is None


def test_a_constant_reconstruction_has_figures_and_bad_ones_are_refused():
    judge = recogniser()
    flat = judge.measure(torch.full((120, 3, 32, 32), 0.5))
    assert 0.2 < flat.label_agreement < 0.3 and -1 <= flat.feature_cosine <= 1 and flat.kernel_distance > 0
    single = judge.measure(torch.full((1, 3, 32, 32), 0.5))
    assert single.images == 1 and single.cosine_error == 0 and single.kernel_distance is None
    for bad, message in (
        (torch.full((120, 3, 32, 32), torch.nan), "finite"),
        (torch.zeros(120, 3, 16, 16), "are expected"),
        (torch.zeros(130, 3, 32, 32), "are expected"),
        (torch.zeros(0, 3, 32, 32), "originals must be"),
    ):
        with pytest.raises(AuditError, match=message):
            judge.measure(bad)
    with pytest.raises(AuditError, match="need one label"):
        Recogniser(EVALUATOR, ASKED.images, ASKED.labels[:3])

"""Measures against scikit-image, chance and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from sfumato.errors import AuditError
from sfumato.lab.evaluation.measures import (
    difference_interval,
    excess_leakage,
    measure,
    per_image,
    proportion_interval,
    retrieval_top1,
)


def pair(count: int = 4, height: int = 32, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstructed and original images that resemble each other more or less."""
    source = torch.Generator().manual_seed(height * width)
    originals = torch.randint(0, 256, (count, 3, height, width), generator=source, dtype=torch.uint8)
    blend = torch.linspace(0.1, 0.9, count)[:, None, None, None]
    return torch.lerp(torch.rand(originals.shape, generator=source), originals.float() / 255, blend), originals


@pytest.mark.parametrize(("height", "width"), [(32, 32), (11, 11), (11, 40), (53, 24)])
def test_they_agree_with_scikit_image(height: int, width: int):
    """scikit-image averages over whole windows only, and over the colours; so do we."""
    reconstructed, originals = pair(height=height, width=width)
    mse, ssim = per_image(reconstructed, originals, batch=3)
    for guess, original, error, similarity in zip(reconstructed, originals, mse, ssim, strict=True):
        a, b = guess.double().numpy(), original.double().numpy() / 255
        assert float(error) == pytest.approx(mean_squared_error(b, a), rel=1e-5)
        oracle = structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0
        )
        assert float(similarity) == pytest.approx(oracle, abs=1e-5)
    figures = measure(reconstructed, originals)
    whole = peak_signal_noise_ratio(originals.double().numpy() / 255, reconstructed.double().numpy(), data_range=1)
    assert figures.psnr_db == pytest.approx(whole, abs=1e-4)
    assert (figures.mse, figures.ssim) == pytest.approx((float(mse.mean()), float(ssim.mean())))
    assert figures.images == 4


def test_the_original_itself_is_perfect():
    _, originals = pair()
    figures = measure(originals.float() / 255, originals)
    assert (figures.mse, figures.psnr_db) == (0, math.inf)
    assert figures.ssim == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, o: (r[:3], o), "are expected"),
        (lambda r, o: (r * 255, o), "in \\[0, 1\\]"),
        (lambda r, o: (r - 1, o), "in \\[0, 1\\]"),
        (lambda r, o: (torch.where(r == r.max(), torch.nan, r), o), "finite"),
        (lambda r, o: (torch.where(r == r.max(), torch.inf, r), o), "finite"),
        (lambda r, o: ((r * 255).byte(), o), "floats"),
        (lambda r, o: (r, o.float()), "uint8"),
        (lambda r, o: (r[:0], o[:0]), "originals must be"),
        (lambda r, o: (r[..., :10, :], o[..., :10, :]), "too small"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    with pytest.raises(AuditError, match=message):
        measure(*change(*pair()))


def test_excess_leakage_from_end_to_end():
    assert excess_leakage(0.0, 0.05) == 1
    assert excess_leakage(0.05, 0.05) == 0
    assert excess_leakage(0.09, 0.05) == 0
    assert excess_leakage(0.0125, 0.05) == pytest.approx(0.75)
    for broken in ((math.nan, 0.05), (0.01, 0.0), (-0.01, 0.05), (0.01, math.inf)):
        with pytest.raises(AuditError, match="class mean"):
            excess_leakage(*broken)


def test_retrieval_by_random_embeddings_stays_at_chance():
    source = torch.Generator().manual_seed(0)
    queries, candidates = 4000, 20
    truth = torch.randint(candidates, (queries,), generator=source)
    rate = retrieval_top1(torch.randn(queries, candidates, generator=source), truth)
    chance = 1 / candidates
    assert abs(rate - chance) < 4 * math.sqrt(chance * (1 - chance) / queries)


def test_retrieval_finds_what_stands_out_and_shares_ties():
    truth = torch.tensor([2, 0, 1])
    scores = torch.zeros(3, 4).scatter_(1, truth[:, None], 1.0)
    assert retrieval_top1(scores, truth) == 1
    assert retrieval_top1(-scores, truth) == 0
    assert retrieval_top1(torch.full((3, 4), 0.3), truth) == 0.25
    scores[0, 3] = 1.0  # one rival as similar as the first original: half a hit
    assert retrieval_top1(scores, truth) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 4), torch.tensor([0, 1, 4])),
        (torch.full((3, 4), torch.nan), torch.tensor([0, 1, 2])),
    ],
)
def test_retrieval_refuses_what_makes_no_sense(scores, truth):
    with pytest.raises(AuditError):
        retrieval_top1(scores, truth)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_newcombes_table(hits, n, low, high):
    assert proportion_interval(hits, n) == pytest.approx((low, high), abs=6e-5)
    assert proportion_interval(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_covers_as_often_as_it_says():
    rates = np.random.default_rng(0).binomial(50, 0.1, 2000)
    bounds = [proportion_interval(int(hits), 50, confidence=0.9) for hits in rates]
    assert 0.87 < np.mean([low <= 0.1 <= high for low, high in bounds]) < 0.97
    with pytest.raises(AuditError):
        proportion_interval(3, 2)


def test_the_interval_of_a_difference_is_the_published_one():
    """Newcombe 1998, table II, method 10, examples (a) 56/70 - 48/80 and (d) 5/56 - 0/29."""
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_interval(5, 56, 0, 29) == pytest.approx((-0.0381, 0.1926), abs=1e-4)

"""Explained variance, on images that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from reproduction.explained import explained_variance, least_squares_estimate
from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import LazyPairs


def flat(*greys: float) -> torch.Tensor:
    """Images (N, 3, 8, 8) of one grey each."""
    return torch.tensor(greys)[:, None, None, None].expand(-1, 3, 8, 8).clone()


def halves(*steps: float) -> torch.Tensor:
    """Mid-grey images whose left half is darker by so much, and whose right half brighter."""
    images = flat(*[0.5] * len(steps))
    for image, step in zip(images, steps, strict=True):
        image[:, :, :4] -= step
        image[:, :, 4:] += step
    return images


IMAGES = flat(0.2, 0.4, 0.6, 0.8) + halves(-0.2, 0.1, -0.1, 0.2) - 0.5


def test_by_hand():
    # Mean greys 0.2 0.4 0.6 0.8 have squares about their mean 0.09 + 0.01 + 0.01 + 0.09 = 0.2; a guess that is off by
    # 0.1 everywhere has 4 * 0.01 = 0.04: 1 - 0.04 / 0.2 = 0.8. The layout is untouched by that.
    found = explained_variance(IMAGES + 0.1, IMAGES)
    assert (found.mean_colour, found.layout) == (pytest.approx(0.8), pytest.approx(1.0))
    # Halves of steps -2 1 -1 2 (mean 0) have squares 4 + 1 + 1 + 4 = 10; half of each step leaves 10 / 4.
    guess = flat(0.2, 0.4, 0.6, 0.8) + halves(-0.1, 0.05, -0.05, 0.1) - 0.5
    found = explained_variance(guess, IMAGES)
    assert (found.mean_colour, found.layout) == (pytest.approx(1.0), pytest.approx(0.75))


def test_the_mean_over_the_images_explains_nothing_and_worse_is_below_zero():
    mean = IMAGES.mean(dim=0, keepdim=True).expand_as(IMAGES)
    found = explained_variance(mean, IMAGES)
    assert (found.mean_colour, found.layout) == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.0, abs=1e-5))
    assert explained_variance(IMAGES.flip(0), IMAGES).mean_colour == pytest.approx(-3.0)


def test_what_finer_detail_there_is_plays_no_part():
    fine = torch.zeros(4, 3, 8, 8)
    fine[:, :, :, ::2], fine[:, :, :, 1::2] = 0.05, -0.05
    found = explained_variance(IMAGES + fine, IMAGES)
    assert (found.mean_colour, found.layout) == (pytest.approx(1.0), pytest.approx(1.0))


def test_least_squares_finds_colour_where_the_payload_has_only_colour():
    source = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (300, 3, 4, 4), generator=source, dtype=torch.uint8)
    images = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def payload(x):
        return x.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 2, 2)

    asked = images[200:].float() / 255
    guess = least_squares_estimate(LazyPairs(images[:200], payload), payload(asked))
    found = explained_variance(guess, asked)
    assert found.mean_colour > 0.95 and abs(found.layout) < 0.1


@pytest.mark.parametrize(
    ("guess", "images", "message"),
    [
        (torch.zeros(3, 3, 8, 8), torch.zeros(4, 3, 8, 8), "one shape"),
        (torch.zeros(4, 3, 6, 6), torch.zeros(4, 3, 6, 6), "multiples of 4"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), "at least 2"),
        (torch.zeros(4, 3, 8, 8), flat(0.5, 0.5, 0.5, 0.5), "do not vary"),
    ],
)
def test_what_cannot_be_compared_is_refused(guess, images, message):
    with pytest.raises(AuditError, match=message):
        explained_variance(guess, images)

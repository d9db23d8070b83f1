"""What an obfuscated picture still shows, on pictures that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from reproduction.remains import least_squares_guess, remains
from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import LazyPairs


def flat(*greys: float) -> torch.Tensor:
    """Pictures (N, 3, 8, 8) of one grey each."""
    return torch.tensor(greys)[:, None, None, None].expand(-1, 3, 8, 8).clone()


def halves(*steps: float) -> torch.Tensor:
    """Mid-grey pictures whose left half is darker by so much, and whose right half brighter."""
    pictures = flat(*[0.5] * len(steps))
    for picture, step in zip(pictures, steps, strict=True):
        picture[:, :, :4] -= step
        picture[:, :, 4:] += step
    return pictures


PICTURES = flat(0.2, 0.4, 0.6, 0.8) + halves(-0.2, 0.1, -0.1, 0.2) - 0.5


def test_by_hand():
    # Mean greys 0.2 0.4 0.6 0.8 have squares about their mean 0.09 + 0.01 + 0.01 + 0.09 = 0.2; a guess that is off by
    # 0.1 everywhere has 4 * 0.01 = 0.04: 1 - 0.04 / 0.2 = 0.8. The layout is untouched by that.
    found = remains(PICTURES + 0.1, PICTURES)
    assert (found.mean_colour, found.layout) == (pytest.approx(0.8), pytest.approx(1.0))
    # Halves of steps -2 1 -1 2 (mean 0) have squares 4 + 1 + 1 + 4 = 10; half of each step leaves 10 / 4.
    guess = flat(0.2, 0.4, 0.6, 0.8) + halves(-0.1, 0.05, -0.05, 0.1) - 0.5
    found = remains(guess, PICTURES)
    assert (found.mean_colour, found.layout) == (pytest.approx(1.0), pytest.approx(0.75))


def test_the_mean_over_the_pictures_explains_nothing_and_worse_is_below_zero():
    mean = PICTURES.mean(dim=0, keepdim=True).expand_as(PICTURES)
    found = remains(mean, PICTURES)
    assert (found.mean_colour, found.layout) == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.0, abs=1e-5))
    assert remains(PICTURES.flip(0), PICTURES).mean_colour == pytest.approx(-3.0)


def test_what_finer_detail_there_is_plays_no_part():
    fine = torch.zeros(4, 3, 8, 8)
    fine[:, :, :, ::2], fine[:, :, :, 1::2] = 0.05, -0.05
    found = remains(PICTURES + fine, PICTURES)
    assert (found.mean_colour, found.layout) == (pytest.approx(1.0), pytest.approx(1.0))


def test_least_squares_finds_colour_where_only_colour_travels():
    source = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (300, 3, 4, 4), generator=source, dtype=torch.uint8)
    pictures = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def travels(x):
        return x.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 2, 2)

    asked = pictures[200:].float() / 255
    guess = least_squares_guess(LazyPairs(pictures[:200], travels), travels(asked))
    found = remains(guess, asked)
    assert found.mean_colour > 0.95 and abs(found.layout) < 0.1


@pytest.mark.parametrize(
    ("guess", "pictures", "message"),
    [
        (torch.zeros(3, 3, 8, 8), torch.zeros(4, 3, 8, 8), "one shape"),
        (torch.zeros(4, 3, 6, 6), torch.zeros(4, 3, 6, 6), "multiples of 4"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), "at least 2"),
        (torch.zeros(4, 3, 8, 8), flat(0.5, 0.5, 0.5, 0.5), "do not vary"),
    ],
)
def test_what_cannot_be_compared_is_refused(guess, pictures, message):
    with pytest.raises(AuditError, match=message):
        remains(guess, pictures)

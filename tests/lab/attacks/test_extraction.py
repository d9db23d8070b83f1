"""Training-set extraction: memory is told from resemblance, by correlations that numpy confirms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scenes import images
from sfumato.lab.attacks.extraction import extract, memorises

TRAIN, TEST = images(120), images(60, seed=1)


def test_copies_of_training_images_are_found_in_any_brightness_and_contrast() -> None:
    decoded = TRAIN.images[:7].float() / 255 * 0.5 + 0.2
    found = extract("a", "b", decoded, TRAIN, TEST)
    assert found.train_copied >= 7 and found.train_correlation == pytest.approx(1, abs=1e-3)
    assert found.test_copied == 0 and memorises(found)


def test_what_resembles_both_alike_is_no_memory() -> None:
    everything = torch.cat([TRAIN.images, TEST.images]).float() / 255
    smooth = torch.linspace(0, 1, 16).expand(2, 3, 16, 16).clone()
    for decoded in (everything.mean(dim=0, keepdim=True), smooth, torch.full((1, 3, 16, 16), 0.5)):
        assert not memorises(extract("a", "b", decoded, TRAIN, TEST))
    grey = extract("a", "b", torch.full((1, 3, 16, 16), 0.5), TRAIN, TEST)
    assert grey.train_correlation == 0, "an image without any contrast resembles nothing"


def test_the_figures_are_those_of_numpy() -> None:
    decoded = (torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    blend = 0.75 * TRAIN.images[:20].float() / 255 + 0.25 * TEST.images[:20].float() / 255
    decoded = torch.cat([decoded, (blend * 255).round() / 255])
    found = extract("a", "b", decoded, TRAIN, TEST)
    flat = decoded.flatten(1).numpy()
    for images_, name in ((TRAIN, "train"), (TEST, "test")):
        known = images_.images.flatten(1).numpy() / 255
        table = np.corrcoef(flat, known)[: len(flat), len(flat) :]
        assert getattr(found, f"{name}_correlation") == pytest.approx(table.max(), abs=1e-5)
        assert getattr(found, f"{name}_recognised") == (table.max(axis=0) > 0.9).sum()
        errors = ((flat[:, None] - known[None]) ** 2).mean(axis=2)
        assert getattr(found, f"{name}_mse") == pytest.approx(errors.min(), abs=1e-5)


def test_equal_images_count_once_and_large_ones_are_compared_smaller() -> None:
    big = [replace(part, images=part.images.repeat_interleave(8, 2).repeat_interleave(8, 3)) for part in (TRAIN, TEST)]
    decoded = big[0].images[:3].float() / 255
    found = extract("a", "b", torch.cat([decoded, decoded]), *big)
    assert found.decoded_images == 3 and found.train_copied >= 3

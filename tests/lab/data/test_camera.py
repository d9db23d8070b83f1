"""Frames of a fixed camera: each difference by itself, against numpy."""

import numpy as np
import pytest
import torch

from scenes import images
from sfumato.lab.data.camera import STILL, Camera, frames

SCENE = images(1, side=32).images[0]


def take(camera: Camera, count: int = 200, seed: int = 0) -> torch.Tensor:
    return frames(SCENE, count, camera, torch.Generator().manual_seed(seed))


def test_a_camera_that_stands_still_takes_the_scene_itself():
    assert (take(STILL, 5) == SCENE).all()


def test_frames_are_reproducible():
    assert torch.equal(take(Camera()), take(Camera())) and not torch.equal(take(Camera()), take(Camera(), seed=1))


def test_noise_has_its_deviation():
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    taken = frames(grey, 100, Camera(0, 0, 0, 0.02), torch.Generator().manual_seed(0)).double() / 255
    assert float(taken.std()) == pytest.approx(0.02, rel=0.05)


def test_brightness_scales_the_whole_frame():
    taken = take(Camera(0, 0, 0.05, 0)).double()
    factors = taken.mean(dim=(1, 2, 3)) / SCENE.double().mean()
    assert float(factors.std()) == pytest.approx(0.05, rel=0.25)
    assert float((taken[0] - (factors[0] * SCENE).clamp(0, 255)).abs().max()) < 4


def test_shifts_move_a_gradient_by_their_pixels():
    ramp = (4 * torch.arange(32, dtype=torch.uint8)).expand(3, 32, 32)
    taken = frames(ramp, 400, Camera(1 / 32, 0, 0, 0), torch.Generator().manual_seed(0)).double()
    pixels = (taken[:, 0, 16, 16] - 64) / 4
    assert float(pixels.std()) == pytest.approx(1, rel=0.15) and np.ptp(taken[0, 0, :, 16].numpy()) == 0


def test_zoom_scales_around_the_centre():
    ramp = (4 * torch.arange(32, dtype=torch.uint8)).expand(3, 32, 32)
    taken = frames(ramp, 400, Camera(0, 0.05, 0, 0), torch.Generator().manual_seed(0)).double()
    slopes = (taken[:, 0, 16, 24] - taken[:, 0, 16, 8]) / (4 * 16)
    assert float(slopes.mean()) == pytest.approx(1, abs=0.02) and float(slopes.std()) == pytest.approx(0.05, rel=0.2)

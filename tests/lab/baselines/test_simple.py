"""The methods without training, against what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sfumato.errors import TrainingError
from sfumato.lab.baselines import METHODS, build
from sfumato.lab.baselines.method import NoisyMethod


def images(count: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_shape_and_type(name):
    small = {"scramble-blocks": 8, "pca": 10}
    method = build(name, 16, 24, strength=small.get(name)).eval()
    out = method(images())
    assert out.shape == (3, 3, 16, 24)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert torch.equal(method(images()), method(images())) is not method.stochastic
    assert method.stochastic is isinstance(method, NoisyMethod)
    assert (method.default is None) is (method.strength_help == "")


def test_identity_changes_nothing():
    assert torch.equal(build("identity", 16, 24)(images()), images())


def test_blur_is_the_convolution_written_out():
    sigma, x = 0.7, images(1, 8, 8)
    radius = math.ceil(3 * sigma)
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(x[0].numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    expected = np.zeros((3, 8, 8))
    for row in range(8):
        for column in range(8):
            patch = padded[:, row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            expected[:, row, column] = (patch * np.outer(weights, weights)).sum(axis=(1, 2))
    np.testing.assert_allclose(build("blur", 8, 8, strength=sigma)(x)[0].numpy(), expected, atol=1e-6)


def test_blur_takes_images_smaller_than_its_kernel():
    assert build("blur", 4, 4, strength=5)(images(1, 4, 4)).std() < 0.05


def test_blurring_the_face_blurs_the_middle_and_leaves_the_corners():
    x = images(2, 20, 16)
    out, blurred = build("blur-face", 20, 16, strength=2)(x), build("blur", 20, 16, strength=2)(x)
    assert torch.allclose(out[:, :, 6:14, 5:11], blurred[:, :, 6:14, 5:11], atol=1e-6)
    for rows, columns in ((slice(2), slice(4)), (slice(-2, None), slice(-4, None))):
        assert torch.equal(out[:, :, rows, columns], x[:, :, rows, columns])


def test_pixelate_paints_squares_with_their_mean():
    x = images()
    out = build("pixelate", 16, 24, strength=4)(x)
    squares = out.reshape(3, 3, 4, 4, 6, 4)
    assert torch.equal(squares, squares[:, :, :, :1, :, :1].expand_as(squares))
    torch.testing.assert_close(squares[..., 0, :, 0], x.reshape(3, 3, 4, 4, 6, 4).mean(dim=(3, 5)))


def test_downsample_keeps_flat_images_and_forgets_fine_ones():
    method = build("downsample", 16, 24, strength=2)
    flat = torch.full((1, 3, 16, 24), 0.3)
    torch.testing.assert_close(method(flat), flat)
    board = (torch.arange(16)[:, None] + torch.arange(24)) % 2
    torch.testing.assert_close(method(board.float().expand(1, 3, 16, 24)), torch.full((1, 3, 16, 24), 0.5))


@pytest.mark.parametrize(("name", "strength"), [("scramble-pixels", 4), ("scramble-blocks", 4)])
def test_scrambling_is_a_permutation_that_its_key_undoes(name, strength):
    places = torch.arange(16 * 24).float().reshape(1, 1, 16, 24).expand(1, 3, 16, 24)
    method = build(name, 16, 24, strength=strength, seed=1)
    moved = method(places)[0, 0].flatten().long()
    assert torch.equal(moved.sort().values, torch.arange(16 * 24))
    assert not torch.equal(moved, torch.arange(16 * 24))
    x = images()
    undone = torch.empty_like(x).flatten(2)
    undone[:, :, moved] = method(x).flatten(2)
    assert torch.equal(undone.view_as(x), x)
    assert torch.equal(method(x), build(name, 16, 24, strength=strength, seed=1)(x))
    assert not torch.equal(method(x), build(name, 16, 24, strength=strength, seed=2)(x))


def test_scrambled_pixels_stay_in_their_tile_and_blocks_stay_whole():
    x = images()
    tiles = build("scramble-pixels", 16, 24, strength=4)(x).reshape(3, 3, 4, 4, 6, 4)
    torch.testing.assert_close(tiles.mean(dim=(3, 5)), x.reshape(3, 3, 4, 4, 6, 4).mean(dim=(3, 5)))
    blocks = build("scramble-blocks", 16, 24, strength=8)(x)
    original = {x[0, :, r : r + 8, c : c + 8].numpy().tobytes() for r in (0, 8) for c in (0, 8, 16)}
    assert {blocks[0, :, r : r + 8, c : c + 8].numpy().tobytes() for r in (0, 8) for c in (0, 8, 16)} == original


@pytest.mark.parametrize("name", ["noise", "shredder", "cloak"])
def test_the_noise_is_around_the_mean_and_as_large_as_stated(name):
    torch.manual_seed(0)
    method = build(name, 8, 8)
    assert isinstance(method, NoisyMethod)
    with torch.no_grad():
        if name == "shredder":
            method.location.uniform_(-1, 1)
            method.log_scale.uniform_(-3, 0)
        if name == "cloak":
            method.rho.uniform_(-2, 2)
            method.kept[0] = 0
        x = images(1, 8, 8)
        noise = method(x.expand(4000, 3, 8, 8)) - method.mean(x)
    std = method.noise_std()
    assert std.shape == (3, 8, 8)
    torch.testing.assert_close(noise.std(dim=0), std, rtol=0.15, atol=1e-7)
    assert (noise.mean(dim=0).abs() <= 6 * std / 4000**0.5 + 1e-7).all()
    if name == "cloak":
        assert not std[0].any()
        assert std[1:].all()
    # The fourth moment distinguishes a Laplace distribution (6) from a Gaussian one (3).
    kurtosis = float(((noise[:, 1:] / std[1:]) ** 4).mean())
    assert kurtosis == pytest.approx({"gaussian": 3, "laplace": 6}[method.noise_kind], rel=0.15)


def test_noise_has_the_strength_as_its_deviation():
    assert torch.equal(build("noise", 8, 8, strength=0.25).noise_std(), torch.full((3, 8, 8), 0.25))


@pytest.mark.parametrize(
    ("name", "strength", "says"),
    [
        ("sharpen", None, "no baseline is called 'sharpen'"),
        ("identity", 1, "no strength"),
        ("blur", 0, "above 0"),
        ("blur", float("nan"), "above 0"),
        ("noise", -1, "above 0"),
        ("pixelate", 2.5, "whole number"),
        ("pixelate", 5, "must divide both sides of 16x24"),
        ("scramble-blocks", 7, "must divide"),
        ("pca", 5000, "1152 components"),
        ("cloak", 1, "below 1"),
        ("nopeek", 0, "above 0"),
    ],
)
def test_what_is_not_possible_is_said(name, strength, says):
    with pytest.raises(TrainingError, match=says):
        build(name, 16, 24, strength=strength)


@pytest.mark.parametrize("name", ["nopeek", "max-entropy", "joint"])
def test_encoders_refuse_sides_that_they_cannot_halve_thrice(name):
    with pytest.raises(TrainingError, match="multiples of 8"):
        build(name, 16, 20)

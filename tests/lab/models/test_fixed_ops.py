import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from sfumato.lab.models.fixed_ops import LEVEL, Removal, cosines, round_to_8_bits

IMAGES = torch.rand(3, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 4, 16])
def test_low_frequencies_are_removed_as_scipy_would(count):
    spectrum = dctn(IMAGES.numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, :count, :count] = 0
    expected = idctn(spectrum, axes=(2, 3), norm="ortho")
    got = Removal(frequencies=count)(IMAGES)
    assert np.allclose(got.numpy(), expected, atol=1e-6)


def test_what_was_removed_is_gone_and_stays_gone():
    removal = Removal(colour=True, frequencies=3)
    once = removal(IMAGES)
    assert torch.allclose(removal(once), once, atol=1e-6)
    rows, columns = torch.arange(16.0).double(), torch.arange(24.0).double()
    slow = torch.cos(torch.pi / 16 * (rows + 0.5) * 2)[:, None] * torch.cos(torch.pi / 24 * (columns + 0.5))
    assert torch.allclose(removal(IMAGES + slow), once, atol=1e-5), "two of the lowest frequencies change nothing"


def test_the_first_frequency_is_the_mean():
    assert torch.allclose(Removal(frequencies=1)(IMAGES).mean(dim=(2, 3)), torch.zeros(3, 3).double(), atol=1e-7)


def test_colour_is_removed_by_the_eyes_weights():
    grey = Removal(colour=True)(IMAGES)
    assert torch.allclose(
        grey, (0.299 * IMAGES[:, :1] + 0.587 * IMAGES[:, 1:2] + 0.114 * IMAGES[:, 2:]).expand_as(grey)
    )
    assert torch.allclose(Removal(colour=True)(grey), grey)


def test_the_waves_are_orthonormal():
    waves = cosines(16, 16)
    assert torch.allclose(waves @ waves.T, torch.eye(16), atol=1e-6)


def test_rounding_gives_what_an_image_file_holds():
    x = torch.linspace(-0.5, 1.5, 1001)
    rounded = round_to_8_bits(x)
    levels = rounded / LEVEL
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert torch.equal(rounded, torch.from_numpy(np.rint(x.numpy().clip(0, 1) * np.float32(255)) / np.float32(255)))
    assert torch.equal(round_to_8_bits(rounded), rounded)


def test_the_gradient_passes_straight_through_within_the_range_and_not_beyond():
    x = torch.tensor([-0.1, 0.0, 0.3, 1.0, 1.1]).requires_grad_()
    (round_to_8_bits(x) * torch.arange(1.0, 6)).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 3.0, 4.0, 0.0]))

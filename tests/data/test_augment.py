"""Against a slow reference that moves one picture at a time with numpy."""

import numpy as np
import pytest
import torch

from sfumato.data import Augmentation, augment

COUNT, HEIGHT, WIDTH = 64, 6, 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator(9))


def variants(picture: np.ndarray, padding: int) -> dict[tuple[int, int, bool], bytes]:
    """Everything that may become of a picture, by shift and flip."""
    padded = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    found = {}
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            window = padded[:, down : down + HEIGHT, right : right + WIDTH]
            found[down, right, False] = window.tobytes()
            found[down, right, True] = window[:, :, ::-1].tobytes()
    return found


def moves(images: torch.Tensor, out: torch.Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """What was done to each picture; fails if one is not a shifted and flipped one of itself."""
    done = []
    for before, after in zip(images.numpy(), out.numpy(), strict=True):
        by_pixels = {pixels: move for move, pixels in variants(before, padding).items()}
        done.append(by_pixels[after.tobytes()])
    return done


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_each_picture_is_shifted_and_flipped_as_one(images, flip, padding):
    out = augment(images, Augmentation(flip=flip, crop_padding=padding), generator())
    assert out.shape == images.shape and out.dtype == images.dtype
    done = moves(images, out, padding)
    assert {flipped for *_, flipped in done} == ({True, False} if flip else {False})
    assert {down for down, *_ in done} == set(range(2 * padding + 1)), "some shifts never happen"
    assert {right for _, right, _ in done} == set(range(2 * padding + 1)), "some shifts never happen"
    if padding:
        assert any(down != right for down, right, _ in done), "rows and columns should move on their own"


def test_half_of_the_pictures_are_flipped():
    images = torch.arange(4).repeat(4000, 3, 1, 1)
    out = augment(images, Augmentation(flip=True), generator())
    flipped = int((out[:, 0, 0, 0] == 3).sum())
    assert 1800 < flipped < 2200  # six standard deviations


def test_the_same_state_gives_the_same_pictures_and_another_one_others(images):
    plan = Augmentation(flip=True, crop_padding=2)
    assert torch.equal(augment(images, plan, generator(1)), augment(images, plan, generator(1)))
    assert not torch.equal(augment(images, plan, generator(1)), augment(images, plan, generator(2)))


def test_nothing_asked_nothing_done(images):
    assert torch.equal(augment(images, Augmentation(flip=False), generator()), images)


def test_the_pictures_given_stay_as_they_are(images):
    before = images.clone()
    augment(images, Augmentation(flip=True, crop_padding=3), generator())
    assert torch.equal(images, before)


def test_floats_are_moved_like_bytes(images):
    plan = Augmentation(flip=True, crop_padding=2)
    assert torch.equal(augment(images.float(), plan, generator()), augment(images, plan, generator()).float())

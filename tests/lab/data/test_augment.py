"""Against a slow reference that moves one image at a time with numpy."""

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.lab.data import Augmentation, augment
from sfumato.lab.data.augment import Changes, Mixup, cut_out, random_boxes, random_squares, resized_crops

COUNT, HEIGHT, WIDTH = 64, 6, 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator(9))


def variants(image: np.ndarray, padding: int) -> dict[tuple[int, int, bool], bytes]:
    """Everything that may become of an image, by shift and flip."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    found = {}
    for down in range(2 * padding + 1):
        for across in range(2 * padding + 1):
            window = padded[:, down : down + HEIGHT, across : across + WIDTH]
            found[down, across, False] = window.tobytes()
            found[down, across, True] = window[:, :, ::-1].tobytes()
    return found


def moves(images: torch.Tensor, out: torch.Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """What was done to each image; fails if one is not a shifted and flipped one of itself."""
    done = []
    for before, after in zip(images.numpy(), out.numpy(), strict=True):
        by_pixels = {pixels: move for move, pixels in variants(before, padding).items()}
        done.append(by_pixels[after.tobytes()])
    return done


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_each_image_is_shifted_and_flipped_as_one(images, flip, padding):
    out = augment(images, Augmentation(flip=flip, crop_padding=padding), generator())
    assert out.shape == images.shape and out.dtype == images.dtype
    done = moves(images, out, padding)
    assert {flipped for *_, flipped in done} == ({True, False} if flip else {False})
    assert {down for down, *_ in done} == set(range(2 * padding + 1)), "some shifts never happen"
    assert {across for _, across, _ in done} == set(range(2 * padding + 1)), "some shifts never happen"
    if padding:
        assert any(down != across for down, across, _ in done), "rows and columns should move on their own"


def test_half_of_the_images_are_flipped():
    images = torch.arange(4).repeat(4000, 3, 1, 1)
    out = augment(images, Augmentation(flip=True), generator())
    flipped = int((out[:, 0, 0, 0] == 3).sum())
    assert 1800 < flipped < 2200  # six standard deviations


def test_the_same_state_gives_the_same_images_and_another_one_others(images):
    plan = Augmentation(flip=True, crop_padding=2)
    assert torch.equal(augment(images, plan, generator(1)), augment(images, plan, generator(1)))
    assert not torch.equal(augment(images, plan, generator(1)), augment(images, plan, generator(2)))


def test_nothing_asked_nothing_done(images):
    assert torch.equal(augment(images, Augmentation(flip=False), generator()), images)


def test_the_images_given_stay_as_they_are(images):
    before = images.clone()
    augment(images, Augmentation(flip=True, crop_padding=3), generator())
    assert torch.equal(images, before)


def test_floats_are_moved_like_bytes(images):
    plan = Augmentation(flip=True, crop_padding=2)
    assert torch.equal(augment(images.float(), plan, generator()), augment(images, plan, generator()).float())


def test_a_crop_is_what_pillow_cuts_out_and_resizes():
    height, width = 40, 56
    source = np.random.default_rng(3)
    coarse = source.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    boxes = torch.tensor([[3.0, 7.0, 21.0, 30.0], [0.0, 0.0, 40.0, 56.0], [11.5, 20.25, 28.0, 33.0]])
    batch = torch.from_numpy(image.copy()).permute(2, 0, 1).expand(3, -1, -1, -1)
    found = resized_crops(batch, boxes)
    assert found.dtype == torch.uint8
    for crop, (top, left, rows, columns) in zip(found, boxes.tolist(), strict=True):
        box = (left, top, left + columns, top + rows)
        wanted = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box)
        difference = np.abs(crop.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted).astype(int))
        assert difference[2:-2, 2:-2].max() <= 1, "at its edge, Pillow does not read beyond the box"
    assert torch.equal(found[1], batch[1])


def test_boxes_lie_within_the_image_and_have_the_shares_and_aspects_asked_for():
    top, left, height, width = random_boxes(20_000, 96, 128, 0.2, generator()).double().unbind(1)
    assert min(float(top.min()), float(left.min())) >= 0
    assert float((top + height).max()) <= 96 + 1e-4 and float((left + width).max()) <= 128 + 1e-4
    shares, aspects = height * width / (96 * 128), width / height
    assert 0.2 - 1e-6 <= float(shares.min()) < 0.21 and 0.95 < float(shares.max()) <= 1 + 1e-6
    assert 3 / 4 - 1e-6 <= float(aspects.min()) < 0.76 and 1.32 < float(aspects.max()) <= 4 / 3 + 1e-6
    small = shares < 0.5  # such boxes fit whatever their aspect: there nothing is sampled again
    assert abs(float(shares[small].mean()) - 0.35) < 0.005
    assert abs(float(aspects[small].log().mean())) < 0.01


def test_of_an_image_too_long_for_any_box_a_part_is_shown():
    boxes = random_boxes(50, 8, 200, 0.9, generator())
    assert bool((boxes[:, 2] <= 8).all()) and bool((boxes[:, 2:] > 1).all())


def test_zoom_is_repeatable_and_leaves_an_image_of_one_colour_alone(images):
    plan = Augmentation(flip=True, zoom=0.3)
    assert torch.equal(augment(images, plan, generator(1)), augment(images, plan, generator(1)))
    assert not torch.equal(augment(images, plan, generator(1)), augment(images, plan, generator(2)))
    plain = images[:, :, :1, :1].expand_as(images)
    assert torch.equal(augment(plain, plan, generator(1)), plain)
    assert torch.equal(
        augment(images, Augmentation(zoom=1.0), generator(1)), augment(images, Augmentation(), generator(1))
    )


@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_paints_one_grey_square_around_any_pixel(side, dtype):
    images = torch.zeros(4000, 3, HEIGHT, WIDTH, dtype=dtype)
    out = cut_out(images, side, random_squares(4000, HEIGHT, WIDTH, generator()))
    grey = 128 if dtype == torch.uint8 else 0.5
    assert set(out.unique().tolist()) <= {0, grey} and not images.any()
    cut = (out == grey).numpy()
    assert (cut == cut[:, :1]).all(), "the same in all channels"
    seen = {}
    for one in cut[:, 0]:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        assert len(rows) and one.sum() == len(rows) * len(columns), "a rectangle"
        area = rows[0], rows[-1], columns[0], columns[-1]
        seen[area] = seen.get(area, 0) + 1
    wanted = set()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            top, left = row - side // 2, column - side // 2
            bottom, right = min(HEIGHT, top + side) - 1, min(WIDTH, left + side) - 1
            wanted.add((max(0, top), bottom, max(0, left), right))
    assert seen.keys() == wanted, "every pixel is a centre, and the square ends at the edges"
    mean_area = float(np.mean([min(HEIGHT, r - side // 2 + side) - max(0, r - side // 2) for r in range(HEIGHT)]))
    mean_area *= float(np.mean([min(WIDTH, c - side // 2 + side) - max(0, c - side // 2) for c in range(WIDTH)]))
    assert cut[:, 0].sum(axis=(1, 2)).mean() == pytest.approx(mean_area, rel=0.05)


def test_an_augmentation_with_cutout_also_moves_and_depends_on_the_state_alone(images):
    plan = Augmentation(flip=True, crop_padding=1, cutout=3)
    out = augment(images, plan, generator(1))
    assert torch.equal(out, augment(images, plan, generator(1)))
    whole = augment(images, Augmentation(flip=True, crop_padding=1), generator(1))
    changed = (out != whole).any(dim=1)
    assert changed.flatten(1).any(dim=1).all() and int(changed.flatten(1).sum(dim=1).max()) <= 9


@pytest.mark.parametrize(
    "plan", [Augmentation(crop_padding=2, cutout=3), Augmentation(zoom=0.4), Augmentation(flip=False)]
)
def test_an_image_changes_alike_in_the_whole_set_and_in_any_batch(images, plan):
    changes = Changes.sample(COUNT, HEIGHT, WIDTH, plan, generator(1))
    whole = changes(images)
    assert torch.equal(whole, augment(images, plan, generator(1)))
    rows = torch.tensor([5, 0, 63, 5])
    assert torch.equal(changes.of(rows)(images[rows]), whole[rows])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixtures_are_convex_and_mostly_of_the_image_itself(alpha):
    torch.manual_seed(0)
    rows = torch.rand(500, 3, 4, 4)
    mix = Mixup.sample(500, alpha, whole=7)
    out = mix(rows)
    for place in range(500):
        own, other, share = rows[place], rows[mix.partners[place]], float(mix.shares[place])
        assert 0.5 <= share <= 1
        assert torch.allclose(out[place], share * own + (1 - share) * other, atol=1e-6)
    assert torch.equal(out[:7], rows[:7]) and sorted(mix.partners.tolist()) == list(range(500))
    labels = mix(torch.eye(500))
    assert torch.allclose(labels.sum(dim=1), torch.ones(500), atol=1e-6) and bool((labels >= 0).all())
    assert torch.equal(labels.argmax(dim=1), torch.arange(500))


def test_the_shares_are_the_larger_parts_of_a_beta_distribution():
    torch.manual_seed(0)
    shares = Mixup.sample(20_000, 1.0).shares  # the larger part of a uniform number: uniform in [0.5, 1]
    assert shares.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([0.625, 0.75, 0.875], abs=0.01)
    # E max(s, 1 - s) = 1/2 + E |s - 1/2|, which for beta(1/2, 1/2) is 1/pi
    assert float(Mixup.sample(20_000, 0.5).shares.mean()) == pytest.approx(0.5 + 1 / np.pi, abs=0.01)

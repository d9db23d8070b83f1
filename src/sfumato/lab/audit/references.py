"""The best guesses from a few known facts about an image, such as the label: the scale for attackers' errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.audit.schema import Reference
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.measures import measure
from sfumato.progress import Progress, silent, tracked

BITS = (1, 2, 4, 8)
"""Beyond the label, in a code for the images of each class."""
BLOCKS = (4, 8, 16)
"""On a side, in a grid of blocks of which only the mean colour is known."""
COMPONENTS = (10, 30, 100)
MAX_ITERATIONS = 30
"""Of Lloyd's algorithm; on CIFAR-10 it has mostly stopped by itself by then."""


def class_means(train: ImageSet) -> Tensor:
    """Return the mean image of each class, (classes, 3, H, W) float32 in [0, 1].

    Raises:
        AuditError: a class without images.
    """
    return torch.stack([_of_class(train, c).float().mean(dim=0) / 255 for c in range(len(train.names))])


def references(train: ImageSet, test: ImageSet, *, seed: int = 0, progress: Progress = silent) -> tuple[Reference, ...]:
    """Return the whole table, measured on `test`, from what can be learned from `train`.

    The row of random images is one sample: its error has a standard error of 0.0006 on CIFAR-10's 10,000 test images.
    The rows with more bits depend on a local optimum: from seed to seed they differ by a unit of the third figure.
    The other rows are exact, or nearly so. Rows that do not fit the images are left out: blocks that do not divide the
    sides, more components or codes than there are images. The stage of the progress is "references".

    Raises:
        AuditError: a class without training images, or sets that differ in size or classes.
    """
    _check(train, test)
    rows = tracked(_guesses(train, test, seed), "references", progress)
    return tuple(
        Reference(name=name, bits=bits, **vars(measure(guess().clamp(0, 1), test.images))) for name, bits, guess in rows
    )


def _guesses(train: ImageSet, test: ImageSet, seed: int) -> list[tuple[str, int | None, Callable[[], Tensor]]]:
    """Each row's name, its bits, and what makes its guesses (N, 3, H, W) float32, still to be cut to [0, 1]."""
    height, width = test.images.shape[2:]
    per_class = train.labels.bincount(minlength=len(train.names))
    means, images = class_means(train), test.images.float() / 255
    overall = torch.einsum("c,cijk->ijk", per_class / len(train), means)
    components = cache(lambda: _components(train, max(COMPONENTS), seed))
    return [
        ("a random training image of the same class", None, lambda: _random(train, test, seed)),
        ("mid-grey", None, lambda: torch.full_like(images, 0.5)),
        ("the mean training image", None, lambda: overall.expand_as(images)),
        ("the mean image of the same class", 0, lambda: means[test.labels]),
        *(
            (f"label and {bits} more bit{'s' * (bits > 1)}", bits, partial(_coded, train, test, 2**bits, seed))
            for bits in BITS
            if 2**bits <= int(per_class.min())
        ),
        ("the image's mean colour", None, lambda: images.mean(dim=(2, 3), keepdim=True).expand_as(images)),
        *(
            (f"{blocks}x{blocks} block means", None, partial(_blocks, images, blocks))
            for blocks in BLOCKS
            if height % blocks == width % blocks == 0 and max(height, width) > blocks
        ),
        *(
            (f"{count} principal components", None, partial(_projected, images, overall, components, count))
            for count in COMPONENTS
            if count < min(len(train), images[0].numel())
        ),
    ]


def _random(train: ImageSet, test: ImageSet, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    sampled = torch.empty_like(test.images)
    for label in range(len(test.names)):
        own, mine = _of_class(train, label), test.labels == label
        sampled[mine] = own[torch.randint(len(own), (int(mine.sum()),), generator=source)]
    return sampled.float() / 255


def _coded(train: ImageSet, test: ImageSet, centres: int, seed: int) -> Tensor:
    """The centre of its class that each test image is nearest to."""
    source = torch.Generator().manual_seed(seed)
    guess = torch.empty(test.images.shape)
    for label in range(len(test.names)):
        mine = test.labels == label
        codebook = k_means(_of_class(train, label).flatten(1).float() / 255, centres, source)
        nearest = _nearest(test.images[mine].flatten(1).float() / 255, codebook)
        guess[mine] = codebook[nearest].reshape(-1, *guess.shape[1:])
    return guess


def k_means(points: Tensor, centres: int, source: torch.Generator) -> Tensor:
    """Return centres (n, d) with a small squared distance to the points, (N, d) float32: a local optimum.

    It depends on the start, for which `source` is.

    Source: Lloyd 1982; started as in Arthur and Vassilvitskii 2007, section 2.2.
    """
    offset = points.mean(dim=0)
    points = points - offset  # for accuracy: distances are differences of squares
    squares = points.square().sum(dim=1)
    found = points[torch.randint(len(points), (1,), generator=source)]
    distance = _squared_distance(points, squares, found)
    while len(found) < centres:
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        further = points[torch.multinomial(weights, 1, generator=source)]
        distance = torch.minimum(distance, _squared_distance(points, squares, further))
        found = torch.cat([found, further])
    nearest = _nearest(points, found)
    for _ in range(MAX_ITERATIONS):
        sizes = nearest.bincount(minlength=centres)[:, None]
        sums = torch.zeros_like(found).index_add_(0, nearest, points)
        found = torch.where(sizes > 0, sums / sizes.clamp_min(1), found)
        before, nearest = nearest, _nearest(points, found)
        if torch.equal(before, nearest):
            break
    return found + offset


def _squared_distance(points: Tensor, squares: Tensor, centre: Tensor) -> Tensor:
    """Return that of each point to `centre` (1, d), from the points' own squares: no copy of the points is made."""
    return (squares - 2 * (points @ centre[0]) + centre.square().sum()).clamp_min(0)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(dim=1) - 2 * points @ centres.T).argmin(dim=1)


def _blocks(images: Tensor, blocks: int) -> Tensor:
    size = (images.shape[2], images.shape[3])
    return F.interpolate(F.adaptive_avg_pool2d(images, blocks), size=size)


def _components(train: ImageSet, count: int, seed: int) -> Tensor:
    """The first principal axes of the training images, (d, at most count)."""
    points = train.images.flatten(1).float() / 255
    with torch.random.fork_rng(devices=[]):  # the randomised method takes no generator
        torch.manual_seed(seed)
        _, _, axes = torch.pca_lowrank(points, q=min(count + 20, *points.shape), niter=2)
    return axes


def _projected(images: Tensor, mean: Tensor, components: Callable[[], Tensor], count: int) -> Tensor:
    axes = components()[:, :count]
    flat = (images - mean).flatten(1)
    return (flat @ axes @ axes.T).reshape(images.shape) + mean


def _of_class(images: ImageSet, label: int) -> Tensor:
    own = images.images[images.labels == label]
    if not len(own):
        raise AuditError(f"class {images.names[label]!r} has no training images: nothing is known of it")
    return own


def _check(train: ImageSet, test: ImageSet) -> None:
    if train.names != test.names or train.images.shape[1:] != test.images.shape[1:] or not len(test):
        raise AuditError(
            f"{len(test)} test images {tuple(test.images.shape[1:])} of {len(test.names)} classes cannot be compared "
            f"with training images {tuple(train.images.shape[1:])} of {len(train.names)} classes"
        )

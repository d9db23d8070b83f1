"""A public photograph for each answer, in place of a learned drawing: what every classifier understands."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import RecipeError
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models.sketch import Photographs

log = logging.getLogger(__name__)

_LOOKED_AT = 20_000
_MOST_BYTES = 64 * 2**20
_NAMED = 3


@torch.no_grad()
def log_probabilities_of(images: Tensor, classifiers: Sequence[nn.Module]) -> Tensor:
    """What classifiers think of images, on average.

    Args:
        images: (N, 3, H, W) uint8.
        classifiers: images in [0, 1] to logits; in evaluation mode.

    Returns:
        The mean of their logarithms of probabilities, (N, classes) float32.
    """
    console = Console(stderr=True)
    parts = torch.split(images, INFERENCE_BATCH)
    shown = track(parts, "choosing photographs", console=console, transient=True, disable=not console.is_terminal)
    return torch.cat(
        [
            torch.stack([F.log_softmax(net(part.float() / 255).float(), dim=1) for net in classifiers]).mean(dim=0)
            for part in shown
        ]
    )


def put_in(photographs: Photographs, images: Tensor, scores: Tensor, labels: Sequence[str]) -> None:
    """Gives each answer the image that scores highest for it.

    Args:
        photographs: is changed in place.
        images: (N, 3, H, W) uint8, public ones: what is chosen is sent in place of every image with that answer.
        scores: (N, classes) float, such as logarithms of probabilities.
        labels: the classes' names.

    Raises:
        RecipeError: there are too many classes for images this large.
    """
    size = photographs.images.numel()
    if size > _MOST_BYTES:
        raise RecipeError(
            f'drawing = "photographs": {len(labels)} photographs take {size / 2**20:.0f} MiB, at most '
            f'{_MOST_BYTES // 2**20} are allowed; leave it at "learned"'
        )
    never = sorted(set(range(len(labels))) - set(scores.argmax(dim=1).tolist()))
    if never:
        log.warning(
            "no image is taken for %s: the likeliest one stands for it, which other classifiers may not understand",
            ", ".join(repr(labels[k]) for k in never[:_NAMED]) + (", ..." if len(never) > _NAMED else ""),
        )
    photographs.images.copy_(images[scores.argmax(dim=0)])


def choose(photographs: Photographs, images: Tensor, classifiers: Sequence[nn.Module], labels: Sequence[str]) -> None:
    """Gives each answer the image, of the first so many, that all classifiers are surest of; see `put_in`."""
    images = images[:_LOOKED_AT]
    put_in(photographs, images, log_probabilities_of(images, classifiers), labels)

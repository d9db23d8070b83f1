"""A public image per class in place of a learned decoder: one that all classifiers are sure of."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import RecipeError
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models.sketch import Photographs
from sfumato.progress import Progress, silent, tracked

log = logging.getLogger(__name__)

_MOST_BYTES = 64 * 2**20
_NAMED = 3


@torch.no_grad()
def log_probabilities_of(images: Tensor, classifiers: Sequence[nn.Module], progress: Progress = silent) -> Tensor:
    """Return the mean log-probabilities of classifiers (images in [0, 1] to logits), (N, classes) float32.

    Images are (N, 3, H, W) uint8.
    """
    return torch.cat(
        [
            torch.stack([F.log_softmax(net(part.float() / 255).float(), dim=1) for net in classifiers]).mean(dim=0)
            for part in tracked(torch.split(images, INFERENCE_BATCH), "choosing photographs", progress)
        ]
    )


def put_in(photographs: Photographs, images: Tensor, scores: Tensor, labels: Sequence[str]) -> None:
    """Give each class the image that scores highest for it.

    Images are (N, 3, H, W) uint8 and public: a chosen one is sent for every image of its class. Scores are (N, classes)
    float, such as log-probabilities; `labels` are the classes' names.

    Raises:
        RecipeError: there are too many classes for images this large.
    """
    size = photographs.images.numel()
    if size > _MOST_BYTES:
        raise RecipeError(
            f'decoder = "photographs": {len(labels)} photographs take {size / 2**20:.0f} MiB, at most '
            f'{_MOST_BYTES // 2**20} are allowed; leave it at "learned"'
        )
    if never := sorted(set(range(len(labels))) - set(scores.argmax(dim=1).tolist())):
        log.warning(
            "no image is classified as %s: the likeliest one is used, which other classifiers may not recognise",
            ", ".join(repr(labels[k]) for k in never[:_NAMED]) + (", ..." if len(never) > _NAMED else ""),
        )
    photographs.images.copy_(images[scores.argmax(dim=0)])

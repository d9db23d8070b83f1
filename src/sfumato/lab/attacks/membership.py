"""Membership inference: scores that are higher for images that an obfuscator was trained on.

The attacker holds the image and asks whether it was among the training images; it has the obfuscator, and whatever
predicts from it: the on-device logits, or the cloud's classifier on the payload.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import Observe, another_view, batched
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.progress import Progress, silent, tracked

Predict = Callable[[Tensor], Tensor]
"""(N, 3, H, W) uint8 -> logits (N, classes) float32."""
VIEWS = 10
"""Of each image, whose payloads are compared with each other, as in EncoderMI."""
_CENTRED_ON = 500
_LEAST_NORM = 1e-6


def label_confidence(predict: Predict, images: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithm of the probability of each image's own class: the negative loss, (N,) float64.

    Args:
        predict: the logits.
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.

    Raises:
        AuditError: logits of another shape, without the class of an image, or not finite.

    Source: Yeom et al. 2018 (arXiv 1709.01604), the attack by the loss.
    """
    logits = batched(predict, images)
    if len(logits) != len(images) or logits.shape[1] <= int(labels.max()):
        raise AuditError(f"logits {tuple(logits.shape)} for {len(images)} images with classes up to {labels.max()}")
    if not bool(logits.isfinite().all()):
        raise AuditError("some logits are not finite: membership cannot be inferred from them")
    return F.log_softmax(logits.double(), dim=1).gather(1, labels[:, None])[:, 0]


def likelihood_ratio(confidence: Tensor, reference: Tensor) -> Tensor:
    """Return the score of RMIA with one reference, trained on the complementary half, (N,) float64.

    RMIA compares `Pr(x | model) / Pr(x)` with the same ratio of population images z, and scores x by the share of z
    that it exceeds by a factor. Here `Pr(x)` is the mean over both models: each image is a member of exactly one. The
    share is a non-decreasing function of the ratio, and so is the ratio of `Pr(x | model) / Pr(x | reference)`. For one
    model, ranks and so all figures are the same without population images; only the ties are gone that their finite
    number makes.

    Args:
        confidence: (N,) float64, `label_confidence` of the obfuscator under attack.
        reference: (N,) float64, likewise of the reference.

    Source: Zarifzadeh et al. 2024 (arXiv 2312.03262).
    """
    return confidence - reference


def view_similarity(
    observe: Observe, images: Tensor, *, seed: int, stage: str = "views", progress: Progress = silent
) -> Tensor:
    """Return the mean cosine similarity of the payloads of `VIEWS` augmented views of each image, (N,) float64.

    An encoder that has been trained on an image, augmented, gives its views more similar features than those of other
    images. Payloads are compared without their mean over images. One that is constant gets 0.

    Args:
        observe: the payloads.
        images: (N, 3, H, W) uint8.
        seed: of the views.
        stage: what it is called in `progress`.
        progress: counts parts of the images.

    Source: EncoderMI-T, Liu et al. 2021 (arXiv 2108.11023).
    """
    source = torch.Generator().manual_seed(seed)
    some = images[torch.randperm(len(images), generator=source)[:_CENTRED_ON]]
    centre = batched(observe, some).double().mean(dim=0)
    found = []
    for part in tracked(torch.split(images, INFERENCE_BATCH), stage, progress):
        total = torch.zeros(len(part), len(centre), dtype=torch.float64)
        counted = torch.zeros(len(part), dtype=torch.float64)
        for _ in range(VIEWS):
            apart = batched(observe, another_view(part, source)).double() - centre
            length = apart.norm(dim=1, keepdim=True)
            total += torch.where(length > _LEAST_NORM, apart / length.clamp_min(_LEAST_NORM), 0.0)
            counted += length[:, 0] > _LEAST_NORM
        found.append((total.square().sum(dim=1) - counted) / (VIEWS * (VIEWS - 1)))
    return torch.cat(found)

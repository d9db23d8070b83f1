"""A small classifier that no attacker has, to tell what is recognised in a reconstruction.

It learns from images that attackers are not handed. It is trained once for these images, and cached.

Source: judging reconstructions by a classifier apart from the attacker's, Zhang et al. 2020 (The Secret Revealer),
section 4.1; that pixel errors agree weakly with people, Sun et al. 2023 (SemSim, arXiv 2309.13038).
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.data import INFERENCE_BATCH, Augmentation, ImageSet, augment
from sfumato.lab.data.cache import root
from sfumato.lab.data.image_set import content_sha256
from sfumato.lab.models import autocast, build_classifier
from sfumato.lab.models.classifiers import features_and_logits
from sfumato.progress import Progress, silent

ARCHITECTURE = "resnet-local"
MOST_SIDE = 64
"""Larger images are reduced to this side before they are judged."""
BATCH = 64
_LEARNING_RATE, _WEIGHT_DECAY, _SMOOTHING = 3e-3, 0.05, 0.1
_SHIFT = 8
"""Training images are shifted by up to this part of the side, one eighth."""
_LEAST_OF_A_CLASS = 2
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Evaluator:
    """A trained evaluator.

    Attributes:
        net: in evaluation mode, with the `features` and the `head` of the zoo.
        learned_from: how many images it was trained on, without repetition.
        device: where it computes.
    """

    net: nn.Module
    learned_from: int
    device: torch.device = _CPU

    @torch.no_grad()
    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of images, (N, D) float32, and the predicted classes, (N,) int64.

        The images are (N, 3, H, W), uint8 or float in [0, 1]; the features are those before the last layer.
        """
        features, classes = [], []
        for part in torch.split(images, INFERENCE_BATCH):
            of_part, logits = features_and_logits(self.net, _prepared(part.to(self.device)))
            features.append(of_part.float().cpu())
            classes.append(logits.argmax(dim=1).cpu())
        return torch.cat(features), torch.cat(classes)


def load_evaluator(
    held_out: ImageSet, *, images: int, seed: int = 0, device: torch.device = _CPU, progress: Progress = silent
) -> Evaluator:
    """Return the evaluator that learns from these images: from the cache, or trained now and cached.

    Args:
        held_out: images that no attacker is handed.
        images: that it is trained on, with repetition.
        seed: of everything random.
        device: where it is trained.
        progress: its stage is "evaluator".

    Raises:
        AuditError: fewer than two classes with images, fewer than two images a class on average, or a training that
            diverged.
    """
    classes = len(set(held_out.labels.tolist()))
    if classes < 2 or len(held_out) < _LEAST_OF_A_CLASS * len(held_out.names):
        raise AuditError(
            f"{len(held_out)} images of {classes} of {len(held_out.names)} classes were held out: an evaluator needs "
            f"{_LEAST_OF_A_CLASS} images a class, and two classes; use more images, with classes"
        )
    net = _fresh(len(held_out.names), seed)
    recipe = (ARCHITECTURE, MOST_SIDE, BATCH, _LEARNING_RATE, _WEIGHT_DECAY, _SMOOTHING, _SHIFT, images, seed)
    content = content_sha256(held_out.images, held_out.labels)
    name = hashlib.sha256(repr((content, len(held_out.names), recipe)).encode()).hexdigest()[:32]
    path = root() / "evaluators" / f"{name}.safetensors"
    if not _loaded(net, path):
        _train(net, held_out, images=images, seed=seed, device=device, progress=progress)
        with contextlib.suppress(OSError, SafetensorError):  # a full disk costs the next audit some minutes
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                save_file({key: value.cpu().contiguous() for key, value in net.state_dict().items()}, partial)
    return Evaluator(net.to(device).eval().requires_grad_(False), len(held_out), device)


def _fresh(classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(ARCHITECTURE, classes)


def _loaded(net: nn.Module, path: Path) -> bool:
    """Whether the cache had the weights."""
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):  # none, or damaged
        return False
    return True


def _train(
    net: nn.Module, known: ImageSet, *, images: int, seed: int, device: torch.device, progress: Progress
) -> None:
    """Train with AdamW at a rate that rises and falls once, on images shifted and mirrored at random."""
    net.to(device).train()
    steps, source = max(1, images // BATCH), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1)
    shifted = Augmentation(crop_padding=min(known.images.shape[2:]) // _SHIFT)
    for step in range(steps):
        chosen = torch.randint(len(known), (BATCH,), generator=source)
        batch = _prepared(augment(known.images[chosen], shifted, source).to(device))
        with autocast(device):
            logits = net(batch)
        loss = F.cross_entropy(logits.float(), known.labels[chosen].to(device), label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
        progress("evaluator", step + 1, steps)
    if not bool(torch.isfinite(loss)):
        raise AuditError(f"the evaluator's loss is {float(loss)}: its training diverged")


def _prepared(images: Tensor) -> Tensor:
    """Images (N, 3, H, W), uint8 or float in [0, 1] -> normalised float32, at most `MOST_SIDE` on a side."""
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    side = max(scaled.shape[2:])
    if side > MOST_SIDE:
        size = [max(1, round(length * MOST_SIDE / side)) for length in scaled.shape[2:]]
        scaled = F.interpolate(scaled, size=size, mode="bilinear", antialias=True)
    return (scaled - 0.5) / 0.25

"""What is trained: modules whose forward pass turns a batch into losses and figures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.nets import Deobfuscator, Normalize, Obfuscator, Sketcher, reverse_gradient
from sfumato.training.objectives import (
    classification_loss,
    distillation_loss,
    reconstruction_loss,
)

Losses = dict[str, Tensor]
"""Scalars by name; "loss" is the one to minimise, the others are for people."""


class ClassifierTask(nn.Module):
    """Trains a classifier on plain pictures, from their labels or also from a teacher's answers.

    The teacher sees the same augmented pictures, stays in evaluation mode and gets no gradient.

    Source: with a teacher, Hinton et al. 2015, section 2: the weighted average of both objectives.

    Args:
        net: normalised images to logits.
        normalize: from [0, 1] to the classifier's input.
        label_smoothing: in [0, 1).
        teacher: images in [0, 1] to logits; frozen here.
        teacher_weight: in [0, 1]; the labels' loss gets the rest.
        temperature: that both answers are softened with, above 0.
    """

    def __init__(
        self,
        net: nn.Module,
        normalize: Normalize,
        *,
        label_smoothing: float = 0.0,
        teacher: nn.Module | None = None,
        teacher_weight: float = 0.9,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        self.net = net
        self.normalize = normalize
        self.label_smoothing = label_smoothing
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.teacher_weight = teacher_weight
        self.temperature = temperature

    def train(self, mode: bool = True) -> ClassifierTask:
        """Sets the mode of the trained network; a teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], labels (N,) int64 -> losses."""
        logits = self.net(self.normalize(images))
        loss = classification_loss(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = _accuracy(logits, labels)
        if self.teacher is None:
            return {"loss": loss, "accuracy": accuracy}
        distillation = distillation_loss(logits, self.teacher(images), temperature=self.temperature)
        return {
            "loss": torch.lerp(loss, distillation, self.teacher_weight),
            "distillation": distillation.detach(),
            "accuracy": accuracy,
        }


class ObfuscationTask(nn.Module):
    """Trains obfuscator and deobfuscator together against a frozen classifier.

    The obfuscator minimises `L_c - lambda L_r`, the deobfuscator `L_r`, from one forward and one backward
    pass. The classifier stays in evaluation mode and gets no gradient.

    Source: paper, section 2.

    Args:
        obfuscator: images to obfuscated images.
        deobfuscator: obfuscated images to restored images.
        classifier: normalised images to logits; frozen here.
        normalize: from [0, 1] to the classifier's input.
        privacy_weight: lambda.
    """

    def __init__(
        self,
        obfuscator: Obfuscator,
        deobfuscator: Deobfuscator,
        classifier: nn.Module,
        normalize: Normalize,
        *,
        privacy_weight: float,
    ) -> None:
        super().__init__()
        self.obfuscator = obfuscator
        self.deobfuscator = deobfuscator
        self.classifier = classifier.requires_grad_(False).eval()
        self.normalize = normalize
        self.privacy_weight = privacy_weight

    def train(self, mode: bool = True) -> ObfuscationTask:
        """Sets the mode of the two trained networks; the frozen classifier stays in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], labels (N,) int64 -> losses."""
        obfuscated = self.obfuscator(images)
        logits = self.classifier(self.normalize(obfuscated))
        restored = self.deobfuscator(reverse_gradient(obfuscated, self.privacy_weight))
        classification = classification_loss(logits, labels)
        reconstruction = reconstruction_loss(restored, images)
        return {
            "loss": classification + reconstruction,
            "classification": classification.detach(),
            "reconstruction": reconstruction.detach(),
            "accuracy": _accuracy(logits, labels),
        }

    @torch.no_grad()
    def panel(self, images: Tensor) -> Tensor:
        """Original, obfuscated and restored pictures in three rows.

        Args:
            images: (N, 3, H, W) float in [0, 1].

        Returns:
            (3, N, 3, H, W) float in [0, 1]; the obfuscated ones stretched to that range, each on its own.
        """
        obfuscated = self.obfuscator(images)
        restored = self.deobfuscator(obfuscated).clamp(0, 1)
        low = obfuscated.amin(dim=(1, 2, 3), keepdim=True)
        high = obfuscated.amax(dim=(1, 2, 3), keepdim=True)
        return torch.stack([images, (obfuscated - low) / (high - low).clamp_min(1e-6), restored])


class SketchTask(nn.Module):
    """Trains an obfuscator that draws its decision, against a frozen classifier and without an adversary.

    Both answers are asked for: the classifier's, which sees the drawing alone, and the device's own, which is drawn
    and decides what is sent at all. What may leak is limited by the code's bits, so nothing is trained to beat an
    attacker. To learn to draw takes far fewer pictures than to learn to look, and costs more for each, so in training
    only a share of each batch is drawn.

    Source: the objective of both answers is that of Hinton et al. 2015, section 2, with the frozen classifier's
    answer on the plain picture as the teacher.

    Args:
        sketcher: images to drawings and logits.
        classifier: normalised images to logits; frozen here.
        normalize: from [0, 1] to the classifier's input.
        teacher_weight: in [0, 1]; the labels' loss gets the rest.
        temperature: that answers are softened with, above 0.
        drawn_share: of each batch in training, in (0, 1]; at least two pictures are drawn. Without training all are.
    """

    def __init__(
        self,
        sketcher: Sketcher,
        classifier: nn.Module,
        normalize: Normalize,
        *,
        teacher_weight: float,
        temperature: float,
        drawn_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.sketcher = sketcher
        self.classifier = classifier.requires_grad_(False).eval()
        self.normalize = normalize
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.drawn_share = drawn_share

    def train(self, mode: bool = True) -> SketchTask:
        """Sets the mode of the trained network; the frozen classifier stays in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], labels (N,) int64 -> losses."""
        code, own = self.sketcher.look(images)
        drawn = max(2, round(self.drawn_share * len(images))) if self.training else len(images)
        logits = self.classifier(self.normalize(self.sketcher.drawing(code[:drawn])))
        with torch.no_grad():
            teacher = self.classifier(self.normalize(images))
        losses = [
            torch.lerp(
                classification_loss(answer, labels[: len(answer)]),
                distillation_loss(answer, teacher[: len(answer)], temperature=self.temperature),
                self.teacher_weight,
            )
            for answer in (logits, own)
        ]
        return {
            "loss": losses[0] + losses[1],
            "obfuscated": losses[0].detach(),
            "device": losses[1].detach(),
            "accuracy": _accuracy(logits, labels[:drawn]),
            "accuracy_device": _accuracy(own, labels),
        }

    @torch.no_grad()
    def panel(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) float in [0, 1] and their drawings in two rows, (2, N, 3, H, W)."""
        return torch.stack([images, self.sketcher(images)[0]])


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).float().mean()

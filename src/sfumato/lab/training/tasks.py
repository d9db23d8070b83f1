"""What is trained: modules whose forward pass turns a batch into losses and figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.lab.models import Normalize, Obfuscator, Sketcher, reverse_gradient
from sfumato.lab.models.classifiers import features_and_logits
from sfumato.lab.models.precision import autocast, compute
from sfumato.lab.training.adversaries import Attackers
from sfumato.lab.training.code_mixture import CodeMixture
from sfumato.lab.training.ensemble import Others
from sfumato.lab.training.objectives import (
    class_mean_loss,
    classification_loss,
    distillation_loss,
    feature_loss,
    gaussian_rate,
    mixture_rate,
    reconstruction_loss,
)

Losses = dict[str, Tensor]
"""Scalars by name; "loss" is the one to minimise, the others are for people."""


class ClassifierTask(nn.Module):
    """Trains a classifier on plain images, from their labels or also from a teacher's answers.

    The teacher sees the same augmented images, stays in evaluation mode and gets no gradient.

    Source: with a teacher, Hinton et al. 2015, section 2: the weighted average of both objectives.

    Args:
        net: normalised images to logits.
        normalize: from [0, 1] to the classifier's input.
        label_smoothing: in [0, 1).
        teacher: images in [0, 1] to logits; frozen here.
        teacher_weight: in [0, 1]; the labels' loss gets the rest.
        temperature: that both answers are softened with, above 0.
        bfloat16: compute both networks so; see `sfumato.lab.models.precision`.
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
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.in_bfloat16 = bfloat16
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
        logits = compute(self.net, self.normalize(images), bfloat16=self.in_bfloat16)
        loss = classification_loss(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = _accuracy(logits, labels)
        if self.teacher is None:
            return {"loss": loss, "accuracy": accuracy}
        teacher = compute(self.teacher, images, bfloat16=self.in_bfloat16)
        distillation = distillation_loss(logits, teacher, temperature=self.temperature)
        return {
            "loss": torch.lerp(loss, distillation, self.teacher_weight),
            "distillation": distillation.detach(),
            "accuracy": accuracy,
        }


@dataclass(frozen=True)
class Utility:
    """What the frozen classifier is to make of obfuscated images.

    Attributes:
        teacher_weight: share of its own answers on the plain images, in [0, 1].
        feature_weight: share of its features, in [0, 1]; the labels get what both leave.
        temperature: that answers are softened with, above 0.
    """

    teacher_weight: float = 0.0
    feature_weight: float = 0.0
    temperature: float = 4.0

    @property
    def label_weight(self) -> float:
        """Share of the labels; exactly 0 where the others have all."""
        rest = 1 - self.teacher_weight - self.feature_weight
        return rest if rest > 1e-9 else 0.0


class ObfuscationTask(nn.Module):
    """Trains an obfuscator for a frozen classifier, together with its attackers if it has some.

    As in the paper, if nothing else is said: the obfuscator minimises `L_c - lambda L_r`, the deobfuscator `L_r`, from
    one forward and one backward pass. The classifier stays in evaluation mode and gets no gradient.

    Source: paper, section 2; what else can be asked for stands in `sfumato.lab.training.objectives`.

    Args:
        obfuscator: images to obfuscated images.
        deobfuscator: obfuscated images to reconstructed images; one, several (`Attackers`), or None for none.
        classifier: normalised images to logits; frozen here.
        normalize: from [0, 1] to the classifier's input.
        privacy_weight: lambda, of the term against the deobfuscator.
        utility: see `Utility`.
        class_means: (classes, 3, H, W) float32 in [0, 1]: minimise `class_mean_loss` instead of maximising `L_r`. It
            takes a second pass through the deobfuscator.
        rate_weight: of `gaussian_rate`; the obfuscator has to be noisy.
        entropy_weight: of `mixture_rate`; the obfuscator has to be noisy.
        mixture: for it.
        others: further classifiers that count as much as the first; features are compared with the first's alone.
        bfloat16: compute the first classifier so; see `sfumato.lab.models.precision`.
    """

    class_means: Tensor | None

    def __init__(
        self,
        obfuscator: Obfuscator,
        deobfuscator: nn.Module | None,
        classifier: nn.Module,
        normalize: Normalize,
        *,
        privacy_weight: float,
        utility: Utility | None = None,
        class_means: Tensor | None = None,
        rate_weight: float = 0.0,
        entropy_weight: float = 0.0,
        mixture: CodeMixture | None = None,
        others: Others | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.in_bfloat16 = bfloat16
        self.obfuscator = obfuscator
        self.deobfuscator = deobfuscator
        self.classifier = classifier.requires_grad_(False).eval()
        self.normalize = normalize
        self.privacy_weight = privacy_weight
        self.utility = utility or Utility()
        self.register_buffer("class_means", class_means, persistent=False)
        self.rate_weight, self.entropy_weight, self.mixture = rate_weight, entropy_weight, mixture
        self.others = others or Others()

    @property
    def attackers(self) -> list[nn.Module]:
        """The deobfuscators, in the order in which they were given."""
        if self.deobfuscator is None:
            return []
        return list(self.deobfuscator.nets) if isinstance(self.deobfuscator, Attackers) else [self.deobfuscator]

    @property
    def faced(self) -> int:
        """Which of the attackers the obfuscator is trained against now."""
        return self.deobfuscator.best if isinstance(self.deobfuscator, Attackers) else 0

    def train(self, mode: bool = True) -> ObfuscationTask:
        """Sets the mode of the trained networks; the frozen classifier stays in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], labels (N,) int64 -> losses.

        Labels that have no share in the utility are only compared with; where class means or a mixture go by them, they
        may be the classifier's own answers.
        """
        code = self.obfuscator.encode(images)
        obfuscated = self.obfuscator.draw(code)
        loss, figures = self._useful(obfuscated, images, labels)
        for term, more in (self._attacked(obfuscated, images, labels), self._coded(code, labels)):
            loss = loss if term is None else loss + term
            figures |= more
        accuracy = figures.pop("accuracy")
        return {"loss": loss, **figures, "accuracy": accuracy}

    def _useful(self, obfuscated: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Losses]:
        """The utility's loss, its parts and the accuracy."""
        utility = self.utility
        features, logits = self._answers(self.others.varied(obfuscated))
        answers = [logits, *self.others(obfuscated)]
        parts: list[tuple[str, float, Tensor]] = []
        if utility.label_weight:
            each = [classification_loss(answer, labels) for answer in answers]
            parts.append(("classification", utility.label_weight, torch.stack(each).mean()))
        if utility.teacher_weight or utility.feature_weight:
            with torch.no_grad():
                teacher_features, teacher = self._answers(images)
        if utility.teacher_weight:
            each = [distillation_loss(answer, teacher, temperature=utility.temperature) for answer in answers]
            parts.append(("distillation", utility.teacher_weight, torch.stack(each).mean()))
        if features is not None and teacher_features is not None:
            parts.append(("features", utility.feature_weight, feature_loss(features, teacher_features)))
        loss = torch.stack([weight * part for _, weight, part in parts]).sum()
        figures = {name: part.detach() for name, _, part in parts}
        return loss, figures | _others_accuracy(answers, labels) | {"accuracy": _accuracy(logits, labels)}

    def _answers(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """The classifier's features, where they are asked for, and its logits."""
        inputs = self.normalize(images)
        if not self.utility.feature_weight:
            return None, compute(self.classifier, inputs, bfloat16=self.in_bfloat16)
        with autocast(inputs.device, enabled=self.in_bfloat16):
            features, logits = features_and_logits(self.classifier, inputs)
        return features.float(), logits.float()

    def _attacked(self, obfuscated: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor | None, Losses]:
        """The attackers' losses, and the obfuscator's against the one that it faces."""
        nets, faced = self.attackers, self.faced
        if not nets:
            return None, {}
        errors = []
        for index, net in enumerate(nets):
            seen = obfuscated.detach()
            if index == faced and self.class_means is None:
                seen = reverse_gradient(obfuscated, self.privacy_weight)
            errors.append(reconstruction_loss(net(seen), images))
        loss = torch.stack(errors).sum()
        figures = {"reconstruction": errors[faced].detach()}
        if self.class_means is not None:
            net = nets[faced].requires_grad_(False)  # this moves the obfuscator alone
            beyond = class_mean_loss(net(obfuscated), self.class_means[labels])
            net.requires_grad_(True)
            loss = loss + self.privacy_weight * beyond
            figures["beyond_label"] = beyond.detach()
        if isinstance(self.deobfuscator, Attackers):
            figures |= {f"attacker_{index}": error.detach() for index, error in enumerate(errors)}
            if self.training:
                self.deobfuscator.note(torch.stack(errors).detach())
        return loss, figures

    def _coded(self, code: Tensor, labels: Tensor) -> tuple[Tensor | None, Losses]:
        """What the code may tell, in nats an image."""
        loss, figures = None, {}
        if self.obfuscator.noise is None:
            return None, {}
        std = self.obfuscator.noise.std
        if self.rate_weight:
            rate = gaussian_rate(code, std)
            loss, figures["rate"] = self.rate_weight * rate, rate.detach()
        if self.mixture is not None:
            entropy = mixture_rate(code, std, labels, self.mixture.means, self.mixture.variances)
            figures["mixture_rate"] = entropy.detach()
            loss = self.entropy_weight * entropy if loss is None else loss + self.entropy_weight * entropy
            if self.training:
                self.mixture.follow(code, labels)
        return loss, figures

    @torch.no_grad()
    def panel(self, images: Tensor) -> Tensor:
        """Original, obfuscated and, with a deobfuscator, reconstructed images in rows.

        Args:
            images: (N, 3, H, W) float in [0, 1].

        Returns:
            (3 or 2, N, 3, H, W) float in [0, 1]; the obfuscated ones stretched to that range, each on its own.
        """
        obfuscated = self.obfuscator(images)
        low = obfuscated.amin(dim=(1, 2, 3), keepdim=True)
        high = obfuscated.amax(dim=(1, 2, 3), keepdim=True)
        rows = [images, (obfuscated - low) / (high - low).clamp_min(1e-6)]
        if self.deobfuscator is not None:
            rows.append(self.deobfuscator(obfuscated).clamp(0, 1))
        return torch.stack(rows)


class SketchTask(nn.Module):
    """Trains an obfuscator that draws its decision, against a frozen classifier and without an adversary.

    Both answers are asked for: the classifier's, which sees the drawing alone, and the device's own, which is drawn
    and decides what is sent at all. What may leak is limited by the code's bits, so nothing is trained to beat an
    attacker. The trunk is trained for the device's answer alone: what the cloud makes of few bits cannot be better, and
    its gradient through a frozen classifier is noise to the trunk. To learn to draw takes far fewer images than to
    learn to look, and costs more for each, so in training only a share of each batch is drawn.

    Another classifier may take the frozen one's place later: what is drawn is then learned anew, and how the device
    looks at images, its answers and what a code means stay as they are.

    Source: the objective of both answers is that of Hinton et al. 2015, section 2, with the frozen classifier's
    answer on the plain image as the teacher.

    Args:
        sketcher: images to drawings and logits.
        classifier: normalised images to logits; frozen here.
        normalize: from [0, 1] to the classifier's input.
        teacher_weight: in [0, 1]; the labels' loss gets the rest.
        temperature: that answers are softened with, above 0.
        drawn_share: of each batch in training, in (0, 1]; at least two images are drawn. Without training all are.
        others: further classifiers that the drawing has to convince as much as the first.
        drawing_alone: keep how the device looks, and learn only what is drawn.
        bfloat16: compute the trunk and the first classifier so; see `sfumato.lab.models.precision`.
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
        others: Others | None = None,
        drawing_alone: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.in_bfloat16 = bfloat16
        self.sketcher = sketcher
        self.classifier = classifier.requires_grad_(False).eval()
        self.normalize = normalize
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.drawn_share = drawn_share
        self.others = others or Others()
        self.drawing_alone = drawing_alone
        if drawing_alone:
            sketcher.looking.requires_grad_(False)

    def train(self, mode: bool = True) -> SketchTask:
        """Sets the mode of what is trained; all that is frozen stays in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        if self.drawing_alone:
            self.sketcher.looking.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], labels (N,) int64 -> losses."""
        drawn = max(2, round(self.drawn_share * len(images))) if self.training else len(images)
        if self.drawing_alone:  # what is not drawn teaches nothing
            images, labels = images[:drawn], labels[:drawn]
        code, own = self.sketcher.look(images, bits_alone=True, bfloat16=self.in_bfloat16)
        drawing = self.sketcher.drawing(code[:drawn])
        answers = [self._answer(self.others.varied(drawing)), *self.others(drawing)]
        with torch.no_grad():
            teacher = self._answer(images)
        obfuscated = torch.stack([self._loss(answer, labels, teacher) for answer in answers]).mean()
        device = self._loss(own, labels, teacher)
        return {
            "loss": obfuscated if self.drawing_alone else obfuscated + device,
            "obfuscated": obfuscated.detach(),
            "device": device.detach(),
            **_others_accuracy(answers, labels[:drawn]),
            "accuracy": _accuracy(answers[0], labels[:drawn]),
            "accuracy_device": _accuracy(own, labels),
        }

    def _answer(self, images: Tensor) -> Tensor:
        return compute(self.classifier, self.normalize(images), bfloat16=self.in_bfloat16)

    def _loss(self, answer: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
        """Of an answer about the first so many images of the batch."""
        return torch.lerp(
            classification_loss(answer, labels[: len(answer)]),
            distillation_loss(answer, teacher[: len(answer)], temperature=self.temperature),
            self.teacher_weight,
        )

    @torch.no_grad()
    def panel(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float in [0, 1] and their drawings in two rows, (2, N, 3, H, W)."""
        return torch.stack([images, self.sketcher(images)[0]])


def _others_accuracy(answers: list[Tensor], labels: Tensor) -> Losses:
    """The mean accuracy of all classifiers but the first, if there are any."""
    others = [_accuracy(answer, labels) for answer in answers[1:]]
    return {"accuracy_others": torch.stack(others).mean()} if others else {}


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).float().mean()

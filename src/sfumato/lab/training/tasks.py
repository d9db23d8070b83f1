"""What is trained: modules whose forward pass turns a batch into losses and figures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.data.augment import Mixup
from sfumato.lab.models import Normalize, Sketcher
from sfumato.lab.models.precision import compute
from sfumato.lab.models.simulated_int8 import freeze_norms, simulated_int8
from sfumato.lab.training.ensemble import Ensemble
from sfumato.lab.training.objectives import classification_loss, distillation_loss

Losses = dict[str, Tensor]
"""Scalars by name; "loss" is the one to minimise, the others are reported."""


class ClassifierTask(nn.Module):
    """Train a classifier on plain images, from their labels or also from a teacher's predictions.

    The teacher sees the same augmented images, mixed ones included, stays in evaluation mode and gets no gradient.

    Source: with a teacher, Hinton et al. 2015, section 2: the weighted average of both objectives; that it sees the
    very same crops and mixtures, Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent".

    Args:
        net: normalised images to logits.
        normalize: from [0, 1] to the classifier's input.
        label_smoothing: in [0, 1).
        teacher: images in [0, 1] to logits; frozen here.
        teacher_weight: in [0, 1]; the labels' loss gets the rest.
        temperature: that both predictions are softened with, above 0.
        mixup: parameter of `Mixup.sample`, for training; 0 for no mixtures.
        bfloat16: compute both networks so; see `sfumato.lab.models.precision`.
        teacher_in_validation: compare with the teacher in validations, too; if not, it is not computed there, and their
            loss is that of the labels alone.

    Attributes:
        int8: simulate 8-bit integers in training, in float32, with frozen batch norms.
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
        mixup: float = 0.0,
        bfloat16: bool = False,
        teacher_in_validation: bool = True,
    ) -> None:
        super().__init__()
        self.net = net
        self.in_bfloat16 = bfloat16
        self.int8 = False
        self.normalize = normalize
        self.label_smoothing = label_smoothing
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.mixup = mixup
        self.teacher_in_validation = teacher_in_validation

    def train(self, mode: bool = True) -> ClassifierTask:
        """Set the mode of the trained network; a teacher stays in evaluation mode."""
        super().train(mode)
        if self.int8:
            freeze_norms(self.net)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, taught: Tensor | None = None) -> Losses:
        """Return the losses.

        Args:
            images: (N, 3, H, W) float in [0, 1].
            labels: (N,) int64.
            taught: the teacher's logits on these images, (N, classes) float32, if they are known; not with `mixup`.
        """
        mix = Mixup.sample(len(images), self.mixup) if self.training and self.mixup else None
        images = images if mix is None else mix(images)
        int8 = self.int8 and self.training
        with simulated_int8(enabled=int8):
            logits = compute(self.net, self.normalize(images), bfloat16=self.in_bfloat16 and not int8)
        loss = classification_loss(logits, _targets(labels, logits, mix), label_smoothing=self.label_smoothing)
        accuracy = _accuracy(logits, labels)
        if taught is None and self.teacher is not None and (self.training or self.teacher_in_validation):
            taught = self.taught(images)
        if taught is None:
            return {"loss": loss, "accuracy": accuracy}
        distillation = distillation_loss(logits, taught, temperature=self.temperature)
        return {
            "loss": torch.lerp(loss, distillation, self.teacher_weight),
            "distillation": distillation.detach(),
            "accuracy": accuracy,
        }

    def taught(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (N, classes) on images (N, 3, H, W) float in [0, 1]; there must be a teacher."""
        assert self.teacher is not None
        return compute(self.teacher, images, bfloat16=self.in_bfloat16)


class Protecting(nn.Module):
    """A task that trains an obfuscator for a frozen classifier, and for an ensemble of further ones.

    The classifiers stay in evaluation mode and get no gradient.
    """

    def __init__(
        self, classifier: nn.Module, normalize: Normalize, ensemble: Ensemble | None, *, bfloat16: bool
    ) -> None:
        super().__init__()
        self.in_bfloat16 = bfloat16
        self.classifier = classifier.requires_grad_(False).eval()
        self.normalize = normalize
        self.ensemble = ensemble or Ensemble()

    def train(self, mode: bool = True) -> Protecting:
        """Set the mode of the trained networks; the frozen classifiers stay in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}others.")]:  # of older checkpoints
            state_dict[f"{prefix}ensemble.{name.removeprefix(f'{prefix}others.')}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SketchTask(Protecting):
    """Train an obfuscator that classifies on the device and sends a decoded image, without an adversary.

    Both predictions are trained: the classifier's on the decoded image, and the device's own, which is a part of the
    code and decides what is sent at all. The code's bits limit the leakage, so no attacker is needed. The trunk is
    trained for the device's prediction alone: the cloud's gradient through a frozen classifier is noise to it. The
    decoder needs far fewer images than the encoder, and costs more for each, so only a share of a batch is decoded.

    Source: the objective of both predictions is that of Hinton et al. 2015, section 2, with the prediction on the plain
    image as the teacher's.

    Args:
        sketcher: images to decoded images and logits.
        classifier: normalised images to logits; frozen here.
        normalize: from [0, 1] to the classifier's input.
        teacher_weight: in [0, 1]; the labels' loss gets the rest.
        temperature: that predictions are softened with, above 0.
        decoded_share: of each batch in training, in (0, 1]; at least two images are decoded. In evaluation all are.
        ensemble: further classifiers that count as much as the first.
        decoder_alone: keep the encoder, and learn only the decoder.
        teacher: images in [0, 1] to logits; frozen here. None for the classifier itself.
        mixup: parameter of `Mixup.sample`, for training; 0 for no mixtures. Images that are decoded are not mixed.
        bfloat16: compute the trunk, the teacher and the first classifier so; see `sfumato.lab.models.precision`.
        teacher_in_validation: see `ClassifierTask`.

    Attributes:
        int8: simulate 8-bit integers in training, in float32, with frozen batch norms.
    """

    def __init__(
        self,
        sketcher: Sketcher,
        classifier: nn.Module,
        normalize: Normalize,
        *,
        teacher_weight: float,
        temperature: float,
        decoded_share: float = 1.0,
        ensemble: Ensemble | None = None,
        decoder_alone: bool = False,
        teacher: nn.Module | None = None,
        mixup: float = 0.0,
        bfloat16: bool = False,
        teacher_in_validation: bool = True,
    ) -> None:
        super().__init__(classifier, normalize, ensemble, bfloat16=bfloat16)
        self.sketcher = sketcher
        self.int8 = False
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.decoded_share = decoded_share
        self.decoder_alone = decoder_alone
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.mixup = mixup
        self.teacher_in_validation = teacher_in_validation
        if decoder_alone:
            sketcher.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> SketchTask:
        """Set the mode of what is trained; all that is frozen stays in evaluation mode."""
        super().train(mode)
        if self.int8:
            freeze_norms(self.sketcher)
        if self.decoder_alone:
            self.sketcher.encoder.eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, taught: Tensor | None = None) -> Losses:
        """Return the losses; see `ClassifierTask.forward`. With `decoder_alone`, `taught` must be None."""
        decoded = max(2, round(self.decoded_share * len(images))) if self.training else len(images)
        if self.decoder_alone:  # the others would have no gradient
            images, labels = images[:decoded], labels[:decoded]
        mix = Mixup.sample(len(images), self.mixup, whole=decoded) if self.training and self.mixup else None
        images = images if mix is None else mix(images)
        int8 = self.int8 and self.training
        with simulated_int8(enabled=int8):
            code, own = self.sketcher.encode(images, bits_alone=True, bfloat16=self.in_bfloat16 and not int8)
            obfuscated = self.sketcher.decode(code[:decoded])
        predictions = [self._prediction(self.ensemble.varied(obfuscated)), *self.ensemble(obfuscated)]
        if taught is None and (self.training or self.teacher_in_validation):
            with torch.no_grad():
                taught = self.taught(images)
        first = None if taught is None else taught[:decoded]
        cloud = torch.stack([self._loss(one, labels[:decoded], first) for one in predictions]).mean()
        device = self._loss(own, _targets(labels, own, mix), taught)
        return {
            "loss": cloud if self.decoder_alone else cloud + device,
            "obfuscated": cloud.detach(),
            "device": device.detach(),
            **accuracies(predictions, labels[:decoded]),
            "accuracy_device": _accuracy(own, labels),
        }

    def _prediction(self, images: Tensor) -> Tensor:
        return compute(self.classifier, self.normalize(images), bfloat16=self.in_bfloat16)

    def taught(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (N, classes) on images (N, 3, H, W) float in [0, 1]."""
        if self.teacher is None:
            return self._prediction(images)
        return compute(self.teacher, images, bfloat16=self.in_bfloat16)

    def _loss(self, logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
        loss = classification_loss(logits, labels)
        if taught is None:
            return loss
        return torch.lerp(loss, distillation_loss(logits, taught, temperature=self.temperature), self.teacher_weight)

    @torch.no_grad()
    def panel(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float in [0, 1] and the decoded ones in two rows, (2, N, 3, H, W)."""
        return torch.stack([images, self.sketcher(images)[0]])


def _targets(labels: Tensor, logits: Tensor, mix: Mixup | None) -> Tensor:
    """Return the labels (N,), or what mixtures are to be classified as, (N, classes) float32."""
    return labels if mix is None else mix(F.one_hot(labels, logits.shape[1]).float())


def accuracies(predictions: list[Tensor], labels: Tensor) -> Losses:
    """Return the accuracy of the first classifier, and the mean of all others if there are any.

    For multi-label labels (N, classes) it is the Hamming loss instead: the share of these that are incorrect.
    """
    name, measure = ("hamming_loss", _hamming_loss) if labels.ndim == 2 else ("accuracy", _accuracy)
    first, *further = (measure(logits, labels) for logits in predictions)
    return {f"{name}_ensemble": torch.stack(further).mean(), name: first} if further else {name: first}


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).float().mean()


def _hamming_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return ((logits.detach() >= 0) != labels.bool()).float().mean()

"""What is trained: modules whose forward pass turns a batch into losses and figures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.data.augment import Mixup
from sfumato.lab.models import Normalize, Obfuscator, Sketcher, reverse_gradient
from sfumato.lab.models.classifiers import features_and_logits
from sfumato.lab.models.precision import autocast, compute
from sfumato.lab.models.simulated_int8 import freeze_norms, simulated_int8
from sfumato.lab.training.adversaries import Attackers
from sfumato.lab.training.code_mixture import CodeMixture
from sfumato.lab.training.ensemble import Ensemble
from sfumato.lab.training.objectives import (
    class_mean_loss,
    classification_loss,
    distillation_loss,
    feature_loss,
    gaussian_rate,
    mixture_rate,
    multi_label_distillation_loss,
    multi_label_loss,
    reconstruction_loss,
)

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


class _Protecting(nn.Module):
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

    def train(self, mode: bool = True) -> _Protecting:
        """Set the mode of the trained networks; the frozen classifiers stay in evaluation mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}others.")]:  # of older checkpoints
            state_dict[f"{prefix}ensemble.{name.removeprefix(f'{prefix}others.')}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ObfuscationTask(_Protecting):
    """Train an obfuscator for a frozen classifier, together with its attackers if it has some.

    By default as in the paper: the obfuscator minimises `L_c - lambda L_r`, the deobfuscator `L_r`, from one forward
    and one backward pass.

    Source: paper, section 2; for the other terms see `sfumato.lab.training.objectives`.

    Args:
        obfuscator: images to obfuscated images.
        deobfuscator: obfuscated images to reconstructed images; one, several (`Attackers`), or None.
        classifier: normalised images to logits; frozen here.
        normalize: from [0, 1] to the classifier's input.
        privacy_weight: lambda, of the term against the deobfuscator.
        label_weight: share of the labels in the utility, in [0, 1].
        teacher_weight: share of the classifier's own predictions on the plain images; all three sum to 1.
        feature_weight: share of its features.
        temperature: that predictions are softened with, above 0.
        class_means: (classes, 3, H, W) float32 in [0, 1]: minimise `class_mean_loss` instead of maximising `L_r`. It
            takes a second pass through the deobfuscator.
        rate_weight: of `gaussian_rate`; the obfuscator has to be noisy.
        entropy_weight: of `mixture_rate`; the obfuscator has to be noisy.
        mixture: for it.
        ensemble: further classifiers that count as much as the first; features are compared with the first's alone.
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
        label_weight: float = 1.0,
        teacher_weight: float = 0.0,
        feature_weight: float = 0.0,
        temperature: float = 4.0,
        class_means: Tensor | None = None,
        rate_weight: float = 0.0,
        entropy_weight: float = 0.0,
        mixture: CodeMixture | None = None,
        ensemble: Ensemble | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(classifier, normalize, ensemble, bfloat16=bfloat16)
        self.obfuscator = obfuscator
        self.deobfuscator = deobfuscator
        self.privacy_weight = privacy_weight
        self.label_weight, self.teacher_weight, self.feature_weight = label_weight, teacher_weight, feature_weight
        self.temperature = temperature
        self.register_buffer("class_means", class_means, persistent=False)
        self.rate_weight, self.entropy_weight, self.mixture = rate_weight, entropy_weight, mixture

    @property
    def attackers(self) -> list[nn.Module]:
        """The deobfuscators, in the order of the arguments."""
        if self.deobfuscator is None:
            return []
        return list(self.deobfuscator.nets) if isinstance(self.deobfuscator, Attackers) else [self.deobfuscator]

    @property
    def faced(self) -> int:
        """Index of the attacker that the obfuscator is trained against now."""
        return self.deobfuscator.best if isinstance(self.deobfuscator, Attackers) else 0

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images (N, 3, H, W) float in [0, 1], labels (N,) int64 -> losses.

        Labels with no share in the utility only measure the accuracy; for class means and a mixture they may then be
        the classifier's own predictions. For a multi-label classifier labels are (N, classes), 0 or 1; "hamming_loss"
        is then reported instead of an accuracy. There are no class means and no mixture then.
        """
        code = self.obfuscator.encode(images)
        obfuscated = self.obfuscator.decode(code)
        loss, figures = self._utility(obfuscated, images, labels)
        for term, more in (self._privacy(obfuscated, images, labels), self._information(code, labels)):
            loss = loss if term is None else loss + term
            figures |= more
        last = "hamming_loss" if labels.ndim == 2 else "accuracy"
        return {"loss": loss, **figures, last: figures.pop(last)}

    def _utility(self, obfuscated: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Losses]:
        """Return the utility's loss, its parts, and the accuracy or the Hamming loss."""
        several = labels.ndim == 2
        classifies = multi_label_loss if several else classification_loss
        distils = multi_label_distillation_loss if several else distillation_loss
        features, logits = self._predictions(self.ensemble.varied(obfuscated))
        predictions = [logits, *self.ensemble(obfuscated)]
        parts: list[tuple[str, float, Tensor]] = []
        if self.label_weight:
            each = [classifies(prediction, labels) for prediction in predictions]
            parts.append(("classification", self.label_weight, torch.stack(each).mean()))
        if self.teacher_weight or self.feature_weight:
            with torch.no_grad():
                teacher_features, teacher = self._predictions(images)
        if self.teacher_weight:
            each = [distils(one, teacher, temperature=self.temperature) for one in predictions]
            parts.append(("distillation", self.teacher_weight, torch.stack(each).mean()))
        if features is not None and teacher_features is not None:
            parts.append(("features", self.feature_weight, feature_loss(features, teacher_features)))
        loss = torch.stack([weight * part for _, weight, part in parts]).sum()
        figures = {name: part.detach() for name, _, part in parts}
        return loss, figures | _accuracies(predictions, labels)

    def _predictions(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the classifier's features, if they are needed, and its logits."""
        inputs = self.normalize(images)
        if not self.feature_weight:
            return None, compute(self.classifier, inputs, bfloat16=self.in_bfloat16)
        with autocast(inputs.device, enabled=self.in_bfloat16):
            features, logits = features_and_logits(self.classifier, inputs)
        return features.float(), logits.float()

    def _privacy(self, obfuscated: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor | None, Losses]:
        """Return the attackers' losses, and the obfuscator's against the one that it faces."""
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

    def _information(self, code: Tensor, labels: Tensor) -> tuple[Tensor | None, Losses]:
        """Return the loss of the code's information, in nats per image."""
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
        """Return original, obfuscated and, with a deobfuscator, reconstructed images in rows.

        Args:
            images: (N, 3, H, W) float in [0, 1].

        Returns:
            (3 or 2, N, 3, H, W) float in [0, 1]; the obfuscated ones each stretched to that range.
        """
        obfuscated = self.obfuscator(images)
        low = obfuscated.amin(dim=(1, 2, 3), keepdim=True)
        high = obfuscated.amax(dim=(1, 2, 3), keepdim=True)
        rows = [images, (obfuscated - low) / (high - low).clamp_min(1e-6)]
        if self.deobfuscator is not None:
            rows.append(self.deobfuscator(obfuscated).clamp(0, 1))
        return torch.stack(rows)


class SketchTask(_Protecting):
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
            **_accuracies(predictions, labels[:decoded]),
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


def _accuracies(predictions: list[Tensor], labels: Tensor) -> Losses:
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

"""The training of an obfuscator against its attackers, as in the paper and beyond it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.lab.models import Normalize, Obfuscator, reverse_gradient
from sfumato.lab.models.classifiers import features_and_logits
from sfumato.lab.models.precision import autocast, compute
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
from sfumato.lab.training.tasks import Losses, Protecting, accuracies


class ObfuscationTask(Protecting):
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
        return loss, figures | accuracies(predictions, labels)

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

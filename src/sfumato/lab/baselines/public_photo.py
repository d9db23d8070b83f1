"""A public photograph of the class that the device predicts: an obfuscation that is independent of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import TrainingError
from sfumato.lab.baselines.method import Method, Training, learn
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.models import build_classifier
from sfumato.lab.models.fixed_ops import Normalize

_LEARNING_RATE = 5e-3


class PublicPhoto(Method):
    """Predicts on the device and sends, for every image of a class, the same public photograph of that class.

    The payload depends on the on-device prediction alone, and any classifier classifies it correctly, since it is a
    photograph. The cloud adds nothing, either: an obfuscator should beat this baseline before offloading pays off.

    Source: ours; the classifier on the device is the project's on-device baseline.
    """

    summary = "predicts on the device and sends a public photograph of that class"
    source = "ours"
    strength_help = "the number of classes"
    default = 10.0
    learns = True
    iterates = True
    photographs: Tensor

    def _set_up(self) -> None:
        classes = self._whole()
        if classes < 2:
            raise TrainingError(f"{self.strength_help} must be at least 2, got {classes}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.net = build_classifier("resnet-local", classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scale = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        source = torch.Generator().manual_seed(self.seed)
        self.register_buffer(
            "photographs", torch.rand(classes, 3, self.height, self.width, generator=source)
        )  # until it is fitted

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`; the gradient is that of the photographs' mean, weighted by the predicted probabilities."""
        logits = self.net(self.scale(images))
        sent = self.photographs[logits.argmax(dim=1)]
        if torch.compiler.is_exporting():
            return sent
        mixed = torch.einsum("nk,kchw->nchw", logits.softmax(dim=1), self.photographs)
        return sent + (mixed - mixed.detach())

    def fit(self, training: Training) -> nn.Module:
        """Train the classifier, then choose each class's photograph with the highest confidence in the cloud."""
        if int(training.labels.max()) >= len(self.photographs):
            raise TrainingError(
                f"the images have {int(training.labels.max()) + 1} classes, {self.strength_help} is "
                f"{len(self.photographs)}: give it as the strength"
            )
        self.net.train()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.net(self.scale(images)), labels)

        learn(training, self.net.parameters(), loss, seed=self.seed, learning_rate=_LEARNING_RATE)
        self.net.eval()
        self._choose(training)
        return training.classifier

    @torch.no_grad()
    def _choose(self, training: Training) -> None:
        best = torch.full((len(self.photographs),), -1.0)
        parts = (torch.split(x, INFERENCE_BATCH) for x in (training.images, training.labels))
        for part, labels in zip(*parts, strict=True):
            images = part.float() / 255
            predictions = training.classifier(training.normalize(images)).softmax(dim=1)
            confidence = predictions[torch.arange(len(labels)), labels]
            for place, (label, value) in enumerate(zip(labels.tolist(), confidence.tolist(), strict=True)):
                if value > best[label]:
                    best[label], self.photographs[label] = value, images[place]

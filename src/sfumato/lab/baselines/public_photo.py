"""A public photograph of what the device answers: the obfuscation that needs no obfuscation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import TrainingError
from sfumato.lab.baselines.fit import learn
from sfumato.lab.baselines.method import Method, Training
from sfumato.lab.models import build_classifier
from sfumato.lab.models.normalize import Normalize

_LEARNING_RATE = 5e-3
_BATCH = 250


class StandIn(Method):
    """Answers on the device and sends, for every image of a class, the same public photograph of that class.

    Nothing of an image travels but the device's answer, and whatever classifier it is sent to understands it, since it
    is a photograph. The cloud adds nothing, either: what an obfuscator should beat before it is worth sending anything.

    Source: ours; the device's classifier is that of the project's local baseline.
    """

    says = "answers on the device and sends a public photograph of that class"
    source = "ours"
    strength_says = "the number of classes"
    default = 10.0
    learns = True
    iterates = True
    photographs: Tensor

    def __init__(self, height: int, width: int, *, strength: float | None = None, seed: int = 0) -> None:
        super().__init__(height, width, strength=strength, seed=seed)
        classes = self.whole()
        if classes < 2:
            raise TrainingError(f"{self.strength_says} must be at least 2, got {classes}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = build_classifier("resnet-local", classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scale = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        source = torch.Generator().manual_seed(seed)
        self.register_buffer(
            "photographs", torch.rand(classes, 3, height, width, generator=source)
        )  # until it is fitted

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`; the gradient is that of the photographs' mean, weighted by the answer's probabilities."""
        logits = self.net(self.scale(images))
        sent = self.photographs[logits.argmax(dim=1)]
        if torch.compiler.is_exporting():
            return sent
        mixed = torch.einsum("nk,kchw->nchw", logits.softmax(dim=1), self.photographs)
        return sent + (mixed - mixed.detach())

    def fit(self, training: Training) -> nn.Module:
        """Learns to answer, then takes of each class the photograph that the classifier in the cloud is surest of."""
        if int(training.labels.max()) >= len(self.photographs):
            raise TrainingError(
                f"the images have {int(training.labels.max()) + 1} classes, {self.strength_says} is "
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
        for start in range(0, len(training.labels), _BATCH):
            part, labels = (x[start : start + _BATCH] for x in (training.images, training.labels))
            images = part.float() / 255
            answers = training.classifier(training.normalize(images)).softmax(dim=1)
            sure = answers[torch.arange(len(labels)), labels]
            for place, (label, value) in enumerate(zip(labels.tolist(), sure.tolist(), strict=True)):
                if value > best[label]:
                    best[label], self.photographs[label] = value, images[place]

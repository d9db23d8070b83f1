"""Classifier and obfuscator trained together against a deobfuscator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import TrainingError
from sfumato.lab.baselines.fit import Encoded, learn
from sfumato.lab.baselines.method import Training
from sfumato.lab.classifiers.exported_programs import Program
from sfumato.lab.models import Deobfuscator

LEARNING_RATE = 2e-3


class Joint(Encoded):
    """The game of obfuscator and deobfuscator, with a classifier that learns along instead of a frozen one.

    The classifier starts from the frozen one's weights. It then answers well only on what this obfuscator
    makes: the cloud has to serve it, and whoever serves an unmodified classifier cannot use it.

    Source: Ren et al. 2018 (all three learn); Li et al. 2021 (DeepObfuscator; the
    obfuscator gets the reconstruction's error with a negative weight).
    """

    says = "an encoder against a deobfuscator, with a classifier retrained for it"
    source = "Ren et al. 2018; Li et al. 2021"
    strength_says = "the weight of the deobfuscator's squared error beside the cross-entropy"
    default = 1.0

    def fit(self, training: Training) -> nn.Module:
        """See `Method`; the classifier given is not touched."""
        if isinstance(training.classifier, Program):
            raise TrainingError(
                "this baseline retrains the classifier, which takes an architecture of ours; an adopted one is fixed"
            )
        classifier = copy.deepcopy(training.classifier).train().requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            deobfuscator = Deobfuscator().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            obfuscated = self(images)
            # The value of `obfuscated` with its gradient turned round: see Ganin and Lempitsky 2015, section 3.1.
            turned = (1 + self.weight) * obfuscated.detach() - self.weight * obfuscated
            logits = classifier(training.normalize(obfuscated))
            return F.cross_entropy(logits, labels) + F.mse_loss(deobfuscator(turned), images)

        self.train()
        learned = [*self.parameters(), *classifier.parameters(), *deobfuscator.parameters()]
        learn(training, learned, loss, seed=self.seed, learning_rate=LEARNING_RATE)
        self.eval()
        return classifier.eval().requires_grad_(False)

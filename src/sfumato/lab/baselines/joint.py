"""Classifier and obfuscator trained together against a deobfuscator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import TrainingError
from sfumato.lab.baselines.fit import ENCODER_RATE, Encoded, learn
from sfumato.lab.baselines.method import Training
from sfumato.lab.classifiers.exported_programs import Program
from sfumato.lab.models import Deobfuscator


class Joint(Encoded):
    """The game of obfuscator and deobfuscator, with a classifier that learns along instead of a frozen one.

    The classifier starts from the frozen one's weights. It is then accurate on this obfuscator's payload alone: the
    cloud has to serve it, and an unmodified classifier cannot be used.

    Source: Ren et al. 2018 (all three learn); Li et al. 2021 (DeepObfuscator; the
    obfuscator gets the reconstruction's error with a negative weight).
    """

    summary = "an encoder against a deobfuscator, with a classifier retrained for it"
    source = "Ren et al. 2018; Li et al. 2021"
    strength_help = "the weight of the deobfuscator's squared error, relative to cross-entropy"
    default = 1.0

    def fit(self, training: Training) -> nn.Module:
        """See `Method`; the frozen classifier is not changed."""
        if isinstance(training.classifier, Program):
            raise TrainingError(
                "this baseline retrains the classifier, which needs an architecture of ours; an imported one is fixed"
            )
        classifier = copy.deepcopy(training.classifier).train().requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            deobfuscator = Deobfuscator().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            obfuscated = self(images)
            # The value of `obfuscated` with its gradient reversed: see Ganin and Lempitsky 2015, section 3.1.
            reversed_ = (1 + self.weight) * obfuscated.detach() - self.weight * obfuscated
            logits = classifier(training.normalize(obfuscated))
            return F.cross_entropy(logits, labels) + F.mse_loss(deobfuscator(reversed_), images)

        self.train()
        learned = [*self.parameters(), *classifier.parameters(), *deobfuscator.parameters()]
        learn(training, learned, loss, seed=self.seed, learning_rate=ENCODER_RATE)
        self.eval()
        return classifier.eval().requires_grad_(False)

"""Encoders: networks trained to obfuscate, each by an objective of its own."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import TrainingError
from sfumato.lab.baselines.method import Loss, Method, Training, learn
from sfumato.lab.classifiers.exported_programs import Program
from sfumato.lab.models import Deobfuscator, Obfuscator

_RATE = 2e-3
LEVELS = 8
_BLOCK = 4


class Encoded(Method):
    """A method whose obfuscator is a network: the project's own architecture, so that its cost is the same.

    A subclass has the training loss in `objective`.

    Raises:
        TrainingError: sides that are no multiples of 8.
    """

    learns = True
    iterates = True

    def _set_up(self) -> None:
        multiple = Obfuscator.size_multiple
        if self.height % multiple or self.width % multiple:
            raise TrainingError(
                f"the encoder takes sides that are multiples of {multiple}, got {self.height}x{self.width}"
            )
        self.weight = self._positive()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.encoder = Obfuscator().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        out: Tensor = self.encoder(images)
        return out

    def objective(self, training: Training) -> tuple[Loss, list[nn.Module]]:
        """Return the loss and the further networks that are trained with the encoder."""
        raise NotImplementedError

    def fit(self, training: Training) -> nn.Module:
        """See `Method`."""
        self._learn(training, *self.objective(training))
        return training.classifier

    def _learn(self, training: Training, loss: Loss, others: list[nn.Module]) -> None:
        self.train()
        parameters = [parameter for net in (self, *others) for parameter in net.parameters()]
        learn(training, parameters, loss, seed=self.seed, learning_rate=_RATE)
        self.eval()


class NoPeek(Encoded):
    """An encoder with cross-entropy plus a weight times the distance correlation of images and payloads.

    Source: Vepakomma et al. 2020.
    """

    summary = "an encoder whose output has little distance correlation with the image"
    source = "Vepakomma et al. 2020"
    strength_help = "the weight of the distance correlation relative to the cross-entropy"
    default = 0.5

    def objective(self, training: Training) -> tuple[Loss, list[nn.Module]]:
        """See `Encoded`."""

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            obfuscated = self(images)
            penalty = distance_correlation(images, obfuscated)
            return training.classification_loss(obfuscated, labels) + self.weight * penalty

        return loss, []


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return the sample distance correlation of two sets of vectors, paired; differentiable.

    Source: Szekely, Rizzo and Bakirov 2007 (empirical distance correlation).

    Args:
        x: (N, ...) float, N at least 2.
        y: (N, ...) float.

    Returns:
        scalar in [0, 1]; 0 for a constant x or y.
    """
    a, b = _centred_distances(x), _centred_distances(y)
    covariance = (a * b).mean().clamp_min(0)
    variances = a.square().mean() * b.square().mean()
    return (covariance / variances.sqrt().clamp_min(1e-12) + 1e-12).sqrt()


def _centred_distances(x: Tensor) -> Tensor:
    """Return distances (N, N), whose rows and columns sum to 0, of (N, ...)."""
    flat = x.flatten(1).float()
    # Not by a matrix product: it cancels where two points are close.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


class MaxEntropy(Encoded):
    """An encoder with cross-entropy less a weight times the entropy of an adversary's prediction.

    The paper's adversary predicts a labelled attribute. Images here have no such label, so the attribute is the
    brightness of every block of 4x4 pixels, in 8 levels that are equally frequent in the training images. The class
    hardly determines it, and an adversary at maximal entropy knows nothing of the image at this resolution. The
    classifier stays frozen; it replaces the paper's predictor.

    Source: Roy and Boddeti 2019 (encoder: maximum entropy; adversary: maximum likelihood).
    """

    summary = "an encoder that keeps an adversary from predicting every 4x4 block's brightness"
    source = "Roy and Boddeti 2019"
    strength_help = "the weight of the adversary's entropy relative to the cross-entropy"
    default = 0.3

    def objective(self, training: Training) -> tuple[Loss, list[nn.Module]]:
        """See `Encoded`."""
        brightness = block_brightness(training.images[:: max(1, len(training.images) // 2000)].float() / 255)
        levels = torch.arange(1, LEVELS) / LEVELS
        edges = torch.quantile(brightness.flatten()[:1_000_000], levels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            adversary = _adversary()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            obfuscated = self(images)
            truth = torch.bucketize(block_brightness(images), edges)
            likelihood = F.cross_entropy(adversary(obfuscated.detach()), truth)  # moves the adversary alone
            adversary.requires_grad_(False)
            entropy = mean_entropy(adversary(obfuscated))  # moves the encoder alone
            adversary.requires_grad_(True)
            # Subtracted from the most that is possible, so that the loss is never negative.
            uncertainty = math.log(LEVELS) - entropy
            return training.classification_loss(obfuscated, labels) + self.weight * uncertainty + likelihood

        return loss, [adversary]


def block_brightness(images: Tensor) -> Tensor:
    """Return means over colours and blocks: (N, 3, H, W) float -> (N, H / 4, W / 4)."""
    return F.avg_pool2d(images.mean(dim=1, keepdim=True), _BLOCK)[:, 0]


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the predictions in nats, averaged over N, H and W; logits are (N, levels, H, W)."""
    logs = logits.float().log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def _adversary() -> nn.Sequential:
    """Obfuscated images (N, 3, H, W) -> logits (N, levels, H / 4, W / 4)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, _BLOCK, stride=_BLOCK),
        nn.LeakyReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(64, LEVELS, 1),
    )


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

        self._learn(training, loss, [classifier, deobfuscator])
        return classifier.eval().requires_grad_(False)

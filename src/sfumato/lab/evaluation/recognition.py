"""What is recognised in reconstructions by an evaluator that no attacker has.

Pixel errors agree weakly with what a person recognises. These measures agree better, each with its own blind spot, so
that every one is stated beside what the label alone reaches (0) and what the image itself reaches (1).

Source: label agreement, Zhang et al. 2020 (The Secret Revealer); similarity of features, Zhang et al. 2018 (LPIPS);
kernel distance, Binkowski et al. 2018 (Demystifying MMD GANs), section 3, with the evaluator's own features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.image.kid import poly_mmd

from sfumato.errors import AuditError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.evaluator import Evaluator
from sfumato.lab.evaluation.measures import check_reconstructed, proportion_interval

SUBSETS = 10
"""Disjoint parts of the images that a kernel distance is the mean over."""
LEAST_IMAGES = 4 * SUBSETS
"""Fewer images than this have no kernel distance: two reconstructions and two originals in each part."""
_TYPICAL_OF = 2_000
"""Images among which the most typical one of each class is looked for."""
_TELLS_APART = 0.02
"""A measure that puts the image itself no further than this above what the label gives tells nothing beyond it."""

Measure = Literal["label_agreement", "feature_cosine", "kernel_distance"]


@dataclass(frozen=True)
class Recognition:
    """What an evaluator recognises in reconstructions.

    Attributes:
        label_agreement: share that it classifies as the original's class.
        label_low: of the 95 % interval of that share.
        label_high: likewise.
        feature_cosine: mean cosine of the angle between the features of reconstruction and original.
        cosine_error: standard error of that mean.
        kernel_distance: squared maximum mean discrepancy between the features of reconstructions and of other
            originals, unbiased, so that it may be a little below 0; 0 where they cannot be told from images. None with
            fewer than `LEAST_IMAGES`.
        kernel_error: its standard error over disjoint subsets; None likewise.
        images: how many were judged.
    """

    label_agreement: float
    label_low: float
    label_high: float
    feature_cosine: float
    cosine_error: float
    kernel_distance: float | None
    kernel_error: float | None
    images: int


@dataclass(frozen=True)
class RecognitionScale:
    """The ends of the measures.

    Attributes:
        label_only: guess from the label alone -> what is recognised in it.
        image: what is recognised in the images themselves.
        learned_from: images that the evaluator was trained on.
    """

    label_only: dict[str, Recognition]
    image: Recognition
    learned_from: int

    def ends(self, measure: Measure) -> tuple[float, float] | None:
        """Return what the label alone reaches, by its best guess, and the image itself; None if not measured."""
        guesses = [getattr(one, measure) for one in self.label_only.values()]
        image = getattr(self.image, measure)
        if image is None or None in guesses or not guesses:
            return None
        return (min if measure == "kernel_distance" else max)(guesses), image

    def share(self, measure: Measure, found: Recognition) -> float | None:
        """Return where a reconstruction lies: 0 no better than the label alone, 1 the image.

        None where it was not measured, or where the measure does not tell the image from what the label alone gives.
        """
        ends, value = self.ends(measure), getattr(found, measure)
        if ends is None or value is None:
            return None
        low, high = ends
        forward = low - high if measure == "kernel_distance" else high - low
        if forward <= _TELLS_APART:
            return None
        return min(max(float((value - low) / (high - low)), 0.0), 1.0)


class Recogniser:
    """Judges reconstructions of the same originals.

    Args:
        evaluator: has seen none of them.
        originals: (M, 3, H, W) uint8.
        labels: (M,) int64, their classes.
        seed: of the subsets.

    Raises:
        AuditError: no images, or not one label for each.
    """

    def __init__(self, evaluator: Evaluator, originals: Tensor, labels: Tensor, *, seed: int = 0) -> None:
        if not len(originals) or labels.shape != originals.shape[:1]:
            raise AuditError(f"{len(originals)} originals and {len(labels)} labels: need one label for each")
        self.evaluator, self.originals, self.labels, self.seed = evaluator, originals, labels, seed
        self.features, _ = evaluator.judge(originals)

    def measure(self, reconstructed: Tensor) -> Recognition:
        """Judge reconstructions (K, 3, H, W) float in [0, 1] of the first K originals.

        Raises:
            AuditError: more of them than originals, or as for `sfumato.lab.evaluation.measures.measure`.
        """
        count = len(reconstructed)
        check_reconstructed(reconstructed, self.originals[:count])
        features, classes = self.evaluator.judge(reconstructed)
        hits = int((classes == self.labels[:count]).sum())
        low, high = proportion_interval(hits, count)
        cosines = F.cosine_similarity(features, self.features[:count], dim=1).double()
        distance, error = kernel_distance(features, self.features[:count], seed=self.seed)
        return Recognition(
            label_agreement=hits / count,
            label_low=low,
            label_high=high,
            feature_cosine=float(cosines.mean()),
            cosine_error=float(cosines.std(correction=min(1, count - 1))) / math.sqrt(count),
            kernel_distance=distance,
            kernel_error=error,
            images=count,
        )

    def scale(self, public: ImageSet) -> RecognitionScale:
        """Return the ends of the measures; guesses from the label are made of public images.

        Raises:
            AuditError: a class without public images.
        """
        guesses = {name: self.measure(guess()) for name, guess in self._label_only(public).items()}
        return RecognitionScale(guesses, self.measure(self.originals.float() / 255), self.evaluator.learned_from)

    def _label_only(self, public: ImageSet) -> Mapping[str, Callable[[], Tensor]]:
        classes = range(len(public.names))
        own = [(public.labels == label).nonzero()[:, 0] for label in classes]
        needed = set(self.labels.tolist())
        if missing := [public.names[label] for label in classes if label in needed and not len(own[label])]:
            raise AuditError(f"no public images of {', '.join(missing)}: nothing can be guessed from that label")
        source = torch.Generator().manual_seed(self.seed)
        size = self.originals.shape[1:]

        def mean() -> Tensor:
            empty = torch.zeros(size)
            means = [public.images[of].float().mean(dim=0) / 255 if len(of) else empty for of in own]
            return torch.stack(means)[self.labels]

        def sampled() -> Tensor:
            places = [own[label][torch.randint(len(own[label]), (), generator=source)] for label in self.labels]
            return public.images[torch.stack(places)].float() / 255

        def typical() -> Tensor:
            each = max(1, _TYPICAL_OF // len(own))
            chosen = torch.zeros(len(own), dtype=torch.int64)
            for label, of in enumerate(own):
                if len(of):
                    features = F.normalize(self.evaluator.judge(public.images[of[:each]])[0])
                    chosen[label] = of[(features @ features.mean(dim=0)).argmax()]
            return public.images[chosen[self.labels]].float() / 255

        return {
            "the mean image of the same class": mean,
            "a random training image of the same class": sampled,
            "the most typical training image of the same class": typical,
        }


def kernel_distance(features: Tensor, originals: Tensor, *, seed: int) -> tuple[float | None, float | None]:
    """Return the kernel distance (KID) of reconstructions' features from originals', and its standard error.

    The images are divided into `SUBSETS` disjoint parts; in each, the reconstructions of one half are compared with the
    originals of the other half, as a reconstruction and its own original are not independent. So the parts are
    independent, and the standard error of their mean is that of the distance.

    Args:
        features: (N, D) float, of reconstructions.
        originals: (N, D) float, of the originals, row by row.
        seed: of the division.

    Returns:
        Both are None for fewer than `LEAST_IMAGES`.

    Raises:
        AuditError: shapes that do not fit, or features that are not finite.

    Source: Binkowski et al. 2018, section 3: kernel (x y / D + 1)^3, unbiased estimate of Gretton et al. 2012, lemma 6.
    """
    if features.ndim != 2 or features.shape != originals.shape:
        raise AuditError(f"features {tuple(features.shape)} and {tuple(originals.shape)}: need (N, D) of each")
    if not bool(features.isfinite().all() and originals.isfinite().all()):
        raise AuditError("some features are not finite: the evaluator is broken")
    if len(features) < LEAST_IMAGES:
        return None, None
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    half = len(features) // (2 * SUBSETS)
    parts = order[: 2 * SUBSETS * half].reshape(SUBSETS, 2, half)
    distances = torch.stack([poly_mmd(originals[b].double(), features[a].double()) for a, b in parts])
    return float(distances.mean()), float(distances.std()) / math.sqrt(SUBSETS)

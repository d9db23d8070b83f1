"""Reconstruction from a code of few words: for each word, the mean of the images with it.

No estimate from the word alone has a smaller squared error than the mean of all images with that word, so with many
images and few words this is close to the best possible attacker.

Source: the conditional mean as the least-squares estimate, Papoulis 1991, section 7-4; the shrinkage of rare words
towards the mean of all is that of empirical Bayes, Efron and Morris 1975.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sfumato.errors import AuditError

MOST_WORDS = 4096
_DIGITS = 1e3
"""The payload for one word may differ in the last bits; words are told apart at this many steps per unit."""


class CodewordMeans(nn.Module):
    """The nearest known word's mean image: words (K, D) float32, flattened payloads; means (K, 3, H, W) in [0, 1]."""

    words: Tensor
    means: Tensor
    norms: Tensor

    def __init__(self, words: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words)
        self.register_buffer("means", means)
        self.register_buffer("norms", words.square().sum(dim=1))

    def forward(self, observed: Tensor) -> Tensor:
        """Payloads (N, C, H', W') float32 -> (N, 3, H, W) float32 in [0, 1]."""
        nearness = 2 * observed.flatten(1) @ self.words.float().T - self.norms
        return self.means.float()[nearness.argmax(dim=1)]

    def reduced(self, counts: Tensor, most: int, least: int = 0) -> CodewordMeans:
        """Return the `most` commonest words, given how many images each has, (K,) int64, for a small file.

        Words of fewer than `least` images are left out, except for the commonest one: they are read as the nearest.

        The tables are in half precision, and cast when they are used.
        """
        kept = counts.argsort(descending=True)[: max(1, min(most, int((counts >= least).sum())))]
        small = CodewordMeans(self.words[kept], self.means[kept])
        small.words, small.means = small.words.half(), small.means.half()
        return small


def codeword_means(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[CodewordMeans, Tensor]:
    """Learn the mean image of every word from batches of images (B, 3, H, W) and payloads (B, C, H', W') float32.

    Returns:
        The estimate, and how many images each word had, (K,) int64.

    Raises:
        AuditError: no pairs, or more than `MOST_WORDS` different words.
    """
    places: dict[bytes, int] = {}
    words: list[Tensor] = []
    sums: list[Tensor] = []
    counts: list[int] = []
    squares = 0.0
    for images, observed in pairs:
        keys = _keys(observed)
        squares += float(images.double().square().sum())
        for image, payload, key in zip(images, observed, keys, strict=True):
            place = places.setdefault(key, len(words))
            if place == len(words):
                if place == MOST_WORDS:
                    raise AuditError(f"the payload takes more than {MOST_WORDS} different values: it is no code")
                words.append(payload.flatten().clone())
                sums.append(torch.zeros_like(image, dtype=torch.float64))
                counts.append(0)
            sums[place] += image
            counts[place] += 1
    if not words:
        raise AuditError("no pairs to learn the words from")
    known, totals = torch.tensor(counts), torch.stack(sums)
    means = _shrunk(totals, known, squares)
    return CodewordMeans(torch.stack(words), means.float().clamp(0, 1)), known


def word_numbers(observed: Tensor) -> Tensor:
    """Return which word each payload is, (N,) int64 from 0 on in the order of appearance.

    Payloads (N, C, H', W') float32 are told apart up to the last bits.
    """
    places: dict[bytes, int] = {}
    return torch.tensor([places.setdefault(key, len(places)) for key in _keys(observed)], dtype=torch.int64)


def _keys(observed: Tensor) -> list[bytes]:
    rounded = (observed.flatten(1) * _DIGITS).round().int().numpy()
    return [row.tobytes() for row in rounded]


def _shrunk(totals: Tensor, counts: Tensor, squares: float) -> Tensor:
    """Return the means of the words, rare ones shrunk towards the mean of all as far as chance explains their distance.

    `totals` (K, 3, H, W) are the sums of each word's images, `squares` is that of all squared numbers.
    """
    n = counts.double()[:, None, None, None]
    means, grand = totals / n, totals.sum(dim=0) / n.sum()
    numbers = grand.numel()
    within = max(0.0, squares - float((n * means.square()).sum())) / max(1.0, float(n.sum()) - len(counts)) / numbers
    spread = float((n * (means - grand).square()).sum()) / float(n.sum()) / numbers
    between = max(1e-12, spread - within * (len(counts) - 1) / float(n.sum()))
    return grand + (means - grand) * n / (n + within / between)

"""Re-identification: which of N images of one class was sent, and which two payloads show the same image.

"retrieval" finds the image of a payload among candidates; "linkage" finds another payload of the same image.

Source: learned scores: contrastive predictive coding, van den Oord et al. 2018, equation 4; with two encoders as
in Radford et al. 2021 (CLIP), figure 3; of two views of an image as in Chen et al. 2020 (SimCLR), section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError
from sfumato.lab.attacks.encoders import Encoder
from sfumato.lab.attacks.protocol import AttackBudget, Reconstruct
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Pairs, Threat
from sfumato.lab.evaluation.measures import proportion_interval, retrieval_top1

BATCH = 128
ANOTHER_VIEW = "another view"
"""Ends the names of attackers that link two views of one image, not the same image sent twice."""
_FEATURES = 128
_SHIFT = 8
"""Another view is shifted by up to this part of the image's side, one eighth."""
_BRIGHTNESS = 0.2
"""Another view is brighter or darker by up to this share."""
OF_ATTACKER = "distance of images by the "
"""Begins the name of what an attacker that reconstructs slowly re-identifies with."""
_CHANCE_HITS = 5
"""Of chance must be expected, so that an interval around chance is not all chance."""

Observe = Callable[[Tensor], Tensor]
"""(N, 3, H, W) uint8 -> the payload for them, (N, C, H', W') float32."""
Features = tuple[Tensor, Tensor]
"""What is compared: of the queries (Q, D) and of all test images (M, D); Euclidean distance."""
Measure = Literal["retrieval", "linkage"]


@dataclass(frozen=True)
class Identification:
    """Top-1 re-identification among N candidates.

    Attributes:
        measure: "retrieval" (payload -> image) or "linkage" (payload -> payload).
        attacker: what it compares.
        threat: what it knows.
        candidates: N.
        top1: how often the true one was nearest; ties count their share.
        chance: what the label alone gives: one out of the candidates of the query's class; 1 / N if all are.
        queries: how many payloads were tried.
        low: of the 95 % interval of `top1`.
        high: likewise.
        classes: whether the candidates are of the query's class alone, or of all classes.
    """

    measure: Measure
    attacker: str
    threat: Threat
    candidates: int
    top1: float
    chance: float
    queries: int
    low: float
    high: float
    classes: Literal["one", "all"] = "one"


def identify(
    knowledge: Knowledge,
    observed_test: Tensor,
    originals_test: Tensor,
    labels: Tensor,
    *,
    reconstruct: Reconstruct | None,
    budget: AttackBudget,
    observe: Observe | None,
    seed: int,
    candidates: tuple[int, ...] = (10, 100),
    galleries: tuple[int, ...] = (),
    embed: Callable[[Tensor], Tensor] | None = None,
    queries: int = 500,
) -> list[Identification]:
    """Run every re-identification attack that the threat model allows.

    Args:
        knowledge: what the attacker knows; learned scores are trained on its pairs.
        observed_test: (M, C, H', W') float32, the payload for the first test images: the queries.
        originals_test: (T, 3, H, W) uint8, the test images, at least M: the candidates, and the truth of the score.
        labels: (T,) int64, their classes: candidates share the query's, and are among the first M.
        reconstruct: the best decoder under this threat, if there is one.
        budget: of each learned score.
        observe: makes payloads of other views of the test images, for linkage; None leaves linkage out.
        seed: of queries, candidates and views.
        candidates: how many there are to choose from; where classes are too small, the largest number that
            half of the test images have companions for.
        galleries: how many there are to choose from of all classes, for retrieval, of all T images; T if that is less.
        embed: images (N, 3, H, W) float32 in [0, 1] -> (N, D) float32 features to compare reconstructions by.
        queries: at most.

    Returns:
        One entry for each attack and number of candidates.

    Raises:
        AuditError: lengths do not fit, or no two test images share a class.
    """
    count = len(observed_test)
    if not count <= len(originals_test) == len(labels):
        raise AuditError(
            f"{count} payloads, {len(originals_test)} images and {len(labels)} labels: need one each, of the first"
        )
    rounds = [_Round.sample(labels[:count], number, queries, seed) for number in _counts(labels[:count], candidates)]
    queried = torch.unique(torch.cat([r.queries for r in rounds]))
    sent = observed_test[queried]
    found: list[Identification] = []
    shown = [
        _Gallery.sample(rounds[0].queries, labels, number, seed)
        for number in sorted({min(max(number, len(rounds[0].queries)), len(labels)) for number in galleries})
    ]
    every: list[_Round | _Gallery] = [*rounds, *shown]
    for name, features in _retrieval(knowledge, sent, originals_test, reconstruct, budget, embed):
        found += [r.score("retrieval", name, knowledge.threat, features, queried) for r in every]
    if observe is not None:
        originals = originals_test[:count]
        views = another_view(originals, torch.Generator().manual_seed(seed))
        for name, features in _linkage(knowledge.pairs, sent, originals, views, reconstruct, budget, observe):
            found += [r.score("linkage", name, knowledge.threat, features, queried) for r in rounds]
    return found


def identify_reconstructed(
    reconstructed: Tensor,
    originals_test: Tensor,
    labels: Tensor,
    *,
    attacker: str,
    threat: Threat,
    seed: int,
    candidates: tuple[int, ...] = (10, 100),
    queries: int = 500,
) -> list[Identification]:
    """Re-identify images by reconstructions that are there, of an attacker that is too slow to be called again.

    Args:
        reconstructed: (K, 3, H, W) float32 in [0, 1], of the first K test images: the queries.
        originals_test: see `identify`.
        labels: see `identify`.
        attacker: whose reconstructions they are.
        threat: what it knows.
        seed: of queries and candidates.
        candidates: see `identify`; numbers that fewer than five queries would be right among by chance are left out.
        queries: at most.

    Raises:
        AuditError: no two test images share a class.
    """
    every, pool = torch.arange(len(reconstructed)), originals_test.float().flatten(1) / 255
    counts = [count for count in _counts(labels, candidates) if _CHANCE_HITS * count <= min(queries, len(every))]
    rounds = [_Round.sample(labels, count, queries, seed, among=len(every)) for count in counts]
    name, features = f"{OF_ATTACKER}{attacker}", (reconstructed.flatten(1), pool)
    return [r.score("retrieval", name, threat, features, every) for r in rounds if len(r.queries)]


def _retrieval(
    knowledge: Knowledge,
    sent: Tensor,
    originals: Tensor,
    reconstruct: Reconstruct | None,
    budget: AttackBudget,
    embed: Callable[[Tensor], Tensor] | None,
) -> Iterator[tuple[str, Features]]:
    pairs = knowledge.pairs
    if reconstruct is not None:
        guessed = batched(reconstruct, sent, flat=False)
        yield "distance of reconstructed images", (guessed.flatten(1), originals.float().flatten(1) / 255)
        if embed is not None:
            of_pool = batched(lambda part: embed(part.float() / 255), originals)
            yield "features of reconstructed images", (F.normalize(batched(embed, guessed)), F.normalize(of_pool))
    if pairs is not None:
        of_payloads, of_images = _train_matcher(pairs, budget)
        of_pool = batched(lambda part: of_images(part.float() / 255), originals)
        yield "contrastive embedding", (batched(of_payloads, sent), of_pool)
    if (encode := knowledge.encode) is not None:  # noise in the candidates would not help
        again = batched(lambda part: encode(part.float() / 255), originals)
        yield "obfuscating the candidates", _standardised(sent.flatten(1), again)


def _linkage(
    pairs: Pairs | None,
    sent: Tensor,
    originals: Tensor,
    views: Tensor,
    reconstruct: Reconstruct | None,
    budget: AttackBudget,
    observe: Observe,
) -> Iterator[tuple[str, Features]]:
    gallery = batched(observe, views, flat=False)
    yield "distance, same image again", _standardised(sent.flatten(1), batched(observe, originals))
    yield f"distance, {ANOTHER_VIEW}", _standardised(sent.flatten(1), gallery.flatten(1))
    if reconstruct is not None:
        of_gallery = batched(reconstruct, gallery)
        yield f"distance of reconstructed images, {ANOTHER_VIEW}", (batched(reconstruct, sent), of_gallery)
    if isinstance(pairs, FreshPairs):
        encoder = _train_linker(pairs, budget)
        yield f"contrastive embedding, {ANOTHER_VIEW}", (batched(encoder, sent), batched(encoder, gallery))


def another_view(images: Tensor, generator: torch.Generator, *, alike: bool = False) -> Tensor:
    """Imitate another photograph of the same thing: mirrored or not, shifted, brighter or darker.

    Each image is changed in its own way, or all `alike`. The shape (N, 3, H, W) and uint8 stay.
    """
    number, _, height, width = images.shape
    count = 1 if alike else number
    up, left = height // _SHIFT, width // _SHIFT
    padded = F.pad(images.float(), (left, left, up, up), mode="replicate")
    mirrored = torch.rand(count, generator=generator) < 0.5
    padded = torch.where(mirrored[:, None, None, None], padded.flip(3), padded)
    rows = torch.randint(2 * up + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * left + 1, (count, 1), generator=generator) + torch.arange(width)
    each = torch.arange(number)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    light = 1 + _BRIGHTNESS * (2 * torch.rand((count, 1, 1, 1), generator=generator) - 1)
    return (shifted * light).round().clamp(0, 255).byte()


def train(module: nn.Module, losses: Iterator[Tensor], budget: AttackBudget, *, learning_rate: float = 1e-3) -> None:
    """Train with Adam at a rate that falls linearly to 0; leave the module in evaluation mode.

    `losses` yields the loss of a new batch of `BATCH` images each time.

    Raises:
        AuditError: the loss is not finite.
    """
    steps = max(1, budget.images // BATCH)
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for step, loss in zip(range(steps), losses, strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if not torch.isfinite(loss):
            raise AuditError(f"the attacker's loss is {float(loss)} at step {step}: the payload is not finite")
        budget.report(step + 1, steps)
    module.eval()


class _Matcher(nn.Module):
    """Two encoders (one twice, for two views of one kind) and the scale of their similarity."""

    def __init__(self, first: Encoder, second: Encoder) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Row i of x belongs to row i of y and to no other."""
        similarity = self.log_scale.exp() * F.normalize(self.first(x)) @ F.normalize(self.second(y)).T
        truth = torch.arange(len(x), device=similarity.device)
        return (F.cross_entropy(similarity, truth) + F.cross_entropy(similarity.T, truth)) / 2


def _train_matcher(pairs: Pairs, budget: AttackBudget) -> tuple[Observe, Observe]:
    """Encoders of payloads and of images in which those that belong together are near."""
    source = torch.Generator().manual_seed(budget.seed)
    images, observed = pairs.examples(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        matcher = _Matcher(Encoder(observed, _FEATURES), Encoder(images, _FEATURES)).to(budget.device)

    def losses() -> Iterator[Tensor]:
        while True:
            y, x = pairs.batch(_some(pairs, source), source)
            yield matcher.loss(x.to(budget.device), y.to(budget.device))

    train(matcher, losses(), budget)
    return _embedding(matcher.first, budget.device), _embedding(matcher.second, budget.device)


def _train_linker(pairs: FreshPairs, budget: AttackBudget) -> Observe:
    """One encoder of payloads in which two views of one image are near."""
    source = torch.Generator().manual_seed(budget.seed)
    _, observed = pairs.examples(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        encoder = Encoder(observed, _FEATURES)
    matcher = _Matcher(encoder, encoder).to(budget.device)

    @torch.no_grad()
    def payload(images: Tensor) -> Tensor:
        return pairs.payload(images.float() / 255).to(budget.device)

    def losses() -> Iterator[Tensor]:
        while True:
            images = pairs.images[_some(pairs, source)]
            yield matcher.loss(payload(images), payload(another_view(images, source)))

    train(matcher, losses(), budget)
    return _embedding(encoder, budget.device)


def _some(pairs: Pairs, source: torch.Generator) -> Tensor:
    """Indices of a batch without repetition: an image that comes twice would be a negative of itself."""
    return torch.randperm(len(pairs), generator=source)[:BATCH]


def _embedding(encoder: Encoder, device: torch.device) -> Observe:
    return lambda x: F.normalize(encoder(x.to(device))).cpu()


@torch.no_grad()
def batched(function: Observe, inputs: Tensor, *, flat: bool = True) -> Tensor:
    """The function's values for many inputs (N, ...), 250 at a time; (N, D) if `flat`, else of its own shape."""
    out = torch.cat([function(part) for part in torch.split(inputs, 250)])
    return out.flatten(1) if flat else out


def _standardised(queries: Tensor, pool: Tensor) -> Features:
    """Each number on its own scale; one that never changes says nothing."""
    std, mean = torch.std_mean(pool, dim=0)
    std = torch.where(std > 1e-6, std, torch.inf)
    return (queries - mean) / std, (pool - mean) / std


def _counts(labels: Tensor, wanted: tuple[int, ...]) -> list[int]:
    """As many candidates as wanted, or as half of the test images have classes large enough for."""
    sizes = torch.bincount(labels)[labels]
    largest = int(sizes.median()) if len(sizes) else 0
    if largest < 2:
        raise AuditError("identification needs test images that share a class; most of these are alone in theirs")
    return sorted({min(count, largest) for count in wanted})


@dataclass(frozen=True)
class _Round:
    """Queries (Q,), their candidates (Q, N), and the true one's place (Q,); indices of test images."""

    queries: Tensor
    candidates: Tensor
    truth: Tensor

    @classmethod
    def sample(cls, labels: Tensor, count: int, queries: int, seed: int, *, among: int | None = None) -> _Round:
        """Sample queries, among the first images if so many are given, and their candidates among all."""
        source = torch.Generator().manual_seed(seed)
        sizes = torch.bincount(labels)[labels]
        queried = torch.randperm(len(labels), generator=source)
        queried = queried[(sizes[queried] >= count) & (queried < (among or len(labels)))][:queries]
        truth = torch.randint(count, (len(queried),), generator=source)
        rows = []
        for query, place in zip(queried.tolist(), truth.tolist(), strict=True):
            others = (labels == labels[query]).nonzero()[:, 0]
            others = others[others != query]
            row = others[torch.randperm(len(others), generator=source)[: count - 1]]
            rows.append(torch.cat([row[:place], torch.tensor([query]), row[place:]]))
        return cls(queried, torch.stack(rows), truth)

    def score(
        self, measure: Measure, attacker: str, threat: Threat, features: Features, queried: Tensor
    ) -> Identification:
        """Score the attack; the features of queries are in the order of `queried`, sorted indices of test images."""
        of_queries, of_pool = features
        rows = torch.searchsorted(queried, self.queries)
        scores = torch.stack(
            [
                -(of_pool[candidates] - of_queries[row]).square().sum(dim=1)
                for row, candidates in zip(rows.tolist(), self.candidates, strict=True)
            ]
        )
        top1, count = retrieval_top1(scores, self.truth), self.candidates.shape[1]
        low, high = proportion_interval(top1 * len(self.queries), len(self.queries))
        return Identification(measure, attacker, threat, count, top1, 1 / count, len(self.queries), low, high)


@dataclass(frozen=True)
class _Gallery:
    """Queries (Q,) and the candidates of all of them, (N,), the queries first; indices of test images.

    The chance is what the label alone gives.
    """

    queries: Tensor
    candidates: Tensor
    chance: float

    @classmethod
    def sample(cls, queries: Tensor, labels: Tensor, count: int, seed: int) -> _Gallery:
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        others = shuffled[~torch.isin(shuffled, queries)][: count - len(queries)]
        candidates = torch.cat([queries, others])
        alike = labels[candidates].bincount()[labels[queries]]
        return cls(queries, candidates, float((1 / alike.double()).mean()))

    def score(
        self, measure: Measure, attacker: str, threat: Threat, features: Features, queried: Tensor
    ) -> Identification:
        """Score the attack; see `_Round.score`."""
        of_queries, of_pool = features
        rows, pool = of_queries[torch.searchsorted(queried, self.queries)], of_pool[self.candidates]
        # By differences, as products would tell equal candidates apart by their rounding.
        scores = -torch.cdist(rows, pool, compute_mode="donot_use_mm_for_euclid_dist")
        count, tried = len(self.candidates), len(self.queries)
        top1 = retrieval_top1(scores, torch.arange(tried))
        low, high = proportion_interval(top1 * tried, tried)
        return Identification(measure, attacker, threat, count, top1, self.chance, tried, low, high, "all")

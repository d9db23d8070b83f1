"""Attacks on the payloads for many frames of one scene, under policies that send all, some or few of them.

A frame that is handled on-device gives an attacker nothing but its silence; of a scene of which nothing is sent, the
class mean stands for the reconstruction, as everywhere in an audit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import Reconstruct
from sfumato.lab.attacks.target import LocalClassifier, Target
from sfumato.lab.audit.model import Model
from sfumato.lab.data import ImageSet
from sfumato.lab.data.camera import Camera, frames
from sfumato.lab.evaluation.measures import excess_leakage, per_image, proportion_interval, retrieval_top1
from sfumato.progress import Progress, silent, tracked

COUNTS = (1, 2, 5, 10, 30, 100)
"""Of frames, at which the leakage is measured."""
CANDIDATES = 100
"""Of the scene's class, at most."""
EVERY = 10
"""With a rate limit, one frame of so many is sent."""
_SIMULATED = 8
"""Frames that the attacker simulates of each candidate, as it holds the obfuscator and knows the camera."""
_FLAT = 1e-6

Policy = Literal[
    "every frame", "every 10th frame", "prediction changes or gate is unsure", "gate", "gate, every 10th frame"
]
"""Which frames are sent; the last three need a gate. The second but last sends what the gate is unsure of."""


class Recognised(Model):
    """How often the attacker chooses the true scene among the candidates.

    Attributes:
        attacker: what it compares.
        top1: in [0, 1]; equal candidates share the hit.
        low: of the 95 % interval.
        high: likewise.
    """

    attacker: str
    top1: float
    low: float
    high: float


class FramesLeakage(Model):
    """What leaks of a scene of which so many frames were taken.

    Attributes:
        policy: which of the frames are sent.
        frames: that were taken.
        sent: of these, on average over scenes.
        silent: share of the scenes of which nothing was sent.
        mse: of the averaged reconstructions to the scene, pixels in [0, 1].
        excess_leakage: of that error: 0, only the label leaks; 1, the image.
        linkage: payloads of the same scene at another time are found among those of others of its class.
        identification: the scene's image is found among others of its class.
    """

    policy: Policy
    frames: int
    sent: float
    silent: float
    mse: float
    excess_leakage: float
    linkage: tuple[Recognised, ...]
    identification: tuple[Recognised, ...]


def sent_frames(images: Tensor, gate: LocalClassifier | None) -> dict[Policy, Tensor]:
    """Return which frames (F, 3, H, W) uint8 each policy sends, (F,) bool."""
    seldom = torch.arange(len(images)) % EVERY == 0
    chosen: dict[Policy, Tensor] = {"every frame": torch.ones_like(seldom), "every 10th frame": seldom}
    if gate is not None:
        logits = gate.logits(images.float() / 255)
        unsure, predicted = gate.sends(logits), logits.argmax(dim=1)
        changes = torch.cat([torch.ones(1, dtype=torch.bool), predicted[1:] != predicted[:-1]])
        chosen["prediction changes or gate is unsure"] = changes | unsure
        chosen["gate"] = unsure
        chosen["gate, every 10th frame"] = unsure & seldom
    return chosen


@dataclass(frozen=True)
class _Session:
    """The frames of all scenes, summed up for each policy and number of frames: R rows.

    Attributes:
        sent: (S, R) float64, how many were sent.
        payloads: (S, R, D) float32, their mean, standardised; zeros where nothing was sent.
        images: (S, R, 3, H, W) float32, the mean of their reconstructions; the class mean where nothing was sent.
        nearest: (S, R, N) float32, mean distance of a sent payload to the nearest simulated one of each candidate.
    """

    sent: Tensor
    payloads: Tensor
    images: Tensor
    nearest: Tensor


class FramesRun:
    """Attack the payloads for frames of scenes.

    Args:
        target: the obfuscator.
        scenes: S of them; candidates share a scene's class.
        means: (S, 3, H, W) float32, what stands for a scene of which nothing is sent.
        reconstruct: payloads of single frames -> images.
        camera: how frames differ.
        seed: of everything random.
        progress: counts scenes.

    Raises:
        AuditError: most scenes are alone in their class.
    """

    def __init__(
        self,
        target: Target,
        scenes: ImageSet,
        means: Tensor,
        reconstruct: Reconstruct,
        camera: Camera,
        seed: int = 0,
        progress: Progress = silent,
    ) -> None:
        self.target, self.scenes, self.means, self.reconstruct = target, scenes, means, reconstruct
        self.camera, self.seed, self.progress = camera, seed, progress
        self._size: tuple[int, ...] = ()
        self.queries, self.candidates = _candidates(scenes.labels, seed)
        self.rows = [(policy, count) for policy in sent_frames(scenes.images[:1], target.gate) for count in COUNTS]

    @torch.no_grad()
    def leakages(self) -> tuple[FramesLeakage, ...]:
        """Return what leaks, for each policy and number of frames."""
        with torch.random.fork_rng(devices=[]):  # of stochastic obfuscators
            torch.manual_seed(self.seed)
            sources = (torch.Generator().manual_seed(1_000 * self.seed + number) for number in range(3))
            simulated = self._simulated(next(sources))
            first, later = (self._session(source, simulated) for source in sources)
        originals = self.scenes.images.float().flatten(1) / 255
        # Each attacker's distances from a scene to all scenes, row by row, (S, S).
        gallery = simulated.standard(simulated.payloads.mean(dim=1))
        label_only = float(per_image(self.means, self.scenes.images)[0].double().mean())
        found = []
        for row, (policy, count) in enumerate(self.rows):
            images, sent = first.images[:, row], first.sent[:, row]
            mse = float(per_image(images.clamp(0, 1), self.scenes.images)[0].double().mean())
            flat, payloads = images.flatten(1), first.payloads[:, row]
            linkage = {
                "distance of mean payloads": _distances(payloads, later.payloads[:, row]),
                "distance of mean reconstructions": _distances(flat, later.images[:, row].flatten(1)),
            }
            identification = {
                "distance of mean reconstructions": _distances(flat, originals),
                "distance of mean payloads, simulated": _distances(payloads, gallery),
            }
            told = self._recognised({k: v.gather(1, self.candidates) for k, v in identification.items()}, sent)
            told += self._recognised({"nearest payloads, simulated": first.nearest[:, row]}, sent)
            found.append(
                FramesLeakage(
                    policy=policy,
                    frames=count,
                    sent=float(sent.mean()),
                    silent=float((sent == 0).double().mean()),
                    mse=mse,
                    excess_leakage=excess_leakage(mse, label_only),
                    linkage=self._recognised({k: v.gather(1, self.candidates) for k, v in linkage.items()}),
                    identification=told,
                )
            )
        return tuple(found)

    def _simulated(self, source: torch.Generator) -> _Simulated:
        """Obfuscate frames that the attacker simulates of each scene, as if that were the candidate."""
        payloads = torch.stack(
            [
                self._payloads(frames(scene, _SIMULATED, self.camera, source)).flatten(1)
                for scene in tracked(self.scenes.images, "frames: candidates", self.progress)
            ]
        )
        std, mean = torch.std_mean(payloads.flatten(0, 1), dim=0)
        return _Simulated(payloads, mean, torch.where(std > _FLAT, std, torch.inf))

    def _payloads(self, taken: Tensor) -> Tensor:
        """Return the payloads for frames of one scene, (F, C, H', W') float32, of the size that all scenes have."""
        observed = self.target.observe(taken)
        size = tuple(observed.shape[1:])
        if size != self._size and self._size:
            raise AuditError(f"{self.target.name} gives payloads of different sizes, {self._size} and {size}")
        self._size = size
        return observed

    def _session(self, source: torch.Generator, simulated: _Simulated) -> _Session:
        parts: list[tuple[Tensor, ...]] = []
        known = simulated.standard(simulated.payloads)
        for place, scene in enumerate(tracked(self.scenes.images, "frames: scenes", self.progress)):
            taken = frames(scene, max(COUNTS), self.camera, source)
            observed = self._payloads(taken)
            chosen = sent_frames(taken, self.target.gate)
            sent = torch.stack([_first(chosen[policy], count) for policy, count in self.rows]).float()  # (R, F)
            share = sent / sent.sum(dim=1, keepdim=True).clamp_min(1)
            payloads = simulated.standard(observed.flatten(1))
            rivals = known[self.candidates[place]]  # (N, simulated, D)
            apart = torch.cdist(payloads, rivals.flatten(0, 1)).view(len(taken), len(rivals), -1).amin(dim=2)
            images = share @ self.reconstruct(observed).flatten(1)
            nothing = sent.sum(dim=1, keepdim=True) == 0
            images = torch.where(nothing, self.means[place].flatten(), images).view(-1, *scene.shape)
            parts.append((sent.sum(dim=1).double(), share @ payloads, images, share @ apart))
        return _Session(*(torch.stack(part) for part in zip(*parts, strict=True)))

    def _recognised(self, distances: dict[str, Tensor], sent: Tensor | None = None) -> tuple[Recognised, ...]:
        """Return how often the scene itself, the first of its candidates, is the nearest; (S, N) distances each."""
        found = []
        for name, apart in distances.items():
            if sent is not None:  # nothing can be compared with nothing
                apart = torch.where(sent[:, None] == 0, 0.0, apart)
            scores = -apart[self.queries]
            top1, count = retrieval_top1(scores, torch.zeros(len(scores), dtype=torch.int64)), len(scores)
            low, high = proportion_interval(min(top1 * count, count), count)
            found.append(Recognised(attacker=name, top1=top1, low=low, high=high))
        return tuple(found)


@dataclass(frozen=True)
class _Simulated:
    """Payloads of simulated frames (S, 8, D), and mean and deviation (D,) that standardise any payload."""

    payloads: Tensor
    mean: Tensor
    std: Tensor

    def standard(self, payloads: Tensor) -> Tensor:
        return (payloads - self.mean) / self.std


def _first(chosen: Tensor, count: int) -> Tensor:
    """Which of the first `count` frames are sent, among all of them."""
    return chosen & (torch.arange(len(chosen)) < count)


def _distances(queries: Tensor, pool: Tensor) -> Tensor:
    """Return squared distances (S, S) between rows, each computed alone, so that equal rows have equal distances."""
    return torch.stack([(pool - query).square().sum(dim=1) for query in queries])


def _candidates(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the scenes that have N candidates of their class (Q,), and candidates (S, N), the scene itself first.

    N is `CANDIDATES`, or as many as half of the scenes have. Candidates of other scenes are of any class.
    """
    sizes = torch.bincount(labels)[labels]
    count = min(CANDIDATES, int(sizes.median())) if len(labels) else 0
    if count < 2:
        raise AuditError(
            f"{len(labels)} scenes, most of them alone in their class: frames are linked among scenes of one class; "
            "use more test images"
        )
    source = torch.Generator().manual_seed(seed)
    rows = []
    for scene in range(len(labels)):
        order = torch.randperm(len(labels), generator=source)
        order = order[order != scene]
        order = order[(labels[order] != labels[scene]).int().argsort(stable=True)]  # those of its class first
        rows.append(torch.cat([torch.tensor([scene]), order[: count - 1]]))
    return (sizes >= count).nonzero()[:, 0], torch.stack(rows)

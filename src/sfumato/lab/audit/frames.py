"""What leaks over time: many frames of one scene, by one command, with checks of the averaging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.artifacts.files import read_json
from sfumato.artifacts.provenance import provenance
from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import CPU, AttackBudget, Reconstruct
from sfumato.lab.attacks.registry import ATTACKERS
from sfumato.lab.attacks.target import Target
from sfumato.lab.attacks.threat_models import FreshPairs, Knowledge, Threat, UnavailableError
from sfumato.lab.audit.frames_run import COUNTS, FramesLeakage, FramesRun
from sfumato.lab.audit.model import Model
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.schema import Provenance, SanityCheck
from sfumato.lab.data import ImageSet
from sfumato.lab.data.camera import STILL, Camera
from sfumato.lab.evaluation.measures import per_image
from sfumato.progress import Progress, silent

SCHEMA: Literal["sfumato.frames/1"] = "sfumato.frames/1"
SCENES = 200
DECODERS = ("least squares", "codeword means", "residual decoder")
"""Attackers whose reconstructions of single frames are averaged; the best one is chosen on training images."""
_HELD_OUT = 200


class FramesResult(Model):
    """What `sfumato audit --frames` writes.

    Attributes:
        obfuscator: its name.
        kind: "obfuscator", "baseline", or "identity" for the plain image.
        fingerprint: SHA-256 of what it computes, in hex; empty if not known.
        stochastic: whether two payloads for one frame differ.
        camera: how frames of one scene differ.
        scenes: how many were tried.
        candidates: among so many of its class a scene is looked for; chance is 1 / candidates.
        queries: scenes that have so many.
        class_mean_mse: error of the class mean, the reference of `excess_leakage`.
        decoder: the attacker whose reconstructions are averaged.
        leakages: by policy, then by number of frames.
        sanity_checks: of the averaging, on obfuscators whose leakage is known.
        provenance: see `sfumato.artifacts.provenance`.
    """

    model_config = ConfigDict(title="sfumato audit --frames", serialize_by_alias=True)

    version: Literal["sfumato.frames/1"] = Field(default=SCHEMA, alias="schema")
    obfuscator: str
    kind: str
    fingerprint: str
    stochastic: bool
    camera: Camera
    scenes: int
    candidates: int
    queries: int
    class_mean_mse: float
    decoder: str
    leakages: tuple[FramesLeakage, ...]
    sanity_checks: tuple[SanityCheck, ...]
    provenance: Provenance


def read_frames(folder: Path) -> list[FramesResult]:
    """Read all results of `sfumato audit --frames` in a folder; other JSON files are left out.

    Raises:
        AuditError: a file cannot be read, or is broken.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        raw = read_json(path, AuditError)
        if isinstance(raw, Mapping) and raw.get("schema") == SCHEMA:
            found.append(FramesResult.of(raw, path))
    return found


def leakage_over_time(
    target: Target,
    train: ImageSet,
    test: ImageSet,
    *,
    images: int,
    camera: Camera | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> FramesResult:
    """Take frames of the first test images, and attack their payloads.

    Args:
        target: the obfuscator.
        train: public images.
        test: the scenes; at most `SCENES` of them.
        images: that the learned decoder sees in training, with repetition.
        camera: how frames differ.
        seed: of frames, noise and candidates.
        device: where the decoder is trained.
        progress: counts scenes, and the decoder's steps.

    Raises:
        AuditError: images that the obfuscator does not take, too few, or a payload that cannot be used.
        Interrupted: Ctrl-C or SIGTERM.
    """
    size = (target.height, target.width)
    for part in (train, test):
        if tuple(part.images.shape[2:]) != size:
            raise AuditError(f"images are {tuple(part.images.shape[2:])}, the obfuscator takes {size}; give a size")
    scenes, camera = test.subset(SCENES), camera or Camera()
    budget = AttackBudget(images, 0, seed, device, progress=progress, stage="decoder of single frames")
    with torch.random.fork_rng(devices=[]):  # of stochastic obfuscators, whose payloads the decoder learns from
        torch.manual_seed(seed)
        name, reconstruct = best_decoder(target, train.images, budget)
    means = class_means(train)[scenes.labels]
    errors = per_image(means, scenes.images)[0]
    run = FramesRun(target, scenes, means, reconstruct, camera, seed, progress)
    found = run.leakages()
    facts = provenance(
        seed=seed,
        accelerator=device.type,
        train_images=len(train),
        test_images=len(test),
        data=train.source,
        data_sha256={"train": train.sha256, "test": test.sha256},
        decoder_images=images,
    )
    return FramesResult(
        obfuscator=target.name,
        kind=target.kind,
        fingerprint=target.fingerprint,
        stochastic=target.stochastic,
        camera=camera,
        scenes=len(scenes),
        candidates=run.candidates.shape[1],
        queries=len(run.queries),
        class_mean_mse=float(errors.double().mean()),
        decoder=name,
        leakages=found,
        sanity_checks=averaging_checks(test),
        provenance=Provenance.model_validate(facts.to_json()),
    )


def best_decoder(target: Target, images: Tensor, budget: AttackBudget) -> tuple[str, Reconstruct]:
    """Train `DECODERS` on single images (N, 3, H, W) uint8; return the best one on those that it has not seen.

    Raises:
        AuditError: fewer than 10 images, or no attacker can be tried.
    """
    held = min(_HELD_OUT, len(images) // 5)
    if held < 2:
        raise AuditError(f"decoders need at least 10 training images, got {len(images)}")
    known, asked = images[held:], images[:held]
    payloads = target.observe(asked)
    errors: dict[str, tuple[float, Reconstruct]] = {}
    for name in DECODERS:
        knowledge = Knowledge(
            Threat.WHITE_BOX, target.height, target.width, FreshPairs(known, target.payload), target.module
        )
        try:
            prepared = ATTACKERS[name].prepare(knowledge, budget)
        except UnavailableError:
            continue  # not an attacker for this obfuscator
        error = float(per_image(prepared.reconstruct(payloads).clamp(0, 1), asked)[0].double().mean())
        errors[name] = (error, prepared.reconstruct)
    best = min(errors, key=lambda name: errors[name][0])
    return best, errors[best][1]


_CHECK_SCENES, _CHECK_SIDE, _CHECK_NOISE, _CHECK_BIAS, _CHECK_TOLERANCE = 24, 16, 0.05, 0.01, 0.15
_EQUAL = 1e-6


def averaging_checks(test: ImageSet) -> tuple[SanityCheck, ...]:
    """Check the averaging: noise over the image must go as one over the number of frames; a constant never leaks."""
    some = test.subset(_CHECK_SCENES)
    pixels = F.interpolate(some.images.float(), size=(_CHECK_SIDE, _CHECK_SIDE), mode="area")
    # Half of the contrast, so that noise is not cut at black or white.
    scenes = replace(some, images=(pixels / 2 + 64).byte(), labels=torch.zeros_like(some.labels))
    grey = torch.full(scenes.images.shape, 0.5)

    def leakages(target: Target) -> tuple[FramesLeakage, ...]:
        found = FramesRun(target, scenes, grey, lambda payload: payload + _CHECK_BIAS, STILL).leakages()
        return tuple(row for row in found if row.policy == "every frame")

    def check(name: str, payload: Any) -> Target:
        return Target(name, _CHECK_SIDE, _CHECK_SIDE, payload)

    noisy = leakages(check("noise", lambda x: x + _CHECK_NOISE * torch.randn_like(x)))
    wanted = [_CHECK_BIAS**2 + _CHECK_NOISE**2 / row.frames for row in noisy]
    off = max(abs(row.mse - error) / (error - _CHECK_BIAS**2) for row, error in zip(noisy, wanted, strict=True))
    still = leakages(check("constant", lambda x: torch.full_like(x, 0.5)))
    told = [[one.top1 for one in (*row.linkage, *row.identification)] for row in still]
    same = all(abs(row.mse - still[0].mse) < _EQUAL for row in still) and all(rates == told[0] for rates in told)
    chance, linked = 1 / len(scenes), max(one.top1 for row in still for one in row.linkage)
    return (
        SanityCheck(
            name="averaging frames with noise over the image",
            passed=off <= _CHECK_TOLERANCE,
            measured=f"off by {100 * off:.1f} % of the noise at most, over {', '.join(map(str, COUNTS))} frames",
            needed=f"at most {100 * _CHECK_TOLERANCE:.0f} %: the error is a floor plus the noise over the frames",
            detail=f"noise of {_CHECK_NOISE:g}, floor {_CHECK_BIAS**2:g}, a camera that stands still",
        ),
        SanityCheck(
            name="averaging frames of a constant payload",
            passed=same and abs(linked - chance) < _EQUAL,
            measured=f"{'the same' if same else 'not the same'} for all numbers of frames; linkage {linked:.4f}",
            needed=f"the same for all numbers of frames; linkage {chance:.4f}, which is chance",
            detail="nothing passes",
        ),
    )

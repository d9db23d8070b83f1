"""A few attackers who come after a pair of networks, whenever in its training that was kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reproduction.lab import Lab
from reproduction.plan import Item
from sfumato.artifacts.bundle import DEOBFUSCATOR_WEIGHTS, OBFUSCATOR_WEIGHTS, file_sha256
from sfumato.errors import BundleError
from sfumato.lab.attacks.decoders import RESIDUAL
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget, Attacker
from sfumato.lab.attacks.target import Target
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.references import class_mean_reference
from sfumato.lab.audit.result_store import ResultStore
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.classifiers import FrozenClassifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.evaluation.measures import per_image
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator

ATTACKERS: tuple[Attacker, ...] = (Linear(), RESIDUAL)


def measure_pair(lab: Lab, item: Item, folder: Path, what: str) -> dict[str, Any]:
    """Accuracy, the joint deobfuscator's error and that of attackers trained now, for networks in a folder.

    Everything is measured on the same first test images. Findings are kept in the lab by what the networks are.

    Args:
        lab: the lab.
        item: the obfuscator that the networks belong to, for its classifier.
        folder: with both networks' weights: a snapshot or a bundle.
        what: the networks are, for people.

    Returns:
        `accuracy_obfuscated`, `accuracy_plain`, `joint_mse`, `class_mean_mse`, `test_images`, `attackers` (name and
        error of each), and the best one's `later_mse` and `later_attacker`.

    Raises:
        BundleError: weights that are missing or do not fit.
        Interrupted: Ctrl-C or SIGTERM; what was found is kept.
    """
    frozen, effort = lab.frozen(item), lab.plan.later
    test = lab.test.subset(effort.test_images)
    notes = lab.folder / "later"
    store = ResultStore(notes, {"what": "later attackers"}, resume=(notes / "audit.json").is_file(), overwrite=False)
    key = _key(folder, frozen, repr(effort), lab.images.sha256, test.sha256)
    with lab.bars() as progress:
        pair = _Pair(folder, frozen, lab.device)
        found: dict[str, Any] = store.once(
            key, dict[str, Any], lambda: pair.figures(lab.images, test, partial(progress, f"{what}: accuracy"))
        )
        setting = AttackSetting(pair.target(what), lab.images, test)
        attackers = []
        for number, attacker in enumerate(ATTACKERS):
            checkpoint = store.checkpoint(f"{key}-{number}")
            trying = AttackBudget(effort.images, 0, 0, lab.device, checkpoint, progress, f"{what}: {attacker.name}")
            attackers.append(store.once(f"{key}-{number}", dict[str, Any], partial(_attack, setting, attacker, trying)))
            checkpoint.unlink(missing_ok=True)
    best = min(attackers, key=lambda row: float(row["mse"]))
    return {**found, "attackers": attackers, "later_mse": best["mse"], "later_attacker": best["attacker"]}


def _key(folder: Path, frozen: FrozenClassifier, *others: str) -> str:
    try:
        parts = [file_sha256(folder / name) for name in (OBFUSCATOR_WEIGHTS, DEOBFUSCATOR_WEIGHTS)]
    except OSError as error:
        raise BundleError(f"{folder} lacks a network: {error.strerror or error}") from error
    return hashlib.sha256(repr((*parts, frozen.fingerprint, *others)).encode()).hexdigest()[:24]


def _attack(setting: AttackSetting, attacker: Attacker, budget: AttackBudget) -> dict[str, Any]:
    box = Threat.WHITE_BOX
    prepared = attacker.prepare(setting.knowledge(box), budget)
    reconstructed = torch.cat(
        [prepared.reconstruct(part) for part in setting.batches(box, len(setting.test), size=_BATCH)]
    )
    errors, _ = per_image(reconstructed, setting.test.images)
    return {
        "attacker": attacker.name,
        "mse": float(errors.double().mean()),
        "images_seen": prepared.images_seen,
    }


class _Pair:
    """Obfuscator and deobfuscator as they lie in a folder."""

    def __init__(self, folder: Path, frozen: FrozenClassifier, device: torch.device) -> None:
        self.device = device
        self.obfuscator = _loaded(Obfuscator(), folder / OBFUSCATOR_WEIGHTS).to(device)
        self.deobfuscator = _loaded(Deobfuscator(), folder / DEOBFUSCATOR_WEIGHTS).to(device)
        self.preprocessing = frozen.preprocessing
        self.normalize = Normalize(frozen.preprocessing.mean, frozen.preprocessing.std).to(device)
        self.classifier = frozen.net.to(device)

    def target(self, name: str) -> Target:
        """The obfuscator as attackers see it."""
        module = nn.Sequential(self.obfuscator, self.normalize)

        @torch.no_grad()
        def payload(images: Tensor) -> Tensor:
            sent: Tensor = module(images.to(self.device))
            return sent.cpu()

        return Target(name, self.preprocessing.height, self.preprocessing.width, payload)

    @torch.no_grad()
    def figures(self, train: ImageSet, test: ImageSet, tell: Callable[[int, int], None]) -> dict[str, Any]:
        """Accuracy on obfuscated images, the joint deobfuscator's error, and the class mean's beside it."""
        hits = plain = 0
        errors = []
        for start in range(0, len(test), INFERENCE_BATCH):
            tell(start, len(test))
            originals = test.images[start : start + INFERENCE_BATCH]
            obfuscated = self.obfuscator(originals.to(self.device).float() / 255)
            answers = self.classifier(self.normalize(obfuscated)).argmax(dim=1).cpu()
            labels = test.labels[start : start + INFERENCE_BATCH]
            hits += int((answers == labels).sum())
            untouched = self.classifier(self.normalize(originals.to(self.device).float() / 255))
            plain += int((untouched.argmax(dim=1).cpu() == labels).sum())
            mse, _ = per_image(self.deobfuscator(obfuscated).clamp(0, 1).cpu(), originals)
            errors.append(mse)
        return {
            "accuracy_obfuscated": hits / len(test),
            "accuracy_plain": plain / len(test),
            "joint_mse": float(torch.cat(errors).double().mean()),
            "class_mean_mse": class_mean_reference(train, test).mse,
            "test_images": len(test),
        }


def _loaded(net: nn.Module, path: Path) -> nn.Module:
    try:
        net.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{path} does not fit the network: {' '.join(str(error).split())[:200]}") from error
    return net.eval().requires_grad_(False)

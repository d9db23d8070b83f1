"""A few adaptive attackers on a pair of networks, after any epoch of its training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, BeforeValidator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reproduction.lab import Lab
from reproduction.plan import Item, SnapshotBudget
from reproduction.schema import AttackerError, PairFigures, Utility
from sfumato.artifacts.bundle import DEOBFUSCATOR_WEIGHTS, OBFUSCATOR_WEIGHTS
from sfumato.artifacts.files import file_sha256
from sfumato.artifacts.versions import upgraded
from sfumato.errors import BundleError
from sfumato.lab.attacks.decoders import RESIDUAL
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget, Attacker
from sfumato.lab.attacks.target import Target
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import ResultStore
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.classifiers import FrozenClassifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.evaluation.measures import measure, per_image
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator
from sfumato.lab.models.checkpoint import remove_checkpoint

_FOLDER, _IDENTITY = "later", {"what": "later attackers"}
"""Names from version 1, so that findings of a lab made then are found."""
ATTACKERS: tuple[Attacker, ...] = (Linear(), RESIDUAL)


def measure_pair(lab: Lab, item: Item, folder: Path, what: str) -> PairFigures:
    """Measure accuracy, the joint deobfuscator's error and that of adaptive attackers, for networks in a folder.

    All figures are of the same first test images. Findings are kept in the lab under the networks' hashes.

    Args:
        lab: the lab.
        item: the obfuscator that the networks belong to, for its classifier.
        folder: with both networks' weights: a snapshot or a bundle.
        what: the networks, in words.

    Raises:
        BundleError: weights are missing or do not fit.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    frozen, budget = lab.frozen(item), lab.plan.snapshots
    test = lab.test.subset(budget.test_images)
    notes = lab.folder / _FOLDER
    store = ResultStore(notes, _IDENTITY, resume=(notes / "audit.json").is_file(), overwrite=False)
    key = _key(folder, frozen, budget, lab.images, test)

    def tell(done: int, total: int) -> None:
        lab.progress(f"{what}: accuracy", done, total)

    pair = _Pair(folder, frozen, lab.device)
    utility = store.once(key, _stored(Utility), lambda: pair.utility(lab.images, test, tell))
    setting = AttackSetting(pair.target(what), lab.images, test)
    attackers = []
    for number, attacker in enumerate(ATTACKERS):
        checkpoint = store.checkpoint(f"{key}-{number}")
        attack_budget = AttackBudget(
            budget.images, 0, 0, lab.device, checkpoint, lab.progress, f"{what}: {attacker.name}"
        )
        find = partial(_attack, setting, attacker, attack_budget)
        attackers.append(store.once(f"{key}-{number}", _stored(AttackerError), find))
        remove_checkpoint(checkpoint)
    best = min(attackers, key=lambda row: row.mse)
    return PairFigures(
        **utility.model_dump(),
        attackers=tuple(attackers),
        adaptive_mse=best.mse,
        adaptive_attacker=best.attacker,
    )


def _stored(kind: type[BaseModel]) -> object:
    """Return the type of a finding as it is stored, also by version 1."""
    return Annotated[kind, BeforeValidator(upgraded)]


def _key(folder: Path, frozen: FrozenClassifier, budget: SnapshotBudget, train: ImageSet, test: ImageSet) -> str:
    try:
        parts = [file_sha256(folder / name) for name in (OBFUSCATOR_WEIGHTS, DEOBFUSCATOR_WEIGHTS)]
    except OSError as error:
        raise BundleError(f"{folder} lacks a network: {error.strerror or error}") from error
    said = f"Later(pictures={budget.images}, test_pictures={budget.test_images})"  # as in version 1
    whole = (*parts, frozen.fingerprint, said, train.sha256, test.sha256)
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:24]


def _attack(setting: AttackSetting, attacker: Attacker, budget: AttackBudget) -> AttackerError:
    box = Threat.WHITE_BOX
    prepared = attacker.prepare(setting.knowledge(box), budget)
    reconstructed = torch.cat(
        [prepared.reconstruct(part) for part in setting.batches(box, len(setting.test), size=INFERENCE_BATCH)]
    )
    errors, _ = per_image(reconstructed, setting.test.images)
    return AttackerError(
        attacker=attacker.name,
        mse=float(errors.double().mean()),
        images_seen=prepared.images_seen,
    )


class _Pair:
    """Obfuscator and deobfuscator from a folder."""

    def __init__(self, folder: Path, frozen: FrozenClassifier, device: torch.device) -> None:
        self.device = device
        self.obfuscator = _loaded(Obfuscator(), folder / OBFUSCATOR_WEIGHTS).to(device)
        self.deobfuscator = _loaded(Deobfuscator(), folder / DEOBFUSCATOR_WEIGHTS).to(device)
        self.preprocessing = frozen.preprocessing
        self.normalize = Normalize(frozen.preprocessing.mean, frozen.preprocessing.std).to(device)
        self.classifier = frozen.net.to(device)

    def target(self, name: str) -> Target:
        """Return the obfuscator as attackers see it."""
        module = nn.Sequential(self.obfuscator, self.normalize)

        @torch.no_grad()
        def payload(images: Tensor) -> Tensor:
            sent: Tensor = module(images.to(self.device))
            return sent.cpu()

        return Target(name, self.preprocessing.height, self.preprocessing.width, payload)

    @torch.no_grad()
    def utility(self, train: ImageSet, test: ImageSet, tell: Callable[[int, int], None]) -> Utility:
        """Measure accuracies, the joint deobfuscator's error, and the class mean's."""
        correct = correct_plain = 0
        errors = []
        for start in range(0, len(test), INFERENCE_BATCH):
            tell(start, len(test))
            part = slice(start, start + INFERENCE_BATCH)
            originals, labels = test.images[part], test.labels[part]
            plain = originals.to(self.device).float() / 255
            obfuscated = self.obfuscator(plain)
            correct += self._correct(obfuscated, labels)
            correct_plain += self._correct(plain, labels)
            mse, _ = per_image(self.deobfuscator(obfuscated).clamp(0, 1).cpu(), originals)
            errors.append(mse)
        tell(len(test), len(test))
        return Utility(
            accuracy_obfuscated=correct / len(test),
            accuracy_plain=correct_plain / len(test),
            joint_mse=float(torch.cat(errors).double().mean()),
            class_mean_mse=measure(class_means(train)[test.labels], test.images).mse,
            test_images=len(test),
        )

    def _correct(self, images: Tensor, labels: Tensor) -> int:
        predictions = self.classifier(self.normalize(images)).argmax(dim=1).cpu()
        return int((predictions == labels).sum())


def _loaded(net: nn.Module, path: Path) -> nn.Module:
    try:
        net.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{path} does not fit the network: {' '.join(str(error).split())[:200]}") from error
    return net.eval().requires_grad_(False)

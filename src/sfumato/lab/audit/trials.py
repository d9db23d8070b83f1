"""Runs attackers: each trial from knowledge to figures, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import Interrupted
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.registry import ATTACKERS
from sfumato.lab.attacks.threat_models import Threat, UnavailableError
from sfumato.lab.audit.budget import Budget, Trial
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import ResultStore
from sfumato.lab.audit.schema import AnyTrial, DoneTrial, LostTrial, best_of
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.measures import excess_leakage, measure, per_image
from sfumato.progress import Progress, silent

PANEL = 12
"""So many test images are shown as every attacker reconstructed them."""


class Trials:
    """The trials of one audit.

    Args:
        setting: hands out knowledge.
        budget: of the audit.
        store: keeps what was reconstructed.
        device: where attackers are trained.
        progress: see `sfumato.progress.Progress`; stages are called after the trials.
    """

    def __init__(
        self,
        setting: AttackSetting,
        budget: Budget,
        store: ResultStore,
        device: torch.device,
        progress: Progress = silent,
    ) -> None:
        self.setting, self.budget, self.store, self.device, self.progress = setting, budget, store, device, progress
        self.planned = [*budget.trials, *(budget.views if setting.target.stochastic else ())]
        self.class_mean_errors, _ = per_image(class_means(setting.train)[setting.test.labels], setting.test.images)
        self._prepared: dict[str, Prepared] = {}

    def class_mean_mse(self, count: int) -> float:
        """The class mean's error on the first `count` test images."""
        return float(self.class_mean_errors[:count].mean())

    def run(self, trial: Trial) -> DoneTrial | LostTrial:
        """Try an attacker; one that breaks is counted as failed.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
        """
        facts: dict[str, Any] = {"key": trial.key, "attacker": trial.attacker, "threat": trial.threat}
        facts |= {"views": trial.views, "seed": trial.seed}
        started = time.monotonic()
        try:
            facts |= self._attack(trial)
            self.store.checkpoint(trial.key).unlink(missing_ok=True)
            return DoneTrial(**facts, seconds=round(time.monotonic() - started, 1))
        except UnavailableError as error:
            facts |= {"status": "not run", "reason": str(error)}
        except Interrupted:
            raise
        except Exception as error:  # an attacker that breaks is counted, whatever broke
            facts |= {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        if trial.threat is Threat.PAIRS:
            facts["pairs"] = trial.pairs or len(self.setting.train)
        return LostTrial(**facts, seconds=round(time.monotonic() - started, 1))

    def _prepare(self, trial: Trial) -> Prepared:
        attacker, setting = ATTACKERS[trial.attacker], self.setting
        if trial.threat not in attacker.threats:
            raise UnavailableError(f"{attacker.name} is not made for this threat model")
        if trial.steps and setting.target.module is None:
            raise UnavailableError("no gradients: only the payload is known of this obfuscator")
        checkpoint = self.store.checkpoint(trial.key)
        budget = AttackBudget(
            trial.images, trial.steps, trial.seed, self.device, checkpoint, self.progress, trial.title
        )
        return attacker.prepare(setting.knowledge(trial.threat, pairs=trial.pairs, views=trial.views), budget)

    def _attack(self, trial: Trial) -> dict[str, Any]:
        attacker, setting = ATTACKERS[trial.attacker], self.setting
        prepared = self._prepare(trial)
        known = setting.knowledge(trial.threat, pairs=trial.pairs, views=trial.views).pairs
        available = len(setting.test)
        most = _most_test_images(attacker, available)
        count = min(self.budget.test_images, available, most)
        reconstructed = self._reconstructed(trial, prepared, count)
        figures = measure(reconstructed, setting.test.images[:count])
        compared = figures.mse / self.class_mean_mse(count) * self.class_mean_mse(available)
        if trial.threat is Threat.WHITE_BOX and trial.views == 1 and trial.seed == 0 and attacker.learns:
            self._prepared[trial.key] = prepared
        if compared < self._lowest() and trial.views == 1:
            if count < available == most:
                reconstructed = self._reconstructed(trial, prepared, available)
                figures = measure(reconstructed, setting.test.images)
            self.store.keep(f"{trial.key}-all", {"reconstructed": as_bytes(reconstructed)})
        self.store.keep(trial.key, {"reconstructed": as_bytes(reconstructed[:PANEL])})
        return {
            "pairs": len(known) if trial.threat is Threat.PAIRS and known is not None else None,
            "mse": figures.mse,
            "psnr_db": figures.psnr_db,
            "ssim": figures.ssim,
            "excess_leakage": excess_leakage(figures.mse, self.class_mean_mse(figures.images)),
            "mse_compared": compared,
            "test_images": figures.images,
            "params": prepared.params,
            "images_seen": prepared.images_seen,
            "curve": prepared.curve,
            "flattened": prepared.flattened,
        }

    def _lowest(self) -> float:
        """The best attacker's error so far."""
        found = (self.store.known(trial.key, AnyTrial) for trial in self.planned)
        best = best_of([trial for trial in found if trial is not None])
        return best.mse_compared if best else float("inf")

    def _reconstructed(self, trial: Trial, prepared: Prepared, count: int) -> Tensor:
        parts, done = [], 0
        for observed in self.setting.batches(trial.threat, count, views=trial.views, size=INFERENCE_BATCH):
            parts.append(prepared.reconstruct(observed))
            done += len(observed)
            self.progress(f"{trial.title}: reconstructing", done, count)
        return torch.cat(parts)

    def strongest_decoder(self, trials: Sequence[DoneTrial | LostTrial]) -> Prepared | None:
        """The best learned attacker of the white box; trained again if the audit was resumed since.

        Args:
            trials: of seed 0.
        """
        best = best_of([t for t in trials if t.threat is Threat.WHITE_BOX and ATTACKERS[t.attacker].learns])
        if best is None:
            return None
        if best.key not in self._prepared:
            self._prepared[best.key] = self._prepare(next(t for t in self.planned if t.key == best.key))
        return self._prepared[best.key]


def as_bytes(images: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8, rounded; the shape stays."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _most_test_images(attacker: Attacker, available: int) -> int:
    """Attackers that optimise every image alone say how many they can afford."""
    return int(getattr(attacker, "test_images", available))

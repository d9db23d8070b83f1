"""Runs attackers: each trial from knowledge to figures, whatever becomes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.joint import JointDeobfuscator
from sfumato.lab.attacks.prior import image_prior
from sfumato.lab.attacks.protocol import AttackBudget, Prepared
from sfumato.lab.attacks.registry import ATTACKERS
from sfumato.lab.attacks.threat_models import Threat, UnavailableError
from sfumato.lab.audit.budget import Budget, Trial
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import ResultStore
from sfumato.lab.audit.schema import AnyTrial, DoneTrial, LostTrial, best_of
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.measures import excess_leakage, measure, per_image
from sfumato.lab.evaluation.recognition import Recogniser
from sfumato.lab.models.checkpoint import remove_checkpoint
from sfumato.progress import Progress, silent

PANEL = 12
"""So many test images are shown as every attacker reconstructed them."""
ATTACKED = "attacked"
"""Ends the key of all images that an attacker reconstructed which treats each image alone."""


@dataclass
class Trials:
    """The trials of one audit; their stages of progress are called after them.

    Attributes:
        store: keeps what was reconstructed.
        recogniser: judges reconstructions, if there is one.
        planned: all of seed 0, in order.
        class_mean_errors: (N,) float32, each test image's distance from the mean of its class.
    """

    setting: AttackSetting
    budget: Budget
    store: ResultStore
    device: torch.device
    progress: Progress = silent
    recogniser: Recogniser | None = None
    planned: list[Trial] = field(init=False)
    class_mean_errors: Tensor = field(init=False)
    _prepared: dict[str, Prepared] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        setting = self.setting
        joint = [Trial(JointDeobfuscator.name, Threat.WHITE_BOX)] if setting.target.deobfuscator else []
        views = self.budget.views if setting.target.stochastic else ()
        self.planned = [*self.budget.trials, *views, *joint]  # so that the best of the others is measured on all images
        self.class_mean_errors, _ = per_image(class_means(setting.train)[setting.test.labels], setting.test.images)

    def class_mean_mse(self, count: int) -> float:
        """The class mean's error on the first `count` test images."""
        return float(self.class_mean_errors[:count].mean())

    def train_prior(self) -> None:
        """Train the image prior if an attacker uses it, outside the time of any trial; the cache may have it.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the state was saved.
        """
        if any(ATTACKERS[trial.attacker].uses_prior for trial in self.planned):
            prior = self.budget.prior_images
            with contextlib.suppress(AuditError):  # is told by the trials that lack it
                budget = AttackBudget(0, 0, device=self.device, progress=self.progress, prior_images=prior)
                image_prior(self.setting.public.images, budget)

    def run(self, trial: Trial) -> DoneTrial | LostTrial:
        """Try an attacker; one that breaks is counted as failed.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
        """
        started = time.monotonic()
        try:
            done = self._attack(trial)
            remove_checkpoint(self.store.checkpoint(trial.key))
            return done.model_copy(update={"seconds": round(time.monotonic() - started, 1)})
        except Interrupted:
            raise
        except Exception as error:  # an attacker that breaks is counted, whatever broke
            not_run = isinstance(error, UnavailableError)
            broken = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return LostTrial(
                **_named(trial),
                pairs=(trial.pairs or len(self.setting.public)) if trial.threat is Threat.PAIRS else None,
                seconds=round(time.monotonic() - started, 1),
                status="not run" if not_run else "failed",
                reason=str(error) if not_run else broken,
            )

    def _prepare(self, trial: Trial) -> Prepared:
        attacker, setting = ATTACKERS[trial.attacker], self.setting
        if trial.threat not in attacker.threats:
            raise UnavailableError(f"{attacker.name} is not made for this threat model")
        if attacker.needs_gradients and setting.target.module is None:
            raise UnavailableError("no gradients: only the payload is known of this obfuscator")
        knowledge = setting.knowledge(trial.threat, pairs=trial.pairs, views=trial.views)
        if attacker.refines and trial.threat is Threat.WHITE_BOX and trial.views == 1:
            learned = self.strongest_decoder(self._known())
            knowledge = replace(knowledge, estimate=learned.reconstruct if learned else None)
        budget = AttackBudget(
            trial.images,
            trial.steps,
            trial.seed,
            self.device,
            self.store.checkpoint(trial.key),
            self.progress,
            trial.title,
            prior_images=self.budget.prior_images,
        )
        return attacker.prepare(knowledge, budget)

    def _known(self) -> list[DoneTrial | LostTrial]:
        """The trials of seed 0 so far."""
        known = [self.store.known(one.key, AnyTrial) for one in self.planned]
        return [trial for trial in known if trial is not None]

    def _attack(self, trial: Trial) -> DoneTrial:
        attacker, setting = ATTACKERS[trial.attacker], self.setting
        prepared = self._prepare(trial)
        known = setting.knowledge(trial.threat, pairs=trial.pairs, views=trial.views).pairs
        available = len(setting.test)
        most = min(available, int(getattr(attacker, "test_images", available)), trial.test_images or available)
        count = min(self.budget.test_images, most)
        reconstructed = self._reconstructed(trial, prepared, count)
        figures = measure(reconstructed, setting.test.images[:count])
        compared = figures.mse / self.class_mean_mse(count) * self.class_mean_mse(available)
        if trial.threat is Threat.WHITE_BOX and trial.views == 1 and trial.seed == 0 and attacker.learns:
            self._prepared[trial.key] = prepared
        best = best_of(self._known())
        if trial.views == 1 and (best is None or compared < best.mse_compared):
            if count < available == most:
                reconstructed = self._reconstructed(trial, prepared, available)
                figures = measure(reconstructed, setting.test.images)
            self.store.keep(f"{trial.key}-all", as_bytes(reconstructed))
        self.store.keep(trial.key, as_bytes(reconstructed[:PANEL]))
        if not attacker.learns:  # is too slow to be called again
            self.store.keep(f"{trial.key}-{ATTACKED}", as_bytes(reconstructed))
        return DoneTrial(
            **_named(trial),
            **vars(figures),
            pairs=len(known) if trial.threat is Threat.PAIRS and known is not None else None,
            excess_leakage=excess_leakage(figures.mse, self.class_mean_mse(figures.images)),
            mse_compared=compared,
            test_images=figures.images,
            params=prepared.params,
            images_seen=prepared.images_seen,
            curve=prepared.curve,
            flattened=prepared.flattened,
            recognition=self.recogniser.measure(reconstructed) if self.recogniser else None,
        )

    def _reconstructed(self, trial: Trial, prepared: Prepared, count: int) -> Tensor:
        parts, done = [], 0
        for observed in self.setting.batches(trial.threat, count, views=trial.views, size=INFERENCE_BATCH):
            parts.append(prepared.reconstruct(observed))
            done += len(observed)
            self.progress(f"{trial.title}: reconstructing", done, count)
        return torch.cat(parts)

    def strongest_decoder(self, trials: Sequence[DoneTrial | LostTrial]) -> Prepared | None:
        """The best learned attacker of the white box, of seed 0; trained again if the audit was resumed since."""
        best = best_of([t for t in trials if t.threat is Threat.WHITE_BOX and ATTACKERS[t.attacker].learns])
        if best is None:
            return None
        if best.key not in self._prepared:
            self._prepared[best.key] = self._prepare(next(t for t in self.planned if t.key == best.key))
        return self._prepared[best.key]


def _named(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in ("key", "attacker", "threat", "views", "seed")}


def as_bytes(images: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8, rounded; the shape stays."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)

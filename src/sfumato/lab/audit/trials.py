"""Lets attackers try: each trial from knowledge to figures, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import Interrupted
from sfumato.lab.attacks.protocol import Attacker, Effort, Prepared
from sfumato.lab.attacks.registry import ATTACKERS
from sfumato.lab.attacks.threat_models import Threat, UnavailableError
from sfumato.lab.audit.budget import Budget, Trial
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import Notebook
from sfumato.lab.audit.setting import Scene
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.measures import Figures, excess_leakage, measure, per_image
from sfumato.lab.report.panels import PANEL, as_bytes

Tell = Callable[[str, int, int], None]
"""Is told (what runs, its steps done, in all)."""


class Attempts:
    """The trials of one audit.

    Args:
        scene: hands out knowledge.
        budget: of the audit.
        notebook: gets what was reconstructed.
        device: where attackers are trained.
        tell: see `Tell`.
    """

    def __init__(self, scene: Scene, budget: Budget, notebook: Notebook, device: torch.device, tell: Tell) -> None:
        self.scene, self.budget, self.notebook, self.device, self._tell = scene, budget, notebook, device, tell
        self.trials = [*budget.trials, *(budget.views if scene.target.stochastic else ())]
        self.class_mean_errors, _ = per_image(class_means(scene.train)[scene.test.labels], scene.test.images)
        self._prepared: dict[str, Prepared] = {}

    def class_mean_mse(self, count: int) -> float:
        """The class mean's error on the first `count` test images."""
        return float(self.class_mean_errors[:count].mean())

    def attempt(self, trial: Trial) -> dict[str, Any]:
        """Tries an attacker; whatever breaks is counted.

        Returns:
            A row of `trials` in `audit.json`.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
        """
        facts: dict[str, Any] = {
            "key": trial.key,
            "attacker": trial.attacker,
            "threat": str(trial.threat),
            "pairs": (trial.pairs or len(self.scene.train)) if trial.threat is Threat.PAIRS else None,
            "views": trial.views,
            "seed": trial.seed,
            "status": "done",
            "reason": None,
        }
        empty = dict.fromkeys(("mse", "psnr_db", "ssim", "excess_leakage", "mse_compared", "test_images", "params"))
        facts |= empty | {"images_seen": None, "seconds": 0.0, "curve": [], "flattened": None}
        started = time.monotonic()
        try:
            facts |= self._attack(trial)
        except UnavailableError as reason:
            facts |= {"status": "not run", "reason": str(reason)}
        except Interrupted:
            raise
        except Exception as error:  # an attacker that breaks is counted, whatever broke
            facts |= {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        facts["seconds"] = round(time.monotonic() - started, 1)
        if facts["status"] == "done":
            self.notebook.checkpoint(trial.key).unlink(missing_ok=True)
        return facts

    def _prepare(self, trial: Trial) -> Prepared:
        attacker, scene = ATTACKERS[trial.attacker], self.scene
        if trial.threat not in attacker.threats:
            raise UnavailableError(f"{attacker.name} is not made for this threat model")
        if trial.steps and scene.target.module is None:
            raise UnavailableError("no gradients: only the payload is known of this obfuscator")
        effort = Effort(
            trial.images,
            trial.steps,
            trial.seed,
            self.device,
            self.notebook.checkpoint(trial.key),
            self._teller(f"{attacker.name}, {trial.threat}"),
        )
        return attacker.prepare(scene.knowledge(trial.threat, pairs=trial.pairs, views=trial.views), effort)

    def _attack(self, trial: Trial) -> dict[str, Any]:
        attacker, scene = ATTACKERS[trial.attacker], self.scene
        prepared = self._prepare(trial)
        known = scene.knowledge(trial.threat, pairs=trial.pairs, views=trial.views).pairs
        count = min(self.budget.test_images, len(scene.test), _most_test_images(attacker, len(scene.test)))
        reconstructed = self._reconstructed(trial, prepared, count)
        figures = measure(reconstructed, scene.test.images[:count])
        compared = figures.mse / self.class_mean_mse(count) * self.class_mean_mse(len(scene.test))
        whole = count < len(scene.test) and _most_test_images(attacker, len(scene.test)) == len(scene.test)
        if trial.threat is Threat.WHITE_BOX and trial.views == 1 and trial.seed == 0 and attacker.learns:
            self._prepared[trial.key] = prepared
        if compared < self._lowest() and trial.views == 1:
            if whole:
                reconstructed = self._reconstructed(trial, prepared, len(scene.test))
                figures = measure(reconstructed, scene.test.images)
            self.notebook.keep(f"{trial.key}-all", {"reconstructed": as_bytes(reconstructed)})
        self.notebook.keep(trial.key, {"reconstructed": as_bytes(reconstructed[:PANEL])})
        return {
            **_named(figures),
            "pairs": len(known) if trial.threat is Threat.PAIRS and known is not None else None,
            "excess_leakage": excess_leakage(figures.mse, self.class_mean_mse(figures.images)),
            "mse_compared": compared,
            "params": prepared.facts.get("params"),
            "images_seen": prepared.facts.get("images_seen"),
            "curve": [list(point) for point in prepared.curve],
            "flattened": prepared.flattened,
        }

    def _lowest(self) -> float:
        """The best attacker's error so far."""
        best = best_of([found for trial in self.trials if (found := self.notebook.known(trial.key)) is not None])
        return float(best["mse_compared"]) if best else float("inf")

    def _reconstructed(self, trial: Trial, prepared: Prepared, count: int) -> Tensor:
        parts, done = [], 0
        for observed in self.scene.batches(trial.threat, count, views=trial.views, size=INFERENCE_BATCH):
            parts.append(prepared.reconstruct(observed))
            done += len(observed)
            self._tell(f"{trial.attacker}, {trial.threat}: reconstructing", done, count)
        return torch.cat(parts)

    def strongest_decoder(self, trials: list[dict[str, Any]]) -> Prepared | None:
        """Of the white box, as it was trained for its trial; trained again where the audit was resumed since.

        Args:
            trials: rows of `audit.json`, of seed 0.
        """
        rows = [t for t in trials if t["threat"] == Threat.WHITE_BOX and ATTACKERS[t["attacker"]].learns]
        best = best_of(rows)
        if best is None:
            return None
        if best["key"] not in self._prepared:
            self._prepared[best["key"]] = self._prepare(next(t for t in self.trials if t.key == best["key"]))
        return self._prepared[best["key"]]

    def _teller(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._tell(what, done, total)


def best_of(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the lowest error, of those who saw each image once; None if none was done.

    Args:
        trials: rows of `audit.json`.
    """
    done = [trial for trial in trials if trial["status"] == "done" and trial["views"] == 1]
    if not done:
        return None
    best = min(done, key=lambda trial: float(trial["mse_compared"]))
    return {key: value for key, value in best.items() if key != "curve"}


def _named(figures: Figures) -> dict[str, Any]:
    return {"mse": figures.mse, "psnr_db": figures.psnr_db, "ssim": figures.ssim, "test_images": figures.images}


def _most_test_images(attacker: Attacker, available: int) -> int:
    """Attackers that optimise every image alone say how many they can afford."""
    return int(getattr(attacker, "test_images", available))

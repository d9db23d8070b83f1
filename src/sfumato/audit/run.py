"""The audit from end to end: controls, attackers, identification, attributes, certificate, verdict, report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.audit.attackers.protocol import CPU, Attacker, Effort, Prepared
from sfumato.audit.attackers.registry import ATTACKERS
from sfumato.audit.attributes import infer
from sfumato.audit.budget import Budget, Trial
from sfumato.audit.certificate import certify
from sfumato.audit.controls import decoder_controls, trial_controls
from sfumato.audit.identification import identify
from sfumato.audit.knowledge import Threat
from sfumato.audit.notebook import Notebook, remembered
from sfumato.audit.references import class_means, references
from sfumato.audit.report import Case, Pictures, write_report
from sfumato.audit.scene import Scene, UnavailableError
from sfumato.audit.target import Noisy
from sfumato.audit.verdict import SCHEMA, decide
from sfumato.bundle import CLASSIFIER_ONNX, Bundle, write_json
from sfumato.errors import AuditError, Interrupted
from sfumato.evaluation import evaluate_classifier
from sfumato.measures import SSIM_WINDOW, Figures, excess_leakage, measure, per_picture
from sfumato.onnxfile import OnnxFunction
from sfumato.provenance import provenance

PANEL = 12
CASES = 6
_BATCH = 250
_CERTIFICATE_PICTURES = 10_000

Progress = Callable[[int, int, str, int, int], None]
"""Is told (steps of the audit done, in all, what runs now, its own steps done, in all)."""


@dataclass(frozen=True)
class Beside:
    """What the bundle is compared with.

    Attributes:
        classifier: what the obfuscated pictures are for; None leaves accuracies out.
        local: a classifier that fits the device's own budget.
        points: of other audits, for the frontier plot; see `sfumato.audit.frontier.collect`.
        attributes: label columns besides the class: name -> values of training and test pictures, (N,) and (M,) int64.
    """

    classifier: Bundle | None = None
    local: Bundle | None = None
    points: tuple[dict[str, Any], ...] = ()
    attributes: dict[str, tuple[Tensor, Tensor]] | None = None


def audit(
    scene: Scene,
    budget: Budget,
    folder: Path,
    *,
    beside: Beside | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device = CPU,
    progress: Progress = lambda done, total, what, part, parts: None,
) -> dict[str, Any]:
    """Attacks an obfuscator with everything that the budget allows, and writes `audit.json` and `audit.html`.

    Args:
        scene: the obfuscator, the pictures, and who knows what.
        budget: how hard the attackers try.
        folder: is created; `work/` in it keeps the findings one by one.
        beside: what to compare with.
        resume: go on with an interrupted audit.
        overwrite: start anew although there is one.
        device: where attackers are trained.
        progress: see `Progress`.

    Returns:
        The content of `audit.json`.

    Raises:
        AuditError: pictures that the obfuscator does not take, a folder with an audit, or a disk that refuses.
        Interrupted: Ctrl-C or SIGTERM; the findings so far are kept.
    """
    size = scene.target.height, scene.target.width
    for images in (scene.train, scene.test):
        if tuple(images.images.shape[2:]) != size:
            raise AuditError(f"pictures are {tuple(images.images.shape[2:])}, the obfuscator takes {size}; give a size")
    if min(size) < SSIM_WINDOW:
        raise AuditError(
            f"pictures of {size[0]}x{size[1]} are too small to measure: {SSIM_WINDOW} pixels on a side at least"
        )
    notebook = Notebook(folder / "work", _identity(scene, budget, beside), resume=resume, overwrite=overwrite)
    run = _Run(scene, budget, notebook, beside or Beside(), device, progress)
    try:
        found = run.everything()
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the findings so far are in {folder}: go on with --resume") from None
    write_json(folder / "audit.json", found)
    write_report(found, run.pictures(found), folder / "audit.html")
    return found


def record(bundle: Bundle, found: dict[str, Any]) -> None:
    """Puts an audit's figures into the obfuscator's bundle.

    Args:
        bundle: of the obfuscator.
        found: the content of `audit.json`.

    Raises:
        BundleError: the disk refuses.
    """
    keys = ("verdict", "budget", "best", "utility", "class_mean_mse", "identification", "attributes", "provenance")
    bundle.figures["audit"] = {key: found[key] for key in keys}
    bundle.save()


def _identity(scene: Scene, budget: Budget, beside: Beside | None) -> dict[str, Any]:
    """What must be the same for findings to be mixed."""
    target, probes = scene.target, scene.test.images[:4].float() / 255
    sent = b"" if target.stochastic else (target.travels(probes) * 1e3).round().numpy().astype(np.int64).tobytes()
    classifier = beside.classifier.classifier_fingerprint if beside and beside.classifier else None
    return {
        "obfuscator": f"{target.name} {hashlib.sha256(sent).hexdigest()}",
        "shadow": scene.shadow.name if scene.shadow else None,
        "classifier": classifier,
        "budget": repr(budget),
        "data": [scene.train.sha256, scene.test.sha256, len(scene.train), len(scene.test)],
    }


class _Run:
    """One audit."""

    def __init__(
        self, scene: Scene, budget: Budget, notebook: Notebook, beside: Beside, device: torch.device, progress: Progress
    ) -> None:
        self.scene, self.budget, self.notebook, self.beside = scene, budget, notebook, beside
        self.device, self._progress = device, progress
        self.trials = [*budget.trials, *(budget.views if scene.target.stochastic else ())]
        self.steps_done, self.steps = 0, len(self.trials) + budget.seeds - 1 + 6
        self._prepared: dict[str, Prepared] = {}
        guesses = class_means(scene.train)[scene.test.labels]
        self.class_mean_errors, _ = _in_parts(per_picture, guesses, scene.test.images)

    def everything(self) -> dict[str, Any]:
        scene, test = self.scene, self.scene.test
        utility = self._step("accuracy", self._utility)
        table = self._step("references", self._references)
        controls = self._step("controls", self._controls)
        trials = [self._trial(trial) for trial in self.trials]
        first = list(trials)
        trials += [self._trial(trial) for trial in self._repeated(trials)]
        best = _best(trials)
        identification = self._step("identification", lambda: self._identification(first))
        attributes = self._step("attributes", self._attributes)
        certificate, note = self._step("certificate", self._certificate)
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "target": {
                "name": scene.target.name,
                "height": scene.target.height,
                "width": scene.target.width,
                "stochastic": scene.target.stochastic,
                "gradients": scene.target.module is not None,
                "shadow": scene.shadow.name if scene.shadow else None,
            },
            "budget": {"name": self.budget.name, "says": self.budget.says},
            "data": {
                "source": scene.train.source,
                "train_pictures": len(scene.train),
                "test_pictures": len(test),
                "sha256": {"train": scene.train.sha256, "test": test.sha256},
            },
            "utility": utility,
            "class_mean_mse": float(self.class_mean_errors.mean()),
            "references": table,
            "trials": trials,
            "identification": identification,
            "attributes": attributes,
            "controls": controls + [asdict(control) for control in trial_controls(trials)],
            "certificate": certificate,
            "certificate_note": note,
            "best": best,
        }
        found["frontier"] = [*self._points(found), *self.beside.points]
        verdict = decide(found)
        found["verdict"] = {"finding": verdict.finding, "sentences": list(verdict.sentences)}
        found["provenance"] = provenance(
            seeds=sorted({trial["seed"] for trial in trials}),
            accelerator=self.device.type,
            threads=torch.get_num_threads(),
            seconds=round(sum(trial["seconds"] for trial in trials), 1),
        )
        return found

    def pictures(self, found: dict[str, Any]) -> Pictures:
        """What the report shows: the first test pictures by attacker, and the best attacker's extremes."""
        test = self.scene.test
        by_attacker: dict[str, tuple[float, Tensor]] = {}
        for trial in found["trials"]:
            restored = self.notebook.tensors(trial["key"]).get("restored")
            if restored is None or trial["status"] != "done":
                continue
            known = by_attacker.get(trial["attacker"])
            if known is None or trial["mse_compared"] < known[0]:
                by_attacker[trial["attacker"]] = trial["mse_compared"], restored
        best_cases, worst_cases = self._cases(found["best"])
        shown = min(PANEL, len(test))
        return Pictures(
            test.images[:shown],
            preview(self.scene.observed(Threat.PAIRS, shown)),
            {name: restored[:shown] for name, (_, restored) in by_attacker.items()},
            best_cases,
            worst_cases,
        )

    def _cases(self, best: dict[str, Any] | None) -> tuple[dict[str, list[Case]], dict[str, list[Case]]]:
        restored = self.notebook.tensors(f"{best['key']}-all").get("restored") if best else None
        if restored is None:
            return {}, {}
        originals = self.scene.test.images[: len(restored)]
        mse, ssim = _in_parts(per_picture, restored.float() / 255, originals)
        best_cases, worst_cases = {}, {}
        for name, values, rising in (("mse", mse, True), ("ssim", ssim, False)):
            order = values.argsort(descending=not rising)
            cases = [(originals[i], restored[i], float(values[i])) for i in order.tolist()]
            best_cases[name], worst_cases[name] = cases[:CASES], cases[-CASES:]
        return best_cases, worst_cases

    def _step(self, what: str, find: Callable[[], Any]) -> Any:
        self._progress(self.steps_done, self.steps, what, 0, 1)
        found = self.notebook.once(what, find)
        self.steps_done += 1
        return found

    def _tell(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(self.steps_done, self.steps, what, done, total)

    def _utility(self) -> dict[str, Any] | None:
        classifier, local = self.beside.classifier, self.beside.local
        if classifier is None:
            return None
        test = self.scene.test
        answers = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
        hits = 0
        for start in range(0, len(test), _BATCH):
            self._tell("accuracy")(start, len(test))
            travels = self.scene.target.travels(test.images[start : start + _BATCH].float() / 255)
            labels = test.labels[start : start + _BATCH].numpy()
            hits += int((answers(travels.numpy()).argmax(axis=1) == labels).sum())
        return {
            "accuracy_plain": evaluate_classifier(classifier, test)["accuracy_plain"],
            "accuracy_obfuscated": hits / len(test),
            "accuracy_local": evaluate_classifier(local, test)["accuracy_plain"] if local else None,
            "test_pictures": len(test),
        }

    def _references(self) -> list[dict[str, Any]]:
        train, test = self.scene.train, self.scene.test

        def find() -> list[dict[str, Any]]:
            rows = references(train, test, progress=self._tell("references"))
            return [{"name": row.name, "bits": row.bits, **asdict(row.figures)} for row in rows]

        of = (train.sha256, test.sha256, len(train), len(test))
        known: list[dict[str, Any]] = remembered("references", str(of), find)
        return known

    def _controls(self) -> list[dict[str, Any]]:
        controls = decoder_controls(
            self.scene.train,
            self.scene.test,
            pictures=self.budget.control_pictures,
            device=self.device,
            progress=lambda what, done, total: self._tell(f"control: {what}")(done, total),
        )
        return [asdict(control) for control in controls]

    def _repeated(self, trials: list[dict[str, Any]]) -> Iterator[Trial]:
        best = _best(trials)
        for seed in range(1, self.budget.seeds):
            for trial in self.trials:
                if best is not None and trial.key == best["key"]:
                    yield replace(trial, seed=seed)

    def _trial(self, trial: Trial) -> dict[str, Any]:
        found: dict[str, Any] = self._step(trial.key, lambda: self._attempt(trial))
        return found

    def _attempt(self, trial: Trial) -> dict[str, Any]:
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
        empty = dict.fromkeys(("mse", "psnr_db", "ssim", "excess_leakage", "mse_compared", "test_pictures", "params"))
        facts |= empty | {"pictures_seen": None, "seconds": 0.0, "curve": [], "flattened": None}
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
        self.notebook.checkpoint(trial.key).unlink(missing_ok=True)
        return facts

    def _prepare(self, trial: Trial) -> Prepared:
        attacker, scene = ATTACKERS[trial.attacker], self.scene
        if trial.threat not in attacker.threats:
            raise UnavailableError(f"{attacker.name} is not made for this threat model")
        if trial.steps and scene.target.module is None:
            raise UnavailableError("no gradients: only what travels is known of this obfuscator")
        effort = Effort(
            trial.pictures,
            trial.steps,
            trial.seed,
            self.device,
            self.notebook.checkpoint(trial.key),
            self._tell(f"{attacker.name}, {trial.threat}"),
        )
        return attacker.prepare(scene.knowledge(trial.threat, pairs=trial.pairs, views=trial.views), effort)

    def _attack(self, trial: Trial) -> dict[str, Any]:
        attacker, scene = ATTACKERS[trial.attacker], self.scene
        prepared = self._prepare(trial)
        count = min(self.budget.test_pictures, len(scene.test), _most_test_pictures(attacker, len(scene.test)))
        restored = self._restored(trial, prepared, count)
        figures = measure(restored, scene.test.images[:count])
        compared = figures.mse / float(self.class_mean_errors[:count].mean()) * float(self.class_mean_errors.mean())
        whole = count < len(scene.test) and _most_test_pictures(attacker, len(scene.test)) == len(scene.test)
        if trial.threat is Threat.WHITE_BOX and trial.views == 1 and trial.seed == 0 and attacker.learns:
            self._prepared[trial.key] = prepared
        if compared < self._lowest() and trial.views == 1:
            if whole:
                restored = self._restored(trial, prepared, len(scene.test))
                figures = measure(restored, scene.test.images)
            self.notebook.keep(f"{trial.key}-all", {"restored": _as_bytes(restored)})
        self.notebook.keep(trial.key, {"restored": _as_bytes(restored[:PANEL])})
        return {
            **_named(figures),
            "excess_leakage": excess_leakage(figures.mse, float(self.class_mean_errors[: figures.pictures].mean())),
            "mse_compared": compared,
            "params": prepared.facts.get("params"),
            "pictures_seen": prepared.facts.get("pictures_seen"),
            "curve": [list(point) for point in prepared.curve],
            "flattened": prepared.flattened,
        }

    def _lowest(self) -> float:
        """The best attacker's error so far."""
        known = [
            self.notebook.once(t.key, dict) for t in self.trials if (self.notebook.folder / f"{t.key}.json").is_file()
        ]
        return min(
            (t["mse_compared"] for t in known if t["status"] == "done" and t["views"] == 1), default=float("inf")
        )

    def _restored(self, trial: Trial, prepared: Prepared, count: int) -> Tensor:
        parts = []
        for start in range(0, count, _BATCH):
            observed = self.scene.observed(trial.threat, min(count, start + _BATCH), views=trial.views)[start:]
            parts.append(prepared.restore(observed))
            self._tell(f"{trial.attacker}, {trial.threat}: restoring")(min(count, start + _BATCH), count)
        return torch.cat(parts)

    def _identification(self, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        scene, count = self.scene, min(self.budget.test_pictures, len(self.scene.test))
        prepared = self._strongest_decoder(trials)
        effort = Effort(self.budget.identification_pictures, 0, 0, self.device, progress=self._tell("identification"))
        found = identify(
            scene.knowledge(Threat.WHITE_BOX),
            scene.observed(Threat.WHITE_BOX, count),
            scene.test.images[:count],
            scene.test.labels[:count],
            restore=prepared.restore if prepared else None,
            effort=effort,
            observe=scene.target.observe,
            seed=scene.seed,
        )
        return [{**asdict(row), "threat": str(row.threat)} for row in found]

    def _strongest_decoder(self, trials: list[dict[str, Any]]) -> Prepared | None:
        """Of the white box, as it was trained for its trial; trained again where the audit was resumed since."""
        rows = [t for t in trials if t["threat"] == Threat.WHITE_BOX and ATTACKERS[t["attacker"]].learns]
        best = _best(rows)
        if best is None:
            return None
        if best["key"] not in self._prepared:
            self._prepared[best["key"]] = self._prepare(next(t for t in self.trials if t.key == best["key"]))
        return self._prepared[best["key"]]

    def _attributes(self) -> list[dict[str, Any]]:
        scene, count = self.scene, min(self.budget.test_pictures, len(self.scene.test))
        effort = Effort(self.budget.attribute_pictures, 0, 0, self.device, progress=self._tell("attributes"))
        extra = {name: (known, asked[:count]) for name, (known, asked) in (self.beside.attributes or {}).items()}
        found = infer(
            scene.knowledge(Threat.WHITE_BOX),
            scene.target.observe,
            scene.test.images[:count],
            scene.test.labels[:count],
            scene.train.labels,
            effort=effort,
            seed=scene.seed,
            extra=extra,
        )
        return [asdict(row) for row in found]

    def _certificate(self) -> tuple[dict[str, Any] | None, str]:
        target = self.scene.target
        if not target.stochastic:
            return None, "There is none: without noise nothing bounds what an attacker may restore."
        if not isinstance(target.module, Noisy):
            return None, "There is none: the obfuscator is stochastic, but does not say what its noise is."
        pictures = self.scene.train.images[:_CERTIFICATE_PICTURES]
        found = certify(target.module, pictures, progress=self._tell("certificate"))
        return found.as_json(), "It holds for one obfuscation of a picture; each further one weakens it."

    def _points(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        utility, best = found["utility"], found["best"]
        if utility is None or best is None:
            return []
        point = {
            "name": self.scene.target.name,
            "accuracy": utility["accuracy_obfuscated"],
            "excess_leakage": best["excess_leakage"],
            "role": "this",
            "budget": self.budget.name,
            "source": "this audit",
            "best_attacker": best["attacker"],
        }
        ends = [
            ("plain picture", "accuracy_plain", 1.0, "identity"),
            ("classifier on the device", "accuracy_local", 0.0, "local"),
        ]
        return [
            point,
            *(
                {
                    **point,
                    "name": name,
                    "accuracy": utility[key],
                    "excess_leakage": leakage,
                    "role": role,
                    "budget": None,
                    "best_attacker": None,
                }
                for name, key, leakage, role in ends
                if utility[key] is not None
            ),
        ]


def preview(travels: Tensor) -> Tensor:
    """Makes what travels visible, each picture stretched to the visible range on its own.

    Args:
        travels: (N, C, H, W) float32.

    Returns:
        (N, 3, H, W) uint8, or (N, 1, H, W) of the first channel if there are not three.
    """
    shown = travels if travels.shape[1] == 3 else travels[:, :1]
    low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
    return _as_bytes((shown - low) / (high - low).clamp_min(1e-6))


def _as_bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)


def _in_parts(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], restored: Tensor, originals: Tensor
) -> tuple[Tensor, Tensor]:
    parts = [function(a, b) for a, b in zip(torch.split(restored, _BATCH), torch.split(originals, _BATCH), strict=True)]
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])


def _named(figures: Figures) -> dict[str, Any]:
    return {"mse": figures.mse, "psnr_db": figures.psnr_db, "ssim": figures.ssim, "test_pictures": figures.pictures}


def _most_test_pictures(attacker: Attacker, available: int) -> int:
    """Attackers that optimise every picture alone say how many they can afford."""
    return int(getattr(attacker, "test_pictures", available))


def _best(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the lowest error, of those who saw each picture once."""
    done = [trial for trial in trials if trial["status"] == "done" and trial["views"] == 1]
    if not done:
        return None
    best = min(done, key=lambda trial: float(trial["mse_compared"]))
    return {key: value for key, value in best.items() if key != "curve"}

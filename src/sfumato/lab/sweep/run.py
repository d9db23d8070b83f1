"""Run a sweep: make every point, plot the frontier, and say whether offloading pays off."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.artifacts.provenance import provenance
from sfumato.errors import AuditError, Interrupted, SfumatoError, TrainingError
from sfumato.lab.audit.points import ENDS, points_of
from sfumato.lab.audit.schema import AuditResult, Point, Provenance
from sfumato.lab.models.precision import device_name, fastest_device
from sfumato.lab.report.frontier import save_frontier_png
from sfumato.lab.report.tradeoff import Row, row, sentence, verdict
from sfumato.lab.runs.trainings import check_writable
from sfumato.lab.sweep.jobs import Engine, Make, in_turn, is_done, known_audit, make
from sfumato.lab.sweep.plan import Setting, Sweep, device_cost
from sfumato.lab.sweep.schema import (
    ComparisonPoint,
    DeviceCost,
    Frontier,
    FrontierPoint,
    NamedBudget,
    NamedClassifier,
    Verdict,
    write_frontier,
)
from sfumato.progress import Say, mute

_ALIKE = 1.1
"""Costs up to this ratio count as the same budget."""
_ALL_SENT = "every image sent"


@dataclass(frozen=True)
class Found:
    """The result of a sweep: the content of `frontier.json`, and its points as they are compared and plotted."""

    rows: list[Row]
    comparison: list[Point]
    frontier: Frontier
    file: Path


@dataclass(frozen=True)
class _Swept:
    """A row with the setting that it belongs to; `series` is that of the plot."""

    setting: Setting
    series: str
    row: Row


def run_sweep(sweep: Sweep, *, engine: Engine = in_turn, make: Make = make, say: Say = mute) -> Found:
    """Make what is missing, and write `audits/`, `frontier.png` and `frontier.json`.

    Interrupted anywhere, a second call resumes and loses at most an epoch, or the attacker at work.

    The engine makes the points; `make` trains and audits one.

    Raises:
        SfumatoError: the on-device baseline cannot be trained, no point could be made, or the disk refuses.
        Interrupted: Ctrl-C or SIGTERM; what was done is kept.
    """
    check_writable(sweep.folder)
    missing = [job for job in sweep.jobs.values() if not is_done(job)]  # also refuses what belongs to another sweep
    say(f"{len(sweep.jobs)} points, {len(missing)} of them to be made, in {sweep.folder}")
    local = sweep.local_job
    try:
        if local is not None and not is_done(local) and (failed := engine([local], make, say)):
            raise TrainingError(f"the on-device baseline could not be trained: {failed[local.name]}")
        failed = engine(missing, make, say) if missing else {}
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted; the state is kept in {sweep.folder}: the same command resumes") from None
    found = _found(sweep, failed, say)
    write_frontier(found.file, found.frontier)
    return found


def on_ray(storage: Path, *, address: str | None = None, **options: Any) -> Engine:
    """Return an engine that makes several points at once; see `sfumato.lab.sweep.ray.RayEngine` for the arguments.

    Raises:
        SfumatoError: Ray is not installed.
    """
    # Ray reads these when it is imported: no usage statistics, and without a cluster the loopback alone.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        from sfumato.lab.sweep.ray import RayEngine
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sfumato"):
            raise
        raise SfumatoError(f"{error.name} is not installed; run: pip install 'sfumato[ray]'") from error
    return RayEngine(storage, address=address, **options)


def _found(sweep: Sweep, failed: dict[str, str], say: Say) -> Found:
    audits = {name: known_audit(job) for name, job in sweep.jobs.items() if name not in failed}
    made = {sweep.folder / "audits" / f"{name}.json": audit for name, audit in audits.items() if audit is not None}
    for file, audit in made.items():
        audit.write(file)
    others = _comparable(sweep, made, say)
    swept = [one for setting in sweep.settings for one in _rows(setting, made, others)]
    if not swept:
        reasons = "; ".join(dict.fromkeys(failed.values())) or "no attacker finished"
        raise AuditError(f"no point of the sweep could be made: {reasons}")
    comparison = [point for point in points_of(others) if point.role not in ENDS]
    comparison += [point for point in points_of({**others, **made}) if point.role in ENDS]
    plot = sweep.folder / "frontier.png"
    by_series = sorted(swept, key=lambda one: one.series != _ALL_SENT)  # one series after the other
    save_frontier_png([*map(_plotted, by_series), *comparison], plot)
    rows = [one.row for one in swept]
    pays_off, sentences = verdict(rows)
    device = device_cost(sweep)
    sentences += _on_cost(device)
    if failed:
        failures = f"Points that could not be made, and are not counted: {', '.join(failed)}"
        sentences.append(f"{failures}; the same command tries again.")
    frontier = Frontier(
        recipe=str(sweep.recipe),
        budget=NamedBudget(name=sweep.budget.name, description=sweep.budget.description),
        classifier=NamedClassifier(name=sweep.classifier.name, fingerprint=sweep.classifier.fingerprint),
        on_device=None if sweep.local is None else str(sweep.local),
        device=device,
        points=tuple(_point(sweep, one, made) for one in swept),
        comparison=tuple(map(ComparisonPoint.model_validate, comparison)),
        failed=failed,
        verdict=Verdict(pays_off=pays_off, sentences=tuple(sentences)),
        plot=str(plot),
        provenance=Provenance.model_validate(provenance(device=device_name(fastest_device())).to_json()),
    )
    return Found(rows, comparison, frontier, sweep.folder / "frontier.json")


def _rows(setting: Setting, made: Mapping[Path, AuditResult], others: Mapping[Path, AuditResult]) -> list[_Swept]:
    """Return a setting's rows: sending every image, and with its gate if it has one."""
    points = [
        [p for p in points_of({**others, Path(file.stem): audit}) if p.role not in ENDS and p.source == file.stem]
        for file, audit in made.items()
        if file.stem in setting.recipes
    ]
    rows = []
    for place, (series, label) in enumerate(((_ALL_SENT, setting.label), ("gated", f"{setting.label}, gated"))):
        seeds = [found[place] for found in points if len(found) > place]
        if seeds:
            rows.append(_Swept(setting, series, row(label, seeds)))
    return rows


def _point(sweep: Sweep, one: _Swept, made: Mapping[Path, AuditResult]) -> FrontierPoint:
    files = [file for file in made if file.stem in one.setting.recipes]
    return FrontierPoint.model_validate(
        {
            **asdict(one.row),
            "setting": one.setting.values,
            "gated": one.series != _ALL_SENT,
            "sentence": sentence(one.row),
            "runs": [str(sweep.jobs[file.stem].run.folder) for file in files],
            "audits": [str(file) for file in files],
        }
    )


def _plotted(one: _Swept) -> Point:
    """Return a row as a point of the plot."""
    of = one.row
    deviation, other = of.accuracy.std, of.excess_leakage.std
    return Point(
        name=of.name,
        accuracy=of.accuracy.mean,
        excess_leakage=of.excess_leakage.mean,
        role="swept",
        budget=of.budget,
        source="this sweep",
        best_attacker=", ".join(dict.fromkeys(of.attackers)),
        series=one.series,
        spread=None if deviation is None or other is None else (deviation, other),
    )


def _comparable(sweep: Sweep, own: dict[Path, AuditResult], say: Say) -> dict[Path, AuditResult]:
    """Return other audits for the same classifier on the same images: those with the same accuracy on plain images."""
    plain = {audit.utility.accuracy_plain for audit in own.values() if audit.utility}
    others = sweep.others
    same = {file: audit for file, audit in others.items() if audit.utility and audit.utility.accuracy_plain in plain}
    if left_out := [file.name for file in others if file not in same]:
        say(
            "left out, as their accuracy on plain images differs from the sweep's (another classifier or other "
            f"images): {', '.join(left_out)}"
        )
    return same


def _on_cost(device: DeviceCost) -> list[str]:
    obfuscator, local = device.obfuscator_macs, device.on_device_macs
    if local is None:
        return []
    costs = (
        f"On the device the obfuscator takes {obfuscator / 1e6:.1f} million multiply-accumulates per image, the "
        f"on-device baseline {local / 1e6:.1f} million"
    )
    if local > _ALIKE * obfuscator:
        return [f"{costs}, which may be more than the device has."]
    if obfuscator > _ALIKE * local:
        return [f"{costs}: a larger baseline would fit, and might be more accurate."]
    return [f"{costs}."]

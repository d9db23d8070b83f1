"""From a dial to the frontier: makes every point, draws them, and says whether offloading pays off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.artifacts.bundle import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.errors import AuditError, Interrupted, TrainingError
from sfumato.lab.audit.points import ENDS, points_of
from sfumato.lab.audit.schema import AuditResult, Point
from sfumato.lab.models.precision import device_name
from sfumato.lab.report.frontier import save_frontier_png
from sfumato.lab.report.tradeoff import Row, row, sentence, verdict
from sfumato.lab.runs.folders import check_writable
from sfumato.lab.sweep.dials import Setting
from sfumato.lab.sweep.engines import in_turn
from sfumato.lab.sweep.jobs import Engine, Make, Say, fastest_device, is_done, known_audit, make
from sfumato.lab.sweep.plan import Sweep, device_cost

SCHEMA = "sfumato.frontier/1"
_ALIKE = 1.1
"""Up to so many times the cost counts as the same budget."""


@dataclass(frozen=True)
class Found:
    """What a sweep found.

    Attributes:
        rows: one for each setting, and one for each with its gate.
        beside: the alternatives, as points of the plot.
        content: of the file.
        file: `frontier.json`.
    """

    rows: list[Row]
    beside: list[Point]
    content: dict[str, Any]
    file: Path


def run_sweep(sweep: Sweep, *, engine: Engine = in_turn, make: Make = make, say: Say = lambda line: None) -> Found:
    """Makes what is missing, and writes `audits/`, `frontier.png` and `frontier.json`.

    Interrupted anywhere, a second call goes on and loses at most an epoch, or the attacker at work.

    Args:
        sweep: checked.
        engine: that makes the points.
        make: what it does with each.
        say: is told lines for people.

    Returns:
        What was found; `frontier.json` says the same.

    Raises:
        SfumatoError: the classifier on the device cannot be trained, no point could be made, or the disk refuses.
        Interrupted: Ctrl-C or SIGTERM; what was done is kept.
    """
    check_writable(sweep.folder)
    missing = [job for job in sweep.jobs.values() if not is_done(job)]  # also refuses what belongs to another sweep
    say(f"{len(sweep.jobs)} points, {len(missing)} of them to be made, in {sweep.folder}")
    local = sweep.local_job
    try:
        if local is not None and not is_done(local) and (failed := engine([local], make, say)):
            raise TrainingError(f"the classifier on the device could not be trained: {failed[local.name]}")
        failed = engine(missing, make, say) if missing else {}
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted; what was done is kept in {sweep.folder}: the same command goes on") from None
    found = _found(sweep, failed, say)
    write_json(found.file, found.content)
    return found


def _found(sweep: Sweep, failed: dict[str, str], say: Say) -> Found:
    audits = {name: known_audit(job) for name, job in sweep.jobs.items() if name not in failed}
    made = {name: audit for name, audit in audits.items() if audit is not None}
    files = {name: sweep.folder / "audits" / f"{name}.json" for name in made}
    for name, audit in made.items():
        audit.write(files[name])
    own = {files[name]: audit for name, audit in made.items()}
    others = _comparable(sweep, own, say)
    swept = [(setting, mode, of) for setting in sweep.settings for mode, of in _rows(setting, made, others)]
    if not swept:
        reasons = "; ".join(dict.fromkeys(failed.values())) or "no attacker came to an end"
        raise AuditError(f"no point of the sweep could be made: {reasons}")
    drawn = [_drawn(of, mode) for mode in dict.fromkeys(m for _, m, _ in swept) for _, m, of in swept if m == mode]
    beside = [point for point in points_of(others) if point.role not in ENDS]
    beside += [point for point in points_of({**others, **own}) if point.role in ENDS]
    plot = sweep.folder / "frontier.png"
    save_frontier_png([*drawn, *beside], plot)
    rows = [of for _, _, of in swept]
    pays_off, sentences = verdict(rows)
    macs = device_cost(sweep)
    content = {
        "schema": SCHEMA,
        "recipe": str(sweep.recipe),
        "budget": {"name": sweep.budget.name, "description": sweep.budget.description},
        "classifier": {"name": sweep.classifier.name, "fingerprint": sweep.classifier.fingerprint},
        "local": None if sweep.local_bundle is None else str(sweep.local_bundle),
        "device": macs,
        "points": [
            {
                **asdict(of),
                "setting": setting.values,
                "gated": mode != _SENDS_ALL,
                "sentence": sentence(of),
                "runs": [sweep.jobs[name].folder for name in setting.names if name in made],
                "audits": [str(files[name]) for name in setting.names if name in made],
            }
            for setting, mode, of in swept
        ],
        "beside": [point.as_json for point in beside],
        "failed": failed,
        "verdict": {"pays_off": pays_off, "sentences": [*sentences, *_device_says(macs), *_lost(failed)]},
        "plot": str(plot),
        "provenance": provenance(device=device_name(fastest_device())).to_json(),
    }
    return Found(rows, beside, content, sweep.folder / "frontier.json")


_SENDS_ALL = "every image sent"


def _rows(setting: Setting, made: dict[str, AuditResult], others: dict[Path, AuditResult]) -> list[tuple[str, Row]]:
    """A setting's rows: sending every image, and with its gate if it has one."""
    points = [
        [p for p in points_of({**others, Path(name): made[name]}) if p.role not in ENDS and p.source == name]
        for name in setting.names
        if name in made
    ]
    rows = []
    for place, (mode, label) in enumerate(((_SENDS_ALL, setting.label), ("gated", f"{setting.label}, gated"))):
        seeds = [found[place] for found in points if len(found) > place]
        if seeds:
            rows.append((mode, row(label, seeds)))
    return rows


def _drawn(of: Row, mode: str) -> Point:
    """A row as a point of the plot."""
    accuracy, leakage = of.accuracy.std, of.excess_leakage.std
    spread = None if accuracy is None or leakage is None else (accuracy, leakage)
    return Point(
        name=of.name,
        accuracy=of.accuracy.mean,
        excess_leakage=of.excess_leakage.mean,
        role="swept",
        budget=of.budget,
        source="this sweep",
        best_attacker=", ".join(dict.fromkeys(of.attackers)),
        series=mode,
        spread=spread,
    )


def _comparable(sweep: Sweep, own: dict[Path, AuditResult], say: Say) -> dict[Path, AuditResult]:
    """Other audits for the same classifier on the same images: those with the same accuracy on plain ones."""
    plain = {audit.utility.accuracy_plain for audit in own.values() if audit.utility}
    others = sweep.beside or {}
    same = {file: audit for file, audit in others.items() if audit.utility and audit.utility.accuracy_plain in plain}
    if left_out := [file.name for file in others if file not in same]:
        say(
            f"left out, being for another classifier or other images than the sweep's: {', '.join(left_out)} (plain "
            "images get another accuracy there)"
        )
    return same


def _device_says(macs: dict[str, int | None]) -> list[str]:
    obfuscator, local = macs["obfuscator_macs"], macs["local_macs"]
    if obfuscator is None or local is None:
        return []
    says = (
        f"On the device the obfuscator takes {obfuscator / 1e6:.1f} million multiply-accumulates an image, the "
        f"classifier beside it {local / 1e6:.1f} million"
    )
    if local > _ALIKE * obfuscator:
        return [f"{says}, which may be more than the device has."]
    if obfuscator > _ALIKE * local:
        return [f"{says}: a larger one would fit, and might be better."]
    return [f"{says}."]


def _lost(failed: dict[str, str]) -> list[str]:
    if not failed:
        return []
    return [f"Points that could not be made, and are not counted: {', '.join(failed)}; the same command tries again."]

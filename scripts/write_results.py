"""Put the audits in `results/` where they are shown: `python -m scripts.write_results`.

The tables of `docs/results.md` between their markers, the figure of many frames, and the summaries in the manifests of
the shipped bundles. Verdicts are written in today's words. A part of the page without results is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.shipped import obfuscator_bundle
from sfumato.lab.audit.frames import FramesResult, read_frames
from sfumato.lab.audit.membership import Membership, MembershipResult
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult, GateFigures
from sfumato.lab.audit.verdict import decide, decimals, percent
from sfumato.lab.evaluation.results import read_object
from sfumato.lab.report.attribute_table import markdown, write_between
from sfumato.lab.report.frames import save_frames_png

PAGE = Path("docs/results.md")
FRAMES_PNG = Path("docs/images/frames.png")
AUDITS, MEMBERSHIP, FRAMES = (Path("results") / name for name in ("audits", "membership", "frames"))
SHIPPED = {"cifar10-resnet20-sketch": "the sketch", "cifar10-resnet20-obfuscator": "the paper's obfuscator"}
RATES = (0.05, 0.15)
"""Offload rates of plain images that are shown."""


def audits() -> str:
    """Return the table of all obfuscators, and of what needs none."""
    found = {file.stem: audit for file, audit in read_audits(AUDITS).items()}
    default = found[next(iter(SHIPPED))]
    rows = [["obfuscator", "accuracy", "excess leakage, at least", "MSE", "best attacker"]]
    rows += [
        *_without(default),
        *(_audited(name, found[name]) for name in sorted(found, key=lambda n: -_accuracy(found[n]))),
    ]
    return markdown(rows)


def _accuracy(audit: AuditResult) -> float:
    return 0.0 if audit.utility is None else audit.utility.accuracy_obfuscated


def _without(audit: AuditResult) -> list[list[str]]:
    """The rows of what the device does alone, of a gate, and of sending some plain images."""
    utility, gate = audit.utility, audit.gate
    assert utility is not None and gate is not None
    rows = [["on-device baseline (same budget)", percent(utility.accuracy_local), "0 by definition", "", ""]]
    rows.append([f"the sketch with its gate, {percent(gate.offload_rate)} sent", *_gated(gate)])
    for row in utility.gated_plain:
        if row.offload_rate in RATES:
            leaks = f"{decimals(row.excess_leakage, 2)} over all, 1 over the images sent"
            name = f"selective offloading of plain images, {row.offload_rate:.0%} sent".replace("%", " %")
            rows.append([name, percent(row.accuracy), leaks, "", "- (sent in the clear)"])
    return rows


def _gated(gate: GateFigures) -> list[str]:
    mean, sent = (decimals(leakage, 2) for leakage in (gate.excess_leakage_mean, gate.excess_leakage_sent))
    return [percent(gate.accuracy_gated), f"{mean} over all, {sent} over the images sent", "", gate.attacker]


def _audited(name: str, audit: AuditResult) -> list[str]:
    best = audit.best
    assert best is not None
    title = f"**{name}**" if name in SHIPPED else name
    leaks = f"{best.excess_leakage:.2f}"
    return [title, percent(_accuracy(audit)), leaks, f"{best.mse:.4f}", f"{best.attacker}, {best.threat}"]


def verdict() -> str:
    """Return the verdict on the shipped sketch, quoted."""
    sentences = AuditResult.read(AUDITS / "cifar10-resnet20-sketch.json").verdict.sentences
    return "\n>\n".join(f"> {sentence}" for sentence in sentences)


def membership() -> str:
    """Return the table of membership inference, the obfuscators' attacks and those for comparison."""
    rows = [["bundle", "under attack", "attacker, reads", "AUC (95 % interval)", "TPR at 1 % FPR", "at 0.1 %"]]
    for file in sorted(MEMBERSHIP.glob("*.json")):
        result = MembershipResult.of(read_object(file), file)
        rows += [[_title(result.obfuscator), *_inferred(attack)] for attack in result.attacks]
    return markdown(rows)


def _inferred(attack: Membership) -> list[str]:
    found = attack.detection
    rates = {rate.fpr: f"{percent(rate.tpr)} ({percent(rate.low)} to {percent(rate.high)})" for rate in found.rates}
    auc = f"{found.auc:.3f} ({found.auc_low:.3f} to {found.auc_high:.3f})"
    reads = f"{attack.attacker}, {attack.signal}"
    return [attack.subject, reads, f"**{auc}**" if attack.infers else auc, rates[0.01], rates[0.001]]


def frames() -> str:
    """Return the table of what many frames of one scene leak: all of 1, and all of 100."""
    rows = [["obfuscator", "sent of 100 frames", "excess leakage, 1 frame / 100", "linked", "re-identified"]]
    for result in read_frames(FRAMES):
        rows += _over_time(result)
    return markdown(rows)


def _over_time(result: FramesResult) -> list[list[str]]:
    most = max(row.frames for row in result.leakages)
    single = {row.policy: row for row in result.leakages if row.frames == 1}
    rows = []
    for row in (row for row in result.leakages if row.frames == most):
        first = single.get(row.policy)
        leaks = f"{decimals(first and first.excess_leakage, 2)} / {decimals(row.excess_leakage, 2)}"
        rates = [percent(max((one.top1 for one in found), default=None)) for found in (row.linkage, row.identification)]
        rows.append([_title(result.obfuscator), f"{row.policy}: {row.sent:.3g}", leaks, *rates])
    return rows


def _title(name: str) -> str:
    return SHIPPED.get(name, name)


SECTIONS: dict[str, tuple[Path, Callable[[], str]]] = {
    "audits": (AUDITS, audits),
    "verdict": (AUDITS, verdict),
    "membership": (MEMBERSHIP, membership),
    "frames": (FRAMES, frames),
}
"""Name of the markers -> folder of the results, and what makes the text."""


def markers(name: str) -> tuple[str, str]:
    """Return the lines before and after a part of the page."""
    return f"<!-- {name}: from {SECTIONS[name][0]} -->", f"<!-- {name}: end -->"


def renew() -> None:
    """Write the verdicts of the audits in today's words, and the summaries of those of the shipped bundles."""
    for file, audit in read_audits(AUDITS).items():
        if (today := decide(audit)) != audit.verdict:
            audit = audit.model_copy(update={"verdict": today})
            audit.write(file)
        if file.stem in SHIPPED:
            bundle = Bundle.load(obfuscator_bundle().parent / file.stem, kind="obfuscator")
            replace(bundle, figures=bundle.figures.updated(audit=audit.summary.as_json)).save()


def main() -> None:
    """Write everything."""
    renew()
    for name, (folder, text) in SECTIONS.items():
        if any(folder.glob("*.json")):
            write_between(PAGE, text(), *markers(name))
    if found := read_frames(FRAMES):
        save_frames_png(sorted(found, key=lambda result: result.obfuscator != next(iter(SHIPPED))), FRAMES_PNG)
    print(PAGE)


if __name__ == "__main__":
    main()

"""Audits as points of the plot: accuracy, excess leakage, and what is reached at that leakage without an obfuscator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato.artifacts.files import read_json
from sfumato.errors import AuditError
from sfumato.lab.audit.schema import Alternatives, AuditResult, Point, Role, is_audit
from sfumato.lab.audit.verdict import best_mixture
from sfumato.lab.evaluation.transfer import Leakage

ENDS = ("local", "identity", "gated", "paper")
"""The roles of points that are no audited obfuscator."""

PAPER_DATA = "cifar10"
_SOURCE = "Leroux et al. 2018, table 2"
PAPER = tuple(
    Point(name=f"paper, {net}", accuracy=accuracy, excess_leakage=None, role="paper", source=_SOURCE)
    for net, accuracy in (("VGG19", 0.893), ("ResNet18", 0.898), ("ResNet50", 0.902), ("GoogLeNet", 0.905))
)
"""The paper's accuracies on CIFAR-10. It measures no leakage that can be compared."""


def collect(folder: Path) -> list[Point]:
    """Read a folder of audits into points; see `read_audits` and `points_of`."""
    return points_of(read_audits(folder))


def read_audits(folder: Path) -> dict[Path, AuditResult]:
    """Read the audits of any version in a folder's `*.json`, in the order of the names; pass over other JSON files.

    Raises:
        AuditError: no such folder, a file that cannot be read as JSON, or a broken audit.
    """
    if not folder.is_dir():
        raise AuditError(f"{folder} is not a folder; give the one that holds the audits' JSON files")
    contents = {file: read_json(file, AuditError) for file in sorted(folder.glob("*.json"))}
    return {file: AuditResult.of(content, file) for file, content in contents.items() if is_audit(content)}


def points_of(audits: Mapping[Path, AuditResult]) -> list[Point]:
    """Turn audits, by their files, into points: those of the audits in order, then the ends and the paper.

    Each audit with a classifier and a best attacker gives one point, with a gate two. The ends of the line, the
    on-device baseline and the plain image in the cloud, are the best that any of the audits knows, as is the
    curve of a gate before the plain image. The paper's accuracies are added where the data are `PAPER_DATA`.

    Raises:
        AuditError: audits of several data sets, which cannot be compared.
    """
    sources: dict[str, Path] = {}
    for file, audit in audits.items():
        sources.setdefault(audit.data.source, file)
    if len(sources) > 1:
        places = ", ".join(f"{source} ({file.name})" for source, file in sources.items())
        raise AuditError(f"audits of several data sets cannot share one plot: {places}; keep them in separate folders")
    points = [
        point
        for file, audit in audits.items()
        for point in obfuscator_points(audit, role=_role(audit), source=file.name)
    ]
    paper = list(PAPER) if PAPER_DATA in sources else []
    known = [audit.utility for audit in audits.values() if audit.utility is not None]
    if not known:
        return points + paper
    best = Alternatives(
        accuracy_local=max((u.accuracy_local for u in known if u.accuracy_local is not None), default=None),
        accuracy_plain=max(u.accuracy_plain for u in known),
        gated_plain=max((u.gated_plain for u in known), key=lambda rows: sum(row.accuracy for row in rows)),
    )
    compared = []
    for point in points:
        mixed, mixing = best_mixture(point.excess_leakage or 0.0, best) or (None, None)
        update = {"local": best.accuracy_local, "mixture": mixed, "mixing": mixing}
        compared.append(point.model_copy(update=update))
    roles = {point.role for point in points}
    return compared + [end for end in end_points(best, "the audits' utility") if end.role not in roles] + paper


def frontier_of(audit: AuditResult, others: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points of an audit's own plot, and those of others, without ends that it measured itself."""
    own = obfuscator_points(audit, role="this", source="this audit")
    if not own or audit.utility is None:
        return ()
    points = [*own, *end_points(audit.utility, "this audit")]
    known = {point.role for point in points} | {audit.target.name, f"{audit.target.name}, gated"}
    return (*points, *(point for point in others if not {point.role, point.name} & known))


def leakage_of(audit: AuditResult) -> Leakage | None:
    """Return what an audit found, for a table of accuracies; None if no attacker finished."""
    best, certificate = audit.best, audit.certificate
    if best is None:
        return None
    target = audit.target.fingerprint or audit.target.name
    bits = None if certificate is None else certificate.rate_bits
    return Leakage(target, best.excess_leakage, best.attacker, audit.budget.name, bits)


def obfuscator_points(audit: AuditResult, *, role: Role, source: str) -> list[Point]:
    """Return an obfuscator's points: sending every image, and with its gate; empty without accuracy or attacker."""
    utility, best, gate = audit.utility, audit.best, audit.gate
    if utility is None or best is None:
        return []
    own = Point(
        name=audit.target.name,
        accuracy=utility.accuracy_obfuscated,
        excess_leakage=best.excess_leakage,
        role=role,
        budget=audit.budget.name,
        source=source,
        best_attacker=best.attacker,
    )
    if gate is None or gate.accuracy_gated is None or gate.excess_leakage_mean is None:
        return [own]
    place = {"accuracy": gate.accuracy_gated, "excess_leakage": gate.excess_leakage_mean}
    return [own, own.model_copy(update=place | {"name": f"{own.name}, gated", "best_attacker": gate.attacker})]


def end_points(known: Alternatives, source: str) -> list[Point]:
    """Return what is reached without an obfuscator: plain images behind a gate, the on-device baseline, plain ones."""
    ends: list[tuple[str, float, float, Role]] = [
        (f"plain image, {100 * row.offload_rate:.0f} % sent", row.accuracy, row.excess_leakage, "gated")
        for row in known.gated_plain
    ]
    if known.accuracy_local is not None:
        ends.append(("on-device baseline", known.accuracy_local, 0.0, "local"))
    ends.append(("plain image", known.accuracy_plain, 1.0, "identity"))
    return [
        Point(name=name, accuracy=accuracy, excess_leakage=leakage, role=role, source=source)
        for name, accuracy, leakage, role in ends
    ]


def _role(audit: AuditResult) -> Role:
    kind: dict[str, Role] = {"baseline": "baseline", "identity": "identity"}
    return kind.get(audit.target.kind) or kind.get(audit.target.name) or "other"

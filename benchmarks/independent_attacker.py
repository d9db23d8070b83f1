"""Check the audits' attackers with an independent one: `benchmarks/independent_attacker.md` specifies it.

`python benchmarks/independent_attacker.py` attacks the obfuscator of every audit in results/audits, in about ten
minutes each on two idle cores, and writes results/independent-attacker.json after each; the same command resumes. It
ends with 1 if an audit is beaten or an obfuscator was not attacked. For an audit called NAME, the obfuscator is the
shipped one of that name, or that in runs/baselines/NAME/bundle or runs/NAME/bundle. `SFUMATO_CIFAR10` names the images.

- `--bundle PATH`: only this bundle or ONNX file, whose audit is among the others; may be repeated.
- `--limit N`: a trial on N images; writes nothing without `--out`.
- `--page`: put the table of the results that are there into docs/results.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from independent_network import LOSSES, Inverter, Settings, fit, step_s
from independent_results import (
    BEGIN,
    END,
    PAGE,
    RESULTS,
    Attack,
    Comparison,
    Missing,
    Network,
    Row,
    compare,
    retrieval_of,
    section,
)
from torch import Tensor

from sfumato.artifacts import shipped
from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.progress import bars
from sfumato.errors import AuditError, SfumatoError
from sfumato.lab.attacks.identification import Identification, identify
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.target import Target
from sfumato.lab.attacks.threat_models import Knowledge, Threat
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.targets import load_target, native_size
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.evaluation.measures import measure
from sfumato.lab.models.precision import fastest_device
from sfumato.lab.report.attribute_table import write_between
from sfumato.lab.runs.speed import spoken
from sfumato.progress import Progress, Say, mute, silent

T = TypeVar("T", Row, Missing)
VERSION = 1
"""Of the specification."""
HELD_OUT_SHARE = 0.1
CANDIDATES = 100
"""For the choice of the loss."""
OVERHEAD = 1.3
"""Payloads, the choice and the attack, on top of training."""


@dataclass(frozen=True)
class Pair:
    """An audit and the obfuscator that it audited.

    Attributes:
        name: of the audit's file, without suffix.
        target: the obfuscator.
        train: public images, as the audit's.
        test: private images, as the audit's.
    """

    name: str
    audit: AuditResult
    target: Target
    train: ImageSet
    test: ImageSet


def key_of(audit: AuditResult, fingerprint: str, settings: Settings) -> tuple[str, ...]:
    """Return what must be the same for an attack to be the same, of the obfuscator with this fingerprint."""
    images = audit.data.sha256["train"], audit.data.sha256["test"], audit.budget.name
    candidates = [f"{row.queries} among {row.candidates}" for row in retrieval_of(audit)[:1]]
    return (fingerprint, *images, *candidates, repr(settings))


def attack(pair: Pair, settings: Settings, *, device: torch.device, progress: Progress = silent) -> Attack:
    """Train a network with each loss, and measure all on the test images.

    Raises:
        AuditError: payloads or losses that are not finite, too few images, or candidates that differ from the audit's.
    """
    started = time.monotonic()
    train, test = pair.train, pair.test.subset(settings.test_images)
    order = torch.from_numpy(np.random.default_rng(settings.seed).permutation(len(train)))
    held = min(settings.held_out, int(HELD_OUT_SHARE * len(train)))
    count = settings.steps * settings.batch_of(*train.images.shape[2:])
    own, choice = order[held : held + count], order[:held]
    images, observed, chosen_from, sent = (
        train.images[own],
        *(pair.target.observe(part) for part in (train.images[own], train.images[choice], test.images)),
    )
    networks, params, found = [], 0, None
    for loss in LOSSES:
        stage = f"{pair.name}, {loss}"
        net = fit(observed, images, loss, settings, device=device, progress=progress, stage=stage)
        guess, truth = net.reconstruct(chosen_from), train.images[choice].float() / 255
        held_out_mse = float((guess - truth).square().double().mean())
        held_out = _identified(net, chosen_from, train.images[choice], train.labels[choice], CANDIDATES)
        figures = measure(net.reconstruct(sent), test.images)
        found = _as_audited(pair.audit, net, sent, test, settings)
        networks.append(
            Network(loss, held_out_mse, held_out.top1, figures.mse, figures.psnr_db, figures.ssim, found.top1)
        )
        params = sum(parameter.numel() for parameter in net.parameters())
    return Attack(
        version=VERSION,
        key=key_of(pair.audit, pair.target.fingerprint, settings),
        pairs=len(own),
        held_out=held,
        test_images=len(test),
        candidates=found.candidates,
        queries=found.queries,
        params=params,
        networks=tuple(networks),
        seconds=round(time.monotonic() - started, 1),
        measured=provenance(seed=settings.seed, accelerator=device.type, threads=torch.get_num_threads()).to_json(),
    )


def _as_audited(audit: AuditResult, net: Inverter, sent: Tensor, test: ImageSet, settings: Settings) -> Identification:
    """Re-identify with the audit's own queries and candidates, which depend on how many images its budget tries."""
    rows, budget = retrieval_of(audit), audit.budget.name.partition(" x ")[0]
    if budget not in BUDGETS:
        raise AuditError(f"the audit has the budget {budget!r}; expected one of {', '.join(BUDGETS)}: audit again")
    tried = min(BUDGETS[budget].test_images, len(test))
    wanted = rows[0].candidates if rows else CANDIDATES
    found = _identified(net, sent[:tried], test.images[:tried], test.labels[:tried], wanted)
    audited = max((row.queries for row in rows), default=0)
    if rows and settings.test_images is None and (found.candidates, found.queries) != (wanted, audited):
        raise AuditError(
            f"re-identification by {found.queries} queries among {found.candidates}, the audit's by {audited} among "
            f"{wanted}: they cannot be compared; audit again"
        )
    return found


def _identified(net: Inverter, sent: Tensor, images: Tensor, labels: Tensor, candidates: int) -> Identification:
    knowledge = Knowledge(Threat.PAIRS, *images.shape[2:])  # without pairs: only reconstructions are compared
    nothing = AttackBudget(images=0, steps=0)
    (found,) = identify(
        knowledge, sent, images, labels,
        reconstruct=net.reconstruct, budget=nothing, observe=None, seed=0, candidates=(candidates,),
    )  # fmt: skip
    return found


def find_pairs(
    audits: Mapping[str, AuditResult], given: Sequence[Path], *, runs: Path = Path("runs"), progress: Progress = silent
) -> tuple[list[Pair], list[Missing]]:
    """Find the audit of each given obfuscator, or, if none is given, the obfuscator of each audit.

    Args:
        audits: by the names of their files, without suffix.
        given: bundles' folders and ONNX files.
        runs: where to look for bundles that are not shipped.
        progress: see `sfumato.progress.Progress`.

    Raises:
        AuditError: a given obfuscator that no audit is of.
        SfumatoError: one that cannot be loaded, or its images cannot.
    """
    found, missing = [], []
    for path in given:
        target = load_target(str(path), size=native_size(str(path)) or (32, 32))
        name = next((name for name, audit in audits.items() if is_of(audit, target)), None)
        if name is None:
            raise AuditError(f"no audit is of {path}: audit it first, and put audit.json among the others")
        found.append(_pair(name, audits[name], target, progress))
    for name, audit in () if given else audits.items():
        try:
            found.append(_pair(name, audit, _target_of(name, audit, runs), progress))
        except SfumatoError as error:
            missing.append(Missing(name, str(error)))
    return found, missing


def is_of(audit: AuditResult, target: Target) -> bool:
    """Return whether an audit is of an obfuscator: by the fingerprint, or by the name in audits without one."""
    known = audit.target.fingerprint
    return known == target.fingerprint if known else audit.target.name == target.name


def _target_of(name: str, audit: AuditResult, runs: Path) -> Target:
    places = shipped.obfuscator_bundle().parent / name, runs / "baselines" / name / "bundle", runs / name / "bundle"
    there = [place for place in places if place.is_dir()]
    if not there:
        makes = f"; `sfumato baseline {name} -o {runs}/baselines/{name}` makes one"
        hint = makes if audit.target.kind in ("baseline", "identity") else ""
        raise AuditError(f"no bundle in {', '.join(map(str, places))}{hint}")
    targets = [load_target(str(place), size=(audit.target.height, audit.target.width)) for place in there]
    same = [target for target in targets if is_of(audit, target)]
    if not same:
        raise AuditError(f"{', '.join(map(str, there))} is another obfuscator than the audited one: audit it again")
    return same[0]


def _pair(name: str, audit: AuditResult, target: Target, progress: Progress) -> Pair:
    facts = audit.data
    if audit.best is None:
        raise AuditError("none of the audit's attackers finished: audit again")
    train, test = _images(facts.source, target.height, target.width, progress)
    train, test = train.subset(facts.train_images), test.subset(facts.test_images)
    if facts.sha256 != {"train": train.sha256, "test": test.sha256}:
        raise AuditError(f"the images of {facts.source} are not those that were audited with: audit again")
    return Pair(name, audit, target, train, test)


@lru_cache(maxsize=1)
def _images(source: str, height: int, width: int, progress: Progress) -> tuple[ImageSet, ImageSet]:
    train, test, _ = load_train_test(source, size=(height, width), progress=progress)
    return train, test


def run(
    pairs: Sequence[Pair],
    known: Comparison,
    settings: Settings,
    out: Path | None,
    *,
    device: torch.device,
    progress: Progress = silent,
    say: Say = mute,
) -> Comparison:
    """Attack what was not attacked before, and write the results after each pair.

    Args:
        pairs: what to attack.
        known: results so far: their attacks are kept if they are of the same obfuscator, images and settings.
        settings: how long.
        out: the results file; None writes none.
        device: where networks are trained.
        progress: see `sfumato.progress.Progress`.
        say: is given a line for each pair.
    """
    attacks = _attacks(known)
    for pair in pairs:
        key = key_of(pair.audit, pair.target.fingerprint, settings)
        try:
            done = attacks.get(key) or attack(pair, settings, device=device, progress=progress)
            row = compare(pair.name, pair.audit, done)
            known = _with(known, row)
            say(_line(row))
        except SfumatoError as error:
            known = _with(known, Missing(pair.name, str(error)))
            say(f"{pair.name}: {error}")
        if out is not None:
            write_json(out, known.to_json())
    return known


def _attacks(known: Comparison) -> dict[tuple[str, ...], Attack]:
    return {row.attack.key: row.attack for row in known.rows if row.attack.version == VERSION}


def only(
    known: Comparison,
    audits: Mapping[str, AuditResult],
    pairs: Sequence[Pair],
    missing: Sequence[Missing],
    settings: Settings,
) -> Comparison:
    """Return the results so far, of these pairs and no others.

    An obfuscator that is not there any more, but was attacked before, is not missing: its attack is compared again.
    """
    rows, attacks = [row for row in known.rows if row.audit in {pair.name for pair in pairs}], _attacks(known)
    left = []
    for one in missing:
        audit = audits[one.audit]
        done = attacks.get(key_of(audit, audit.target.fingerprint, settings)) if audit.target.fingerprint else None
        if done is None:
            left.append(one)
        else:
            rows.append(compare(one.audit, audit, done))
    return replace(known, rows=_by_name(rows), missing=_by_name(left))


def _with(known: Comparison, one: Row | Missing) -> Comparison:
    rows = [row for row in known.rows if row.audit != one.audit] + ([one] if isinstance(one, Row) else [])
    missing = [row for row in known.missing if row.audit != one.audit] + ([one] if isinstance(one, Missing) else [])
    return replace(known, rows=_by_name(rows), missing=_by_name(missing))


def _by_name(rows: Iterable[T]) -> tuple[T, ...]:
    return tuple(sorted(rows, key=lambda row: row.audit))


def _line(row: Row) -> str:
    ratio = "" if row.mse_ratio is None else f", ratio {row.mse_ratio:.3g}"
    audited = "-" if row.audit_top1 is None else f"{row.audit_top1:.3f}"
    return (
        f"{row.audit}: MSE {row.mse:.6f} ({row.loss}), audit {row.audit_mse:.6f}{ratio}; top-1 {row.top1:.3f} "
        f"({row.identifier_loss}), audit {audited}; beaten: {', '.join(row.beaten) or 'no'}; "
        f"{spoken(row.attack.seconds)}"
    )


def results_so_far(out: Path | None, limit: int | None) -> Comparison:
    """Read the results file, if there is one.

    Raises:
        AuditError: it holds a trial and this is none, or the other way round.
        ResultsError: it cannot be read.
    """
    known = Comparison() if out is None else Comparison.read(out)
    if known.rows and known.trial != limit:
        raise AuditError(f"{out} is of {known.trial or 'all'} images, this run of {limit or 'all'}: name another --out")
    return replace(known, trial=limit)


def _announce(pairs: Sequence[Pair], known: Comparison, settings: Settings, device: torch.device, say: Say) -> None:
    """Print what is left to do, and roughly how long."""
    done = _attacks(known)
    left = [pair for pair in pairs if key_of(pair.audit, pair.target.fingerprint, settings) not in done]
    sizes = [(pair.target.height, pair.target.width) for pair in left]
    of_size = {
        size: OVERHEAD * len(LOSSES) * settings.steps * step_s(*size, settings, device=device) for size in {*sizes}
    }
    total = sum(of_size[size] for size in sizes)
    each = f", about {spoken(total / len(left))} each, {spoken(total)} in all on this machine" if left else ""
    say(f"{len(left)} of {len(pairs)} pairs to attack on {device.type}{each}")


def main() -> int:
    """Return 1 if an audit is beaten or an obfuscator missing, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=Path, default=Path("results/audits"), metavar="DIR")
    parser.add_argument("--bundle", type=Path, action="append", default=[], metavar="PATH")
    parser.add_argument("--limit", type=int, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page:
        write_between(PAGE, section(Comparison.read(given.out or RESULTS)), BEGIN, END)
        return 0
    keep_freed_memory()
    settings = Settings() if given.limit is None else Settings.trial(given.limit)
    out = given.out or (RESULTS if given.limit is None else None)
    known = results_so_far(out, given.limit)
    device = fastest_device()
    with bars() as shown:
        audits = {file.stem: audit for file, audit in read_audits(given.audits).items()}
        pairs, missing = find_pairs(audits, given.bundle, progress=shown.progress)
        if not given.bundle:
            known = only(known, audits, pairs, missing, settings)
            for one in known.missing:
                shown.say(f"{one.audit}: {one.reason}")
        _announce(pairs, known, settings, device, shown.say)
        found = run(pairs, known, settings, out, device=device, progress=shown.progress, say=shown.say)
    return 0 if given.limit is not None or found.holds else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except SfumatoError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the pairs so far are kept: the same command resumes") from None

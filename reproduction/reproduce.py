"""From nothing, or from what is there, to the paper's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from reproduction.audits import known_audit, make_audit
from reproduction.files import results_path, write_results
from reproduction.images import table_2, table_5
from reproduction.kept import keep, rebuild
from reproduction.lab import Lab
from reproduction.listing import seconds_left
from reproduction.optimum import at_the_optimum, over_epochs, over_lambda
from reproduction.page import write_page
from reproduction.plan import Part, Plan, Target, parts
from reproduction.schema import Results
from reproduction.tables import table_1, table_3, table_4
from sfumato.artifacts.files import exclusive
from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.models.precision import device_name
from sfumato.lab.runs.speed import Speed, spoken
from sfumato.lab.runs.trainings import check_writable
from sfumato.progress import Progress, Say, mute


def make_lab(plan: Plan, folder: Path, progress: Progress) -> Lab:
    """Return the lab of a plan's size on this machine's fastest device; `folder` is that of all sizes' runs."""
    return Lab(plan, folder / plan.size, torch.device("cuda" if torch.cuda.is_available() else "cpu"), progress)


def reproduce(target: Target, lab: Lab, results: Path, page: Path, *, say: Say = mute) -> list[Path]:
    """Train what is missing, measure, and write the results files and the page.

    The networks are made part by part (`reproduction.plan.parts`); after each part the tables are written with what is
    there. Interrupted anywhere, a second call resumes and loses at most a minute of training.

    Args:
        target: what to make.
        lab: where training happens.
        results: folder of the results files.
        page: the document; images go into a folder of its name.
        say: see `Say`.

    Returns:
        The files that were written, the page last.

    Raises:
        TrainingError: another process works in this lab, or something cannot be trained.
        SfumatoError: something is damaged, or cannot be attacked or written.
        Interrupted: Ctrl-C or SIGTERM; what was done is kept.
    """
    if target is Target.PAGE:
        write_page(results, page)
        return [page]
    check_writable(lab.folder)
    try:
        with exclusive(lab.folder, TrainingError):
            written = _make(target, lab, results, page, say)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted; the state is kept in {lab.folder}: the same command resumes") from None
    return [*written, page]


def _make(target: Target, lab: Lab, results: Path, page: Path, say: Say) -> list[Path]:
    made, speed = parts(lab.plan, target), Speed(lab.device)
    for item in (item for part in made for item in part.items if lab.state(item).name == "missing"):
        rebuild(lab, item, results, say)
    written: list[Path] = []
    undone = any(lab.state(item).name != "done" for part in made for item in part.items)
    if undone and _lacking(target, lab, results):  # at once: what is to be trained may take days
        written += _write(target, lab, results, page, say)
    for number, part in enumerate(made, 1):
        new = _make_part(lab, part, results, f"[{number}/{len(made)}] ", speed, say)
        if new and number < len(made):
            written += _write(target, lab, results, page, say)
    written += _write(target, lab, results, page, say)
    return list(dict.fromkeys(written))


def _make_part(lab: Lab, part: Part, results: Path, count: str, speed: Speed, say: Say) -> bool:
    """Train, keep and audit what is missing of a part, and return whether anything was."""
    new = False
    for item in part.items:
        state = lab.state(item)
        if state.name != "done":
            left = spoken(seconds_left(lab, item, speed))
            say(f"{count}{item.name}: {state.name}, training in {lab.run(item).folder}, about {left}")
            lab.make(item, say=say)
            keep(lab, results)  # at once: the next one may take hours
            new = True
    for item in part.audited:
        if known_audit(lab, item) is None:
            say(f"{count}audit of {item.name}, about {spoken(speed.audit_s(BUDGETS[lab.plan.budget]))}")
            make_audit(lab, item)
            new = True
    return new


def _write(target: Target, lab: Lab, results: Path, page: Path, say: Say) -> list[Path]:
    """Write the tables with what is made so far, and the page."""
    finished = _finished(target, lab)
    facts = {"device": device_name(lab.device), "threads": torch.get_num_threads()}
    written = []
    for name, find in _tables(target, finished, page.parent / page.stem).items():
        say(f"measuring {name}")
        written.append(write_results(results, lab.plan.size, find(), **facts))
    keep(lab, results)
    write_page(results, page)
    return written


def _lacking(target: Target, lab: Lab, results: Path) -> bool:
    """Tell whether a row is made that a results file could be written from and is not."""
    finished = _finished(target, lab)
    tables = _tables(target, finished, results) if finished.plan.obfuscators else ()
    return any(not results_path(results, lab.plan.size, name).is_file() for name in tables)


def _finished(target: Target, lab: Lab) -> Lab:
    """Return the lab with a plan that has only what is made."""
    done = {
        item.name
        for part in parts(lab.plan, target)
        if all(lab.state(item).name == "done" for item in part.items)
        and all(known_audit(lab, item) is not None for item in part.audited)
        for item in part.items
    }
    plan = lab.plan
    made = replace(
        plan,
        classifiers=tuple(item for item in plan.classifiers if item.name in done),
        obfuscators=tuple(item for item in plan.obfuscators if item.name in done),
        local=plan.local if plan.local is not None and plan.local.name in done else None,
        sweep=tuple(item for item in plan.sweep if {item.name, item.classifier} <= done),
    )
    return replace(lab, plan=made)


def _tables(target: Target, lab: Lab, images: Path) -> dict[str, Callable[[], Results]]:
    """Return the results files of a target that there are networks for, and how each is found."""
    tables: dict[str, Callable[[], Results]] = {"table4": table_4}
    optimum: dict[str, Callable[[], Results]] = {}
    if lab.plan.obfuscators:
        tables |= {
            "table1": lambda: table_1(lab),
            "table2": lambda: table_2(lab, images),
            "table3": lambda: table_3(lab),
            "table5": lambda: table_5(lab, images),
        }
        optimum |= {"optimum": lambda: at_the_optimum(lab), "epochs": lambda: over_epochs(lab, images)}
    if lab.plan.sweep:
        optimum["lambda"] = lambda: over_lambda(lab)
    if target is Target.ALL:
        return tables | optimum
    return optimum if target is Target.OPTIMUM else {str(target): tables[str(target)]}

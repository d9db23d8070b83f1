"""From nothing, or from whatever is there, to the paper's tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import Interrupted
from sfumato.making.audits import Bars
from sfumato.making.files import check_writable
from sfumato.paper.audits import make_audit
from sfumato.paper.lab import Lab
from sfumato.paper.optimum import at_the_optimum, over_epochs, over_lambda
from sfumato.paper.page import write_page
from sfumato.paper.pictures import table_2, table_5
from sfumato.paper.plan import Plan, Target, needed
from sfumato.paper.results import write_results
from sfumato.paper.tables import table_1, table_3, table_4
from sfumato.provenance import device_name

Say = Callable[[str], None]
"""Is told a line for people."""


def make_lab(plan: Plan, folder: Path, bars: Bars) -> Lab:
    """The lab of a plan's size on this machine's fastest device.

    Args:
        plan: of a size.
        folder: of all sizes' runs.
        bars: see `Bars`.
    """
    return Lab(plan, folder / plan.size, bars, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def reproduce(target: Target, lab: Lab, results: Path, page: Path, *, say: Say = lambda line: None) -> list[Path]:
    """Trains what is missing, measures, writes the results files and the page.

    Interrupted anywhere, a second call goes on and loses at most an epoch.

    Args:
        target: what to make.
        lab: where training happens.
        results: folder of the results files.
        page: the document; pictures go into a folder of its name.
        say: see `Say`.

    Returns:
        The files that were written, the page last.

    Raises:
        SfumatoError: something is damaged, or cannot be trained, attacked or written.
        Interrupted: Ctrl-C or SIGTERM; what was done is kept.
    """
    try:
        written = [] if target is Target.PAGE else _make(target, lab, results, page, say)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted; what was done is kept in {lab.folder}: the same command goes on") from None
    write_page(results, page)
    return [*written, page]


def _make(target: Target, lab: Lab, results: Path, page: Path, say: Say) -> list[Path]:
    check_writable(lab.folder)
    items, audited = needed(lab.plan, target)
    for number, item in enumerate(items, 1):
        state = lab.state(item)
        if state.name != "done":
            say(f"[{number}/{len(items)}] {item.name}: {state.name}, training in {lab.run(item).folder}")
            lab.make(item)
    for number, item in enumerate(audited, 1):
        say(f"[{number}/{len(audited)}] audit of {item.name}")
        make_audit(lab, item)
    written = []
    for name, find in _tables(target, lab, page.parent / page.stem).items():
        say(f"measuring {name}")
        facts: dict[str, Any] = {"device": device_name(lab.device), "threads": torch.get_num_threads()}
        written.append(write_results(results, lab.plan.size, name, find(), **facts))
    return written


def _tables(target: Target, lab: Lab, pictures: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """The results files that a target consists of, and how each is found."""
    tables: dict[str, Callable[[], dict[str, Any]]] = {
        "table1": lambda: table_1(lab),
        "table2": lambda: table_2(lab, pictures),
        "table3": lambda: table_3(lab),
        "table4": table_4,
        "table5": lambda: table_5(lab, pictures),
    }
    optimum: dict[str, Callable[[], dict[str, Any]]] = {
        "optimum": lambda: at_the_optimum(lab),
        "epochs": lambda: over_epochs(lab),
        "lambda": lambda: over_lambda(lab),
    }
    if target is Target.ALL:
        return tables | optimum
    return optimum if target is Target.OPTIMUM else {str(target): tables[str(target)]}

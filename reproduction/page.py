"""The page that compares the paper's tables with ours, rendered from the results files. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from reproduction import claim_sections as claim
from reproduction import sections
from reproduction.files import R, read_results, read_training_step, results_path
from reproduction.plan import CPU, PAPER, SIZES
from reproduction.schema import (
    TABLES,
    Epochs,
    Lambdas,
    Optimum,
    Results,
    Table1,
    Table2,
    Table3,
    Table4,
    Table5,
)
from reproduction.summary import summary
from sfumato.errors import ResultsError

_HEADER = """\
<!-- Made by `python -m reproduction page` from the files in results/; changes by hand are lost. -->

# Reproduction of the paper

Compare the tables of Leroux, Verbelen, Simoens and Dhoedt, *Privacy Aware Offloading of Deep Neural Networks* (2018)
with ours, and find the command that makes each of them again.

**The paper evaluates one attacker: the deobfuscator that is trained jointly with the obfuscator. We also evaluate
adaptive attackers, which are trained after the obfuscator is fixed.** Obfuscation is not encryption: every figure of
leakage here is a lower bound, from attackers with a limited budget.
"""
_SIZES = """\
The figures come in two sizes. Do not compare a figure of one size with a figure of the other:

{sizes}

Each missing figure names the command that makes it. MAC overhead in the "paper's order" counts the operations as the
paper orders them; "ours" computes the same function with fewer.
"""
T = TypeVar("T")
_Section = tuple[str, list[tuple[str, str]]]
"""A title, and its parts, each with a title or none."""


def write_page(results: Path, page: Path) -> None:
    """Write the page.

    Args:
        results: folder of the results files; the benchmarks' files lie in its parent.
        page: the Markdown file.

    Raises:
        ResultsError: a results file is malformed, or the page cannot be written.
    """
    text = render(results, page.stem)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{page} cannot be written: {error.strerror or error}") from error


def render(results: Path, images: str) -> str:
    """Return the page's text.

    Args:
        results: see `write_page`.
        images: the folder of the images, relative to the page.

    Raises:
        ResultsError: a results file is malformed.
    """
    files = _Files(results)
    parts = [_HEADER]
    for title, made in _sections(files, images):
        parts.append(f"## {title}")
        parts += [f"### {subtitle}\n\n{text}" if subtitle else text for subtitle, text in made]
    return "\n\n".join(part.strip() for part in parts) + "\n"


class _Files:
    """The results files; errors name the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def show(self, size: str, kind: type[R], write: Callable[[R | None], T]) -> T:
        """Return what `write` makes of a table's results."""
        found = read_results(self.folder, size, kind)
        try:
            return write(found)
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            path = results_path(self.folder, size, kind.table)
            what = f"{type(error).__name__} {error}"
            raise ResultsError(f"{path} is malformed ({what}); move it away to make it again") from error

    def has(self, size: str, kind: type[Results]) -> bool:
        """Return whether a results file is there."""
        return results_path(self.folder, size, kind.table).is_file()


def _sizes(files: _Files) -> str:
    sizes = []
    for size, plan in SIZES.items():
        made = [kind.table for kind in TABLES if files.has(size, kind)]
        absent = [kind.table for kind in TABLES if kind.table not in made]
        there = f"Available: {', '.join(made) or 'nothing'}. Missing: {', '.join(absent) or 'nothing'}."
        sizes.append(f"- **`{size}`**: {plan.description}. {there}")
    return _SIZES.format(sizes="\n".join(sizes))


def _summary(files: _Files) -> list[_Section]:
    """What held of the paper, of the largest size that has it."""
    sizes = [plan.size for plan in (PAPER, CPU)]

    def found(size: str, kind: type[R]) -> R | None:
        return files.show(size, kind, lambda results: results)

    optima = {size: results for size in sizes if (results := found(size, Optimum))}
    transfer = max(
        (made for size in sizes if (made := found(size, Table3))), key=lambda made: len(made.names), default=None
    )
    on_device = next((rows for size in sizes if (rows := found(size, Table1)) and rows.on_device), None)
    text = summary(found(PAPER.size, Table1), optima, transfer, on_device)
    return [("What held of the paper", [("", text)])] if text else []


def _claim(files: _Files, images: str) -> list[_Section]:
    """The paper's claim at the largest size that was made."""
    size = next((size for size in SIZES if files.has(size, Optimum) and files.has(size, Table2)), None)
    if size is None:
        return []
    panel = files.show(size, Table2, lambda found: sections.panel(found.panels[0], images) if found else "")
    text = files.show(size, Optimum, lambda found: claim.claim(found, panel) if found else "")
    return [("Can an obfuscated image be reconstructed?", [(SIZES[size].title, text)])] if text else []


def _sections(files: _Files, images: str) -> list[_Section]:
    which = next((size for size in SIZES if files.has(size, Table4)), CPU.size)

    def each(kind: type[Any], write: Callable[..., str]) -> list[tuple[str, str]]:
        return [(plan.title, files.show(plan.size, kind, partial(write, size=plan.size))) for plan in (PAPER, CPU)]

    def joined(kind: type[Any], write: Callable[..., str]) -> str:
        return "\n\n".join(f"**{title}.**\n\n{text}" for title, text in each(kind, write))

    def panels(kind: type[Any]) -> list[tuple[str, str]]:
        return each(kind, partial(sections.panels, target=kind.table, folder=images))

    def table_1(results: Table1 | None, size: str) -> str:
        return (sections.table_1_paper if size == PAPER.size else sections.table_1_cpu)(results)

    def table_3(results: Table3 | None, size: str) -> str:
        return (sections.table_3_paper if size == PAPER.size else sections.table_3_cpu)(results)

    return [
        *_summary(files),
        ("Two sizes of networks", [("", _sizes(files))]),
        *_claim(files, images),
        ("Table 1: accuracy and overhead", each(Table1, table_1)),
        ("Table 2: images", panels(Table2)),
        ("Table 3: transfer to other classifiers", each(Table3, table_3)),
        ("Table 4: architecture", [("", files.show(which, Table4, sections.table_4))]),
        ("Table 5: more images", panels(Table5)),
        (
            "The paper's claim under adaptive attackers",
            [
                ("The joint deobfuscator and adaptive attackers", joined(Optimum, claim.under_attack)),
                ("Accuracy and errors during training", joined(Epochs, partial(claim.epochs, folder=images))),
                ("Effect of lambda", joined(Lambdas, claim.lambdas)),
                ("What the payload still reveals", joined(Optimum, claim.explained)),
            ],
        ),
        ("Training speed", [("", sections.step(read_training_step(files.folder.parent)))]),
    ]

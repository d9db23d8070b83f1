"""The page with the paper's tables beside ours, made whole from the results files. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from reproduction import optimum_section as optimum
from reproduction import sections
from reproduction.markdown import command
from reproduction.plan import CPU, PAPER, RESULTS, SIZES
from reproduction.results import read_results, results_path
from sfumato.errors import ResultsError
from sfumato.lab.runs.folders import read_json

Results = dict[str, Any] | None

_HEADER = """\
<!-- Made by `python -m reproduction page` from the files in results/; changes by hand are lost. -->

# The paper's tables, and ours

Leroux, Verbelen, Simoens and Dhoedt, *Privacy Aware Offloading of Deep Neural Networks* (2018), table by table.

{verdict}
An obfuscator is not encryption: every figure of leakage here is a lower bound, from attackers of limited training.

Figures come in two sizes, which are not to be compared with each other:

{sizes}

A row that is not there says which command makes it. An overhead "in its order" counts the operations as the paper
does; "ours" computes the same function with fewer.
"""
_TRUTH = (
    "**The paper measures one attacker, the deobfuscator that is trained jointly with the obfuscator; what counts is "
    "whether attackers who come later reconstruct more.**"
)


def write_page(results: Path, page: Path) -> None:
    """Writes the page.

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
    """The page's text.

    Args:
        results: see `write_page`.
        images: the folder of the images, as seen from the page.

    Raises:
        ResultsError: a results file is malformed.
    """
    files = _Files(results)
    parts = [_header(files)]
    for title, made in _sections(files, images):
        parts.append(f"## {title}")
        parts += [f"### {subtitle}\n\n{text}" if subtitle else text for subtitle, text in made]
    return "\n\n".join(part.strip() for part in parts) + "\n"


class _Files:
    """The results files; whatever is wrong with one is said with its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def show(self, size: str, name: str, draw: Callable[[Results], str]) -> str:
        """What `draw` makes of a table's results."""
        found = read_results(self._folder, size, name)
        return _drawn(results_path(self._folder, size, name), found, draw)

    def benchmark(self, name: str, draw: Callable[[Results], str]) -> str:
        """What `draw` makes of a benchmark's results."""
        path = self._folder.parent / name
        return _drawn(path, read_json(path), draw)

    def has(self, size: str, name: str) -> bool:
        """Whether a results file is there."""
        return results_path(self._folder, size, name).is_file()


def _drawn(path: Path, found: Results, draw: Callable[[Results], str]) -> str:
    try:
        return draw(found)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        raise ResultsError(f"{path} is malformed ({what}): move it away, then make it again") from error


def _header(files: _Files) -> str:
    verdicts = [files.show(size, "optimum", lambda found: optimum.verdict(found) if found else "") for size in SIZES]
    said = " ".join(verdict for verdict in verdicts if verdict)
    verdict = f"{_TRUTH} {said or 'The figures are ' + command('optimum', CPU.size) + '.'}"
    sizes = []
    for size, plan in SIZES.items():
        made = [name for name in RESULTS if files.has(size, name)]
        absent = [name for name in RESULTS if name not in made]
        there = f"made: {', '.join(made) or 'nothing'}; missing: {', '.join(absent) or 'nothing'}"
        sizes.append(f"- **`{size}`**: {plan.says}. {there}.")
    return _HEADER.format(verdict=verdict, sizes="\n".join(sizes))


def _claim(files: _Files, images: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The paper's claim at the largest size that was made."""
    size = next((size for size in SIZES if files.has(size, "optimum") and files.has(size, "table2")), None)
    if size is None:
        return []
    panel = files.show(size, "table2", lambda found: sections.panel(found["images"][0], images) if found else "")
    text = files.show(size, "optimum", lambda found: optimum.claim(found, panel) if found else "")
    return [("Can an obfuscated image be reconstructed?", [(SIZES[size].title, text)])] if text else []


def _sections(files: _Files, images: str) -> list[tuple[str, list[tuple[str, str]]]]:
    paper, cpu = PAPER.size, CPU.size
    full, small = PAPER.title, CPU.title
    which = next((size for size in SIZES if files.has(size, "table4")), cpu)

    def panels(target: str) -> list[tuple[str, str]]:
        draw = partial(sections.images, target=target, folder=images)
        return [
            (says, files.show(size, target, partial(draw, size=size))) for says, size in ((full, paper), (small, cpu))
        ]

    def both(name: str, draw: Callable[..., str]) -> str:
        parts = (
            (says, files.show(size, name, partial(draw, size=size))) for says, size in ((full, paper), (small, cpu))
        )
        return "\n\n".join(f"**{says}.**\n\n{text}" for says, text in parts)

    return [
        *_claim(files, images),
        (
            "Table 1: accuracy and overhead",
            [
                (full, files.show(paper, "table1", sections.table_1_paper)),
                (small, files.show(cpu, "table1", sections.table_1_cpu)),
            ],
        ),
        ("Table 2: images", panels("table2")),
        (
            "Table 3: obfuscators used with other classifiers",
            [
                (full, files.show(paper, "table3", sections.table_3_paper)),
                (small, files.show(cpu, "table3", sections.table_3_cpu)),
            ],
        ),
        ("Table 4: the architecture", [("", files.show(which, "table4", sections.table_4))]),
        ("Table 5: more images", panels("table5")),
        (
            "What happens at the paper's optimum?",
            [
                ("Does the joint deobfuscator's failure hold?", both("optimum", optimum.holds)),
                ("While the networks train", both("epochs", partial(optimum.epochs, folder=images))),
                ("What lambda does", both("lambda", optimum.lambdas)),
                ("What the obfuscated image still shows", both("optimum", optimum.shows)),
            ],
        ),
        ("Speed of training", [("", files.benchmark("training-step.json", sections.step))]),
    ]

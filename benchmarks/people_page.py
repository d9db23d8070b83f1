"""The results file of `benchmarks/people.py`, typed, and the figures of docs/people.md, which are made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from sfumato.artifacts.files import read_json
from sfumato.errors import AuditError
from sfumato.lab.attacks.image_attributes import Attribute
from sfumato.lab.audit.model import Model
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import Provenance
from sfumato.lab.audit.verdict import infers, percent
from sfumato.lab.report.attribute_table import AttributeTable, cells, markdown, side_by_side

PAGE, RESULTS, DRAWN = Path("docs/people.md"), Path("results/people/faces96.json"), Path("results/people")
MARKS = "<!-- make real-faces -->", "<!-- end -->"
CLEARLY = 0.015
"""Half of the interval's width, with 4,000 test images."""
SCHEMA: Literal["sfumato.people/1"] = "sfumato.people/1"
LABEL_ALONE = "label"
TITLES: dict[str, str] = {
    "identity": "image in the clear",
    "blur-1": "blur, 1 pixel",
    "blur-2": "blur, 2 pixels",
    "blur-4": "blur, 4 pixels",
    "pixelate-3": "pixelate, squares of 3 pixels",
    "pixelate-6": "pixelate, squares of 6 pixels",
    "pixelate-12": "pixelate, squares of 12 pixels",
    "blur-face": "blur the face alone, 4 pixels",
    "obfuscator": "the paper's obfuscator",
    "sketch-5": "sketch, the label and 5 bits",
    "sketch-3": "sketch, the label and 3 bits",
    "sketch-1": "sketch, the label and 1 bit",
    LABEL_ALONE: "on-device classifier, its label alone",
}
"""Each way to send an image: its name, and its title on the page."""


class Settings(Model):
    """How small the run is.

    Attributes:
        side: rows and columns that the images of 96 pixels are reduced to.
        epochs: of classifier, obfuscator and sketch.
        budget_scale: of the audits' budget "attributes".
        quick: whether this only tries the measurement, on a few images.
    """

    side: int
    epochs: dict[str, int]
    budget_scale: float
    quick: bool


class Useful(Model):
    """One useful prediction, and what leaks beside it.

    Attributes:
        useful: column of the useful prediction.
        values: its classes.
        private: columns that an attacker infers.
        table: a row for each way.
    """

    useful: str
    values: tuple[str, ...]
    private: tuple[str, ...]
    table: AttributeTable


class People(Model):
    """What `benchmarks/people.py` writes to results/people/faces96.json.

    Attributes:
        data: the images, in words.
        settings: how small the run is.
        directions: the age group useful and the rest private, then the reverse.
        provenance: of the table; that of each audit stands in its row.
    """

    model_config = ConfigDict(title="benchmarks/people.py", serialize_by_alias=True)

    version: Literal["sfumato.people/1"] = Field(default=SCHEMA, alias="schema")
    data: str
    settings: Settings
    directions: tuple[Useful, ...]
    provenance: Provenance

    @classmethod
    def read(cls, path: Path) -> People | None:
        """Return the results, or None if nothing was measured yet.

        Raises:
            AuditError: the file cannot be read, or is broken.
        """
        return cls.of(read_json(path, AuditError), path) if path.is_file() else None


def figures(people: People | None) -> str:
    """Return what the page says between `MARKS`: of these results or, before there are any, of the drawn faces."""
    return "\n\n".join(_drawn() if people is None else _measured(people))


def _drawn() -> list[str]:
    return [
        "**Real faces are not measured yet.** Until then, four ways for drawn faces of 32 pixels, where the expression "
        "is useful: [how they are measured](how-to/private-attributes.md#what-is-hidden-and-what-not).",
        markdown(cells(side_by_side(read_audits(DRAWN)))),
    ]


def _measured(people: People) -> list[str]:
    settings, machine = people.settings, people.provenance.machine
    data, budget = people.directions[0].table.data, people.directions[0].table.budget
    epochs = ", ".join(f"{kind} {count}" for kind, count in settings.epochs.items())
    parts = [
        f"Measured on {people.data}: {data.train_images:,} training and {data.test_images:,} test images, reduced to "
        f"{settings.side} x {settings.side} pixels; {machine.get('cores')} cores of {machine.get('cpu')}, one seed, "
        f'epochs: {epochs}; audits with the budget "{budget.name}"; {people.provenance.written[:10]}. '
        f"[All figures](../{RESULTS}), with intervals and the attacker that each comes from.",
    ]
    for direction in people.directions:
        private = " and ".join(map(_words, direction.private))
        parts += [
            f"### Useful: {_words(direction.useful)}; private: {private}",
            f"One of {len(direction.values)} is predicted: {'; '.join(direction.values)}.",
            markdown(cells(direction.table, TITLES)),
            _findings(direction.table),
        ]
    return parts


def _findings(table: AttributeTable) -> str:
    """What the table says, in sentences that are true of any figures."""
    rows = {name: row for name in TITLES for row in table.rows if row.name == name}
    lines = []
    for place, column in enumerate(table.rows[0].attributes):
        through = [TITLES[name] for name, row in rows.items() if _inferred(row.attributes[place])]
        said = "; ".join(through) or "none of these ways"
        lines.append(f"- **The {_words(column.attribute)}** is clearly inferred through: {said}.")
    local = rows[LABEL_ALONE].accuracy if LABEL_ALONE in rows else None
    if local is not None:
        above = [
            f"{TITLES[name]} ({percent(row.accuracy)})"
            for name, row in rows.items()
            if row.accuracy is not None and row.accuracy > local + CLEARLY
        ]
        said = f"clearly more accurate: {'; '.join(above)}" if above else "nothing here is clearly more accurate"
        lines.append(f"- **The device alone**, which sends its label, reaches {percent(local)}; {said}.")
    return "\n".join(lines)


def _inferred(one: Attribute) -> bool:
    return infers(one.low, one.chance)


def _words(column: str) -> str:
    return column.replace("_", " ")

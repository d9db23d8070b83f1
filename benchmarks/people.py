"""Measure what real faces reveal when they are sent in thirteen ways: results/people/faces96.json, docs/people.md.

`make real-faces DATA=faces96`, or `python benchmarks/people.py faces96`. Every step is a command of sfumato: training a
classifier and obfuscators, making baselines, auditing each of them. A step that was done is not repeated, and one that
was interrupted resumes. About three hours on two idle cores; `--quick` tries it on a few images, `--list` prints the
steps, `--page` writes the page from the results file that is there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from people_page import LABEL_ALONE, MARKS, PAGE, RESULTS, TITLES, People, Settings, Useful, figures

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance
from sfumato.errors import DataError, SfumatoError
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import Provenance
from sfumato.lab.data.tables import read_rows
from sfumato.lab.models import class_bits
from sfumato.lab.report.attribute_table import side_by_side, write_between
from sfumato.lab.runs.speed import spoken

WORK = Path("runs/faces96")
AGES = {"0 to 17": 17, "18 to 29": 29, "30 to 44": 44, "45 to 59": 59, "60 and older": 150}
"""Age groups, each with the oldest age."""
ETHNICITIES, GENDERS = ("White", "Black", "Asian", "Indian", "other"), ("male", "female")
NAMES = {
    "age_group": tuple(AGES),
    "ethnicity": ETHNICITIES,
    "gender": GENDERS,
    "ethnicity_and_gender": tuple(f"{one}, {other}" for one in ETHNICITIES for other in GENDERS),
}
"""Each column that is written, and its values."""
DIRECTIONS = {"age_group": ("ethnicity", "gender"), "ethnicity_and_gender": ("age_group",)}
"""Each useful column, and its private ones."""
BASELINES: dict[str, tuple[str, ...]] = {
    "identity": ("identity",),
    "blur-1": ("blur", "--strength", "1"),
    "blur-2": ("blur", "--strength", "2"),
    "blur-4": ("blur", "--strength", "4"),
    "pixelate-3": ("pixelate", "--strength", "3"),
    "pixelate-6": ("pixelate", "--strength", "6"),
    "pixelate-12": ("pixelate", "--strength", "12"),
    "blur-face": ("blur-face", "--strength", "4"),
}
"""Each baseline, and how `sfumato baseline` makes it."""
SKETCHES = {LABEL_ALONE: 0, "sketch-1": 1, "sketch-3": 3, "sketch-5": 5}
"""Each sketch, and its bits beside the label."""
RECIPES = {
    "classifier": "recipes/faces-resnet20.toml",
    "obfuscator": "recipes/faces-resnet20-obfuscator.toml",
    "sketch": "recipes/faces-resnet20-sketch.toml",
}
QUICK_WAYS = ("identity", "obfuscator", "sketch-1", LABEL_ALONE)
MINUTES = {"classifier": 10.0, "obfuscator": 11.0, "sketch": 5.0, "baseline": 0.5, "audit": 3.5}
"""Rough durations of the steps, on two idle cores."""

Call = Callable[[Sequence[str]], None]
"""Runs one command line of sfumato, and raises if it fails."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        settings: that the results file states.
        ways: names of the ways.
        train_images: at most; None for all.
        test_images: likewise.
        least: training images that are needed.
        more: of every recipe.
        sketch: of a sketch's recipe.
    """

    settings: Settings
    ways: tuple[str, ...] = tuple(TITLES)
    train_images: int | None = None
    test_images: int | None = None
    least: int = 3_000
    more: tuple[str, ...] = ()
    sketch: tuple[str, ...] = ()


FULL = Sizes(
    Settings(side=48, epochs={"classifier": 8, "obfuscator": 2, "sketch": 4}, budget_scale=2, quick=False),
)
QUICK = Sizes(
    Settings(side=24, epochs={"classifier": 1, "obfuscator": 1, "sketch": 1}, budget_scale=0.01, quick=True),
    ways=QUICK_WAYS,
    train_images=200,
    test_images=80,
    least=100,
    more=("training.batch_size=16",),
    sketch=("held_out_images=16",),
)


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        title: for people.
        words: of the command line.
        makes: a file that is there afterwards.
        minutes: see `MINUTES`.
        resumes: a file that is there if the command was interrupted, and what to add then.
    """

    title: str
    words: Sequence[str]
    makes: Path
    minutes: float
    resumes: tuple[Path, str] | None = None


def prepare(source: str, folder: Path, sizes: Sizes) -> None:
    """Write the images with their columns to `folder`, in an order that says nothing.

    Raises:
        DataError: the images cannot be read, an image lacks an attribute, a column has but one value, or there are too
            few images.
    """
    from datasets import ClassLabel, Image

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as home:
        made = Path(home) / folder.name
        made.mkdir()
        for split, most in (("train", sizes.train_images), ("test", sizes.test_images)):
            rows = read_rows(source, split)
            missing = [name for name in ("image", "age", "gender", "ethnicity") if name not in rows.column_names]
            if missing:
                raise DataError(f"{source} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
            rows = rows.shuffle(seed=0).flatten_indices()
            rows = rows.select(range(min(most or len(rows), len(rows))))
            if split == "train" and len(rows) < sizes.least:
                raise DataError(f"{source} has {len(rows):,} training images; at least {sizes.least:,} are needed")
            columns = _columns(rows, f"{source} ({split})")
            rows = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
            for name, values in columns.items():
                if len(set(values)) < 2:
                    raise DataError(f"{source} ({split}): all images have the same {name}: there is nothing to infer")
                rows = rows.add_column(name, values).cast_column(name, ClassLabel(names=list(NAMES[name])))
            rows.to_parquet(made / f"{split}.parquet")
        made.rename(folder)


def _columns(rows: Any, where: str) -> dict[str, list[int]]:
    """Return the values of every column in `NAMES`, as places there."""
    ages = _whole(rows["age"], "age", max(AGES.values()), where)
    genders = _whole(rows["gender"], "gender", len(GENDERS) - 1, where)
    ethnicities = _whole(rows["ethnicity"], "ethnicity", len(ETHNICITIES) - 1, where)
    return {
        "age_group": [next(place for place, oldest in enumerate(AGES.values()) if age <= oldest) for age in ages],
        "ethnicity": ethnicities,
        "gender": genders,
        "ethnicity_and_gender": [one * len(GENDERS) + other for one, other in zip(ethnicities, genders, strict=True)],
    }


def _whole(values: Sequence[Any], name: str, most: int, where: str) -> list[int]:
    wrong = [value for value in values if not isinstance(value, int) or not 0 <= value <= most]
    if wrong:
        raise DataError(
            f"{where}: {len(wrong)} of {len(values)} images have no {name} from 0 to {most} (such as {wrong[0]!r}); "
            "leave them out"
        )
    return list(values)


def steps(work: Path, sizes: Sizes) -> list[Step]:
    """Return every command, in an order in which each finds what it needs."""
    return [step for useful in DIRECTIONS for step in _direction(work, useful, sizes)]


def _direction(work: Path, useful: str, sizes: Sizes) -> list[Step]:
    home, data, side = work / useful, str(work / "data"), sizes.settings.side
    classifier = str(home / "classifier" / "bundle")
    served = ("--classifier", classifier, "--data", data, "--label-column", useful)

    def train(name: str, kind: str, *changes: str) -> Step:
        run = home / name
        sets = [f"name={useful}-{name}", f"data.source={data}", f"data.label_column={useful}"]
        sets += [f"data.size=[{side},{side}]", f"training.epochs={sizes.settings.epochs[kind]}"]
        sets += ["note=measures with real faces, is not to be shipped", *sizes.more, *changes]
        sets += [] if kind == "classifier" else [f"classifier={classifier}"]
        words = ["train", RECIPES[kind], "-o", str(run), *(word for one in sets for word in ("--set", one))]
        resumes = run / "checkpoint.pt", "--resume"
        return Step(f"{useful}: {name}", words, run / "bundle" / "bundle.json", MINUTES[kind], resumes)

    def baseline(name: str) -> Step:
        bundle = home / name / "bundle"
        words = ["baseline", *BASELINES[name], *served, "-o", str(home / name)]
        return Step(f"{useful}: {name}", words, bundle / "bundle.json", MINUTES["baseline"], (bundle, "--overwrite"))

    def audit(name: str) -> Step:
        attributes = [word for column in DIRECTIONS[useful] for word in ("--attribute", column)]
        folder, scale = home / "audits" / name, f"{sizes.settings.budget_scale:g}"
        words = ["audit", str(home / name / "bundle"), *served, *attributes, "--budget", "attributes"]
        words += ["--budget-scale", scale, "-o", str(folder), "--resume"]
        return Step(f"{useful}: audit of {name}", words, folder / "audit.json", MINUTES["audit"])

    made = [train("classifier", "classifier", "architecture=resnet18-imagenet")]
    for name in sizes.ways:
        if name in BASELINES:
            made.append(baseline(name))
        elif name in SKETCHES:
            bits = class_bits(len(NAMES[useful])) + SKETCHES[name]
            made.append(train(name, "sketch", f"code_bits={bits}", *sizes.sketch))
        else:
            made.append(train(name, "obfuscator"))
        made.append(audit(name))
    return made


def run(todo: Sequence[Step], call: Call, say: Callable[[str], None]) -> None:
    """Run every step that was not done, and say how long the rest takes."""
    rest, expected, spent = [step for step in todo if not step.makes.exists()], 0.0, 0.0
    for place, step in enumerate(rest):
        left = 60 * sum(one.minutes for one in rest[place:]) * (spent / expected if expected else 1)
        say(f"step {len(todo) - len(rest) + place + 1} of {len(todo)}, {step.title}; about {spoken(left)} left")
        interrupted = step.resumes is not None and step.resumes[0].exists()
        started = time.monotonic()
        call([*step.words, *([step.resumes[1]] if step.resumes and interrupted else [])])
        expected, spent = expected + 60 * step.minutes, spent + time.monotonic() - started
        if not step.makes.exists():
            raise SfumatoError(f"{step.title} did not write {step.makes}")


def command(work: Path, words: Sequence[str]) -> None:
    """Run sfumato in a process of its own; decoded faces are cached in `work`, to be removed with it.

    Raises:
        SfumatoError: the command failed; it has said why.
    """
    environment = os.environ | {"SFUMATO_CACHE": str(work / "cache")}
    done = subprocess.run([sys.executable, "-m", "sfumato", *words], env=environment, check=False)
    if done.returncode:
        raise SfumatoError(f"sfumato {words[0]} ended with {done.returncode}; run this again to resume")


def collect(work: Path, sizes: Sizes, source: str) -> People:
    """Return the results of the audits in `work`."""
    directions = []
    for useful, private in DIRECTIONS.items():
        audits = {
            Path(f"{name}.json"): audit
            for name in sizes.ways
            for audit in read_audits(work / useful / "audits" / name).values()
        }
        directions.append(Useful(useful=useful, values=NAMES[useful], private=private, table=side_by_side(audits)))
    facts = provenance(seed=0, data=Path(source).name)
    return People(
        data="UTKFace, aligned and cropped",
        settings=sizes.settings,
        directions=tuple(directions),
        provenance=Provenance.model_validate(facts.to_json()),
    )


def main(source: str, *, work: Path = WORK, quick: bool = False, call: Call | None = None) -> People:
    """Measure everything; without `quick`, write the results file and the page's figures."""
    sizes, work = (QUICK, work / "quick") if quick else (FULL, work)
    if not (work / "data").exists():
        _say("writing the images with their columns")
        prepare(source, work / "data", sizes)
    run(steps(work, sizes), call or partial(command, work), _say)
    people = collect(work, sizes, source)
    if not quick:
        write_json(RESULTS, people.as_json)
        page()
    return people


def page() -> None:
    """Write the page's figures from the results file that is there, or from the drawn faces."""
    write_between(PAGE, figures(People.read(RESULTS)), *MARKS)
    _say(f"-> {PAGE}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", help="a folder of parquet files with image, age, gender and ethnicity")
    parser.add_argument("--work", type=Path, default=WORK, help="where everything is kept in between")
    for flag, what in (("quick", "a few images; nothing is written"), ("list", "print steps"), ("page", "write it")):
        parser.add_argument(f"--{flag}", action="store_true", help=what)
    return parser.parse_args(words)


if __name__ == "__main__":
    asked = _parsed()
    try:
        if asked.page:
            page()
        elif asked.list:
            for one in steps(asked.work, QUICK if asked.quick else FULL):
                state = "done" if one.makes.exists() else f"{one.minutes:g} min"
                print(f"{state:8} sfumato {shlex.join(one.words)}")
        elif asked.data is None:
            raise SfumatoError("name the folder of faces: python benchmarks/people.py DATA")
        else:
            found = main(asked.data, work=asked.work, quick=asked.quick)
            print(figures(found) if asked.quick else f"-> {RESULTS}")
    except SfumatoError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run this again to resume")

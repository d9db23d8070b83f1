"""The measurement with real faces: its data, its steps, its results file and its page, without any real face."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fakes import fake_audit
from sfumato.cli import commands  # noqa: F401  (registers them)
from sfumato.cli.app import app
from sfumato.errors import AuditError, DataError, SfumatoError
from sfumato.lab.data import faces, load_train_test
from sfumato.lab.report.attribute_table import side_by_side

ROOT = Path(__file__).parents[1]
COUNTS = {"train": 120, "test": 60}


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    import people

    yield people
    for name in ("people", "people_page"):
        sys.modules.pop(name, None)


def save_faces(folder: Path, *, drop: str | None = None, **changed: Any) -> str:
    """Drawn faces with columns as UTKFace has them, sorted by age as its files are; `changed` are whole columns."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        drawn = faces.synthesise("faces", split, range(count), (24, 24)).transpose(0, 2, 3, 1)
        columns = {
            "image": [Image.fromarray(image) for image in drawn],
            "age": sorted(random.integers(1, 90, count).tolist()),
            "gender": random.integers(2, size=count).tolist(),
            "ethnicity": random.integers(5, size=count).tolist(),
        }
        columns |= {name: (values * count)[:count] for name, values in changed.items()}
        columns.pop(drop, None)
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def prepared(people: ModuleType, tmp_path: Path, **changes: Any) -> Path:
    people.prepare(save_faces(tmp_path / "faces", **changes), tmp_path / "data", people.QUICK)
    return tmp_path / "data"


def test_every_image_keeps_its_attributes_in_an_order_that_says_nothing(people, tmp_path):
    data = prepared(people, tmp_path)
    train, test, columns = load_train_test(str(data), label_column="age_group", attributes=tuple(people.NAMES))
    assert (len(train), len(test)) == (120, 60) and train.names == tuple(people.AGES)
    assert not bool((train.labels[1:] >= train.labels[:-1]).all()), "it was sorted by age"
    gender, ethnicity, both = (columns[name][0] for name in ("gender", "ethnicity", "ethnicity_and_gender"))
    assert both.tolist() == (2 * ethnicity + gender).tolist()
    # The image tells the row of the source, as no two are alike.
    drawn = faces.synthesise("faces", "train", range(COUNTS["train"]), (24, 24))
    ages = datasets.load_dataset(str(tmp_path / "faces"))["train"]["age"]
    for place in (0, 50, 119):
        row = int(np.abs(drawn.astype(int) - train.images[place].numpy()).sum(axis=(1, 2, 3)).argmin())
        oldest = list(people.AGES.values())
        assert train.labels[place] == sum(ages[row] > limit for limit in oldest)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"drop": "ethnicity"}, "has no column 'ethnicity'; it has image, age, gender"),
        ({"age": [30, None]}, r"60 of 120 images have no age from 0 to 150 \(such as None\); leave them out"),
        ({"gender": [0, 1, 7]}, r"40 of 120 images have no gender from 0 to 1 \(such as 7\)"),
        ({"ethnicity": [0, 1, 2, -1]}, "30 of 120 images have no ethnicity from 0 to 4"),
        ({"gender": [1]}, "all images have the same gender: there is nothing to infer"),
        ({"age": [20]}, "all images have the same age_group"),
    ],
)
def test_faces_that_cannot_be_measured_are_named_and_nothing_is_left(people, tmp_path, changes, says):
    with pytest.raises(DataError, match=says):
        prepared(people, tmp_path, **changes)
    assert {path.name for path in tmp_path.iterdir()} <= {"faces", "cache"}


def test_too_few_faces_are_said_before_anything_is_trained(people, tmp_path):
    with pytest.raises(DataError, match="120 training images; at least 3,000 are needed"):
        people.prepare(save_faces(tmp_path / "faces"), tmp_path / "data", people.FULL)


def test_each_way_is_made_before_it_is_audited_in_both_directions(people):
    steps = people.steps(Path("work"), people.FULL)
    assert len({step.makes for step in steps}) == len(steps) == 2 * (1 + 2 * len(people.TITLES))
    for place, step in enumerate(steps):
        before = {one.makes.parent for one in steps[:place]}
        needed = {Path(word.rpartition("=")[2]) for word in step.words if word.endswith("bundle")}
        assert len(needed) == (step.words[0] == "audit") + (not step.title.endswith(": classifier"))
        assert needed <= before, step
    audits = [step.words for step in steps if step.words[0] == "audit"]
    private = [{b for a, b in itertools.pairwise(words) if a == "--attribute"} for words in audits]
    assert private == [{"ethnicity", "gender"}] * 13 + [{"age_group"}] * 13
    assert 2.5 * 60 < sum(step.minutes for step in steps) < 3.2 * 60


def test_the_recipes_of_all_trainings_are_valid_and_the_codes_have_their_bits(people):
    from sfumato.lab.training.recipe import load_recipe

    bits = {}
    for step in people.steps(Path("work"), people.FULL):
        if step.words[0] == "train":
            sets = [b for a, b in itertools.pairwise(step.words) if a == "--set"]
            plan = load_recipe(ROOT / step.words[1], sets)
            assert plan.data.size == (48, 48) and plan.data.source == "work/data"
            bits[step.title] = getattr(plan, "code_bits", None)
    assert [bits[f"age_group: {name}"] for name in people.SKETCHES] == [3, 4, 6, 8]
    assert [bits[f"ethnicity_and_gender: {name}"] for name in people.SKETCHES] == [4, 5, 7, 9]


def test_what_was_done_is_not_repeated_and_what_was_interrupted_resumes(people, tmp_path):
    steps, called, said = people.steps(tmp_path, people.QUICK), [], []

    def call(words: list[str]) -> None:
        step = next(one for one in steps if list(one.words) == words[: len(one.words)])
        called.append(words)
        if len(called) == 4:  # the obfuscator: interrupted when its checkpoint is there
            step.resumes[0].parent.mkdir(parents=True)
            step.resumes[0].touch()
            raise SfumatoError("interrupted")
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        step.makes.touch()

    with pytest.raises(SfumatoError, match="interrupted"):
        people.run(steps, call, said.append)
    assert said[0].startswith(f"step 1 of {len(steps)}, age_group: classifier; about ")
    people.run(steps, call, said.append)
    assert called[4] == [*called[3], "--resume"]
    assert len(called) == len(steps) + 1 and said[4].startswith("step 4 of ")
    people.run(steps, call, said.append)
    assert len(called) == len(steps) + 1


def test_a_step_that_writes_nothing_ends_the_run(people, tmp_path):
    with pytest.raises(SfumatoError, match=r"age_group: classifier did not write .*bundle\.json"):
        people.run(people.steps(tmp_path, people.QUICK), lambda words: None, lambda line: None)


def inferred(column: str, accuracy: float) -> dict[str, Any]:
    found = {"attribute": column, "threat": "white-box", "accuracy": accuracy, "low": accuracy - 0.01}
    found |= {"high": accuracy + 0.01, "chance": 0.5, "majority": 0.45, "plain": 0.9, "test_images": 3_934}
    return found | {"attacker": "residual network", "held_out": accuracy - 0.02}


def constructed(people: ModuleType) -> Any:
    """Results that nobody measured: all but codes leak; the sketch with 5 bits is the only one that predicts better."""
    directions = []
    for useful, private in people.DIRECTIONS.items():
        audits = {}
        for name in people.TITLES:
            code = name in people.SKETCHES
            shares = {"accuracy_obfuscated": 0.7 if name == "sketch-5" else 0.6, "accuracy_plain": 0.72}
            audits[Path(f"{name}.json")] = fake_audit(
                attributes=[inferred(column, 0.51 if code else 0.8) for column in private],
                utility={**shares, "accuracy_local": None, "test_images": 3_934, "gated_plain": []},
            )
        table = side_by_side(audits)
        directions.append(people.Useful(useful=useful, values=people.NAMES[useful], private=private, table=table))
    facts = directions[0].table.rows[0].provenance
    return people.People(data="faces", settings=people.FULL.settings, directions=tuple(directions), provenance=facts)


def test_results_come_back_from_their_file_and_a_broken_one_is_named(people, tmp_path):
    found, file = constructed(people), tmp_path / "faces96.json"
    assert people.People.read(file) is None
    file.write_text(json.dumps(found.as_json))
    assert people.People.read(file) == found and found.as_json["schema"] == "sfumato.people/1"
    file.write_text(json.dumps({**found.as_json, "directions": [{"useful": "age_group"}]}))
    with pytest.raises(AuditError, match=r"faces96\.json is a broken audit"):
        people.People.read(file)


def test_the_page_says_what_the_results_say(people):
    said = people.figures(constructed(people))
    age, reverse = said.split("### Useful: ")[1:]
    assert age.startswith("age group; private: ethnicity and gender") and reverse.startswith("ethnicity and gender;")
    for part in (age, reverse):
        titles = [line.split(" | ")[0].removeprefix("| ") for line in part.splitlines() if line.startswith("| ")]
        assert titles[-13:] == list(people.TITLES.values())
    assert "| blur, 2 pixels | 60.0 % | **80.0 %** | **80.0 %** |" in age
    assert "| sketch, the label and 3 bits | 60.0 % | 51.0 % | 51.0 % |" in age
    leaky = "; ".join(title for name, title in people.TITLES.items() if name not in people.SKETCHES)
    assert f"- **The gender** is clearly inferred through: {leaky}." in age
    better = "clearly more accurate: sketch, the label and 5 bits (70.0 %)."
    assert f"- **The device alone**, which sends its label, reaches 60.0 %; {better}" in reverse
    assert "48 x 48 pixels" in said and "classifier 8, obfuscator 2, sketch 4" in said


def test_the_page_is_of_the_results_that_are_there(people, monkeypatch):
    monkeypatch.chdir(ROOT)
    begin, end = people.MARKS
    page = people.PAGE.read_text(encoding="utf-8")
    assert f"{begin}\n{people.figures(people.People.read(people.RESULTS))}\n{end}" in page
    assert ("not measured yet" in page) is not people.RESULTS.is_file()


@pytest.mark.long
def test_a_tiny_run_from_faces_to_figures(people, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, str(8 << 30))  # or `train` would start this process again
    monkeypatch.setattr(people, "DIRECTIONS", {"ethnicity_and_gender": ("age_group",)})
    monkeypatch.setattr(people, "QUICK", dataclasses.replace(people.QUICK, ways=("identity", people.LABEL_ALONE)))

    def call(words: list[str]) -> None:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"

    found = people.main(save_faces(tmp_path / "faces"), work=tmp_path / "work", quick=True, call=call)
    (direction,) = found.directions
    plain, label = direction.table.rows
    assert (plain.name, label.name) == ("identity", "label") and plain.linkage.top1 > label.linkage.top1
    assert [one.attribute for one in label.attributes] == ["age_group"] and label.accuracy is not None
    assert direction.table.data.train_images == 120 and direction.table.height == 24

"""From a classifier and images to a recipe."""

from __future__ import annotations

import shutil

import pytest

import brought
import tiny
from recording import metadata, recording
from sfumato.errors import ClassifierError
from sfumato.lab.classifiers import Metadata
from sfumato.lab.classifiers.data_check import check_data
from sfumato.lab.training.recipe import load_recipe
from synthetic import save_folder

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("photos"), train=32, test=16)


def verdicts(found) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in found.findings}


def test_what_fits_gives_a_recipe_that_can_be_read_and_says_what_is_next(trained, photos, tmp_path):
    classifier, _ = trained
    found = check_data(str(classifier.path), str(photos), tmp_path / "mine", metadata=Metadata())
    recipe = load_recipe(found.recipe)
    assert recipe.kind == "sketch" and recipe.classifier == str(classifier.path)
    assert recipe.data.source == str(photos) and recipe.data.size == (32, 32)
    assert recipe.held_out_images == 3
    assert (32 - 3) // recipe.training.batch_size >= 8, "`sfumato train --estimate` times 8 steps of an epoch or more"
    assert found.accuracy_plain > 0.5 and verdicts(found)["accuracy"] == "good", "it was trained on such images"
    commands = [command.split()[:2] for command in found.next_commands]
    assert [name for _, name in commands] == ["train", "evaluate", "audit", "serve", "doctor", "classify"]


@pytest.mark.long
def test_a_module_is_imported_on_the_way(photos, tmp_path):
    described = Metadata(size=(20, 28), mean=(0.5,) * 3, std=(0.5,) * 3, labels=brought.LABELS)
    found = check_data("brought:small", str(photos), tmp_path / "mine", metadata=described)
    recipe = load_recipe(found.recipe)
    assert recipe.classifier == (tmp_path / "mine" / "classifier").as_posix() and recipe.data.size == (20, 28)
    sides = check_data(recipe.classifier, str(photos), tmp_path / "other", kind="obfuscator", metadata=Metadata())
    assert sides.recipe is None and "multiples of 8" in sides.findings[0].said


def test_what_does_not_fit_gives_no_recipe(trained, photos, tmp_path):
    classifier, _ = trained
    renamed = shutil.copytree(photos, tmp_path / "renamed")
    for split in ("train", "test"):
        (renamed / split / "date").rename(renamed / split / "fig")
    found = check_data(str(classifier.path), str(renamed), tmp_path / "mine", metadata=Metadata())
    assert found.recipe is None and verdicts(found)["classes"] == "bad" and not (tmp_path / "mine").exists()
    loose = tmp_path / "loose"
    loose.mkdir()
    for index, file in enumerate(sorted(photos.rglob("*.png"))):
        shutil.copyfile(file, loose / f"{index}.png")
    found = check_data(str(classifier.path), str(loose), tmp_path / "mine", metadata=Metadata())
    assert found.recipe is None and "one folder per class" in found.findings[-1].advice
    assert "have no classes" in found.findings[-1].said


def test_an_onnx_file_alone_is_told_that_nothing_can_be_trained_for_it(photos, tmp_path):
    file = tiny.save_classifier(tmp_path / "net.onnx")
    described = Metadata(mean=(0, 0, 0), std=(1, 1, 1), labels=brought.LABELS)
    found = check_data(str(file), str(photos), tmp_path / "mine", metadata=described)
    assert found.recipe is None and "not trained through" in found.findings[0].said


def test_the_server_is_asked_what_it_serves_and_gets_no_image(trained, photos, tmp_path):
    classifier, _ = trained
    well = metadata(inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 3, 32, 32]}])
    for answer, fits in ((well, True), (metadata(), False)):
        with recording(tiny=lambda exchange, answer=answer: exchange.reply(200, answer)) as server:
            found = check_data(
                str(classifier.path),
                str(photos),
                tmp_path / str(fits),
                metadata=Metadata(),
                server=server.url,
                model="tiny",
            )
            assert not any(path.endswith("infer") for path in server.paths)
        assert (found.recipe is not None) == fits
    assert verdicts(found)["shapes and datatypes"] == "bad"
    found = check_data(
        str(classifier.path), str(photos), tmp_path / "none", metadata=Metadata(), server="http://127.0.0.1:9"
    )
    assert verdicts(found)["the endpoint"] == "bad"


def test_a_classifier_that_says_too_little_of_itself_is_an_error(photos, tmp_path):
    with pytest.raises(ClassifierError, match="give --size, --mean, --std"):
        check_data("brought:small", str(photos), tmp_path / "mine", metadata=Metadata(labels=brought.LABELS))

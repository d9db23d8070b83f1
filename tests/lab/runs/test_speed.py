from dataclasses import replace

import pytest
import torch

from counting import count_macs
from scenes import TINY
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.budget import Trial
from sfumato.lab.models import Normalize, Obfuscator, Sketcher, build_classifier
from sfumato.lab.models.device_nets import fold_branches
from sfumato.lab.runs import speed
from sfumato.lab.runs.speed import Entry, Shape, Speed, device_macs, full_epochs, taught_epochs
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe import parse_recipe
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.tasks import ClassifierTask, SketchTask

CLASSIFIER = parse_recipe({"kind": "classifier", "name": "c", "architecture": "resnet20"})
OBFUSCATOR = parse_recipe({"kind": "obfuscator", "name": "o", "classifier": "c"})
SKETCH = parse_recipe({"kind": "sketch", "name": "s", "classifier": "c", "code_bits": 5})
SMALL_SKETCH = SKETCH.model_copy(update={"trunk": "device-nano"})


@pytest.mark.parametrize(
    ("recipe", "net"),
    [
        (CLASSIFIER, build_classifier("resnet20", 7)),
        (OBFUSCATOR, Obfuscator()),
        (SKETCH, Sketcher(48, 64, classes=7, bits=5)),
        (SMALL_SKETCH, Sketcher(48, 64, classes=7, bits=5, trunk="device-nano")),
    ],
)
def test_the_devices_cost_is_that_of_the_network(recipe, net):
    assert device_macs(recipe, Shape(48, 64, 7)) == count_macs(fold_branches(net), 48, 64)


def test_an_estimate_counts_small_epochs_by_their_pixels():
    plan = TrainingRecipe(epochs=13, small_epochs=8)
    assert [full_epochs(plan, done) for done in (0, 4, 10, 13)] == [13 - 8 * 7 / 16, 9 - 4 * 7 / 16, 3, 0]
    assert full_epochs(TrainingRecipe(epochs=9), 2) == 7


def test_a_step_is_measured_on_the_recipes_own_networks(monkeypatch):
    passed = []
    monkeypatch.setattr(speed, "_image_seconds", lambda task, *_, **__: passed.append(task) or 0.25)
    machine, frozen = Speed(torch.device("cpu")), build_classifier("resnet20")
    for recipe in (CLASSIFIER, OBFUSCATOR, SKETCH, OBFUSCATOR, SMALL_SKETCH):
        assert machine.training_s(recipe, 200, classifier=frozen) == 50
    classifier, obfuscation, sketch, _ = passed  # the second obfuscator's was known
    assert isinstance(classifier, ClassifierTask) and classifier.teacher is None
    assert isinstance(obfuscation, ObfuscationTask) and isinstance(sketch, SketchTask)
    assert count_macs(obfuscation.classifier, 32, 32) == count_macs(frozen, 32, 32)


def test_a_measured_step_takes_time_and_trains_nothing_that_is_frozen(monkeypatch):
    monkeypatch.setattr(speed, "_BATCH", 2)
    frozen = build_classifier("vgg7")
    before = [parameter.clone() for parameter in frozen.parameters()]
    assert Speed(torch.device("cpu")).training_s(OBFUSCATOR, 1, classifier=frozen) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))


@pytest.mark.parametrize("kind", [CLASSIFIER, SMALL_SKETCH])
def test_a_teacher_with_fixed_views_is_computed_of_some_images_alone(monkeypatch, kind):
    monkeypatch.setattr(speed, "_image_seconds", lambda *_, taught: 0.25 if taught else 99)
    monkeypatch.setattr(speed, "teacher_seconds", lambda *_: 2.0)
    recipe = kind.model_copy(update={"teacher": "t", "teacher_views": 3})
    machine, frozen = Speed(torch.device("cpu")), build_classifier("resnet20")
    assert machine.training_s(recipe, 200, taught=30, classifier=frozen) == 200 * 0.25 + 30 * 2
    assert machine.training_s(recipe, 200, classifier=frozen) == 200 * 2.25, "in the first epochs"
    plan = recipe.training.model_copy(update={"epochs": 8})
    for views, wanted in ((3, [3, 1, 0]), (0, [8, 6, 3]), (9, [8, 6, 3])):
        changed = recipe.model_copy(update={"training": plan, "teacher_views": views})
        assert [taught_epochs(changed, done) for done in (0, 2, 5)] == wanted
    assert taught_epochs(OBFUSCATOR) == OBFUSCATOR.training.epochs


def test_a_step_with_known_logits_computes_no_teacher(monkeypatch):
    monkeypatch.setattr(speed, "_BATCH", 2)
    task = ClassifierTask(build_classifier("vgg7", 4), Normalize((0.5,) * 3, (0.25,) * 3), teacher=torch.nn.Identity())
    called = []
    monkeypatch.setattr(task.teacher, "forward", lambda x: called.append(len(x)) or x.mean(dim=(2, 3)))
    assert speed._image_seconds(task, Shape(32, 32, 4), torch.device("cpu"), taught=True) > 0 and not called
    assert speed.teacher_seconds(task, Shape(32, 32, 4), torch.device("cpu")) > 0 and called == [2] * 4


def test_seconds_follow_what_was_measured(monkeypatch):
    monkeypatch.setattr(speed, "decoder_seconds", lambda *_: 0.5)
    machine = Speed(torch.device("cpu"))
    # 640 and 64 images of its decoders, 128 for identification and 128 for attributes.
    assert machine.audit_s(TINY) == 0.5 * (640 + 64 + 128 + 128)
    assert machine.audit_s(TINY, 64, 32, columns=True) == pytest.approx(2 * 0.5 * (960 + 0.6 * 128))
    # 16 draws of 10 steps for each of 2 test images, and of 48 in three sanity checks; a step is a fifth of an image.
    sampled = replace(TINY, trials=(*TINY.trials, Trial("posterior sampler", Threat.WHITE_BOX, test_images=2)))
    assert machine.audit_s(sampled) == pytest.approx(0.5 * (960 + 0.2 * 160 * (2 + 3 * 48)))
    unchecked = replace(sampled, sanity_check_images=0)
    assert machine.audit_s(unchecked) == pytest.approx(0.5 * (960 + 0.2 * 160 * 2))


def test_a_line_tells_the_time_that_is_left():
    assert Entry("a", "done", None).line == "a: done"
    assert Entry("b", "half done: epoch 3 of 20", 1_200).line == "b: half done: epoch 3 of 20, about 20 minutes"

"""From recipes to tasks, and every option from images to a bundle that is measured and attacked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as Image
from safetensors.torch import load_file
from torch import nn

from sfumato import device
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.lab_files import find_lab_file, lab_file
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import DataError, RecipeError, TrainingError
from sfumato.lab.attacks.target import NoisyWithin
from sfumato.lab.audit.targets import load_target
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.models import Normalize, Obfuscator, Payload, build_classifier
from sfumato.lab.models.classifiers import TRUNK
from sfumato.lab.training import train
from sfumato.lab.training.adversaries import Attackers
from sfumato.lab.training.building import (
    begin_from,
    labelled_by,
    normalize,
    obfuscation_task,
    restarted,
    sketch_task,
)
from sfumato.lab.training.export import export_obfuscator, write_classifier_bundle
from sfumato.lab.training.images import class_means
from sfumato.lab.training.recipe import ObfuscatorRecipe, parse_recipe
from sfumato.lab.training.tasks import ClassifierTask
from synthetic import CLASSES, image_set, pixels, png

IMAGES = image_set(16)


def recipe(classifier: Path | str = "x", source: Path | str = "y", **options: Any) -> ObfuscatorRecipe:
    training = {"epochs": 2, "batch_size": 4, "schedule": "constant", "validate_every": 2}
    plain = {"kind": "obfuscator", "name": "o", "classifier": str(classifier), "data": {"source": str(source)}}
    return parse_recipe({**plain, "training": training, **options})


@pytest.fixture(scope="module")
def frozen(trained):
    return load_classifier(trained[0].path)


def test_what_a_recipe_leaves_out_is_the_papers(frozen):
    task = obfuscation_task(recipe(), frozen, IMAGES)
    assert (task.privacy_weight, task.label_weight, task.class_means, task.mixture) == (1.0, 1.0, None, None)
    assert type(task.deobfuscator).__name__ == "Deobfuscator" and task.obfuscator.noise is None


def test_an_obfuscator_begins_as_a_trunk_and_nothing_else_does(frozen, trained, tmp_path):
    prepared = trained[0].preprocessing
    net, images = build_classifier(TRUNK, 4), IMAGES.images.float() / 255
    bundle = write_classifier_bundle(
        tmp_path / "trunk",
        ClassifierTask(net.eval(), normalize(prepared)),
        images,
        name="trunk",
        labels=("w", "x", "y", "z"),  # which the obfuscator has no part of
        preprocessing=prepared,
        recipe=RecipeRecord(kind="classifier", architecture=TRUNK),
    )
    task = obfuscation_task(recipe(), frozen, IMAGES).eval()
    begin_from(bundle, recipe(), task, frozen)
    scale = torch.tensor(prepared.std).view(1, 3, 1, 1)
    assert torch.allclose(task.obfuscator.stem.conv.weight * scale, net.stem.conv.weight, atol=1e-6)
    assert torch.equal(task.obfuscator.up[1].project.conv.weight, net.up[1].project.conv.weight)
    with pytest.raises(RecipeError, match="obfuscator-trunk"):
        begin_from(trained[0], recipe(), task, frozen)
    sketch = parse_recipe({"kind": "sketch", "name": "s", "classifier": "x", "code_bits": 3})
    with pytest.raises(RecipeError, match="a sketch starts from a sketch"):
        begin_from(bundle, sketch, sketch_task(sketch, frozen, IMAGES, (), bfloat16=False), frozen)


def test_the_frozen_classifiers_norms_are_folded_and_its_answers_stay(frozen):
    images = IMAGES.images.float() / 255
    task = obfuscation_task(recipe(), frozen, IMAGES)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in task.classifier.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in frozen.net.modules())
    assert torch.allclose(task.classifier(images), frozen.net(images), rtol=0, atol=1e-4)


def test_a_recipes_parts_reach_the_task(frozen):
    options = {
        "privacy_weight": 2.0,
        "utility": {"teacher_weight": 0.25, "temperature": 3.0},
        "privacy": {"target": "class-mean", "attackers": ["unet", "paper"]},
        "bottleneck": {"rate_weight": 0.1, "entropy_weight": 0.2},
    }
    task = obfuscation_task(recipe(**options), frozen, IMAGES)
    assert (task.rate_weight, task.entropy_weight, task.privacy_weight) == (0.1, 0.2, 2.0)
    assert (task.label_weight, task.temperature) == (0.75, 3.0)
    assert [type(net).__name__ for net in task.attackers] == ["UNet", "Deobfuscator"]
    assert task.mixture.means.shape == (4, 128, 4, 4)


def test_class_means_are_the_mean_images():
    means = class_means(IMAGES)
    for c in range(4):
        assert torch.allclose(means[c], (IMAGES.images[IMAGES.labels == c].double() / 255).mean(dim=0).float())
    without = class_means(replace(IMAGES, labels=IMAGES.labels.clamp(max=2)))
    assert torch.allclose(without[3], (IMAGES.images.double() / 255).mean(dim=0).float()), "nobody is of class 3"


def test_images_are_labelled_by_the_classifiers_answers(trained, frozen):
    unknown = replace(IMAGES, labels=torch.full((16,), -1), names=("image",))
    labelled = labelled_by(frozen, unknown)
    session = OnnxFunction(trained[0].file("model.onnx"))
    expected = session(frozen.preprocessing.normalize(IMAGES.images.numpy().astype(np.float32) / 255)).argmax(axis=1)
    assert labelled.labels.tolist() == expected.tolist() and labelled.names == CLASSES


class Hidden(nn.Module):
    """A classifier of somebody else's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Misleading(Hidden):
    """It has the names, but its last layer is not all that follows."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.features(x)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.head(x) + 1


@pytest.mark.parametrize("kind", [Hidden, Misleading])
def test_a_classifier_that_hides_its_features_cannot_be_matched(frozen, kind):
    other = replace(frozen, net=kind(frozen.net).eval())
    with pytest.raises(RecipeError, match=r"small does not expose its features.*teacher_weight"):
        obfuscation_task(recipe(utility={"feature_weight": 0.5}), other, IMAGES)
    obfuscation_task(recipe(utility={"teacher_weight": 0.5}), other, IMAGES)


def test_frequencies_that_leave_nothing_are_refused(frozen):
    with pytest.raises(RecipeError, match="remove_frequencies = 32 leaves nothing of images of 32x32"):
        obfuscation_task(recipe(input={"remove_frequencies": 32}), frozen, IMAGES)


def test_attackers_begin_anew_in_turn(frozen):
    plan = recipe(
        privacy={"attackers": ["paper", "residual"], "restart_epochs": 2},
        training={"epochs": 9, "batch_size": 4},
    )
    task = obfuscation_task(plan, frozen, IMAGES)
    assert isinstance(task.deobfuscator, Attackers)
    task.deobfuscator.note(torch.tensor([0.1, 0.2]))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    assert restarted(plan, task, 0) == restarted(plan, task, 3) == []
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    fresh = restarted(plan, task, 2)
    assert {id(p) for p in fresh} == {id(p) for p in task.attackers[0].parameters()}
    changed = {
        name.rsplit(".nets.", 1)[-1][0] for name, v in task.state_dict().items() if not torch.equal(v, before[name])
    }
    assert changed == {"0", "d"}, "its weights, and its running error"
    assert task.faced == 1
    assert {id(p) for p in restarted(plan, task, 4)} == {id(p) for p in task.attackers[1].parameters()}


EVERYTHING = {
    "label-free, noisy code, 8 bits": {
        "privacy_weight": 0.0,
        "utility": {"teacher_weight": 0.5, "feature_weight": 0.5},
        "privacy": {"attackers": []},
        "bottleneck": {"rate_weight": 0.001, "entropy_weight": 0.001},
        "output": {"format": "8-bit"},
    },
    "less input, class mean, several attackers": {
        "input": {"remove_colour": True, "remove_frequencies": 3},
        "privacy": {"target": "class-mean", "attackers": ["residual", "unet"], "restart_epochs": 1},
    },
    "8 bits, one attacker that begins anew": {
        "output": {"format": "8-bit"},
        "privacy": {"restart_epochs": 1},
    },
}


@pytest.mark.long
@pytest.mark.parametrize("options", EVERYTHING.values(), ids=EVERYTHING)
def test_every_option_from_images_to_an_audit(trained, image_folder, tmp_path, options):
    bundle = train(recipe(trained[0].path, image_folder, **options), tmp_path / "run", accelerator="cpu")
    loaded = Bundle.load(bundle.path, kind="obfuscator")
    attacked, rounded = options.get("privacy") != {"attackers": []}, "output" in options
    noisy = "bottleneck" in options
    assert (
        (find_lab_file(loaded, "deobfuscator.onnx") is not None)
        == (loaded.figures.joint_deobfuscator_mse is not None)
        == attacked
    )
    assert parse_recipe(loaded.recipe.to_json()) == recipe(trained[0].path, image_folder, **options)

    target = load_target(str(bundle.path), size=(32, 32))
    images = image_set(6, seed=8).images.float() / 255
    sent = target.payload(images)
    assert target.stochastic == noisy == (not torch.equal(sent, target.payload(images)))
    if rounded:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (loaded.preprocessing.mean, loaded.preprocessing.std))
        levels = (sent * std + mean) * 255
        assert torch.allclose(levels, levels.round(), atol=1e-2)
        assert float(levels.min()) >= -0.01 and float(levels.max()) <= 255.01
        if not noisy:
            drawn = device.Obfuscator(loaded, eight_bit="exact")(images.numpy())
            assert np.array_equal(drawn, levels.round().numpy().astype(np.uint8).transpose(0, 2, 3, 1))
    if "input" in options:
        grey = images.clone()
        grey += torch.tensor([0.114, 0.0, -0.299]).view(3, 1, 1)  # of the same brightness
        assert torch.allclose(target.payload(grey), sent, atol=1e-3)
    if not noisy:
        assert torch.allclose(target.module(images), sent, atol=1e-3 if not rounded else 0.05)
        return
    operators = {node.op_type for node in onnx.load(str(loaded.file("obfuscator.onnx"))).graph.node}
    assert "RandomNormalLike" in operators
    assert isinstance(target.module, NoisyWithin)
    std = load_file(lab_file(loaded, "obfuscator.safetensors"))["noise.log_std"].exp()
    assert torch.allclose(target.module.noisy_code.noise_std(), std.expand(128, 4, 4))


def test_images_without_labels_are_trained_on(trained, tmp_path, own_caches):
    folder = tmp_path / "unlabelled"
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    for split, count in (("train", 16), ("test", 8)):
        labels = [None if split == "train" else index % 4 for index in range(count)]
        files = [{"bytes": png(image), "path": None} for image in pixels(count, seed=3)]
        rows = Dataset.from_dict({"image": files, "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    plan = recipe(trained[0].path, folder, utility={"teacher_weight": 1.0}, privacy={"target": "class-mean"})
    assert train(plan, tmp_path / "run", accelerator="cpu").provenance.train_images == 16
    with pytest.raises(DataError, match="images have no class"):
        train(recipe(trained[0].path, folder), tmp_path / "labelled", accelerator="cpu")


@pytest.mark.long
def test_a_file_whose_noise_is_not_the_stated_one_is_refused(tmp_path, monkeypatch):
    net, images = Obfuscator(noisy=True), image_set(8, size=(8, 8)).images.float() / 255
    for _ in range(30):
        net(images)  # fresh running statistics would flatten what comes out
    payload = Payload(net.eval(), Normalize((0.5,) * 3, (0.2,) * 3), 8, 8)

    def changed(path):
        with torch.no_grad():
            net.noise.log_std += 1.0  # torch now says more than the file, which is written already
        return OnnxFunction(path)

    monkeypatch.setattr("sfumato.lab.training.export.OnnxFunction", changed)
    with pytest.raises(TrainingError, match="noise differs from torch's"):
        export_obfuscator(payload, tmp_path / "off.onnx", images)

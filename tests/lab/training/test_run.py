"""From a recipe to a bundle, with few images and few epochs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato
from interrupting import interrupted_at
from sfumato.artifacts.bundle import DECODER_ONNX, OBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.lab_files import lab_file
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device import Obfuscator
from sfumato.errors import BundleError, ClassifierError, DataError, RecipeError, TrainingError
from sfumato.lab.audit.targets import load_target
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.data import load_images
from sfumato.lab.export.int8 import quantize
from sfumato.lab.models.rebuild import rebuilt
from sfumato.lab.training import Run, images, run, train
from sfumato.lab.training.recipe import parse_recipe
from synthetic import CLASSES, image_set, pixels, save_folder


def recipe(kind: str = "classifier", *, data: dict[str, Any] | None = None, **changes: Any):
    what = {"architecture": "resnet20"} if kind == "classifier" else {"classifier": changes.pop("classifier", "x")}
    training = {"epochs": 2, "batch_size": 4, "schedule": "constant", **changes}
    return parse_recipe({"kind": kind, "name": "tiny", **what, "data": data or {}, "training": training})


@pytest.fixture
def in_memory(monkeypatch):
    """Training on images that need no disk, and without writing a bundle: `train` returns the task."""
    sets = {"train": image_set(14, size=(8, 8)), "test": image_set(4, size=(8, 8), seed=1)}
    monkeypatch.setattr(images, "load_images", lambda _source, split, **_: sets[split])
    monkeypatch.setattr(run, "_finish", lambda made, *_: made.task)
    return sets


def weights(task: Any) -> dict[str, torch.Tensor]:
    return task.state_dict()


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def test_from_images_to_a_device_that_obfuscates(trained, image_folder):
    classifier, obfuscator = (Bundle.load(bundle.path) for bundle in trained)
    assert (classifier.kind, obfuscator.kind) == ("classifier", "obfuscator")
    assert classifier.labels == obfuscator.labels == CLASSES
    assert obfuscator.classifier_fingerprint == classifier.classifier_fingerprint
    assert obfuscator.name == classifier.name == "small"
    assert obfuscator.preprocessing == classifier.preprocessing
    device = Obfuscator(obfuscator.path)
    (image,) = pixels(1, seed=9)
    hidden = device.obfuscate(image).tensor
    assert hidden.shape == (3, 32, 32) and np.isfinite(hidden).all()
    assert len({device.obfuscate(file).tensor.tobytes() for file in (image_folder / "test").rglob("*.png")}) == 8


def test_a_bundle_tells_where_it_comes_from(trained, image_folder):
    for bundle, kind in zip(trained, ("classifier", "obfuscator"), strict=True):
        facts = bundle.provenance.to_json()
        assert (facts["epochs"], facts["seed"], facts["processes"], facts["accelerator"]) == (8, 0, 1, "cpu")
        assert (facts["train_images"], facts["test_images"], facts["data"]) == (16, 8, str(image_folder))
        assert facts["libraries"]["torch"] == torch.__version__
        assert facts["sfumato"] == sfumato.__version__
        assert bundle.recipe.kind == kind
        assert parse_recipe(bundle.recipe.to_json()).training.epochs == 8
        assert bundle.figures.test_images == 8
        assert json.loads((bundle.path / "bundle.json").read_text())["figures"] == bundle.figures.to_json()
    assert trained[0].ood_detector.images == 8
    assert trained[1].ood_detector is None, "without a gate the device has no logits"


def test_images_are_normalised_with_their_own_mean_and_deviation(trained, image_folder):
    values = load_images(str(image_folder), "train").images.numpy() / 255
    assert trained[0].preprocessing.mean == pytest.approx(values.mean(axis=(0, 2, 3)), abs=1e-5)
    assert trained[0].preprocessing.std == pytest.approx(values.std(axis=(0, 2, 3)), abs=1e-4)


def test_a_run_can_be_watched_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = EventAccumulator(str(trained[1].path.parent / "tensorboard"))
    logs.Reload()
    names = logs.Tags()
    assert {"train/loss", "train/reconstruction", "test/accuracy", "learning_rate"} <= set(names["scalars"])
    assert names["images"] == ["original, obfuscated, reconstructed"]


def test_the_same_seed_gives_the_same_network(in_memory, tmp_path):
    tasks = [train(recipe(seed=seed), tmp_path / str(i), accelerator="cpu") for i, seed in enumerate((3, 3, 4))]
    assert same(tasks[0], tasks[1])
    assert not same(tasks[0], tasks[2])


@pytest.mark.parametrize(
    ("schedule", "optimizer"), [("constant", "sgd"), ("step", "sgd"), ("one-cycle", "sgd"), ("one-cycle", "muon")]
)
def test_an_interrupted_run_resumes_to_the_same_network(in_memory, tmp_path, schedule, optimizer):
    plan = recipe(schedule=schedule, step_epochs=1, optimizer=optimizer, learning_rate=0.1)
    whole = train(plan, tmp_path / "whole", accelerator="cpu")
    with interrupted_at(2):
        train(plan, tmp_path / "halves", accelerator="cpu")
    resumed = train(plan, tmp_path / "halves", accelerator="cpu", resume=True)
    assert same(resumed, whole)


@pytest.mark.long
def test_attackers_noise_and_mixture_resume_too(in_memory, tmp_path, trained):
    in_memory.update(train=image_set(8), test=image_set(4, seed=1))
    given = recipe("obfuscator", classifier=str(trained[0].path), epochs=3).model_dump(mode="json")
    privacy = {"attackers": ["paper", "residual"], "restart_epochs": 1, "target": "class-mean"}
    plan = parse_recipe({**given, "privacy": privacy, "bottleneck": {"rate_weight": 0.01, "entropy_weight": 0.01}})
    whole = train(plan, tmp_path / "whole", accelerator="cpu")
    with interrupted_at(3):  # in the second epoch, after the first restart
        train(plan, tmp_path / "halves", accelerator="cpu")
    resumed = train(plan, tmp_path / "halves", accelerator="cpu", resume=True)
    assert {"deobfuscator.errors", "mixture.means", "obfuscator.noise.log_std"} <= weights(whole).keys()
    assert same(resumed, whole)


def test_a_run_that_began_before_a_recipe_could_say_more_goes_on(trained):
    plan = recipe("obfuscator", classifier="x")
    assert run._identifying(plan).keys() == {
        *("kind", "name", "note", "classifier", "privacy_weight", "snapshots_every", "data", "training")
    }
    other = plan.model_copy(update={"output": type(plan.output)(format="8-bit")})
    assert run._identifying(other)["output"] == {"format": "8-bit"}
    other = plan.model_copy(update={"black_box": type(plan.black_box)(model="m")})
    assert "class_map" not in run._identifying(other)["black_box"]
    first_version = {  # of keys that a table always had
        "data": {
            "source",
            "size",
            "image_column",
            "label_column",
            "train_images",
            "test_images",
            "flip",
            "crop_padding",
        },
        "training": {"epochs", "batch_size", "seed", "optimizer", "learning_rate", "weight_decay", "schedule"}
        | {"step_epochs", "warmup", "channels_last", "validate_every"},
    }
    sketch = parse_recipe({"kind": "sketch", "name": "s", "classifier": "x"})
    for made, own in (
        (recipe(), {"architecture", "label_smoothing", "teacher", "teacher_weight", "temperature"}),
        (sketch, {"classifier", "teacher_weight", "temperature", "decoded_share", "offload_rate", "held_out_images"}),
    ):
        said = run._identifying(made)
        rest = {"code_bits", "learn"} if made is sketch else set()
        assert said.keys() == {"kind", "name", "note", "data", "training"} | own | rest
        assert {table: set(said[table]) for table in first_version} == first_version
    changed = sketch.model_copy(update={"trunk": "device-nano", "mixup": 0.2, "teacher": ("a", "b")})
    assert run._identifying(changed).keys() - run._identifying(sketch).keys() == {"trunk", "mixup", "teacher"}


def test_snapshots_hold_the_networks_as_they_were(in_memory, tmp_path, monkeypatch, trained, image_folder):
    monkeypatch.setattr(images, "load_images", load_images)
    given = recipe("obfuscator", classifier=str(trained[0].path), data={"source": str(image_folder)}, epochs=3)
    task = train(given.model_copy(update={"snapshots_every": 1}), tmp_path, accelerator="cpu")
    kept = [load_file(Run(tmp_path).snapshot(epoch) / OBFUSCATOR_WEIGHTS) for epoch in (1, 2, 3)]
    last = task.obfuscator.state_dict()
    assert all(torch.equal(value, last[name]) for name, value in kept[-1].items())
    assert not torch.equal(kept[0]["stem.conv.weight"], kept[1]["stem.conv.weight"])
    assert (Run(tmp_path).snapshot(3) / "deobfuscator.safetensors").is_file()
    train(given, tmp_path, accelerator="cpu", overwrite=True)
    assert not (tmp_path / "snapshots").exists(), "without the wish for them there are none"


def test_a_run_is_compiled_if_the_recipe_says_so_and_may_go_on_without(in_memory, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    train(recipe(compile=True), tmp_path, accelerator="cpu")
    assert len(compiled) == 1
    train(recipe(compile=False), tmp_path, accelerator="cpu", resume=True)
    assert len(compiled) == 1


def test_a_folder_that_holds_a_run_is_not_overwritten_by_accident(in_memory, tmp_path):
    first = train(recipe(seed=1), tmp_path, accelerator="cpu")
    with pytest.raises(TrainingError, match="--resume continues it, --overwrite"):
        train(recipe(seed=2), tmp_path, accelerator="cpu")
    with pytest.raises(TrainingError, match="another recipe"):
        train(recipe(seed=2), tmp_path, accelerator="cpu", resume=True)
    assert not same(train(recipe(seed=2), tmp_path, accelerator="cpu", overwrite=True), first)


def test_other_images_are_another_run(in_memory, tmp_path):
    train(recipe(), tmp_path, accelerator="cpu")
    in_memory["train"] = image_set(14, size=(8, 8), seed=5)
    with pytest.raises(TrainingError, match="another recipe"):
        train(recipe(), tmp_path, accelerator="cpu", resume=True)


def test_nothing_to_resume_is_said(in_memory, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(recipe(), tmp_path, accelerator="cpu", resume=True)


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(in_memory, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be created"):
        train(recipe(), tmp_path / "file" / "run", accelerator="cpu")


@pytest.mark.parametrize(
    "accelerator",
    [
        "abacus",
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has it")),
    ],
)
def test_an_accelerator_that_is_not_there_is_an_error_of_ours(in_memory, tmp_path, accelerator):
    with pytest.raises(TrainingError, match=f"cannot train on 1 x '{accelerator}'"):
        train(recipe(), tmp_path, accelerator=accelerator)


def test_splits_that_do_not_belong_together_are_refused(in_memory, tmp_path):
    in_memory["test"] = image_set(4, size=(16, 8))
    with pytest.raises(TrainingError, match="differ in classes or size"):
        train(recipe(), tmp_path, accelerator="cpu")


def test_fewer_images_can_be_asked_for(in_memory, tmp_path):
    with pytest.raises(TrainingError, match="batch_size 4 does not fit 3"):
        train(recipe(data={"train_images": 3}), tmp_path, accelerator="cpu")


def test_images_of_another_size_than_the_classifiers_are_refused(in_memory, tmp_path, trained):
    with pytest.raises(RecipeError, match=r"\(8, 8\).*takes \(32, 32\)"):
        train(recipe("obfuscator", classifier=str(trained[0].path)), tmp_path, accelerator="cpu")


def test_images_of_other_classes_are_refused(in_memory, tmp_path, trained):
    for split in in_memory:
        images = image_set(8)
        in_memory[split] = type(images)(images.images, images.labels % 3, ("x", "y", "date"), "three", "hash")
    with pytest.raises(DataError, match="2 of its 3 classes are not"):
        train(recipe("obfuscator", classifier=str(trained[0].path)), tmp_path, accelerator="cpu")


def taught_by(path: Path, **changes: Any):
    plain = recipe(**changes).model_dump(mode="json")
    return parse_recipe({**plain, "teacher": str(path), "teacher_weight": 0.25, "temperature": 2.0})


def test_a_student_is_taught_by_the_bundles_classifier_as_it_wants_its_images(in_memory, tmp_path, trained):
    in_memory.update(train=image_set(8), test=image_set(4, seed=1))
    task = train(taught_by(trained[0].path), tmp_path / "taught", accelerator="cpu")
    assert (task.teacher_weight, task.temperature) == (0.25, 2.0)
    images = in_memory["test"].images.float() / 255
    session = onnxruntime.InferenceSession(str(trained[0].file("model.onnx")))
    (expected,) = session.run(None, {"input": trained[0].preprocessing.normalize(images.numpy())})
    assert np.allclose(task.teacher(images).numpy(), expected, atol=1e-4)
    alone = train(recipe(), tmp_path / "alone", accelerator="cpu")
    assert not same(task.net, alone.net)


def test_another_teacher_is_another_run(in_memory, tmp_path, trained):
    in_memory.update(train=image_set(8), test=image_set(4, seed=1))
    teacher = shutil.copytree(trained[0].path, tmp_path / "teacher")
    train(taught_by(teacher), tmp_path / "run", accelerator="cpu")
    manifest = json.loads((teacher / "bundle.json").read_text())
    manifest["classifier_fingerprint"] = "sha256:" + "0" * 64
    (teacher / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingError, match="another recipe"):
        train(taught_by(teacher), tmp_path / "run", accelerator="cpu", resume=True)


def test_several_teachers_teach_together_and_are_written_down(in_memory, tmp_path, trained, monkeypatch):
    in_memory.update(train=image_set(8), test=image_set(4, seed=1))
    monkeypatch.setattr(
        run, "_finish", lambda made, fitted, _: (made, run._provenance(made, fitted), run._identity(made))
    )
    other = shutil.copytree(trained[0].path, tmp_path / "other")
    values = load_file(other / "weights.safetensors")
    save_file({**values, "head.bias": values["head.bias"] + torch.arange(4.0)}, other / "weights.safetensors")
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["files"]["weights.safetensors"] = hashlib.sha256((other / "weights.safetensors").read_bytes()).hexdigest()
    manifest["classifier_fingerprint"] = "sha256:" + "1" * 64
    (other / "bundle.json").write_text(json.dumps(manifest))
    plan = taught_by(trained[0].path)
    both = plan.model_copy(update={"teacher": (str(trained[0].path), str(other))})
    made, facts, identity = train(both, tmp_path / "both", accelerator="cpu")
    x = torch.rand(3, 3, 32, 32)
    first, second = (load_classifier(path).net for path in (trained[0].path, other))
    inputs = torch.from_numpy(trained[0].preprocessing.normalize(x.numpy()))
    assert torch.allclose(made.task.teacher(x), (first(inputs) + second(inputs)) / 2, atol=1e-4)
    assert [net["fingerprint"] for net in facts.to_json()["taught_by"]] == [
        *(trained[0].classifier_fingerprint, manifest["classifier_fingerprint"])
    ]
    one, _, alone = train(plan, tmp_path / "one", accelerator="cpu")
    assert len(one.teachers) == 1 and "teachers" not in json.loads(alone), "as before there could be several"
    assert manifest["classifier_fingerprint"] in json.loads(identity)["teachers"]


def test_a_second_teacher_of_other_classes_is_refused(in_memory, tmp_path, trained):
    in_memory.update(train=image_set(8), test=image_set(4, seed=1))
    other = shutil.copytree(trained[0].path, tmp_path / "other")
    manifest = json.loads((other / "bundle.json").read_text())
    manifest["labels"] = list("wxyz")
    (other / "bundle.json").write_text(json.dumps(manifest))
    plan = taught_by(trained[0].path).model_copy(update={"teacher": (str(trained[0].path), str(other))})
    with pytest.raises(RecipeError, match="teacher: small has other classes than small"):
        train(plan, tmp_path / "run", accelerator="cpu")


def test_a_teacher_alone_needs_no_labels(in_memory, tmp_path, trained):
    images = image_set(8)
    in_memory.update(train=replace(images, labels=torch.zeros(8, dtype=torch.int64)), test=image_set(4, seed=1))
    plan = taught_by(trained[0].path).model_copy(update={"teacher_weight": 1.0})
    unlabelled = train(plan, tmp_path / "a", accelerator="cpu")
    in_memory["train"] = images
    assert same(unlabelled.net, train(plan, tmp_path / "b", accelerator="cpu").net)


def test_a_square_as_large_as_the_image_is_refused(in_memory, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.cutout 8 must be smaller"):
        train(recipe(data={"cutout": 8}), tmp_path, accelerator="cpu")


def test_all_that_helps_training_is_resumed(in_memory, tmp_path, trained):
    in_memory.update(train=image_set(8), test=image_set(4, seed=1))
    changes = {"architecture": "device-nano", "mixup": 0.5}
    plain = taught_by(trained[0].path, data={"cutout": 5}, epochs=3, weight_average=0.9, int8_epochs=1)
    plan = parse_recipe({**plain.model_dump(mode="json"), **changes})
    whole = train(plan, tmp_path / "whole", accelerator="cpu")
    for step, folder in ((3, "early"), (5, "late")):
        with interrupted_at(step):
            train(plan, tmp_path / folder, accelerator="cpu")
        assert same(train(plan, tmp_path / folder, accelerator="cpu", resume=True), whole)


def test_a_teacher_for_other_images_is_refused(in_memory, tmp_path, trained):
    with pytest.raises(RecipeError, match=r"\(8, 8\).*takes \(32, 32\)"):
        train(taught_by(trained[0].path), tmp_path / "a", accelerator="cpu")
    with pytest.raises(BundleError, match="'classifier' is needed"):
        train(taught_by(trained[1].path), tmp_path / "b", accelerator="cpu")


def test_a_classifier_that_is_not_there_or_is_none_is_refused(in_memory, tmp_path, trained):
    with pytest.raises(ClassifierError, match="is no classifier that can be found"):
        train(recipe("obfuscator", classifier=str(tmp_path / "absent")), tmp_path / "a", accelerator="cpu")
    with pytest.raises(BundleError, match="'classifier' is needed"):
        train(recipe("obfuscator", classifier=str(trained[1].path)), tmp_path / "b", accelerator="cpu")


def test_sizes_that_the_obfuscator_cannot_take_are_refused(in_memory, tmp_path, trained):
    folder = shutil.copytree(trained[0].path, tmp_path / "odd")
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["preprocessing"].update(height=12, width=32)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    in_memory.update(train=image_set(8, size=(12, 32)), test=image_set(4, size=(12, 32)))
    with pytest.raises(RecipeError, match="multiples of 8"):
        train(recipe("obfuscator", classifier=str(folder)), tmp_path / "run", accelerator="cpu")


# Runs `sfumato`, and notes which images each process trains on.
SPY = """
import hashlib, os
from pathlib import Path

import torch

from exports import traced_once
from sfumato.lab.training import batches

torch.onnx.export = traced_once(Path(os.environ["TRACED"]), torch.onnx.export)

def noting(images, *rest, plain=batches.augment):
    with Path(os.environ["SPY_NOTES"], os.environ.get("LOCAL_RANK", "0")).open("a") as notes:
        print(*(hashlib.sha256(i.numpy().tobytes()).hexdigest() for i in images), file=notes)
    return plain(images, *rest)

batches.augment = noting

from sfumato.cli.main import main

main()
"""


@pytest.mark.long
def test_two_processes_share_every_batch(trained, shared, tmp_path):
    # 9 images to test: one process looks at two batches of them, the other at one.
    folder = save_folder(tmp_path / "images", train=16, test=9)
    (tmp_path / "spied").mkdir()
    (tmp_path / "spied" / "__main__.py").write_text(SPY)
    (tmp_path / "notes").mkdir()
    (tmp_path / "recipe.toml").write_text(
        f"""
        kind = "obfuscator"
        name = "shared"
        classifier = "{trained[0].path}"
        [data]
        source = "{folder}"
        [training]
        epochs = 2
        batch_size = 4
        """
    )
    command = [sys.executable, "-m", "spied", "train", "recipe.toml"]
    command += ["--devices", "2", "--accelerator", "cpu", "--json"]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SFUMATO", "LOCAL_RANK"))},
        "SFUMATO_CACHE": str(tmp_path / "cache"),
        "HF_DATASETS_CACHE": str(tmp_path / "hub"),
        "SPY_NOTES": str(tmp_path / "notes"),
        "TRACED": str(shared / "traced"),
        "PYTHONPATH": os.pathsep.join(
            map(str, [tmp_path, Path(__file__).parents[2], Path(sfumato.__file__).parents[1]])
        ),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    bundle = Bundle.load(tmp_path / "runs" / "shared" / "bundle")
    assert json.loads(line) == {"bundle": str(Run(Path("runs/shared")).bundle), "figures": bundle.figures.to_json()}
    assert bundle.provenance.to_json()["processes"] == 2
    # The first process alone measures the bundle, after the others have ended.
    assert bundle.figures.test_images == 9
    assert bundle.figures.to_json().keys() >= {"accuracy_obfuscated", "joint_deobfuscator_ssim"}

    files = (folder / "train").rglob("*.png")
    from PIL import Image

    all_images = {hashlib.sha256(np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes()).hexdigest() for f in files}
    notes = [(tmp_path / "notes" / rank).read_text().splitlines() for rank in "01"]
    steps_per_epoch = 16 // 4
    assert [len(steps) for steps in notes] == [2 * steps_per_epoch] * 2
    assert all(len(step.split()) == 2 for steps in notes for step in steps)
    for epoch in range(2):
        seen = [p for steps in notes for step in steps[epoch * 4 : epoch * 4 + 4] for p in step.split()]
        assert sorted(seen) == sorted(all_images), "each image once an epoch, in one process or the other"


def test_overwriting_leaves_nothing_of_the_run_before(tmp_path, monkeypatch):
    folder = save_folder(tmp_path / "images", train=4, test=4)
    recipe = parse_recipe(
        {"kind": "classifier", "name": "x", "architecture": "resnet20", "data": {"source": str(folder)},
         "training": {"epochs": 1, "batch_size": 8}}
    )  # fmt: skip
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.checkpoint.write_bytes(b"of before")
    with pytest.raises(TrainingError, match="does not fit"):  # 4 images are less than a batch
        train(recipe, run.folder, overwrite=True)
    assert not run.checkpoint.exists()
    with pytest.raises(TrainingError, match="choose one"):
        train(recipe, run.folder, overwrite=True, resume=True)


@pytest.fixture(scope="module")
def stages() -> set[str]:
    """What the training of `sketched` has reported."""
    return set()


@pytest.fixture(scope="module")
def sketched(trained, own_caches, image_folder, tmp_path_factory, stages) -> Bundle:
    """The bundle of an obfuscator that draws a code of three bits."""
    given = {
        "kind": "sketch",
        "name": "small-sketch",
        "classifier": str(trained[0].path),
        "code_bits": 3,
        "offload_rate": 0.5,
        "min_images_per_code": 3,
        "held_out_images": 4,
        "data": {"source": str(image_folder)},
        "training": {"epochs": 4, "batch_size": 4, "schedule": "constant", "validate_every": 4},
    }
    folder = tmp_path_factory.mktemp("sketch")
    return train(parse_recipe(given), folder, accelerator="cpu", progress=lambda stage, *_: stages.add(stage))


def test_what_follows_the_last_step_is_reported_too(sketched, stages):
    assert stages >= {"training", "writing the bundle", "accuracy, obfuscated"}


def test_a_sketch_sends_codes_alone_and_knows_when_to_send(sketched, trained):
    bundle = Bundle.load(sketched.path)
    assert bundle.gate is not None
    assert (bundle.gate.offload_rate, bundle.gate.images) == (0.5, 4)
    assert bundle.ood_detector is not None and bundle.ood_detector.images == bundle.figures.test_images
    assert 0.25 <= bundle.gate.threshold <= 1, "of four classes the likeliest has a quarter at least"
    assert (bundle.name, bundle.classifier_fingerprint) == (trained[0].name, trained[0].classifier_fingerprint)
    assert bundle.provenance.train_images == 12, "what the gate was chosen on was not trained on"
    images = pixels(40, seed=5).transpose(0, 3, 1, 2).astype(np.float32) / 255
    payload, own, code = OnnxFunction(bundle.file(OBFUSCATOR_ONNX)).all(images)
    assert payload.shape == (40, 3, 32, 32) and own.shape == (40, 4) and code.shape == (40, 1)
    assert len({row.round(3).tobytes() for row in payload}) <= 2**3
    np.testing.assert_allclose(OnnxFunction(bundle.file(DECODER_ONNX))(code), payload, atol=1e-5)
    reconstructed = OnnxFunction(lab_file(bundle, "deobfuscator.onnx"))(payload)
    assert reconstructed.shape == images.shape and reconstructed.min() >= 0 and reconstructed.max() <= 1
    assert bundle.figures.fewest_images_per_code >= 3 and bundle.figures.occurring_codes >= 1
    assert set(bundle.files) == {OBFUSCATOR_ONNX, DECODER_ONNX}


def test_a_sketch_can_be_audited_with_gradients_and_its_gate(sketched):
    target = load_target(str(sketched.path), size=(32, 32))
    assert target.gate is not None and target.gate.gate == Bundle.load(sketched.path).gate
    assert target.module is not None and target.module.code_bits == 3
    assert target.gate.logits(torch.rand(5, 3, 32, 32)).shape == (5, 4)


@pytest.mark.long
def test_a_sketch_on_a_network_for_the_device_is_exported_folded_audited_and_quantised(trained, image_folder, tmp_path):
    given = {
        "kind": "sketch",
        "name": "nano-sketch",
        "classifier": str(trained[0].path),
        "teacher": [str(trained[0].path), str(trained[0].path)],
        "trunk": "device-nano",
        "code_bits": 3,
        "min_images_per_code": 0,
        "held_out_images": 4,
        "mixup": 0.2,
        "data": {"source": str(image_folder), "cutout": 4},
        "training": {"epochs": 4, "batch_size": 4, "schedule": "constant", "weight_average": 0.9, "int8_epochs": 1},
    }
    bundle = train(parse_recipe(given), tmp_path / "run", accelerator="cpu")
    kinds = [node.op_type for node in onnx.load(bundle.file(OBFUSCATOR_ONNX)).graph.node]
    assert kinds.count("Conv") == 6 + 2 and "BatchNormalization" not in kinds
    images = torch.from_numpy(pixels(6, seed=5).transpose(0, 3, 1, 2).copy()).float() / 255
    net = rebuilt(Bundle.load(bundle.path))
    own = OnnxFunction(bundle.file(OBFUSCATOR_ONNX)).all(images.numpy())[1]
    with torch.no_grad():
        logits = net(images)[1].numpy()
    assert np.allclose(own / own.std(), logits / logits.std(), atol=1e-3), "but for the temperature"
    target = load_target(str(bundle.path), size=(32, 32))
    x = images.clone().requires_grad_()
    target.module(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0
    sets = [load_images(str(image_folder), split) for split in ("train", "test")]
    integers = quantize(bundle, tmp_path / "int8", trained[0], *sets)
    assert integers.figures.quantized["device_predictions_changed"] <= 0.25
    assert integers.ood_detector.images == len(sets[1])


def test_a_code_that_cannot_say_the_answer_is_refused(trained, image_folder, tmp_path):
    given = {
        "kind": "sketch",
        "name": "x",
        "classifier": str(trained[0].path),
        "code_bits": 1,
        "held_out_images": 4,
        "data": {"source": str(image_folder)},
    }
    with pytest.raises(RecipeError, match="code_bits: 4 classes take 2 bits, got 1"):
        train(parse_recipe(given), tmp_path, accelerator="cpu")


def test_more_images_cannot_be_held_out_than_there_are(in_memory, tmp_path, trained):
    given = parse_recipe(
        {"kind": "sketch", "name": "x", "classifier": str(trained[0].path), "held_out_images": 14, "data": {}}
    )
    with pytest.raises(DataError, match="14 images cannot be held out of 14"):
        train(given, tmp_path, accelerator="cpu")


def test_two_halves_are_trained_on_apart(in_memory, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "_finish", lambda made, *_: made)
    first, second = (
        train(recipe(data={"half": half}, epochs=1), tmp_path / half, accelerator="cpu") for half in ("first", "second")
    )
    assert (len(first.train), len(second.train), len(first.test)) == (7, 7, 4)
    seen = torch.cat([first.train.images, second.train.images]).flatten(1).unique(dim=0)
    assert len(seen) == 14
    with pytest.raises(RecipeError, match="half needs all training images"):
        recipe(data={"half": "first", "stream": True, "size": [8, 8], "test_images": 4})

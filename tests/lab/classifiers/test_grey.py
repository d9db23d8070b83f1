"""Classifiers of one channel, from the import to a prediction from a payload; Pillow's mode "L" is the oracle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import brought
import tiny
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.cloud import ServedModel, running
from sfumato.device import Client
from sfumato.errors import ClassifierError
from sfumato.lab.classifiers import Metadata, import_classifier, load_classifier
from sfumato.lab.classifiers.grey import Grey
from sfumato.lab.evaluation.accuracy import evaluate_classifier
from sfumato.lab.training import train
from sfumato.lab.training.recipe import parse_recipe
from synthetic import CLASSES, image_set, save_folder

MEAN, STD = 0.4, 0.25
METADATA = Metadata((32, 32), (MEAN,) * 3, (STD,) * 3, CLASSES)


def network() -> nn.Module:
    """Imported by its name, too; the classes of the synthetic images differ in their brightness."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return brought.Small(channels=1).eval()


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("programs") / "grey.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network(), (torch.rand(2, 1, 32, 32),), dynamic_shapes=shapes), file)
    return file


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Bundle:
    return import_classifier(f"{__name__}:network", tmp_path_factory.mktemp("grey") / "bundle", METADATA)


def as_pillow_converts(pixels: np.ndarray) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> the normalised input (N, 1, H, W) of the network as its owner makes it."""
    rows = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in pixels]
    return (torch.from_numpy(np.stack(rows)[:, None]).float() / 255 - MEAN) / STD


def test_it_predicts_as_on_pillows_grey_image(grey):
    """Pillow rounds grey to one of 256 levels: half a level, over the deviation, is what inputs may differ by."""
    images = image_set(40).images.numpy()
    wanted = as_pillow_converts(images)
    unit = torch.from_numpy(images).float() / 255
    seen: list[torch.Tensor] = []

    class Seeing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean(dim=(2, 3))

    Grey(Seeing())((unit - MEAN) / STD)
    assert seen[0].shape == wanted.shape
    assert (seen[0] - wanted).abs().max() <= (0.5 / 255 + 1e-5) / STD
    logits = torch.from_numpy(ClassifierFunction(grey)(grey.preprocessing.normalize(unit.numpy())))
    with torch.no_grad():
        expected = network()(wanted)
        trained_through = load_classifier(grey.path).net((unit - MEAN) / STD)
    assert torch.allclose(logits, expected, atol=0.02) and expected.std(dim=0).max() > 0.02
    assert torch.allclose(logits, trained_through, atol=1e-5)
    assert any("0.299 R + 0.587 G + 0.114 B" in note for note in grey.recipe.notes)


def test_a_program_of_one_channel_is_the_same_classifier(grey, program, tmp_path):
    bundle = import_classifier(str(program), tmp_path / "bundle", Metadata(None, METADATA.mean, METADATA.std, CLASSES))
    unit = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    assert np.allclose(ClassifierFunction(bundle)(unit), ClassifierFunction(grey)(unit), atol=1e-5)
    assert bundle.name == "grey"


def test_what_cannot_be_converted_is_refused(tmp_path, program):
    colours = Metadata(None, (0.485, 0.456, 0.406), METADATA.std, CLASSES)
    with pytest.raises(ClassifierError, match="one number each for mean and std"):
        import_classifier(str(program), tmp_path / "bundle", colours)
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    shape = "n", 1, 8, 8
    file = tiny.save_model(tmp_path / "g.onnx", [node], {}, [tiny.floats("x", *shape)], [tiny.floats("y", *shape)])
    with pytest.raises(ClassifierError, match="of one channel only networks can be imported"):
        import_classifier(str(file), tmp_path / "bundle", METADATA)


def test_a_sketch_is_trained_for_it_and_a_payload_classified(grey, tmp_path, own_caches):
    """An image file of mode "L" goes in; three channels are sent."""
    folder = save_folder(tmp_path / "images", train=24, test=8)
    recipe = {
        "kind": "sketch",
        "name": "grey-sketch",
        "classifier": str(grey.path),
        "held_out_images": 4,
        "data": {"source": str(folder), "size": [32, 32]},
        "training": {"epochs": 1, "batch_size": 4},
    }
    bundle = train(parse_recipe(recipe), tmp_path / "run", accelerator="cpu")
    assert bundle.figures.test_images == 8
    assert evaluate_classifier(grey, image_set(8)).test_images == 8
    file = tmp_path / "grey.png"
    Image.fromarray(tiny.image(1, 40, 32)).convert("L").save(file)
    with running([ServedModel(grey.path)]) as url, Client(url, bundle, gate=False) as client:
        prediction = client.classify(file)
    assert prediction.label in CLASSES and prediction.payload_bytes > 3 * 32 * 32 * 4

"""Sketches that decode to photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.errors import RecipeError
from sfumato.lab.data import load_images
from sfumato.lab.models import Sketcher
from sfumato.lab.models.sketch import Photographs
from sfumato.lab.training.prototypes import log_probabilities_of, put_in
from sfumato.lab.training.recipe import parse_recipe
from sfumato.lab.training.run import train
from synthetic import save_folder


class Brightness(nn.Module):
    """Surer of the second class the brighter an image is, and of the first the darker."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = x.mean(dim=(1, 2, 3)) - 0.5
        return self.scale * torch.stack([-light, light], dim=1)


def greys(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_each_answer_gets_the_image_that_its_classifiers_are_surest_of() -> None:
    photographs, images = Photographs(2, 4, 4), greys(100, 20, 200, 250, 60)
    scores = log_probabilities_of(images, [Brightness(3.0), Brightness(5.0)])
    light = images.float().mean(dim=(1, 2, 3)) / 255 - 0.5
    wanted = torch.stack([torch.sigmoid(-2 * s * light).log() for s in (3.0, 5.0)]).mean(dim=0)
    assert torch.allclose(scores[:, 0], wanted, atol=1e-6)
    put_in(photographs, images, scores, ("dark", "light"))
    assert photographs.images[:, 0, 0, 0].tolist() == [20, 250]
    code = torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, 1.0]])
    assert torch.equal(photographs(code), greys(250, 20).float() / 255)  # the learned bit changes nothing


def test_a_class_that_no_image_is_taken_for_is_named(caplog: pytest.LogCaptureFixture) -> None:
    photographs, images = Photographs(2, 4, 4), greys(250, 200)
    put_in(photographs, images, log_probabilities_of(images, [Brightness(1.0)]), ("dark", "light"))
    assert "'dark'" in caplog.text
    assert photographs.images[:, 0, 0, 0].tolist() == [200, 250]  # the darker one stands for it


def test_too_many_photographs_for_a_device_are_refused() -> None:
    names = tuple(str(k) for k in range(500))
    with pytest.raises(RecipeError, match="MiB"):
        put_in(Photographs(500, 224, 224), greys(0), torch.zeros(1, 500), names)


@pytest.mark.long
def test_they_take_the_place_of_what_a_bundle_draws_without_training(
    trained: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    source = save_folder(tmp_path / "images", train=48, test=8)
    given = {
        "kind": "sketch",
        "name": "x",
        "classifier": str(trained[0].path),
        "code_bits": 3,
        "held_out_images": 8,
        "data": {"source": str(source)},
        "training": {"epochs": 2, "batch_size": 4, "schedule": "constant"},
    }
    learned = train(parse_recipe(given), tmp_path / "learned", accelerator="cpu")
    shown = parse_recipe({**given, "decoder": "photographs"})
    bundle = train(shown, tmp_path / "shown", accelerator="cpu", start=learned)
    assert bundle.provenance.epochs == 0
    assert bundle.code_fingerprint == learned.code_fingerprint
    images = load_images(str(source), "train")
    batch = images.images[:32].numpy().astype(np.float32) / 255
    outputs = OnnxFunction(bundle.file(OBFUSCATOR_ONNX)).all(batch)
    sent = np.round(bundle.preprocessing.denormalize(outputs[0]) * 255).astype(np.uint8)
    answers, known = outputs[1].argmax(axis=1), {row.numpy().tobytes() for row in images.images}
    assert all(row.tobytes() in known for row in sent)  # photographs of the training set, to the last bit
    assert all(len({row.tobytes() for row in sent[answers == k]}) == 1 for k in np.unique(answers))
    back = train(parse_recipe(given), tmp_path / "back", accelerator="cpu", start=bundle)  # and the other way
    assert back.provenance.epochs == 2 and back.code_fingerprint == learned.code_fingerprint


def test_a_decoder_of_photographs_still_learns_its_encoder() -> None:
    sketcher = Sketcher(32, 32, classes=4, bits=4, photographs=True)
    assert not hasattr(sketcher, "draw")
    decoded, logits = sketcher(torch.rand(3, 3, 32, 32))
    assert decoded.shape == (3, 3, 32, 32) and logits.requires_grad and not decoded.requires_grad

"""Evaluators: what they learn, that they are cached by what they learn from, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato.errors import AuditError
from sfumato.lab.evaluation import evaluator
from sfumato.lab.evaluation.evaluator import load_evaluator
from synthetic import image_set


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    return tmp_path / "evaluators"


def counted(**options: object) -> tuple[evaluator.Evaluator, int]:
    steps: list[int] = []
    found = load_evaluator(
        image_set(40, size=(16, 16)), **({"images": 640} | options), progress=lambda *x: steps.append(1)
    )
    return found, len(steps)


def test_it_learns_the_classes_and_is_loaded_again(cache: Path):
    first, steps = counted(images=2_560)
    assert steps == 40 and first.learned_from == 40
    shown = image_set(80, size=(16, 16), seed=5)
    features, classes = first.judge(shown.images)
    assert features.shape == (80, 96) and features.dtype == torch.float32
    assert float((classes == shown.labels).float().mean()) > 0.9
    again, steps = counted(images=2_560)
    assert steps == 0 and len([*cache.iterdir()]) == 1
    assert torch.equal(again.judge(shown.images)[0], features)
    halves = first.judge(shown.images.float() / 255)[0]
    torch.testing.assert_close(halves, features)


def test_other_images_another_recipe_or_another_seed_are_another_one(cache: Path):
    made = [counted()[0], counted(seed=1)[0], counted(images=128)[0]]
    changed = image_set(40, size=(16, 16))
    pixels = changed.images.clone()
    pixels[0, 0, 0, 0] ^= 1
    made.append(load_evaluator(replace(changed, images=pixels), images=640))  # its hash is that of the whole set
    made.append(load_evaluator(replace(changed, labels=changed.labels.flip(0)), images=640))
    assert len([*cache.iterdir()]) == len(made)
    shown = image_set(8, size=(16, 16)).images
    assert len({tuple(one.judge(shown)[0].flatten().tolist()) for one in made}) == len(made)


def test_a_damaged_cache_is_trained_again_and_a_full_disk_costs_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = counted(images=64)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    again, steps = counted(images=64)
    shown = image_set(8, size=(16, 16)).images
    assert steps == 1 and torch.equal(again.judge(shown)[0], first.judge(shown)[0]), "reproducible from the seed"
    monkeypatch.setattr(evaluator, "save_file", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    _, steps = counted(images=128)
    assert steps == 2


def test_large_images_are_reduced_and_keep_their_shape():
    assert evaluator._prepared(torch.zeros(1, 3, 200, 100, dtype=torch.uint8)).shape == (1, 3, 64, 32)
    assert evaluator._prepared(torch.ones(1, 3, 20, 30)).mean() == pytest.approx(2.0)


def test_too_few_images_or_classes_are_refused():
    with pytest.raises(AuditError, match="7 images of 4 of 4 classes were held out"):
        load_evaluator(image_set(7), images=64)
    one = image_set(40)
    with pytest.raises(AuditError, match="two classes"):
        load_evaluator(replace(one, labels=torch.zeros_like(one.labels), names=("image",)), images=64)

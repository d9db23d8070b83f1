"""Training-set extraction from a bundle's files: a leaking bundle is found out, a clean one is not accused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scenes import images
from sfumato.artifacts.lab_files import write_device_bundle
from sfumato.errors import AuditError
from sfumato.lab.attacks.extraction import memorises
from sfumato.lab.audit.extraction import extract_training_set, extraction_check
from synthetic import image_set
from tiny import LABELS, SIZE, save_bundles, save_split_bundles


def test_a_deobfuscator_of_a_few_images_gives_them_away(own_caches: Path) -> None:
    check = extraction_check(images(200), images(60, seed=1))
    assert check.passed, check


def test_images_that_are_stored_in_a_file_are_found_and_a_devices_bundle_has_none(tmp_path: Path) -> None:
    train, test = (replace(image_set(24, size=(SIZE, SIZE), seed=seed), names=LABELS) for seed in (0, 1))
    obfuscator, _ = save_bundles(tmp_path)
    flat = torch.cat([train.images[:5].flatten(1).float() / 128 - 1, torch.zeros(1, 3 * SIZE * SIZE)])
    save_file({"prototypes": flat.half(), "other": torch.zeros(7, 5)}, obfuscator.path / "obfuscator.safetensors")
    obfuscator = obfuscator.save()
    (found,) = extract_training_set(obfuscator, train, test)
    assert (found.file, found.method, found.train_copied) == ("obfuscator.safetensors", "stores images", 5)
    assert memorises(found)
    assert extract_training_set(write_device_bundle(obfuscator, tmp_path / "device"), train, test) == ()


def test_every_code_is_decoded(tmp_path: Path) -> None:
    train, test = (replace(image_set(24, size=(SIZE, SIZE), seed=seed), names=LABELS) for seed in (0, 1))
    (found,) = extract_training_set(save_split_bundles(tmp_path)[0], train, test)
    assert (found.file, found.method) == ("decoder.onnx", "decodes every code")
    assert found.decoded_images > 2 and not memorises(found)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="takes"):
        extract_training_set(save_bundles(tmp_path)[0], image_set(4), image_set(4, size=(SIZE, SIZE)))

"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.artifacts.bundle import Bundle
from synthetic import save_folder
from tiny import save_bundles


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """(obfuscator, classifier), made for each other."""
    return save_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def obfuscator_bundle(tiny_bundles: tuple[Bundle, Bundle]) -> Bundle:
    return tiny_bundles[0]


@pytest.fixture
def classifier_bundle(tiny_bundles: tuple[Bundle, Bundle]) -> Bundle:
    return tiny_bundles[1]


@pytest.fixture(scope="session")
def gated_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An obfuscator with a gate: keeps `tiny.sure_image` at home and sends `tiny.unsure_image`."""
    return save_bundles(tmp_path_factory.mktemp("gated"), threshold=0.9)[0]


@pytest.fixture
def damaged(tmp_path: Path, obfuscator_bundle: Bundle) -> Path:
    """A bundle whose ONNX file was changed after it was written."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in obfuscator_bundle.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with (folder / "obfuscator.onnx").open("ab") as stream:
        stream.write(b"x")
    return folder


@pytest.fixture(scope="session")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded images go to a folder of this test run, ours and those of `datasets`."""
    import datasets

    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(folder / "sfumato"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images to train with and 8 to test, in four class folders."""
    return save_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, own_caches: Path, image_folder: Path) -> tuple[Bundle, Bundle]:
    """(classifier, obfuscator) as `sfumato.lab.training.train` writes them, after few epochs on few images."""
    from sfumato.lab.training import train
    from sfumato.lab.training.recipe import parse_recipe

    runs = tmp_path_factory.mktemp("runs")
    common = {
        "data": {"source": str(image_folder), "crop_padding": 1},
        # Enough steps for the running statistics to become those of images: fresh ones flatten every output.
        "training": {"epochs": 8, "batch_size": 4, "schedule": "constant", "validate_every": 8},
    }
    classifier = train(
        parse_recipe({"kind": "classifier", "name": "small", "architecture": "resnet20", **common}),
        runs / "classifier",
        accelerator="cpu",
    )
    obfuscator = train(
        parse_recipe({"kind": "obfuscator", "name": "small-o", "classifier": str(classifier.path), **common}),
        runs / "obfuscator",
        accelerator="cpu",
    )
    return classifier, obfuscator

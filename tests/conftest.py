"""Fixtures that several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.bundle import Bundle
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

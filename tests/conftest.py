"""Fixtures that several folders share."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from sfumato.artifacts.bundle import Bundle

# One thread for each worker, read when torch is loaded; and freed memory is kept, as `sfumato train` arranges it, read
# when a process starts: the workers of pytest-xdist inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(8 << 30))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(16 << 30))

settings.register_profile("unhurried", deadline=None)  # a busy machine is slow, and then nothing is wrong
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made_once(shared: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder in the first worker that asks for it: `made_once(name, make)` calls `make(folder)`."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def each_architecture_is_traced_once(shared: Path) -> Iterator[None]:
    """See `exports`."""
    if "torch" not in sys.modules:  # then nothing that was collected exports
        yield
        return
    from exports import tracing_once

    with tracing_once(shared / "traced"):
        yield


@pytest.fixture(scope="session", autouse=True)
def few_images_of_another_kind() -> Iterator[None]:
    """Drawing the 10,000 that an audit's attacker without the data trains with would take longer than the audit."""
    if "torch" not in sys.modules:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfumato.lab.audit.setting._OTHER_IMAGES", 2_000)
        yield


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """(obfuscator, classifier), made for each other."""
    from tiny import save_bundles

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
    from tiny import save_bundles

    return save_bundles(tmp_path_factory.mktemp("gated"), threshold=0.9)[0]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection can be made."""

    def refuse(self: socket.socket, address: object) -> None:
        raise OSError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


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
def own_caches(shared: Path) -> Iterator[Path]:
    """Decoded images go to a folder of this test run, ours and those of `datasets`."""
    import datasets

    folder = shared / "caches"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(folder / "sfumato"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield folder


@pytest.fixture(scope="session")
def image_folder(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """16 images to train with and 8 to test, in four class folders."""
    from synthetic import save_folder

    return made_once("images", save_folder)


@pytest.fixture(scope="session")
def trained(
    made_once: Callable[[str, Callable[[Path], object]], Path], own_caches: Path, image_folder: Path
) -> tuple[Bundle, Bundle]:
    """(classifier, obfuscator) as `sfumato.lab.training.train` writes them, after few epochs on few images."""
    common = {
        "data": {"source": str(image_folder), "crop_padding": 1},
        # Enough steps for the running statistics to become those of images: fresh ones flatten every output.
        "training": {"epochs": 8, "batch_size": 4, "schedule": "constant", "validate_every": 8},
    }

    def make(runs: Path) -> None:
        from sfumato.lab.training import train
        from sfumato.lab.training.recipe import parse_recipe

        classifier = train(
            parse_recipe({"kind": "classifier", "name": "small", "architecture": "resnet20", **common}),
            runs / "classifier",
            accelerator="cpu",
        )
        train(
            parse_recipe({"kind": "obfuscator", "name": "small-o", "classifier": str(classifier.path), **common}),
            runs / "obfuscator",
            accelerator="cpu",
        )

    runs = made_once("runs", make)
    return Bundle.load(runs / "classifier" / "bundle"), Bundle.load(runs / "obfuscator" / "bundle")

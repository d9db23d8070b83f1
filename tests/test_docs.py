"""The commands of the pages for users are run, one after the other, as they stand there.

Only what makes them slow is changed: training takes one epoch, and a server that is started in the background runs in
this process, on a free port.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import brought
from file_endpoint import FileEndpoint
from recording import recording
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.cli import commands  # noqa: F401  (registers them)
from sfumato.cli.app import app
from sfumato.cloud import Catalogue, catalogue_of, running
from sfumato.lab.export.onnx import export_onnx
from synthetic import CLASSES, pixels, png

DOCS = Path(__file__).parents[1] / "docs"
FEW = ["--set", "training.epochs=1", "--set", "training.validate_every=1", "--accelerator", "cpu"]
FEWER = ["--set", "black_box.images_seen=100", "--set", "black_box.surrogates=['resnet-local']"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_caches")]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """What a new user has lying about."""
    monkeypatch.chdir(tmp_path)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, str(8 << 30))  # or `train` would start this process again
    lines = ["path,label"]
    for index, image in enumerate(pixels(60, size=(32, 40))):
        file = Path("photos") / CLASSES[index % 4] / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
        lines.append(f"{file},{CLASSES[index % 4]}")
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "mynet.py").write_text("import brought\n\ndef network():\n    return brought.small()\n")
    brought.save_transformers(tmp_path / "vit", "vit", size=32)
    return tmp_path


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run_all(lines: list[str], background: contextlib.ExitStack, url: str = "http://127.0.0.1:8080") -> None:
    for line in lines:
        assert line.startswith("sfumato "), line
        words = shlex.split(line.replace("http://127.0.0.1:8080", url))[1:]
        if words[0] == "serve":
            assert words[-1] == "&"
            url = background.enter_context(running(models(words)))
            continue
        more = FEW if words[0] == "train" else []
        done = CliRunner().invoke(app, [*words, *more, *(FEWER if "--black-box" in words else [])])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"


def models(words: list[str]) -> Catalogue:
    """What `sfumato serve` serves."""
    options = dict(itertools.pairwise(words))
    paths = [Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), words[1:])]
    folder, decoder = (Path(options[key]) if key in options else None for key in ("--models", "--decoder"))
    return catalogue_of(paths, folder, decoder=decoder)


def test_bring_your_classifier(desk):
    brought.save_program(desk / "net.pt2", brought.small())
    export_onnx(brought.small(), desk / "net.onnx", torch.rand(2, 3, 32, 32), input_name="x", output_name="y")
    with contextlib.ExitStack() as background:
        run_all(commands_of("classifier.md"), background)
    sys.modules.pop("mynet", None)
    assert {path.name for path in (desk / "bundles").iterdir()} == {"vit", "mynet", "program", "onnx"}


def test_bring_your_data(desk):
    stated = "--size 32x32 --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --labels labels.txt"
    prepare = f"sfumato import mynet:network -o bundle {stated}"
    with contextlib.ExitStack() as background:
        run_all([prepare, *commands_of("data.md")], background)
    sys.modules.pop("mynet", None)
    assert (desk / "a" / "run" / "bundle" / "bundle.json").is_file()


def test_endpoints_that_take_files(desk):
    classifier = Bundle.load(shipped.classifier_bundle())
    endpoint = FileEndpoint.of(classifier, file_of=lambda body: body["inputs"])
    with contextlib.ExitStack() as background:
        server = background.enter_context(recording(classify=endpoint))
        run_all(commands_of("files.md"), background, server.url)
    kinds = {kind for _, kind, _ in endpoint.files}
    assert len(endpoint.files) >= 8 and kinds <= {"image/png", "image/webp", "application/json"}


def test_classifiers_that_an_obfuscator_was_not_made_for(desk):
    with contextlib.ExitStack() as background:
        run_all(commands_of("transfer.md"), background)
    sys.modules.pop("mynet", None)
    moved, before = (Bundle.load(desk / "mine" / run / "bundle") for run in ("moved", "run"))
    assert moved.code_fingerprint == before.code_fingerprint is not None
    assert moved.classifier_fingerprint != before.classifier_fingerprint


def test_a_classifier_of_which_you_only_get_answers(desk):
    with contextlib.ExitStack() as background:
        run_all(commands_of("black-box.md"), background)
    assert 0 < Bundle.load(desk / "mine" / "unseen" / "bundle").figures.queries <= 200


def test_bring_your_server(desk):
    shutil.copytree(shipped.classifier_bundle(), desk / "bundles" / "classifier")
    shutil.copytree(shipped.obfuscator_bundle(), desk / "bundles" / "obfuscator")
    shutil.copytree(shipped.classifier_bundle(), desk / "models" / "cifar10-resnet20" / "1")
    (desk / "models" / "cifar10-resnet20" / "2").mkdir()
    shutil.copy(shipped.classifier_bundle() / "model.onnx", desk / "models" / "cifar10-resnet20" / "2")
    with contextlib.ExitStack() as background:
        run_all(commands_of("server.md"), background)


def test_as_large_as_it_has_to_be(desk):
    """Replicas are one server here; `tests/cloud` has them on Ray."""
    shutil.copytree(shipped.classifier_bundle(), desk / "bundles" / "classifier")
    shutil.copytree(shipped.obfuscator_bundle(), desk / "bundles" / "obfuscator")
    with contextlib.ExitStack() as background:
        run_all(commands_of("scale.md"), background)
    assert len(list((desk / "protected").rglob("*.obfuscated.png"))) == 60
    assert 0 < len(list((desk / "second").rglob("*.obfuscated.png"))) < 60


def test_every_page_has_commands_and_the_pages_are_linked():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for page in ("classifier.md", "data.md", "files.md", "transfer.md", "black-box.md", "server.md", "scale.md"):
        assert commands_of(page) and f"docs/{page}" in readme

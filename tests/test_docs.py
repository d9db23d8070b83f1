"""The code blocks of the documentation are run, page by page, as they stand there, and so are the examples.

Only what makes them slow is changed: training takes one epoch, an audit its smallest budget, and a server that is
started in the background runs in this process, on a free port. Blocks that cannot be run say why:
`<!-- not run: reason -->`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import brought
from file_endpoint import FileEndpoint
from hub_fake import TOKEN, as_the_hub
from recording import recording
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.cli import commands  # noqa: F401  (registers them)
from sfumato.cli.app import app
from sfumato.cli.configuration import CONFIGURED
from sfumato.cli.options import bundle_place
from sfumato.cloud import catalogue_of, running
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.training.recipe import parse_recipe
from synthetic import CLASSES, pixels, png

ROOT = Path(__file__).parents[1]
LANGUAGES = {"sh", "python", "toml"}
URL = "http://127.0.0.1:8080"
EPOCH = ["--set", "training.epochs=1", "--set", "training.validate_every=1", "--accelerator", "cpu"]
SURROGATES = ["--set", "black_box.images_seen=100", "--set", "black_box.surrogates=['resnet-local']"]
LEAST = ["--budget", "attributes", "--budget-scale", "0.05"]
SHARED = ("sfumato init --classifier vit/ --data photos/ -o mine", "sfumato train mine/recipe.toml -o mine/run")
"""Lines with which several pages begin: run once, and what they made is laid before the other pages."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and why it is not run."""

    language: str
    text: str
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    pattern = r"(?:<!-- not run: ([^\n]+) -->\n)?^( *)```([^\n]*)\n(.*?)^\2```$"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(language.strip(), text, reason or None) for reason, _, language, text in found]


PAGES = {
    str(page.relative_to(ROOT)): blocks_of(page)
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
}
RUN = {
    name: [each for each in found if each.language in LANGUAGES and not each.reason] for name, found in PAGES.items()
}


def test_every_block_is_run_or_says_why_not():
    assert sum(map(len, RUN.values())) > 30, "the pages are read at all"
    for name, blocks in PAGES.items():
        for block in blocks:
            assert block.language in LANGUAGES | {"text", "csv"} or block.reason, f"{name}: {block}"


def test_links_of_pages_outside_of_the_site_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "examples" / "README.md", ROOT / "deploy" / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_pages_that_the_source_names_are_there():
    """In messages, help, recipes and targets of make."""
    files = [ROOT / "Makefile", *(ROOT / "recipes").glob("*.toml")]
    files += [file for folder in ("src", "benchmarks", "reproduction") for file in (ROOT / folder).rglob("*.py")]
    named = {
        (str(file.relative_to(ROOT)), page)
        for file in files
        for page in re.findall(r"\bdocs/[\w/.-]+\.(?:md|png|svg)\b", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert {pair for pair in named if not (ROOT / pair[1]).exists()} == set()


@pytest.fixture(scope="session")
def models_of_users(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Classifiers as users have them, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("models")

    def onnx() -> None:
        export_onnx(brought.small(), folder / "net.onnx", torch.rand(2, 3, 32, 32), input_name="x", output_name="y")

    makers = {
        "vit": lambda: brought.save_transformers(folder / "vit", "vit", size=32),
        "net.pt2": lambda: brought.save_program(folder / "net.pt2", brought.small()),
        "net.onnx": onnx,
    }

    def given(name: str) -> Path:
        if not (folder / name).exists():
            makers[name]()
        return folder / name

    return given


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the lines made with which several pages begin."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def desk(tmp_path, monkeypatch, own_caches) -> Iterator[Path]:
    """What a new user has lying about: images in four classes, shipped bundles, a network in Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, str(8 << 30))  # or `train` would start this process again
    lines = ["path,label"]
    for index, image in enumerate(pixels(60, size=(32, 40))):
        file = Path("photos") / CLASSES[index % 4] / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
        lines.append(f"{file},{CLASSES[index % 4]}")
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    paths = [line.split(",")[0] for line in lines[1:]]
    several = [",".join(("path", *CLASSES)), *(f"{path},1,{i % 2},0,{i % 3 // 2}" for i, path in enumerate(paths))]
    (tmp_path / "attributes.csv").write_text("\n".join(several) + "\n")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    network = "import brought\n\ndef network():\n    return brought.small()\n\n"
    (tmp_path / "mynet.py").write_text(f"{network}def thousand():\n    return brought.small(1000)\n")
    page = (ROOT / "docs" / "how-to" / "other-classifiers.md").read_text(encoding="utf-8")
    (tmp_path / "fruit.toml").write_text(re.search(r"```text\n(apple = .*?)```", page, re.DOTALL)[1])
    shutil.copytree(shipped.classifier_bundle(), tmp_path / "bundles" / "classifier")
    shutil.copytree(shipped.obfuscator_bundle(), tmp_path / "bundles" / "obfuscator")
    versions = tmp_path / "models" / "cifar10-resnet20"
    shutil.copytree(shipped.classifier_bundle(), versions / "1")
    (versions / "2").mkdir()
    shutil.copy(shipped.classifier_bundle() / "model.onnx", versions / "2")
    (tmp_path / "results").symlink_to(ROOT / "results")
    yield tmp_path
    sys.modules.pop("mynet", None)


class Reader:
    """Does what a page says, block by block."""

    def __init__(self, background: contextlib.ExitStack, made: Path, url: str = URL) -> None:
        self._background, self._made, self._url = background, made, url
        self._names: dict[str, object] = {}
        self._settings = ""

    def run(self, block: Block) -> None:
        if block.language == "toml":
            raw = tomllib.loads(block.text)
            if raw.keys() <= set(CONFIGURED):
                self._settings = block.text
                return
            parse_recipe(raw if "kind" in raw else {"kind": "sketch", "name": "x", "classifier": "c", **raw})
        elif block.language == "python":
            exec(compile(block.text.replace(URL, self._url), "<block>", "exec"), self._names)
        else:
            for line in block.text.replace("\\\n", "").splitlines():
                self._command(line)

    def _command(self, line: str) -> None:
        words = shlex.split(line.replace(URL, self._url))
        assert words[0] == "sfumato", line
        if "--config" in words:
            file = Path(words[words.index("--config") + 1])
            file.write_text(self._settings.replace(URL, self._url), encoding="utf-8")
        if words[1] == "serve" and "--show-config" not in words:
            assert words[-1] == "&", line
            self._url = self._background.enter_context(running(served(words)))
            return
        made = self._made / str(SHARED.index(line)) if line in SHARED else None
        if made and made.exists():
            shutil.copytree(made, "mine", dirs_exist_ok=True)
            return
        done = CliRunner().invoke(app, [*words[1:], *made_short(words)])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        if made:
            shutil.copytree("mine", made)


def made_short(words: list[str]) -> list[str]:
    """What is added to a command; the last of two options counts."""
    if words[1] == "train":
        return [*EPOCH, *(SURROGATES if "--black-box" in words else [])]
    return LEAST if words[1] == "audit" and "--attributes-table" not in words else []


def served(words: list[str]):
    """What `sfumato serve` serves; replicas are one server here, and `tests/cloud` has several."""
    options = dict(itertools.pairwise(words))
    paths = [bundle_place(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), words[2:])]
    folder, decoder = (Path(options[key]) if key in options else None for key in ("--models", "--decoder"))
    return catalogue_of(paths, folder, decoder=decoder)


def left_by(name: str, desk: Path) -> None:
    """What a page promises lies there afterwards."""
    if name == "docs/how-to/classifier.md":
        assert {path.name for path in (desk / "bundles").iterdir()} >= {"vit", "mynet", "program", "onnx"}
    if name == "docs/how-to/other-classifiers.md":
        moved, before = (Bundle.load(desk / "mine" / run / "bundle") for run in ("moved", "run"))
        assert moved.code_fingerprint == before.code_fingerprint is not None
        assert moved.classifier_fingerprint != before.classifier_fingerprint
        fruit = Bundle.load(desk / "fruit" / "run" / "bundle")
        assert (len(fruit.labels), fruit.outputs) == (4, 1000)
    if name == "docs/how-to/black-box.md":
        assert 0 < Bundle.load(desk / "mine" / "unseen" / "bundle").figures.queries <= 200
    if name == "docs/how-to/hub.md":
        assert {path.name for path in (desk / "pushed").iterdir()} >= {"README.md", "bundle.json", "obfuscator.onnx"}
    if name == "docs/how-to/protect.md":
        assert len(list((desk / "protected").rglob("*.obfuscated.png"))) == 60
        assert 0 < len(list((desk / "second").rglob("*.obfuscated.png"))) < 60


SCRIPTS = [file for file in sorted((ROOT / "examples").glob("*.py")) if "until Ctrl-C" not in file.read_text("utf-8")]
"""Those that run without arguments, and end; `test_examples.py` has the others."""
TRAINING_PAGES = {"get-started", "other-classifiers", "train", "black-box", "classifier"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.long] * (Path(name).stem in TRAINING_PAGES),
        )
        for name, blocks in RUN.items()
        if blocks
    ],
)
def test_the_blocks_of_a_page_run(name, desk, made, models_of_users, monkeypatch):
    text = "\n".join(block.text for block in RUN[name])
    for model in ("vit", "net.pt2", "net.onnx"):
        if model in text:
            (desk / model).symlink_to(models_of_users(model))
    with contextlib.ExitStack() as background:
        url = URL
        if name == "docs/how-to/image-file-endpoints.md":
            classifier = Bundle.load(shipped.classifier_bundle())
            endpoint = FileEndpoint.of(classifier, file_of=lambda body: body["inputs"])
            url = background.enter_context(recording(classify=endpoint)).url
        if name == "docs/how-to/hub.md":
            background.enter_context(as_the_hub(desk / "cache"))
            monkeypatch.setenv("HF_TOKEN", TOKEN)
        reader = Reader(background, made, url)
        for block in RUN[name]:
            reader.run(block)
        if url != URL:
            kinds = {kind for _, kind, _ in endpoint.files}
            assert len(endpoint.files) >= 8 and kinds <= {"image/png", "image/webp", "application/json"}
    left_by(name, desk)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_an_example_runs(script, tmp_path, own_caches, monkeypatch, capsys):
    def in_this_process(command: list[str], *, check: bool) -> None:
        assert command[:3] == [sys.executable, "-m", "sfumato"] and check
        done = CliRunner().invoke(app, command[3:])
        assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(subprocess, "run", in_this_process)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out

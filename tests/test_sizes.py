"""Larger images from end to end: photographs that a well-known package ships, at 128 and at 224 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from sfumato.artifacts.bundle import DECODER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.cloud import ServedModel, running

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_caches")]
PHOTOGRAPHS = {"astronaut": skimage.data.astronaut, "cat": skimage.data.chelsea, "coffee": skimage.data.coffee}


def save_photographs(folder: Path) -> None:
    """Windows of each photograph, of different sizes and as JPEG, as cameras leave them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for name, photograph in PHOTOGRAPHS.items():
            whole = photograph()
            for index in range(count):
                height, width = random.integers(230, 290, 2)
                top, left = (
                    random.integers(0, side - part + 1)
                    for side, part in zip(whole.shape[:2], (height, width), strict=True)
                )
                file = folder / split / name / f"{index}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(whole[top : top + height, left : left + width]).save(file, quality=95)


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, f"{words}: {done.output}"
    return done


def write_recipe(path: Path, kind: str, size: int, more: str) -> Path:
    path.write_text(
        f'kind = "{kind}"\nname = "{path.stem}"\n{more}\n[data]\nsource = "photos"\nsize = [{size}, {size}]\n'
        '[training]\nepochs = 1\nbatch_size = 6\nschedule = "constant"\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(("size", "kind"), [(128, "obfuscator"), (224, "sketch")])
def test_every_command_works_at_the_size(size: int, kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, str(8 << 30))
    save_photographs(Path("photos"))
    run("train", write_recipe(tmp_path / "net.toml", "classifier", size, 'architecture = "resnet18-imagenet"'))
    more = 'classifier = "runs/net/bundle"' + ("\nheld_out_images = 3" if kind == "sketch" else "")
    run("train", write_recipe(tmp_path / "mine.toml", kind, size, more))
    mine, net = Path("runs/mine/bundle"), Path("runs/net/bundle")
    bundle = Bundle.load(mine)
    assert OnnxFunction(bundle.file(OBFUSCATOR_ONNX)).input_shape[2:] == (size, size)

    photo = "photos/test/cat/0.jpg"
    sent = ["--always-send"] if bundle.gate else []
    run("protect", photo, "--bundle", mine, "-o", "out", *sent)
    assert list(Path("out").iterdir())
    decoder = mine if kind == "sketch" else None
    with running(
        [ServedModel(net), *([ServedModel(net, name="net-split", decoder=decoder)] if decoder else [])]
    ) as url:
        ways = [[], ["--split"]] if DECODER_ONNX in bundle.files else [[]]
        for more_words in ways:
            options = ["--bundle", mine, "--server", url, "--json", *more_words]
            answer = json.loads(run("classify", photo, *options, *sent).stdout)
            assert answer["predictions"][0]["label"] in bundle.labels
        run("doctor", mine, "--classifier", net, "--server", url)
    run("evaluate", mine, "--classifier", net, "--data", "photos", "-o", "mine.json")
    run("evaluate", mine, "--transfer", "--classifier", net, "--data", "photos")
    run("evaluate", "--cost", "--size", f"{size}x{size}")

    of = ["--classifier", net, "--data", "photos", "--images", 10]
    run("audit", mine, *of, "--budget", "attributes", "--budget-scale", 0.01, "-o", "audit")
    found = json.loads(Path("audit/audit.json").read_text())
    assert (found["target"]["height"], found["target"]["width"]) == (size, size)
    assert Path("audit/panel.png").is_file() and found["best"]["mse"] > 0

"""What a newcomer types in the first hour, mistakes included: every step says what to do next."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import commands
import tiny
from sfumato.artifacts.records import Figures
from sfumato.cli.app import run
from sfumato.cli.conclusion import audit_command, init_command, verdict
from sfumato.cli.output import needs_extra
from sfumato.cloud import ServedModel, running
from sfumato.errors import SfumatoError
from synthetic import CLASSES, save_folder

NETWORK = '''
import torch
from torch import nn

COLOURS = torch.tensor([[200, 60, 60], [220, 210, 80], [90, 20, 60], [110, 80, 40]]) / 255.0


class Nearest(nn.Module):
    """The class whose colour is nearest to the image's mean colour."""

    def forward(self, x):
        return -30 * (x.mean(dim=(2, 3))[:, None] - COLOURS.to(x)).square().sum(dim=2)


def make():
    return Nearest()
'''
UNROUNDED = re.compile(r"\d\.\d{7,}")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, own_caches: Path) -> Iterator[Path]:
    """A network in Python, labels, photos of two splits, and nothing else."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "mynet.py").write_text(NETWORK)
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    save_folder(folder / "my photos", train=64, test=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
            patch.setenv(name, str(8 << 30))  # or `train` would start this process again
        yield folder
    sys.modules.pop("mynet", None)


def typed(desk: Path, line: str, code: int = 0) -> str:
    """Type a command, and return all that it says; no number is unrounded."""
    done = commands.sfumato(*shlex.split(line)[1:], code=code, cwd=desk)
    said = done.stdout + done.stderr
    assert not UNROUNDED.search(said), said
    return said


def following(said: str) -> str:
    """Return the command that is advised at the end."""
    (line,) = re.findall(r"^next: (sfumato .*)$", said, re.MULTILINE)
    return line


def test_from_a_network_to_a_classified_photo(desk: Path):
    said = typed(desk, "sfumato import mynet:make -o net --size 32x32 --mean 0,0,0 --std 1,1,1 --labels labels.txt")
    assert "its name at a server: mynet" in said
    said = typed(desk, following(said).replace("IMAGES", "'my photos'").replace("-o protected", "-o mine"))
    train, evaluate, audit, *_ = (line.strip() for line in said.split("next:\n")[1].splitlines())
    said = typed(desk, f"{train} --set training.epochs=2 --accelerator cpu")
    assert "\nverdict: " in said and following(said).split(" --classifier")[0] == audit.split(" --classifier")[0]
    said = typed(desk, evaluate)
    assert "accuracy_plain: 100.00 %" in said
    assert re.search(
        r"^verdict: (good|usable|weak|of no use).*accuracy (on payloads|with the gate) is", said, re.MULTILINE
    )
    assert following(said) == audit
    said = typed(desk, "sfumato evaluate net --data 'my photos'")
    assert "verdict: the classifier predicts 100.00 % of 32 plain test images correctly; guessing gives 25.00 %" in said
    assert following(said).startswith("sfumato init --classifier net --data 'my photos'")
    with running([ServedModel(desk / "net")]) as url:
        said = typed(desk, f"sfumato classify 'my photos/test/apple/00.png' --server {url} --always-send", code=1)
        assert "this server has mynet" in said and "'cifar10-resnet20' was asked for" in said and "--bundle" in said
        right = f"sfumato classify 'my photos/test/apple/00.png' --server {url} --bundle mine/run/bundle --always-send"
        assert "0 of 1 handled on-device; 1 sent, obfuscated" in typed(desk, right)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--mean 123.675,116.28,103.53 --std 58.395,57.12,57.375", "--mean 0.485,0.456,0.406"),
        ("--mean 0.485,0.456,0.406 --std 58.395,57.12,57.375", "--std 0.229,0.224,0.225"),
        ("--mean 0.485,0.456,0.406 --std 0.229,0,0.225", "at least 0.001"),
        ("--mean=-300,0,0 --std 1,1,1", "at least 0 and at most 1"),
    ],
)
def test_numbers_for_other_images_are_refused(desk: Path, options: str, said: str):
    assert said in typed(desk, f"sfumato import mynet:make -o net-2 --size 32x32 {options}", code=1)
    assert not (desk / "net-2").exists()


def test_an_onnx_file_is_never_advised_where_it_ends(desk: Path):
    """Training needs gradients."""
    said = typed(desk, "sfumato import mynet.pth -o net-3", code=1)
    assert ".pt2" in said and ".onnx" not in said
    tiny.save_classifier(desk / "served.onnx")
    said = typed(desk, "sfumato import served.onnx -o served --mean 0,0,0 --std 1,1,1")
    assert "no obfuscator can be trained for it" in said and "package.module:callable" in said
    assert following(said) == "sfumato serve served"


def test_a_training_half_that_is_broken_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "torchlike.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    (tmp_path / "halflike.py").write_text("raise ImportError('undefined symbol: iJIT')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, said in (
        ("torchlike", r"torchlike is installed, but .*libcudart.*--force-reinstall torchlike"),
        ("halflike", r"halflike is installed, but .*iJIT"),
        ("nothere", r"nothere is not installed; run: pip install 'sfumato\[train\]'"),
    ):
        with pytest.raises(SfumatoError, match=said), needs_extra("train"):
            import_module(name)
    with pytest.raises(FileNotFoundError), needs_extra("train"):
        (tmp_path / "nowhere").read_bytes()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("the hub says no\nat all"), "error: the hub says no at all\n"),
        (FileNotFoundError(2, "No such file or directory", "x.toml"), "error: x.toml: No such file or directory\n"),
        (OSError(), "error: OSError\n"),
    ],
)
def test_an_error_of_the_system_says_what_it_is(capsys, error: OSError, said: str):
    def failing() -> None:
        raise error

    with pytest.raises(SystemExit):
        run(failing)  # type: ignore[arg-type]
    assert capsys.readouterr().err == said


def figures(plain: float, obfuscated: float, images: int = 10_000, **more: float) -> Figures:
    return Figures.from_json(
        {"accuracy_plain": plain, "accuracy_obfuscated": obfuscated, "test_images": images, **more}
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (figures(0.9138, 0.9034, accuracy_gated=0.9034), "good: accuracy with the gate is 90.34 %, 1.0 points below"),
        (figures(0.9138, 0.85), "usable, at a cost: accuracy on payloads is 85.00 %, 6.4 points below"),
        (figures(0.9138, 0.7261), "weak: accuracy on payloads is 72.61 %"),
        (figures(0.9138, 0.2), "of no use as it is: accuracy on payloads is 20.00 %"),
        (figures(0.12, 0.11), "the classifier itself is of no use here"),
        (figures(0.9, 0.86, images=50), "which 50 images cannot tell from chance"),
        (Figures(accuracy_plain=0.9138, test_images=10_000), "predicts 91.38 % of 10,000 plain test images correctly"),
    ],
)
def test_verdicts(found: Figures, said: str):
    assert said in str(verdict(found, classes=10))
    assert verdict(Figures(), classes=10) is None


def test_next_commands_read_the_images_that_this_one_could_read():
    assert audit_command(Path("run"), None, "a.csv", allow_outside=True).endswith(" --data a.csv --allow-outside")
    assert init_command(Path("net"), "a.csv", allow_outside=True).endswith(" --data a.csv --allow-outside -o protected")
    assert "outside" not in audit_command(Path("run"), Path("net"), "a", allow_outside=False)


def test_the_estimate_of_an_audit_has_one_unit_of_time(capsys, monkeypatch):
    import torch

    from sfumato.cli.audit import _announce
    from sfumato.lab.audit.budget import BUDGETS
    from sfumato.lab.runs.speed import Speed

    monkeypatch.setattr(Speed, "audit_s", lambda *given, **more: 7000.0)
    images = SimpleNamespace(images=torch.zeros(10, 3, 8, 8))
    for plan in BUDGETS.values():
        sized = type("Sized", (), {"images": images.images, "__len__": lambda self: 10})()
        setting = SimpleNamespace(train=sized, test=sized, public=sized, target=SimpleNamespace(name="mine"))
        monkeypatch.setattr("sfumato.cli.audit._prior_needed", lambda *given: None)
        _announce(setting, plan, torch.device("cpu"), columns=False)  # type: ignore[arg-type]
        said = capsys.readouterr().out
        assert re.findall(r"seconds|minutes|hours", said) == ["minutes"], said


def test_sigterm_ends_a_background_job_as_ctrl_c_does(tmp_path: Path):
    """A shell starts it with SIGINT ignored."""
    words = ["classify", "--watch", str(tmp_path), "--server", "http://127.0.0.1:9", "--timeout", "0.1"]
    job = f"{shlex.join([sys.executable, '-m', 'sfumato', *words])} & echo $!; wait $!"
    with subprocess.Popen(["sh", "-c", job], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        try:
            assert "watching" in shell.stdout.readline()
            os.kill(pid, signal.SIGINT)
            time.sleep(0.2)
            assert shell.poll() is None, "SIGINT is ignored"
        finally:
            os.kill(pid, signal.SIGTERM)
        assert "0 handled on-device; 0 sent, obfuscated" in shell.stdout.read()

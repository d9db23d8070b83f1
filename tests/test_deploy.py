"""The manifests for KServe: what they promise, and that KServe's own SDK takes them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sfumato import __version__
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app

GRACE_S = 10
"""For the requests under way, by `sfumato serve` itself."""
ROOT = Path(__file__).parents[1]
KSERVE = ROOT / "deploy" / "kserve"
SDK = ROOT / ".interop" / "kserve" / "bin" / "python"
MANIFESTS = [KSERVE / "runtime.yaml", KSERVE / "service.yaml"]


def read(name: str) -> Any:
    return yaml.safe_load((KSERVE / name).read_text(encoding="utf-8"))


@pytest.fixture
def container() -> Any:
    (only,) = read("runtime.yaml")["spec"]["containers"]
    return only


def misfits(*files: Path) -> list[str]:
    command = [str(SDK), str(ROOT / "tests" / "kserve_models.py"), *map(str, files)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=clean)
    return done.stdout.splitlines()


@pytest.mark.skipif(not SDK.is_file(), reason="needs KServe's SDK: make .interop/kserve/.installed")
def test_kserves_sdk_takes_the_manifests(tmp_path: Path) -> None:
    assert misfits(*MANIFESTS) == []
    wrong = tmp_path / "wrong.yaml"
    text = (KSERVE / "runtime.yaml").read_text(encoding="utf-8")
    wrong.write_text(text.replace("readOnlyRootFilesystem: true", 'readOnlyRootFileSystem: "true"'), encoding="utf-8")
    assert any("readOnlyRootFileSystem: no such field" in misfit for misfit in misfits(wrong))


def test_it_runs_what_there_is(container: Any) -> None:
    """Every argument is an option of `sfumato serve`, in the manifest and in the image."""
    said = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    (image,) = re.findall(r"^CMD (\[.*\])$", (KSERVE / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in (container["args"], yaml.safe_load(image)):
        assert command[:2] == ["serve", "/mnt/models"]
        options = [word.partition("=")[0] for word in command if word.startswith("--")]
        assert {"--host", "--port"} <= set(options)
        assert all(re.search(rf"{option}\b", said) for option in options), options


def test_it_asks_for_little_and_gives_nothing_away(container: Any) -> None:
    rules = container["securityContext"]
    assert rules["runAsNonRoot"] and rules["runAsUser"] and rules["readOnlyRootFilesystem"]
    assert rules["capabilities"] == {"drop": ["ALL"]} and not rules["allowPrivilegeEscalation"]
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    (volume,) = read("runtime.yaml")["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume == {"name": mount["name"], "secret": {"secretName": "sfumato-token"}} and mount["readOnly"]
    assert f"--token-file={mount['mountPath']}/token" in container["args"]
    assert read("service.yaml")["spec"]["predictor"]["automountServiceAccountToken"] is False


def test_health_is_asked_where_it_is_told_and_stopping_has_time(container: Any) -> None:
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": container["ports"][0]["containerPort"]}
    predictor = read("service.yaml")["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] > 2 * GRACE_S
    assert predictor["model"]["runtime"] == read("runtime.yaml")["metadata"]["name"]


def test_the_image_is_of_this_version_and_has_what_it_is_built_from(container: Any) -> None:
    docker = (KSERVE / "Dockerfile").read_text(encoding="utf-8")
    assert container["image"] in docker and container["image"].endswith(f":{__version__}")
    allowed = {
        line[1:]
        for line in (KSERVE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.MULTILINE)
    sources = {source for line in copied for source in shlex.split(line)}
    assert sources == allowed and all((ROOT / source).exists() for source in sources)

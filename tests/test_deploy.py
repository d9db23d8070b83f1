"""What lies in `deploy/`: what it promises, and that schemas, systemd and KServe's own SDK take it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from sfumato import __version__
from sfumato.cli import commands  # noqa: F401  (the commands register themselves)
from sfumato.cli.app import app
from sfumato.cli.configuration import CONFIGURED, variable_of
from sfumato.cloud.metrics import Metrics

GRACE_S = 10
"""For the requests under way, by `sfumato serve` itself."""
ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KSERVE = DEPLOY / "kserve"
DOCKERFILE = DEPLOY / "Dockerfile"
SDK = ROOT / ".interop" / "kserve" / "bin" / "python"
UNITS = ("sfumato-serve.service", "sfumato-device.service")
MANIFESTS = [KSERVE / "runtime.yaml", KSERVE / "service.yaml"]


def read(name: str) -> Any:
    """A file below `deploy/`."""
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def compose() -> Any:
    return read("compose/compose.yaml")


def deployed() -> Any:
    """The container of the deployment without KServe."""
    (only,) = read("kubernetes/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    return only


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a systemd unit; each may be given several times."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / name).read_text(encoding="utf-8").splitlines():
        key, given, value = line.partition("=")
        if given and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def container() -> Any:
    (only,) = read("kserve/runtime.yaml")["spec"]["containers"]
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
    """Every argument is an option of the command, in the manifests, the images and the units."""
    images = re.findall(r"^CMD (\[.*\])$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    device, server = map(yaml.safe_load, images)
    units = [shlex.split(unit(name)["ExecStart"][0])[1:] for name in UNITS]
    for command in (container["args"], server):
        assert command[:2] == ["serve", "/mnt/models"]
        assert {"--host", "--port"} <= {word.partition("=")[0] for word in command}
    for name, *command in (container["args"], server, device, deployed()["args"], *units):
        said = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        options = [word.partition("=")[0] for word in command if word.startswith("--")]
        assert options and all(re.search(rf"{option}\b", said) for option in options), options


def test_it_asks_for_little_and_gives_nothing_away(container: Any) -> None:
    for each in (container, deployed()):
        rules = each["securityContext"]
        assert rules["runAsNonRoot"] and rules["runAsUser"] and rules["readOnlyRootFilesystem"]
        assert rules["capabilities"] == {"drop": ["ALL"]} and not rules["allowPrivilegeEscalation"]
        assert set(each["resources"]["limits"]) == {"cpu", "memory"}
    (volume,) = read("kserve/runtime.yaml")["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume == {"name": mount["name"], "secret": {"secretName": "sfumato-token"}} and mount["readOnly"]
    assert f"--token-file={mount['mountPath']}/token" in container["args"]
    assert read("kserve/service.yaml")["spec"]["predictor"]["automountServiceAccountToken"] is False


def test_health_is_asked_where_it_is_told_and_stopping_has_time(container: Any) -> None:
    for probe, path in (("readinessProbe", "/v2/health/ready"), ("livenessProbe", "/v2/health/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": container["ports"][0]["containerPort"]}
    predictor = read("kserve/service.yaml")["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] > 2 * GRACE_S
    assert predictor["model"]["runtime"] == read("kserve/runtime.yaml")["metadata"]["name"]


def test_the_image_is_of_this_version_and_has_what_it_is_built_from(container: Any) -> None:
    docker = DOCKERFILE.read_text(encoding="utf-8")
    assert container["image"] in docker and container["image"].endswith(f":{__version__}")
    assert deployed()["image"] == compose()["services"]["server"]["image"] == container["image"]
    for name in ("kserve", "kubernetes"):
        (image,) = read(f"{name}/kustomization.yaml")["images"]
        assert f"{image['name']}:{image['newTag']}" == container["image"]
    allowed = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.MULTILINE)
    sources = {source for line in copied for source in shlex.split(line)}
    assert sources == allowed and all((ROOT / source).exists() for source in sources)


def settings_of(command: str) -> set[str]:
    return {variable_of(command, param) for param in get_command(app).commands[command].params}  # type: ignore[attr-defined]


def test_variables_and_files_hold_settings_that_there_are(tmp_path: Path) -> None:
    variables = set(compose()["services"]["server"]["environment"])
    for name in UNITS:
        variables |= {pair.partition("=")[0] for line in unit(name).get("Environment", []) for pair in line.split()}
    variables |= set(re.findall(r"SFUMATO_\w+", DOCKERFILE.read_text(encoding="utf-8"))) - {"SFUMATO_TOKEN"}
    assert variables <= settings_of("serve") | settings_of("classify") and len(variables) > 5
    for file in (DEPLOY / "systemd" / "sfumato.toml", DEPLOY / "kubernetes" / "sfumato.toml"):
        for command in tomllib.loads(file.read_text(encoding="utf-8")):
            done = CliRunner().invoke(app, [command, "--config", str(file), "--show-config"])
            assert done.exit_code == 0 and f"file, {file}" in done.output, done.output
    assert CONFIGURED[0] == "serve"


def test_the_deployment_mounts_what_its_settings_name() -> None:
    settings = tomllib.loads((DEPLOY / "kubernetes" / "sfumato.toml").read_text(encoding="utf-8"))["serve"]
    mounts = {mount["mountPath"]: mount for mount in deployed()["volumeMounts"]}
    assert settings["model"] == ["/mnt/models"] and settings["token_file"].rpartition("/")[0] in mounts
    assert f"--config={mounts['/etc/sfumato-settings']['mountPath']}/sfumato.toml" in deployed()["args"]
    assert all(mount["readOnly"] for mount in mounts.values())
    pod = read("kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in mounts.values()}
    assert settings["port"] == deployed()["ports"][0]["containerPort"]
    assert pod["terminationGracePeriodSeconds"] > settings["linger"] + GRACE_S
    assert pod["enableServiceLinks"] is False, "or a service's variables would be taken for settings"
    for name in ("kserve", "kubernetes"):
        assert all((DEPLOY / name / file).is_file() for file in read(f"{name}/kustomization.yaml")["resources"])


def test_the_services_write_nothing_but_volumes_and_listen_on_this_machine_alone() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert set(service["secrets"]) <= set(compose()["secrets"]), name
    (job,) = read("compose/prometheus.yaml")["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/prometheus-token"
    assert job["static_configs"] == [{"targets": ["server:8080"]}]


def check_schema(schema: str, *files: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemas_take_the_compose_file_and_the_workflows() -> None:
    pytest.importorskip("check_jsonschema")
    check_schema("vendor.compose-spec", DEPLOY / "compose" / "compose.yaml")
    check_schema("vendor.github-workflows", *(ROOT / ".github" / "workflows").glob("*.yml"))
    check_schema("vendor.github-issue-forms", *(set((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) - {ISSUES}))


ISSUES = ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(tmp_path: Path, name: str) -> None:
    text = (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace("/opt/sfumato/bin/sfumato", sys.executable), encoding="utf-8")
    command = ["systemd-analyze", "verify", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    assert unit(name)["DynamicUser"] == ["yes"] and unit(name)["ProtectSystem"] == ["strict"]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    """With the labels that they have; and every metric of the server stands on it."""
    exported = Metrics(list, lambda: 0).text().decode()
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)$", exported, re.MULTILINE))
    parts = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    names = {f"{name}{part}" for name, kind in families.items() for part in parts[kind]} - {"sfumato_created"}
    board = json.loads((DEPLOY / "compose" / "grafana" / "sfumato.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"sfumato_\w+", text)}
    assert asked and asked <= names
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert shown == {name for name in families if not name.endswith("_created")}
    labels = {label for text in expressions for label in re.findall(r"(?:by \(|, |\{)(\w+)(?==|,|\))", text)}
    assert labels <= {"model", "version", "status", "le", "instance"}
    (source,) = read("compose/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}


def test_each_step_of_a_workflow_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    found = set()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, "a job asks for what it needs beyond that"
        for job in workflow["jobs"].values():
            runs = [step["run"] for step in job["steps"] if "run" in step]
            assert all(run.startswith("make ") for run in runs), runs
            found |= {run.split()[1] for run in runs}
    assert found == {"test", "test-device", "docs", "release", "release-tag"} and found <= targets


def test_the_workflow_tests_the_pythons_that_the_package_is_for() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from release import VERSIONS
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    assert tuple(workflow["jobs"]["all"]["strategy"]["matrix"]["python"]) == VERSIONS

"""The house's rules: what may import what, and what loads when.

The wall is read off the tree: `lab/` is what needs torch, and everything else does without it.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import sfumato

SOURCE = Path(sfumato.__file__).parent
TESTS = Path(__file__).parent
LAYERS = [
    {"libraries"},
    {"data", "models"},
    {"evaluation", "attacks", "export"},
    {"classifiers"},
    {"training", "baselines"},
    {"audit"},
    {"report", "runs"},
    {"sweep", "advice"},
]
"""Of the lab, from the bottom up: a room imports rooms of its own layer and of lower ones."""


def dotted(file: Path) -> str:
    """`src/sfumato/wire/types.py` -> `sfumato.wire.types`; a package is called by its folder."""
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(file): file for file in SOURCE.rglob("*.py")}


@cache
def imports(file: Path) -> frozenset[str]:
    """What a file imports anywhere in it, in functions and for type checkers too: modules, or names in modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide where a name comes from"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def module_of(name: str) -> str:
    """The module that an imported name lies in."""
    return name if name in FILES else name.rpartition(".")[0]


GRAPH = {name: {module_of(given) for given in imports(file)} & set(FILES) - {name} for name, file in FILES.items()}


def room(module: str) -> str:
    """`sfumato.lab.audit.run` -> `lab.audit`; `sfumato.device.client` -> `device`; "" for the package itself."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["lab"] else parts[:1])


def arrows(rooms: set[str]) -> dict[str, set[str]]:
    """Which rooms each of these rooms imports."""
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for module, others in GRAPH.items():
        if room(module) in rooms:
            found[room(module)] |= {room(other) for other in others} & rooms - {room(module)}
    return found


ROOMS = {room(module) for module in FILES}
LAB = {name for name in ROOMS if name.split(".")[0] == "lab"}
OUTSIDE = ROOMS - LAB - {"", "cli", "__main__"}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_imports_are_read_at_all():
    assert "sfumato.lab.models.checkpoint" in GRAPH["sfumato.lab.training.engine"]
    assert "sfumato.device.grpc_endpoint" in GRAPH["sfumato.device.endpoints"], "an import in a function counts"
    assert {"device", "wire", "cloud", "apps", "artifacts", "errors", "progress"} == OUTSIDE
    assert set().union(*LAYERS) == {name.removeprefix("lab.") for name in LAB - {"lab"}}


def test_nothing_outside_the_lab_imports_it():
    assert {(a, b) for a, others in GRAPH.items() if room(a) in OUTSIDE for b in others if room(b) in LAB} == set()


def test_no_torch_outside_the_lab():
    heavy = {"torch", "lightning", "torchmetrics", "datasets", "onnx", "pydantic", "matplotlib"}
    for module, file in FILES.items():
        if room(module) in OUTSIDE:
            assert not {name.split(".")[0] for name in imports(file)} & heavy, file


@pytest.mark.parametrize("side", ["device", "wire", "cloud"])
def test_device_and_cloud_do_not_know_each_other(side):
    allowed = {"device": {"wire", "artifacts"}, "wire": set(), "cloud": {"wire", "artifacts"}}[side]
    assert arrows(OUTSIDE)[side] <= allowed | {"errors", "progress"}


def test_the_wire_opens_no_sockets():
    sockets = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "asyncio", "uvicorn", "starlette"}
    for module, file in FILES.items():
        if room(module) == "wire":
            assert not {name.split(".")[0] for name in imports(file)} & sockets, file


def test_the_command_line_is_imported_by_nobody_but_python_m():
    users = {room(module) for module, others in GRAPH.items() for other in others if room(other) == "cli"}
    assert users - {"cli"} == {"__main__"}


def test_rich_and_typer_live_in_the_command_line_alone():
    users = {
        room(name) for name, file in FILES.items() if {part.split(".")[0] for part in imports(file)} & {"rich", "typer"}
    }
    assert users <= {"cli"}


def test_imports_in_the_lab_go_down_only():
    height = {f"lab.{name}": number for number, layer in enumerate(LAYERS) for name in layer}
    up = {
        (name, other)
        for name, others in arrows(LAB - {"lab"}).items()
        for other in others
        if height[other] > height[name]
    }
    assert up == set()


def test_attackers_and_the_audit_are_built_without_training():
    users = {a for a, others in GRAPH.items() for b in others if room(b) == "lab.training"}
    assert not {name for name in users if room(name) in ("lab.attacks", "lab.audit")}


def test_no_module_imports_itself_by_way_of_others():
    """Imports in functions count too."""
    assert cycle(GRAPH) == []


def test_no_room_imports_itself_by_way_of_others():
    """But for the package itself, whose lazy names come from several."""
    assert cycle(arrows(ROOMS - {""})) == []


@pytest.mark.parametrize(
    "module", ["sfumato", "sfumato.device", "sfumato.wire", "sfumato.cli", "sfumato.artifacts.bundle"]
)
def test_importing_does_not_load_torch(module):
    code = f"import sys, {module}; print({{m.split('.')[0] for m in sys.modules}} & set(sys.argv[1:]))"
    heavy = ["torch", "lightning", "datasets", "onnx", "onnxruntime"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_a_name_that_is_not_there_is_an_attribute_error():
    for module in (sfumato, import_module("sfumato.device")):
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            _ = module.nothing_of_the_kind


def test_every_error_is_one_of_ours_and_told_on_its_page():
    from sfumato import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(value, errors.SfumatoError) for value in classes)
    assert [value.__name__ for value in classes if value.__name__ not in errors.__doc__] == []


def test_few_modules_lie_loose():
    assert {file.name for file in SOURCE.glob("*.py")} <= {"__init__.py", "__main__.py", "errors.py", "progress.py"}


def test_the_tests_mirror_the_source():
    """Every folder with modules has its tests at the same place; a test folder has a package at the same place."""

    def folders(root, pattern):
        return {str(file.parent.relative_to(root)) for file in root.rglob(pattern) if file.name != "__init__.py"}

    source = folders(SOURCE, "*.py") - {"."}
    tests = {name for name in folders(TESTS, "test_*.py") - {"."} if not name.startswith("reproduction")}
    assert tests - source == set()
    assert source - tests <= {"artifacts/shipped", "lab"}

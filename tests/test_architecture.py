"""The house's rules: what may import what, what loads when, and which names are public."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sfumato

SOURCE = Path(sfumato.__file__).parent
TESTS = Path(__file__).parent
LAB = {
    "nets",
    "training",
    "data",
    "classifiers",
    "evaluation",
    "audit",
    "baselines",
    "making",
    "sweep",
    "export",
    "checkpoint",
    "measures",
    "mobile",
    "quantizing",
    "rebuilding",
}


def imports(file: Path) -> set[str]:
    """The modules that a file imports anywhere in it, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide where a name comes from"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def home(name: str) -> str:
    """`sfumato.nets.cost.Cost` -> `nets`; "" for the package itself, such as `sfumato.__version__`."""
    part = name.split(".")[1]
    return part if (SOURCE / part).is_dir() or (SOURCE / f"{part}.py").is_file() else ""


def arrows() -> dict[str, set[str]]:
    """Which parts of the house each part imports; a part is a top-level module or package."""
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        ours = {home(name) for name in imports(file) if name.startswith("sfumato.")}
        found.setdefault(part, set()).update(ours - {part, ""})
    return found


ARROWS = arrows()


def reachable(part: str) -> set[str]:
    found: set[str] = set()
    todo = [part]
    while todo:
        for other in ARROWS.get(todo.pop(), set()) - found:
            found.add(other)
            todo.append(other)
    return found


def test_the_arrows_are_read_at_all():
    assert {"nets", "data", "bundle", "errors"} <= ARROWS["training"]
    assert "device" in ARROWS["data"], "an import inside a package's module should be seen"


@pytest.mark.parametrize("part", ["device", "wire", "cloud", "studio"])
def test_device_wire_and_cloud_know_nothing_of_the_lab(part):
    assert not reachable(part) & (LAB | {"cli"})


@pytest.mark.parametrize("part", ["device", "wire", "cloud", "studio", "bundle", "errors"])
def test_no_torch_outside_the_lab(part):
    files = (SOURCE / part).rglob("*.py") if (SOURCE / part).is_dir() else [SOURCE / f"{part}.py"]
    heavy = {"torch", "lightning", "torchmetrics", "datasets", "onnx"}
    for file in files:
        assert not {name.split(".")[0] for name in imports(file)} & heavy, file


def test_the_wire_opens_no_sockets():
    sockets = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "asyncio", "uvicorn", "starlette"}
    for file in (SOURCE / "wire").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(file)} & sockets, file


def test_the_command_line_is_imported_by_nobody_but_python_m():
    assert {part for part, others in ARROWS.items() if "cli" in others} == {"__main__"}


def test_nothing_below_training_imports_training():
    above = {"blackbox", "cli", "making", "paper", "sweep"}
    assert {part for part, others in ARROWS.items() if "training" in others} <= above


def test_there_is_no_import_cycle():
    circular = {part for part in ARROWS if part in reachable(part)}
    assert not circular


@pytest.mark.parametrize("module", ["sfumato", "sfumato.device", "sfumato.wire", "sfumato.cli", "sfumato.bundle"])
def test_importing_does_not_load_torch(module):
    code = f"import sys, {module}; print({{m.split('.')[0] for m in sys.modules}} & set(sys.argv[1:]))"
    heavy = ["torch", "lightning", "datasets", "onnx", "onnxruntime"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("sfumato", ["Bundle", "Client", "Obfuscator", "Preprocessing", "SfumatoError", "__version__"]),
        (
            "sfumato.device",
            [
                "Answer",
                "Client",
                "Decision",
                "EndpointStatus",
                "FileClient",
                "FingerprintWarning",
                "ObfuscatedPicture",
                "Obfuscator",
                "load_picture",
                "prepare",
            ],
        ),
        (
            "sfumato.nets",
            [
                "CLASSIFIERS",
                "Cost",
                "Deobfuscator",
                "Normalize",
                "Obfuscator",
                "ObfuscatorTravels",
                "RESTORERS",
                "SketchDecoder",
                "SketchGraph",
                "SketchTravels",
                "Sketcher",
                "answer_bits",
                "autocast",
                "build_classifier",
                "cost",
                "fold_norms",
                "obfuscator_of",
                "reverse_gradient",
                "sketcher_of",
                "travels_of",
            ],
        ),
        (
            "sfumato.data",
            ["Augmentation", "ImageSet", "Stream", "augment", "load_images", "load_stream", "load_train_test"],
        ),
        ("sfumato.training", ["ClassifierRecipe", "ObfuscatorRecipe", "Run", "load_recipe", "train"]),
    ],
)
def test_the_public_names_are_these_and_exist(module, names):
    loaded = import_module(module)
    assert sorted(loaded.__all__) == names
    assert all(hasattr(loaded, name) for name in names)
    assert set(names) <= set(dir(loaded))


def test_a_name_that_is_not_there_is_an_attribute_error():
    for module in (sfumato, import_module("sfumato.device")):
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            _ = module.nothing_of_the_kind


def test_every_error_is_one_of_ours_and_told_on_its_page():
    from sfumato import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(value, errors.SfumatoError) for value in classes)
    assert [value.__name__ for value in classes if value.__name__ not in errors.__doc__] == []


def test_the_tests_mirror_the_source():
    packages = {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    with_modules = {p.parent.name for p in SOURCE.glob("*/*.py") if p.name != "__init__.py"}
    folders = {p.parent.name for p in TESTS.glob("*/test_*.py")}
    assert with_modules <= folders <= packages

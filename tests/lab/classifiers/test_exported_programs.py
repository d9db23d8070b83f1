"""A program from elsewhere is loaded only if it is nothing but operators and numbers."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import brought
from sfumato.errors import ClassifierError
from sfumato.lab.classifiers import exported_programs
from sfumato.lab.classifiers.exported_programs import Program, input_shape, load_program, save_program

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


class Trap:
    """Leaves a file where it was unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return brought.save_program(tmp_path_factory.mktemp("programs") / "net.pt2", brought.small())


def changed(program: Path, target: Path, entry: str, change: Callable[[Any], Any]) -> Path:
    """A copy with one entry's JSON changed, or its bytes if it is none."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(entry):
                content = json.dumps(change(json.loads(content))) if entry.endswith(".json") else change(content)
            new.writestr(name, content)
    return target


def test_a_program_computes_what_the_network_does_and_stays_as_it_is(program):
    loaded, net = load_program(program), brought.small()
    inputs = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(loaded.train()(inputs), net(inputs), atol=1e-6)
    assert torch.allclose(loaded(inputs[:1]), net(inputs[:1]), atol=1e-6)
    assert input_shape(loaded)[1:] == (3, 32, 32)


def test_a_program_moves_with_all_that_it_makes_on_the_way(program):
    assert load_program(program).to("meta")(torch.rand(2, 3, 32, 32, device="meta")).device.type == "meta"


def test_what_is_written_tells_nothing_of_the_machine(tmp_path):
    save_program(brought.small(), tmp_path / "net.pt2", torch.rand(2, 3, 32, 32))
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert b"brought" not in everything and b"File " not in everything
    assert isinstance(load_program(tmp_path / "net.pt2"), Program)


def test_sample_inputs_are_not_unpickled(program, tmp_path):
    """torch.export.load falls back to an unsafe load for these; here they are left out."""
    touched = tmp_path / "touched"
    stream = io.BytesIO()
    pickle.dump(Trap(touched), stream)
    bad = changed(program, tmp_path / "bad.pt2", "data/sample_inputs/model.pt", lambda _: stream.getvalue())
    load_program(bad)
    assert not touched.exists()


def _pickled(config: Any) -> Any:
    next(iter(config["config"].values()))["use_pickle"] = True
    return config


def _elsewhere(config: Any) -> Any:
    next(iter(config["config"].values()))["path_name"] = "../../secrets"
    return config


@pytest.mark.parametrize("change", [_pickled, _elsewhere])
def test_pickled_weights_are_refused(program, tmp_path, change):
    with pytest.raises(ClassifierError, match="never loaded"):
        load_program(changed(program, tmp_path / "bad.pt2", WEIGHTS, change))


def _calls(target: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target
        return model

    return change


def _names(name: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        model["graph_module"]["graph"]["nodes"][0]["name"] = name
        return model

    return change


def _sized(expression: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        sizes = model["graph_module"]["graph"]["sym_int_values"]
        next(iter(sizes.values()))["as_expr"]["expr_str"] = expression
        return model

    return change


def _shaped(model: Any) -> Any:
    call = model["graph_module"]["module_call_graph"][0]["signature"]
    call["out_spec"] = call["out_spec"].replace('"type": null', '"type": "os.PathLike"', 1)
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_calls("torch.load"), "no operator of torch's core library"),
        (_calls("torch.ops.torchvision.nms.default"), "no operator of torch's core library"),
        (_calls("torch.ops.aten.from_file.default"), "no operator of torch's core library"),
        (_calls("_operator.methodcaller"), "no operator of torch's core library"),
        (_names("x = __import__('os').getcwd()"), "a plain name is expected"),
        (_sized("__import__('os').getcwd()"), "a plain name is expected"),
        (_sized("().__class__"), "a plain name is expected"),
        (_shaped, "plain tensors are expected"),
    ],
)
def test_anything_that_could_be_code_is_refused(program, tmp_path, change, said):
    with pytest.raises(ClassifierError, match=said):
        load_program(changed(program, tmp_path / "bad.pt2", MODEL, change))


def test_no_operator_that_reads_or_writes_a_file_is_let_through():
    files = {
        f"torch.ops.{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"
        for schema in torch._C._jit_get_all_schemas()
        if any("file" in argument.name for argument in schema.arguments) and schema.name.startswith("aten::")
    }
    assert "torch.ops.aten.from_file.default" in files
    assert not [name for name in files if exported_programs._TARGET.fullmatch(name)]


def test_guards_are_code_and_are_left_out(program, tmp_path):
    touched = tmp_path / "touched"

    def guarded(model: Any) -> Any:
        model["guards_code"] = [f"__import__('pathlib').Path({str(touched)!r}).touch() or True"]
        return model

    load_program(changed(program, tmp_path / "guarded.pt2", MODEL, guarded))(torch.rand(2, 3, 32, 32))
    assert not touched.exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_an_error(tmp_path, content):
    file = tmp_path / "net.pt2"
    file.write_bytes(content)
    with pytest.raises(ClassifierError, match=r"is no program that torch\.export\.save"):
        load_program(file)


def test_a_scripted_module_is_no_program(tmp_path):
    torch.save({"weights": torch.rand(2)}, tmp_path / "net.pt2")
    with pytest.raises(ClassifierError, match="is no program"):
        load_program(tmp_path / "net.pt2")

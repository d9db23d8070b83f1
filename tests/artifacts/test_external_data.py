"""Weights in second files of ONNX models. The oracle is the onnx library, which finds them by its own parser."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.external_data import external_data, external_files
from sfumato.artifacts.files import write_json
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.shipped import classifier_bundle
from sfumato.errors import BundleError


def elsewhere(name: str, location: str) -> TensorProto:
    """A tensor of one number in another file."""
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def everywhere() -> onnx.ModelProto:
    """A model with tensors in every place that one can lie in, each in a file named after the place."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=elsewhere("t", "constant of a branch"))],
        "inner",
        [],
        [],
        [elsewhere("i", "initializer of a branch")],
    )
    sparse = onnx.SparseTensorProto(
        values=elsewhere("v", "sparse values"), indices=elsewhere("x", "sparse indices"), dims=[1]
    )
    nodes = [
        helper.make_node("If", ["in"], ["a"], then_branch=inner),
        helper.make_node("Odd", [], ["b"], tensors=[elsewhere("l", "list of tensors")], graphs=[inner]),
        helper.make_node("Odd", [], ["d"], sparse=sparse),
    ]
    graph = helper.make_graph(
        nodes, "outer", [], [], [elsewhere("w", "initializer"), elsewhere("u", "sub/initializer")]
    )
    graph.sparse_initializer.append(sparse)
    function = helper.make_function(
        "own", "f", [], [], [helper.make_node("Constant", [], ["c"], value=elsewhere("t", "function"))], []
    )
    return helper.make_model(graph, functions=[function])


def test_every_place_that_a_tensor_can_lie_in_is_searched(tmp_path):
    onnx.save_model(everywhere(), tmp_path / "m.onnx")
    wanted = {
        "constant of a branch", "function", "initializer", "initializer of a branch", "list of tensors",
        "sparse indices", "sparse values", "sub/initializer",
    }  # fmt: skip
    assert external_data(tmp_path / "m.onnx") == tuple(sorted(wanted))


def split(source: Path, folder: Path) -> Path:
    """The same model with its weights in `m.data`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(source)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=10)
    return folder / "m.onnx"


def test_a_real_model_in_one_file_and_in_two(tmp_path):
    whole = classifier_bundle() / "model.onnx"
    assert external_data(whole) == () and external_files(whole) == {}
    assert external_files(split(whole, tmp_path)) == {"m.data": tmp_path / "m.data"}
    # Numbers that were put back inside may still say where they came from; ONNX Runtime looks inside.
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT
    onnx.save_model(model, tmp_path / "inside.onnx")
    assert external_data(tmp_path / "inside.onnx") == ()


def test_a_fingerprint_covers_every_byte_of_the_weights(tmp_path):
    file, data = split(tiny.save_classifier(tmp_path / "model.onnx"), tmp_path / "two"), tmp_path / "two" / "m.data"
    lines = [hashlib.sha256(file.read_bytes()).hexdigest(), f"{hashlib.sha256(data.read_bytes()).hexdigest()} m.data"]
    assert fingerprint(file) == f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    seen = {fingerprint(file), fingerprint(tmp_path / "model.onnx")}
    whole = data.read_bytes()
    for place in range(0, len(whole), len(whole) // 7):
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        seen.add(fingerprint(file))
    assert len(seen) == 2 + len(range(0, len(whole), len(whole) // 7))
    data.write_bytes(whole)
    assert fingerprint(file) in seen, "it depends on nothing else"


def test_bytes_that_move_from_one_file_to_the_next_change_the_fingerprint(tmp_path):
    graph = helper.make_graph([], "g", [], [], [elsewhere("a", "a"), elsewhere("b", "b")])
    onnx.save_model(helper.make_model(graph), tmp_path / "m.onnx")
    found = set()
    for cut in range(1, 8):
        (tmp_path / "a").write_bytes(bytes(range(cut)))
        (tmp_path / "b").write_bytes(bytes(range(cut, 8)))
        found.add(fingerprint(tmp_path / "m.onnx"))
    assert len(found) == 7


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "C:\\secret", "\\\\host\\secret"])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    onnx.save_model(
        helper.make_model(helper.make_graph([], "g", [], [], [elsewhere("a", location)])), tmp_path / "m.onnx"
    )
    with pytest.raises(BundleError, match="outside its folder"):
        external_files(tmp_path / "m.onnx")


def test_weights_that_are_missing_are_named(tmp_path):
    file = split(tiny.save_classifier(tmp_path / "model.onnx"), tmp_path / "two")
    (tmp_path / "two" / "m.data").unlink()
    with pytest.raises(BundleError, match=r"keeps weights in 'm\.data', which is missing; copy that file, too"):
        fingerprint(file)


def test_what_is_no_onnx_file_names_no_others_and_never_crashes(tmp_path):
    file = tmp_path / "m.onnx"
    onnx.save_model(everywhere(), file)
    whole, dice = file.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[: dice.randrange(len(whole) + 1)])
        for _ in range(dice.randrange(4)):
            if damaged:
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        file.write_bytes(damaged)
        external_data(file)


def test_what_protobuf_skips_hides_nothing(tmp_path):
    """Unknown fields and groups before the graph, and a name that is no UTF-8, as a hostile file may have them."""
    graph = helper.make_graph([], "g", [], [], [elsewhere("a", "hidden")])
    whole = helper.make_model(graph).SerializeToString()
    group = bytes([1000 * 8 % 128 + 3 + 128, 1000 * 8 >> 7, 1 << 3, 5, 1000 * 8 % 128 + 4 + 128, 1000 * 8 >> 7])
    (tmp_path / "m.onnx").write_bytes(group + whole)
    assert onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer[0].name == "a", "it can be read"
    assert external_data(tmp_path / "m.onnx") == ("hidden",)
    (tmp_path / "m.onnx").write_bytes(bytes([7 << 3 | 5]) + b"\xff\xff\xff\xff" + whole)  # a graph that is a number
    assert external_data(tmp_path / "m.onnx") == ("hidden",)
    (tmp_path / "m.onnx").write_bytes(whole.replace(b"hidden", b"\xff\xfeeden"))
    (name,) = external_data(tmp_path / "m.onnx")
    (tmp_path / name).write_bytes(b"x")
    assert fingerprint(tmp_path / "m.onnx").startswith("sha256:")


@pytest.mark.parametrize("kind", ["classifier", "obfuscator"])
def test_a_bundle_has_all_its_weights_inside(tmp_path, kind):
    """Otherwise others could be swapped in, and every hash in its manifest would still fit."""
    obfuscator, classifier = tiny.save_bundles(tmp_path / "bundles")
    bundle = obfuscator if kind == "obfuscator" else classifier
    (name,) = [name for name in bundle.files if name in ("obfuscator.onnx", "model.onnx")]
    split(bundle.file(name), tmp_path / "two").replace(bundle.path / name)
    (tmp_path / "two" / "m.data").replace(bundle.path / "m.data")
    with pytest.raises(BundleError, match=r"keeps weights in a second file, 'm\.data'.*make it one file"):
        bundle.save()
    sha256 = hashlib.sha256((bundle.path / name).read_bytes()).hexdigest()
    write_json(bundle.path / "bundle.json", {**bundle.to_json(), "files": {**bundle.files, name: sha256}})
    with pytest.raises(BundleError, match="second file"):
        Bundle.load(bundle.path)

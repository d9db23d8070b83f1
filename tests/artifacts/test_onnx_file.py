import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from sfumato.artifacts.onnx_file import OnnxFunction, runtime_reason
from sfumato.errors import BundleError
from tiny import SIZE, logits, obfuscate, own_logits, save_classifier, save_obfuscator


@pytest.mark.parametrize("threads", [0, 1])
def test_a_file_is_a_function(tmp_path, threads):
    batch = np.random.default_rng(0).random((3, 3, SIZE, SIZE), dtype=np.float32)
    function = OnnxFunction(save_classifier(tmp_path / "model.onnx"), threads=threads)
    assert np.allclose(function(batch), logits(batch), atol=1e-4)


def test_what_is_no_onnx_file_is_an_error_of_ours(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match="cannot be run"):
        OnnxFunction(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="cannot be run"):
        OnnxFunction(tmp_path / "absent.onnx")


@pytest.mark.parametrize("name", [b"logits", b"input"])
def test_names_that_are_no_text_are_an_error_of_ours(tmp_path, name):
    file = save_classifier(tmp_path / "model.onnx")
    file.write_bytes(file.read_bytes().replace(name, b"\xe1" * len(name)))
    with pytest.raises(BundleError, match="cannot be run"):
        OnnxFunction(file)


def test_all_outputs_come_in_the_files_order(tmp_path):
    batch = np.random.default_rng(1).random((3, 3, SIZE, SIZE), dtype=np.float32)
    function = OnnxFunction(save_obfuscator(tmp_path / "two.onnx", own="means"))
    payload, own = function.all(batch)
    assert np.allclose(payload, obfuscate(batch), atol=1e-5)
    assert np.allclose(own, own_logits(batch), atol=1e-3)
    assert np.array_equal(function(batch), payload)


def test_the_reason_is_said_without_codes_and_paths(tmp_path):
    folder = tmp_path / ("long-" * 40)  # alone as long as the whole reason was once
    folder.mkdir()
    whole = onnx.load(save_classifier(folder / "whole.onnx"))
    (folder / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"junk\.onnx cannot be run: Protobuf parsing failed"):
        OnnxFunction(folder / "junk.onnx")
    whole.graph.node[0].op_type = "Nope"
    onnx.save(whole, folder / "nope.onnx")
    with pytest.raises(BundleError, match=r"cannot be run: .*No Op registered for Nope"):
        OnnxFunction(folder / "nope.onnx")
    whole = onnx.load(folder / "whole.onnx")
    onnx.save(whole, folder / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=10)
    (folder / "two.data").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"two\.onnx cannot be run: .*weight.* out of bounds"):
        OnnxFunction(folder / "two.onnx")


def test_of_a_long_reason_both_ends_are_said():
    said = runtime_reason(RuntimeError("begins " + "x" * 5000 + " ends"))
    assert said.startswith("begins x") and said.endswith("x ends") and len(said) < 420
    assert runtime_reason(RuntimeError()) == "RuntimeError"
    assert runtime_reason(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : ")) == "[ONNXRuntimeError] : 1 : FAIL :"


def test_onnx_runtime_leaves_no_trace_of_the_device(tmp_path):
    """Its telemetry keeps a number that identifies the device, and what it will send, in the user's cache folder."""
    file, home = save_classifier(tmp_path / "model.onnx"), tmp_path / "home"
    home.mkdir()
    code = "import sys, pathlib, sfumato.artifacts.onnx_file as it; it.OnnxFunction(pathlib.Path(sys.argv[1]))"
    unset = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=60, env=environment)
    assert list(home.rglob("*")) == []

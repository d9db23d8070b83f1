import numpy as np
import pytest

from sfumato.artifacts.onnx_file import OnnxFunction
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


def test_all_outputs_come_in_the_files_order(tmp_path):
    batch = np.random.default_rng(1).random((3, 3, SIZE, SIZE), dtype=np.float32)
    function = OnnxFunction(save_obfuscator(tmp_path / "two.onnx", own="means"))
    payload, own = function.all(batch)
    assert np.allclose(payload, obfuscate(batch), atol=1e-5)
    assert np.allclose(own, own_logits(batch), atol=1e-3)
    assert np.array_equal(function(batch), payload)

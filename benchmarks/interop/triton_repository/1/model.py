"""The classifier for Triton's Python backend: `model.onnx` next to this file, after `decoder.onnx` if that is there."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent


def opened(name):
    return ort.InferenceSession(HERE / name, providers=["CPUExecutionProvider"])


class TritonPythonModel:
    """The class that the backend loads."""

    def initialize(self, args):
        """Open the files."""
        self.classifier = opened("model.onnx")
        self.decoder = opened("decoder.onnx") if (HERE / "decoder.onnx").exists() else None

    def execute(self, requests):
        """Respond to each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """One tensor in, its logits out."""
        given = pb_utils.get_input_tensor_by_name(request, "input").as_numpy()
        if self.decoder is not None:
            given = self.decoder.run(None, {"code": given})[0]
        logits = self.classifier.run(None, {"input": given.astype(np.float32)})[0]
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])

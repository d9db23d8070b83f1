"""The classifier for Triton's Python backend, which joins the requests that Triton hands over together."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The class that the backend loads."""

    def initialize(self, args):
        """Open the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        file = Path(__file__).with_name("model.onnx")
        self.classifier = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """Respond to all of them with one run."""
        given = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        logits = self.classifier.run(None, {"input": np.concatenate(given) if len(given) > 1 else given[0]})[0]
        parts = np.split(logits, np.cumsum([len(x) for x in given])[:-1]) if len(given) > 1 else [logits]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", part)]) for part in parts]

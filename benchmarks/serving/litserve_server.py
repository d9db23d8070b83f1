"""The classifier behind LitServe: `python litserve_server.py MODEL.onnx PORT`. Requests are joined."""

import sys

import litserve
import numpy as np
import onnxruntime as ort


class Classifier(litserve.LitAPI):
    """One ONNX file; JSON in, JSON out."""

    def setup(self, device):
        """Open the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        """One image."""
        return np.asarray(request["input"], np.float32).reshape(3, 32, 32)

    def batch(self, inputs):
        """Several."""
        return np.stack(inputs)

    def predict(self, x):
        """Their logits."""
        return self.session.run(None, {"input": x})[0]

    def unbatch(self, output):
        """One by one."""
        return list(output)

    def encode_response(self, output):
        """Return one prediction."""
        return {"logits": output.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=32, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")

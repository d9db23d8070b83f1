"""The classifier behind KServe's SDK: `python kserve_server.py MODEL.onnx --model_name NAME --http_port 8080`.

The SDK binds to every interface and has no option against it; the first lines below keep it on this machine.
"""

import sys

import kserve
import onnxruntime as ort
import uvicorn
from grpc import aio

bind, configure = aio.Server.add_insecure_port, uvicorn.Config.__init__
aio.Server.add_insecure_port = lambda self, at: bind(self, at.replace("[::]", "127.0.0.1"))
uvicorn.Config.__init__ = lambda self, *args, **options: configure(self, *args, **{**options, "host": "127.0.0.1"})


class Classifier(kserve.Model):
    """One ONNX file."""

    def __init__(self, name, path):
        super().__init__(name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # the other core is for HTTP
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        """Respond to one request."""
        logits = self.session.run(None, {"input": payload.inputs[0].as_numpy()})[0]
        output = kserve.InferOutput("logits", list(logits.shape), "FP32")
        # The response takes the request's form: the SDK honours the request's own choice only for named outputs.
        output.set_data_from_numpy(logits, binary_data=payload.use_binary_outputs)
        return kserve.InferResponse(
            payload.id or "", self.name, [output], use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    name = kserve.model_server.args.model_name
    kserve.ModelServer().start([Classifier(name, sys.argv[1])])

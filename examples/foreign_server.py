"""Put an obfuscator in front of somebody else's server: an endpoint that knows nothing of sfumato.

The server below is forty lines of the standard library around ONNX Runtime. It speaks the Open Inference Protocol v2,
in JSON only, as Triton, KServe and MLServer do.

    python examples/foreign_server.py

Needs `pip install sfumato`; seconds.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime

from sfumato.artifacts import shipped
from sfumato.device import Client

NAME = "their-classifier"
session = onnxruntime.InferenceSession(shipped.classifier_bundle() / "model.onnx")
(model_input,) = session.get_inputs()


class Endpoint(BaseHTTPRequestHandler):
    """Metadata, readiness and inference of one model."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Describe the server or the model."""
        tensor = {"name": model_input.name, "datatype": "FP32", "shape": [-1, *model_input.shape[1:]]}
        model = {"name": NAME, "platform": "onnx", "inputs": [tensor], "outputs": []}
        server = {"name": "theirs", "version": "1", "extensions": []}
        self.respond(model if self.path == f"/v2/models/{NAME}" else server)

    def do_POST(self) -> None:
        """Run the model on what was sent."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (tensor,) = request["inputs"]
        batch = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        (logits,) = session.run(None, {model_input.name: batch})
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        self.respond({"model_name": NAME, "outputs": [output]})

    def respond(self, body: dict[str, object]) -> None:
        """Send JSON."""
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
with Client(f"http://127.0.0.1:{server.server_port}", shipped.obfuscator_bundle(), model=NAME, gate=False) as client:
    for sample in shipped.samples()[:5]:
        prediction = client.classify(sample.pixels)
        print(f"{sample.name}: {prediction.label} ({prediction.probability:.0%})")
server.shutdown()

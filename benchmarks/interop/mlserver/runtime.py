"""The classifier as a runtime for MLServer: the ONNX file that `model-settings.json` names."""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from mlserver.utils import get_model_uri


class Classifier(MLModel):
    """One ONNX file."""

    async def load(self):
        """Open the model."""
        path = await get_model_uri(self.settings)  # next to the settings
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # the other core is for HTTP
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        """Respond to one request."""
        logits = self.session.run(None, {"input": NumpyCodec.decode_input(payload.inputs[0])})[0]
        output = NumpyCodec.encode_output("logits", logits)
        return InferenceResponse(model_name=self.name, outputs=[output])

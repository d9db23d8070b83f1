"""An endpoint that takes image files, as many vision services do. It knows nothing of obfuscation."""

from __future__ import annotations

import base64
import email
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recording import Exchange, softmax
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing

Reply = Callable[[list[dict[str, Any]]], Any]


class FileEndpoint:
    """A behaviour of `recording`: decodes the file, classifies it, and responds.

    Args:
        classify: (N, 3, H, W) float32, normalised -> logits (N, classes).
        labels: one name per class.
        preprocessing: what the classifier takes.
        reply: objects with label and score, best first -> the response's JSON.
        file_of: the JSON body -> the file in base64.

    Attributes:
        files: as they came, with the content type and the name that came with them.
    """

    def __init__(
        self,
        classify: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        labels: Sequence[str],
        preprocessing: Preprocessing,
        *,
        reply: Reply = list,
        file_of: Callable[[Any], str] = lambda body: body["file"],
    ) -> None:
        self._classify, self._labels, self._preprocessing = classify, labels, preprocessing
        self._reply, self._file_of = reply, file_of
        self.files: list[tuple[bytes, str, str | None]] = []

    @classmethod
    def of(cls, classifier: Bundle, **options: Any) -> FileEndpoint:
        function = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
        return cls(function, classifier.labels, classifier.preprocessing, **options)

    def __call__(self, exchange: Exchange) -> None:
        assert exchange.method == "POST"
        self.files.append(self._uploaded(exchange))
        scores = softmax(self._classify(self._prepared(self.files[-1][0])))[0]
        found = [{"label": self._labels[i], "score": float(scores[i])} for i in np.argsort(-scores)]
        exchange.reply(200, json.dumps(self._reply(found)).encode(), Content_Type="application/json")

    def images(self) -> list[NDArray[np.uint8]]:
        return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data, _, _ in self.files]

    def _uploaded(self, exchange: Exchange) -> tuple[bytes, str, str | None]:
        kind = exchange.headers["content-type"]
        if kind == "application/json":
            return base64.b64decode(self._file_of(json.loads(exchange.body)), validate=True), kind, None
        if kind.startswith("image/"):
            return exchange.body, kind, None
        message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + exchange.body)
        (part,) = message.get_payload()
        assert part.get_param("name", header="content-disposition") == "file"
        return part.get_payload(decode=True), part.get_content_type(), part.get_filename()

    def _prepared(self, file: bytes) -> NDArray[np.float32]:
        look = self._preprocessing
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (look.width, look.height), "this endpoint resizes nothing"
            pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255
        normal = (pixels - np.array(look.mean, np.float32)) / np.array(look.std, np.float32)
        return normal.transpose(2, 0, 1)[None]

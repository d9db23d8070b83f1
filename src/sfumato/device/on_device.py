"""A classifier's bundle that predicts on the device alone: image in, prediction out, nothing to send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.execution_providers import CPU
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.device.image import ImageSource, load_image, prepare
from sfumato.device.obfuscator import Decision, out_of_distribution
from sfumato.device.predictions import InferResult, class_probabilities
from sfumato.device.transport import CallOptions
from sfumato.errors import BundleError, EndpointError
from sfumato.wire import ModelMetadata, Tensor


class OnDeviceClassifier:
    """Runs a classifier; its decisions are all final.

    Args:
        bundle: of a classifier.
        threads: threads for one image.
        providers: execution providers, the preferred one first; see `Obfuscator`.

    Raises:
        BundleError: the bundle is of another kind, or damaged, or a provider is not there.
    """

    split = False

    def __init__(self, bundle: Bundle, *, threads: int = 1, providers: Sequence[str] = CPU) -> None:
        if bundle.kind != "classifier":
            raise BundleError(f"{bundle.path} holds an {bundle.kind}, a classifier is needed")
        self.bundle = bundle
        size = bundle.preprocessing
        self.payload_shape = (3, size.height, size.width)
        self._classify = ClassifierFunction(bundle, threads=threads, providers=providers)
        self.providers = self._classify.providers

    def decide_batch(self, sources: Iterable[ImageSource], *, gate: bool = True) -> list[Decision]:
        """Return the prediction for each image, in order; an empty batch gives an empty list.

        Raises:
            ImageError: an image cannot be used.
            BundleError: the classifier failed, or gave no usable logits; or `gate` is False, which asks for images to
                be sent.
        """
        if not gate:
            raise BundleError(f"{self.bundle.path} predicts on the device alone: it has nothing to send")
        images = [prepare(load_image(source), self.bundle.preprocessing) for source in sources]
        if not images:
            return []
        try:
            logits = self._classify(self.bundle.preprocessing.normalize(np.stack(images)))
        except Exception as error:  # ONNX Runtime's errors have no common base, and may quote values
            raise BundleError(f"the classifier of {self.bundle.path} failed ({type(error).__name__})") from None
        wanted = (len(images), len(self.bundle.labels))
        if logits.shape != wanted or not np.isfinite(logits).all():
            raise BundleError(
                f"the classifier of {self.bundle.path} gave no finite logits {wanted}, got {logits.shape}"
            )
        unlike = out_of_distribution(self.bundle, logits)
        probabilities = class_probabilities(logits, self.bundle.labelling)
        return [Decision(tuple(row), None, one) for row, one in zip(probabilities.tolist(), unlike, strict=True)]


class NoEndpoint:
    """The endpoint of a bundle that predicts on the device alone: nothing can be asked of it, or sent to it."""

    server = "no endpoint"

    async def check_ready(self) -> None:
        """Raise an `EndpointError`, as all of these do."""
        raise self._none()

    async def metadata(self, model: str) -> ModelMetadata:
        """See `check_ready`."""
        raise self._none()

    async def infer(self, model: str, tensor: Tensor, output_name: str | None) -> InferResult:
        """See `check_ready`."""
        raise self._none()

    async def reconnect(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def with_options(self, options: CallOptions) -> Self:
        """Return itself: options of a connection change nothing."""
        return self

    def _none(self) -> EndpointError:
        return EndpointError("the bundle predicts on the device alone: there is no endpoint")

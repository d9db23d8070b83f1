"""What all clients share: obfuscate, apply the gate, and send obfuscated images only.

There is one way out of the device, `BaseClient._send`, and it takes obfuscated images only. When anything goes
wrong, an error is raised; no path sends the image itself instead. With a gate in the bundle, an image whose on-device
prediction is final is not sent, and if none is left to send, no request is made.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, final

from sfumato.device.concurrent import IN_FLIGHT, in_order
from sfumato.device.image import ImageSource
from sfumato.device.image_folders import in_groups
from sfumato.device.obfuscator import Decision, ObfuscatedImage, Obfuscator
from sfumato.device.predictions import Prediction
from sfumato.errors import EndpointError


class BaseClient(ABC):
    """Classifies images at an endpoint that never sees them; see `Client` for the attributes."""

    def __init__(self, obfuscator: Obfuscator, *, gate: bool) -> None:
        self.obfuscator = obfuscator
        self.bundle = obfuscator.bundle
        self.gate_enabled = gate and self.bundle.gate is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def classify(self, source: ImageSource) -> Prediction:
        """Classify one image. See `classify_batch`."""
        return self.classify_batch([source], batch_size=1)[0]

    def classify_batch(self, sources: Iterable[ImageSource], *, batch_size: int = 16) -> list[Prediction]:
        """Classify images in groups. No request is made for a group that is handled on-device altogether.

        Args:
            sources: whatever `load_image` takes.
            batch_size: images in one group.

        Returns:
            One prediction per image, in order.

        Raises:
            ImageError: an image cannot be used.
            BundleError: the obfuscator failed, did not hide the image, gave no usable on-device prediction, or gave
                what this endpoint cannot take.
            EndpointError: one of its kinds; see `sfumato.errors`.
        """
        if batch_size < 1:
            raise EndpointError(f"batch_size must be at least 1, got {batch_size}")
        predictions: list[Prediction] = []
        for group in in_groups(sources, batch_size):
            predictions += self._classify_group(group)
        return predictions

    def classify_many(self, sources: Iterable[ImageSource], *, in_flight: int = IN_FLIGHT) -> Iterator[Prediction]:
        """Classify images as they come, several at the same time, so that round trips overlap.

        In asyncio, `await asyncio.to_thread(client.classify, image)`: a client may be used from several threads.

        Args:
            sources: whatever `load_image` takes; may never end. A thread of its own reads them.
            in_flight: images that may be in progress, or done and not yet taken from the iterator.

        Returns:
            The predictions, in order. The first error ends it, and no further image is begun.

        Raises:
            EndpointError: `in_flight` is not positive; and what `classify` raises, at the image's place.
        """
        return in_order(self.classify, sources, in_flight=in_flight)

    def classify_locally(self, source: ImageSource) -> Prediction | None:
        """Return the on-device prediction if it is final; None if the image has to be sent. Send nothing.

        Raises:
            ImageError: the image cannot be used.
            BundleError: as in `classify_batch`.
        """
        if not self.gate_enabled:
            return None
        start = time.perf_counter()
        (decision,) = self.obfuscator.decide_batch([source])
        return self._local(decision, (time.perf_counter() - start) * 1000)

    def _classify_group(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        start = time.perf_counter()
        decisions = self.obfuscator.decide_batch(sources, gate=self.gate_enabled)
        obfuscate_ms = (time.perf_counter() - start) * 1000 / len(sources)
        to_send = [decision.obfuscated for decision in decisions if decision.obfuscated is not None]
        sent = iter(self._send(to_send, obfuscate_ms=obfuscate_ms) if to_send else ())
        return [self._local(decision, obfuscate_ms) or next(sent) for decision in decisions]

    def _local(self, decision: Decision, obfuscate_ms: float) -> Prediction | None:
        if decision.obfuscated is not None or decision.probabilities is None:
            return None
        labels = self.bundle.labels
        return Prediction.of(decision.probabilities, labels, predicted_by="device", obfuscate_ms=obfuscate_ms)

    @final
    def _send(self, images: Sequence[ObfuscatedImage], *, obfuscate_ms: float) -> list[Prediction]:
        """Send images: the only way out of the device. A `TypeError` for anything but obfuscated images."""
        if not all(isinstance(image, ObfuscatedImage) for image in images):
            raise TypeError("only obfuscated images may be sent")
        return self._transmit(images, obfuscate_ms)

    @abstractmethod
    def _transmit(self, images: Sequence[ObfuscatedImage], obfuscate_ms: float) -> list[Prediction]:
        """Return one prediction for each image, in order. Called by `_send` alone."""

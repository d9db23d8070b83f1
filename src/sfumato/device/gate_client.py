"""What every client does before anything is sent: the gate decides, and what stays is answered here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from sfumato.device.image import ImageSource
from sfumato.device.obfuscator import Decision, ObfuscatedImage, Obfuscator
from sfumato.device.predictions import Answer, own_answer


class Send(Protocol):
    """The only way out of a client."""

    def __call__(self, images: Sequence[ObfuscatedImage], *, obfuscate_ms: float) -> list[Answer]:
        """One answer for each image, in order."""


def answer_group(obfuscator: Obfuscator, sources: Sequence[ImageSource], *, keeps: bool, send: Send) -> list[Answer]:
    """Answers some images, those at home that may stay, and sends the others; if none is left, nothing is sent.

    Args:
        obfuscator: the bundle's.
        sources: whatever `load_image` takes, at least one.
        keeps: whether images may stay at home.
        send: is given what has to be sent, and the time in milliseconds that each image took until then.

    Raises:
        ImageError, BundleError: as `Obfuscator.decide_batch` does.
    """
    start = time.perf_counter()
    decisions = obfuscator.decide_batch(sources, gate=keeps)
    obfuscate_ms = (time.perf_counter() - start) * 1000 / len(sources)
    travelling = [decision.obfuscated for decision in decisions if decision.obfuscated is not None]
    answered = iter(send(travelling, obfuscate_ms=obfuscate_ms) if travelling else ())
    return [_own(obfuscator, decision, obfuscate_ms) or next(answered) for decision in decisions]


def answer_at_home(obfuscator: Obfuscator, source: ImageSource) -> Answer | None:
    """The device's own answer if it is final; None if the image has to be sent. Sends nothing.

    Raises:
        ImageError, BundleError: as `Obfuscator.decide_batch` does.
    """
    start = time.perf_counter()
    (decision,) = obfuscator.decide_batch([source])
    return _own(obfuscator, decision, (time.perf_counter() - start) * 1000)


def _own(obfuscator: Obfuscator, decision: Decision, obfuscate_ms: float) -> Answer | None:
    if decision.obfuscated is not None or decision.probabilities is None:
        return None
    return own_answer(decision.probabilities, obfuscator.bundle.labels, obfuscate_ms=obfuscate_ms)

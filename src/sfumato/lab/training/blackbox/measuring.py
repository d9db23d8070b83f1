"""What an endpoint makes of a sketch's drawings, for the price of one question a code."""

from __future__ import annotations

import numpy as np
import torch

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device.gate import has_to_be_sent, softmax
from sfumato.errors import QueryBudgetExhausted
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import device_logits
from sfumato.lab.training.blackbox.oracle import Oracle


def measure_at(endpoint: Oracle, sketch: Bundle, images: ImageSet) -> dict[str, float | int]:
    """Accuracies of a sketch at the endpoint, through the shipped file.

    Args:
        endpoint: asked about each drawing that it was not asked about before.
        sketch: its bundle.
        images: labelled images; none of them is sent.

    Returns:
        "accuracy_obfuscated" (as if all were sent), "accuracy_device", "accuracy_gated", "offload_rate", all in [0, 1],
        and "test_images"; without the first and the third if the budget does not allow the questions.
    """
    obfuscate = OnnxFunction(sketch.file(OBFUSCATOR_ONNX))
    answers: dict[bytes, int] = {}
    asked = True
    right, at_home, sent = [], [], []
    for batch, labels in images.scaled_batches():
        outputs = obfuscate.all(batch)
        own, codes = softmax(device_logits(outputs, sketch)), [row.tobytes() for row in outputs[-1]]
        new = {code: place for place, code in enumerate(codes) if code not in answers}
        if new and asked:
            drawings = sketch.preprocessing.denormalize(outputs[0][list(new.values())])
            try:
                found = endpoint(torch.from_numpy(drawings))
                answers |= dict(zip(new, found.argmax(dim=1).tolist(), strict=True))
            except QueryBudgetExhausted:
                asked = False
        if asked:
            right.append(np.array([answers[code] for code in codes]) == labels)
        at_home.append(own.argmax(axis=1) == labels)
        sent.append(has_to_be_sent(own, sketch.gate) if sketch.gate else np.ones(len(labels), bool))
    home, sends = np.concatenate(at_home), np.concatenate(sent)
    figures = {"accuracy_device": home.mean(), "offload_rate": sends.mean()}
    if asked:
        cloud = np.concatenate(right)
        figures |= {"accuracy_obfuscated": cloud.mean(), "accuracy_gated": np.where(sends, cloud, home).mean()}
    return {name: float(value) for name, value in figures.items()} | {"test_images": len(images)}

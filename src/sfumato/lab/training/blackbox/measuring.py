"""Measure a sketch at an endpoint, with one query per code."""

from __future__ import annotations

import numpy as np
import torch

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device.predictions import softmax
from sfumato.errors import QueryBudgetExhausted
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.evaluation.accuracy import device_logits
from sfumato.lab.training.blackbox.oracle import Oracle


def measure_at(endpoint: Oracle, sketch: Bundle, images: ImageSet) -> dict[str, float | int]:
    """Measure the accuracies of a sketch at the endpoint, through the shipped file.

    Args:
        endpoint: is sent each decoded image that it was not sent before.
        sketch: its bundle.
        images: labelled images; none of them is sent.

    Returns:
        "accuracy_obfuscated" (as if all were sent), "accuracy_device", "accuracy_gated", "offload_rate", all in [0, 1],
        and "test_images"; without the first and the third if the budget does not allow the queries.
    """
    obfuscate = OnnxFunction(sketch.file(OBFUSCATOR_ONNX))
    predictions: dict[bytes, int] = {}
    within_budget = True
    in_cloud, on_device, sent = [], [], []
    for start in range(0, len(images), INFERENCE_BATCH):
        batch = images.images[start : start + INFERENCE_BATCH].numpy().astype(np.float32) / np.float32(255)
        labels = images.labels[start : start + INFERENCE_BATCH].numpy()
        outputs = obfuscate.all(batch)
        own, codes = softmax(device_logits(outputs, sketch)), [row.tobytes() for row in outputs[-1]]
        new = {code: place for place, code in enumerate(codes) if code not in predictions}
        if new and within_budget:
            decoded = sketch.preprocessing.denormalize(outputs[0][list(new.values())])
            try:
                found = endpoint(torch.from_numpy(decoded))
                predictions |= dict(zip(new, found.argmax(dim=1).tolist(), strict=True))
            except QueryBudgetExhausted:
                within_budget = False
        if within_budget:
            in_cloud.append(np.array([predictions[code] for code in codes]) == labels)
        on_device.append(own.argmax(axis=1) == labels)
        sent.append(sketch.gate.sends(own) if sketch.gate else np.ones(len(labels), bool))
    device, sends = np.concatenate(on_device), np.concatenate(sent)
    figures = {"accuracy_device": device.mean(), "offload_rate": sends.mean()}
    if within_budget:
        cloud = np.concatenate(in_cloud)
        figures |= {"accuracy_obfuscated": cloud.mean(), "accuracy_gated": np.where(sends, cloud, device).mean()}
    return {name: float(value) for name, value in figures.items()} | {"test_images": len(images)}

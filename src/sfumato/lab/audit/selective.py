"""What a gate changes: most images are answered on the device, and only those sent can leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.codewords import Codewords
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import Attacker, Effort
from sfumato.lab.attacks.threat_models import Knowledge, LazyPairs, Threat, UnavailableError
from sfumato.lab.audit.setting import Scene
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.measures import excess_leakage, per_image

RATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Shares of plain images that the simplest gate of all is measured at."""
_LEAST_SENT = 50
"""Fewer sent images than this say nothing of the leakage."""
_AGAIN: tuple[Attacker, ...] = (Linear(), Codewords())


def gate_figures(
    scene: Scene,
    *,
    best: dict[str, Any],
    reconstructed: Tensor,
    class_mean_errors: Tensor,
    answers: Callable[[Tensor], Tensor] | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Measures accuracy and leakage where the device answers what it is sure of.

    That an image was sent at all tells something of it, so the attackers that need no training are given the pairs
    of sent images alone as well; the best of these and the audit's own best counts. Of an image that was not sent an
    attacker gets its label at most: the error of the class mean stands for these.

    Args:
        scene: its target has a gate.
        best: the audit's best trial.
        reconstructed: (K, 3, H, W) uint8, what the best attacker made of the first K test images; it counts if it
            reconstructed all of them.
        class_mean_errors: (N,) float32, each test image's distance from the mean of its class.
        answers: the payload -> logits of the classifier; None leaves accuracies out.
        progress: is told (done, total).

    Returns:
        Figures by name, for `gate` in `audit.json`; None without a gate. Leakages are None if too few are sent.

    Source: the project's definition of offload rate and of the two leakages.
    """
    gate, test = scene.target.gate, scene.test
    if gate is None:
        return None
    own = _in_parts(gate.logits, test.images)
    sent = gate.sends(own)
    progress(1, 4)
    found: dict[str, Any] = {
        "threshold": gate.gate.threshold,
        "offload_rate": float(sent.float().mean()),
        "sent_images": int(sent.sum()),
        "accuracy_device": float((own.argmax(dim=1) == test.labels).float().mean()),
        "accuracy_gated": None,
        "attacker": None,
        "mse_sent": None,
        "class_mean_mse_sent": None,
        "excess_leakage_sent": None,
        "excess_leakage_mean": None,
    }
    if answers is not None:
        asked = test.images[sent]
        right = (own.argmax(dim=1) == test.labels).float()
        if len(asked):
            cloud = _in_parts(lambda images: answers(scene.target.payload(images)), asked).argmax(dim=1)
            right[sent] = (cloud == test.labels[sent]).float()
        found["accuracy_gated"] = float(right.mean())
    progress(2, 4)
    if int(sent.sum()) < _LEAST_SENT:
        return found
    attempts = _attacks_on_sent(scene, sent)
    if len(reconstructed) == len(test):  # else its error is over other images, and cannot be compared
        errors, _ = per_image(reconstructed[sent].float() / 255, test.images[sent])
        attempts[str(best["attacker"])] = float(errors.double().mean())
    progress(4, 4)
    if not attempts:
        return found
    name = min(attempts, key=lambda name: attempts[name])
    label_only = float(class_mean_errors[sent].double().mean())
    over_all = (attempts[name] * float(sent.sum()) + float(class_mean_errors[~sent].double().sum())) / len(test)
    return found | {
        "attacker": name,
        "mse_sent": attempts[name],
        "class_mean_mse_sent": label_only,
        "excess_leakage_sent": excess_leakage(attempts[name], label_only),
        "excess_leakage_mean": excess_leakage(over_all, float(class_mean_errors.double().mean())),
    }


def gated_plain(own: Tensor, cloud: Tensor, labels: Tensor, class_mean_errors: Tensor) -> list[dict[str, float]]:
    """What anybody gets without an obfuscator: the device answers what it is sure of, the rest travels as it is.

    An obfuscator that does not do better at the same leakage is not worth having.

    Args:
        own: (N, classes) float32, logits of the classifier on the device.
        cloud: (N, classes) float32, logits of the one in the cloud for the plain images.
        labels: (N,) int64.
        class_mean_errors: (N,) float32, each image's distance from the mean of its class.

    Returns:
        For each of `RATES`: "offload_rate"; "excess_leakage", over all images, as those sent leak whole; "accuracy".
    """
    order = own.softmax(dim=1).amax(dim=1).argsort()
    right_here, right_there = (logits.argmax(dim=1) == labels for logits in (own, cloud))
    rows = []
    for rate in RATES:
        sent = torch.zeros(len(labels), dtype=torch.bool)
        sent[order[: round(rate * len(labels))]] = True
        rows.append(
            {
                "offload_rate": rate,
                "excess_leakage": float(class_mean_errors[sent].double().sum() / class_mean_errors.double().sum()),
                "accuracy": float(torch.where(sent, right_there, right_here).double().mean()),
            }
        )
    return rows


def _attacks_on_sent(scene: Scene, sent: Tensor) -> dict[str, float]:
    """The error on sent test images of attackers who learn from sent training images alone."""
    gate, target = scene.target.gate, scene.target
    assert gate is not None
    known = scene.train.images[gate.sends(_in_parts(gate.logits, scene.train.images))]
    asked = scene.test.images[sent]
    errors: dict[str, float] = {}
    if len(known) < _LEAST_SENT:
        return errors
    knowledge = Knowledge(Threat.WHITE_BOX, target.height, target.width, LazyPairs(known, target.payload))
    for attacker in _AGAIN:
        try:
            prepared = attacker.prepare(knowledge, Effort(0, 0, scene.seed))
        except (UnavailableError, AuditError):
            continue  # not an attacker for this obfuscator; the audit's own best counts anyway
        reconstructed = torch.cat(
            [prepared.reconstruct(part) for part in torch.split(target.observe(asked), INFERENCE_BATCH)]
        )
        mse, _ = per_image(reconstructed, asked)
        errors[f"{attacker.name}, from sent images"] = float(mse.double().mean())
    return errors


@torch.no_grad()
def _in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part.float() / 255) for part in torch.split(images, INFERENCE_BATCH)])

"""Selective offloading: most images are handled on-device, and only those that are sent can leak more than a label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.codewords import Codewords
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget, Attacker
from sfumato.lab.attacks.target import LocalClassifier
from sfumato.lab.attacks.threat_models import Knowledge, LazyPairs, Threat
from sfumato.lab.audit.schema import DoneTrial, GatedPlain, GateFigures
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.measures import excess_leakage, per_image
from sfumato.progress import Progress, silent

RATES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Offload rates of plain images that the gate without an obfuscator is measured at."""
_LEAST_SENT = 50
"""Fewer sent images than this say nothing of the leakage."""
_AGAIN: tuple[Attacker, ...] = (Linear(), Codewords())


def gate_figures(
    setting: AttackSetting,
    *,
    best: DoneTrial,
    reconstructed: Tensor,
    class_mean_errors: Tensor,
    logits: Callable[[Tensor], Tensor] | None,
    progress: Progress = silent,
) -> GateFigures | None:
    """Measure accuracy and leakage where the device predicts by itself what it is confident of; None without a gate.

    That an image was sent at all says something about it, so the attackers that need no training are also given the
    pairs of sent images alone; the best of these and the audit's own best counts. Of an image that is handled on-device
    an attacker gets its label at most: the error of the class mean stands for these.

    Args:
        setting: its target has a gate.
        best: the audit's best trial.
        reconstructed: (K, 3, H, W) uint8, the first K test images by the best attacker; it counts if these are all.
        class_mean_errors: (N,) float32, each test image's distance from the mean of its class.
        logits: the payload -> logits of the classifier; None leaves the accuracy with the cloud out.
        progress: its stage is "gate".
    """
    gate, test = setting.target.gate, setting.test
    if gate is None:
        return None
    sent, own = on_device(gate, test.images)
    correct = (own == test.labels).float()
    progress("gate", 1, 4)
    gated = correct.clone()
    if logits is not None and bool(sent.any()):
        cloud = _in_parts(lambda images: logits(setting.target.payload(images)), test.images[sent])
        gated[sent] = (cloud.argmax(dim=1) == test.labels[sent]).float()
    figures = GateFigures(
        threshold=gate.gate.threshold,
        offload_rate=float(sent.float().mean()),
        sent_images=int(sent.sum()),
        accuracy_device=float(correct.mean()),
        accuracy_gated=None if logits is None else float(gated.mean()),
    )
    progress("gate", 2, 4)
    if figures.sent_images < _LEAST_SENT:
        return figures
    errors = _attacks_on_sent(setting, gate, sent)
    if len(reconstructed) == len(test):  # else its error is over other images, and cannot be compared
        errors[best.attacker] = _error(reconstructed[sent].float() / 255, test.images[sent])
    progress("gate", 4, 4)
    if not errors:
        return figures
    attacker, mse = min(errors.items(), key=lambda item: item[1])
    leakages = _leakages(mse, sent, class_mean_errors.double())
    return figures.model_copy(update={"attacker": attacker, "mse_sent": mse, **leakages})


def on_device(gate: LocalClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) uint8 -> which of them are sent, (N,) bool, and the on-device predictions, (N,) int64."""
    own = _in_parts(gate.logits, images)
    return gate.sends(own), own.argmax(dim=1)


def _leakages(mse: float, sent: Tensor, class_mean_errors: Tensor) -> dict[str, float]:
    label_only = float(class_mean_errors[sent].mean())
    over_all = (mse * float(sent.sum()) + float(class_mean_errors[~sent].sum())) / len(sent)
    return {
        "class_mean_mse_sent": label_only,
        "excess_leakage_sent": excess_leakage(mse, label_only),
        "excess_leakage_mean": excess_leakage(over_all, float(class_mean_errors.mean())),
    }


def gated_plain(own: Tensor, cloud: Tensor, labels: Tensor, class_mean_errors: Tensor) -> tuple[GatedPlain, ...]:
    """Return what is reached without an obfuscator: images that the device is least sure of are sent in the clear.

    Args:
        own: (N, classes) float32, logits of the on-device baseline.
        cloud: (N, classes) float32, logits of the cloud's classifier for the plain images.
        labels: (N,) int64.
        class_mean_errors: (N,) float32, each image's distance from the mean of its class.

    Returns:
        One for each of `RATES`; leakages are over all images, as those sent leak whole.
    """
    order = own.softmax(dim=1).amax(dim=1).argsort()
    correct_here, correct_there = (logits.argmax(dim=1) == labels for logits in (own, cloud))
    rows = []
    for rate in RATES:
        sent = torch.zeros(len(labels), dtype=torch.bool)
        sent[order[: round(rate * len(labels))]] = True
        rows.append(
            GatedPlain(
                offload_rate=rate,
                excess_leakage=float(class_mean_errors[sent].double().sum() / class_mean_errors.double().sum()),
                accuracy=float(torch.where(sent, correct_there, correct_here).double().mean()),
            )
        )
    return tuple(rows)


def _attacks_on_sent(setting: AttackSetting, gate: LocalClassifier, sent: Tensor) -> dict[str, float]:
    """The error on sent test images of attackers that learn from sent training images alone."""
    target, asked = setting.target, setting.test.images[sent]
    known = setting.public.images[on_device(gate, setting.public.images)[0]]
    errors: dict[str, float] = {}
    if len(known) < _LEAST_SENT:
        return errors
    knowledge = Knowledge(Threat.WHITE_BOX, target.height, target.width, LazyPairs(known, target.payload))
    for attacker in _AGAIN:
        try:
            prepared = attacker.prepare(knowledge, AttackBudget(0, 0, setting.seed))
        except AuditError:
            continue  # not an attacker for this obfuscator; the audit's own best counts anyway
        parts = torch.split(target.observe(asked), INFERENCE_BATCH)
        errors[f"{attacker.name}, from sent images"] = _error(torch.cat([*map(prepared.reconstruct, parts)]), asked)
    return errors


def _error(reconstructed: Tensor, originals: Tensor) -> float:
    return float(per_image(reconstructed, originals)[0].double().mean())


@torch.no_grad()
def _in_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part.float() / 255) for part in torch.split(images, INFERENCE_BATCH)])

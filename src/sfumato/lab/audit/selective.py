"""Selective offloading: most images are handled on-device, and only those that are sent can leak more than a label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.codewords import Codewords
from sfumato.lab.attacks.linear import Linear
from sfumato.lab.attacks.protocol import AttackBudget, Attacker
from sfumato.lab.attacks.threat_models import Knowledge, LazyPairs, Threat, UnavailableError
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
    """Measure accuracy and leakage where the device predicts by itself what it is confident of.

    That an image was sent at all says something about it, so the attackers that need no training are also given the
    pairs of sent images alone; the best of these and the audit's own best counts. Of an image that is handled on-device
    an attacker gets its label at most: the error of the class mean stands for these.

    Args:
        setting: its target has a gate.
        best: the audit's best trial.
        reconstructed: (K, 3, H, W) uint8, what the best attacker made of the first K test images; it counts if it
            reconstructed all of them.
        class_mean_errors: (N,) float32, each test image's distance from the mean of its class.
        logits: the payload -> logits of the classifier; None leaves the accuracy with the cloud out.
        progress: see `sfumato.progress.Progress`; the stage is "gate".

    Returns:
        None without a gate.

    Source: the project's definition of offload rate and of the two leakages.
    """
    gate, test = setting.target.gate, setting.test
    if gate is None:
        return None
    own = _in_parts(gate.logits, test.images)
    sent = gate.sends(own)
    progress("gate", 1, 4)
    correct = (own.argmax(dim=1) == test.labels).float()
    figures = GateFigures(
        threshold=gate.gate.threshold,
        offload_rate=float(sent.float().mean()),
        sent_images=int(sent.sum()),
        accuracy_device=float(correct.mean()),
        accuracy_gated=None if logits is None else _accuracy_gated(setting, sent, correct, logits),
    )
    progress("gate", 2, 4)
    if int(sent.sum()) < _LEAST_SENT:
        return figures
    errors_by_attacker = _attacks_on_sent(setting, sent)
    if len(reconstructed) == len(test):  # else its error is over other images, and cannot be compared
        errors, _ = per_image(reconstructed[sent].float() / 255, test.images[sent])
        errors_by_attacker[best.attacker] = float(errors.double().mean())
    progress("gate", 4, 4)
    if not errors_by_attacker:
        return figures
    name, mse = min(errors_by_attacker.items(), key=lambda item: item[1])
    return figures.model_copy(update={"attacker": name, "mse_sent": mse} | _leakages(mse, sent, class_mean_errors))


def _leakages(mse: float, sent: Tensor, class_mean_errors: Tensor) -> dict[str, float]:
    label_only = float(class_mean_errors[sent].double().mean())
    over_all = (mse * float(sent.sum()) + float(class_mean_errors[~sent].double().sum())) / len(sent)
    return {
        "class_mean_mse_sent": label_only,
        "excess_leakage_sent": excess_leakage(mse, label_only),
        "excess_leakage_mean": excess_leakage(over_all, float(class_mean_errors.double().mean())),
    }


def gated_plain(own: Tensor, cloud: Tensor, labels: Tensor, class_mean_errors: Tensor) -> tuple[GatedPlain, ...]:
    """Return what is reached without an obfuscator: images that the device is least sure of are sent in the clear.

    An obfuscator that does not do better at the same leakage does not pay off.

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


def _accuracy_gated(setting: AttackSetting, sent: Tensor, correct: Tensor, logits: Callable[[Tensor], Tensor]) -> float:
    correct = correct.clone()
    if bool(sent.any()):
        test = setting.test
        cloud = _in_parts(lambda images: logits(setting.target.payload(images)), test.images[sent]).argmax(dim=1)
        correct[sent] = (cloud == test.labels[sent]).float()
    return float(correct.mean())


def _attacks_on_sent(setting: AttackSetting, sent: Tensor) -> dict[str, float]:
    """The error on sent test images of attackers that learn from sent training images alone."""
    gate, target = setting.target.gate, setting.target
    assert gate is not None
    known = setting.train.images[gate.sends(_in_parts(gate.logits, setting.train.images))]
    asked = setting.test.images[sent]
    errors: dict[str, float] = {}
    if len(known) < _LEAST_SENT:
        return errors
    knowledge = Knowledge(Threat.WHITE_BOX, target.height, target.width, LazyPairs(known, target.payload))
    for attacker in _AGAIN:
        try:
            prepared = attacker.prepare(knowledge, AttackBudget(0, 0, setting.seed))
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

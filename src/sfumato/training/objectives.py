"""What is optimised: one function per equation of the paper."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """`L_c`: cross-entropy of the frozen classifier's answer.

    Source: paper, section 2.

    Args:
        logits: (N, classes) float.
        labels: (N,) int64.
        label_smoothing: in [0, 1).

    Returns:
        scalar float32, in nats, at least 0.
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """`T^2 KL(teacher || student)`: how far a student's softened answers are from its teacher's.

    The factor keeps the gradient's size independent of the temperature.

    Source: Hinton et al. 2015, section 2; the cross-entropy there differs by the teacher's entropy, a constant.

    Args:
        logits: (N, classes) float, the student's.
        teacher_logits: (N, classes) float.
        temperature: T, above 0; both sets of logits are divided by it.

    Returns:
        scalar float32, the mean over the pictures, in nats, at least 0.
    """
    student, teacher = (F.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def reconstruction_loss(restored: Tensor, images: Tensor) -> Tensor:
    """`L_r`: squared Euclidean distance between original and reconstruction, per number.

    Source: paper, section 2; its scale is not given. The mean over all numbers makes lambda independent of
    the picture's size.

    Args:
        restored: (N, 3, H, W) float, not bounded.
        images: (N, 3, H, W) float in [0, 1].

    Returns:
        scalar float32, at least 0.
    """
    return F.mse_loss(restored.float(), images.float())

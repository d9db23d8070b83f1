"""Objectives: one function per equation, those of utility first, then those of privacy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return `L_c`: the cross-entropy of the classifier's predictions.

    Source: paper, section 2.

    Args:
        logits: (N, classes) float.
        labels: (N,) int64, or shares of all classes, (N, classes) float32.
        label_smoothing: in [0, 1).

    Returns:
        scalar float32, in nats, at least 0.
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def multi_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `L_c` where several classes may be present at once: the binary cross-entropy of each class.

    Source: Bishop 2006, equation 4.90, for independent classes; the mean over the classes makes its weight independent
    of their number.

    Args:
        logits: (N, classes) float.
        labels: (N, classes), 1 for the classes that are present, and 0.

    Returns:
        scalar float32, the mean over images and classes, in nats, at least 0.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def multi_label_distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """As `distillation_loss` where several classes may be present at once: the divergence of each class's probability.

    Source: Hinton et al. 2015, section 2, for two outcomes, present and absent, whose logits are z and 0; each class on
    its own, and the mean over the classes, as in `multi_label_loss`.

    Args:
        logits: (N, classes) float, the student's.
        teacher_logits: (N, classes) float.
        temperature: T, above 0; both sets of logits are divided by it.

    Returns:
        scalar float32, the mean over images and classes, in nats, at least 0.
    """
    student, teacher = (x.float() / temperature for x in (logits, teacher_logits))
    taught = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, taught)
    return (cross - F.binary_cross_entropy_with_logits(teacher, taught)) * temperature**2


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return `T^2 KL(teacher || student)`: the divergence of a student's softened predictions from its teacher's.

    The factor keeps the gradient's size independent of the temperature.

    Source: Hinton et al. 2015, section 2; the cross-entropy there differs by the teacher's entropy, a constant.

    Args:
        logits: (N, classes) float, the student's.
        teacher_logits: (N, classes) float.
        temperature: T, above 0; both sets of logits are divided by it.

    Returns:
        scalar float32, the mean over the images, in nats, at least 0.
    """
    student, teacher = (F.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def feature_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the distance of the classifier's features of obfuscated images from those of the plain ones.

    Source: Romero et al. 2015, equation 3, with the teacher's own layer as the student's and no regressor between; that
    it is divided by the teacher's mean square, which makes its weight independent of the features' scale, is ours.

    Args:
        features: (N, D) float, of the payload.
        teacher_features: (N, D) float, of the plain images.

    Returns:
        scalar float32; 0 where they agree, 1 where the student's are 0.
    """
    features, teacher_features = features.float(), teacher_features.float()
    return F.mse_loss(features, teacher_features) / teacher_features.square().mean().clamp_min(1e-12)


def reconstruction_loss(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Return `L_r`: the squared Euclidean distance between original and reconstruction, per number.

    Source: paper, section 2; its scale is not given. The mean over all numbers makes lambda independent of
    the image's size.

    Args:
        reconstructed: (N, 3, H, W) float, not bounded.
        images: (N, 3, H, W) float in [0, 1].

    Returns:
        scalar float32, at least 0.
    """
    return F.mse_loss(reconstructed.float(), images.float())


def class_mean_loss(reconstructed: Tensor, class_means: Tensor) -> Tensor:
    """Return what an attacker reconstructs beyond the label: the squared distance from the class's mean image.

    A bounded term for the obfuscator to minimise, in place of maximising `L_r`. The best attacker reconstructs the
    conditional mean given the payload; if the payload determines the class, its error is the class mean's error less
    exactly this distance (the two are orthogonal): the term is the excess leakage, 0 only for an attacker that knows
    nothing but the label. The attacker's error alone would accept the image's negative, which the next one inverts.

    Source: the orthogonality of the conditional mean's error, Papoulis 1991, section 7-4; the term is ours.

    Args:
        reconstructed: (N, 3, H, W) float, not bounded.
        class_means: (N, 3, H, W) float in [0, 1], the mean training image of each image's class.

    Returns:
        scalar float32, at least 0, per number.
    """
    return F.mse_loss(reconstructed.float(), class_means.float())


def gaussian_rate(code: Tensor, noise_std: Tensor) -> Tensor:
    """Return a bound on a noisy code's information about an image, in nats: `KL(N(code, noise_std^2) || N(0, 1))`.

    Its mean over images bounds the mutual information of image and code, hence, by the data processing
    inequality, of the image and everything computed from the code.

    Source: Alemi et al. 2017, equation 14 (variational information bottleneck); in closed form Kingma and Welling
    2014, appendix B.

    Args:
        code: (N, ...) float, without its noise.
        noise_std: standard deviations, positive; broadcast to the code's shape.

    Returns:
        scalar float32, the sum over the numbers of an image and the mean over images, in nats, at least 0.
    """
    standard = torch.tensor([0.0, 1.0], device=code.device)
    return _gaussian_divergence(code, noise_std.float().square(), standard[0], standard[1])


def mixture_rate(code: Tensor, noise_std: Tensor, components: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """As `gaussian_rate`, against a mixture of Gaussians that follows the codes: conditional entropy maximisation.

    No attacker's mean squared error is below `exp(2 H(X|Z) / d) / (2 pi e)` for the conditional entropy `H(X|Z)` of the
    image's d numbers. It is `H(X) - I(X;Z)`; for a code Z with noise of its own, `I(X;Z) = H(Z) - H(noise)`. So
    maximising `H(X|Z)` is minimising the entropy of the code, which every density bounds: `H(Z) <= -E log q(Z)`. Unlike
    the standard normal of `gaussian_rate`, a mixture by class charges `log K` nats in all for the class.

    Source: Xia et al. 2025, "Theoretical insights in model inversion robustness and conditional entropy maximization",
    for bounding the error by the conditional entropy, and this by a mixture; the bound itself is Cover and Thomas
    2006, theorem 8.6.6. Ours is the form: one diagonal Gaussian for each class with equal weights, and statistics of
    earlier batches.

    Args:
        code: (N, ...) float, without its noise.
        noise_std: standard deviations, positive; broadcast to the code's shape.
        components: (N,) int64, the component of each image; any choice gives a bound.
        means: (K, ...) float, of the codes of each component.
        variances: (K, ...) float, likewise, without the noise, at least 0.

    Returns:
        scalar float32, the mean over images, in nats, at least `log K`.
    """
    noise = noise_std.float().square()
    prior = variances[components].float() + noise
    return _gaussian_divergence(code, noise, means[components].float(), prior) + math.log(len(means))


def _gaussian_divergence(mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """KL of two Gaussians with diagonal covariances, summed over numbers (all but the first axis), averaged over N."""
    distance = (mean.float() - prior_mean).square()
    each = 0.5 * ((prior_variance / variance).log() + (variance + distance) / prior_variance - 1)
    return each.flatten(1).sum(dim=1).mean()

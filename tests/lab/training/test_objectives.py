import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sfumato.lab.models import reverse_gradient
from sfumato.lab.training.objectives import (
    class_mean_loss,
    classification_loss,
    distillation_loss,
    feature_loss,
    gaussian_rate,
    mixture_rate,
    multi_label_distillation_loss,
    multi_label_loss,
    reconstruction_loss,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_classification_loss_is_the_mean_cross_entropy_in_nats(smoothing):
    logits, labels = random(5, 4), torch.tensor([0, 3, 1, 1, 2])
    values = logits.double().numpy()
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    target = np.eye(4)[labels.numpy()] * (1 - smoothing) + smoothing / 4
    expected = -(target * log_p).sum(axis=1).mean()
    assert float(classification_loss(logits, labels, label_smoothing=smoothing)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_distillation_loss_is_the_softened_divergence_times_the_squared_temperature(temperature):
    student, teacher = random(5, 4), random(5, 4, seed=1)
    p, q = (np.exp(x.double().numpy() / temperature) for x in (teacher, student))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(distillation_loss(student, teacher, temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_multi_label_loss_is_the_mean_binary_cross_entropy_in_nats():
    logits, labels = random(5, 4), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    expected = -np.log(np.where(labels.numpy() == 1, p, 1 - p)).mean()
    assert float(multi_label_loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert multi_label_loss(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_multi_label_distillation_is_that_of_each_class_against_its_absence(temperature):
    """The oracle is the loss of one class at a time, as two classes of a softmax with the logits z and 0."""
    student, teacher = random(5, 4), random(5, 4, seed=1)
    two = [[torch.stack([z, torch.zeros_like(z)], dim=1) for z in logits.T] for logits in (student, teacher)]
    each = [distillation_loss(a, b, temperature=temperature) for a, b in zip(*two, strict=True)]
    found = multi_label_distillation_loss(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    assert float(multi_label_distillation_loss(teacher, teacher, temperature=temperature)) == pytest.approx(0, abs=1e-6)


def test_a_student_who_answers_like_the_teacher_has_nothing_to_learn():
    student = random(5, 4).requires_grad_()
    loss = distillation_loss(student, student.detach() + 3, temperature=4.0)  # a constant changes no answer
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert torch.allclose(student.grad, torch.zeros_like(student), atol=1e-6)


def test_at_a_high_temperature_distillation_matches_logits():
    # Hinton et al. 2015, section 2.1, equation 4: for logits of mean 0 the gradient is their difference over N classes.
    student, teacher = (random(3, 4, seed=s).double() for s in (0, 1))
    student, teacher = (x - x.mean(dim=1, keepdim=True) for x in (student, teacher))
    student.requires_grad_()
    (3 * distillation_loss(student, teacher, temperature=1000.0)).backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 4, atol=0.02)


def test_the_reconstruction_loss_is_the_mean_squared_error_per_number():
    reconstructed, images = random(3, 3, 4, 4), random(3, 3, 4, 4, seed=1)
    expected = np.mean((reconstructed.double().numpy() - images.double().numpy()) ** 2)
    assert float(reconstruction_loss(reconstructed, images)) == pytest.approx(expected, rel=1e-6)
    assert float(reconstruction_loss(images, images)) == 0


def test_half_precision_is_reduced_in_single_precision():
    reconstructed, images = torch.full((1, 3, 64, 64), 300.0, dtype=torch.float16), torch.zeros(1, 3, 64, 64)
    assert float(reconstruction_loss(reconstructed, images)) == 90_000  # beyond float16's 65,504
    assert classification_loss(random(2, 4).bfloat16(), torch.tensor([0, 1])).dtype == torch.float32
    assert distillation_loss(random(2, 4).bfloat16(), random(2, 4).bfloat16(), temperature=4.0).dtype == torch.float32


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_the_reversed_gradient_changes_nothing_forward_and_the_sign_and_size_backward(weight):
    x = random(2, 3).requires_grad_()
    out = reverse_gradient(x, weight)
    assert torch.equal(out, x)
    factor = random(2, 3, seed=1)
    (out * factor).sum().backward()
    assert torch.allclose(x.grad, -weight * factor)


def test_features_that_agree_cost_nothing_and_features_of_zero_cost_one():
    teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float(feature_loss(teacher, teacher)) == 0
    assert float(feature_loss(torch.zeros(2, 2), teacher)) == pytest.approx(1)
    # ((1 - 0)^2 + 0 + 0 + (4 - 2)^2) / (1 + 4 + 9 + 16)
    assert float(feature_loss(torch.tensor([[0.0, 2.0], [3.0, 2.0]]), teacher)) == pytest.approx(5 / 30)
    assert float(feature_loss(7 * torch.zeros(2, 2), 100 * teacher)) == pytest.approx(1), "whatever their scale"


def test_for_the_best_attacker_the_class_mean_loss_is_what_he_reconstructs_beyond_the_label():
    images, classes = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(24) % 2
    code = torch.arange(24) % 6  # tells the class, and a little more
    by_class = torch.stack([images[classes == c].mean(dim=0) for c in range(2)])[classes]
    best = torch.stack([images[code == c].mean(dim=0) for c in range(6)])[code]
    saved = reconstruction_loss(by_class, images) - reconstruction_loss(best, images)
    assert float(saved) > 0.001
    assert float(class_mean_loss(best, by_class)) == pytest.approx(float(saved), rel=1e-4)
    assert float(class_mean_loss(by_class, by_class)) == 0


def test_the_class_mean_loss_does_not_reward_a_negative():
    means = torch.full((1, 3, 4, 4), 0.5)
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    negative = 1 - images
    assert float(reconstruction_loss(negative, images)) > float(reconstruction_loss(means, images))
    assert float(class_mean_loss(negative, means)) == pytest.approx(float(class_mean_loss(images, means)), rel=1e-5)


def test_the_rate_is_the_divergence_from_a_standard_normal_in_nats_an_image():
    code, std = random(5, 3, 2, 2), torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1)
    expected = kl_divergence(Normal(code, std.expand_as(code)), Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean()
    assert float(gaussian_rate(code, std)) == pytest.approx(float(expected), rel=1e-5)
    assert float(gaussian_rate(torch.zeros(2, 4), torch.ones(1))) == 0
    assert float(gaussian_rate(torch.ones(2, 4), torch.ones(1))) == pytest.approx(4 / 2)


def test_for_a_gaussian_code_the_rate_is_the_channels_capacity():
    # Signal and noise of one number add up to variance 1: I(X;Z) = log(1 + signal / noise) / 2, Cover and Thomas 9.1.
    noise = 0.3
    code = math.sqrt(1 - noise**2) * torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20_000) + 0.5) / 20_000)
    capacity = 0.5 * math.log(1 + (1 - noise**2) / noise**2)
    assert float(gaussian_rate(code[:, None], torch.tensor(noise))) == pytest.approx(capacity, rel=1e-3)


def test_the_mixtures_rate_is_the_divergence_from_each_images_component():
    code, std = random(5, 3, 2, 2), torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1)
    means, variances = random(4, 3, 2, 2, seed=1), random(4, 3, 2, 2, seed=2).square()
    chosen = torch.tensor([0, 3, 3, 1, 2])
    prior = Normal(means[chosen], (variances[chosen] + std**2).sqrt())
    expected = kl_divergence(Normal(code, std.expand_as(code)), prior).sum(dim=(1, 2, 3)).mean() + math.log(4)
    assert float(mixture_rate(code, std, chosen, means, variances)) == pytest.approx(float(expected), rel=1e-5)


def test_codes_that_tell_the_class_alone_cost_the_classes_entropy():
    means = 100 * random(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 2, 3, 3])
    rate = mixture_rate(means[labels], torch.ones(1), labels, means, torch.zeros(4, 3, 2, 2))
    assert float(rate) == pytest.approx(math.log(4), rel=1e-5)


def test_with_the_codes_own_statistics_the_mixtures_rate_is_its_entropy_bound():
    # Huber et al. 2008, equation 8: the weights' entropy and each component's own, here less the noise's.
    code, labels, noise = random(40, 6), torch.arange(40) % 2, 0.5
    means = torch.stack([code[labels == c].mean(dim=0) for c in range(2)])
    variances = torch.stack([code[labels == c].var(dim=0, correction=0) for c in range(2)])
    expected = math.log(2) + 0.5 * (1 + variances / noise**2).log().sum(dim=1).mean()
    assert float(mixture_rate(code, torch.tensor(noise), labels, means, variances)) == pytest.approx(
        float(expected), rel=1e-5
    )
    for other in (means + 0.1, means * 0):  # of all mixtures, none bounds better
        assert float(mixture_rate(code, torch.tensor(noise), labels, other, variances)) > float(expected)

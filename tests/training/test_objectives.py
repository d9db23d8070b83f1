import numpy as np
import pytest
import torch

from sfumato.nets import reverse_gradient
from sfumato.training.objectives import (
    classification_loss,
    distillation_loss,
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
    restored, images = random(3, 3, 4, 4), random(3, 3, 4, 4, seed=1)
    expected = np.mean((restored.double().numpy() - images.double().numpy()) ** 2)
    assert float(reconstruction_loss(restored, images)) == pytest.approx(expected, rel=1e-6)
    assert float(reconstruction_loss(images, images)) == 0


def test_half_precision_is_reduced_in_single_precision():
    restored, images = torch.full((1, 3, 64, 64), 300.0, dtype=torch.float16), torch.zeros(1, 3, 64, 64)
    assert float(reconstruction_loss(restored, images)) == 90_000  # beyond float16's 65,504
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

import pytest
import torch
from torch import nn
from torch.optim import SGD

from sfumato.lab.training.muon import OTHERS, Muon, orthogonal


def test_a_gradient_becomes_orthogonal_in_its_own_directions():
    for rows, columns in ((12, 40), (40, 12)):
        matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        seen = u.T @ orthogonal(matrix) @ vt.T
        singular = seen.diag()
        assert singular.min() > 0.6 and singular.max() < 1.3, "what was long or short is about as long as the rest"
        assert (seen - singular.diag()).abs().max() < 0.05, "and no direction is mixed with another"


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_turns_dense_convolutions_by_its_rate_and_keeps_their_norms(channels_last):
    torch.manual_seed(1)
    net = nn.Conv2d(4, 8, 3, bias=False)
    net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    before = net.weight.detach().clone()
    optimizer = Muon(net, 0.05)
    gradient = torch.randn(8, 4, 3, 3)
    net.weight.grad = gradient.clone()
    optimizer.step()
    moved = net.weight.detach() - before
    assert float(net.weight.detach().norm()) == pytest.approx(float(before.norm()), rel=1e-5)
    assert float(moved.norm() / before.norm()) == pytest.approx(0.05, rel=0.1)
    assert float((moved * gradient).sum()) < 0, "downhill"
    u, _, vt = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    wanted = (u @ vt).view_as(moved)
    assert float(torch.cosine_similarity(moved.flatten(), -wanted.flatten(), dim=0)) > 0.97


def test_everything_else_is_trained_by_torchs_own_sgd():
    def net():
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1),
            nn.Flatten(),
            nn.Linear(16, 3),
        )

    ours, theirs = net(), net()
    images, labels = torch.randn(6, 4, 4, 4), torch.arange(6) % 3
    optimizers = (
        Muon(ours, 0.02, weight_decay=0.01),
        SGD(theirs.parameters(), OTHERS * 0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    )
    for _ in range(4):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)

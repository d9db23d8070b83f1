import torch

from sfumato.lab.training.code_mixture import CodeMixture


def test_it_follows_the_codes_of_each_class():
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    code = torch.randn(400, 2, 1, 1, generator=source) * torch.tensor([1.0, 3.0]).view(2, 1, 1) + 5 * labels.view(
        -1, 1, 1, 1
    )
    mixture = CodeMixture(3, (2, 1, 1))
    for _ in range(100):
        mixture.follow(code, labels)
    for c in range(2):
        own = code[labels == c]
        assert torch.allclose(mixture.means[c], own.mean(dim=0), atol=1e-3)
        assert torch.allclose(mixture.variances[c], own.var(dim=0, correction=0), rtol=1e-3)
    assert torch.equal(mixture.means[2], torch.zeros(2, 1, 1)), "no image of this class was seen"
    assert torch.equal(mixture.variances[2], torch.ones(2, 1, 1))


def test_one_step_takes_a_tenth():
    mixture = CodeMixture(2, (1,))
    mixture.follow(torch.tensor([[2.0], [4.0]]), torch.tensor([1, 1]))
    assert torch.allclose(mixture.means, torch.tensor([[0.0], [0.3]]))
    # Around the old mean: (4 + 16) / 2 = 10.
    assert torch.allclose(mixture.variances, torch.tensor([[1.0], [0.9 + 1.0]]))


def test_a_single_image_of_a_class_still_has_a_variance():
    mixture = CodeMixture(2, (1,))
    for value in (1.0, -1.0) * 200:
        mixture.follow(torch.tensor([[value]]), torch.tensor([0]))
    assert abs(float(mixture.means[0])) < 0.1
    assert 0.9 < float(mixture.variances[0]) < 1.2

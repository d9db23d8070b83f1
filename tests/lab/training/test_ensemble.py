"""Several classifiers at once, and images that are varied for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.lab.models import Normalize, Obfuscator, Sketcher, build_classifier
from sfumato.lab.training.ensemble import Ensemble, vary
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.objectives import classification_loss
from sfumato.lab.training.tasks import SketchTask

PLAIN = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def images(size: int = 32) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5


def test_varied_images_lie_small_on_black() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        out = vary(images(), share=1.0)
        assert out.shape == (4, 3, 32, 32)
        lit = (out[0, 0] > 0.2).nonzero()  # all of the image is brighter
        height, width = (lit.max(dim=0).values - lit.min(dim=0).values + 1).tolist()
        assert height == width and 25 <= height <= 32
        assert len(lit) == height * width
        seen.add((height, *lit.min(dim=0).values.tolist()))
    assert len(seen) > 10


def test_without_a_share_nothing_varies_and_gradients_pass_with_one() -> None:
    x = images().requires_grad_()
    assert vary(x, share=0.0) is x
    vary(x, share=1.0).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and float(x.grad.abs().min()) > 0


def test_others_stay_frozen_and_see_variations_in_training_alone() -> None:
    ensemble = Ensemble([(PLAIN, build_classifier("resnet20", 4))], diversity=1.0)
    ensemble.train()
    assert not ensemble.nets.training and not any(p.requires_grad for p in ensemble.parameters())
    x = images()
    assert not torch.equal(ensemble.varied(x), x)
    ensemble.eval()
    assert torch.equal(ensemble.varied(x), x)
    assert torch.equal(ensemble(x)[0], ensemble.nets[0](x))


def test_noise_is_of_the_size_that_is_asked_for_and_in_training_alone() -> None:
    ensemble = Ensemble(noise=0.25).train()
    x = torch.full((8, 3, 32, 32), 0.5)
    assert float((ensemble.varied(x) - x).std()) == pytest.approx(0.25, rel=0.03)
    assert torch.equal(ensemble.eval().varied(x), x)


@pytest.mark.parametrize("kind", ["obfuscator", "sketch"])
def test_each_classifier_counts_as_much_as_the_first(kind: str) -> None:
    torch.manual_seed(0)
    nets = [build_classifier("resnet20", 4).eval() for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3])
    ensemble = Ensemble([(PLAIN, net) for net in nets[1:]])
    if kind == "obfuscator":
        task: nn.Module = ObfuscationTask(Obfuscator(), None, nets[0], PLAIN, privacy_weight=0.0, ensemble=ensemble)
        found = task.eval()(images(), labels)["loss"]
        payload = task.obfuscator(images())
    else:
        sketcher = Sketcher(32, 32, classes=4, bits=4)
        task = SketchTask(sketcher, nets[0], PLAIN, teacher_weight=0.0, temperature=4.0, ensemble=ensemble)
        found = task.eval()(images(), labels)["obfuscated"]
        payload = sketcher(images())[0]
    wanted = torch.stack([classification_loss(net(payload), labels) for net in nets]).mean()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_learning_the_decoder_alone_leaves_the_encoder() -> None:
    torch.manual_seed(0)
    sketcher, net = Sketcher(32, 32, classes=4, bits=4), build_classifier("resnet20", 4)
    task = SketchTask(sketcher, net, PLAIN, teacher_weight=0.5, temperature=4.0, decoded_share=0.5, decoder_alone=True)
    task.train()
    before = {name: value.clone() for name, value in sketcher.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    drawn = [p.clone() for p in sketcher.draw.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        task(images(), torch.tensor([0, 1, 2, 3]))["loss"].backward()
        optimizer.step()
    after = sketcher.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # running statistics, too
    assert not any(torch.equal(a, b) for a, b in zip(drawn, sketcher.draw.parameters(), strict=True))

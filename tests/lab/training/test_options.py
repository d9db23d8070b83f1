"""What an obfuscator can be asked for besides the paper's objective: gradients against losses written out apart."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.lab.models import DECODERS, Deobfuscator, Normalize, Obfuscator, build_classifier
from sfumato.lab.training.adversaries import Attackers
from sfumato.lab.training.code_mixture import CodeMixture
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe_parts import UtilityRecipe

IMAGES = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
MEANS = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
# A power of two: the losses are float32, where other factors would round.
WEIGHT = 0.5


def task(
    deobfuscator: Callable[[], nn.Module | None] = Deobfuscator, *, noisy: bool = False, **options
) -> ObfuscationTask:
    torch.manual_seed(1)
    made = ObfuscationTask(
        Obfuscator(noisy=noisy),
        deobfuscator(),
        build_classifier("resnet20", 4),
        Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        **{"privacy_weight": WEIGHT, **options},
    )
    return made.double().train()


def several() -> nn.Module:
    return Attackers(Deobfuscator(), DECODERS["residual"](), DECODERS["unet"]())


def gradients(net: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in net.named_parameters()}


def assert_gradients(net: nn.Module, loss: torch.Tensor, other: nn.Module) -> None:
    """The gradients that lie in `net` are those of a loss computed with the like network `other`."""
    expected = torch.autograd.grad(loss, list(other.parameters()))
    for (name, got), wanted in zip(net.named_parameters(), expected, strict=True):
        scale = max(1e-12, float(wanted.abs().max()))
        assert torch.allclose(got.grad, wanted, rtol=0, atol=1e-5 * scale), name


def logits(of: ObfuscationTask, images: torch.Tensor) -> torch.Tensor:
    return of.classifier(of.normalize(images))


def test_with_a_class_mean_each_network_minimises_its_own():
    ours, apart = task(class_means=MEANS), task()
    losses = ours(IMAGES, LABELS)
    losses["loss"].backward()
    obfuscated = apart.obfuscator(IMAGES)
    beyond = (apart.deobfuscator(obfuscated) - MEANS[LABELS]).square().mean()
    assert float(losses["beyond_label"]) == pytest.approx(float(beyond.detach()), rel=1e-5)
    assert_gradients(
        ours.obfuscator, F.cross_entropy(logits(apart, obfuscated), LABELS) + WEIGHT * beyond, apart.obfuscator
    )
    reconstructed = apart.deobfuscator(apart.obfuscator(IMAGES).detach())
    assert_gradients(ours.deobfuscator, (reconstructed - IMAGES).square().mean(), apart.deobfuscator)
    assert all(p.requires_grad for p in ours.deobfuscator.parameters())


@pytest.mark.parametrize("bounded", [False, True])
def test_the_obfuscator_faces_the_best_attacker_alone_and_all_of_them_learn(bounded):
    ours, apart = task(several, class_means=MEANS if bounded else None), task(several)
    for each in (ours, apart):
        each.deobfuscator.note(torch.tensor([0.3, 0.1, 0.2]))
    losses = ours(IMAGES, LABELS)
    losses["loss"].backward()
    nets = apart.deobfuscator.nets
    obfuscated = apart.obfuscator(IMAGES)
    reconstructed = nets[1](obfuscated)
    against = (reconstructed - MEANS[LABELS]).square().mean() if bounded else -(reconstructed - IMAGES).square().mean()
    assert_gradients(
        ours.obfuscator, F.cross_entropy(logits(apart, obfuscated), LABELS) + WEIGHT * against, apart.obfuscator
    )
    for own, net in zip(ours.deobfuscator.nets, nets, strict=True):
        assert_gradients(own, (net(obfuscated.detach()) - IMAGES).square().mean(), net)
    errors = [float((net(obfuscated.detach()) - IMAGES).square().mean().detach()) for net in nets]
    assert float(losses["reconstruction"]) == pytest.approx(errors[1], rel=1e-5)
    assert [float(losses[f"attacker_{i}"]) for i in range(3)] == pytest.approx(errors, rel=1e-5)
    expected = [0.95 * old + 0.05 * new for old, new in zip((0.3, 0.1, 0.2), errors, strict=True)]
    assert ours.deobfuscator.errors.tolist() == pytest.approx(expected, rel=1e-5)


def test_looking_at_images_changes_no_running_figure():
    ours = task(several, noisy=True, entropy_weight=1.0, mixture=CodeMixture(4, (128, 2, 2))).eval()
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        ours(IMAGES, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_the_utilitys_parts_get_their_shares():
    shares = {"label_weight": 0.25, "teacher_weight": 0.25, "feature_weight": 0.5, "temperature": 2.0}
    ours = task(lambda: None, privacy_weight=0.0, **shares)
    losses = ours(IMAGES, LABELS)
    obfuscated = ours.obfuscator(IMAGES)
    own, plain = (ours.normalize(images) for images in (obfuscated, IMAGES))
    teacher = (ours.classifier(plain) / 2).softmax(dim=1)
    divergence = (teacher * (teacher.log() - (ours.classifier(own) / 2).log_softmax(dim=1))).sum(dim=1).mean()
    features = ours.classifier.features(plain)
    apart = (ours.classifier.features(own) - features).square().mean() / features.square().mean()
    labels = F.cross_entropy(ours.classifier(own), LABELS)
    expected = 0.25 * labels + 0.25 * 4 * divergence + 0.5 * apart
    assert float(losses["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(losses["features"]) == pytest.approx(float(apart.detach()), rel=1e-4)
    assert "reconstruction" not in losses


@pytest.mark.parametrize(("teacher", "features"), [(1.0, 0.0), (0.3, 0.7), (0.0, 1.0)])
def test_labels_without_a_share_are_not_looked_at(teacher, features):
    assert UtilityRecipe(teacher_weight=teacher, feature_weight=features).label_weight == 0
    ours = task(label_weight=0.0, teacher_weight=teacher, feature_weight=features)
    losses = ours(IMAGES, torch.full((4,), -1))
    losses["loss"].backward()
    assert "classification" not in losses
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ours.obfuscator.parameters())


def test_what_the_code_tells_is_charged_by_its_weight():
    mixture = CodeMixture(4, (128, 2, 2))
    mixture.means.normal_(generator=torch.Generator().manual_seed(2))
    ours = task(lambda: None, noisy=True, privacy_weight=0.0, rate_weight=0.5, entropy_weight=2.0, mixture=mixture)
    means = mixture.means.clone()
    torch.manual_seed(3)
    losses = ours(IMAGES, LABELS)
    code, variance = ours.obfuscator.encode(IMAGES), ours.obfuscator.noise.std.square()
    rate = 0.5 * (code.square() + variance - 1 - variance.log()).sum(dim=(1, 2, 3)).mean()
    prior = 1 + variance
    each = 0.5 * ((prior / variance).log() + (variance + (code - means[LABELS]).square()) / prior - 1)
    mixed = each.sum(dim=(1, 2, 3)).mean() + torch.tensor(4.0).log()
    assert float(losses["rate"]) == pytest.approx(float(rate.detach()), rel=1e-4)
    assert float(losses["mixture_rate"]) == pytest.approx(float(mixed.detach()), rel=1e-4)
    total = float(losses["classification"]) + 0.5 * float(rate.detach()) + 2 * float(mixed.detach())
    assert float(losses["loss"].detach()) == pytest.approx(total, rel=1e-4)
    assert not torch.equal(ours.mixture.means, means), "the mixture follows afterwards"
    losses["loss"].backward()
    assert float(ours.obfuscator.noise.log_std.grad.abs().max()) > 0, "the noise's size is learned"


def test_the_rate_falls_when_it_alone_counts():
    ours = task(lambda: None, noisy=True, privacy_weight=0.0, rate_weight=1.0).float()
    optimizer = torch.optim.Adam(ours.obfuscator.parameters(), lr=0.05)
    rates = []
    for _ in range(30):
        losses = ours(IMAGES.float(), LABELS)
        rates.append(float(losses["rate"]))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert rates[-1] < 0.1 * rates[0]


def test_without_attackers_the_panel_has_two_rows():
    assert task(lambda: None, privacy_weight=0.0).float().panel(IMAGES.float()).shape == (2, 4, 3, 16, 16)

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from scenes import images
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.fit import BATCH, FLAT, LEAST_STEPS, VALIDATIONS, fit_decoder, flattened
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs

KNOWN = images(120, side=8).images


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))


def pairs():
    return FreshPairs(KNOWN, lambda x: 1 - x)


def test_interrupted_and_resumed_training_ends_at_the_same_weights(tmp_path):
    budget = AttackBudget(images=40 * BATCH, steps=0)
    whole = fit_decoder(net(), pairs(), nn.MSELoss(), budget)

    def interrupt(stage, done, total, note=""):
        if done == 17:
            os.kill(os.getpid(), signal.SIGINT)

    parts = replace(budget, checkpoint=tmp_path / "state.pt")
    with pytest.raises(Interrupted):
        fit_decoder(net(), pairs(), nn.MSELoss(), replace(parts, progress=interrupt))
    resumed = fit_decoder(net(), pairs(), nn.MSELoss(), parts)
    assert resumed.curve == whole.curve
    for one, other in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    budget = AttackBudget(images=BATCH, steps=0, checkpoint=tmp_path / "state.pt")
    with pytest.raises(Interrupted):
        stop = replace(budget, images=9 * BATCH, progress=lambda *_: os.kill(os.getpid(), signal.SIGINT))
        fit_decoder(net(), pairs(), nn.MSELoss(), stop, identity="one")
    with pytest.raises(AuditError, match="another audit"):
        fit_decoder(net(), pairs(), nn.MSELoss(), budget, identity="other")


def test_the_weights_kept_are_those_of_the_best_look():
    """Pairs that are noise: whatever is learned from them makes the held-out ones worse."""
    noise = torch.randn(120, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    start = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Unflatten(1, (3, 8, 8)))
    nn.init.zeros_(start[1].weight)
    start[1].bias.data = (KNOWN.float().mean(dim=0) / 255).flatten()
    fitted = fit_decoder(start, FixedPairs(KNOWN, noise), nn.MSELoss(), AttackBudget(60 * BATCH, 0))
    errors = [error for _, error in fitted.curve]
    assert errors[-1] > errors[0]
    assert float(fitted.net[1].weight.abs().max()) == 0


def test_training_stops_when_nothing_is_gained():
    still = nn.Conv2d(3, 3, 1).requires_grad_(False)
    budget = AttackBudget(images=1_000 * BATCH, steps=0)
    moving = nn.Sequential(still, nn.Identity())
    moving.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    class Loss(nn.Module):
        def forward(self, reconstructed, images):
            return (reconstructed - images).square().mean() + 0 * moving.unused.sum()

    fitted = fit_decoder(moving, pairs(), Loss(), budget)
    assert fitted.images_seen < 0.7 * budget.images and fitted.flattened


def test_a_curve_is_flat_by_what_its_last_third_gains():
    seen = [i * LEAST_STEPS * BATCH for i in range(VALIDATIONS + 1)]
    falling = [(n, 1.0 - i / 20) for i, n in enumerate(seen)]
    settled = [(n, max(0.5, 1.0 - i / 8)) for i, n in enumerate(seen)]
    nearly = [(n, 1.0 if i < 9 else 1 - 0.9 * FLAT) for i, n in enumerate(seen)]
    assert not flattened(falling)
    assert flattened(settled) and flattened(nearly)
    assert not flattened(settled[:3]), "two looks show nothing"
    assert not flattened([(i, 1.0) for i in range(VALIDATIONS + 1)]), "nor do a few steps"


def test_losses_that_are_not_finite_are_an_error():
    broken = FreshPairs(KNOWN, lambda x: x * float("nan"))
    with pytest.raises(AuditError, match="loss is nan"):
        fit_decoder(net(), broken, nn.MSELoss(), AttackBudget(VALIDATIONS * BATCH, 0))


def test_a_handful_of_pairs_is_too_few():
    few = FixedPairs(KNOWN[:4], KNOWN[:4].float())
    with pytest.raises(AuditError, match="at least 5 pairs"):
        fit_decoder(net(), few, nn.MSELoss(), AttackBudget(64, 0))


def test_large_images_in_parts_make_the_same_steps(monkeypatch):
    budget = AttackBudget(images=12 * BATCH, steps=0)
    seen: list[int] = []

    def told(module, inputs):
        seen.append(len(inputs[0]))

    whole = fit_decoder(net(), pairs(), nn.MSELoss(), budget)
    monkeypatch.setattr("sfumato.lab.attacks.fit._PIXELS_AT_ONCE", 10 * 8 * 8)  # as if these were large
    watched = net()
    watched.register_forward_pre_hook(told)
    parts = fit_decoder(watched, pairs(), nn.MSELoss(), budget)
    assert max(seen) <= 40 and seen.count(10) >= 12 * 6
    assert [error for _, error in parts.curve] == pytest.approx([error for _, error in whole.curve], rel=1e-4)

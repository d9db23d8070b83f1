"""Certificates against closed forms, numerical integration and the strongest attackers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import AuditError
from sfumato.lab.attacks.target import Noisy, NoisyWithin
from sfumato.lab.audit import certificate
from sfumato.lab.audit.certificate import (
    certify,
    certify_code,
    fano_top1,
    fisher_information,
    fisher_trace,
    rate_bits,
    van_trees_mse,
)
from sfumato.lab.models import Normalize, Obfuscator, Payload

SIDES = (4, 3)
NUMBERS = 3 * SIDES[0] * SIDES[1]


class LinearNoise:
    """`A x` and noise: everything about it is known in closed form."""

    def __init__(self, numbers: int = 20, kind: str = "gaussian") -> None:
        source = torch.Generator().manual_seed(1)
        self.matrix = torch.randn(numbers, NUMBERS, generator=source) / 6
        self.std = torch.linspace(0.05, 0.3, numbers)
        self.noise_kind = kind

    def mean(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.matrix.T)[:, :, None, None]

    def noise_std(self) -> Tensor:
        return self.std[:, None, None]

    def information(self) -> Tensor:
        return self.matrix.T.double() @ torch.diag(self.std.double() ** -2) @ self.matrix.double()


def images(count: int, seed: int = 0) -> Tensor:
    """Images whose pixels hang together, nearly Gaussian."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(NUMBERS, NUMBERS, generator=torch.Generator().manual_seed(7)) / math.sqrt(NUMBERS)
    values = 0.5 + 0.12 * torch.randn(count, NUMBERS, generator=source) @ mixing
    return (values.clamp(0, 1) * 255).round().byte().reshape(count, 3, *SIDES)


def test_fisher_information_of_a_linear_map():
    noisy = LinearNoise()
    found = fisher_information(noisy, images(1)[0])
    torch.testing.assert_close(found, noisy.information(), rtol=1e-4, atol=1e-4)
    twice = fisher_information(LinearNoise(kind="laplace"), images(1)[0])
    torch.testing.assert_close(twice, 2 * found, rtol=1e-4, atol=1e-4)


def test_fisher_information_follows_the_image_where_the_map_is_curved():
    class Curved(LinearNoise):
        def mean(self, images: Tensor) -> Tensor:
            return super().mean(images).tanh()

    noisy, (a, b) = Curved(), images(2)
    slope = 1 - noisy.mean(a[None].float() / 255).flatten().double() ** 2
    rows = (slope / noisy.std.double())[:, None] * noisy.matrix.double()
    torch.testing.assert_close(fisher_information(noisy, a), rows.T @ rows, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(fisher_information(noisy, a), fisher_information(noisy, b))


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_fisher_information_and_entropy_of_the_noise_by_numerical_integration(kind):
    std = 0.3
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)[:-1] + 2e-5 / 3
    law = torch.distributions.Normal(0.0, std) if kind == "gaussian" else torch.distributions.Laplace(0.0, std / 2**0.5)
    log_density = law.log_prob(x.requires_grad_())
    (score,) = torch.autograd.grad(log_density.sum(), x)
    weights = log_density.detach().exp() * 4e-5
    assert float((weights * score**2).sum()) == pytest.approx(certificate._INFORMATION[kind] / std**2, rel=1e-3)
    entropy_bits = -float((weights * log_density.detach()).sum()) / math.log(2)
    gaussian_bits = 0.5 * math.log2(2 * math.pi * math.e * std**2)
    assert gaussian_bits - entropy_bits == pytest.approx(certificate._EXTRA_BITS[kind], abs=1e-3)


def test_the_estimated_trace_is_near_the_exact_one():
    noisy = LinearNoise()
    estimate = fisher_trace(noisy, images(1)[0], torch.Generator().manual_seed(0))
    assert estimate == pytest.approx(float(noisy.information().trace()), rel=0.3)


def test_van_trees_is_the_posterior_variance_and_the_best_linear_attacker_meets_it():
    noisy, train = LinearNoise(), images(20_000)
    x = train.flatten(1).double() / 255
    covariance = torch.cov(x.T)
    bound = van_trees_mse(noisy.information(), covariance)
    posterior = torch.linalg.inv(noisy.information() + torch.linalg.inv(covariance))
    assert bound == pytest.approx(float(posterior.trace()) / NUMBERS, rel=1e-6)

    source = torch.Generator().manual_seed(3)
    noise = torch.randn(len(x), 20, generator=source, dtype=torch.float64) * noisy.std
    seen = x @ noisy.matrix.T.double() + noise
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    learn, attack = slice(0, 10_000), slice(10_000, None)
    inputs = torch.cat([seen, ones], dim=1)
    solution = torch.linalg.lstsq(inputs[learn], x[learn]).solution
    error = float((inputs[attack] @ solution - x[attack]).square().mean())
    assert bound * 0.99 < error < bound * 1.03


def test_van_trees_with_images_that_fill_no_space():
    covariance = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert van_trees_mse(torch.eye(2), covariance) == pytest.approx(0.25)  # 1 / (1 + 1), over two numbers
    assert van_trees_mse(torch.zeros(2, 2), covariance) == pytest.approx(0.5)  # the prior's own variance


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_the_rate_of_a_linear_map_of_gaussian_images(kind):
    """With few images the bound may be loose, but it must not fall below the true rate."""
    noisy = LinearNoise(kind=kind)
    source = torch.Generator().manual_seed(5)
    mixing = torch.randn(NUMBERS, NUMBERS, generator=source) * 0.05
    whitened = noisy.matrix.double() / noisy.std.double()[:, None] @ mixing.T.double()
    exact = 0.5 * float(torch.logdet(torch.eye(20, dtype=torch.float64) + whitened @ whitened.T)) / math.log(2)
    exact += 20 * 0.5 * math.log2(math.pi / math.e) * (kind == "laplace")
    for count, slack in ((60, 1.4), (20_000, 1.02)):
        x = torch.randn(count, NUMBERS, generator=source) @ mixing
        rate = rate_bits(x @ noisy.matrix.T, noisy.std, kind)
        assert exact * 0.98 < rate < exact * slack, count


def test_what_does_not_depend_on_the_image_carries_nothing():
    assert rate_bits(torch.ones(10, 5), torch.full((5,), 0.1), "laplace") == 0


@pytest.mark.parametrize(("candidates", "hit_rate"), [(10, 0.5), (100, 0.02), (1000, 0.9)])
def test_fano_is_tight_where_all_mistakes_are_equally_likely(candidates, hit_rate):
    missed = 1 - hit_rate
    each = missed / (candidates - 1)
    rate = math.log2(candidates) + hit_rate * math.log2(hit_rate) + missed * math.log2(each)
    assert fano_top1(rate, candidates) == pytest.approx(hit_rate, rel=1e-6)
    assert fano_top1(rate, candidates) <= (rate + 1) / math.log2(candidates)


def test_fano_at_its_ends():
    assert fano_top1(0.0, 10) == pytest.approx(0.1, rel=1e-4)
    assert fano_top1(math.log2(10), 10) == 1.0
    assert fano_top1(500.0, 10_000) == 1.0


def test_a_certificate_holds_together_and_is_the_same_again():
    noisy, train = LinearNoise(), images(4000)
    reported: list[tuple[int, int]] = []
    found = certify(noisy, train, seed=1, progress=lambda _, done, total: reported.append((done, total)))
    dfil = float(noisy.information().trace()) / NUMBERS
    assert found.dfil == pytest.approx(dfil, rel=1e-4)
    assert found.mse_bound_unbiased == pytest.approx(1 / dfil, rel=1e-4)
    covariance = torch.cov(train.flatten(1).T.double() / 255)
    assert found.mse_bound_any == pytest.approx(van_trees_mse(noisy.information(), covariance), rel=1e-4)
    assert (found.images, found.jacobians) == (4000, certificate.JACOBIANS)
    assert reported[-1] == (found.jacobians, found.jacobians)
    assert found == certify(noisy, train, seed=1)
    said = json.loads(json.dumps(found.as_json))
    assert said["top1_bounds"]["1000"] == found.top1_bounds[1000] == fano_top1(found.rate_bits, 1000)
    assert any("Gaussian" in line for line in said["assumptions"])


def test_more_noise_promises_more():
    little, much = LinearNoise(), LinearNoise()
    much.std = much.std * 30
    train = images(2000)
    weak, strong = certify(little, train), certify(much, train)
    assert strong.mse_bound_unbiased > weak.mse_bound_unbiased
    assert strong.mse_bound_any > weak.mse_bound_any
    assert strong.rate_bits < weak.rate_bits
    assert strong.top1_bounds[1000] < 1 == weak.top1_bounds[10]


def test_large_images_get_an_estimate_and_say_so(monkeypatch):
    monkeypatch.setattr(certificate, "MAX_JOINT", 10)
    found = certify(LinearNoise(), images(500))
    assert found.mse_bound_any is None
    assert any("Hutchinson" in line for line in found.assumptions)
    assert found.dfil == pytest.approx(float(LinearNoise().information().trace()) / NUMBERS, rel=0.15)


class Altered(LinearNoise):
    """With one thing wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__(kind="cauchy" if wrong == "kind" else "gaussian")
        self.wrong = wrong
        if wrong == "no noise":
            self.std = self.std * (torch.arange(20) > 0)

    def mean(self, images: Tensor) -> Tensor:
        means = super().mean(images)
        if self.wrong == "rounded":
            return means.mul(10).round()
        return {"detached": means.detach(), "shape": means[:, 1:]}.get(self.wrong, means)


@pytest.mark.parametrize(
    ("noisy", "message"),
    [
        (nn.Conv2d(3, 3, 1), "states none"),
        (Altered("kind"), "cauchy"),
        (Altered("no noise"), "have no noise"),
        (Altered("detached"), "no gradient"),
        (Altered("rounded"), "gradient is zero"),
        (Altered("shape"), "noise of shape"),
    ],
)
def test_where_there_is_no_certificate(noisy, message):
    with pytest.raises(AuditError, match=message):
        certify(noisy, images(10))


@pytest.mark.parametrize("bad", [images(3), images(10).float(), images(10)[0]])
def test_images_that_cannot_be_used(bad):
    with pytest.raises(AuditError, match="at least 4"):
        certify(LinearNoise(), bad)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_a_code_bounds_how_often_the_best_guess_is_right(bits):
    """Against the best guess of an attacker that knows which code every candidate has."""
    candidates, source = 1000, torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (200, candidates), generator=source)
    shares = torch.stack([(row == row[0]).sum() for row in codes]).double()  # the original is the first; ties are drawn
    bound = certify_code(bits).top1_bounds[candidates]
    assert float((1 / shares).mean()) == pytest.approx(bound, rel=0.15)
    assert bound == 2**bits / candidates


def test_a_codes_certificate_claims_no_more_than_that():
    found = certify_code(10)
    assert (found.rate_bits, found.top1_bounds[10], found.top1_bounds[10_000]) == (10.0, 1.0, 1024 / 10_000)
    assert found.dfil is None and found.mse_bound_any is None and found.mse_bound_unbiased is None


def test_with_a_gate_that_nothing_payload_is_one_value_more():
    found = certify_code(3, gated=True)
    assert found.top1_bounds[1000] == 9 / 1000 and found.rate_bits == pytest.approx(math.log2(9))
    assert any("not sent" in words for words in found.assumptions)
    assert not any("not sent" in words for words in certify_code(3).assumptions)


def test_an_obfuscators_noisy_code_is_certified():
    torch.manual_seed(0)
    net = Obfuscator(noisy=True)
    images = (torch.rand(40, 3, 8, 8) * 255).byte()
    for _ in range(20):
        net(images.float() / 255)
    payload = Payload(net.eval(), Normalize((0.5,) * 3, (0.2,) * 3), 8, 8)
    assert isinstance(payload, NoisyWithin) and not isinstance(payload, Noisy)
    found = certify(payload.noisy_code, images)
    codes, std = net.encode(images.float() / 255).detach().flatten(1), payload.noisy_code.noise_std().flatten()
    # Of all with these variances, independent Gaussians tell most: Cover and Thomas 2006, section 9.4.
    by_numbers = 0.5 * (1 + codes.double().var(dim=0) / std.double() ** 2).log2().sum()
    assert 0 < found.rate_bits < 1.5 * float(by_numbers)
    assert found.dfil > 0 and 0 < found.mse_bound_any < 1 / 12
    with torch.no_grad():
        net.noise.log_std += 2.0
    louder = certify(payload.noisy_code, images)
    assert louder.rate_bits < 0.5 * found.rate_bits and louder.mse_bound_any > found.mse_bound_any

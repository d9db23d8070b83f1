"""The methods that learn: their objectives against naive ones, and a few steps of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.baselines import Training, build
from sfumato.lab.baselines.encoders import LEVELS, block_brightness, distance_correlation, mean_entropy
from sfumato.lab.models import Normalize
from synthetic import CLASSES, image_set

LEARNED = ("shredder", "cloak", "nopeek", "max-entropy", "joint")
SIZE = 16


class Colours(nn.Module):
    """Predicts by the mean colour: enough for the synthetic classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    net, images = Colours(), image_set(64, size=(SIZE, SIZE))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(images.images.float() / 255), images.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3
    return net.eval().requires_grad_(False)


def training(classifier: nn.Module, **changes) -> Training:
    images = image_set(64, size=(SIZE, SIZE))
    plain = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Training(images.images, images.labels, classifier, plain, **{"batch_size": 16, **changes})


@pytest.mark.parametrize("name", LEARNED)
def test_training_lowers_the_loss(name, classifier):
    method, losses = build(name, SIZE, SIZE), []
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    epochs = 10 if name in ("shredder", "cloak") else 5
    net = method.fit(training(classifier, epochs=epochs, progress=lambda *step: losses.append(float(step[3][5:]))))
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    assert (net is classifier) is (name != "joint")
    assert not net.training
    assert not method.training or name in ("shredder", "cloak")  # these are the same in both modes
    assert len(losses) == 4 * epochs
    first = losses[:20] if name == "cloak" else losses  # the second stage begins with numbers blanked
    assert np.mean(first[-5:]) < np.mean(first[:5])


@pytest.mark.parametrize("name", ["shredder", "cloak"])
def test_the_classifier_still_answers(name, classifier):
    method = build(name, SIZE, SIZE)
    method.fit(training(classifier, epochs=10))
    with torch.no_grad():
        images = image_set(32, size=(SIZE, SIZE), seed=3)
        predictions = classifier(method(images.images.float() / 255)).argmax(dim=1)
    assert (predictions == images.labels).float().mean() > 0.5


@pytest.mark.parametrize("name", ["shredder", "nopeek"])
def test_the_seed_decides(name, classifier):
    def fitted(seed: int) -> torch.Tensor:
        method = build(name, SIZE, SIZE, seed=seed)
        method.fit(training(classifier, epochs=0.5))
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    assert torch.equal(fitted(1), fitted(1))
    assert not torch.equal(fitted(1), fitted(2))


def test_shredder_makes_more_noise_when_told_to(classifier):
    stds = []
    for strength in (0.01, 10.0):
        method = build("shredder", SIZE, SIZE, strength=strength)
        method.fit(training(classifier, epochs=5))
        stds.append(float(method.noise_std().mean()))
    assert stds[0] < stds[1]


def test_cloak_blanks_what_the_classifier_does_not_look_at():
    class Half(Colours):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[..., : SIZE // 2])

    torch.manual_seed(0)
    net = Half()
    with torch.no_grad():
        net.linear.weight.normal_().mul_(300)
    method = build("cloak", SIZE, SIZE, strength=0.25)
    method.fit(training(net.requires_grad_(False), epochs=10))
    blanked = method.kept == 0
    assert blanked.float().mean() == 0.25
    assert blanked[..., SIZE // 2 :].float().mean() > 0.45
    x = image_set(2, size=(SIZE, SIZE)).images.float() / 255
    assert torch.equal(method.mean(x)[0][blanked], method.mean(x)[1][blanked])


def test_pca_is_the_projection_that_an_svd_gives(classifier):
    for count in (100, 800):  # fewer images than numbers, and more
        source = torch.Generator().manual_seed(2)
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=source, dtype=torch.uint8)
        method = build("pca", 8, 8, strength=5)
        plain = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        method.fit(Training(images, torch.zeros(count, dtype=torch.int64), classifier, plain))
        x = images.numpy().reshape(count, -1) / 255
        centred = x - x.mean(axis=0)
        basis = np.linalg.svd(centred, full_matrices=False)[2][:5]
        expected = (centred @ basis.T @ basis + x.mean(axis=0)).reshape(count, 3, 8, 8)
        np.testing.assert_allclose(method(images.float() / 255).numpy(), expected, atol=1e-3)


def test_pca_needs_more_images_than_components(classifier):
    with pytest.raises(TrainingError, match="100 components need more images"):
        build("pca", SIZE, SIZE, strength=100).fit(training(classifier))


def naive_distance_correlation(x: np.ndarray, y: np.ndarray) -> float:
    def centred(v: np.ndarray) -> np.ndarray:
        n = len(v)
        d = np.array([[np.sqrt(((v[i] - v[j]) ** 2).sum()) for j in range(n)] for i in range(n)])
        return np.array([[d[i, j] - d[i].mean() - d[:, j].mean() + d.mean() for j in range(n)] for i in range(n)])

    a, b = centred(x), centred(y)
    return float(np.sqrt((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean())))


def test_distance_correlation_is_the_naive_one():
    x = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for y in (x.square().flatten(1)[:, :5], torch.randn(12, 4, generator=torch.Generator().manual_seed(1))):
        expected = naive_distance_correlation(x.flatten(1).numpy(), y.numpy())
        assert float(distance_correlation(x, y)) == pytest.approx(expected, abs=1e-4)


def test_distance_correlation_at_its_ends():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    assert float(distance_correlation(x, 3 * x + 1)) == pytest.approx(1, abs=1e-4)
    assert float(distance_correlation(x, torch.ones(12, 4))) == pytest.approx(0, abs=1e-4)
    constant = torch.ones(12, 4, requires_grad=True)
    distance_correlation(x, constant).backward()
    assert torch.isfinite(constant.grad).all()


def test_entropy_is_highest_where_nothing_is_known():
    flat = torch.zeros(2, LEVELS, 3, 3)
    assert float(mean_entropy(flat)) == pytest.approx(np.log(LEVELS))
    confidence = flat.clone()
    confidence[:, 1] = 50
    assert float(mean_entropy(confidence)) == pytest.approx(0, abs=1e-6)


def test_brightness_is_the_mean_of_a_block():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert block_brightness(x)[1, 1, 0] == pytest.approx(float(x[1, :, 4:, :4].mean()))


def test_training_that_cannot_be_done_is_refused(classifier):
    for changes in ({"epochs": 0}, {"epochs": float("nan")}, {"batch_size": 1}):
        with pytest.raises(TrainingError, match="at least 2 images a step and epochs above 0"):
            build("shredder", SIZE, SIZE).fit(training(classifier, **changes))


def test_a_loss_that_is_not_finite_ends_training(classifier):
    method = build("shredder", SIZE, SIZE)
    with torch.no_grad():
        method.location.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        method.fit(training(classifier))


def test_an_interrupt_ends_training_with_our_own_error(classifier):
    import os
    import signal

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="nothing was written"):
        build("shredder", SIZE, SIZE).fit(training(classifier, progress=interrupt))


def test_a_public_photograph_is_sent_for_each_on_device_prediction(classifier):
    method = build("public-photo", SIZE, SIZE, strength=4)
    fitted_on = training(classifier, epochs=10)
    method.fit(fitted_on)
    images = image_set(32, size=(SIZE, SIZE), seed=3)
    with torch.no_grad():
        batch = images.images.float() / 255
        sent, own = method(batch), method.net(method.scale(batch)).argmax(dim=1)
    assert len(sent.unique(dim=0)) == 4
    for image, prediction in zip(sent, own, strict=True):
        assert torch.equal(image, method.photographs[prediction])
    known = {row.numpy().tobytes() for row in fitted_on.images}
    for label, photograph in enumerate(method.photographs):
        assert (photograph * 255).round().to(torch.uint8).numpy().tobytes() in known
        confidence = classifier(fitted_on.images[fitted_on.labels == label].float() / 255).softmax(dim=1)[:, label]
        assert float(classifier(photograph[None]).softmax(dim=1)[0, label]) == pytest.approx(
            float(confidence.max()), abs=1e-5
        )
    assert (own == images.labels).float().mean() > 0.8
    with pytest.raises(TrainingError, match="classes"):
        build("stand-in", SIZE, SIZE, strength=3).fit(fitted_on)  # its name in earlier versions

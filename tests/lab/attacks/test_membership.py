"""Scores of membership, against formulas written out in numpy."""

import numpy as np
import pytest
import torch

from scenes import images
from sfumato.errors import AuditError
from sfumato.lab.attacks import membership
from sfumato.lab.attacks.identification import another_view
from sfumato.lab.attacks.membership import VIEWS, label_confidence, likelihood_ratio, view_similarity

IMAGES = images(40).images


def area(members: np.ndarray, others: np.ndarray) -> float:
    return float(((members[:, None] > others) + 0.5 * (members[:, None] == others)).mean())


def test_confidence_is_the_logarithm_of_the_softmax():
    logits, labels = np.random.default_rng(0).normal(0, 30, (40, 4)), torch.arange(40) % 4
    found = label_confidence(lambda x: torch.from_numpy(logits)[: len(x)], IMAGES, labels)
    wanted = [row[label] - np.logaddexp.reduce(row) for row, label in zip(logits, labels.tolist(), strict=True)]
    assert found.numpy() == pytest.approx(wanted)


def test_the_ratio_ranks_as_rmia_does_with_many_population_images():
    generator = np.random.default_rng(1)
    own, reference, own_z, reference_z = np.exp(-generator.gamma(1, 2, (4, 3_000)))

    def ratio(first, second):
        return first / ((first + second) / 2)

    shares = np.searchsorted(np.sort(ratio(own_z, reference_z)), ratio(own, reference) / 1.1) / 3_000
    ours = likelihood_ratio(torch.from_numpy(own).log(), torch.from_numpy(reference).log()).numpy()
    assert (np.diff(shares[ours.argsort()]) >= 0).all()
    assert area(shares[:1_500], shares[1_500:]) == pytest.approx(area(ours[:1_500], ours[1_500:]), abs=0.02)


def test_similarity_is_the_mean_cosine_of_all_pairs_of_views():
    def observe(x):
        return x.float()[:, :, ::3, ::2] * torch.linspace(1, 2, 8)

    found = view_similarity(observe, IMAGES, seed=5)
    source = torch.Generator().manual_seed(5)
    centre = observe(IMAGES[torch.randperm(40, generator=source)]).flatten(1).double().numpy().mean(axis=0)
    views = [observe(another_view(IMAGES, source)).flatten(1).double().numpy() - centre for _ in range(VIEWS)]
    units = np.stack([view / np.linalg.norm(view, axis=1, keepdims=True) for view in views])
    table = np.einsum("vnd,wnd->nvw", units, units)
    wanted = table[:, ~np.eye(VIEWS, dtype=bool)].mean(axis=1)
    assert found.numpy() == pytest.approx(wanted, abs=1e-6)


def test_a_constant_payload_tells_nothing():
    assert view_similarity(lambda x: torch.full((len(x), 3, 2, 2), 7.0), IMAGES, seed=0).eq(0).all()


@pytest.mark.parametrize("logits", [torch.full((40, 4), torch.nan), torch.zeros(40, 3), torch.zeros(10, 4)])
def test_logits_that_cannot_be_used_are_refused(logits):
    with pytest.raises(AuditError, match="logits"):
        label_confidence(lambda x: logits, IMAGES, torch.arange(40) % 4)


def test_views_are_made_in_parts(monkeypatch):
    monkeypatch.setattr(membership, "INFERENCE_BATCH", 16)
    sizes = []
    view_similarity(lambda x: (sizes.append(len(x)), x.float())[1], IMAGES, seed=0)
    assert sizes == [40, *(VIEWS * [16]), *(VIEWS * [16]), *(VIEWS * [8])]

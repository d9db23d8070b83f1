from dataclasses import replace

import pytest
import torch

from fakes import trial
from scenes import Swap, images, setting, target
from sfumato.artifacts.gate import Gate
from sfumato.lab.attacks.target import LocalClassifier
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.schema import DoneTrial, GatedPlain
from sfumato.lab.audit.selective import gate_figures, gated_plain
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.evaluation.measures import per_image

CLASSES = 4


def brightness_logits(x):
    """The device believes in class 0, and the more the brighter an image is."""
    return torch.cat([(6 + 60 * (x.mean(dim=(1, 2, 3)) - 0.5))[:, None], torch.zeros(len(x), CLASSES - 1)], dim=1)


def gate(threshold: float) -> Gate:
    return Gate(threshold, offload_rate=0.15, images=100)


def gated(module, threshold: float, **facts) -> AttackSetting:
    plain = setting(module, test=400, **facts)
    return AttackSetting(
        replace(plain.target, gate=LocalClassifier(brightness_logits, gate(threshold))), plain.train, plain.test
    )


def figures(given: AttackSetting, *, reconstructed=None, logits=None):
    errors, _ = per_image(class_means(given.train)[given.test.labels], given.test.images)
    grey = torch.full_like(given.test.images, 128)
    return gate_figures(
        given,
        best=DoneTrial(**(trial("grey", "white-box", 0.1))),
        reconstructed=grey if reconstructed is None else reconstructed,
        class_mean_errors=errors,
        logits=logits,
    )


def test_without_a_gate_there_is_nothing_to_say():
    assert figures(setting(Swap(), test=60)) is None


def test_the_figures_are_those_worked_out_by_hand():
    given = gated(Swap(), 0.98)
    images, labels = given.test.images.float() / 255, given.test.labels
    sure = torch.softmax(brightness_logits(images), dim=1).amax(dim=1)
    sent = sure < 0.98
    found = figures(given, logits=lambda payload: torch.eye(CLASSES)[torch.full((len(payload),), 1)])
    assert found.offload_rate == pytest.approx(float(sent.float().mean()))
    assert 0.1 < found.offload_rate < 0.95, "else the test shows little"
    correct = torch.where(sent, labels == 1, labels == 0)
    assert found.accuracy_gated == pytest.approx(float(correct.float().mean()))
    assert found.accuracy_device == pytest.approx(float((labels == 0).float().mean()))


def test_the_strongest_attacker_counts_and_the_unsent_images_leak_their_label_alone():
    given = gated(Swap(), 0.98)
    found = figures(given)
    assert found.attacker == "least squares, from sent images", "it undoes the swap, grey does not"
    assert found.excess_leakage_sent > 0.2
    errors, _ = per_image(class_means(given.train)[given.test.labels], given.test.images)
    sent = torch.softmax(brightness_logits(given.test.images.float() / 255), dim=1).amax(dim=1) < 0.98
    over_all = (found.mse_sent * sent.sum() + errors[~sent].sum()) / len(errors)
    assert found.excess_leakage_mean == pytest.approx(float(1 - over_all / errors.mean()), rel=1e-4)
    assert found.excess_leakage_mean < found.excess_leakage_sent


def test_the_audits_own_best_counts_if_it_is_better():
    given = gated(Swap(), 0.98)
    found = figures(given, reconstructed=given.test.images.clone())
    assert (found.attacker, found.mse_sent, found.excess_leakage_sent) == ("grey", 0, 1)


@pytest.mark.parametrize(("threshold", "rate"), [(0.0, 0.0), (1.0, 1.0)])
def test_all_or_nothing(threshold, rate):
    found = figures(
        gated(Swap(), threshold), logits=lambda payload: torch.eye(CLASSES)[torch.zeros(len(payload)).long()]
    )
    assert found.offload_rate == rate
    assert (found.excess_leakage_sent is None) == (rate == 0)
    assert found.accuracy_gated == found.accuracy_device
    if rate:
        assert found.excess_leakage_mean == pytest.approx(found.excess_leakage_sent, rel=1e-4)


def test_images_as_likely_as_the_threshold_stay():
    own = LocalClassifier(lambda x: x, gate(0.5))
    assert own.sends(torch.tensor([[0.0, 0.0], [0.0, 0.1], [50.0, 0.0]])).tolist() == [False, False, False]
    assert LocalClassifier(lambda x: x, gate(0.51)).sends(torch.tensor([[0.0, 0.0], [0.0, 0.1]])).tolist() == [
        True,
        False,
    ]
    assert target(Swap()).gate is None and len(images(3)) == 3


def test_a_gate_before_the_plain_image_by_hand():
    own = torch.tensor([[9.0, 0.0], [1.0, 0.0], [0.0, 5.0], [0.2, 0.0]])  # sure of images 0, 2, 1, 3 in this order
    cloud = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    labels, errors = torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = {row.offload_rate: row for row in gated_plain(own, cloud, labels, errors)}
    assert rows[0.3] == GatedPlain(offload_rate=0.3, excess_leakage=0.4, accuracy=0.75), "image 3 is sent"
    assert (rows[0.5].excess_leakage, rows[0.5].accuracy) == (pytest.approx(0.6), 1.0), "and image 1"
    assert rows[0.02].excess_leakage == 0 and rows[0.02].accuracy == 0.5

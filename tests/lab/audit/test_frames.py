"""Many frames of one scene: averages, policies and figures against numpy, on obfuscators whose leakage is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scenes import SIDE, images
from sfumato.artifacts.gate import Gate
from sfumato.errors import AuditError
from sfumato.lab.attacks.protocol import AttackBudget, Attacker, Prepared
from sfumato.lab.attacks.target import LocalClassifier, Target
from sfumato.lab.attacks.threat_models import UnavailableError
from sfumato.lab.audit import frames, frames_run
from sfumato.lab.audit.frames import FramesResult, averaging_checks, leakage_over_time, read_frames
from sfumato.lab.audit.frames_run import COUNTS, FramesRun, sent_frames
from sfumato.lab.data.camera import STILL, Camera

SCENES = images(16, seed=1)
GREY = torch.full((16, 3, SIDE, SIDE), 0.5)


def target(payload, **facts) -> Target:
    return Target("made up", SIDE, SIDE, payload, **facts)


def run(payload, camera: Camera = STILL, *, reconstruct=lambda y: y, **facts):
    return FramesRun(target(payload, **facts), SCENES, GREY, reconstruct, camera).leakages()


def noisy(x):
    return x + 0.2 * torch.randn_like(x)


def brightness(x):
    """The device is sure of class 1 where an image is bright, of class 0 where it is dark."""
    return torch.stack([torch.zeros(len(x)), 100 * (x.mean(dim=(1, 2, 3)) - 0.5)], dim=1)


def test_noise_goes_as_one_over_the_frames_and_recognition_rises():
    rows = [row for row in run(noisy) if row.policy == "every frame"]
    assert [row.frames for row in rows] == list(COUNTS)
    few = {row.frames: row.mse for row in rows}
    # Averages are cut at black and white, which takes some noise away from the dark and bright pixels.
    for count in COUNTS:
        assert 0.5 * 0.04 / count < few[count] < 1.02 * 0.04 / count
    assert rows[-1].linkage[0].top1 >= rows[0].linkage[0].top1 and rows[-1].identification[1].top1 > 0.9


def test_a_constant_gives_nothing_however_many_frames():
    for row in run(lambda x: torch.ones_like(x), Camera(), reconstruct=lambda y: y / 2):
        assert row.excess_leakage == pytest.approx(0, abs=1e-5)
        assert [told.top1 for told in row.linkage] == pytest.approx([0.25, 0.25])  # 4 scenes in each of 4 classes
        assert [told.top1 for told in row.identification[1:]] == pytest.approx([0.25, 0.25])


def test_a_rate_limit_averages_as_many_frames_as_it_sends():
    rows = {(row.policy, row.frames): row for row in run(noisy)}
    assert [rows["every 10th frame", count].sent for count in COUNTS] == [1, 1, 1, 1, 3, 10]
    assert rows["every 10th frame", 100].mse == pytest.approx(rows["every frame", 10].mse, rel=0.1)


def test_policies_choose_frames_by_the_devices_own_predictions():
    levels = torch.tensor([0.2, 0.2, 0.8, 0.8, 0.505, 0.8] + 8 * [0.8])
    taken = (255 * levels[:, None, None, None].expand(-1, 3, 4, 4)).round().byte()
    gate = LocalClassifier(brightness, Gate(0.9, offload_rate=0.5, images=10))
    chosen = {policy: sent.nonzero()[:, 0].tolist() for policy, sent in sent_frames(taken, gate).items()}
    assert chosen["every 10th frame"] == [0, 10] and len(chosen["every frame"]) == 14
    assert chosen["gate"] == [4] and chosen["gate, every 10th frame"] == []
    assert chosen["prediction changes or gate is unsure"] == [0, 2, 4]
    assert list(sent_frames(taken, None)) == ["every frame", "every 10th frame"]


def test_what_is_handled_on_device_leaves_the_class_mean_and_chance():
    gate = LocalClassifier(brightness, Gate(0.0, offload_rate=0.5, images=10))  # never unsure
    rows = {(row.policy, row.frames): row for row in run(lambda x: x, gate=gate)}
    silent = rows["gate", 100]
    assert (silent.sent, silent.silent, silent.excess_leakage) == (0, 1, pytest.approx(0, abs=1e-6))
    assert [told.top1 for told in (*silent.linkage[:1], *silent.identification)] == pytest.approx(4 * [0.25])
    assert rows["prediction changes or gate is unsure", 100].sent == 1  # the first frame of a still scene


def test_the_mean_of_reconstructions_is_numpys():
    seen = []

    def keep(y):
        seen.append(y.numpy())
        return y

    rows = {(row.policy, row.frames): row for row in run(noisy, Camera(), reconstruct=keep)}
    for policy, step in (("every frame", 1), ("every 10th frame", 10)):
        averaged = np.stack([taken[:30:step].mean(axis=0).clip(0, 1) for taken in seen[:16]])
        wanted = ((averaged - SCENES.images.numpy() / 255) ** 2).mean()
        assert rows[policy, 30].mse == pytest.approx(wanted, rel=1e-4)


def test_the_best_decoder_is_chosen_on_images_that_it_has_not_seen(monkeypatch):
    counts = []

    class Fixed(Attacker):
        def __init__(self, gain: float) -> None:
            self.gain = gain

        def prepare(self, knowledge, budget):
            counts.append(len(knowledge.pairs))
            if self.gain < 0:
                raise UnavailableError("not for this obfuscator")
            return Prepared(lambda y: self.gain * (1 - y))

    fakes = {"dark": Fixed(0.1), "none": Fixed(-1), "exact": Fixed(1), "dim": Fixed(0.9)}
    monkeypatch.setattr(frames, "ATTACKERS", fakes)
    monkeypatch.setattr(frames, "DECODERS", tuple(fakes))
    name, reconstruct = frames.best_decoder(target(lambda x: 1 - x), images(60).images, AttackBudget(64, 0))
    assert name == "exact" and counts == 4 * [48]
    assert torch.allclose(reconstruct(torch.full((1, 3, 2, 2), 0.3)), torch.tensor(0.7))


def test_the_result_is_reproducible_typed_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "DECODERS", ("least squares",))
    monkeypatch.setattr(frames, "averaging_checks", lambda _: ())
    train = images(60)

    def result(seed):
        return leakage_over_time(target(noisy, stochastic=True), train, SCENES, images=64, seed=seed)

    found = result(0)
    assert found.leakages == result(0).leakages and found.leakages != result(1).leakages
    assert found.decoder == "least squares" and found.candidates == 4 and found.queries == 16
    (tmp_path / "one.json").write_text(found.model_dump_json(by_alias=True))
    (tmp_path / "other.json").write_text('{"schema": "sfumato.audit/2"}')
    assert read_frames(tmp_path) == [found]
    assert FramesResult.of(found.as_json, "here") == found


def test_averaging_that_is_broken_fails_its_checks(monkeypatch):
    assert [check.passed for check in averaging_checks(SCENES)] == [True, True]
    first = frames_run._first
    with monkeypatch.context() as broken:
        broken.setattr(frames_run, "_first", lambda chosen, count: first(chosen, 1))
        assert [check.passed for check in averaging_checks(SCENES)] == [False, True]
    monkeypatch.setattr(frames_run, "_distances", lambda queries, pool: 1 - torch.eye(len(pool)))
    assert [check.passed for check in averaging_checks(SCENES)] == [True, False]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (lambda x: torch.full_like(x, torch.nan), "not finite"),
        (lambda x: x[:, :, : 4 + int(x.sum()) % 8], "size"),
    ],
)
def test_payloads_that_cannot_be_used_are_named(payload, message):
    with pytest.raises(AuditError, match=message):
        run(payload, Camera())


def test_too_few_images_are_named():
    alone = replace(SCENES, labels=torch.arange(16), names=tuple(map(str, range(16))))
    with pytest.raises(AuditError, match="alone in their class"):
        FramesRun(target(noisy), alone, GREY, lambda y: y, STILL)
    with pytest.raises(AuditError, match="at least 10 training images, got 5"):
        leakage_over_time(target(noisy), images(5), SCENES, images=64)
    with pytest.raises(AuditError, match="give a size"):
        leakage_over_time(target(noisy), images(20, side=20), SCENES, images=64)

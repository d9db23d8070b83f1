import dataclasses
import json
import os
import signal

import pytest
import torch

from scenes import SIDE, TINY, Noise, Swap, pictures, scene
from sfumato.audit.budget import BUDGETS, Trial
from sfumato.audit.knowledge import Threat
from sfumato.audit.run import audit
from sfumato.errors import AuditError, Interrupted

BOX = Threat.WHITE_BOX


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """One for all tests here: the controls are the same for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def by_key(found):
    return {trial["key"]: trial for trial in found["trials"]}


def test_a_map_that_loses_nothing_is_found_to_leak_and_everything_is_written(tmp_path):
    found = audit(scene(Swap()), TINY, tmp_path / "audit")
    assert found["verdict"]["finding"] == "leaks"
    assert found["best"]["excess_leakage"] > 0.9
    assert found == json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert "<html" in (tmp_path / "audit" / "audit.html").read_text()
    trials = by_key(found)
    assert len(trials) == len(TINY.trials)
    assert trials["least_squares-shadow-seed0"]["status"] == "not run"
    assert "shadow" in trials["least_squares-shadow-seed0"]["reason"]
    assert trials["least_squares-pairs-n1000-seed0"]["reason"].startswith("only 240")
    assert trials["least_squares-cloud-seed0"]["status"] == "not run"
    assert found["certificate"] is None and "without noise" in found["certificate_note"]
    again = {row["attacker"]: row for row in found["identification"] if row["candidates"] == 10}
    assert again["obfuscating the candidates"]["top1"] == 1


def test_without_gradients_the_optimising_attackers_are_counted_as_not_run(tmp_path):
    found = audit(scene(Swap(), gradients=False), TINY, tmp_path / "audit")
    trial = by_key(found)["total_variation-white-box-seed0"]
    assert (trial["status"], trial["mse"]) == ("not run", None)
    assert "gradients" in trial["reason"]


def test_noise_is_averaged_away_and_certified(tmp_path):
    found = audit(scene(Noise(), stochastic=True), TINY, tmp_path / "audit")
    trials = by_key(found)
    assert trials["least_squares-white-box-k4-seed0"]["mse"] < trials["least_squares-white-box-seed0"]["mse"]
    assert found["best"]["views"] == 1
    assert found["certificate"]["mse_bound_any"] < found["best"]["mse"]


def test_an_attacker_that_breaks_is_counted_and_does_not_end_the_audit(tmp_path, monkeypatch):
    def broken(self, knowledge, effort):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("sfumato.audit.attackers.decoders.LearnedDecoder.prepare", broken)
    budget = dataclasses.replace(TINY, trials=(Trial("residual decoder", BOX, 64), Trial("least squares", BOX)))
    monkeypatch.setattr("sfumato.audit.run.decoder_controls", lambda *a, **k: [])
    trial = by_key(audit(scene(Swap()), budget, tmp_path / "audit"))["residual_decoder-white-box-seed0"]
    assert (trial["status"], trial["reason"]) == ("failed", "RuntimeError: out of luck")


def test_an_interrupted_audit_goes_on_to_the_same_result(tmp_path):
    whole = audit(scene(Swap()), TINY, tmp_path / "whole")

    def interrupt(done, total, what, part, parts):
        if what.startswith("residual decoder") and part == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="--resume"):
        audit(scene(Swap()), TINY, tmp_path / "parts", progress=interrupt)
    assert not (tmp_path / "parts" / "audit.json").exists()
    parts = audit(scene(Swap()), TINY, tmp_path / "parts", resume=True)
    for one, other in zip(whole["trials"], parts["trials"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert whole["identification"] == parts["identification"]


def test_findings_of_two_audits_are_not_mixed(tmp_path):
    small = dataclasses.replace(TINY, trials=TINY.trials[:1])
    audit(scene(Swap()), small, tmp_path / "audit")
    with pytest.raises(AuditError, match="--resume goes on"):
        audit(scene(Swap()), small, tmp_path / "audit")
    with pytest.raises(AuditError, match="obfuscator differ"):
        audit(scene(torch.nn.Identity()), small, tmp_path / "audit", resume=True)
    with pytest.raises(AuditError, match="choose one"):
        audit(scene(Swap()), small, tmp_path / "audit", resume=True, overwrite=True)
    audit(scene(torch.nn.Identity()), small, tmp_path / "audit", overwrite=True)


def test_pictures_of_another_size_are_refused_before_anything_runs(tmp_path):
    wrong = scene(Swap())
    wrong.train = pictures(40, side=2 * SIDE)
    with pytest.raises(AuditError, match=r"\(32, 32\).*\(16, 16\)"):
        audit(wrong, TINY, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_try_every_threat_model_and_their_keys_differ(name):
    budget = BUDGETS[name]
    assert {trial.threat for trial in budget.trials} == set(Threat)
    keys = [trial.key for trial in (*budget.trials, *budget.views)]
    assert len(keys) == len(set(keys))

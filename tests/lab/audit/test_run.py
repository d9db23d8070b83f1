import dataclasses
import json
import os
import signal

import pytest
import torch

from scenes import SIDE, TINY, Noise, Swap, images, setting
from sfumato.artifacts.gate import Gate
from sfumato.errors import AuditError, Interrupted
from sfumato.lab.attacks.posterior import PosteriorSampler
from sfumato.lab.attacks.prior import STAGE, prior_file
from sfumato.lab.attacks.registry import ATTACKERS
from sfumato.lab.attacks.target import LocalClassifier
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.budget import BUDGETS, Trial
from sfumato.lab.audit.run import audit
from sfumato.lab.audit.schema import AuditResult, LostTrial
from sfumato.lab.audit.setting import HELD_OUT_SHARE, handed
from sfumato.lab.report.html import render, render_audit

BOX = Threat.WHITE_BOX


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """One for all tests here: the sanity checks are the same for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def by_key(found):
    return {trial.key: trial for trial in found.trials}


def test_a_map_that_loses_nothing_is_found_to_leak_and_everything_is_written(tmp_path):
    played, folder = setting(Swap()), tmp_path / "audit"
    found = audit(played, TINY, folder)
    assert found.verdict.finding == "leaks"
    assert found.best.excess_leakage > 0.9
    assert found == AuditResult.read(folder / "audit.json")
    render_audit(played, found, folder)
    assert "<html" in (folder / "audit.html").read_text() and (folder / "panel.png").is_file()
    trials = by_key(found)
    assert len(trials) == len(TINY.trials)
    assert trials["least_squares-shadow-seed0"].status == "not run"
    assert "shadow" in trials["least_squares-shadow-seed0"].reason
    assert trials["least_squares-pairs-n1000-seed0"].reason.startswith("only 240")
    assert trials["least_squares-cloud-seed0"].status == "not run"
    assert found.certificate is None and "without noise" in found.certificate_note
    again = {row.attacker: row for row in found.identification if row.candidates == 10}
    assert again["obfuscating the candidates"].top1 == 1


def test_the_joint_deobfuscator_is_one_of_the_attackers(tmp_path):
    played, inverse = setting(Swap()), Swap()
    played.target = dataclasses.replace(played.target, deobfuscator=lambda payload: inverse(payload) * 0.9)
    budget = dataclasses.replace(TINY, trials=(Trial("codeword means", BOX),), sanity_check_images=0)
    found = audit(played, budget, tmp_path / "audit")
    *_, joint = found.trials
    shown = played.test.images.double() / 255
    assert joint.mse == pytest.approx(float((0.1 * shown).square().mean()), rel=1e-4)
    assert found.best.attacker == joint.attacker == "joint deobfuscator" and joint.threat is BOX


def test_reconstructions_are_recognised_by_what_learned_from_images_held_out(tmp_path):
    played = setting(Swap())
    played.held_out_share = 0.2
    trials = (Trial("least squares", BOX), Trial("least squares", Threat.PAIRS, pairs=40))
    budget = dataclasses.replace(TINY, trials=trials, evaluator_images=640, sanity_check_images=0)
    found = audit(played, budget, tmp_path / "audit")
    scale = found.recognition
    assert found.data.held_out == scale.learned_from == 48 and found.recognition_note == ""
    assert scale.image.feature_cosine == pytest.approx(1) and scale.image.images == 60
    exact = by_key(found)["least_squares-white-box-seed0"].recognition
    assert exact.feature_cosine > 0.95 and exact.images == 60
    assert found.best.recognition == exact and "feature cosine" in found.verdict.sentences[0]
    galleries = {(row.attacker, row.candidates) for row in found.identification if row.classes == "all"}
    assert galleries == {(f"{what} of reconstructed images", 60) for what in ("distance", "features")} | {
        ("contrastive embedding", 60),
        ("obfuscating the candidates", 60),
    }
    assert found == AuditResult.read(tmp_path / "audit" / "audit.json")
    page = render(found, None)
    assert "What is recognised" in page and "the image itself" in page
    assert audit(played, budget, tmp_path / "audit", resume=True).recognition == scale
    few = setting(Swap(), train=40)
    few.held_out_share = 0.1
    none = audit(few, budget, tmp_path / "few")
    assert none.recognition is None and "4 images of 4 of 4 classes were held out" in none.recognition_note


@pytest.mark.long
def test_without_gradients_the_optimising_attackers_are_counted_as_not_run(tmp_path):
    found = audit(setting(Swap(), gradients=False), TINY, tmp_path / "audit")
    trial = by_key(found)["total_variation-white-box-seed0"]
    assert isinstance(trial, LostTrial) and trial.status == "not run"
    assert "gradients" in trial.reason


@pytest.mark.long
def test_noise_is_averaged_away_and_certified(tmp_path):
    found = audit(setting(Noise(), stochastic=True), TINY, tmp_path / "audit")
    trials = by_key(found)
    assert trials["least_squares-white-box-k4-seed0"].mse < trials["least_squares-white-box-seed0"].mse
    assert found.best.views == 1
    assert found.certificate.mse_bound_any < found.best.mse


def test_an_attacker_that_breaks_is_counted_and_does_not_end_the_audit(tmp_path, monkeypatch):
    def broken(self, knowledge, budget):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("sfumato.lab.attacks.decoders.LearnedDecoder.prepare", broken)
    budget = dataclasses.replace(TINY, trials=(Trial("residual decoder", BOX, 64), Trial("least squares", BOX)))
    monkeypatch.setattr("sfumato.lab.audit.run.decoder_checks", lambda *a, **k: ())
    trial = by_key(audit(setting(Swap()), budget, tmp_path / "audit"))["residual_decoder-white-box-seed0"]
    assert (trial.status, trial.reason) == ("failed", "RuntimeError: out of luck")


@pytest.mark.long
def test_an_interrupted_audit_goes_on_to_the_same_result(tmp_path):
    whole = audit(setting(Swap()), TINY, tmp_path / "whole")

    def interrupt(stage, done, total, note=""):
        if stage.startswith("residual decoder") and done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="--resume"):
        audit(setting(Swap()), TINY, tmp_path / "parts", progress=interrupt)
    assert not (tmp_path / "parts" / "audit.json").exists()
    parts = audit(setting(Swap()), TINY, tmp_path / "parts", resume=True)
    for one, other in zip(whole.trials, parts.trials, strict=True):
        assert one.model_copy(update={"seconds": 0}) == other.model_copy(update={"seconds": 0})
    assert whole.identification == parts.identification


def test_findings_of_two_audits_are_not_mixed(tmp_path):
    small = dataclasses.replace(TINY, trials=TINY.trials[:1])
    audit(setting(Swap()), small, tmp_path / "audit")
    with pytest.raises(AuditError, match="--resume continues"):
        audit(setting(Swap()), small, tmp_path / "audit")
    with pytest.raises(AuditError, match="differs in: obfuscator"):
        audit(setting(torch.nn.Identity()), small, tmp_path / "audit", resume=True)
    with pytest.raises(AuditError, match="choose one"):
        audit(setting(Swap()), small, tmp_path / "audit", resume=True, overwrite=True)
    audit(setting(torch.nn.Identity()), small, tmp_path / "audit", overwrite=True)
    about = tmp_path / "audit" / "work" / "audit.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"schema": "sfumato.audit/1"}))
    with pytest.raises(AuditError, match=r"another one \(it differs in: schema\)"):
        audit(setting(torch.nn.Identity()), small, tmp_path / "audit", resume=True)


def test_images_of_another_size_are_refused_before_anything_runs(tmp_path):
    wrong = setting(Swap())
    wrong.train = images(40, side=2 * SIDE)
    with pytest.raises(AuditError, match=r"\(32, 32\).*\(16, 16\)"):
        audit(wrong, TINY, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_try_every_threat_model_and_their_keys_differ(name):
    budget = BUDGETS[name]
    assert {trial.threat for trial in budget.trials} == ({BOX} if name == "attributes" else set(Threat))
    keys = [trial.key for trial in (*budget.trials, *budget.views)]
    assert len(keys) == len(set(keys))


class Lied(torch.nn.Module):
    """States a code of one bit, and sends the image."""

    code_bits = 1

    def forward(self, x):
        return 1 - x


class Bit(torch.nn.Module):
    code_bits = 1

    def forward(self, x):
        return (x.mean(dim=(1, 2, 3), keepdim=True) > 0.5).float().expand_as(x)


def test_a_code_is_certified_if_no_more_is_sent_than_it_states(tmp_path):
    budget = dataclasses.replace(TINY, trials=(Trial("least squares", BOX), Trial("codeword means", BOX)))
    found = audit(setting(Bit()), budget, tmp_path / "bit")
    assert found.certificate.rate_bits == 1 and found.certificate.top1_bounds[100] == 0.02
    assert by_key(found)["codeword_means-white-box-seed0"].status == "done"
    assert "at most 1.0 bits" in found.verdict.sentences[2]
    code = found.certificate.code
    assert (code.bits, code.values, code.observed, code.images) == (1, 2, 2, 60)
    assert "one of 60 test images in exactly 3.3 % of cases" in found.verdict.sentences[2]
    assert "Counted, not estimated" in render(found, None)
    lied = audit(setting(Lied()), budget, tmp_path / "lied")
    assert lied.certificate is None and "60 different payloads were sent" in lied.certificate_note


def test_generative_attackers_stand_in_the_audit(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.lab.attacks.prior.WIDTHS", (8, 8, 8))
    monkeypatch.setitem(ATTACKERS, "posterior sampler", PosteriorSampler((8, 8, 8)))
    some = {"test_images": 12}
    trials = (
        Trial("least squares", BOX),
        Trial("posterior sampler", BOX, 64, **some),
        Trial("guided prior", BOX, steps=2, **some),
        Trial("prior search", BOX, steps=1, **some),
        Trial("posterior sampler", Threat.PAIRS, 64, **some),
    )
    budget = dataclasses.replace(TINY, trials=trials, sanity_check_images=0, prior_images=64)
    stages, played = [], setting(Bit())
    played.held_out_share = HELD_OUT_SHARE
    found = audit(played, budget, tmp_path / "audit", progress=lambda stage, *_: stages.append(stage))
    kept = prior_file(handed(played.train).images, 64)
    assert set(kept.parent.iterdir()) == {kept}, "one prior: of the images that attackers are handed"
    least, sampler, guided, search, blind = found.trials
    assert [trial.status for trial in (sampler, search, blind)] == ["done"] * 3
    assert {trial.test_images for trial in (sampler, search, blind)} == {12} and least.test_images == 60
    assert guided.status == "not run" and "no gradient comes through" in guided.reason
    assert AuditResult.read(tmp_path / "audit" / "audit.json") == found
    last_of_prior = max(place for place, stage in enumerate(stages) if stage == STAGE)
    assert last_of_prior < stages.index("least squares, white-box"), "its training counts in no trial's time"
    assert "prior search" in render(found, None)
    open_ = by_key(audit(setting(Swap()), budget, tmp_path / "open"))
    assert "no discrete code" in open_["prior_search-white-box-seed0"].reason
    assert open_["guided_prior-white-box-seed0"].mse < 0.02


@pytest.mark.long
def test_sanity_checks_share_the_prior_of_the_attackers(tmp_path, monkeypatch):
    seen = []

    def noted(train, test, **_):
        seen.append(train.images)
        return ()

    for name in ("decoder_checks", "sampler_checks"):
        monkeypatch.setattr(f"sfumato.lab.audit.run.{name}", noted)
    played = setting(Swap())
    played.held_out_share = HELD_OUT_SHARE
    audit(played, dataclasses.replace(TINY, trials=TINY.trials[:1], sanity_check_images=8), tmp_path / "audit")
    assert all(torch.equal(images, handed(played.train).images) for images in seen) and len(seen) == 2
    assert len(seen[0]) == 192 < len(played.train)


def test_a_gates_figures_stand_in_the_audit_and_its_page(tmp_path):
    plain = setting(Swap(), test=120)
    own = LocalClassifier(lambda x: torch.cat([40 * (x.mean(dim=(1, 2, 3)) - 0.4)[:, None], 0 * x[:, :3, 0, 0]], dim=1),
                     Gate(0.98, 0.5, 10))  # fmt: skip
    plain.target = dataclasses.replace(plain.target, gate=own)
    budget = dataclasses.replace(TINY, trials=(Trial("least squares", BOX),))
    found = audit(plain, budget, tmp_path / "audit")
    assert 0 < found.gate.offload_rate < 1 and found.gate.accuracy_gated is None
    assert 0 < found.gate.excess_leakage_mean < found.gate.excess_leakage_sent
    assert "With its gate" in found.verdict.sentences[1]
    assert "With its gate" in render(found, None)

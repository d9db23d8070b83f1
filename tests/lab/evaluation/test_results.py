"""Typed results as JSON: their schemas, what is left out, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import fake_audit
from hostile_json import damaged
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import read_json
from sfumato.artifacts.shipped import obfuscator_bundle
from sfumato.errors import AuditError, ResultsError, SfumatoError
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.result_store import ResultStore
from sfumato.lab.audit.schema import AnyTrial, AuditResult
from sfumato.lab.evaluation.accuracy import Evaluation
from sfumato.lab.evaluation.results import read_object
from sfumato.lab.evaluation.transfer import Transfer
from sfumato.lab.export.int8 import Int8Comparison


def test_fields_without_a_value_are_left_out_and_the_rest_comes_back():
    figures = Evaluation(0.9, 0.8, 100, joint_deobfuscator_mse=0.0, joint_deobfuscator_psnr_db=math.inf)
    assert "offload_rate" not in figures.to_json() and figures.to_json()["joint_deobfuscator_psnr_db"] == math.inf
    assert Evaluation.from_json(json.loads(json.dumps(figures.to_json()))) == figures


def test_the_figures_of_a_shipped_bundle_can_be_read():
    figures = Evaluation.from_json(Bundle.load(obfuscator_bundle()).figures.to_json())
    assert figures.accuracy_gated is not None and 0.5 < figures.accuracy_gated < 1


def test_names_of_earlier_versions_are_read():
    former = {"answers_changed": 0.1, "drawing_mean_difference": 0.2, "device_answers_changed": 0.3}
    same = {"accuracy_obfuscated_before": 0.9, "time_of_float32": 0.5, "megabytes": 1.0, "megabytes_before": 4.0}
    found = Int8Comparison.from_json({**former, **same})
    changed = found.predictions_changed, found.payload_mean_difference, found.device_predictions_changed
    assert changed == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("raw", [None, [], {"accuracy_plain": "high", "accuracy_obfuscated": 1, "test_images": 2}])
def test_other_content_is_refused(raw):
    with pytest.raises(ResultsError, match="no figures of Evaluation"):
        Evaluation.from_json(raw)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_json_that_is_no_object_is_told(tmp_path, content):
    assert read_object(tmp_path / "none.json") is None
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(ResultsError, match=r"a\.json"):
        read_object(tmp_path / "a.json")


AUDIT = fake_audit().as_json
LONG = "a" * 5000
EVALUATION = Evaluation(0.9, 0.8, 100, joint_deobfuscator_mse=0.1, joint_deobfuscator_psnr_db=20.0).to_json()
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@RELAXED
@given(text=damaged(AUDIT))
def test_a_damaged_audit_is_an_error_of_ours_or_an_audit(tmp_path, text):
    (tmp_path / "audit.json").write_text(text, encoding="utf-8")
    try:
        found = AuditResult.read(tmp_path / "audit.json")
    except AuditError as error:
        assert len(str(error)) < 1000
        return
    assert isinstance(found.verdict.finding, str) and read_audits(tmp_path)


@pytest.mark.parametrize("damage", [{"schema": LONG}, {"data": AUDIT["data"] | {"sha256": {LONG: "0"}}}])
def test_an_error_does_not_repeat_a_long_key_or_schema(tmp_path, damage):
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT | damage), encoding="utf-8")
    with pytest.raises(AuditError) as raised:
        AuditResult.read(tmp_path / "audit.json")
    assert "aaa" in str(raised.value) and len(str(raised.value)) < 1000


@RELAXED
@given(text=damaged(EVALUATION), kind=st.sampled_from([Evaluation, Int8Comparison, Transfer]))
def test_damaged_results_are_an_error_of_ours_or_results(tmp_path, text, kind):
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    try:
        kind.from_json(read_json(tmp_path / "r.json", ResultsError))
    except ResultsError as error:
        assert len(str(error)) < 1000


@RELAXED
@given(text=damaged(AUDIT["trials"][0]))
def test_a_damaged_finding_of_an_audit_is_an_error_of_ours_or_a_finding(tmp_path, text):
    store = ResultStore(tmp_path / "work", {}, resume=True, overwrite=False)
    (store.folder / "trial.json").write_text(text, encoding="utf-8")
    try:
        store.known("trial", AnyTrial)
    except AuditError as error:
        assert "remove it, and --resume finds it again" in str(error)


def test_images_of_an_audit_that_are_damaged_are_told(tmp_path):
    from sfumato.lab.audit.result_store import stored_images

    (tmp_path / "best.safetensors").write_bytes(b"junk")
    with pytest.raises(SfumatoError, match=r"best\.safetensors cannot be read"):
        stored_images(tmp_path, "best")

"""`audit.json`: written, read, of earlier versions too, and described by a JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from fakes import changed, fake_audit, gate, trial
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.errors import AuditError
from sfumato.lab.audit.certificate import certify_code
from sfumato.lab.audit.run import record
from sfumato.lab.audit.schema import SCHEMA, AuditResult, best_of, recorded

ROOT = Path(__file__).parents[3]
AUDITS = [
    file for file in sorted((ROOT / "results").rglob("*.json")) if '"schema": "sfumato.audit/' in file.read_text()
]


RICH = fake_audit(certificate=certify_code(3, gated=True).as_json, gate=gate())


def version_1(audit: AuditResult) -> dict:
    """The keys of the first version."""
    old = audit.as_json | {"schema": "sfumato.audit/1"}
    old["controls"] = old.pop("sanity_checks")
    old["budget"]["says"] = old["budget"].pop("description")
    for row in (*old["trials"], old["best"]):
        if row["status"] == "done" and not row["curve"]:
            del row["curve"]
    return old


def test_what_is_written_is_read(tmp_path):
    RICH.write(tmp_path / "audit.json")
    assert AuditResult.read(tmp_path / "audit.json") == RICH
    first, *_ = json.loads((tmp_path / "audit.json").read_text())
    assert first == "schema" and AuditResult.read(tmp_path / "audit.json").certificate.top1_bounds[100] == 0.09


def test_a_file_of_the_first_version_is_read(tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps(version_1(RICH)))
    assert AuditResult.read(tmp_path / "audit.json") == RICH


def test_numbers_that_json_lacks_are_kept(tmp_path):
    perfect = trial("U-Net", "white-box", 0.0, psnr_db=float("inf"))
    fake_audit(trials=[perfect]).write(tmp_path / "audit.json")
    assert AuditResult.read(tmp_path / "audit.json").done[0].psnr_db == float("inf")


def with_new_keys(content: dict) -> dict:
    """An audit or a summary, with the keys that audits of earlier versions lack."""
    attributes = [{"attacker": None, "held_out": None, **row} for row in content["attributes"]]
    return {"extraction": [], **content, "attributes": attributes}


@pytest.mark.skipif(not AUDITS, reason="the results are not part of a package")
def test_every_audit_of_the_results_is_of_this_version_and_loads():
    assert len(AUDITS) > 40 and {file.parent.name for file in AUDITS} >= {"audits", "people", "transfer", "photos"}
    for file in AUDITS:
        content = json.loads(file.read_text())
        assert content["schema"] == SCHEMA and AuditResult.read(file).as_json == with_new_keys(content), file


@pytest.mark.parametrize("folder", [shipped.obfuscator_bundle, shipped.papers_obfuscator_bundle])
def test_the_shipped_bundles_hold_audits_of_this_version(folder):
    bundle = Bundle.load(folder())
    assert recorded(bundle).as_json == with_new_keys(bundle.figures.audit)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has schema None"),
        ('{"schema": "other/2"}', r"'other/2'; audits have 'sfumato\.audit/2' or 'sfumato\.audit/1'"),
        (f'{{"schema": "{SCHEMA}"}}', r"broken audit; run it again \(verdict: Field required\)"),
        (json.dumps(RICH.as_json | {"class_mean_mse": "much"}), "class_mean_mse"),
    ],
)
def test_what_is_no_audit_is_refused(tmp_path, content, message):
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(AuditError, match=message):
        AuditResult.read(tmp_path / "audit.json")


def test_the_best_trial_saw_each_image_once():
    averaged = trial("U-Net", "white-box", 0.01, views=4)
    audit = changed(fake_audit(), more_trials=[averaged])
    assert best_of(audit.trials) == audit.done[0] and audit.done[-1].mse < audit.done[0].mse
    assert best_of([]) is None


def test_a_bundle_keeps_the_audit_with_the_larger_budget_if_it_found_as_much(tmp_path):
    path, small = tiny.save_bundles(tmp_path)[0].path, {"name": "tiny", "images": 10}
    assert record(Bundle.load(path), fake_audit(mse=0.03, budget={"images": 100}))
    assert not record(Bundle.load(path), fake_audit(mse=0.04, budget=small)), "it found less with less"
    assert record(Bundle.load(path), fake_audit(mse=0.02, budget=small)), "it found more"
    assert recorded(Bundle.load(path)).budget.name == "tiny"

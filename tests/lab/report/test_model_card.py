"""Model cards: what they say of a bundle, and the metadata that the hub reads."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.records import Provenance, RecipeRecord
from sfumato.errors import AuditError
from sfumato.lab.attacks.extraction import Extraction
from sfumato.lab.audit.membership import Membership, MembershipResult
from sfumato.lab.audit.schema import recorded
from sfumato.lab.evaluation.detection import Detection
from sfumato.lab.report.model_card import model_card, payload_bytes

PLACE = "someone/mine"


@pytest.fixture(scope="module")
def sketch() -> Bundle:
    return Bundle.load(shipped.obfuscator_bundle())


def metadata(card: str) -> dict[str, Any]:
    """As the hub reads it: YAML between the first two lines of three hyphens."""
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def metrics(card: str) -> dict[str, float]:
    results = metadata(card)["model-index"][0]["results"]
    return {metric["name"]: metric["value"] for result in results for metric in result["metrics"]}


def test_the_metadata_has_the_figures_of_the_bundle(sketch):
    card = model_card(sketch, PLACE, licence="apache-2.0")
    about = metadata(card)
    assert (about["license"], about["library_name"]) == ("apache-2.0", "sfumato")
    assert about["datasets"] == ["uoft-cs/cifar10"] and about["model-index"][0]["name"] == "cifar10-resnet20-sketch"
    shown, audit = metrics(card), recorded(sketch)
    assert shown["accuracy, obfuscated images, all sent"] == sketch.figures.accuracy_obfuscated
    assert shown["accuracy, plain images"] == sketch.figures.accuracy_plain
    assert audit is not None and audit.best is not None
    assert shown["excess leakage, at least"] == audit.best.excess_leakage and shown["PSNR, dB"] == audit.best.psnr_db


def test_the_hubs_own_library_reads_it(sketch):
    card = ModelCard(model_card(sketch, PLACE))
    assert {result.metric_type for result in card.data.eval_results} >= {"accuracy", "mse", "psnr", "ssim"}


def test_the_page_says_what_the_audit_found(sketch):
    card, audit = model_card(sketch, PLACE), recorded(sketch)
    assert audit is not None
    assert f"**{audit.verdict.finding.upper()}**" in card and all(said in card for said in audit.verdict.sentences)
    assert "not encryption" in card and "NOT AUDITED" not in card
    assert f"--bundle hf://{PLACE}\n" in card
    assert "0 of 50,000 training images are recognisable" in card and "Membership inference was not measured" in card
    assert "Licence of these files: not stated" in card


def test_tables_are_whole(sketch):
    """Each row has as many cells as its header."""
    for table in re.findall(r"(?:^\|.*\n)+", model_card(sketch, PLACE), re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(rows)) == 1 and len(rows) > 2, table


def test_what_was_not_measured_is_said(obfuscator_bundle, classifier_bundle):
    card = model_card(obfuscator_bundle, PLACE)
    assert "**NOT AUDITED.**" in card and "Not measured: `sfumato evaluate`" in card
    assert "model-index" not in metadata(card)
    plain = model_card(classifier_bundle, PLACE)
    assert "Leakage" not in plain and "encryption" not in plain and f"sfumato serve hf://{PLACE}\n" in plain


def extraction(**changed: Any) -> Extraction:
    facts: dict[str, Any] = dict.fromkeys(Extraction.__annotations__, 0)
    return Extraction(**{**facts, "file": "decoder.onnx", "method": "makes of each code", "low": -0.1, **changed})


@pytest.mark.parametrize(("low", "said"), [(-0.1, "not clearly memorised"), (0.1, "**memorised**")])
def test_training_set_extraction(sketch, low, said):
    audit = recorded(sketch)
    assert audit is not None
    kept = audit.model_copy(update={"extraction": (extraction(low=low, train_images=50_000, train_recognised=7),)})
    card = model_card(replace(sketch, figures=sketch.figures.updated(audit=kept.as_json)), PLACE)
    assert f"| 7 of 50,000 | 0 of 0 | {said} |" in card


def inferred(bundle: Bundle, low: float) -> MembershipResult:
    audit = recorded(Bundle.load(shipped.obfuscator_bundle()))
    assert audit is not None
    detection = Detection(0.6, low, 0.7, ())
    attack = Membership(subject="obfuscator", attacker="loss", signal="", members=9, others=9, detection=detection)
    return MembershipResult(
        obfuscator="theirs",
        files=dict(bundle.files),
        others_from="test images",
        attacks=(attack,),
        sanity_checks=(),
        provenance=audit.provenance,
    )


@pytest.mark.parametrize(("low", "said"), [(0.49, "not clearly inferred"), (0.51, "**inferred**")])
def test_membership_inference(sketch, low, said):
    row = f"| obfuscator, loss | 0.600 ({low:.3f} to 0.700) | {said} |"
    assert row in model_card(sketch, PLACE, membership=inferred(sketch, low))


def test_an_audit_that_is_broken_and_a_membership_of_another_bundle_are_refused(sketch, obfuscator_bundle):
    with pytest.raises(AuditError, match="broken audit"):
        model_card(replace(sketch, figures=sketch.figures.updated(audit={"verdict": 1})), PLACE)
    with pytest.raises(AuditError, match=r"another bundle \(theirs\)"):
        model_card(sketch, PLACE, membership=inferred(obfuscator_bundle, 0.5))


def test_no_place_of_the_machine_is_in_it(sketch):
    recipe = RecipeRecord.from_json({**sketch.recipe.to_json(), "data": {"source": "/home/ada/faces"}})
    facts = Provenance.from_json({**sketch.provenance.to_json(), "data": "/home/ada/faces"})
    card = model_card(replace(sketch, recipe=recipe, provenance=facts), PLACE)
    assert "ada" not in card and "on faces |" in card


def test_a_figure_that_is_not_finite_is_no_metric(sketch):
    audit = recorded(sketch)
    assert audit is not None and audit.best is not None
    best = audit.best.model_copy(update={"psnr_db": float("inf")})
    kept = audit.model_copy(update={"best": best})
    shown = metrics(model_card(replace(sketch, figures=sketch.figures.updated(audit=kept.model_dump())), PLACE))
    assert "PSNR, dB" not in shown and "MSE" in shown


def test_payload_bytes(sketch, obfuscator_bundle, classifier_bundle):
    assert list(payload_bytes(sketch).values()) == [32 * 32 * 3 * 4, 1, 32 * 32 * 3]
    assert list(payload_bytes(obfuscator_bundle).values()) == [8 * 8 * 3 * 4, 8 * 8 * 3]
    levels = RecipeRecord.from_json({"output": {"format": "8-bit"}})
    assert payload_bytes(replace(obfuscator_bundle, recipe=levels))["in 8 bits"] == 8 * 8 * 3
    assert payload_bytes(classifier_bundle) == {}

import re

import pytest

from fakes import CHECK, UTILITY, changed, fake_audit, gate, trial
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.certificate import certify_code
from sfumato.lab.audit.schema import Alternatives, AuditResult, GatedPlain
from sfumato.lab.audit.verdict import LEAKS_ABOVE, WHO, best_mixture, decide, find_doubts, percent

CERTIFICATE = certify_code(3).as_json
CLAIMS = re.compile(r"\b(private|privacy|secure|security|safe|safely|encrypt\w*|anonym\w*)\b", re.IGNORECASE)


def check(passed: bool | None) -> dict:
    return CHECK | {"passed": passed}


def spoilt() -> dict[str, AuditResult]:
    """One audit for each reason why nothing found does not mean that there is nothing."""
    good = fake_audit()
    return {
        "failed check": fake_audit(sanity_checks=[CHECK, check(False)]),
        "check not run": fake_audit(sanity_checks=[CHECK, check(None)]),
        "no checks": fake_audit(sanity_checks=[]),
        "best attacker still learning": changed(good, more_trials=[trial("U-Net", "white-box", 0.06, flattened=False)]),
        "best attacker failed elsewhere": changed(good, more_trials=[trial("U-Net", "shadow", None)]),
        "attacker without any result": changed(good, more_trials=[trial("deep image prior", "white-box", None)]),
        "broken attackers": fake_audit(mse=0.08, best={"excess_leakage": 0.0}),
        "no attacker": fake_audit(best=None, trials=[trial("U-Net", "pairs", None)]),
    }


def test_nothing_found_by_an_audit_in_order_is_withstood():
    verdict = decide(fake_audit())
    assert verdict.finding == "withstood"
    assert "others may" in verdict.sentences[0]
    assert "hardly more" in verdict.sentences[0] and "at least 0.02" in verdict.sentences[0]


@pytest.mark.parametrize("reason", spoilt())
def test_nothing_found_by_a_doubtful_audit_is_inconclusive(reason):
    audit = spoilt()[reason]
    verdict = decide(audit)
    assert verdict.finding == "inconclusive"
    (doubt,) = find_doubts(audit)
    assert doubt in verdict.sentences[2]


def test_a_failed_trial_of_an_attacker_that_did_worse_in_the_same_place_is_no_doubt_but_counted():
    audit = changed(fake_audit(), more_trials=[trial("least squares", "pairs", None, seed=1)])
    verdict = decide(audit)
    assert verdict.finding == "withstood"
    assert "4 of 5 trials" in verdict.sentences[2]
    assert "1 failed" in verdict.sentences[2]


def test_what_was_not_run_is_counted():
    lost = trial("total variation", "white-box", None, status="not run", reason="no gradients")
    assert "1 not run" in decide(changed(fake_audit(), more_trials=[lost])).sentences[2]


@pytest.mark.parametrize(("excess", "finding"), [(LEAKS_ABOVE, "withstood"), (LEAKS_ABOVE + 0.001, "leaks")])
def test_excess_leakage_decides(excess, finding):
    assert decide(fake_audit(best={"excess_leakage": excess})).finding == finding


@pytest.mark.parametrize(
    ("part", "changes", "finding"),
    [
        ("identification", {"top1": 0.05, "low": 0.021}, "leaks"),
        ("identification", {"top1": 0.05, "low": 0.019}, "withstood"),
        ("attributes", {"accuracy": 0.6, "low": 0.56}, "leaks"),
        ("attributes", {"accuracy": 0.6, "low": 0.54}, "withstood"),
    ],
)
def test_identification_and_attributes_count_when_their_interval_is_clear_of_chance(part, changes, finding):
    (row,) = fake_audit().as_json[part]
    assert decide(fake_audit(**{part: [row | changes]})).finding == finding


@pytest.mark.parametrize("passed", [False, None])
def test_a_leak_stands_as_a_lower_bound_when_a_sanity_check_failed(passed):
    verdict = decide(fake_audit(mse=0.02, sanity_checks=[check(passed)]))
    assert verdict.finding == "leaks"
    assert "at least 0.65" in verdict.sentences[0]
    assert "inconclusive about how much more" in verdict.sentences[2]


def test_the_first_sentence_has_the_figures_and_the_class_mean():
    audit = fake_audit(mse=0.02)
    sentence = decide(audit).sentences[0]
    for figure in ("0.0200", "15.00 dB", "0.660", "0.0574", "12.41 dB", "0.143", "0.65", "U-Net", "10,000"):
        assert figure in sentence


def test_of_few_images_the_class_mean_is_told_on_the_same_ones():
    audit = fake_audit(mse=0.06, best={"test_images": 200, "excess_leakage": 0.2})
    assert "has 0.0750 on the same 200 images: an excess leakage of at least 0.20" in decide(audit).sentences[0]


def test_an_attacker_with_clearly_higher_ssim_is_named_although_another_has_the_least_error():
    def sentence(ssim):
        sample = trial("posterior sampler", "white-box", 0.05, ssim=ssim, test_images=300)
        return decide(changed(fake_audit(mse=0.03), more_trials=[sample])).sentences[0]

    best = fake_audit(mse=0.03).best.ssim
    assert f"SSIM, {best + 0.2:.3f}, is another one (posterior sampler, white-box, on 300 images)" in sentence(
        best + 0.2
    )
    assert "another one" not in sentence(best + 0.02), "chance of few images"
    assert "another one" not in sentence(best - 0.1)


def test_an_attacker_that_reidentifies_most_by_its_images_is_named():
    (row,) = fake_audit().as_json["identification"]
    more = row | {"attacker": "distance of images by the guided prior", "measure": "retrieval", "top1": 0.6, "low": 0.5}
    assert (
        "the image (by the guided prior) is re-identified"
        in decide(fake_audit(identification=[row, more])).sentences[0]
    )


@pytest.mark.parametrize("threat", [str(threat) for threat in Threat])
@pytest.mark.parametrize("pairs", [None, 123])
def test_every_threat_model_has_words(threat, pairs):
    sentence = decide(fake_audit(mse=0.02, best={"threat": threat, "pairs": pairs})).sentences[0]
    assert ("123 " in sentence) == (pairs is not None and "{pairs}" in WHO[Threat(threat)])
    assert "  " not in sentence


@pytest.mark.parametrize(
    ("accuracy", "local", "words"),
    [
        (0.88, 0.89, "offloading does not pay off"),
        (0.89, 0.89, "offloading does not pay off"),
        (0.8905, 0.89, "better off without"),
        (0.91, 0.89, "more than the"),
        (0.91, None, "not known"),
    ],
)
def test_the_second_sentence_compares_with_the_alternatives(accuracy, local, words):
    # Excess leakage 0.65: the mixture reaches about 0.9055.
    audit = fake_audit(mse=0.02, utility={"accuracy_obfuscated": accuracy, "accuracy_local": local})
    assert words in decide(audit).sentences[1]


def test_a_gate_before_the_plain_image_is_an_alternative_too():
    row = {"offload_rate": 0.15, "excess_leakage": 0.16, "accuracy": 0.912}
    audit = fake_audit(mse=0.02, utility={"accuracy_obfuscated": 0.91, "gated_plain": [row]})
    assert "least sure of leaks as much and gives 91.3 %, so a user is better off" in decide(audit).sentences[1]
    audit = changed(audit, utility={"gated_plain": [row | {"excess_leakage": 0.9}]})
    assert "more than the" in decide(audit).sentences[1], "up to there the curve lies lower"


def test_between_its_points_the_curve_of_a_gate_is_followed():
    rows = (
        GatedPlain(offload_rate=0.1, excess_leakage=0.1, accuracy=0.9),
        GatedPlain(offload_rate=0.3, excess_leakage=0.3, accuracy=0.92),
    )
    utility = Alternatives(accuracy_local=0.89, accuracy_plain=0.91, gated_plain=rows)
    assert best_mixture(0.05, utility)[0] == pytest.approx(0.895)
    assert best_mixture(0.2, utility)[0] == pytest.approx(0.91)
    assert best_mixture(0.65, utility)[0] == pytest.approx(0.915)
    assert best_mixture(1.0, utility)[0] == pytest.approx(0.91)
    assert best_mixture(0.5, utility.model_copy(update={"gated_plain": ()}))[0] == pytest.approx(0.9)
    assert best_mixture(0.5, UTILITY.model_copy(update={"accuracy_local": None})) is None


def test_what_a_gate_changes_is_said():
    sentence = decide(fake_audit(gate=gate())).sentences[1]
    for figure in ("15.2 %", "91.3 %", "90.5 %", "at least 0.12", "0.02 over all, where"):
        assert figure in sentence
    unmeasured = gate(accuracy_gated=None, excess_leakage_sent=None)
    assert decide(fake_audit(gate=unmeasured)).sentences[1].endswith("15.2 % of the images leave the device.")


def test_without_a_classifier_there_is_no_comparison():
    assert "No classifier" in decide(fake_audit(utility=None)).sentences[1]


def test_the_third_sentence_names_a_certificate_if_there_is_one():
    assert "no certificate" in decide(fake_audit()).sentences[2]
    assert "at most 3.2 bits" in decide(fake_audit(certificate=CERTIFICATE | {"rate_bits": 3.21})).sentences[2]


@pytest.mark.parametrize("audit", [fake_audit(), fake_audit(mse=0.02), fake_audit(utility=None), *spoilt().values()])
def test_the_sentences_promise_nothing_and_are_sentences(audit):
    for sentence in decide(audit).sentences:
        assert not CLAIMS.search(sentence)
        assert sentence[0].isupper()
        assert sentence.endswith(".")


@pytest.mark.parametrize(("leakage", "accuracy"), [(0.0, 0.8), (0.5, 0.85), (1.0, 0.9), (1.2, 0.9)])
def test_mixing_meets_both_ends(leakage, accuracy):
    mixed = best_mixture(leakage, Alternatives(accuracy_local=0.8, accuracy_plain=0.9))
    assert mixed is not None and mixed[0] == pytest.approx(accuracy)


@pytest.mark.parametrize(("share", "text"), [(0.726, "72.6 %"), (0.0, "0.0 %"), (0.0001, "0.01 %"), (None, "\u2013")])
def test_percent(share, text):
    assert percent(share) == text


def test_noise_that_hides_one_view_but_not_sixteen_leaks():
    averaged = trial("least squares", "white-box", 0.03, views=16, excess_leakage=0.4)
    verdict = decide(changed(fake_audit(), more_trials=[averaged]))
    assert verdict.finding == "leaks" and "of 0.40 if an image is sent 16 times" in verdict.sentences[0]


@pytest.mark.parametrize(("recognised", "low"), [(19, 0.01), (0, -0.01)])
def test_training_images_in_the_bundle_are_a_leak(recognised: int, low: float) -> None:
    counts = {"decoded_images": 97, "train_images": 480, "test_images": 120, "test_recognised": 0}
    copied = {"train_copied": 0, "test_copied": 0, "train_recognised": recognised, "low": low, "high": 0.06}
    near = {"train_correlation": 0.95, "test_correlation": 0.8, "train_mse": 0.01, "test_mse": 0.03}
    row = {"file": "deobfuscator.onnx", "method": "reconstructs every code", **counts, **copied, **near}
    verdict, without = decide(fake_audit(extraction=[row])), decide(fake_audit())
    assert f"{recognised} of 480 training images are recognisable" in verdict.sentences[0]
    assert ("gives training images away" in verdict.sentences[0]) == (recognised > 0)
    assert "training set" not in without.sentences[0]
    assert verdict.finding == ("leaks" if recognised else without.finding)


@pytest.mark.parametrize(
    ("cosine", "said"),
    [
        (
            0.9,
            "reconstructions (U-Net) are as similar as 0.90 to the images (feature cosine; from the label alone 0.80",
        ),
        (0.7, "even the best reconstructions (U-Net), 0.70, are less similar than what the label gives"),
    ],
)
def test_what_is_recognised_is_compared_with_the_label_alone(cosine: float, said: str) -> None:
    seen = {"label_agreement": 0.5, "label_low": 0.4, "label_high": 0.6, "cosine_error": 0, "images": 60}
    seen |= {"kernel_distance": None, "kernel_error": None}
    scale = {"label_only": {"a typical one": seen | {"feature_cosine": 0.8}}, "learned_from": 48}
    scale["image"] = seen | {"feature_cosine": 1.0}
    judged = trial("U-Net", "white-box", 0.06, recognition=seen | {"feature_cosine": cosine})
    assert said in decide(changed(fake_audit(recognition=scale), more_trials=[judged])).sentences[0]

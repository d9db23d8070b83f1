"""A deployed pair that works, and pairs that do not; what is sent is inspected."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import numpy as np
import pytest

import tiny
from file_endpoint import FileEndpoint
from recording import leaked, metadata, recording, respond_with
from sfumato.apps.doctor import Finding, doubt_about_gate, examine, is_well, synthetic_images
from sfumato.artifacts.gate import Gate
from sfumato.artifacts.records import Figures
from sfumato.cloud import ServedModel, running
from sfumato.device import Client, FileClient
from sfumato.errors import BundleError

QUICK = {"retries": 0, "timeout_s": 2.0}


def examined(bundle, url, *, classifier=None, files=None, **options):
    kind, options = (Client, options) if files is None else (FileClient, {**options, **files})
    return examine(kind(url, bundle, gate=False, **options), classifier=classifier)


def verdicts(found: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in found}


def test_a_pair_that_works_is_well(tiny_bundles):
    obfuscator, classifier = tiny_bundles
    with running([ServedModel(classifier.path)]) as url:
        found = examined(obfuscator, url, classifier=classifier)
    assert is_well(found)
    good = (
        "kind",
        "signature",
        "the bundle",
        "execution providers",
        "the endpoint",
        "shapes and datatypes",
        "labels",
        "fingerprint",
        "predictions",
    )
    assert verdicts(found) == {
        **dict.fromkeys((*good, "probabilities", "latency"), "good"),
        "accuracy": "note",
        "gate": "note",
    }


WORKS = Figures(accuracy_plain=0.9, accuracy_obfuscated=0.89, test_images=1000, accuracy_device=0.85, offload_rate=0.2)


def test_a_gate_that_decides_sensibly_is_not_doubted():
    assert doubt_about_gate(Gate(0.8, offload_rate=0.15, images=500), WORKS) is None
    assert doubt_about_gate(Gate(0.8, offload_rate=0.15, images=500), Figures()) is None


@pytest.mark.parametrize(
    ("threshold", "measured", "said"),
    [
        (0.999, {"offload_rate": 0.99}, "99.0% of 1,000 test images are sent"),
        (0.7, {"offload_rate": 0.01}, "the device decides nearly alone"),
        (0.369, {}, "a threshold of 36.9% makes predictions final that are more likely incorrect"),
        (0.8, {"accuracy_device": 0.3}, "the device is correct for 30.0% of 1,000 test images"),
    ],
)
def test_a_gate_that_a_critic_would_not_call_good(threshold, measured, said):
    found = doubt_about_gate(Gate(threshold, offload_rate=0.15, images=500), WORKS.updated(**measured))
    assert found is not None and said in found.said and found.verdict == "note" and found.advice


@pytest.mark.parametrize(
    ("measured", "verdict", "said"),
    [
        ({}, "good", "89.0% of 1,000 payloads"),
        ({"accuracy_obfuscated": 0.8}, "note", "80.0% of 1,000 payloads"),
        ({"accuracy_obfuscated": 0.4}, "note", "of no use: 40.0%"),
    ],
)
def test_the_accuracy_that_was_measured_is_judged(tmp_path, measured, verdict, said):
    obfuscator, classifier = tiny.save_bundles(tmp_path)
    bundle = replace(obfuscator, figures=WORKS.updated(**measured)).save()
    with running([ServedModel(classifier.path)]) as url:
        found = examined(bundle, url)
    (judged,) = (finding for finding in found if finding.check == "accuracy")
    assert judged.verdict == verdict and judged.said.startswith(said)


def test_nothing_but_obfuscated_synthetic_images_payload(obfuscator_bundle):
    with recording() as server:
        found = examined(obfuscator_bundle, server.url, **QUICK)
        sent = bytes(server.recorded)
    assert is_well(found) and verdicts(found)["probabilities"] == "note"
    assert verdicts(found)["fingerprint"] == verdicts(found)["labels"] == "note", "this endpoint says neither"
    for image in synthetic_images(8, tiny.SIZE, tiny.SIZE):
        assert not leaked(sent, image)
        hidden = tiny.obfuscate(image.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        assert hidden.tobytes()[:64] in sent, "all are sent, whatever a gate would say"


def test_a_gate_is_reported_but_not_used(gated_bundle):
    with recording() as server:
        found = examined(gated_bundle, server.url, **QUICK)
        assert server.paths.count("/v2/models/tiny/infer") == 8
        assert server.paths.count("/v2/models/tiny") == server.paths.count("/v2/health/ready") == 1
    assert "at least 90.0% are not sent; chosen for an offload rate of 50.0%" in found[-1].said


def test_other_numbers_than_the_classifiers_are_bad(tiny_bundles):
    obfuscator, classifier = tiny_bundles
    with recording(infer=respond_with(lambda x: tiny.logits(x) * np.float32(0.9))) as server:
        found = examined(obfuscator, server.url, classifier=classifier, **QUICK)
    assert verdicts(found)["probabilities"] == "bad" and not is_well(found)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}]}, "shapes and datatypes"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 9, 8]}]}, "shapes and datatypes"),
        ({"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 5]}]}, "shapes and datatypes"),
        ({"parameters": {"labels": json.dumps(sorted(tiny.LABELS, reverse=True))}}, "labels"),
        ({"parameters": {"fingerprint": "sha256:" + "0" * 64}}, "fingerprint"),
    ],
)
def test_metadata_of_another_model_is_bad_and_says_what_to_do(obfuscator_bundle, changes, check):
    with recording(tiny=lambda exchange: exchange.reply(200, metadata(**changes))) as server:
        found = examined(obfuscator_bundle, server.url, **QUICK)
    (bad,) = (finding for finding in found if finding.check == check)
    assert bad.verdict == "bad" and bad.advice


@pytest.mark.parametrize(
    ("path", "status", "said"), [("ready", 503, "503"), ("tiny", 404, "404"), ("ready", 401, "needs a token")]
)
def test_an_endpoint_that_refuses_is_bad(obfuscator_bundle, path, status, said):
    with recording(**{path: lambda exchange: exchange.reply(status)}) as server:
        found = examined(obfuscator_bundle, server.url, **QUICK)
    assert not is_well(found) and said in found[-1].said and verdicts(found)["the bundle"] == "good"


def test_no_endpoint_at_all_is_bad(obfuscator_bundle):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = examined(obfuscator_bundle, f"http://127.0.0.1:{port}", **QUICK)
    assert "no connection" in found[-1].said and not is_well(found)


def test_an_obfuscator_that_hides_nothing_is_found_before_anything_is_sent(tmp_path):
    bundle, _ = tiny.save_bundles(tmp_path, "identity")
    with recording() as server, pytest.raises(BundleError, match="shows the image"):
        examined(bundle, server.url, **QUICK)
    assert not server.recorded


def test_a_classifier_of_another_pair_is_found_before_anything_is_sent(tiny_bundles):
    obfuscator, classifier = tiny_bundles
    with recording() as server:
        found = examined(
            obfuscator, server.url, classifier=replace(classifier, classifier_fingerprint="sha256:other"), **QUICK
        )
        assert not server.recorded
    assert verdicts(found)["the classifier's bundle"] == "bad"


def files_at(classify=tiny.logits, **options):
    return FileEndpoint(classify, tiny.LABELS, tiny.PREPROCESSING, **options)


@pytest.mark.parametrize(("kind", "rounding"), [("8-bit", False), ("unit", True)])
def test_an_endpoint_that_takes_files(tmp_path, kind, rounding):
    obfuscator, classifier = tiny.save_bundles(tmp_path, kind)
    with recording(classify=files_at()) as server:
        how = {"style": "form", "rounding": rounding}
        found = examined(obfuscator, f"{server.url}/classify", classifier=classifier, files=how, **QUICK)
    assert is_well(found) and verdicts(found)["probabilities"] == "good"
    assert verdicts(found)["the endpoint"] == "note" and "says" not in verdicts(found)
    assert server.paths == 8 * ["/classify"]


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (files_at(lambda x: tiny.logits(x) * np.float32(0.5)), "probabilities differ"),
        (files_at(lambda x: -tiny.logits(x), reply=lambda found: found[0]["label"]), "0 of 8 labels"),
    ],
)
def test_files_with_other_answers_than_the_classifiers_are_bad(tmp_path, at, said):
    obfuscator, classifier = tiny.save_bundles(tmp_path, "8-bit")
    with recording(classify=at) as server:
        found = examined(obfuscator, f"{server.url}/classify", classifier=classifier, files={}, **QUICK)
    (bad,) = (finding for finding in found if finding.verdict == "bad")
    assert bad.check == "probabilities" and said in bad.said


def test_labels_alone_are_compared_too(tmp_path):
    obfuscator, classifier = tiny.save_bundles(tmp_path, "8-bit")
    with recording(classify=files_at(reply=lambda found: found[0]["label"])) as server:
        found = examined(obfuscator, f"{server.url}/classify", classifier=classifier, files={}, **QUICK)
    assert is_well(found) and "8 of 8 labels" in str(found)


def test_a_drawing_that_no_file_can_hold_is_found_before_anything_is_sent(tmp_path):
    obfuscator, _ = tiny.save_bundles(tmp_path, "unit")
    with recording() as server:
        found = examined(obfuscator, f"{server.url}/classify", files={}, **QUICK)
    assert (
        verdicts(found) == {"kind": "good", "signature": "good", "the bundle": "bad"}
        and "--round" in found[2].said
        and not server.recorded
    )


def test_it_says_which_kind_a_bundle_is(tiny_bundles, gated_bundle, no_network):
    obfuscator, classifier = tiny_bundles
    found = examine(Client(None, classifier))
    assert verdicts(found) == dict.fromkeys(
        ("kind", "signature", "the bundle", "execution providers", "latency"), "good"
    )
    assert "on the device alone" in found[0].said
    for bundle, says in ((obfuscator, "sends payloads to an endpoint"), (gated_bundle, "with a gate")):
        assert says in examined(bundle, "http://127.0.0.1:1", **QUICK)[0].said

"""A class map on the device: the endpoint's classifier gives all its outputs, and the client merges them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from file_endpoint import FileEndpoint
from recording import client, leaked, metadata, recording, respond_with, softmax
from sfumato.apps.doctor import examine, is_well
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.class_map import ClassMap
from sfumato.cloud import ServedModel, running
from sfumato.device import Client, FileClient, prepare
from sfumato.device.image import from_pixels
from sfumato.errors import EndpointResponseInvalid

LABELS = ("vehicle", "cat")
GROUPED = ClassMap.of({"vehicle": [2, 3], "cat": 0}, 4)
SINGLE = ClassMap.of({"vehicle": 3, "cat": 0}, 4)
IMAGE = tiny.image(11)


def with_map(bundle: Bundle, class_map: ClassMap) -> Bundle:
    return replace(bundle, labels=LABELS, class_map=class_map).save()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Bundle, Bundle]:
    """(obfuscator, classifier) of the task, made of the tiny classifier's four outputs."""
    obfuscator, classifier = (with_map(bundle, GROUPED) for bundle in tiny.save_bundles(tmp_path))
    return obfuscator, classifier


def expected(logits: NDArray[Any], groups: tuple[tuple[int, ...], ...] = GROUPED.groups) -> NDArray[Any]:
    """Sums of the endpoint's own probabilities, renormalised: no logarithm is taken."""
    merged = np.array([softmax(logits)[..., list(group)].sum(-1) for group in groups])
    return merged / merged.sum()


def sent(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return tiny.obfuscate(prepare(pixels, tiny.PREPROCESSING)[None])


@pytest.mark.parametrize("encoding", ["binary", "json"])
@pytest.mark.parametrize("class_map", [GROUPED, SINGLE])
def test_another_servers_outputs_become_the_tasks_classes(pair: Any, class_map: ClassMap, encoding: str) -> None:
    bundle = with_map(pair[0], class_map)
    with recording() as server, client(server, bundle, encoding=encoding) as it:
        predictions = it.classify_batch([IMAGE, tiny.image(12)])
    for prediction, pixels in zip(predictions, (IMAGE, tiny.image(12)), strict=True):
        wanted = expected(tiny.logits(sent(pixels))[0], class_map.groups)
        np.testing.assert_allclose(prediction.probabilities, wanted, atol=1e-6)
        assert prediction.index == wanted.argmax() and prediction.label == LABELS[prediction.index]
    assert leaked(server.recorded, IMAGE) == set()


def test_our_server_serves_the_classifier_as_it_is(pair: Any, tmp_path: Path) -> None:
    obfuscator, classifier = pair
    unmapped = tiny.save_bundles(tmp_path / "unmapped")[1]
    assert classifier.classifier_fingerprint == unmapped.classifier_fingerprint
    model = ServedModel(classifier.path)
    assert model.metadata.outputs[0].shape == (-1, 4)
    assert "labels" not in model.metadata.parameters, "the task's are not those of the outputs"
    with running([model]) as url, Client(url, obfuscator) as it:
        np.testing.assert_allclose(it.classify(IMAGE).probabilities, expected(tiny.logits(sent(IMAGE))[0]), atol=1e-6)
        assert it.fingerprint == "match"


def test_half_precision_is_merged_in_full_precision(pair: Any) -> None:
    near = np.array([[9.0, 0.0, 9.0, 1.0]], np.float16)  # 9 + log(1 + exp(-8)) is 9 in half precision
    with recording(infer=respond_with(lambda _: near)) as server, client(server, pair[0]) as it:
        prediction = it.classify(IMAGE)
    np.testing.assert_allclose(prediction.probabilities, expected(near[0]), atol=1e-7)
    assert prediction.label == "vehicle"


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_another_number_of_outputs_is_refused_before_anything_is_sent(pair: Any, columns: int) -> None:
    outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, columns]}]
    behaviour = {"tiny": lambda exchange: exchange.reply(200, metadata(outputs=outputs))}
    with recording(**behaviour) as server, client(server, pair[0]) as it:
        with pytest.raises(EndpointResponseInvalid, match="no output with 4 classes"):
            it.classify(IMAGE)
        assert not any(path.endswith("infer") for path in server.paths)


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (lambda x: tiny.logits(x)[:, :2], r"\[1, 4\] was expected: one row per image, one column per output of the"),
        (lambda x: softmax(tiny.logits(x)).astype(np.float32), "holds probabilities"),
        (lambda x: tiny.logits(x) * np.float32(np.nan), "NaN"),
        (lambda x: np.where(np.arange(4) == 1, np.inf, tiny.logits(x)), "infinite"),
    ],
)
def test_what_cannot_be_merged_is_refused(pair: Any, compute: Callable[[Any], Any], said: str) -> None:
    refused = pytest.raises(EndpointResponseInvalid, match=said)
    with recording(infer=respond_with(compute)) as server, client(server, pair[0]) as it, refused:
        it.classify(IMAGE)


def test_probabilities_of_single_outputs_still_rank(pair: Any) -> None:
    bundle = with_map(pair[0], SINGLE)
    respond = respond_with(lambda x: softmax(tiny.logits(x)).astype(np.float32))
    with recording(infer=respond) as server, client(server, bundle) as it:
        assert it.classify(IMAGE).index == expected(tiny.logits(sent(IMAGE))[0], SINGLE.groups).argmax()


def test_doctor_compares_the_merged_probabilities(pair: Any) -> None:
    obfuscator, classifier = pair
    with running([ServedModel(classifier.path)]) as url:
        found = examine(Client(url, obfuscator, gate=False), classifier=classifier)
    said = {finding.check: finding.said for finding in found}
    assert is_well(found) and said["labels"] == "2, by the bundle's class map from 4 outputs"
    other = with_map(classifier, SINGLE)
    with recording() as server:
        found = examine(client(server, obfuscator, gate=False), classifier=other)
    assert found[-1].verdict == "bad" and "another class map" in found[-1].said
    assert not any(path.endswith("infer") for path in server.paths)


# --- endpoints that take image files ---------------------------------------------------------------


@pytest.fixture
def eight_bit(tmp_path: Path) -> Bundle:
    return with_map(tiny.save_bundles(tmp_path, "8-bit")[0], GROUPED)


def in_order(found: list[dict[str, Any]]) -> list[float]:
    scores = {entry["label"]: entry["score"] for entry in found}
    return [scores[label] for label in tiny.LABELS]


def asked(bundle: Bundle, reply: Callable[[list[dict[str, Any]]], Any]) -> Any:
    endpoint = FileEndpoint(tiny.logits, tiny.LABELS, tiny.PREPROCESSING, reply=reply)
    options: dict[str, Any] = {"retries": 0, "timeout_s": 2.0}
    with recording(classify=endpoint) as server, FileClient(f"{server.url}/v1/classify", bundle, **options) as it:
        return it.classify(IMAGE)


def file_logits() -> NDArray[np.float32]:
    return tiny.logits(from_pixels(tiny.negative(IMAGE)[None], tiny.PREPROCESSING))[0]


def test_a_list_of_all_scores_is_merged(eight_bit: Bundle) -> None:
    prediction = asked(eight_bit, in_order)
    np.testing.assert_allclose(prediction.probabilities, expected(file_logits()), atol=1e-6)
    assert prediction.label == LABELS[expected(file_logits()).argmax()]


def test_scores_outside_of_0_to_1_rank_single_outputs_only(eight_bit: Bundle) -> None:
    logits = [float(value) for value in file_logits()]
    with pytest.raises(EndpointResponseInvalid, match=r"outside \[0, 1\]"):
        asked(eight_bit, lambda _: logits)
    prediction = asked(with_map(eight_bit, SINGLE), lambda _: logits)
    assert prediction.label == ("vehicle" if logits[3] > logits[0] else "cat") and np.isnan(prediction.probability)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (list, "scores, one for each output"),
        (lambda found: found[0]["label"], "is a string; .* 4 scores"),
        (lambda found: {entry["label"]: entry["score"] for entry in found}, "is an object"),
        (lambda found: in_order(found)[:2], "a list of 2"),
        (lambda _: [0, 1, 0, 0], "the score 0 for every output"),
        (lambda _: [1, 0, True, 0], "scores, one for each output"),
    ],
)
def test_other_responses_of_file_endpoints_are_refused(eight_bit: Bundle, reply: Any, said: str) -> None:
    with pytest.raises(EndpointResponseInvalid, match=said) as caught:
        asked(eight_bit, reply)
    assert json.dumps(IMAGE.tolist())[:30] not in str(caught.value)

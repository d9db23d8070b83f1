"""Answers of all the kinds there are, and of kinds there should not be."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sfumato.device.file_responses import ResponseFormat, read_file_response
from sfumato.errors import EndpointResponseInvalid
from tiny import LABELS

NAN = math.nan
LISTED = [{"label": "ship", "score": 0.7}, {"label": "cat", "score": 0.2}]
AZURE = {"id": "1", "predictions": [{"tagName": "dog", "probability": 0.1}, {"tagName": "ship", "probability": 0.6}]}


@pytest.mark.parametrize(
    ("value", "place", "best", "scores"),
    [
        (LISTED, {}, "ship", (0.2, NAN, 0.7, NAN)),
        ([LISTED], {"path": "0"}, "ship", (0.2, NAN, 0.7, NAN)),
        (LISTED[::-1], {}, "ship", (0.2, NAN, 0.7, NAN)),
        (
            AZURE,
            {"path": "predictions", "label_key": "tagName", "score_key": "probability"},
            "ship",
            (NAN, 0.1, 0.6, NAN),
        ),
        ({"label": "dog", "score": 1}, {}, "dog", (NAN, 1.0, NAN, NAN)),
        ("truck", {}, "truck", 4 * (NAN,)),
        ({"a": [{"b": "truck"}, {"b": "dog"}]}, {"path": "a.1.b"}, "dog", 4 * (NAN,)),
        ([{"label": "dog"}, {"label": "cat"}], {}, "dog", 4 * (NAN,)),
        ({"cat": 0.1, "dog": 0.9}, {}, "dog", (0.1, 0.9, NAN, NAN)),
        ([0.1, 0.2, 0.3, 0.4], {}, "truck", (0.1, 0.2, 0.3, 0.4)),
        ([[-5, 9.5, 0, 1]], {"path": "0"}, "dog", 4 * (NAN,)),  # logits, or percents: they only rank
        ({"label": "SHIP ", "score": None}, {}, "ship", 4 * (NAN,)),
    ],
)
def test_what_is_understood(value: Any, place: dict[str, str], best: str, scores: tuple[float, ...]) -> None:
    index, found = read_file_response(json.dumps(value).encode(), ResponseFormat(**place), LABELS)
    assert LABELS[index] == best
    assert found == pytest.approx(scores, nan_ok=True)


def test_labels_go_by_their_names_even_if_written_otherwise() -> None:
    labels = ("fire-truck", "Fire engine", "x_y", "X Y")
    assert read_file_response(b'"Fire Truck"', ResponseFormat(), labels)[0] == 0
    assert read_file_response(b'"fire_engine"', ResponseFormat(), labels)[0] == 1
    assert read_file_response(b'"X Y"', ResponseFormat(), labels)[0] == 3
    with pytest.raises(EndpointResponseInvalid, match="none of the bundle's labels"):
        read_file_response(b'"x-y"', ResponseFormat(), labels)  # could be either


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ("<html>", "", "not valid JSON"),
        ("", "", "not valid JSON"),
        ("\xff", "", "not valid JSON"),
        ("[" * 100_000, "", "not valid JSON"),
        ("[NaN, 1, 2, 3]", "", "NaN"),
        ("[1e999, 1, 2, 3]", "", "finite"),
        ("[1" + 400 * "0" + ", 1, 2, 3]", "", "finite"),
        ("[0.1, 0.9]", "", "2 scores; the bundle has 4 labels"),
        ("[true, false, false, false]", "", "a boolean"),
        ("[]", "", "empty"),
        ("{}", "", "'label'"),
        ("3", "", "a number"),
        ("null", "", "null"),
        ('{"result": []}', "results", "no 'results'; it has 'result'"),
        ('{"a": {"b": []}}', "a.b.0", "'a.b' is a list of 0"),
        ('{"a": [1]}', "a.x", "list of 1; there is no 'x'"),
        ('{"a": [1]}', "a.-1", "there is no '-1'"),
        ('{"a": "cat"}', "a.b", "'a' is a string"),
        ('{"name": "cat", "score": 1}', "", "no string under 'label'; it has 'name', 'score'"),
        ('{"label": 3, "score": 1}', "", "no string under 'label'"),
        ('[{"label": "cat", "score": "high"}]', "", "a string for a score"),
        ('[{"label": "cat"}, {"label": "Cat"}]', "", "'cat' twice"),
        ('"zebra\\u001b[31m"', "", "'zebra .31m', which is none of the bundle's labels .'cat', 'dog'"),
    ],
)
def test_what_is_no_prediction_is_an_error_that_says_why(body: str, path: str, said: str) -> None:
    with pytest.raises(EndpointResponseInvalid, match=said) as caught:
        read_file_response(body.encode("latin-1"), ResponseFormat(path), LABELS)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400

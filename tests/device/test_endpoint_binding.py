"""How an endpoint is asked: datatypes, and the 8-bit levels of what an obfuscator with 8-bit output makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recording import Behaviour, client, leaked, metadata, recording, respond_with, softmax
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.records import RecipeRecord
from sfumato.device.endpoint_binding import PayloadSpec, as_datatype, make_plan, payload_from
from sfumato.errors import BundleError, EndpointError, EndpointResponseInvalid
from sfumato.wire import ModelMetadata, TensorSpec
from tiny import LABELS, PREPROCESSING, SIZE, image, logits, negative, save_bundles

ROW = (3, SIZE, SIZE)
FLOATS = PayloadSpec(ROW, len(LABELS))
LEVELS = replace(FLOATS, eight_bit=True)
CODE = PayloadSpec((1,), len(LABELS), split=True)


def model(datatype: str, row: tuple[int, ...] = ROW, **changes: Any) -> ModelMetadata:
    return replace(ModelMetadata("m", inputs=(TensorSpec("x", datatype, (-1, *row)),)), **changes)


@pytest.mark.parametrize(
    ("payload", "stated", "asked", "chosen"),
    [
        (FLOATS, "FP32", None, "FP32"),
        (FLOATS, "FP16", None, "FP16"),
        (FLOATS, "FP16", "FP32", "FP32"),
        (FLOATS, "INT8", "FP32", "FP32"),
        (LEVELS, "UINT8", None, "UINT8"),
        (LEVELS, "FP32", None, "FP32"),
        (LEVELS, "FP32", "UINT8", "UINT8"),
    ],
)
def test_the_models_datatype_unless_another_is_asked_for(
    payload: PayloadSpec, stated: str, asked: str | None, chosen: str
) -> None:
    plan = make_plan(model(stated), payload, datatype=asked)
    assert (plan.input_name, plan.datatype, plan.output_name) == ("x", chosen, None)


def test_codes_are_bytes_whatever_is_asked_for() -> None:
    assert make_plan(model("UINT8", (1,)), CODE).datatype == "UINT8"
    assert make_plan(model("FP32", inputs=()), CODE).datatype == "UINT8"
    with pytest.raises(EndpointResponseInvalid, match="takes FP32; this client sends UINT8"):
        make_plan(model("FP32", (1,)), CODE)
    with pytest.raises(EndpointError, match="a code is sent as bytes"):
        make_plan(model("FP32", (1,)), CODE, datatype="FP32")


def test_the_bundle_says_whether_its_output_is_8_bit(obfuscator_bundle: Bundle) -> None:
    eight_bit = replace(obfuscator_bundle, recipe=RecipeRecord(output={"format": "8-bit"}))
    assert payload_from(eight_bit, ROW, split=False) == LEVELS
    for bundle in (obfuscator_bundle, replace(obfuscator_bundle, recipe=RecipeRecord(output={"format": "float"}))):
        assert payload_from(bundle, ROW, split=False) == FLOATS


def test_levels_are_exact_there_and_back() -> None:
    pixels = np.stack([image(seed).transpose(2, 0, 1) for seed in range(3)])
    normalised = PREPROCESSING.normalize((pixels / 255).astype(np.float32))
    sent = as_datatype(normalised, "UINT8", PREPROCESSING)
    assert sent.dtype == np.uint8
    np.testing.assert_array_equal(sent, pixels)


@pytest.mark.parametrize("off", [0.3 / 255, 2.0, -2.0])
def test_values_that_are_no_levels_do_not_leave(off: float) -> None:
    pixels = image().transpose(2, 0, 1)[None] / 255
    normalised = PREPROCESSING.normalize((pixels + off).astype(np.float32))
    with pytest.raises(BundleError, match="nothing was sent"):
        as_datatype(normalised, "UINT8", PREPROCESSING)


def test_values_too_large_for_half_precision_do_not_leave() -> None:
    with pytest.raises(BundleError, match="too large for FP16"):
        as_datatype(np.full((1, *ROW), 1e5, np.float32), "FP16", PREPROCESSING)


def takes_levels() -> tuple[Behaviour, Behaviour]:
    """A model that takes 8-bit images and normalises by itself: its metadata and its predictions."""
    told = metadata(inputs=[{"name": "input", "datatype": "UINT8", "shape": [-1, *ROW]}])
    predictions = respond_with(lambda levels: logits(PREPROCESSING.normalize((levels / 255).astype(np.float32))))
    return lambda exchange: exchange.reply(200, told), predictions


def test_a_bundle_that_claims_8_bits_and_draws_others_sends_nothing(obfuscator_bundle: Bundle) -> None:
    liar = replace(obfuscator_bundle, recipe=RecipeRecord(output={"format": "8-bit"}))
    told, predictions = takes_levels()
    with (
        recording(tiny=told, infer=predictions) as server,
        pytest.raises(BundleError, match="8-bit"),
        client(server, liar) as it,
    ):
        it.classify(image())
    assert b"POST" not in server.recorded


def test_levels_are_sent_to_a_model_that_takes_them(tmp_path: Path) -> None:
    bundle = replace(save_bundles(tmp_path, "8-bit")[0], recipe=RecipeRecord(output={"format": "8-bit"}))
    told, predictions = takes_levels()
    pixels = image(3)
    with recording(tiny=told, infer=predictions) as server, client(server, bundle) as it:
        prediction = it.classify(pixels)
        assert it.datatype == "UINT8" and prediction.payload_bytes < pixels.size + 250
    drawn = negative(pixels).transpose(2, 0, 1)
    assert drawn.tobytes() in server.recorded and leaked(server.recorded, pixels) == set()
    wanted = softmax(logits(PREPROCESSING.normalize((drawn[None] / 255).astype(np.float32))))[0]
    np.testing.assert_allclose(prediction.probabilities, wanted, atol=1e-4)

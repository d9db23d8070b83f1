"""The client with a gate: images handled on-device make no request, the others are sent obfuscated."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recording import Behaviour, client, expected_probabilities, leaked, recording, respond_with, softmax
from sfumato.artifacts.bundle import Bundle
from sfumato.device import Client, prepare
from sfumato.errors import BundleError, EndpointUnreachable, ImageError
from tiny import (
    LABELS,
    PREPROCESSING,
    logits,
    obfuscate,
    own_logits,
    save_bundles,
    sure_image,
    unsure_image,
)

pytestmark = pytest.mark.usefixtures("both_clients")

TOKEN = "s3cret-token"
MIXED = [unsure_image(0), sure_image(1), sure_image(2), unsure_image(3), sure_image(4)]
SENT = (0, 3)


def keeping(received: list[NDArray[np.float32]]) -> Behaviour:
    """Answers well, and keeps the tensors that arrive."""

    def compute(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        received.append(inputs.copy())
        return logits(inputs)

    return respond_with(compute)


@pytest.mark.parametrize("binary", [True, False])
def test_a_gate_sends_only_what_it_must(binary: bool, gated_bundle: Bundle) -> None:
    received: list[NDArray[np.float32]] = []
    with (
        recording(infer=keeping(received)) as server,
        client(server, gated_bundle, encoding="binary" if binary else "json") as it,
    ):
        predictions = it.classify_batch(iter(MIXED))
        assert it.fingerprint == "unknown"
    unit = np.stack([prepare(pixels, PREPROCESSING) for pixels in MIXED])
    own = softmax(own_logits(unit))
    for index, (prediction, pixels) in enumerate(zip(predictions, MIXED, strict=True)):
        expected = expected_probabilities(pixels) if index in SENT else own[index]
        np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-4)
        assert prediction.label == LABELS[expected.argmax()]
        assert prediction.probability == max(prediction.probabilities)
        assert prediction.predicted_by == ("cloud" if index in SENT else "device")
        assert (prediction.payload_bytes > 0, prediction.round_trip_ms > 0) == 2 * (index in SENT,)
        assert prediction.obfuscate_ms > 0
        assert leaked(server.recorded, pixels) == set()
    (tensors,) = received  # one request
    np.testing.assert_allclose(tensors, obfuscate(unit[list(SENT)]), atol=1e-5)
    assert server.paths == ["/v2/models/tiny", "/v2/models/tiny/infer"]
    if binary:  # and no room in it for a third image
        assert len(server.recorded) < 3 * unit[0].nbytes


def test_no_request_is_made_if_all_are_handled_on_device(gated_bundle: Bundle) -> None:
    with recording() as server, client(server, gated_bundle, token=TOKEN) as it:
        predictions = it.classify_batch([sure_image(seed) for seed in range(5)], batch_size=2)
        one = it.classify(sure_image())
        assert it.fingerprint is None
    assert [prediction.label for prediction in (*predictions, one)] == 6 * ["cat"]
    assert server.recorded == b""
    assert server.paths == []


def test_of_each_group_only_the_rest_is_sent(gated_bundle: Bundle) -> None:
    received: list[NDArray[np.float32]] = []
    with recording(infer=keeping(received)) as server, client(server, gated_bundle) as it:
        predictions = it.classify_batch(MIXED, batch_size=2)
    assert [prediction.predicted_by == "cloud" for prediction in predictions] == [index in SENT for index in range(5)]
    assert [len(tensors) for tensors in received] == [1, 1]
    assert sum(path.endswith("infer") for path in server.paths) == 2


def test_a_device_that_is_offline_answers_what_it_can(gated_bundle: Bundle) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with Client(url, gated_bundle, retries=0) as it:
            assert it.classify(sure_image()).predicted_by == "device"
            with pytest.raises(EndpointUnreachable):
                it.classify(unsure_image())
            with pytest.raises(EndpointUnreachable):
                it.classify_batch(MIXED)
            assert it.classify(sure_image(1)).predicted_by == "device"


def test_without_its_gate_everything_is_sent(gated_bundle: Bundle) -> None:
    received: list[NDArray[np.float32]] = []
    with recording(infer=keeping(received)) as server, client(server, gated_bundle, gate=False) as it:
        predictions = it.classify_batch(MIXED)
        assert it.classify_locally(sure_image()) is None
        assert not it.gate_enabled
    for prediction, pixels in zip(predictions, MIXED, strict=True):
        np.testing.assert_allclose(prediction.probabilities, expected_probabilities(pixels), atol=1e-4)
        assert (prediction.predicted_by, prediction.payload_bytes > 768) == ("cloud", True)
        assert leaked(server.recorded, pixels) == set()
    assert [len(tensors) for tensors in received] == [5]


def test_classify_locally_sends_nothing(gated_bundle: Bundle, obfuscator_bundle: Bundle) -> None:
    with recording() as server, client(server, gated_bundle) as it, client(server, obfuscator_bundle) as ungated:
        at_home = it.classify_locally(sure_image())
        assert at_home is not None
        assert (at_home.label, at_home.predicted_by) == ("cat", "device")
        assert it.classify_locally(unsure_image()) is None
        assert ungated.classify_locally(sure_image()) is None
        with pytest.raises(ImageError):
            it.classify_locally(b"no image")
    assert server.recorded == b""


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("own", ["nan", "rows", "columns"])
def test_nothing_is_sent_if_the_own_answer_is_none(own: str, gate: bool, tmp_path: Any) -> None:
    bundle, _ = save_bundles(tmp_path, threshold=0.9, own=own)
    with recording() as server, pytest.raises(BundleError), client(server, bundle, gate=gate) as it:
        it.classify(sure_image())
    assert server.recorded == b""


@pytest.mark.parametrize("kind", ["identity", "normalised", "nan", "shape"])
def test_a_gate_does_not_open_for_an_obfuscator_that_does_not_hide(kind: str, tmp_path: Any) -> None:
    bundle, _ = save_bundles(tmp_path, kind, threshold=0.9)
    with recording() as server, pytest.raises(BundleError), client(server, bundle) as it:
        it.classify_batch(MIXED)
    assert server.recorded == b""


def test_a_bad_image_stops_its_whole_group(gated_bundle: Bundle) -> None:
    with recording() as server, client(server, gated_bundle) as it, pytest.raises(ImageError):
        it.classify_batch([unsure_image(), b"no image"])
    assert server.recorded == b""

"""numpy in, numpy out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sfumato
from recording import expected_probabilities, leaked, recording
from sfumato.artifacts.bundle import Bundle
from sfumato.errors import EndpointUnreachable, ImageError
from tiny import LABELS, SIZE, image, sure_image, unsure_image

IMAGES = np.stack([image(seed) for seed in range(20)])


def test_it_predicts_what_the_client_does(obfuscator_bundle: Bundle) -> None:
    expected = np.stack([expected_probabilities(pixels) for pixels in IMAGES])
    with recording() as server:
        asked: Any = {"bundle": obfuscator_bundle, "url": server.url}
        probabilities = sfumato.predict_proba(IMAGES, **asked)
        labels = sfumato.predict(IMAGES, **asked)
        assert sfumato.predict_proba(IMAGES[:0], **asked).shape == (0, 4)
        assert sfumato.predict(IMAGES[:0], **asked).shape == (0,)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert labels.tolist() == [LABELS[index] for index in expected.argmax(axis=1)]
    assert set().union(*(leaked(server.recorded, pixels) for pixels in IMAGES)) == set()


def test_grey_images_and_the_clients_options(gated_bundle: Bundle) -> None:
    grey = np.full((2, SIZE, SIZE), 128, np.uint8)
    with recording() as server:
        two = np.stack([sure_image(), unsure_image()])
        assert sfumato.predict(two, bundle=gated_bundle, url=server.url).shape == (2,)
        assert b'"shape":[1,3,8,8]' in server.recorded, "the gate kept one"
        assert sfumato.predict_proba(grey, bundle=gated_bundle, url=server.url, gate=False).shape == (2, 4)
        assert b'"shape":[2,3,8,8]' in server.recorded


@pytest.mark.parametrize(
    "images",
    [IMAGES[0], IMAGES[0, 0], IMAGES.astype(np.float32), list(IMAGES), IMAGES[..., :2], IMAGES[None], b"image"],
)
def test_other_arrays_are_refused_and_nothing_is_sent(images: Any, obfuscator_bundle: Bundle) -> None:
    with recording() as server, pytest.raises(ImageError):
        sfumato.predict(images, bundle=obfuscator_bundle, url=server.url)
    assert server.recorded == b""


@pytest.mark.usefixtures("no_network")
def test_a_classifier_on_the_device_needs_no_address(classifier_bundle: Bundle) -> None:
    assert sfumato.predict(IMAGES, bundle=classifier_bundle, url=None).shape == (20,)


def test_it_fails_closed(obfuscator_bundle: Bundle) -> None:
    with pytest.raises(EndpointUnreachable):
        sfumato.predict(IMAGES, bundle=obfuscator_bundle, url="http://127.0.0.1:1", retries=0)

"""Measurements of ways, against what can be worked out by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.lab.advice.measure import (
    accuracy_from_size,
    image_ways,
    measure_image_way,
    net_ways,
    thumbnail,
)
from sfumato.lab.evaluation.accuracy import classify
from synthetic import image_set


def test_a_thumbnail_fits_its_bytes_and_shows_the_image():
    smooth = np.add.outer(np.arange(32) * 4, np.arange(32) * 3)[..., None].repeat(3, axis=2).astype(np.uint8)
    found = [thumbnail(smooth, limit=limit) for limit in (60, 100, 1000)]
    errors = [np.abs(one.seen.astype(float) - smooth).mean() for one in found]
    assert all(one.size <= limit for one, limit in zip(found, (60, 100, 1000), strict=True))
    assert errors[2] <= errors[1] <= errors[0] + 1 and errors[2] < 4
    assert thumbnail(smooth, limit=5) is None


def test_bytes_are_those_of_the_file_without_its_header():
    image = image_set(1).images[0].permute(1, 2, 0).numpy()
    plain = next(way for way in image_ways(image_set(2)) if way.kind == "plain")
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=True)
    assert plain.make(image).size == len(stream.getvalue()) - 20


def test_every_way_is_measured_as_the_classifier_sees_it(trained):
    classifier, test = trained[0], image_set(24)
    ways = image_ways(test)
    found = {way.name: measure_image_way(way, classifier, test, 1.0) for way in ways}
    predicted = classify(classifier, test).argmax(dim=1)
    assert found["plain image"].accuracy == pytest.approx(float((predicted == test.labels).double().mean()))
    assert {way.kind for way in ways} == {"plain", "thumbnail", "blur", "pixelate"}
    assert found["pixelated, 8 pixels"].payload_bytes < found["pixelated, 2 pixels"].payload_bytes
    assert found["thumbnail of 100 bytes"].bits <= 800


def test_a_gate_sends_what_the_net_is_least_sure_of(trained):
    net, test = trained[0], image_set(40)
    plain = measure_image_way(image_ways(test)[0], net, test, 10.0)
    local, *gates = net_ways(net, "net", test, plain, test.labels, at_least=True)
    sure = torch.softmax(classify(net, test), dim=1).max(dim=1).values.double()
    assert local.offload_rate == local.bits == 0 and local.at_least
    for gate in gates:
        sent = float((sure < gate.threshold - 1e-7).double().mean())
        assert gate.offload_rate == pytest.approx(sent, abs=0.026)
        assert gate.payload_bytes == pytest.approx(gate.offload_rate * plain.payload_bytes)
        assert gate.accuracy >= local.accuracy, "this cloud is always right"
    (half,) = [gate for gate in gates if "50%" in gate.name]
    assert half.offload_rate == pytest.approx(0.5, abs=0.03) and half.cloud_ms == pytest.approx(10 * half.offload_rate)


def test_the_size_of_a_payload_may_tell_its_class():
    labels = np.random.default_rng(0).integers(0, 4, 2000)
    noise = np.random.default_rng(1).integers(0, 10, 2000)
    assert accuracy_from_size(100 * labels + noise, labels) > 0.9
    assert accuracy_from_size(noise + 100, labels) < 0.33
    assert accuracy_from_size(np.full(2000, 7), labels) is None


def test_images_that_do_not_fit_are_no_way(trained):
    test = image_set(4)
    way = replace(image_ways(test)[1], make=lambda image: None)
    assert measure_image_way(way, trained[0], test, 1.0) is None

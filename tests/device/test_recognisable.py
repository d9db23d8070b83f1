"""Payloads that show the image are refused: by synthetic images at load, and image by image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from recording import client, leaked, recording
from sfumato.artifacts import shipped
from sfumato.artifacts.records import RecipeRecord
from sfumato.device import Client, Obfuscator
from sfumato.device.protect import Protecting
from sfumato.device.recognisable import explained, probe_images, shows_probes
from sfumato.errors import BundleError

Images = NDArray[np.float32]
PROBES = probe_images(32, 32)
GREY = np.array([0.3, 0.6, 0.1], np.float32)[:, None, None]


def blurred(x: Images) -> Images:
    return sum(np.roll(x, (i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / np.float32(9)


SEEN: dict[str, Callable[[Images], Images]] = {
    "the image": lambda x: x,
    "brighter": lambda x: x + 0.0011,
    "half": lambda x: x / 2,
    "negated": lambda x: -x,
    "levels": lambda x: 255 * x,
    "faint on a large constant": lambda x: 1000 + x / 10,
    "tiny": lambda x: x * 1e-9,
    "huge": lambda x: x * 1e30,
    "each channel its own way": lambda x: x * np.float32([[[-2]], [[3]], [[0.1]]]) + np.float32([[[1]], [[0]], [[9]]]),
    "colours exchanged": lambda x: x[:, [2, 0, 1]],
    "grey": lambda x: np.repeat((x * GREY).sum(1, keepdims=True), 3, axis=1),
    "one channel of three": lambda x: np.concatenate([x[:, :1], np.zeros_like(x[:, :2])], axis=1),
    "eight levels": lambda x: np.round(x * 7) / 7,
    "mirrored": lambda x: x[..., ::-1],
    "upside down, negated": lambda x: -x[:, :, ::-1],
    "turned": lambda x: np.rot90(x, axes=(2, 3)),
    "moved": lambda x: np.roll(x, (2, -1), (2, 3)),
    "blurred": blurred,
    "under noise": lambda x: x + np.random.default_rng(1).normal(0, 0.05, x.shape).astype(np.float32),
}


@pytest.mark.parametrize("name", SEEN)
def test_copies_are_seen_on_probes(name: str) -> None:
    assert shows_probes(PROBES, SEEN[name](PROBES).astype(np.float32))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (24, 40), (224, 224)])
def test_what_has_nothing_of_the_image_is_no_copy(size: tuple[int, int]) -> None:
    probes, random = probe_images(*size), np.random.default_rng(0)
    for payload in (
        np.zeros_like(probes),
        np.full_like(probes, 7.3),
        random.normal(size=probes.shape).astype(np.float32),
        np.repeat(probe_images(*size)[4:5], len(probes), axis=0),  # a decoded image, the same for all: its own it shows
        random.permuted(probes.reshape(*probes.shape[:2], -1), axis=2).reshape(probes.shape),
    ):
        assert not shows_probes(probes, payload)


def test_explained_is_the_r_squared_of_least_squares() -> None:
    random = np.random.default_rng(2)
    x = random.random((2, 3, 16, 16)).astype(np.float32)
    y = (0.7 * x[:, ::-1] + random.normal(0, 0.1, x.shape)).astype(np.float32)
    for image, payload, found in zip(x, y, explained(x, y), strict=True):
        regressors = np.concatenate([image.reshape(3, -1), np.ones((1, 256))]).T
        for channel, share in zip(payload.reshape(3, -1), found, strict=True):
            rest = channel - regressors @ np.linalg.lstsq(regressors, channel, rcond=None)[0]
            assert share == pytest.approx(1 - rest.var() / channel.var(), abs=1e-4)


def test_shipped_obfuscators_are_far_from_the_threshold() -> None:
    for bundle in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()):
        obfuscator = Obfuscator(bundle)
        images = [sample.pixels for sample in shipped.samples()]
        units = np.stack([pixels.transpose(2, 0, 1) for pixels in images]).astype(np.float32) / np.float32(255)
        assert explained(units, obfuscator(units)).max() < 0.8
        assert explained(PROBES, obfuscator(PROBES), grid=32).max() < 0.5


COPIES = [("Add", 0.0011), ("Mul", 0.5), ("Mul", -1.0), ("Mul", 255.0)]


@pytest.mark.parametrize(("op", "value"), COPIES)
def test_a_bundle_of_copies_is_refused_before_there_is_an_image(op: str, value: float, tmp_path: Path) -> None:
    bundle = tiny.save_copy(tmp_path, op, value)
    for opened in (
        lambda: Obfuscator(bundle),
        lambda: Client("http://localhost:1", bundle),
        lambda: Protecting.into(tmp_path, bundle.path, tensors=False, gate=True, existing="refuse").obfuscator(),
    ):
        with pytest.raises(BundleError, match=r"shows the image.*nothing was sent"):
            opened()


def test_a_copy_of_one_image_alone_is_refused_when_it_comes(tmp_path: Path) -> None:
    bundle, _ = tiny.save_bundles(tmp_path, "lurking")
    with recording() as server, client(server, bundle) as it:
        assert it.classify(tiny.image(1)).predicted_by == "cloud"
        before = len(server.recorded)
        for batch in ([tiny.sure_image()], [tiny.image(1), tiny.sure_image()]):
            with pytest.raises(BundleError, match="shows the image"):
                it.classify_batch(batch)
        assert len(server.recorded) == before
        assert leaked(server.recorded, tiny.sure_image()) == set()


def test_a_baseline_that_shows_the_image_is_allowed_if_asked_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tiny.save_copy(tmp_path, "Mul", 0.5, recipe_kind="baseline")
    with pytest.raises(BundleError, match="allow_recognisable"):
        Obfuscator(bundle)
    with recording() as server, client(server, bundle, allow_recognisable=True) as it:
        assert it.classify(tiny.image()).label in tiny.LABELS
    assert [record.levelno for record in caplog.records if record.name.startswith("sfumato")] == [logging.WARNING]
    assert "shows the image" in caplog.text


@pytest.mark.parametrize("kind", ["identity", "normalised"])
def test_the_image_itself_is_never_allowed(kind: str, tmp_path: Path) -> None:
    bundle, _ = tiny.save_bundles(tmp_path, kind, recipe_kind="baseline")
    it = Obfuscator(bundle, allow_recognisable=True)
    for pixels in (tiny.image(), np.full((tiny.SIZE, tiny.SIZE, 3), 77, np.uint8)):
        with pytest.raises(BundleError, match="the image itself; nothing was sent"):
            it.obfuscate(pixels)


@pytest.mark.parametrize("kind", [None, "obfuscator", "sketch"])
def test_only_what_declares_itself_a_baseline_can_be_allowed(kind: str | None, tmp_path: Path) -> None:
    bundle = tiny.save_copy(tmp_path, "Mul", 0.5, recipe_kind=kind)
    with pytest.raises(BundleError, match="does not declare itself a baseline"):
        Obfuscator(bundle, allow_recognisable=True)


@pytest.mark.parametrize(("bits", "classes", "code", "fits"), [
    (8, 2, 0b11111111, True), (2, 2, 0b11000000, True), (2, 2, 0b11100000, False), (2, 2, 0b11000001, False),
    (8, 10, 0b10011111, True), (8, 10, 0b10100000, False), (None, 10, 255, True),
])  # fmt: skip
def test_codes_beyond_the_declared_ones_do_not_leave(
    bits: int | None, classes: int, code: int, fits: bool, tmp_path: Path
) -> None:
    bundle, _ = tiny.save_split_bundles(tmp_path)
    it = Obfuscator(bundle, split=True)
    it.bundle = replace(bundle, recipe=RecipeRecord(code_bits=bits), labels=tuple(map(str, range(classes))))
    with nullcontext() if fits else pytest.raises(BundleError, match="nothing was sent"):
        it._check_code(np.array([[0], [code]], np.uint8))


def test_an_obfuscator_of_undeclared_codes_is_refused(tmp_path: Path) -> None:
    bundle, _ = tiny.save_split_bundles(tmp_path)  # its codes are in the last bits of a byte
    with pytest.raises(BundleError, match="code that is none of 2 bits"):
        Obfuscator(replace(bundle, recipe=RecipeRecord(code_bits=2)), split=True)

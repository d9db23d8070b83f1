"""Synthetic faces by name: images of people that do not exist, in which every attribute is known.

The class is the expression. The other attributes are what a user may want to keep private: glasses, a hat, a beard,
the skin's tone, the hair's colour and style, and the identity: one of `PEOPLE` people, each with a face of their own.
A person has the same skin, hair and beard in every image; glasses and hats come and go. All of it is sampled
independently of the expression. In "faces-correlated" glasses are not (see `CORRELATED`), so that there the class
itself reveals them.

Both splits show the same people in different images: an attacker may search for a known person's other images.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache as remember
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from sfumato.errors import DataError
from sfumato.lab.data import cache
from sfumato.lab.data.image_set import ImageSet, content_sha256
from sfumato.progress import Progress, silent, tracked

SOURCES = ("faces", "faces-correlated")
COUNTS = {"train": 20_000, "test": 4_000}
SIZE = (64, 64)
PEOPLE = 200
CORRELATED = 0.9
"""In "faces-correlated", how often glasses are worn by the happy and the surprised, and not worn by the others.

The correlation (phi) of glasses with being one of these two is then 2 * 0.9 - 1 = 0.8.
"""
NAMES: dict[str, tuple[str, ...]] = {
    "expression": ("neutral", "happy", "sad", "surprised"),
    "glasses": ("no", "yes"),
    "hat": ("no", "yes"),
    "beard": ("no", "yes"),
    "skin": ("pale", "light", "olive", "brown", "dark"),
    "hair": ("black", "brown", "red", "blond", "grey"),
    "style": ("bald", "short", "long", "curly"),
    "identity": tuple(f"person {number}" for number in range(PEOPLE)),
}
"""Each column and its values; the first column is the class."""
LABEL = "expression"

_SEED = 2018
_OVERSAMPLED = 3  # rendered so many times larger, and reduced
_SMALLEST = 16
_VERSION = "1"  # changes when the same names come to mean other images
_SKIN = np.array([(244, 214, 196), (226, 183, 152), (196, 150, 108), (141, 94, 62), (84, 54, 38)], float)
_HAIR = np.array([(28, 24, 24), (92, 58, 34), (158, 72, 32), (214, 178, 104), (158, 158, 160)], float)
_PARTS = ("width", "height", "jaw", "eyes apart", "eye", "eye height", "nose", "mouth", "mouth height", "brow", "ear")
_CIRCLE = np.exp(2j * np.pi * np.arange(28) / 28)
_EYES = (-1, 1)

Factors = dict[str, npt.NDArray[np.int64]]
"""Column -> (N,) int64, places in `NAMES`."""
_Points = npt.NDArray[np.complex128]
_Colour = npt.NDArray[np.float64]


def load(
    source: str,
    split: str,
    size: tuple[int, int] | None = None,
    column: str | None = None,
    progress: Progress = silent,
) -> ImageSet:
    """Return one split; synthesised once, then kept in the cache.

    Args:
        source: one of `SOURCES`.
        split: "train" or "test".
        size: (height, width) in pixels; `SIZE` if None. The same faces at every size, cropped to the middle if oblong.
        column: whose values are the classes, a key of `NAMES`; `LABEL` if None.
        progress: steps are images.

    Raises:
        DataError: there is no such column, the size is too small to see anything, or the disk refuses.
    """
    column, (height, width) = column or LABEL, size or SIZE
    if column not in NAMES:
        raise DataError(f"{source} has no column {column!r}; it has {', '.join(NAMES)}")
    if min(height, width) < _SMALLEST:
        raise DataError(f"faces of {height}x{width} pixels show nothing: {_SMALLEST} on a side at least")
    known = {name: torch.from_numpy(values) for name, values in factors(source, split).items()}
    key = f"{split}-{source}-{height}x{width}-{_VERSION}"  # the first 32 characters are the folder's name
    found = cache.find(key)
    if found is None:
        images = torch.from_numpy(synthesise(source, split, range(COUNTS[split]), (height, width), progress))
        sha256 = content_sha256(images, known[LABEL])
        found = cache.store(key, ImageSet(images, known[LABEL], NAMES[LABEL], source, sha256))
    if column == LABEL:
        return found
    labels = known[column]
    return replace(found, labels=labels, names=NAMES[column], sha256=content_sha256(found.images, labels))


def factors(source: str, split: str) -> Factors:
    """Return the attributes of every image of a split, without synthesising any."""
    random = np.random.default_rng([_SEED, SOURCES.index(source), list(COUNTS).index(split)])
    count, people = COUNTS[split], _people()
    expression, identity = random.integers(4, size=count), random.integers(PEOPLE, size=count)
    glasses, hat = random.random(count) < 0.4, random.random(count) < 0.3
    if source == "faces-correlated":
        wearers = (expression == 1) | (expression == 3)
        glasses = wearers == (random.random(count) < CORRELATED)
    found: Factors = {LABEL: expression, "glasses": glasses.astype(np.int64), "hat": hat.astype(np.int64)}
    found |= {name: people[name][identity] for name in ("beard", "skin", "hair", "style")}
    return {**found, "identity": identity}


def synthesise(
    source: str, split: str, which: range, size: tuple[int, int] = SIZE, progress: Progress = silent
) -> npt.NDArray[np.uint8]:
    """Synthesise the images of these numbers, (N, 3, *size) uint8; the same ones at any time and on any machine."""
    known, (height, width) = factors(source, split), size
    top, left = max(width - height, 0) // 2, max(height - width, 0) // 2
    images = np.empty((len(which), 3, height, width), np.uint8)
    for place, number in enumerate(tracked(which, f"synthesising {source} ({split})", progress)):
        values = {name: int(column[number]) for name, column in known.items()}
        random = np.random.default_rng([_SEED, SOURCES.index(source), list(COUNTS).index(split), number])
        image = _render(values, max(size), random)
        images[place] = image[top : top + height, left : left + width].transpose(2, 0, 1)
    return images


@remember
def _people() -> dict[str, npt.NDArray[Any]]:
    """Return what is the same in every image of a person: values of some columns, (P,), and `_PARTS`, (P, parts)."""
    random = np.random.default_rng(_SEED)
    return {
        "skin": random.integers(len(NAMES["skin"]), size=PEOPLE),
        "hair": random.integers(len(NAMES["hair"]), size=PEOPLE),
        "style": random.choice(len(NAMES["style"]), PEOPLE, p=(0.15, 0.35, 0.3, 0.2)),
        "beard": (random.random(PEOPLE) < 0.35).astype(np.int64),
        "parts": 1 + 0.13 * random.uniform(-1.7, 1.7, (PEOPLE, len(_PARTS))),
        "tint": random.normal(0, 7, (PEOPLE, 3)),
        "eyes": random.uniform(30, 120, (PEOPLE, 3)),
    }


def _render(values: dict[str, int], side: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Render one image, (side, side, 3): oversampled shapes, reduced, with lighting and the camera's noise."""
    large = side * _OVERSAMPLED
    image = Image.new("RGB", (large, large), _rgb(random.uniform(30, 225, 3)))
    canvas = ImageDraw.Draw(image)
    for _ in range(int(random.integers(2, 6))):  # the background
        x, y, half_width, half_height = random.uniform((0, 0, 0.08, 0.08), (1, 1, 0.4, 0.4)) * large
        shape = canvas.ellipse if random.random() < 0.5 else canvas.rectangle
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        shape(box, fill=_rgb(random.uniform(20, 235, 3)))
    scale = random.uniform(0.33, 0.41) * large
    middle = large * complex(0.5 + random.uniform(-0.08, 0.08), 0.52 + random.uniform(-0.06, 0.06))
    _Face(canvas, middle, scale * np.exp(1j * random.normal(0, 0.12)), values, random).render()
    seen = np.asarray(image.reduce(_OVERSAMPLED), float)
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    light = random.uniform(0.65, 1.15) + random.uniform(-0.25, 0.25) * across + random.uniform(-0.15, 0.15) * down
    seen = seen * light[:, :, None] + random.normal(0, random.uniform(1, 7), seen.shape)
    return np.clip(np.round(seen), 0, 255).astype(np.uint8)


def _rgb(colour: npt.ArrayLike) -> tuple[int, ...]:
    return tuple(np.clip(colour, 0, 255).astype(int).tolist())


class _Face:
    """A face while it is painted. Points are complex numbers: the head's middle is 0, its chin about 1j.

    `place` is its middle on the canvas, in pixels; `turn` the length and the direction of one unit there.
    """

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        place: complex,
        turn: complex,
        values: dict[str, int],
        random: np.random.Generator,
    ) -> None:
        self.canvas, self.place, self.turn, self.values, self.random = canvas, place, turn, values, random
        people, who = _people(), values["identity"]
        varied = people["parts"][who] * random.normal(1, 0.02, len(_PARTS))
        self.part = dict(zip(_PARTS, varied.tolist(), strict=True))
        self.skin = _SKIN[values["skin"]] + people["tint"][who] + random.normal(0, 3, 3)
        self.hair = _HAIR[values["hair"]] + people["tint"][who] + random.normal(0, 4, 3)
        self.iris = people["eyes"][who]
        self.strength = random.uniform(0.3, 1)  # of the expression
        self.aside = random.normal(0, 0.05)  # how far the head is turned to one side
        self.rx, self.ry = 0.68 * self.part["width"], 0.92 * self.part["height"]
        self.eye_x, self.eye_y = 0.3 * self.part["eyes apart"], -0.22 * self.part["eye height"]
        self.mouth_y = 0.48 * self.part["mouth height"]

    def render(self) -> None:
        """Paint everything, from the back to the front."""
        self._behind()
        self._fill(self._outline(), self.skin)
        if self.values["beard"]:
            self._beard()
        self._eyes()
        self._nose()
        self._mouth()
        self._hair()
        if self.values["glasses"]:
            self._glasses()
        if self.values["hat"]:
            self._hat()

    def _fill(self, points: _Points, colour: _Colour) -> None:
        self.canvas.polygon((self.place + self.turn * points).view(float).tolist(), fill=_rgb(colour))

    def _oval(self, middle: complex, rx: float, ry: float, colour: _Colour) -> None:
        self._fill(middle + rx * _CIRCLE.real + 1j * ry * _CIRCLE.imag, colour)

    def _stroke(self, points: _Points, thick: float, colour: _Colour) -> None:
        line = (self.place + self.turn * points).view(float).tolist()
        self.canvas.line(line, fill=_rgb(colour), width=max(1, round(thick * abs(self.turn))), joint="curve")

    def _outline(self, larger: float = 1.0) -> _Points:
        """Return the head's outline: narrower or wider than an ellipse towards the chin."""
        x, y = _CIRCLE.real * self.rx * larger, _CIRCLE.imag * self.ry * larger
        points: _Points = np.where(y > 0, x * (1 + (self.part["jaw"] - 1) * y), x) + 1j * y
        return points

    def _behind(self) -> None:
        """Paint long or curly hair, shoulders, neck and ears."""
        if self.values["style"] == 2:
            self._oval(0.15j, self.rx * 1.28, self.ry * 1.25, self.hair)
        self._oval(1.75j, 1.15, 0.75, self.random.uniform(20, 235, 3))
        self._fill(np.array([-0.3 + 0.6j, 0.3 + 0.6j, 0.34 + 1.2j, -0.34 + 1.2j]), self.skin * 0.85)
        if self.values["style"] == 3:
            for point in 1.1 * self._outline()[14:] - 0.05j:
                self._oval(point, 0.24, 0.22, self.hair)
        for way in _EYES:
            self._oval(way * self.rx - 0.05j, 0.13 * self.part["ear"], 0.19 * self.part["ear"], self.skin * 0.92)

    def _hair(self) -> None:
        if not self.values["style"]:
            return
        top = self._outline(1.06)[14:]
        line = -0.48 * self.ry  # where the forehead begins
        front = np.linspace(0.9 * self.rx, -0.9 * self.rx, 8)
        self._fill(np.concatenate([top, front + 1j * (line - 0.12 * np.cos(front / self.rx * np.pi))]), self.hair)

    def _beard(self) -> None:
        lower = self._outline(1.03)[:15]
        edge = np.linspace(-self.rx, self.rx, 9)
        inner = edge + 1j * (0.12 + 0.22 * np.cos(edge / self.rx * np.pi / 2))
        self._fill(np.concatenate([lower, inner]), 0.55 * self.hair + 0.2 * self.skin)

    def _eyes(self) -> None:
        happy, sad, surprised = (self.strength * (self.values[LABEL] == kind) for kind in (1, 2, 3))
        size = 0.115 * self.part["eye"]
        high = size * (0.75 + 0.55 * surprised - 0.3 * happy) + self.random.normal(0, 0.006)
        gaze = complex(*self.random.normal(0, 0.015, 2))
        for way in _EYES:
            eye = way * self.eye_x + self.aside + 1j * self.eye_y
            self._oval(eye, size * 1.25, high, np.full(3, 245.0))
            self._oval(eye + gaze, 0.6 * size, min(0.6 * size, high), self.iris)
            self._oval(eye + gaze, 0.3 * size, 0.3 * size, np.full(3, 10.0))
            lift = 0.24 + 0.1 * surprised + self.random.normal(0, 0.012)
            tilt = 0.1 * sad + self.random.normal(0, 0.012)  # inner ends up
            brow = np.array([-0.16, 0, 0.16])
            arch = np.array([0.03, -0.02, 0.03])
            self._stroke(
                eye + brow + 1j * (way * tilt * brow / 0.16 - lift + arch), 0.055 * self.part["brow"], self.hair
            )

    def _nose(self) -> None:
        long = 0.3 * self.part["nose"]
        tip = 1.3 * self.aside + 1j * (self.eye_y + 0.1 + long)
        self._stroke(np.array([self.aside + 1j * (self.eye_y + 0.1), tip - 0.07, tip + 0.06]), 0.04, self.skin * 0.72)

    def _mouth(self) -> None:
        kind, strength = self.values[LABEL], self.strength
        wide = 0.26 * self.part["mouth"] * self.random.normal(1, 0.06)
        middle, lips = self.aside + 1j * self.mouth_y, self.skin * (0.75, 0.5, 0.5)
        if kind == 3:
            self._oval(middle, wide * (0.75 - 0.2 * strength), 0.06 + 0.17 * strength, lips)
            self._oval(middle, wide * (0.55 - 0.2 * strength), 0.02 + 0.14 * strength, np.full(3, 40.0))
            return
        bend = {0: 0.0, 1: 1.0, 2: -1.0}[kind] * 0.2 * strength + self.random.normal(0, 0.022)
        x = np.linspace(-1, 1, 9)
        curve = middle + wide * (1 + 0.25 * (kind == 1) * strength) * x + 1j * bend * (0.5 - x**2)
        if kind == 1 and self.random.random() < 0.5:  # teeth
            self._fill(np.concatenate([curve, curve[::-1].real + 1j * curve[0].imag]), np.full(3, 240.0))
        self._stroke(curve, 0.075, lips)

    def _glasses(self) -> None:
        frame = self.random.uniform(0, 110, 3)
        wide, high = self.random.uniform(0.19, 0.25), self.random.uniform(0.15, 0.22)
        for way in _EYES:
            eye = way * self.eye_x + self.aside + 1j * self.eye_y
            rim = np.sign(_CIRCLE.real) * abs(_CIRCLE.real) ** 0.6 * wide + 1j * _CIRCLE.imag * high
            self._stroke(eye + np.append(rim, rim[:2]), 0.05, frame)
            self._stroke(np.array([eye + way * wide, way * self.rx + 1j * self.eye_y]), 0.045, frame)
        inner = self.eye_x - wide
        self._stroke(np.array([-inner, inner]) + self.aside + 1j * self.eye_y, 0.045, frame)

    def _hat(self) -> None:
        colour, tall = self.random.uniform(20, 235, 3), self.random.uniform(0.3, 0.6)
        brim, half = -0.58 * self.ry, self.rx * 1.02
        crown = brim * 1j + np.array([-half, -0.85 * half - tall * 1j, 0.85 * half - tall * 1j, half])
        self._fill(crown + np.array([0, -0.2j, -0.2j, 0]), colour)
        ends = brim * 1j + np.array([-1, 1]) * half * self.random.uniform(1.1, 1.4)
        self._stroke(ends, 0.11, colour * 0.7)

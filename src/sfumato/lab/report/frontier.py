"""Plots the privacy-utility trade-off: accuracy against excess leakage, of obfuscators and their alternatives.

Two ends are known, the on-device baseline and the plain image in the cloud; sending a share of the images in the clear
reaches every point of the line between them, and an obfuscator has to lie above it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.audit.schema import Point

Box = npt.NDArray[np.float64]
"""Left, bottom, right and top in pixels: (4,), or (n, 4) for several."""

BUDGETS = ("quick", "standard", "full")
"""From the smallest to the largest; a leakage measured at a smaller one is a weaker lower bound."""

_LIGHT = {
    "ink": "#1d2126", "faint": "#5b636e", "grid": "#dfe3e8", "below": "#eef0f3",
    "this": "#b3261e", "swept": "#b3261e", "baseline": "#2459a8", "local": "#1d2126", "identity": "#1d2126",
    "other": "#7a4fa3", "paper": "#a86400",
}  # fmt: skip
_DARK = {
    "ink": "#e8eaed", "faint": "#a5adb8", "grid": "#3a4048", "below": "#24282e",
    "this": "#ff8a80", "swept": "#ff8a80", "baseline": "#8ab4f8", "local": "#e8eaed", "identity": "#e8eaed",
    "other": "#c8a2f0", "paper": "#f0b453",
}  # fmt: skip
_MARKERS = {"this": "*", "swept": "o", "baseline": "o", "local": "s", "identity": "s", "other": "D"}
_SIZES = {"this": 240.0, "swept": 64.0, "baseline": 48.0, "local": 48.0, "identity": 48.0, "other": 40.0}
_PLACES = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]

_SIDES: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
_HEIGHTS: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}


def draw_frontier(points: Sequence[Point], *, dark: bool = False) -> str:
    """Draw the plot.

    Args:
        points: the line is drawn if there are a "local" and an "identity" one, the paper's band if there are "paper"
            ones. Those of the same series are joined in their order, and their spread is drawn as bars.
        dark: for a dark background.

    Returns:
        An SVG document that loads nothing and is the same for the same points; its background is transparent.
    """
    return svg(_figure(points, dark=dark))


def save_frontier_png(points: Sequence[Point], path: Path) -> None:
    """Write the plot, see `draw_frontier`, as a PNG file: light, 1600 pixels wide, readable at half that width.

    Raises:
        AuditError: the file cannot be written.
    """
    save_png(_figure(points, dark=False), path)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file on white, 200 pixels to the inch.

    Raises:
        AuditError: the file cannot be written.
    """
    try:
        with whole_file(path) as partial:
            figure.savefig(partial, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    except OSError as error:
        raise AuditError(f"the plot cannot be written to {path}: {error}") from error


def svg(figure: Figure) -> str:
    """Return a figure as an SVG document: letters as outlines, no date, the same for the same figure."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sfumato", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": "sfumato"})
    return stream.getvalue()


def style(axes: Axes, *, dark: bool) -> dict[str, str]:
    """Give axes the colours of the report and remove the frame.

    Returns:
        The colours by name: ink, faint, grid, below, and one for each role.
    """
    colours = _DARK if dark else _LIGHT
    axes.set_facecolor("none")
    axes.grid(color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["faint"], labelsize=9, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(colours["ink"])
    return colours


def _figure(points: Sequence[Point], *, dark: bool) -> Figure:
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    colours = style(axes, dark=dark)
    known = [p for p in points if p.excess_leakage is not None]
    placed = [p for p in known if p.role != "gated"]
    paper = [p.accuracy for p in points if p.role == "paper"]
    heights = [p.accuracy for p in known] + paper
    low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
    room = max(0.02, 0.12 * (high - low))
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("excess leakage: 0 = only the label leaks, 1 = the image leaks")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _draw_alternatives(axes, known, colours)
    _draw_series(axes, placed, colours)
    if paper:
        low, high = min(paper), max(paper)
        axes.axhspan(low, high, color=colours["paper"], alpha=0.22, linewidth=0, zorder=1, gid="paper-band")
        axes.text(
            1.03, low, f"the paper, {100 * low:.1f} to {100 * high:.1f} %; leakage not measured", fontsize=8.5,
            color=colours["paper"], ha="right", va="top",
        )  # fmt: skip
    labels = []
    largest = max((_rank(p) for p in placed), default=0)
    for point in sorted(placed, key=lambda p: (p.role != "this", p.role, p.name)):
        smaller = _rank(point) < largest and point.role not in ("local", "identity")
        colour = colours[point.role]
        axes.scatter(
            *_place_of(point), s=_SIZES[point.role], marker=_MARKERS[point.role],
            facecolors="none" if smaller else colour, edgecolors=colour, linewidths=1.4, zorder=4, clip_on=False,
        )  # fmt: skip
        labels.append((point, f"{point.name} ({point.budget})" if smaller else point.name, colour))
    if any(text != p.name for p, text, _ in labels):
        note = "hollow: audited at a smaller budget, so its leakage is a weaker lower bound"
        axes.set_title(note, fontsize=9, color=colours["faint"], loc="right")
    _place(figure, axes, labels)
    return figure


def _rank(point: Point) -> int:
    return BUDGETS.index(point.budget) + 1 if point.budget in BUDGETS else 0


def _place_of(point: Point) -> tuple[float, float]:
    """Excess leakage and accuracy."""
    assert point.excess_leakage is not None
    return point.excess_leakage, point.accuracy


def _draw_alternatives(axes: Axes, points: Sequence[Point], colours: dict[str, str]) -> None:
    """The line between the two ends, and the curve of a gate before the plain image, from the baseline on."""
    local, identity = (
        max((p for p in points if p.role == role), key=lambda p: p.accuracy, default=None)
        for role in ("local", "identity")
    )
    if local is not None and identity is not None:
        x, y = zip(_place_of(local), _place_of(identity), strict=True)
        axes.plot(x, y, color=colours["ink"], linewidth=1.4, zorder=3, gid="mixing-line")
        axes.fill_between(x, y, axes.get_ylim()[0], color=colours["below"], zorder=0.5, linewidth=0)
        axes.text(
            0.5, 0.03, "below the line you are better off without it: mix its two ends instead", fontsize=9,
            color=colours["faint"], ha="center", transform=axes.transAxes,
        )  # fmt: skip
    curve = sorted((p for p in points if p.role == "gated"), key=_place_of)
    if curve:
        x, y = zip(*map(_place_of, [local or curve[0], *curve]), strict=True)
        axes.plot(x, y, "--", color=colours["ink"], linewidth=1.4, marker=".", zorder=3, gid="gated-curve")
        axes.annotate(
            "a gate before the plain image", (x[-1], y[-1]), (0, 6), textcoords="offset points", fontsize=8.5,
            color=colours["ink"], ha="center",
        )  # fmt: skip


def _draw_series(axes: Axes, points: Sequence[Point], colours: dict[str, str]) -> None:
    """Join the points of a series, and show how far its seeds lie apart."""
    for name in dict.fromkeys(p.series for p in points if p.series is not None):
        along = [p for p in points if p.series == name]
        x, y = zip(*map(_place_of, along), strict=True)
        colour = colours[along[0].role]
        axes.plot(x, y, ":", color=colour, linewidth=1.2, zorder=3, gid=f"series-{name.replace(' ', '-')}")
        for point in along:
            if point.spread is not None:
                axes.errorbar(*_place_of(point), *point.spread, ecolor=colour, elinewidth=1, fmt="none", zorder=3)


def _place(figure: Figure, axes: Axes, labels: Sequence[tuple[Point, str, str]]) -> None:
    """Put each label next to its point, at the nearest place that is free, else at the one with least overlap."""
    figure.draw_without_rendering()
    taken: list[Box] = [np.array(text.get_window_extent().extents) for text in axes.texts]
    for line in axes.lines:
        for (x0, y0), (x1, y1) in pairwise(axes.transData.transform(line.get_xydata())):
            taken += [_around(x0 + t / 100 * (x1 - x0), y0 + t / 100 * (y1 - y0), 2) for t in range(101)]
    scale = figure.dpi / 72
    for point, _, _ in labels:
        x, y = axes.transData.transform(_place_of(point))
        taken.append(_around(x, y, scale * (8 if point.role == "this" else 5)))
    for point, name, colour in labels:
        bold, at = point.role == "this", _place_of(point)
        text = axes.annotate(
            name, at, (0, 0), textcoords="offset points", color=colour, fontsize=9.5, zorder=5, parse_math=False,
            weight="bold" if bold else "normal",
        )  # fmt: skip
        others = np.array(taken)
        best: tuple[float, tuple[float, float, int, int]] | None = None
        for distance, (right, up) in product((11, 22, 36, 58) if bold else (8, 16, 26, 42), _PLACES):
            place = (distance * right, distance * up, right, up)
            cost = _cost(_move(text, place), others, np.array(axes.bbox.extents))
            if best is None or cost < best[0]:
                best = cost, place
            if cost == 0:
                break
        if best is None:
            continue
        taken.append(_move(text, best[1]))
        if max(map(abs, best[1][:2])) > (30 if bold else 20):
            arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.7}
            axes.annotate("", at, best[1][:2], textcoords="offset points", arrowprops=arrow)


def _move(text: Annotation, place: tuple[float, float, int, int]) -> Box:
    x, y, right, up = place
    text.set_position((x, y))
    text.set_horizontalalignment(_SIDES[right])
    text.set_verticalalignment(_HEIGHTS[up])
    box: Box = np.array(text.get_window_extent().extents)
    return box


def _cost(box: Box, others: Box, frame: Box) -> float:
    """How many square pixels of a box (x0, y0, x1, y1) lie on others (n, 4) and outside of the frame."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    size, inside = box[2:] - box[:2], np.minimum(box[2:], frame[2:]) - np.maximum(box[:2], frame[:2])
    return float((high - low).clip(0).prod(axis=1).sum() + size.prod() - inside.clip(0).prod())


def _around(x: float, y: float, reach: float) -> Box:
    return np.array([x - reach, y - reach, x + reach, y + reach])

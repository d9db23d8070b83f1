"""Plots leakage against the number of frames of one scene: of one obfuscator by policy, and of others beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from sfumato.lab.audit.frames import FramesResult
from sfumato.lab.audit.frames_run import FramesLeakage
from sfumato.lab.report.frontier import save_png, style

_COLOURS = ("#b3261e", "#2459a8", "#a86400", "#7a4fa3", "#1d7a46")
_LINES = ("-", "--", "-.", ":")
_PANELS: tuple[tuple[str, Callable[[FramesLeakage], float]], ...] = (
    ("excess leakage", lambda row: row.excess_leakage),
    ("linkage, top-1", lambda row: max(told.top1 for told in row.linkage)),
    ("re-identification, top-1", lambda row: max(told.top1 for told in row.identification)),
)


def save_frames_png(results: Sequence[FramesResult], path: Path) -> None:
    """Write the plot as a PNG file; the first result is drawn with all its policies, others with every frame sent.

    Raises:
        AuditError: the file cannot be written.
    """
    save_png(draw_frames(results), path)


def draw_frames(results: Sequence[FramesResult]) -> Figure:
    """Draw one panel for each measure, over the number of frames on a logarithmic scale."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    this, *others = results
    for axes, (name, value) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        colours = style(axes, dark=False)
        axes.set_xscale("log")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("frames of one scene")
        axes.set_title(name, fontsize=11)
        policies = dict.fromkeys(row.policy for row in this.leakages)
        for policy, colour in zip(policies, cycle(_COLOURS)):
            rows = [row for row in this.leakages if row.policy == policy]
            label = f"{this.obfuscator}: {policy}"
            axes.plot([row.frames for row in rows], [value(row) for row in rows], "o-", color=colour, label=label)
        for other, line in zip(others, cycle(_LINES)):
            rows = [row for row in other.leakages if row.policy == "every frame"]
            drawn = [row.frames for row in rows], [value(row) for row in rows]
            axes.plot(*drawn, line, color=colours["faint"], label=f"{other.obfuscator}: every frame")
        if name != _PANELS[0][0]:
            axes.axhline(1 / this.candidates, color=colours["ink"], linewidth=0.8, label="chance")
        counts = sorted({row.frames for row in this.leakages})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure

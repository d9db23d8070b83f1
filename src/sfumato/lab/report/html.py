"""Renders an audit as one HTML page that loads nothing: for a screen, a phone and paper."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.schema import AuditResult, DoneTrial, LostTrial, Model
from sfumato.lab.audit.verdict import DASH, WHO, decimals, infers, label_columns, percent, reidentifies
from sfumato.lab.report.frontier import draw_frontier, style, svg
from sfumato.lab.report.panels import Images

NO_BREAK = "\N{NO-BREAK SPACE}"
_CELL = 96
"""How wide an image of the panel is on the screen, in CSS pixels, at least."""
_GAP = 2
_PER_IMAGE = {"mse": "MSE", "ssim": "SSIM"}
_MEASURES: dict[str, tuple[str, int, bool]] = {
    "mse": ("MSE", 4, False),
    "psnr_db": ("PSNR, dB", 2, True),
    "ssim": ("SSIM", 3, True),
    "excess_leakage": ("excess leakage", 2, True),
}
"""Title, digits, and whether more is better for the attacker."""
_LINES = ("#2f74d0", "#d1572e", "#2c9a6b", "#a157c4", "#b88700", "#5f7f93", "#d14a86", "#7d8f20")
"""Colours of the learning curves, readable on white and on black."""


def write_report(audit: AuditResult, images: Images | None, out: Path) -> Path:
    """Write the page.

    Args:
        audit: finished.
        images: None leaves the image parts out.
        out: the file, or a folder in which it is called `audit.html`.

    Returns:
        The file that was written.

    Raises:
        AuditError: the file cannot be written.
    """
    path = out / "audit.html" if out.is_dir() else out
    page = render(audit, images)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise AuditError(f"the report cannot be written to {path}: {error}") from error
    return path


def render(audit: AuditResult, images: Images | None) -> str:
    """Return the page as a string; see `write_report`."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": lambda share: percent(share).replace(" ", NO_BREAK),
        "decimals": decimals,
        "count": lambda value: f"{value:,}" if isinstance(value, int) else DASH,  # a lost trial has no figures
        "seconds": _duration,
        "measure": lambda row, name: decimals(getattr(row, name), _MEASURES[name][1]),
        "words": _words,
    }
    environment.tests |= {"reidentified": reidentifies, "inferred": lambda row: infers(row.low, row.chance)}
    source = files("sfumato.lab.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    winners = _winners(audit)
    retrievals = [row for row in audit.identification if row.measure == "retrieval"]
    return environment.from_string(source).render(
        audit=audit,
        measures={name: title for name, (title, _, _) in _MEASURES.items()},
        frontier=_themed([draw_frontier(audit.frontier, dark=dark) for dark in (False, True)])
        if audit.frontier
        else None,
        curves=_themed([svg(_curves(audit, dark=dark)) for dark in (False, True)]) if _learned(audit) else None,
        panel=_panel(audit, images) if images else [],
        cases=_cases(images) if images else [],
        threats=_by_threat(audit),
        is_best=lambda trial, name: (trial.key, name) in winners,
        references=_ladder(audit),
        columns=label_columns(audit),
        visible=[row for row in audit.attributes if row.plain is None],
        retrieval=max(retrievals, key=lambda row: row.low / row.chance, default=None),
    )


def _themed(drawings: Sequence[str]) -> dict[str, Markup]:
    light, dark = (Markup(_data_uri(drawing.encode(), "image/svg+xml")) for drawing in drawings)
    return {"light": light, "dark": dark}


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _panel(audit: AuditResult, images: Images) -> list[dict[str, Any]]:
    """Rows of the image panel, for the template."""
    count, height, width = len(images.originals), *images.originals.shape[2:]
    rows: list[tuple[str, str, Tensor, str]] = [
        ("Original", "", images.originals, f"{count} original images"),
        ("The payload", "", images.payload_preview, "the payload for each of them"),
    ]
    for name, reconstructed in images.by_attacker.items():
        own = [trial for trial in audit.done if trial.attacker == name]
        best = min(own, key=lambda trial: trial.mse, default=None)
        rows.append(
            (f"Reconstructed: {name}", _caption(best), reconstructed, f"the same images as {name} reconstructs them")
        )
    return [
        {
            "title": title, "note": note, "alt": alt,
            "width": count * max(_CELL, width) + (count - 1) * _GAP * max(_CELL, width) // width,
            "uri": Markup(_strip(_like(strip, height, width))),
        }
        for title, note, strip, alt in rows
    ]  # fmt: skip


def _caption(trial: DoneTrial | None) -> str:
    if trial is None:
        return ""
    return (
        f"{trial.threat}; MSE {decimals(trial.mse, 4)}, PSNR {decimals(trial.psnr_db, 2)} dB, SSIM "
        f"{decimals(trial.ssim, 3)}, excess leakage {decimals(trial.excess_leakage, 2)}"
    )


def _like(images: Tensor, height: int, width: int) -> Tensor:
    """Images (K, 1 or 3, H', W') uint8 -> (K, 3, height, width) uint8, by repetition of pixels."""
    images = images.expand(-1, 3, -1, -1)
    if images.shape[2:] == (height, width):
        return images
    return torch.nn.functional.interpolate(images, (height, width), mode="nearest")


def _strip(images: Tensor) -> str:
    """Images (K, 3, H, W) uint8 side by side, as the URI of a PNG with clear gaps."""
    count, _, height, width = images.shape
    sheet = np.zeros((height, count * (width + _GAP) - _GAP, 4), np.uint8)
    for number, image in enumerate(images.cpu().numpy()):
        left = number * (width + _GAP)
        sheet[:, left : left + width, :3] = image.transpose(1, 2, 0)
        sheet[:, left : left + width, 3] = 255
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG", optimize=True)
    return _data_uri(stream.getvalue(), "image/png")


def _cases(images: Images) -> list[dict[str, Any]]:
    groups = []
    for title, by_measure in (
        ("Reconstructed best", images.best_cases),
        ("Reconstructed worst", images.worst_cases),
    ):
        for measure, cases in by_measure.items():
            name, digits = _PER_IMAGE.get(measure, measure), _MEASURES.get(measure, ("", 3, True))[1]
            pairs = [
                {"uri": Markup(_strip(torch.stack([original, reconstructed]))), "value": f"{name} {value:.{digits}f}"}
                for original, reconstructed, value in cases
            ]
            groups.append({"title": f"{title}, by {name}", "pairs": pairs})
    return groups


@dataclass(frozen=True)
class _Group:
    """The trials of one threat model."""

    name: Threat
    who: str
    trials: list[DoneTrial | LostTrial]


def _by_threat(audit: AuditResult) -> list[_Group]:
    """Trials by threat model, in the order of `Threat`; the most successful first, those without figures last."""

    def order(trial: DoneTrial | LostTrial) -> tuple[bool, float, str]:
        mse = trial.mse if isinstance(trial, DoneTrial) else 0.0
        return trial.status != "done", mse, trial.attacker

    used = {trial.threat for trial in audit.trials}
    return [
        _Group(
            threat,
            " ".join(WHO[threat].format(pairs="").split()),
            sorted((trial for trial in audit.trials if trial.threat is threat), key=order),
        )
        for threat in Threat
        if threat in used
    ]


def _winners(audit: AuditResult) -> set[tuple[str, str]]:
    """Which trial is the best one for each measure, by its key."""
    found = set()
    for name, (_, _, more) in _MEASURES.items():
        best = (max if more else min)(audit.done, key=lambda trial: getattr(trial, name), default=None)
        if best is not None:
            found.add((best.key, name))
    return found


@dataclass(frozen=True)
class _Step:
    """A row of the ladder of references."""

    name: str
    mse: float
    psnr_db: float
    ssim: float
    bits: int | None
    own: bool


def _ladder(audit: AuditResult) -> list[_Step]:
    """The references and this audit's best attacker, from the worst to the best reconstruction."""
    steps = [_Step(row.name, row.mse, row.psnr_db, row.ssim, row.bits, own=False) for row in audit.references]
    if (best := audit.best) is not None:
        name = f"this audit's best attacker, {best.attacker}"
        steps.append(_Step(name, best.mse, best.psnr_db, best.ssim, None, own=True))
    return sorted(steps, key=lambda step: -step.mse)


def _learned(audit: AuditResult) -> list[DoneTrial]:
    return [trial for trial in audit.done if len(trial.curve) > 1]


def _curves(audit: AuditResult, *, dark: bool) -> Figure:
    """Held-out error against images seen, one small plot for each threat model."""
    trials = _learned(audit)
    threats = [threat for threat in Threat if any(trial.threat is threat for trial in trials)]
    colours = dict(zip(sorted({trial.attacker for trial in trials}), _LINES * len(trials), strict=False))
    columns = min(2, len(threats))
    rows = math.ceil(len(threats) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(threats) :]:
        axes.set_visible(False)
    for axes, threat in zip(grid.flat, threats, strict=False):
        ink = style(axes, dark=dark)
        axes.set_title(threat, fontsize=10, color=ink["ink"], loc="left")
        axes.axhline(audit.class_mean_mse, color=ink["faint"], linewidth=1, linestyle=":")
        for trial in trials:
            if trial.threat is threat:
                seen, error = zip(*trial.curve, strict=True)
                line = "--" if trial.flattened is False else "-"
                axes.plot([s / 1000 for s in seen], error, line, color=colours[trial.attacker], linewidth=1.5)
        axes.set_xlabel("thousand images seen", fontsize=9)
    for row in grid:
        row[0].set_ylabel("MSE, held out", fontsize=9)
    for name, colour in colours.items():
        grid[0, 0].plot([], [], color=colour, label=name)
    legend = figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set(color=ink["ink"], parse_math=False)
    return figure


def _duration(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def _words(facts: Model | dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as flat (name, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, value in (facts.as_json if isinstance(facts, Model) else facts).items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            rows += _words(value, f"{title}, ")
        elif value is not None:
            rows.append((title, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows

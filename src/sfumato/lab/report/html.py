"""Renders an audit as one HTML page that loads nothing: for a screen, a phone and paper."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from importlib.resources import files
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FunctionLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.attacks.extraction import memorises
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.model import Model
from sfumato.lab.audit.result_store import stored_images
from sfumato.lab.audit.schema import AuditResult, DoneTrial, LostTrial
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.audit.verdict import DASH, WHO, decimals, infers, label_columns, most_recognised, percent, reidentifies
from sfumato.lab.report.frontier import draw_frontier, style, svg
from sfumato.lab.report.panels import Images, save_panel, showcase

NO_BREAK = "\N{NO-BREAK SPACE}"
_CELL = 96
"""How wide an image of the panel is on the screen, in CSS pixels, at least."""
_GAP = 2
_MEASURES: dict[str, tuple[str, int, bool]] = {
    "mse": ("MSE", 4, False),
    "psnr_db": ("PSNR, dB", 2, True),
    "ssim": ("SSIM", 3, True),
    "excess_leakage": ("excess leakage", 2, True),
}
"""Title, digits, and whether more is better for the attacker."""
_LINES = ("#2f74d0", "#d1572e", "#2c9a6b", "#a157c4", "#b88700", "#5f7f93", "#d14a86", "#7d8f20")
"""Colours of the learning curves, readable on white and on black."""


def render_audit(setting: AttackSetting, audit: AuditResult, folder: Path) -> None:
    """Write `audit.html`, and `panel.png` if an attacker finished, into the folder of a finished audit.

    Raises:
        AuditError: the disk refuses.
    """
    images = showcase(setting, audit, folder / "work")
    write_report(audit, images, folder / "audit.html")
    reconstructed = stored_images(folder / "work", audit.best.key) if audit.best else None
    if audit.best is not None and reconstructed is not None:
        captions = [setting.test.names[label] for label in setting.test.labels[: len(images.originals)].tolist()]
        save_panel(images, audit.best, reconstructed, captions, folder / "panel.png")


def write_report(audit: AuditResult, images: Images | None, path: Path) -> None:
    """Write the page; without images their parts are left out.

    Raises:
        AuditError: the file cannot be written.
    """
    try:
        with whole_file(path) as partial:
            partial.write_text(render(audit, images), encoding="utf-8")
    except OSError as error:
        raise AuditError(f"the report cannot be written to {path}: {error}") from error


def render(audit: AuditResult, images: Images | None) -> str:
    """Return the page as a string; see `write_report`."""
    environment = page_environment()
    environment.filters |= {
        "decimals": decimals,
        "count": lambda value: f"{value:,}" if isinstance(value, int) else DASH,  # a lost trial has no figures
        "seconds": lambda value: f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min",
        "measure": lambda row, name: decimals(getattr(row, name), _MEASURES[name][1]),
        "words": _words,
        "strip": _strip,
        "like": _like,
    }
    environment.tests |= {
        "memorising": memorises,
        "reidentified": reidentifies,
        "inferred": lambda row: infers(row.low, row.chance),
    }
    retrievals = [row for row in audit.identification if row.measure == "retrieval"]
    best = [] if audit.best is None else [audit.best]
    return environment.get_template("report.html.j2").render(
        audit=audit,
        images=images,
        panel_width=_panel_width(images) if images else 0,
        measures={name: title for name, (title, _, _) in _MEASURES.items()},
        winners={
            name: (max if more else min)(audit.done, key=attrgetter(name), default=None)
            for name, (_, _, more) in _MEASURES.items()
        },
        frontier=_themed(lambda dark: draw_frontier(audit.frontier, dark=dark)) if audit.frontier else None,
        curves=_themed(lambda dark: svg(_curves(audit, dark=dark))) if _learned(audit) else None,
        threats=[threat for threat in Threat if any(trial.threat is threat for trial in audit.trials)],
        trials_of=lambda threat: sorted((t for t in audit.trials if t.threat is threat), key=_success),
        who={threat: " ".join(who.format(pairs="").split()) for threat, who in WHO.items()},
        references=sorted([*audit.references, *best], key=lambda row: -row.mse),
        columns=label_columns(audit),
        recognised=_recognised(audit),
        visible=[row for row in audit.attributes if row.plain is None],
        retrieval=max(retrievals, key=lambda row: row.low / row.chance, default=None),
    )


def page_environment() -> Environment:
    """Return Jinja's environment for the templates of this package, which share `page.css.j2`."""
    folder = files("sfumato.lab.report")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: percent(share).replace(" ", NO_BREAK)
    return environment


def _recognised(audit: AuditResult) -> list[dict[str, object]]:
    """The rows of the table of recognition: from the label alone, each attacker's trials, the image itself."""
    if audit.recognition is None:
        return []
    best = most_recognised(audit)
    judged = sorted(
        [(trial.recognition, trial) for trial in audit.done if trial.recognition is not None],
        key=lambda pair: pair[0].feature_cosine,
    )
    rows: list[dict[str, object]] = [
        {"name": f"{name}, from the label alone", "threat": DASH, "of": found, "mine": False}
        for name, found in audit.recognition.label_only.items()
    ]
    rows += [
        {"name": trial.attacker, "threat": trial.threat, "of": found, "mine": trial is best} for found, trial in judged
    ]
    return [*rows, {"name": "the image itself", "threat": DASH, "of": audit.recognition.image, "mine": False}]


def _themed(draw: Callable[[bool], str]) -> dict[str, Markup]:
    return {name: _data_uri(draw(name == "dark").encode(), "image/svg+xml") for name in ("light", "dark")}


def _data_uri(content: bytes, kind: str) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _panel_width(images: Images) -> int:
    """In CSS pixels."""
    count, _, _, width = images.originals.shape
    return count * max(_CELL, width) + (count - 1) * _GAP * max(_CELL, width) // width


def _like(images: Tensor, others: Tensor) -> Tensor:
    """Images (K, 1 or 3, H', W') uint8 -> (K, 3, H, W) uint8, as large as the others, by repetition of pixels."""
    images, size = images.expand(-1, 3, -1, -1), others.shape[2:]
    return images if images.shape[2:] == size else torch.nn.functional.interpolate(images, size, mode="nearest")


def _strip(images: Tensor) -> Markup:
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


def _success(trial: DoneTrial | LostTrial) -> tuple[bool, float, str]:
    """Sorts the most successful trial first, those without figures last."""
    return trial.status != "done", trial.mse if isinstance(trial, DoneTrial) else 0.0, trial.attacker


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


def _words(facts: Model | dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as flat (name, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, value in (facts.as_json if isinstance(facts, Model) else facts).items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            rows += _words(value, f"{title}, ")
        elif value is not None:
            rows.append((title, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows

"""Advice as a table for the screen, and as an HTML page that loads nothing."""

from __future__ import annotations

from pathlib import Path

from sfumato.artifacts.files import whole_file
from sfumato.errors import ResultsError
from sfumato.lab.advice.recommend import bytes_of, size_tells
from sfumato.lab.advice.schema import Advice, Measurements, Way
from sfumato.lab.audit.verdict import DASH
from sfumato.lab.report.html import page_environment

COLUMNS = ("accuracy", "sent", "bytes", "device, ms", "cloud, ms", "what leaks")


def rows(advice: Advice) -> list[tuple[str, tuple[str, ...]]]:
    """Return a row for each way, the most accurate first: its name, and a cell for each of `COLUMNS`."""
    ways = sorted(advice.measured.ways, key=lambda way: -way.accuracy)
    return [(way.name, _cells(way, advice.measured)) for way in ways]


def trained(advice: Advice) -> str:
    """Return in words how far the trainings came."""
    nets = [
        f"{part.name} {part.finished} of {part.whole} epochs{views_of(part.views)}"
        for part in advice.parts
        if part.whole
    ]
    return f"trained: {', '.join(nets)}" if nets else "no net is trained yet"


def views_of(views: int) -> str:
    """Return in words how many views of each image a teacher was computed on, if not on new ones."""
    return f" on {views} {'view' if views == 1 else 'views'} of each image" if views else ""


def render(advice: Advice) -> str:
    """Return the page as a string."""
    return (
        page_environment()
        .get_template("advice.html.j2")
        .render(
            measured=advice.measured,
            recommendations=advice.recommendations,
            columns=COLUMNS,
            rows=rows(advice),
            chosen={found.way for found in advice.recommendations},
            trained=trained(advice),
            left_out=advice.left_out,
        )
    )


def write_page(advice: Advice, file: Path) -> None:
    """Write the page, or raise a `ResultsError`."""
    try:
        with whole_file(file) as partial:
            partial.write_text(render(advice), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{file} cannot be written: {error.strerror or error}") from error


def _cells(way: Way, measured: Measurements) -> tuple[str, ...]:
    padded = ", padded" if size_tells(way, measured) and way.padded_bytes is not None else ""
    return (
        f"{'at least ' if way.at_least else ''}{way.accuracy:.1%}",
        f"{way.offload_rate:.0%}",
        f"{bytes_of(way, measured):,.{0 if way.payload_bytes >= 10 else 2}f}{padded}",
        *(DASH if time is None else f"{time:.2f}" for time in (way.device_ms, way.cloud_ms)),
        _leak(way),
    )


def _leak(way: Way) -> str:
    if way.audit is not None:
        leak = way.audit
        return f"excess leakage at least {leak.excess_leakage:.2f} ({leak.attacker}, {leak.budget}): {leak.finding}"
    if way.offload_rate == 0:
        return "nothing is sent"
    if way.kind in ("plain", "gate"):
        return "the image, where it is sent"
    return f"not audited; at most {way.bits:,.{0 if way.bits == int(way.bits) else 2}f} bits"

"""results/alternatives.json as the table of docs/alternatives.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Own:
    """A row that needs nothing foreign: its title, its network and what it promises."""

    title: str
    net: str
    promises: str


OWN = {
    "resnet18": Own(
        "on the device", "resnet18", "nothing leaves the device; it needs the classifier and its time there"
    ),
    "resnet-local": Own(
        "on the device, at the obfuscator's cost",
        "resnet-local",
        "nothing leaves the device; a weaker classifier predicts",
    ),
    "plain": Own("plain offload", "resnet18", "nothing: the server sees the image"),
    "paper": Own(
        "sfumato, the paper's obfuscator",
        "resnet18",
        "no proof: what an attacker reconstructs is measured, and bounded from below alone",
    ),
    "sketch": Own(
        "sfumato, a sketch, all sent",
        "resnet18",
        "the payload takes at most 256 values, so 8 bits of an image pass; these are not hidden",
    ),
}


def table(result: dict[str, Any]) -> str:
    """Return the table and a summary.

    Args:
        result: what `run.py` found.
    """
    base = next(row["seconds"] for row in result["rows"] if row["name"] == "plain")
    lines = [
        "| | network | seconds an image | of plain offload | sent, bytes | received, bytes | peak "
        "memory, MiB | promises |",
        "|---|---|---|---|---|---|---|---|",
    ]
    left_out = []
    for row in result["rows"]:
        if "skipped" in row:
            left_out.append(f"Left out: {row['title']}, {row['net']} ({row['skipped']}).")
            continue
        low, high = row["seconds_range"]
        cells = [
            row["title"],
            row["net"],
            f"{seconds(row['seconds'])} ({seconds(low)} to {seconds(high)}, n = {row['times']})",
            f"{row['seconds'] / base:,.2f}" if row["seconds"] < 10 * base else f"{row['seconds'] / base:,.0f}",
            *(f"{row[key]:,}" if key in row else "not counted" for key in ("sent_bytes", "received_bytes")),
            " + ".join(f"{value:,.0f}" for value in row["peak_memory_mb"]),
            row["promises"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    ratios = result["round_trip_of_plain"]
    said = (
        f"A round trip through the paper's obfuscator takes {ratios['paper']:.2f} times as long as "
        f"one with the image "
        f"itself, through the sketch {ratios['sketch']:.2f} times."
    )
    if result["fastest_full_mpc_of_paper"]:
        said += (
            " The fastest run of the same network under multi-party computation, weights private as well, takes "
            f"{result['fastest_full_mpc_of_paper']:,.0f} times as long as the paper's obfuscator's round trip."
        )
    measured = result["measured"]
    machine = f"{measured['machine']['cores']} cores of {measured['machine']['cpu']}, {measured['written'][:10]}"
    versions = {}
    for row in result["rows"]:
        versions |= row.get("versions", {})
    named = "; ".join([machine, *(f"{name} {version}" for name, version in versions.items())])
    return "\n".join([*lines, "", said, *left_out, "", f"Measured on {named}."])


def seconds(value: float) -> str:
    """For people: three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"

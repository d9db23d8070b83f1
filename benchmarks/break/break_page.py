"""results/break.json as a page: docs/break-test.md."""

from __future__ import annotations

from typing import Any

_TITLES = {
    "codec": "messages to the codec",
    "http": "HTTP requests to `sfumato serve`",
    "bundles": "bundles and other JSON files",
    "checkpoints": "checkpoints",
}
_PATHS = ("HTTP", "HTTP in asyncio", "gRPC", "image files")


def written(result: dict[str, Any]) -> str:
    """Return the page of what `run.py` found."""
    lines = [
        "# Break test",
        "",
        "See what happens to inputs that nobody meant well: how many were tried, and what became of them.",
        "",
        "Written by `make break` from [results/break.json](../results/break.json); all inputs follow from a seed. An",
        "input is *accepted* (then what was made of it is checked), *refused* with an error of ours, or *failed*: "
        "another error, a wrong result, a crash, or no end. [Security](security.md) says which test guards what.",
        "",
        "| inputs | number | accepted | refused | otherwise ended | failed | seconds | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, part in result["parts"].items():
        lines.append(_row(_TITLES[name], part))
    lines += [
        "",
        '"Otherwise ended": requests that were broken off on purpose, or are incomplete, so that the server waits for',
        "their rest, and connections that it closes.",
        "",
        *_guided(result.get("guided")),
        *_described(result.get("described")),
        *_failures(result),
        *_matrix(result.get("faults")),
        *_mutations(result),
    ]
    dates = sorted({_measured(part) for part in result["parts"].values()})
    return "\n".join([*lines, *dates]) + "\n"


def _row(title: str, part: dict[str, Any]) -> str:
    totals: dict[str, int] = {}
    for outcomes in part["outcomes"].values():
        for outcome, count in outcomes.items():
            totals[outcome] = totals.get(outcome, 0) + count
    failed = sum(failure["count"] for failure in part["failures"])
    accepted, refused = totals.get("accepted", 0), totals.get("refused", 0)
    other = part["inputs"] - accepted - refused - failed
    memory = part["facts"].get("peak_memory_mb") or part["facts"]["memory_mb"][1]
    cells = [part["inputs"], accepted, refused, other, failed, round(part["seconds"])]
    return f"| {title} | " + " | ".join(f"{cell:,}" for cell in cells) + f" | {memory:,.0f} MB |"


def _guided(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if "skipped" in found:
        return [f"Left out: the coverage-guided fuzzer ({found['skipped']}).", ""]
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(found["outcomes"].items()))
    return [f"Coverage-guided ({found['tool']}): {found['runs']:,} messages to the codec: {counts}.", ""]


def _described(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if "skipped" in found:
        return [f"Left out: schemathesis ({found['skipped']}).", ""]
    verdict = "all as described" if found["passed"] else "with deviations, which the results file has"
    return [
        f"{found['tool']} with the server's [OpenAPI description](openapi.json): {found['requests']:,} requests to "
        f"{found['operations']} operations, {verdict}.",
        "",
    ]


def _failures(result: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {failure['mutation']} | {failure['outcome']}: {failure['detail']} | {failure['count']:,} | "
        f"{failure['case']} |"
        for name, part in result["parts"].items()
        for failure in part["failures"]
    ]
    if not rows:
        return []
    return ["## Failures", "", "| part | mutation | what | inputs | first case |", "|---|---|---|---|---|", *rows, ""]


def _matrix(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in found["cells"]:
        rows.setdefault(cell["fault"], {}).setdefault(cell["path"], []).append(cell)
    tried = {cell["path"] for cell in found["cells"]}
    paths = [path for path in _PATHS if path in tried]
    lines = [
        "## What the client does when the endpoint misbehaves",
        "",
        f"{len(found['cells'])} cases: {found['faults']} faults, in the response to an inference request or, over "
        "HTTP and gRPC, to one for metadata. Each has to end in the error that is stated, within `timeout_s`, without "
        f"a piece of the image among the bytes sent. {found['bad']} did not.",
        "",
        "| fault | " + " | ".join(paths) + " |",
        "|---|" + "---|" * len(paths),
    ]
    for fault, cells in rows.items():
        lines.append(f"| {fault} | " + " | ".join(_cell(cells.get(path, [])) for path in paths) + " |")
    return [*lines, ""]


def _cell(cells: list[dict[str, Any]]) -> str:
    good = sorted({f"`{cell['outcome']}`" for cell in cells if cell["good"]})
    bad = [f"**{cell['outcome']}**, {cell['seconds']} s" for cell in cells if not cell["good"]]
    return "<br>".join([*good, *bad]) or "-"


def _mutations(result: dict[str, Any]) -> list[str]:
    lines = ["## By mutation", "", "| part | mutation | outcomes |", "|---|---|---|"]
    for name, part in result["parts"].items():
        for mutation, outcomes in sorted(part["outcomes"].items()):
            if not mutation.startswith("after all"):
                counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
                lines.append(f"| {name} | {mutation} | {counts} |")
    return [*lines, ""]


def _measured(part: dict[str, Any]) -> str:
    measured = part["measured"]
    machine = f"{measured['machine']['cores']} cores of {measured['machine']['cpu']}"
    return (
        f"- {part['name']}: {part['scale']:g} of the full number, seed {part['seed']}, commit {measured['commit']}, "
        f"Python {measured['python']}, {machine}, {measured['written'][:10]}"
    )

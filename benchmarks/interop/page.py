"""results/interop.json as a page: docs/interop.md."""

from __future__ import annotations

from typing import Any

WHAT = {
    "client, sketch": "client",
    "client, the paper's": "client, the paper's obfuscator",
}


def written(result: dict[str, Any]) -> str:
    """The page.

    Args:
        result: what `run.py` found.
    """
    columns = list(dict.fromkeys(cell["what"] for server in result["servers"] for cell in server["cells"]))
    lines = [
        "# Interoperability with other servers",
        "",
        "Written by `make interop` from [results/interop.json](../results/interop.json). Each server serves the",
        f"shipped classifier; {result['images']} images, obfuscated, are sent to it, whatever a gate would say.",
        '"yes" means that every probability is ONNX Runtime\'s own within '
        f"{result['tolerance']:.0e} ({result['tolerance_fp16']:.0e} where images are sent as FP16),",
        "and that no piece of a plain image was among the bytes that were sent.",
        "[Use another server](how-to/other-servers.md) says how to serve it there.",
        "",
        "| server | transport | " + " | ".join(WHAT.get(column, column) for column in columns) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    reasons: list[str] = []
    for server in result["servers"]:
        for transport in dict.fromkeys(cell["transport"] for cell in server["cells"]):
            cells = {cell["what"]: cell for cell in server["cells"] if cell["transport"] == transport}
            unlisted = transport == "HTTP, binary" and "binary_tensor_data" not in server["extensions"]
            row = [_shown(cells.get(column), reasons, unlisted=unlisted) for column in columns]
            lines.append(f"| {server['title']} | {transport} | " + " | ".join(row) + " |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""]
    lines += ["## The payload", "", "| server | transport | sent as | datatype | bytes an image | farthest |"]
    lines.append("|---|---|---|---|---|---|")
    for server in result["servers"]:
        for cell in server["cells"]:
            if cell["what"] in ("client, sketch", "client, FP16", "client, split form") and cell["good"]:
                lines.append(
                    f"| {server['title']} | {cell['transport']} | {cell['encoding']} | {cell['datatype']} | "
                    f"{cell['payload_bytes']:,} | {cell['farthest']:.1e} |"
                )
    lines += ["", *_ours(result), "## Versions", ""]
    for server in result["servers"]:
        versions = ", ".join(f"{name} {version}" for name, version in server["versions"].items())
        measured = server["measured"]
        machine = f"{measured['machine']['cores']} cores of {measured['machine']['cpu']}"
        lines.append(
            f"- {server['title']}: {versions}; our side: Python {measured['python']}, commit {measured['commit']}, "
            f"{machine}, {measured['written'][:10]}"
        )
    return "\n".join(lines) + "\n"


def _shown(cell: dict[str, Any] | None, reasons: list[str], *, unlisted: bool) -> str:
    if cell is None:
        return ""
    if cell["good"]:
        return "yes"
    reason = cell["why"] + ("; it does not list the binary extension, so the client does not use it" * unlisted)
    if reason not in reasons:
        reasons.append(reason)
    return f"no ({reasons.index(reason) + 1})"


def _ours(result: dict[str, Any]) -> list[str]:
    (server,) = (server for server in result["servers"] if "conformance" in server)
    asked, checked = server["foreign_client"], server["conformance"]
    farthest = max(asked["farthest_logit"].values())
    statuses = ", ".join(f"{what}: {status}" for what, status in asked["error_statuses"].items())
    verdict = "nothing that is not as described." if checked["passed"] else "not all is as described; see the results."
    return [
        "## Others against `sfumato serve`",
        "",
        f"{asked['client']} reads the metadata, and gets the logits of {asked['rows']} rows in one request, with bytes",
        f"or JSON in either direction, within {farthest:.0e} of ONNX Runtime's own. Errors:",
        f"{statuses}.",
        "The server has no gRPC.",
        "",
        f"{checked['tool']}, with the protocol's OpenAPI description ({checked['description']};",
        f"{checked['operations']} operations, {checked['examples_per_operation']} examples each): {verdict}",
        "Most requests that it generates for `infer` fit no model, so this tests refusals; responses are",
        "compared above.",
        "",
    ]

"""Bring audits in `results/` and in the shipped bundles to the schema `sfumato.audit/2`.

Run from the root of a checkout: `python scripts/migrate_audits.py`. Figures stay as they are; keys get today's names,
sentences today's words, and verdicts are made again from the same figures. Running it again changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.artifacts.files import write_json
from sfumato.artifacts.shipped import obfuscator_bundle, papers_obfuscator_bundle
from sfumato.artifacts.versions import upgraded
from sfumato.lab.audit.budget import BUDGETS
from sfumato.lab.audit.certificate import certify_code
from sfumato.lab.audit.schema import AuditResult, AuditSummary, is_audit
from sfumato.lab.audit.verdict import decide

WORDS = {
    "asks in earnest what can be told of an image, and reconstructs it only in passing, without a decoder": BUDGETS[
        "attributes"
    ].description,
    "It holds whoever attacks, for one image; each further one tells as much again.": (
        "It holds for every attacker, for one image; each further image adds as many bits."
    ),
    "some numbers travel without noise: there is no certificate": (
        "some numbers of the payload have no noise: there is no certificate"
    ),
    "images that tell the class alone; less is more than anybody can know": (
        "images that give the class alone; a lower error is more than can be known"
    ),
    "no shadow: train the recipe again with another seed and give it as shadow": (
        "no shadow: train the recipe again with another seed and pass it as the shadow"
    ),
    "image of the right class": "image of the same class",
    "classifier on the device": "on-device baseline",
    "the noise of each number is drawn alone, as the obfuscator says, and anew for each image": (
        "the noise of each number is independent, as the obfuscator states, and new for each image"
    ),
    "an image travels once: the payload for it a second time adds information that is not counted": (
        "an image is sent once: sending it a second time adds information that is not counted"
    ),
    "averages over the images examined stand for averages over all images of their kind; few make the error bounds "
    "come out a little high": (
        "averages over the images examined represent averages over all images of their kind; with few images the error "
        "bounds are a little too high"
    ),
    "with the covariance of those given; real": "with the covariance of those examined; real",
    **dict(
        zip(
            (
                "that an image is not sent counts as one more thing to be seen, and the candidates are all images, "
                "sent or not: who knows that it was sent drops those candidates that would have stayed",
                "several images of one scene tell more than one of them; each counts its bits anew",
            ),
            certify_code(1, gated=True).assumptions[1:],
            strict=True,
        )
    ),
}


def words(value: Any) -> Any:
    """Return a JSON value with today's words in its texts."""
    if isinstance(value, dict):
        return {key: words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [words(item) for item in value]
    if isinstance(value, str):
        for old, new in WORDS.items():
            value = value.replace(old, new)
    return value


def audit(content: Any, file: Path) -> AuditResult:
    """Return an audit with today's words and its verdict in them; the finding stays."""
    old = AuditResult.of(words(content), file)
    verdict = decide(old)
    assert verdict.finding == old.verdict.finding, file
    return old.model_copy(update={"verdict": verdict})


def main() -> None:
    """Rewrite every file that changes."""
    for file in sorted(Path("results").rglob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if is_audit(content):
            audit(content, file).write(file)
    for name in ("controls", "references"):
        file = Path(f"results/{name}.json")
        content = words(upgraded(json.loads(file.read_text(encoding="utf-8"))))
        rows = [row | row.pop("figures", {}) for row in content.get("references", [])]
        write_json(file, content | ({"references": rows} if rows else {}))
    for folder in (obfuscator_bundle(), papers_obfuscator_bundle()):
        file, of = folder / "bundle.json", Path(f"results/audits/{folder.name}.json")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if (kept := manifest["figures"].get("audit")) is not None:
            summary, whole = AuditSummary.of(words(kept), file), AuditResult.read(of)
            assert (summary.best, summary.budget.name) == (whole.best, whole.budget.name), file
            manifest["figures"]["audit"] = whole.summary.as_json
            write_json(file, manifest)


if __name__ == "__main__":
    main()

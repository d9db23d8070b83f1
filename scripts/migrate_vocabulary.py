"""Bring result files and shipped bundles from version 1 of their keys and words to version 2.

Run once, from the root of a checkout: `python scripts/migrate_vocabulary.py`. Figures stay as they are; keys and
sentences get the words of docs/glossary.md. Files of either version are read (`sfumato.artifacts.versions`).
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

WORDS = [
    (r"\b([Aa]) (pictur)", lambda m: ("An" if m[1] == "A" else "an") + " " + m[2]),
    ("picture", "image"),
    ("Picture", "Image"),
    (r"\bwhat travels\b", "the payload"),
    ("restoration", "reconstruction"),
    ("restoring", "reconstructing"),
    ("restored", "reconstructed"),
    ("restores", "reconstructs"),
    ("restore", "reconstruct"),
]


def words(text: str) -> str:
    """Return a text in the words of version 2."""
    for old, new in WORDS:
        text = re.sub(old, new, text)
    return text


def migrated(value: Any) -> Any:
    """Rename snake_case keys, and the words of sentences; names without a space are left alone."""
    if isinstance(value, dict):
        return {words(k) if re.fullmatch(r"[a-z_0-9]+", k) else k: migrated(v) for k, v in value.items()}
    if isinstance(value, list):
        return [migrated(item) for item in value]
    return words(value) if isinstance(value, str) and " " in value else value


def main() -> None:
    """Rewrite every JSON file of `results/` and of the package that changes."""
    listed = subprocess.run(["git", "ls-files", "results", "src"], capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        path = Path(name)
        if path.suffix != ".json":
            continue
        text = path.read_text(encoding="utf-8")
        old = json.loads(text)
        new = migrated(old)
        if new != old:
            indent = 2 if "\n" in text.strip() else None
            path.write_text(json.dumps(new, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

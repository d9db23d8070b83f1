"""Write the JSON Schemas of results files to docs/schemas: `python -m scripts.write_schemas`."""

from __future__ import annotations

import json
from pathlib import Path

from sfumato.lab.sweep import schema as frontier

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


def schemas() -> dict[Path, str]:
    """Return the text of each schema by its file."""
    found = {"frontier": frontier.json_schema()}
    return {FOLDER / f"{name}.schema.json": json.dumps(schema, indent=2) + "\n" for name, schema in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in schemas().items():
        file.write_text(text, encoding="utf-8")
        print(file)

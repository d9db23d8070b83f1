"""Write the JSON Schemas of typed results to docs/schemas: `python scripts/write_schemas.py`."""

from __future__ import annotations

import json
from pathlib import Path

from sfumato.lab.evaluation.accuracy import Evaluation, PlainAccuracy
from sfumato.lab.evaluation.results import Result
from sfumato.lab.evaluation.transfer import Transfer
from sfumato.lab.export.executorch import Comparison
from sfumato.lab.export.int8 import Int8Comparison

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
RESULTS: dict[str, type[Result]] = {
    "plain-accuracy": PlainAccuracy,
    "evaluation": Evaluation,
    "transfer": Transfer,
    "int8-comparison": Int8Comparison,
    "executorch-comparison": Comparison,
}


def schemas() -> dict[Path, str]:
    """Return the text of each schema by its file."""
    return {
        FOLDER / f"{name}.schema.json": json.dumps(kind.json_schema(), indent=2) + "\n"
        for name, kind in RESULTS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in schemas().items():
        file.write_text(text, encoding="utf-8")
        print(file)

"""Write the JSON Schemas of the files that sfumato writes to docs/schemas: `python -m scripts.write_schemas`.

That of `bundle.json` is written by hand, as the models of the device's side are plain dataclasses.
"""

from __future__ import annotations

import json
from pathlib import Path

from sfumato.lab.advice.schema import Advice
from sfumato.lab.audit.frames import FramesResult
from sfumato.lab.audit.membership import MembershipResult
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.evaluation.accuracy import Evaluation, PlainAccuracy
from sfumato.lab.evaluation.by_class import ByClass
from sfumato.lab.evaluation.multi_label import MultiLabelEvaluation, PrecisionByClass
from sfumato.lab.evaluation.transfer import Transfer
from sfumato.lab.export.executorch import Comparison
from sfumato.lab.export.int8 import Int8Comparison
from sfumato.lab.report.attribute_table import AttributeTable
from sfumato.lab.sweep import schema as frontier
from sfumato.lab.training import recipe

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


def schemas() -> dict[Path, str]:
    """Return the text of each schema by its file."""
    found = {
        "advice": Advice.json_schema(),
        "attributes": AttributeTable.model_json_schema(mode="serialization"),
        "audit": AuditResult.model_json_schema(mode="serialization"),
        "by-class": ByClass.json_schema(),
        "evaluation": Evaluation.json_schema(),
        "executorch-comparison": Comparison.json_schema(),
        "frames": FramesResult.model_json_schema(mode="serialization"),
        "frontier": frontier.json_schema(),
        "int8-comparison": Int8Comparison.json_schema(),
        "membership": MembershipResult.model_json_schema(mode="serialization"),
        "multi-label-evaluation": MultiLabelEvaluation.json_schema(),
        "plain-accuracy": PlainAccuracy.json_schema(),
        "precision-by-class": PrecisionByClass.json_schema(),
        "recipe": recipe.schema(),
        "transfer": Transfer.json_schema(),
    }
    return {FOLDER / f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in schemas().items():
        file.write_text(text, encoding="utf-8")
        print(file)

"""The JSON Schemas in docs/schemas are those of the models."""

from __future__ import annotations

from scripts.write_schemas import FOLDER, schemas


def test_the_schemas_are_up_to_date():
    stale = [file.name for file, text in schemas().items() if not file.is_file() or file.read_text("utf-8") != text]
    assert stale == [], "run python -m scripts.write_schemas"


def test_every_schema_is_checked():
    """That of the bundle is written by hand, and checked with real bundles."""
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in schemas()} | {"bundle.json"}

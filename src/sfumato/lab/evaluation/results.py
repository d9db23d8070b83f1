"""What typed results have in common: JSON out, for bundles and results files, JSON in, and a JSON Schema."""

from __future__ import annotations

from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from sfumato.artifacts.versions import upgraded
from sfumato.errors import ResultsError


class Result:
    """Base of frozen dataclasses that are kept as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; a field that is None is left out."""
        found: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json", exclude_none=True)
        return found

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """Read what `to_json` of this or an earlier version gave; unknown keys are ignored.

        Raises:
            ResultsError: a field is missing or of another type.
        """
        try:
            return TypeAdapter(cls).validate_python(upgraded(raw))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise ResultsError(f"these are no figures of {cls.__name__}: {place}: {first['msg']}") from error

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of `to_json`."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(cls).json_schema()}

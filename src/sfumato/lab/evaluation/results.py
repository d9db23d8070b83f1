"""Results as JSON: read, checked, with today's names for what earlier versions wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from sfumato.artifacts.files import read_json
from sfumato.artifacts.versions import upgraded
from sfumato.errors import ResultsError, SfumatoError

T = TypeVar("T")


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
        return as_type(cls, raw, f"these are no figures of {cls.__name__}")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of `to_json`."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(cls).json_schema()}


def as_type(kind: type[T], raw: object, message: str, error: type[SfumatoError] = ResultsError) -> T:
    """Return plain JSON, of this version or an earlier one, as a pydantic model or dataclass.

    Raises:
        SfumatoError: of type `error`; the JSON does not fit. The message is followed by the first place that does not.
    """
    try:
        return TypeAdapter(kind).validate_python(upgraded(raw))
    except ValidationError as failed:
        first = failed.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        said = first["msg"].removeprefix("Value error, ")
        raise error(f"{message} ({place:.80}: {said:.200})") from failed  # both may repeat the file


def read_object(path: Path, error: type[SfumatoError] = ResultsError) -> dict[str, Any] | None:
    """Return a JSON object with today's names for its keys; None if there is no such file.

    Raises:
        SfumatoError: of the given type; the file cannot be read, or holds no JSON object.
    """
    if not path.exists():
        return None
    found = upgraded(read_json(path, error))
    if not isinstance(found, dict):
        raise error(f"{path} holds a {type(found).__name__}; a JSON object is expected")
    return found

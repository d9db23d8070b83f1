"""The base of everything that an audit writes and reads."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

from sfumato.errors import AuditError
from sfumato.lab.evaluation.results import as_type


class Model(BaseModel):
    """A part of an audit's result; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True)

    @classmethod
    def of(cls, value: object, where: object) -> Self:
        """Return plain JSON of this version or an earlier one as a model; `where` it comes from is for the message.

        Raises:
            AuditError: keys are missing, or values have the wrong type.
        """
        return as_type(cls, value, f"{where} is a broken audit; run it again", AuditError)

    @property
    def as_json(self) -> dict[str, object]:
        """Plain JSON values by their keys in the file."""
        return self.model_dump(mode="json")

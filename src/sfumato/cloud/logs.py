"""The log on standard error, as text or JSON, with a line for each request. Never an image, a token or an address."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

access = logging.getLogger("sfumato.access")
_OURS = ("sfumato", "uvicorn.error")


def configure(*, as_json: bool) -> None:
    """Log to standard error, one line per message."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if as_json else _Text())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def request_line(**facts: Any) -> None:
    """Write the line of one request."""
    access.info("request", extra={"facts": facts})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower()}
        return json.dumps({**line, **(getattr(record, "facts", None) or {"message": record.getMessage()})})


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", None)
        if facts is None:
            return f"{_time(record)} {record.levelname.lower()} {' '.join(record.getMessage().split())}"
        return " ".join([_time(record), *(f"{key}={'-' if value is None else value}" for key, value in facts.items())])

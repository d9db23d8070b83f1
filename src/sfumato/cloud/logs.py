"""The log on standard error, as text or JSON, with a line for each request: never an image, a token or an address.

And the audit log, a file of its own, which has addresses and the tokens' names.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

from sfumato.errors import ServingError

access = logging.getLogger("sfumato.access")
log = logging.getLogger(__name__)
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


class AuditLog:
    """A file that gets a line of JSON for each request: who asked for what, and without any content.

    Several processes may share it: each line is added by one system call. If it cannot be written, requests are
    served, and the log says so once.

    Raises:
        ServingError: it cannot be opened.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._file = file
        self._works = True
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise ServingError(f"cannot write the audit log {os.fspath(file)}: {error.strerror}") from error

    def reopen(self) -> None:
        """Open it anew, after it has been moved away; if that fails, log why and stay with the old file."""
        try:
            new = self._open()
        except OSError as error:
            log.error("cannot open the audit log anew: %s", error.strerror)
            return
        os.close(self._descriptor)
        self._descriptor = new

    def write(self, **facts: Any) -> None:
        """Add a line with the time and these facts."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, **facts}).encode() + b"\n"
        try:
            works = os.write(self._descriptor, line) == len(line)
        except OSError:
            works = False
        if self._works and not works:
            log.error("the audit log cannot be written; requests are served without it")
        self._works = works

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


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

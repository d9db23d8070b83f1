"""The command line in this process: a process of its own would load torch first, for seconds."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfumato.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def sfumato(*arguments: object, code: int = 0, cwd: Path | None = None, **environment: str) -> Done:
    """Runs a command as a person does, and asserts how it ends.

    Args:
        arguments: after `sfumato`.
        code: the exit code that is expected.
        cwd: the working folder.
        environment: variables that are set for it.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        for name, value in {"COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "argv", ["sfumato", *map(str, arguments)])
        main()
    done = Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stderr + done.stdout
    return done

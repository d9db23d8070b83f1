"""The fault matrix: what each client does when the endpoint misbehaves in each way that the client tests know.

The faults are the tables `MISBEHAVIOURS` of tests/device, so that a fault added there is a row here.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import EndpointError, EndpointUnreachable

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.append(str(TESTS))
import recording
import tiny

WAIT_S, SHORT_S = 5.0, 0.5
"""Deadlines: of faults that are responded to, and of those that are waited for."""
SLACK_S = 2.0
"""More than the deadline that a busy machine may take."""


@dataclass(frozen=True)
class Cell:
    """What a client did about one fault.

    Attributes:
        fault: its name.
        path: how the client reaches the endpoint.
        where: which exchange the fault is in.
        expected: the error that the client tests expect.
        outcome: the error that was raised, or "a prediction".
        seconds: how long the call took.
        deadline_s: the client's `timeout_s`.
        sent_bytes: what had been sent.
        leaked: the forms in which a piece of the image was among them.
        good: the expected error, in time, and nothing leaked.
    """

    fault: str
    path: str
    where: str
    expected: str
    outcome: str
    seconds: float
    deadline_s: float
    sent_bytes: int
    leaked: list[str]
    good: bool


@dataclass(frozen=True)
class Way:
    """A way to an endpoint: the tests' module with its table, its fake server, and the exchanges to break."""

    name: str
    module: ModuleType
    serving: Callable[..., AbstractContextManager[Any]]
    bundle: Bundle
    where: tuple[str, ...]

    def cases(self) -> Iterator[tuple[str, str]]:
        """Yield the exchange and the name of each fault."""
        yield from getattr(self.module, "CASES", None) or (
            (where, name) for where in self.where for name in self.module.MISBEHAVIOURS
        )


def ways(folder: Path) -> list[Way]:
    """Return the ways to an endpoint; without the extra `grpc`, its way is left out."""
    mixed, eight_bit = (tiny.save_bundles(folder / kind, kind)[0] for kind in ("mix", "8-bit"))
    found = [Way("HTTP", _module("test_client"), recording.recording, mixed, ("infer",))]
    if importlib.util.find_spec("tritonclient") is not None and importlib.util.find_spec("grpc") is not None:
        module = _module("test_grpc_endpoint")
        found.append(Way("gRPC", module, module.serving, mixed, ("ModelInfer",)))
    files = _module("test_image_file_client")
    found.append(Way("image files", files, recording.recording, eight_bit, ("classify",)))
    return found


def cells(*, every: int = 1) -> Iterator[Cell]:
    """Try each fault on each path; with `every` 3, each third one."""
    with tempfile.TemporaryDirectory() as folder:
        for path in ways(Path(folder)):
            for where, fault in list(path.cases())[::every]:
                yield _cell(path, where, fault)


def _cell(path: Way, where: str, fault: str) -> Cell:
    behaviour, expected = path.module.MISBEHAVIOURS[fault][:2]
    deadline_s = SHORT_S if expected is EndpointUnreachable and not fault.isupper() else WAIT_S
    image = path.module.IMAGE
    with path.serving(**{where: behaviour}) as server:
        with path.module.client(server, path.bundle, timeout_s=deadline_s) as client:
            begun = time.perf_counter()
            try:
                client.classify(image)
                outcome = "a prediction"
            except Exception as error:
                outcome = type(error).__name__
            seconds = time.perf_counter() - begun
        sent = bytes(server.recorded)
    leaked = sorted(recording.leaked(sent, image))
    good = outcome == expected.__name__ and not leaked and seconds <= deadline_s + SLACK_S
    return Cell(
        fault, path.name, where, expected.__name__, outcome, round(seconds, 3), deadline_s, len(sent), leaked, good
    )


def matrix(found: list[Cell]) -> dict[str, Any]:
    """Return the matrix as plain JSON."""
    return {
        "faults": len({cell.fault for cell in found}),
        "cells": [asdict(cell) for cell in found],
        "bad": sum(not cell.good for cell in found),
    }


def _module(name: str) -> ModuleType:
    """Import a module of tests/device, whose folder is no package."""
    spec = importlib.util.spec_from_file_location(f"fault_matrix_{name}", TESTS / "device" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert all(issubclass(error, EndpointError) for _, error, *_ in module.MISBEHAVIOURS.values())
    return module

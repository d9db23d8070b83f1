"""The fault matrix: what each client does when the endpoint misbehaves in each way that the client tests know.

The faults are the tables of tests/device, `MISBEHAVIOURS` and `FAULTS`, so that a fault added there is a row here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from sfumato.artifacts.bundle import Bundle
from sfumato.errors import EndpointError, EndpointResponseInvalid, EndpointUnreachable

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
    """A way to an endpoint: its name, its fake server, its client, and the faults.

    Attributes:
        faults: (where, name) -> how the endpoint behaves there, and the error that the tests expect.
    """

    name: str
    serving: Callable[..., AbstractContextManager[Any]]
    client: Callable[..., Any]
    bundle: Bundle
    image: Any
    faults: dict[tuple[str, str], tuple[Callable[..., Any], type[EndpointError]]]


def ways(folder: Path) -> list[Way]:
    """Return the ways to an endpoint; without the extras `grpc` and `async`, their ways are left out."""
    mixed, eight_bit = (tiny.save_bundles(folder / kind, kind)[0] for kind in ("mix", "8-bit"))
    http, files = _module("test_client"), _module("test_image_file_client")
    found = [
        Way("HTTP", recording.recording, http.client, mixed, http.IMAGE, _faults(http, "infer")),
        Way("image files", recording.recording, files.client, eight_bit, files.IMAGE, _faults(files, "classify")),
    ]
    grpc = None
    if all(importlib.util.find_spec(name) for name in ("grpc", "tritonclient")):
        grpc = _module("test_grpc_endpoint")
        found.append(Way("gRPC", grpc.serving, grpc.client, mixed, grpc.IMAGE, _faults(grpc, "ModelInfer")))
    if (TESTS / "device" / "test_faults.py").exists():
        more = _module("test_faults")
        good = json.dumps({"label": tiny.LABELS[0], "score": 1.0}).encode()
        for name, (fault, error) in more.FAULTS.items():
            found[0].faults["infer", name] = more.with_a_good_body(fault), error
            found[1].faults["classify", name] = partial(_with, fault, good), error
        for name, changes in more.ANOTHERS.items():
            found[0].faults["infer", name] = more.another(**changes), EndpointResponseInvalid
        if grpc is not None:
            found[2].faults.update(
                {("ModelInfer", name): fault for name, fault in more._grpc_faults().items() if name != "good"}
            )
    if importlib.util.find_spec("aiohttp"):
        asyncio = partial(_waited_for, importlib.import_module("waited_for").WaitedFor)
        found.append(Way("HTTP in asyncio", recording.recording, asyncio, mixed, http.IMAGE, found[0].faults))
    return found


def _waited_for(make: Callable[..., Any], server: Any, bundle: Bundle, timeout_s: float) -> Any:
    return make(server.url, bundle, retries=0, timeout_s=timeout_s)


def _with(fault: Callable[..., None], body: bytes, exchange: Any) -> None:
    fault(exchange, body, {})


def _faults(module: ModuleType, where: str) -> dict[tuple[str, str], tuple[Any, type[EndpointError]]]:
    """Return the faults of a module of the client's tests, in each exchange that it breaks."""
    cases = getattr(module, "CASES", [(where, name) for name in module.MISBEHAVIOURS])
    return {(at, name): module.MISBEHAVIOURS[name] for at, name in cases}


def cells(*, every: int = 1) -> Iterator[Cell]:
    """Try each fault on each path; with `every` 3, each third one."""
    with tempfile.TemporaryDirectory() as folder:
        for way in ways(Path(folder)):
            for (where, fault), (behaviour, expected) in list(way.faults.items())[::every]:
                yield _cell(way, where, fault, behaviour, expected)


def _cell(way: Way, where: str, fault: str, behaviour: Callable[..., Any], expected: type[EndpointError]) -> Cell:
    deadline_s = SHORT_S if expected is EndpointUnreachable and not fault.isupper() else WAIT_S
    with way.serving(**{where: behaviour}) as server:
        with way.client(server, way.bundle, timeout_s=deadline_s) as client:
            begun = time.perf_counter()
            try:
                client.classify(way.image)
                outcome = "a prediction"
            except Exception as error:
                outcome = type(error).__name__
            seconds = time.perf_counter() - begun
        sent = bytes(server.recorded)
    leaked = sorted(recording.leaked(sent, way.image))
    good = outcome == expected.__name__ and not leaked and seconds <= deadline_s + SLACK_S
    return Cell(
        fault, way.name, where, expected.__name__, outcome, round(seconds, 3), deadline_s, len(sent), leaked, good
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
    return module

"""Tests that are run with both clients of the protocol."""

from __future__ import annotations

import pytest

import recording
from sfumato.device import Client
from waited_for import WaitedFor


@pytest.fixture(params=[Client, WaitedFor], ids=["blocking", "asyncio"])
def both_clients(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the place of `Client` in the test's module and in `recording`. For gRPC and image files, ask once."""
    monkeypatch.setattr(recording, "Client", request.param)
    if hasattr(request.module, "Client"):
        monkeypatch.setattr(request.module, "Client", request.param)

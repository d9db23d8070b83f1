"""Retries of all calls together are bounded."""

from __future__ import annotations

from typing import Any

import pytest

from recording import client, recording
from sfumato.artifacts.bundle import Bundle
from sfumato.device.retry_budget import RetryBudget
from sfumato.errors import EndpointFailed
from tiny import image


def taken(budget: RetryBudget) -> int:
    count = 0
    while budget.take():
        count += 1
    return count


def test_a_reserve_then_ten_a_second_and_one_for_five_requests() -> None:
    now = [50.0]
    budget = RetryBudget(lambda: now[0])
    assert taken(budget) == 100
    assert taken(budget) == 0
    now[0] += 1.05
    assert taken(budget) == 10
    for _ in range(5):
        budget.add()
    assert taken(budget) == 1
    now[0] += 3600
    budget.add()
    assert taken(budget) == 100, "no more than the reserve is saved up"


@pytest.mark.usefixtures("both_clients")
def test_the_calls_of_a_client_share_it(obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.device.retry_budget.RESERVE", 3.0)
    monkeypatch.setattr("sfumato.device.retry_budget.PER_SECOND", 0.0)
    monkeypatch.setattr("sfumato.device.retry_budget.PER_REQUEST", 0.0)
    monkeypatch.setattr("sfumato.device.transport.BACKOFF_S", 0.001)
    no: Any = lambda exchange: exchange.reply(503)  # noqa: E731
    with recording(infer=no) as server, client(server, obfuscator_bundle, retries=2) as it:
        for asking in (it, it, it.with_options(retries=1)):
            with pytest.raises(EndpointFailed):
                asking.classify(image(1))
        assert sum(path.endswith("infer") for path in server.paths) == 3 + 3

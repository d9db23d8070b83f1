"""Coroutines that never suspend."""

from __future__ import annotations

import asyncio

import pytest

from sfumato.device.blocking import finished


def test_it_returns_and_raises_what_the_coroutine_does() -> None:
    async def inner(value: int) -> int:
        if value < 0:
            raise ValueError("negative")
        return value

    async def outer(value: int) -> int:
        return await inner(value) + 1

    assert finished(outer(1)) == 2
    with pytest.raises(ValueError, match="negative"):
        finished(outer(-1))


def test_one_that_suspends_is_an_error_and_is_closed() -> None:
    ended = []

    async def waits() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="suspended"):
        finished(waits())
    assert ended == [True]

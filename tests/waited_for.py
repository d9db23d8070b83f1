"""AsyncClient with the methods of Client, so that one test is run with both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from sfumato.artifacts.bundle import Bundle
from sfumato.device import AsyncClient
from sfumato.device.endpoints import is_grpc


class WaitedFor:
    """Each call runs to its end in one event loop, which ends with the `with`."""

    def __init__(self, url: str | None, bundle: Bundle, **options: Any) -> None:
        if url is not None and is_grpc(url):
            pytest.skip("AsyncClient has no gRPC")
        pytest.importorskip("aiohttp")
        self._client = AsyncClient(url, bundle, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> WaitedFor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if asyncio.iscoroutinefunction(value):
            return lambda *args, **options: self._runner.run(value(*args, **options))
        return value

    def classify_many(self, *args: Any, **options: Any) -> Iterator[Any]:
        return self._yielded(self._client.classify_many(*args, **options))

    def _yielded(self, found: Any) -> Iterator[Any]:
        try:
            while True:
                yield self._runner.run(found.__anext__())
        except StopAsyncIteration:
            pass
        finally:
            self._runner.run(found.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())

    def with_options(self, **options: Any) -> WaitedFor:
        other = WaitedFor.__new__(WaitedFor)
        other._runner = self._runner
        other._client = self._client.with_options(**options)
        return other

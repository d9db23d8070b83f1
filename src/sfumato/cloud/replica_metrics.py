"""Replicas on one machine exchange their metrics, so that scraping one of them returns those of all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_TIMEOUT_S = 2.0


class Siblings:
    """One replica among its siblings; each has a socket called by its number in a folder of this user's."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    @contextlib.asynccontextmanager
    async def sharing(self, text: Callable[[], bytes]) -> AsyncIterator[None]:
        """Return `text()` to siblings that ask, until the block ends."""

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):  # the sibling has hung up
                writer.write(text())
                await writer.drain()
            writer.close()

        own = self._folder / str(self._number)
        own.unlink(missing_ok=True)  # of a process that died
        server = await asyncio.start_unix_server(reply, own)
        try:
            yield
        finally:
            server.close()

    async def merged(self, own: bytes) -> bytes:
        """Return the metrics of all replicas that respond, each with its number as the label `replica`."""
        others = [path for path in sorted(self._folder.iterdir()) if path.name != str(self._number)]
        texts = await asyncio.gather(*(_ask(path) for path in others))
        texts_of = {str(self._number): own, **{path.name: text for path, text in zip(others, texts, strict=True)}}
        registry = CollectorRegistry()
        registry.register(_Merged({number: texts_of[number].decode() for number in sorted(texts_of)}))
        return generate_latest(registry)


class _Merged(Collector):
    """Families of the same name as one, because Prometheus wants their samples together."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, text in self._texts.items():
            try:
                own = list(text_string_to_metric_families(text))
            except ValueError:  # it died while it was writing
                continue
            for family in own:
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [
                    sample._replace(labels={"replica": number, **sample.labels}) for sample in family.samples
                ]
        return families.values()


async def _ask(path: Path) -> bytes:
    """Return a sibling's metrics; nothing if it is gone or does not respond."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""

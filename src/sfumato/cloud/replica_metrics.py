"""Replicas on one machine tell each other what they have counted, so that asking any of them for metrics asks all."""

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
    """One replica among its siblings.

    Args:
        folder: which only this user can read; each replica has a socket there, called by its number.
        number: of this replica.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    @contextlib.asynccontextmanager
    async def telling(self, text: Callable[[], bytes]) -> AsyncIterator[None]:
        """Tells siblings that ask what `text` gives, until the block ends."""

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):  # who asked has gone
                writer.write(text())
                await writer.drain()
            writer.close()

        own = self._folder / str(self._number)
        own.unlink(missing_ok=True)  # of a process that died
        server = await asyncio.start_unix_server(tell, own)
        try:
            yield
        finally:
            server.close()

    async def together(self, own: bytes) -> bytes:
        """The metrics of all replicas that answer, each with its number as the label `replica`.

        Args:
            own: this replica's, in Prometheus' text format.
        """
        others = [path for path in sorted(self._folder.iterdir()) if path.name != str(self._number)]
        texts = await asyncio.gather(*(_ask(path) for path in others))
        told = {str(self._number): own, **{path.name: text for path, text in zip(others, texts, strict=True)}}
        registry = CollectorRegistry()
        registry.register(_Together({number: told[number].decode() for number in sorted(told)}))
        return generate_latest(registry)


class _Together(Collector):
    """Families of the same name as one, because Prometheus wants their samples side by side."""

    def __init__(self, told: dict[str, str]) -> None:
        self._told = told

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, text in self._told.items():
            try:
                told = list(text_string_to_metric_families(text))
            except ValueError:  # it died while it told
                continue
            for family in told:
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [
                    sample._replace(labels={"replica": number, **sample.labels}) for sample in family.samples
                ]
        return families.values()


async def _ask(path: Path) -> bytes:
    """What a sibling tells; nothing if it is gone or does not answer."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""

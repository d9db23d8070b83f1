"""The client for the Open Inference Protocol in asyncio, for the extra `[async]`; see also `client_base`."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self, TypeVar, Unpack

from sfumato.artifacts.bundle import Bundle
from sfumato.device.client_base import ClientOptions, EndpointStatus, ProtocolClient
from sfumato.device.endpoint_binding import Plan
from sfumato.device.endpoints import AsyncEndpoint, HttpEndpoint, is_grpc
from sfumato.device.image import ImageSource
from sfumato.device.predictions import Prediction
from sfumato.device.transport import ConnectionOptions
from sfumato.errors import EndpointError
from sfumato.wire import ModelMetadata

IN_FLIGHT = 64

T = TypeVar("T")
R = TypeVar("R")


class AsyncClient(ProtocolClient):
    """Classifies images at an endpoint that never sees them, in an event loop; `async with` closes it.

    All is as with `Client`, attributes included, but for the transport: images are obfuscated in threads, so that the
    loop stays free, and sent with aiohttp. A cancelled call sends nothing more. A client belongs to the event loop of
    its first request.

    Args:
        server_url: the endpoint's address, `https://host:port`, or `http` without TLS; gRPC is for `Client`. None
            for a bundle that predicts on the device alone.
        bundle: an obfuscator bundle, or its folder; or without an endpoint a classifier's.
        in_flight: groups of images, or single ones, that are obfuscated or sent at the same time; further calls wait,
            and their deadline begins when they are sent.
        options: as for `Client`.

    Raises:
        BundleError: the bundle cannot be used.
        EndpointError: as with `Client`; or aiohttp is not installed: `pip install 'sfumato[async]'`.
    """

    def __init__(
        self,
        server_url: str | None,
        bundle: Bundle | str | os.PathLike[str],
        *,
        in_flight: int = IN_FLIGHT,
        **options: Unpack[ClientOptions],
    ) -> None:
        self.in_flight = _checked(in_flight)
        self._room = asyncio.Semaphore(in_flight)
        # More at once are no faster, and take more memory. What waits is here, and not in the loop: the next one begins
        # without a round trip through it.
        self._cores = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="sfumato-obfuscator")
        super().__init__(server_url, bundle, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, each once no other task is using it. Nothing more is sent afterwards."""
        await self._disconnect()

    async def classify(self, source: ImageSource) -> Prediction:
        """Classify one image. See `Client.classify_batch`."""
        return (await self._classify_group([source]))[0]

    async def classify_batch(self, sources: Iterable[ImageSource], *, batch_size: int = 16) -> list[Prediction]:
        """Classify images in groups. See `Client.classify_batch`."""
        return await self._classify_all(sources, batch_size)

    def classify_many(
        self, sources: Iterable[ImageSource] | AsyncIterable[ImageSource], *, in_flight: int | None = None
    ) -> AsyncIterator[Prediction]:
        """Classify images as they come, several at the same time, so that round trips overlap.

        Args:
            sources: whatever `load_image` takes; may never end. Items of an iterable are taken in a thread; one that
                may wait without end should be asynchronous, as Python waits for its threads before it exits.
            in_flight: images that may be in progress, or done and not yet taken; the client's by default.

        Returns:
            The predictions, in order. The first error ends it; what is in progress is cancelled.

        Raises:
            EndpointError: `in_flight` is not positive; and what `classify` raises, at the image's place.
        """
        limit = self.in_flight if in_flight is None else _checked(in_flight)
        return _in_order(self.classify, _taken(sources), limit)

    async def classify_locally(self, source: ImageSource) -> Prediction | None:
        """Return the on-device prediction if it is final. See `Client.classify_locally`."""
        return await self._classify_on_device(source)

    async def check(self) -> EndpointStatus:
        """Ask whether the endpoint is ready, and for the right classifier. See `Client.check`."""
        return await self._status()

    async def check_ready(self) -> None:
        """Ask whether the endpoint is ready. See `Client.check_ready`."""
        await self._ask_ready()

    async def metadata(self) -> ModelMetadata:
        """Return what the endpoint says of the model. See `Client.metadata`."""
        return await self._ask_metadata()

    async def plan(self) -> Plan:
        """Return how to ask the model. See `Client.plan`."""
        return await self._make_plan()

    def _open(self, server_url: str, encoding: str | None, connection: ConnectionOptions) -> AsyncEndpoint:
        if is_grpc(server_url):
            raise EndpointError("AsyncClient has no gRPC; give an http:// or https:// address, or use Client")
        from sfumato.device.aiohttp_transport import AiohttpTransport

        return HttpEndpoint(AiohttpTransport(server_url, **connection), encoding=encoding)

    async def _compute(self, work: Callable[[], R]) -> R:
        run = partial(contextvars.copy_context().run, work)
        return await asyncio.get_running_loop().run_in_executor(self._cores, run)

    async def _wait_for(self, work: Callable[[], R]) -> R:
        return await asyncio.to_thread(work)  # without a core, which a source that waits would keep from all others

    async def _classify_group(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        async with self._room:
            return await super()._classify_group(sources)


def _checked(in_flight: int) -> int:
    if in_flight < 1:
        raise EndpointError(f"in_flight must be at least 1, got {in_flight}")
    return in_flight


async def _taken(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield the items; those of a blocking iterable are taken in a thread."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    rest, end = iter(items), object()
    while (taken := await asyncio.to_thread(next, rest, end)) is not end:
        yield taken  # type: ignore[misc]  # it is not `end`


async def _in_order(ask: Callable[[T], Awaitable[R]], items: AsyncIterator[T], in_flight: int) -> AsyncIterator[R]:
    """Yield results in the order of the items; see `concurrent.in_order`, whose threads are tasks here."""
    waiting: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    room = asyncio.Semaphore(in_flight)
    pending: set[asyncio.Future[R]] = set()  # not yet yielded, done or not

    def put(future: asyncio.Future[R]) -> asyncio.Future[R]:
        pending.add(future)
        waiting.put_nowait(future)
        return future

    async def feed() -> None:
        try:
            while await room.acquire():
                put(asyncio.ensure_future(ask(await anext(items))))
        except StopAsyncIteration:
            waiting.put_nowait(None)
        except Exception as error:
            put(asyncio.get_running_loop().create_future()).set_exception(error)
        except asyncio.CancelledError:
            put(asyncio.get_running_loop().create_future()).cancel()  # the source may have raised it, too
            raise

    feeder = asyncio.create_task(feed())
    try:
        while (future := await waiting.get()) is not None:
            result = await future
            pending.discard(future)
            room.release()
            yield result
    finally:
        feeder.cancel()
        for future in pending:
            future.cancel()
        await asyncio.gather(feeder, *pending, return_exceptions=True)  # takes note of their errors, too

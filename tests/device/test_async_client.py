"""What only AsyncClient has: cancellation, an event loop that stays free, one loop, one extra.

All else is tested with both clients: see `both_clients`.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest

from recording import Exchange, RecordingServer, expected_probabilities, leaked, recording, respond_well
from sfumato.artifacts.bundle import Bundle
from sfumato.device import AsyncClient, Client, FingerprintWarning
from sfumato.device.async_client import _in_order, _taken
from sfumato.device.client_base import BaseClient, ClientOptions, ProtocolClient
from sfumato.device.transport import ConnectionOptions
from sfumato.errors import EndpointError, EndpointResponseInvalid, ImageError
from tiny import image, save_bundles

pytest.importorskip("aiohttp")

IMAGES = [image(seed) for seed in range(12)]


def run(
    server: RecordingServer, bundle: Bundle, main: Callable[[AsyncClient], Coroutine[Any, Any, None]], **options: Any
) -> None:
    async def whole() -> None:
        async with AsyncClient(server.url, bundle, **{"retries": 0, "timeout_s": 5.0, **options}) as it:
            await main(it)

    asyncio.run(whole())


def infers(server: RecordingServer) -> int:
    return sum(path.endswith("infer") for path in server.paths)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_both_clients_share_all_but_the_transport() -> None:
    shared = {name for name in vars(BaseClient) | vars(ProtocolClient) if not name.startswith("__")} - {"_abc_impl"}
    own = {name for name in shared if getattr(Client, name) is not getattr(AsyncClient, name)}
    assert own == {"_open", "_compute", "_wait_for", "_classify_group"}
    assert {"_send", "_transmit", "_decide", "_check_version", "with_options"} <= shared - own


def test_it_takes_all_options_of_client() -> None:
    named = {name for name, one in inspect.signature(Client).parameters.items() if one.kind is one.KEYWORD_ONLY}
    assert ClientOptions.__annotations__.keys() == named | ConnectionOptions.__annotations__.keys()


# --- cancellation ---------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_while_it_obfuscates_sends_nothing(obfuscator_bundle: Bundle) -> None:
    begun, go = threading.Event(), threading.Event()

    async def main(it: AsyncClient) -> None:
        decide = it.obfuscator.decide_batch

        def held(*args: Any, **options: Any) -> Any:
            begun.set()
            go.wait(5)
            return decide(*args, **options)

        it.obfuscator.decide_batch = held  # type: ignore[method-assign]
        task = asyncio.create_task(it.classify(IMAGES[0]))
        await until(begun.is_set)
        await cancelled(task)
        go.set()
        await asyncio.sleep(0.05)
        assert server.recorded == b""
        assert (await it.classify(IMAGES[0])).predicted_by == "cloud"

    with recording() as server:
        run(server, obfuscator_bundle, main, in_flight=1)


def test_a_call_that_is_cancelled_while_it_waits_leaves_no_connection_and_no_retry(obfuscator_bundle: Bundle) -> None:
    hung_up = threading.Event()

    def silent(exchange: Exchange) -> None:
        if exchange.rfile.read(1) == b"":
            hung_up.set()

    async def main(it: AsyncClient) -> None:
        await it.plan()
        task = asyncio.create_task(it.classify(IMAGES[0]))
        await until(lambda: infers(server))
        await cancelled(task)
        await until(hung_up.is_set)
        await asyncio.sleep(0.05)
        assert infers(server) == 1
        server.behaviours.clear()
        assert (await it.classify(IMAGES[1])).index == expected_probabilities(IMAGES[1]).argmax()

    with recording(infer=silent) as server:
        run(server, obfuscator_bundle, main, in_flight=1, retries=3, encoding="binary")
    assert leaked(server.recorded, IMAGES[0]) == set()


def test_a_call_that_is_cancelled_between_two_attempts_makes_no_further_one(obfuscator_bundle: Bundle) -> None:
    async def main(it: AsyncClient) -> None:
        task = asyncio.create_task(it.classify(IMAGES[0]))
        await until(lambda: infers(server))
        await asyncio.sleep(0.02)
        await cancelled(task)
        await asyncio.sleep(0.4)
        assert infers(server) == 1

    with recording(infer=lambda exchange: exchange.reply(503)) as server:
        run(server, obfuscator_bundle, main, retries=3)


def test_closing_ends_a_call_between_two_attempts(obfuscator_bundle: Bundle) -> None:
    async def main(it: AsyncClient) -> None:
        task = asyncio.create_task(it.classify(IMAGES[0]))
        await until(lambda: infers(server))
        await it.close()
        with pytest.raises(EndpointError, match="the client is closed"):
            await task
        assert infers(server) == 1

    with recording(infer=lambda exchange: exchange.reply(503, Retry_After="1")) as server:
        run(server, obfuscator_bundle, main, retries=3)


def test_closing_lets_a_request_that_is_under_way_end(obfuscator_bundle: Bundle) -> None:
    go = threading.Event()

    def held(exchange: Exchange) -> None:
        go.wait(5)
        respond_well(exchange)

    async def main(it: AsyncClient) -> None:
        task = asyncio.create_task(it.classify(IMAGES[0]))
        await until(lambda: infers(server))
        await it.close()
        go.set()
        assert (await task).predicted_by == "cloud"
        gc.collect()

    with recording(infer=held) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        run(server, obfuscator_bundle, main)


# --- the event loop -------------------------------------------------------------------------------


def test_the_loop_stays_free_while_images_are_obfuscated(obfuscator_bundle: Bundle) -> None:
    async def main(it: AsyncClient) -> None:
        decide, threads = it.obfuscator.decide_batch, set()

        def slow(*args: Any, **options: Any) -> Any:
            threads.add(threading.get_ident())
            time.sleep(0.3)
            return decide(*args, **options)

        it.obfuscator.decide_batch = slow  # type: ignore[method-assign]
        task, ticks = asyncio.create_task(it.classify(IMAGES[0])), 0
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        assert ticks > 10 and threading.get_ident() not in threads

    with recording() as server:
        run(server, obfuscator_bundle, main)


def test_no_more_are_in_flight_than_may_be_and_the_deadline_of_the_others_has_not_begun(
    obfuscator_bundle: Bundle,
) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def slow(exchange: Exchange) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.15)
        with lock:
            now -= 1
        respond_well(exchange)

    async def main(it: AsyncClient) -> None:
        await it.plan()
        found = await asyncio.gather(*map(it.classify, IMAGES))  # 4 rounds of 0.15 s each
        for prediction, pixels in zip(found, IMAGES, strict=True):
            np.testing.assert_allclose(prediction.probabilities, expected_probabilities(pixels), atol=1e-4)

    with recording(infer=slow) as server:
        run(server, obfuscator_bundle, main, in_flight=3, timeout_s=0.4, encoding="binary")
    assert most == 3


def test_connections_are_used_again(obfuscator_bundle: Bundle) -> None:
    addresses = set()

    def noted(exchange: Exchange) -> None:
        addresses.add(exchange.client_address)
        respond_well(exchange)

    async def main(it: AsyncClient) -> None:
        for _ in range(3):
            await asyncio.gather(*map(it.classify, IMAGES))

    with recording(infer=noted) as server:
        run(server, obfuscator_bundle, main, in_flight=4)
    assert len(addresses) <= 4


def test_a_foreign_response_does_not_break_off_what_others_are_waiting_for(obfuscator_bundle: Bundle) -> None:
    go, addresses = threading.Event(), []

    def first_is_foreign(exchange: Exchange) -> None:
        addresses.append(exchange.client_address)
        number = len(addresses)
        if number == 1:
            go.wait(5)
        if number == 2:
            exchange.reply(200, b"{}")
        else:
            respond_well(exchange)

    async def main(it: AsyncClient) -> None:
        await it.plan()
        patient = asyncio.create_task(it.classify(IMAGES[0]))
        await until(lambda: addresses)
        with pytest.raises(EndpointResponseInvalid):
            await it.classify(IMAGES[1])
        go.set()
        assert (await patient).index == expected_probabilities(IMAGES[0]).argmax()
        await it.classify(IMAGES[2])

    with recording(infer=first_is_foreign) as server:
        run(server, obfuscator_bundle, main, encoding="binary")
    assert len(set(addresses)) == 3, "neither connection is used again"


def test_a_client_belongs_to_one_loop(obfuscator_bundle: Bundle) -> None:
    with recording() as server:
        it = AsyncClient(server.url, obfuscator_bundle)
        asyncio.run(it.check())
        before = bytes(server.recorded)
        with pytest.raises(EndpointError, match="event loop of its first request"):
            asyncio.run(it.classify(IMAGES[0]))
        assert server.recorded == before
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the first loop ended without closing it
            del it
            gc.collect()


def test_a_large_batch_is_sent_without_a_warning(tmp_path: Any) -> None:
    bundle, _ = save_bundles(tmp_path)

    async def main(it: AsyncClient) -> None:
        many = [IMAGES[n % 12] for n in range(1500)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = await it.classify_batch(many, batch_size=len(many))
        assert found[0].payload_bytes * len(many) > 2**20
        np.testing.assert_allclose(found[13].probabilities, expected_probabilities(IMAGES[1]), atol=1e-4)

    with recording() as server:
        run(server, bundle, main)


def test_a_warning_points_at_the_code_that_awaited(obfuscator_bundle: Bundle) -> None:
    from recording import metadata

    async def main(it: AsyncClient) -> None:
        with pytest.warns(FingerprintWarning) as caught:
            await it.classify(IMAGES[0])
        assert caught[0].filename == __file__

    told = metadata(parameters={"fingerprint": "sha256:0"})
    with recording(tiny=lambda exchange: exchange.reply(200, told)) as server:
        run(server, obfuscator_bundle, main)


# --- many -----------------------------------------------------------------------------------------


def test_images_may_come_asynchronously(obfuscator_bundle: Bundle) -> None:
    more = asyncio.Event()

    async def camera() -> AsyncIterator[Any]:
        yield IMAGES[0]
        await more.wait()  # nothing new holds up no result
        yield IMAGES[1]

    async def main(it: AsyncClient) -> None:
        found = []
        async for prediction in it.classify_many(camera(), in_flight=3):
            found.append(prediction.index)
            more.set()
        assert found == [expected_probabilities(pixels).argmax() for pixels in IMAGES[:2]]

    with recording() as server:
        run(server, obfuscator_bundle, main)


def test_an_error_of_the_camera_comes_at_its_place(obfuscator_bundle: Bundle) -> None:
    async def camera() -> AsyncIterator[Any]:
        yield IMAGES[0]
        yield b"no image"
        yield IMAGES[1]

    async def main(it: AsyncClient) -> None:
        found = it.classify_many(camera())
        assert (await anext(found)).index == expected_probabilities(IMAGES[0]).argmax()
        with pytest.raises(ImageError):
            await anext(found)

    with recording() as server:
        run(server, obfuscator_bundle, main)


def test_cancelling_whoever_takes_the_predictions_ends_everything(obfuscator_bundle: Bundle) -> None:
    def silent(exchange: Exchange) -> None:
        exchange.rfile.read(1)

    async def main(it: AsyncClient) -> None:
        async def take() -> None:
            async for _ in it.classify_many(iter(IMAGES), in_flight=3):
                pass

        await it.plan()
        task = asyncio.create_task(take())
        await until(lambda: infers(server) == 3)
        await cancelled(task)
        assert len(asyncio.all_tasks()) == 1, "only this test"
        await asyncio.sleep(0.05)
        assert infers(server) == 3

    with recording(infer=silent) as server:
        run(server, obfuscator_bundle, main, encoding="binary")


def test_errors_behind_the_first_are_not_reported_as_forgotten() -> None:
    async def ask(number: int) -> int:
        await asyncio.sleep(0 if number else 0.05)
        raise EndpointError(str(number))

    async def main() -> list[Any]:
        forgotten: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
        with pytest.raises(EndpointError, match="0"):
            async for _ in _in_order(ask, _taken(range(4)), 4):
                pass
        gc.collect()
        await asyncio.sleep(0)
        return forgotten

    assert asyncio.run(main()) == []


def test_a_source_that_is_cancelled_is_not_waited_for() -> None:
    async def camera() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async def main() -> None:
        async def ask(number: int) -> int:
            return number

        found = _in_order(ask, camera(), 3)
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                async for _ in found:
                    pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())


def test_metadata_that_another_discards_meanwhile_is_still_returned(obfuscator_bundle: Bundle) -> None:
    async def main(it: AsyncClient) -> None:
        def discarding(_: Any) -> str:
            it._metadata = None
            return "match"

        it._match = discarding  # type: ignore[assignment,method-assign]
        assert (await it.metadata()).name == "tiny"

    with recording() as server:
        run(server, obfuscator_bundle, main)


def test_a_source_that_waits_keeps_no_core_from_others(
    obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    more = threading.Event()

    def camera() -> Iterator[Any]:
        assert more.wait(5)
        yield IMAGES[0]

    async def main(it: AsyncClient) -> None:
        waiting = asyncio.create_task(it.classify_batch(camera()))
        await asyncio.sleep(0.02)
        async with asyncio.timeout(3):
            await it.classify(IMAGES[1])
        more.set()
        assert len(await waiting) == 1

    with recording() as server:
        run(server, obfuscator_bundle, main)


# --- the extra ------------------------------------------------------------------------------------


def test_without_the_extra_it_says_what_to_install(obfuscator_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "sfumato.device.aiohttp_transport", raising=False)
    with pytest.raises(EndpointError, match=r"pip install 'sfumato\[async\]'"):
        AsyncClient("http://localhost:1", obfuscator_bundle)


def test_the_blocking_client_loads_nothing_of_it() -> None:
    code = "import sys; from sfumato.device import Client; print({'asyncio', 'aiohttp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [("grpc://localhost:1", {}, "no gRPC"), ("http://localhost:1", {"in_flight": 0}, "in_flight must be at least 1")],
)
def test_what_it_cannot_do_is_refused_at_once(
    url: str, options: dict[str, Any], said: str, obfuscator_bundle: Bundle
) -> None:
    with pytest.raises(EndpointError, match=said):
        AsyncClient(url, obfuscator_bundle, **options)

"""Many images at once: in order, bounded, and silent about the image however it ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from recording import (
    Exchange,
    RecordingServer,
    client,
    expected_probabilities,
    leaked,
    metadata,
    recording,
    respond_well,
)
from sfumato.artifacts.bundle import Bundle
from sfumato.device import FingerprintWarning
from sfumato.device.concurrent import in_order
from sfumato.errors import EndpointError, EndpointFailed, EndpointUnreachable, ImageError
from tiny import image, sure_image, unsure_image

IMAGES = [image(seed) for seed in range(12)]


def wait_until(true: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def leaks_any(recorded: bytes) -> set[str]:
    return set().union(*(leaked(recorded, pixels) for pixels in IMAGES))


def test_answers_come_in_the_order_of_the_images_whoever_is_first() -> None:
    slowest_first = in_order(lambda n: time.sleep(0.02 * (4 - n)) or n, range(5), in_flight=5)
    assert list(slowest_first) == [0, 1, 2, 3, 4]


def test_round_trips_are_not_waited_for_in_turn() -> None:
    """All eight have to be underway before any is answered."""
    together = threading.Barrier(8, timeout=5)
    assert list(in_order(lambda n: together.wait() * 0 + n, range(16), in_flight=8)) == list(range(16))


def test_no_more_are_taken_than_may_be_underway() -> None:
    taken: list[int] = []

    def camera() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    predictions = in_order(lambda n: n, camera(), in_flight=3)
    assert [next(predictions), next(predictions)] == [0, 1]
    wait_until(lambda: len(taken) == 5)
    time.sleep(0.05)
    assert len(taken) == 5  # two looked at, three waiting
    predictions.close()
    time.sleep(0.05)
    assert len(taken) == 5


def test_a_camera_that_has_nothing_new_holds_up_no_answer() -> None:
    more = threading.Event()

    def camera() -> Iterator[int]:
        yield 1
        assert more.wait(5)
        yield 2

    predictions = in_order(lambda n: n, camera(), in_flight=4)
    assert next(predictions) == 1
    more.set()
    assert list(predictions) == [2]


def test_an_error_comes_at_its_place_and_ends_it() -> None:
    begun: list[int] = []

    def ask(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ImageError("no image")
        return number

    predictions = in_order(ask, itertools.count(), in_flight=2)
    assert [next(predictions), next(predictions)] == [0, 1]
    with pytest.raises(ImageError):
        next(predictions)
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count <= 4 and list(predictions) == []


def test_an_error_of_the_camera_comes_after_the_answers_before_it() -> None:
    def camera() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    predictions = in_order(lambda n: n, camera(), in_flight=4)
    assert next(predictions) == 1
    with pytest.raises(OSError, match="unplugged"):
        next(predictions)


@pytest.mark.usefixtures("both_clients")
def test_at_least_one(obfuscator_bundle: Bundle) -> None:
    with (
        recording() as server,
        client(server, obfuscator_bundle) as it,
        pytest.raises(EndpointError, match="in_flight"),
    ):
        it.classify_many(IMAGES, in_flight=0)


@pytest.mark.usefixtures("both_clients")
def test_a_client_answers_many(obfuscator_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with recording() as server, client(server, obfuscator_bundle) as it:
        predictions = list(it.classify_many(iter(IMAGES), in_flight=4))
        assert list(it.classify_many([])) == []
    for prediction, pixels in zip(predictions, IMAGES, strict=True):
        np.testing.assert_allclose(prediction.probabilities, expected_probabilities(pixels), atol=1e-4)
    assert leaks_any(server.recorded) == set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("both_clients")
def test_images_handled_on_device_are_not_sent(gated_bundle: Bundle) -> None:
    with recording() as server, client(server, gated_bundle) as it:
        predictions = it.classify_many([sure_image(1), unsure_image(), sure_image(2)])
        assert [prediction.predicted_by for prediction in predictions] == ["device", "cloud", "device"]
    assert sum(path.endswith("infer") for path in server.paths) == 1


@pytest.mark.usefixtures("both_clients")
def test_another_classifier_is_said_once(obfuscator_bundle: Bundle) -> None:
    told = metadata(parameters={"fingerprint": "sha256:0"})
    with (
        recording(tiny=lambda e: e.reply(200, told)) as server,
        client(server, obfuscator_bundle) as it,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        list(it.classify_many(IMAGES, in_flight=1))
    assert [w.category for w in caught] == [FingerprintWarning]


def dies_after(requests: int) -> Any:
    left = itertools.count(requests, -1)

    def behave(exchange: Exchange) -> None:
        if next(left) > 0:
            respond_well(exchange)
        else:
            exchange.reply(500)

    return behave


def is_quiet(server: RecordingServer) -> bool:
    """Whether no request is made in the background any more; what was sent before may still arrive at first."""
    time.sleep(0.1)
    count = len(server.paths)
    time.sleep(0.1)
    return len(server.paths) == count


@pytest.mark.usefixtures("both_clients")
def test_a_server_that_dies_half_way(obfuscator_bundle: Bundle) -> None:
    answered = []
    with recording(infer=dies_after(5)) as server, client(server, obfuscator_bundle) as it:
        with pytest.raises(EndpointFailed):
            for prediction in it.classify_many(itertools.cycle(IMAGES), in_flight=3):
                answered.append(prediction)
        assert is_quiet(server)
    assert len(answered) <= 5 and len(server.paths) <= 2 * 3 + 5 + 3
    assert leaks_any(server.recorded) == set()


@pytest.mark.usefixtures("both_clients")
def test_one_that_never_answers_costs_one_timeout_and_not_one_for_each(obfuscator_bundle: Bundle) -> None:
    def silent(exchange: Exchange) -> None:
        time.sleep(1.5)

    with recording(tiny=silent) as server, client(server, obfuscator_bundle, timeout_s=0.3) as it:
        start = time.monotonic()
        with pytest.raises(EndpointUnreachable):
            list(it.classify_many(IMAGES, in_flight=4))
        assert time.monotonic() - start < 1.2
    assert leaks_any(server.recorded) == set()


@pytest.mark.usefixtures("both_clients")
def test_ending_early_waits_for_what_is_underway_and_sends_no_more(obfuscator_bundle: Bundle) -> None:
    with recording() as server, client(server, obfuscator_bundle) as it:
        predictions = it.classify_many(itertools.cycle(IMAGES), in_flight=3)
        next(predictions)
        predictions.close()  # type: ignore[attr-defined]
        assert is_quiet(server)
    assert leaks_any(server.recorded) == set()


def test_a_cancelled_task_sends_nothing_but_what_it_would_have(obfuscator_bundle: Bundle) -> None:
    arrived, go = threading.Event(), threading.Event()

    def held(exchange: Exchange) -> None:
        arrived.set()
        go.wait(5)
        respond_well(exchange)

    async def main(it: Any) -> None:
        task = asyncio.create_task(asyncio.to_thread(it.classify, IMAGES[0]))
        await asyncio.to_thread(arrived.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        predictions = await asyncio.gather(*(asyncio.to_thread(it.classify, pixels) for pixels in IMAGES))
        assert [a.index for a in predictions] == [expected_probabilities(pixels).argmax() for pixels in IMAGES]

    with recording(infer=held) as server, client(server, obfuscator_bundle) as it:
        asyncio.run(main(it))
    assert leaks_any(server.recorded) == set()

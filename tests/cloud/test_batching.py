"""The batcher: every request gets its own result, and no request fails because of another."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from sfumato.cloud.batching import Arrays, Batcher
from sfumato.errors import ModelFailed, Overloaded


class Doubler:
    """A model that doubles, remembers its batch sizes, fails on negative numbers, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, inputs: Arrays) -> Arrays:
        self.go.wait(5)
        (x,) = inputs
        self.batches.append(len(x))
        if (x < 0).any():
            raise RuntimeError("negative")
        return (x * 2, x.sum(axis=tuple(range(1, x.ndim))))


def rows(*values: float, width: int = 2) -> Arrays:
    return (np.repeat(np.array(values, np.float32)[:, None], width, axis=1),)


async def submit(batcher: Batcher, job: Arrays) -> Arrays:
    return await batcher.enqueue(job)


async def submit_all(batcher: Batcher, jobs: list[Arrays]) -> list[Any]:
    results = await asyncio.gather(*(submit(batcher, job) for job in jobs), return_exceptions=True)
    await batcher.close()
    return results


def test_everybody_gets_his_own_answer() -> None:
    model = Doubler()
    jobs = [rows(*range(i, i + 1 + i % 3)) for i in range(50)]

    async def run() -> list[Any]:
        return await submit_all(Batcher(model, max_batch=8), jobs)

    for (x,), (doubled, summed) in zip(jobs, asyncio.run(run()), strict=True):
        np.testing.assert_array_equal(doubled, x * 2)
        np.testing.assert_array_equal(summed, x.sum(axis=1))
    assert max(model.batches) == 8
    assert len(model.batches) < 50


def test_a_request_larger_than_the_batch_is_sliced() -> None:
    model = Doubler()

    async def run() -> list[Any]:
        return await submit_all(Batcher(model, max_batch=4), [rows(*range(11))])

    ((doubled, _),) = asyncio.run(run())
    np.testing.assert_array_equal(doubled[:, 0], np.arange(11) * 2)
    assert model.batches == [4, 4, 3]


def test_shapes_that_differ_are_not_joined() -> None:
    model = Doubler()
    jobs = [rows(1), rows(2, width=3), rows(3, width=3), rows(4)]

    async def run() -> list[Any]:
        return await submit_all(Batcher(model), jobs)

    results = asyncio.run(run())
    assert [result[0].shape for result in results] == [(1, 2), (1, 3), (1, 3), (1, 2)]
    assert model.batches == [1, 2, 1]


def test_one_bad_request_does_not_fail_its_neighbours() -> None:
    jobs = [rows(1), rows(-1), rows(3)]

    async def run() -> list[Any]:
        return await submit_all(Batcher(Doubler()), jobs)

    first, bad, last = asyncio.run(run())
    assert (first[0][0, 0], last[0][0, 0]) == (2, 6)
    assert isinstance(bad, ModelFailed)
    assert "negative" not in str(bad)


def test_an_output_without_rows_is_run_one_by_one() -> None:
    async def run() -> list[Any]:
        return await submit_all(Batcher(lambda inputs: (inputs[0].sum(axis=0),)), [rows(1, width=3), rows(2, width=3)])

    assert [result[0].tolist() for result in asyncio.run(run())] == [[1, 1, 1], [2, 2, 2]]


def test_without_a_batch_axis_nothing_is_joined_or_sliced() -> None:
    model = Doubler()

    async def run() -> list[Any]:
        return await submit_all(Batcher(model, max_batch=None), [rows(*range(40)), rows(1)])

    asyncio.run(run())
    assert model.batches == [40, 1]


def test_a_full_queue_refuses_at_once_and_answers_the_others() -> None:
    model = Doubler()
    model.go.clear()

    async def run() -> list[Any]:
        batcher = Batcher(model, max_batch=1, max_queue=2)
        waiting = []
        for i in range(6):
            waiting.append(asyncio.create_task(submit(batcher, rows(i))))
            await asyncio.sleep(0.01)
        model.go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        await batcher.close()
        return results

    results = asyncio.run(run())
    assert [isinstance(result, Overloaded) for result in results] == [False, False, False, True, True, True]


def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    async def run() -> list[Any]:
        batcher = Batcher(Doubler(), max_batch=1)
        waiting = [asyncio.create_task(submit(batcher, rows(i))) for i in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        with pytest.raises(Overloaded):
            await submit(batcher, rows(1))
        return await asyncio.gather(*waiting)

    assert [result[0][0, 0] for result in asyncio.run(run())] == [0, 2, 4, 6, 8]


def test_who_has_gone_is_skipped() -> None:
    model = Doubler()
    model.go.clear()

    async def run() -> None:
        batcher = Batcher(model, max_batch=1)
        tasks = [asyncio.create_task(submit(batcher, rows(i))) for i in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        model.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.close()

    asyncio.run(run())
    assert len(model.batches) == 2


def test_waiting_for_company() -> None:
    model = Doubler()

    async def run() -> None:
        batcher = Batcher(model, max_wait_ms=300)
        first = asyncio.create_task(submit(batcher, rows(1)))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, submit(batcher, rows(2)))
        await batcher.close()

    asyncio.run(run())
    assert model.batches == [2]


def test_rows_that_wait_are_bounded() -> None:
    model = Doubler()
    model.go.clear()

    async def run() -> list[Any]:
        batcher = Batcher(model, max_queue_rows=10)
        waiting = [asyncio.create_task(submit(batcher, rows(0)))]
        await asyncio.sleep(0.05)  # that one is with the model
        waiting += [asyncio.create_task(submit(batcher, rows(*range(n)))) for n in (20, 1, 1)]
        await asyncio.sleep(0.05)
        assert batcher.queue == (1, 20), "one alone may be larger"
        model.go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        await batcher.close()
        return results

    assert [isinstance(result, Overloaded) for result in asyncio.run(run())] == [False, False, True, True]


def test_a_tiny_model_runs_in_the_event_loop_but_never_more_than_a_batch() -> None:
    threads: list[bool] = []

    def model(inputs: Arrays) -> Arrays:
        threads.append(threading.current_thread() is threading.main_thread())
        return inputs

    async def run() -> list[Any]:
        return await submit_all(Batcher(model, max_batch=4, inline=True), [rows(1), rows(2), rows(*range(5))])

    assert [len(result[0]) for result in asyncio.run(run())] == [1, 1, 5]
    assert threads == [True, False, False]

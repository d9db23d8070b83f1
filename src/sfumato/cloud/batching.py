"""Micro-batching: requests that wait at the same time go through the model together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.cloud.errors import ModelFailed, Overloaded

log = logging.getLogger(__name__)

Arrays = tuple[NDArray[Any], ...]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, eq=False)
class _Job:
    inputs: Arrays
    answer: asyncio.Future[Arrays]

    @property
    def rows(self) -> int:
        return self.inputs[0].shape[0] if self.inputs[0].ndim else 1

    def fits(self, other: _Job) -> bool:
        """Whether both can be joined along the first axis."""
        return all(a.shape[1:] == b.shape[1:] for a, b in zip(self.inputs, other.inputs, strict=True))


class Batcher:
    """Runs a model in one thread, on as many waiting requests at once as fit together.

    While the model is busy, requests gather; when it is free, it takes what is there. So a lone request
    never waits for company, and the batch grows by itself as the load does.

    Args:
        run: the model: arrays whose first axis is the batch, to arrays whose first axis is the batch.
            Rows must not influence each other. It is called in a thread, one call at a time.
        max_batch: rows in one run. A request with more is run in slices. 1 joins nothing; None neither joins nor
            slices, for a model whose first axis is not a batch.
        max_wait_ms: how long a request that is alone waits for others; 0 is best unless the model is much
            faster on full batches.
        max_queue: requests that may wait; further ones are refused at once.
    """

    def __init__(self, run: Run, *, max_batch: int | None = 32, max_wait_ms: float = 0.0, max_queue: int = 256) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1000
        self._max_queue = max_queue
        self._waiting: deque[_Job] = deque()
        self._arrival = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sfumato-model")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, inputs: Arrays) -> Arrays:
        """Waits for the model's answer to one request.

        Args:
            inputs: at least one array; the first axis of each is the batch.

        Raises:
            Overloaded: the queue is full, or the batcher is closing.
            ModelFailed: the model broke on this request.
        """
        if self._closing:
            raise Overloaded("the server is shutting down; try another one")
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already; try again later")
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        job = _Job(inputs, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrival.set()
        return await job.answer

    async def close(self) -> None:
        """Refuses new requests, answers those that wait, then stops."""
        self._closing = True
        self._arrival.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or not self._closing:
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
                continue
            if self._max_wait_s and len(self._waiting) == 1:
                await asyncio.sleep(self._max_wait_s)
            jobs = self._take()
            if jobs:
                results = await loop.run_in_executor(self._thread, self._answer, jobs)
                _deliver(jobs, results)

    def _take(self) -> list[_Job]:
        """The next jobs that can run together, in the order of their arrival."""
        jobs: list[_Job] = []
        rows = 0
        while self._waiting:
            job = self._waiting[0]
            if jobs and not self._may_join(jobs[0], job, rows):
                break
            self._waiting.popleft()
            if not job.answer.done():  # the client may have gone
                jobs.append(job)
                rows += job.rows
        return jobs

    def _may_join(self, first: _Job, job: _Job, rows: int) -> bool:
        return self._max_batch is not None and rows + job.rows <= self._max_batch and first.fits(job)

    def _answer(self, jobs: Sequence[_Job]) -> list[Arrays | Exception]:
        """Runs in the thread. Each job gets its own result or its own error."""
        if len(jobs) > 1:
            try:
                return _split(self._run(_join(jobs)), [job.rows for job in jobs])
            except Exception as error:
                # One of them may be to blame; alone, the others still get their answers.
                log.warning("a batch of %d requests failed (%s); running them one by one", len(jobs), _kind(error))
        return [self._answer_alone(job) for job in jobs]

    def _answer_alone(self, job: _Job) -> Arrays | Exception:
        try:
            if self._max_batch is None or job.rows <= self._max_batch:
                return self._run(job.inputs)
            starts = range(0, job.rows, self._max_batch)
            slices = [self._run(tuple(x[start : start + self._max_batch] for x in job.inputs)) for start in starts]
            return tuple(np.concatenate(parts) for parts in zip(*slices, strict=True))
        except Exception as error:
            log.warning("the model failed on a request (%s)", _kind(error))
            return error if isinstance(error, ModelFailed) else ModelFailed("the model failed on this request")


def _join(jobs: Sequence[_Job]) -> Arrays:
    return tuple(np.concatenate(parts) for parts in zip(*(job.inputs for job in jobs), strict=True))


def _split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays | Exception]:
    if any(output.shape[:1] != (sum(rows),) for output in outputs):
        raise ModelFailed("an output of the model does not have one row for each input row")
    ends = np.cumsum(rows)[:-1]
    return list(zip(*(np.split(output, ends) for output in outputs), strict=True))


def _deliver(jobs: Sequence[_Job], results: Sequence[Arrays | Exception]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.answer.done():
            continue
        if isinstance(result, Exception):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)


def _kind(error: Exception) -> str:
    # ONNX Runtime's messages may quote values; the class is enough for a log.
    return type(error).__name__

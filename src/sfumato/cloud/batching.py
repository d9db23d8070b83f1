"""Micro-batching: requests that wait at the same time run through the model together."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import ModelFailed, Overloaded

log = logging.getLogger(__name__)

Arrays = tuple[NDArray[Any], ...]
Run = Callable[[Arrays], Arrays]


class _Job:
    __slots__ = ("inputs", "result", "rows")

    def __init__(self, inputs: Arrays, result: asyncio.Future[Arrays]) -> None:
        self.inputs = inputs
        self.result = result
        self.rows = _rows(inputs)

    def fits(self, other: _Job) -> bool:
        """Return whether both can be joined along the first axis."""
        return all(a.shape[1:] == b.shape[1:] for a, b in zip(self.inputs, other.inputs, strict=True))


class Batcher:
    """Runs a model, one run at a time, on as many waiting requests at once as fit together.

    While the model is busy, requests gather; when it is free, it takes what is there. So a lone request
    never waits for others, and the batch grows with the load.

    Args:
        run: the model: arrays whose first axis is the batch, to arrays whose first axis is the batch.
            Rows must not influence each other.
        max_batch: rows in one run. A request with more is run in slices. 1 joins nothing; None neither joins nor
            slices, for a model whose first axis is not a batch.
        max_wait_ms: how long a lone request waits for others; 0 is best unless the model is much
            faster on full batches.
        max_queue: requests that may wait; further ones are refused at once.
        max_queue_rows: rows that may wait; a request that would make them more is refused, unless none waits.
        inline: whether runs of up to `max_batch` rows happen in the event loop. A thread's overhead is larger than a
            run of a tiny model; anything that takes longer has to run in the thread, or it blocks everything else.

    Attributes:
        runs: how many runs had up to 1, 2, 4, 8, ... rows: `runs[k]` counts those of more than 2 ** (k - 1).
        rows: rows in all runs.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int | None = 32,
        max_wait_ms: float = 0.0,
        max_queue: int = 256,
        max_queue_rows: int = 4096,
        inline: bool = False,
    ) -> None:
        self.runs: Counter[int] = Counter()
        self.rows = 0
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1000
        self._max_queue = max_queue
        self._max_queue_rows = max_queue_rows
        self._inline = inline and max_batch is not None
        self._waiting: deque[_Job] = deque()
        self._waiting_rows = 0
        self._busy = False
        self._idle: asyncio.Future[None] | None = None
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sfumato-model")

    @property
    def queue(self) -> tuple[int, int]:
        """The number of waiting requests, and of their rows."""
        return len(self._waiting), self._waiting_rows

    def refuse_if_full(self, rows: int = 1) -> None:
        """Refuse a request before anything costly is done for it.

        Raises:
            Overloaded: the queue is full, or the batcher is closing.
        """
        if self._closing:
            raise Overloaded("the server is shutting down; try another one")
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"{self._max_queue} requests are waiting already; try again later")
        if self._waiting and self._waiting_rows + rows > self._max_queue_rows:
            raise Overloaded(f"{self._waiting_rows} rows are waiting already; try again later")

    def enqueue(self, inputs: Arrays) -> asyncio.Future[Arrays]:
        """Queue one request for the model, and return at once what will have the outputs.

        Args:
            inputs: at least one array, whose first axis is the batch.

        Returns:
            A future of the outputs, or of `ModelFailed` if the model broke on this request.

        Raises:
            Overloaded: the queue is full, or the batcher is closing.
        """
        loop = asyncio.get_running_loop()
        job = _Job(inputs, loop.create_future())
        self.refuse_if_full(job.rows)
        self._waiting.append(job)
        self._waiting_rows += job.rows
        if not self._busy:
            self._busy = True
            # Not at once: whatever arrived in the same moment may join.
            if self._max_wait_s:
                loop.call_later(self._max_wait_s, self._start, loop)
            else:
                loop.call_soon(self._start, loop)
        return job.result

    async def close(self) -> None:
        """Refuse new requests, finish those that wait, then stop."""
        self._closing = True
        if self._busy:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self._thread.shutdown()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs = self._take()
        if not jobs:
            self._busy = False
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)
        elif self._inline and self._max_batch is not None and sum(job.rows for job in jobs) <= self._max_batch:
            _deliver(jobs, self._run_jobs(jobs))
            loop.call_soon(self._start, loop)
        else:
            running = self._thread.submit(self._run_jobs, jobs)
            running.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, loop, jobs, done.result()))

    def _finish(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job], results: list[Arrays | Exception]) -> None:
        # The next run starts before these results are written, so that the model never waits for that.
        self._start(loop)
        _deliver(jobs, results)

    def _take(self) -> list[_Job]:
        """Take the next jobs that can run together, in the order of their arrival."""
        jobs: list[_Job] = []
        rows = 0
        while self._waiting:
            job = self._waiting[0]
            if jobs and not (self._max_batch and rows + job.rows <= self._max_batch and jobs[0].fits(job)):
                break
            self._waiting.popleft()
            self._waiting_rows -= job.rows
            if not job.result.done():  # the client may have hung up
                jobs.append(job)
                rows += job.rows
        return jobs

    def _run_jobs(self, jobs: Sequence[_Job]) -> list[Arrays | Exception]:
        """Return each job's own result or error. Runs in the thread, unless the model is tiny."""
        if len(jobs) > 1:
            try:
                joined = tuple(np.concatenate(parts) for parts in zip(*(job.inputs for job in jobs), strict=True))
                return _split(self._counted(joined), [job.rows for job in jobs])
            except Exception as error:
                # One of them may be to blame; alone, the others still get their results. ONNX Runtime's messages may
                # quote values; the class is enough for a log.
                kind = type(error).__name__
                log.warning("a batch of %d requests failed (%s); running them one by one", len(jobs), kind)
        return [self._run_alone(job) for job in jobs]

    def _run_alone(self, job: _Job) -> Arrays | Exception:
        try:
            if self._max_batch is None or job.rows <= self._max_batch:
                return self._counted(job.inputs)
            starts = range(0, job.rows, self._max_batch)
            slices = [self._counted(tuple(x[start : start + self._max_batch] for x in job.inputs)) for start in starts]
            return tuple(np.concatenate(parts) for parts in zip(*slices, strict=True))
        except Exception as error:
            log.warning("the model failed on a request (%s)", type(error).__name__)
            return error if isinstance(error, ModelFailed) else ModelFailed("the model failed on this request")

    def _counted(self, inputs: Arrays) -> Arrays:
        rows = _rows(inputs)
        self.runs[max(rows - 1, 0).bit_length()] += 1
        self.rows += rows
        return self._run(inputs)


def _rows(inputs: Arrays) -> int:
    return inputs[0].shape[0] if inputs[0].ndim else 1


def _split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays | Exception]:
    if any(output.shape[:1] != (sum(rows),) for output in outputs):
        raise ModelFailed("an output of the model does not have one row for each input row")
    ends = list(accumulate(rows))
    return [tuple(output[end - count : end] for output in outputs) for end, count in zip(ends, rows, strict=True)]


def _deliver(jobs: Sequence[_Job], results: Sequence[Arrays | Exception]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.result.done():
            continue
        if isinstance(result, Exception):
            job.result.set_exception(result)
        else:
            job.result.set_result(result)

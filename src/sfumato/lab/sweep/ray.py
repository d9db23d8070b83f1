"""The points of a sweep as trials of Ray Tune: several at once, on this machine or on a cluster.

A trial keeps its state where every training and audit keeps it, in the point's own folder. A worker that dies resumes
there, and an interrupted sweep starts with the points that are missing. `Tuner.restore` would do no more, and it
unpickles the experiment's folder, which is unsafe for a folder from elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sfumato.errors import Interrupted, SfumatoError
from sfumato.lab.libraries import first_line
from sfumato.lab.sweep.jobs import Job, Make
from sfumato.progress import Say

_ATTEMPTS = 3
"""How often a trial resumes after its worker died."""
_LOOPBACK = "127.0.0.1"
_PASSED_ON = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@dataclass(frozen=True)
class RayEngine:
    """Makes points as trials, see `sfumato.lab.sweep.jobs.Engine`; made by `sfumato.lab.sweep.run.on_ray`.

    Attributes:
        storage: folder of Ray Tune's own logs; on a cluster, like the points' folders, on a disk that all share.
        parallel: points at once, at most; None for as many as fit.
        cpus: processor cores for each.
        gpus: GPUs for each, may be a fraction; None for one if there are any.
        address: of a running cluster; None starts Ray on this machine alone, and ends it with the sweep.
    """

    storage: Path
    parallel: int | None = None
    cpus: float = 1
    gpus: float | None = None
    address: str | None = None

    def __call__(self, jobs: Sequence[Job], make: Make, say: Say) -> dict[str, str]:
        """Make points; see `Engine`.

        Raises:
            SfumatoError: Ray cannot start, or the cluster is unreachable or too small for a trial.
            Interrupted: Ctrl-C; each point loses at most a minute of training, or the attacker at work.
        """
        try:
            self._start()
            return self._run(jobs, make, say)
        finally:
            ray.shutdown()

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors are reported by `_Reporter` and in the result
        try:
            ray.init(
                self.address or "local",
                include_dashboard=False if self.address is None else None,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except Exception as error:  # a plain one where its own processes were too slow to start
            raise SfumatoError(f"Ray cannot start at {self.address or 'this machine'}: {first_line(error)}") from error
        if self.address is None and (bound := ray.util.get_node_ip_address()) != _LOOPBACK:
            raise SfumatoError(f"Ray listens on {bound}, not on {_LOOPBACK} alone: it was imported before the sweep")
        have = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus or 0)):
            if wanted > have.get(name, 0):
                raise SfumatoError(f"each point wants {wanted:g} {name}s, Ray has {have.get(name, 0):g} in all")

    def _run(self, jobs: Sequence[Job], make: Make, say: Say) -> dict[str, str]:
        gpus = self.gpus if self.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        tuner = tune.Tuner(
            tune.with_resources(_trial(jobs, make, Path.cwd()), {"cpu": self.cpus, "gpu": gpus}),
            param_space={"point": tune.grid_search([job.name for job in jobs])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=self.parallel,
                trial_name_creator=lambda trial: str(trial.config["point"]),
                trial_dirname_creator=lambda trial: f"{trial.config['point']}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                storage_path=str(self.storage.absolute()),
                failure_config=tune.FailureConfig(max_failures=_ATTEMPTS),
                callbacks=[_Reporter(say, len(jobs))],
                log_to_file=True,
                verbose=0,
            ),
        )
        results = tuner.fit()
        outcomes = {str(result.config["point"]): result for result in results if result.config}
        failed: dict[str, str] = {}
        for job in jobs:
            result = outcomes.get(job.name)
            if result is not None and result.error is not None:
                failed[job.name] = f"its worker failed {_ATTEMPTS + 1} times: {first_line(result.error)}"
            elif result is None or not result.metrics or "failure" not in result.metrics:
                raise Interrupted("interrupted")
            elif result.metrics["failure"]:
                failed[job.name] = str(result.metrics["failure"])
        return failed


def _trial(jobs: Sequence[Job], make: Make, here: Path) -> Callable[[dict[str, str]], None]:
    """Return what a worker runs: it makes the point of a given name."""
    by_name = {job.name: job for job in jobs}

    def trial(config: dict[str, str]) -> None:
        try:
            os.chdir(here)  # paths in recipes are from where the command is run
        except OSError as error:
            failure = f"{here} is not there on {os.uname().nodename} ({error.strerror}); a cluster's machines share it"
            tune.report({"failure": failure})
            return
        try:
            make(by_name[config["point"]])
        except SfumatoError as error:
            tune.report({"failure": str(error) or type(error).__name__})  # it would fail again
            return
        tune.report({"failure": ""})

    return trial


class _Reporter(tune.Callback):  # type: ignore[misc, unused-ignore]
    """Reports how far the sweep is."""

    def __init__(self, say: Say, count: int) -> None:
        self._say, self._count, self._ended = say, count, 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a worker began, or resumed after one that died."""
        again = f", attempt {trial.num_failures + 1}" if trial.num_failures else ""
        self._say(f"{trial.config['point']}: started{again}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial ended, possibly with an error."""
        self._ended += 1
        failure = (trial.last_result or {}).get("failure")
        end = f"failed: {failure}" if failure else "done"
        self._say(f"[{self._ended}/{self._count}] {trial.config['point']}: {end}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a worker died too often."""
        self._ended += 1
        self._say(f"[{self._ended}/{self._count}] {trial.config['point']}: given up, its worker died repeatedly")

"""Two tiny points as trials of Ray Tune; one worker is killed in the middle of its training."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from sfumato.errors import SfumatoError
from sfumato.lab.runs.trainings import state_of
from sfumato.lab.sweep.jobs import Job
from sfumato.lab.sweep.run import on_ray
from sfumato.lab.training import Run
from sfumato.lab.training.recipe import parse_recipe
from synthetic import save_folder

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra: pip install 'sfumato[ray]'"),
]


def job(name, folder, images, epochs=2):
    """A training alone: what is attacked afterwards is no matter of the engine's."""
    recipe = {"kind": "classifier", "name": name, "architecture": "resnet20", "data": {"source": str(images)}}
    recipe["training"] = {"epochs": epochs, "batch_size": 8, "schedule": "constant"}
    return Job(name, parse_recipe(recipe), Run(folder / name))


def test_a_killed_worker_goes_on_where_it_was_and_what_fails_is_told(tmp_path, own_caches):
    images = save_folder(tmp_path / "images", train=40, test=20)
    seen = tmp_path / "seen"
    seen.mkdir()

    def make(job):  # in the worker; pickled with what it refers to
        import os
        import signal

        from sfumato.errors import TrainingError
        from sfumato.lab.runs.trainings import state_of
        from sfumato.lab.sweep.jobs import make
        from sfumato.lab.training import engine

        if job.name == "bad":
            raise TrainingError("the loss is nan")
        attempt = len(list(seen.glob(f"{job.name}-*")))
        (seen / f"{job.name}-{attempt}").write_text(f"{os.getpid()} {state_of(job.run)}")
        augment, steps = engine.augment, []

        def deadly(*arguments):
            steps.append(1)
            if len(steps) == 7:  # in the second epoch: there are 5 steps in each
                os.kill(os.getpid(), signal.SIGKILL)
            return augment(*arguments)

        if job.name == "killed" and attempt == 0:
            engine.augment = deadly
        make(job)

    lines: list[str] = []
    jobs = [job(name, tmp_path / "points", images) for name in ("killed", "bad")]
    failed = on_ray(tmp_path / "ray", parallel=2, cpus=0.5)(jobs, make, lines.append)
    assert failed == {"bad": "the loss is nan"}
    assert state_of(Run(tmp_path / "points" / "killed")).name == "done"
    (first, second) = [(seen / f"killed-{attempt}").read_text() for attempt in (0, 1)]
    assert "name='missing'" in first and "name='half done', epochs=1" in second
    assert first.split()[0] != second.split()[0], "the second attempt is another process"
    assert any("attempt 2" in line for line in lines) and any("bad: failed: the loss is nan" in line for line in lines)


def test_more_than_there_is_is_refused(tmp_path):
    with pytest.raises(SfumatoError, match="each point wants 1e\\+06 CPUs"):
        on_ray(tmp_path, cpus=1_000_000)([], lambda job: None, lambda line: None)

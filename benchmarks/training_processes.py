"""Times a recipe's training with one process and with two, in turn, in one run.

`python benchmarks/training_processes.py` writes results/training-processes.json; `--quick` tries it and writes nothing.

Each run is `sfumato train` itself, the paper's obfuscator against the shipped ResNet20 on random images that are made
here; what is timed are its steps, not its start: a run of few epochs is taken off one of more.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance

BATCH, IMAGES, EPOCHS, ROUNDS = 128, 1280, 2, 3
SETTINGS = {"1 process x 1 thread": (1, 1), "1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}


def main(
    out: Path | None,
    *,
    images: int = IMAGES,
    batch: int = BATCH,
    rounds: int = ROUNDS,
) -> None:
    found: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        recipe = _prepared(Path(folder), images, batch)
        for _ in range(rounds):
            for name, (processes, threads) in SETTINGS.items():
                seconds = _training_s(Path(folder), recipe, processes, threads)
                found[name].append(images // batch * batch * EPOCHS / seconds)
                print(f"{name}: {found[name][-1]:.1f} images/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in found.items()}
    first = medians["1 process x 1 thread"]
    result = {
        "what": f"sfumato train --devices, the paper's obfuscator, batch {batch} over all processes, 3x32x32, ResNet20",
        "images_per_s": medians,
        "of_one_process_and_thread": {name: value / first for name, value in medians.items()},
        "two_processes_of_two_threads": medians["2 processes x 1 thread"] / medians["1 process x 2 threads"],
        "all_images_per_s": found,
        "images": images,
        "epochs": EPOCHS,
        "measured": provenance().to_json(),
    }
    if out is not None:
        write_json(out, result)
    print(json.dumps({name: result[name] for name in ("images_per_s", "of_one_process_and_thread")}), "->", out)


def _prepared(folder: Path, images: int, batch: int) -> Path:
    """Random images in folders by class, and the recipe."""
    random, labels = np.random.default_rng(0), _labels()
    for split, count in (("train", images), ("test", len(labels))):
        for number in range(count):
            home = folder / "images" / split / labels[number % len(labels)]
            home.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / f"{number}.png")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"""
kind = "obfuscator"
name = "timed"
classifier = "{shipped.classifier_bundle()}"
privacy_weight = 1.0

[data]
source = "{folder / "images"}"
size = [32, 32]

[training]
epochs = {EPOCHS}
batch_size = {batch}
learning_rate = 1e-3
seed = 0
""",
        encoding="utf-8",
    )
    return recipe


def _labels() -> tuple[str, ...]:
    return Bundle.load(shipped.classifier_bundle()).labels


def _training_s(folder: Path, recipe: Path, processes: int, threads: int) -> float:
    """Return the seconds of the steps, from the run's own output."""
    run = folder / "run"
    command = [sys.executable, "-m", "sfumato", "train", str(recipe), "-o", str(run), "--overwrite"]
    command += ["--accelerator", "cpu", "--devices", str(processes), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return Bundle.load(run / "bundle").provenance.training_seconds or 0.0


def command(out: Path = Path("results/training-processes.json"), *, quick: bool = False) -> None:
    """Measure, and write the results file; with `--quick`, try it and write nothing."""
    if quick:
        main(None, images=32, batch=8, rounds=1)
    else:
        main(out)


if __name__ == "__main__":
    typer.run(command)

"""Time the shipped obfuscators under ExecuTorch and ONNX Runtime: one image, one thread, alternating in one run.

`make mobile` writes results/mobile-runtimes.json; it needs the extra `executorch`, and reports if that is missing.

Both are called from Python, each in its own way: ONNX Runtime takes and gives numpy arrays, ExecuTorch torch tensors.
What is counted is the thread's processor time. Outputs are compared on all test images; `SFUMATO_CIFAR10` names them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from timing import time_in_turn

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.lab.data import load_images
from sfumato.lab.export.executorch import ExecutorchFunction, export_executorch

WARM_UP, ROUNDS, REPEATS = 20, 100, 5


def main(out: Path = Path("results/mobile-runtimes.json"), test_images: int = 10_000, rounds: int = ROUNDS) -> None:
    """Measure, and write the results file."""
    if find_spec("executorch") is None:
        print("left out: ExecuTorch is not installed; run: pip install 'sfumato[executorch]'")
        return
    use_one_thread()
    raw = load_images("cifar10", "test").subset(test_images).images
    images = raw.numpy().astype(np.float32) / np.float32(255)
    classify = OnnxFunction(shipped.classifier_bundle() / CLASSIFIER_ONNX, threads=1)
    rows: dict[str, Any] = {}
    for folder in (shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()):
        rows[folder.name] = row = measured(Bundle.load(folder), images, classify, rounds)
        milliseconds, share, apart = (
            row["median_ms"]["executorch"],
            row["time_of_onnxruntime"],
            row["compared"]["largest_difference"],
        )
        print(f"{folder.name}: {milliseconds:.3f} ms, {share:.2f} of ONNX Runtime's; outputs differ by {apart:.1e}")
    write_json(
        out,
        {
            "what": "one 3x32x32 image, one thread, float32, called from Python; processor time of the thread",
            "obfuscators": rows,
            "rounds": rounds,
            "repeats_per_round": REPEATS,
            "measured": {**provenance().to_json(), "executorch": version("executorch")},
        },
    )
    print(out)


def use_one_thread() -> None:
    """ExecuTorch's pool, which has a thread for each core, as it does not belong to the thread that is timed."""
    from executorch.extension.pybindings import portable_lib

    torch.set_num_threads(1)
    portable_lib._unsafe_reset_threadpool(1)
    if portable_lib._threadpool_get_thread_count() != 1:
        raise SystemExit("ExecuTorch does not run on one thread; nothing was measured")


def measured(bundle: Bundle, images: np.ndarray, classify: OnnxFunction, rounds: int) -> dict[str, Any]:
    """File sizes, times and differences of one obfuscator under both."""
    onnx_file = bundle.file(OBFUSCATOR_ONNX)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "obfuscator.pte"
        compared = export_executorch(bundle, program, images, classify=classify)
        megabytes = {"onnxruntime": onnx_file.stat().st_size / 1e6, "executorch": program.stat().st_size / 1e6}
        calls = {
            "onnxruntime": partial(OnnxFunction(onnx_file, threads=1).all, images[:1]),
            "executorch": partial(ExecutorchFunction(program).one, torch.from_numpy(images[:1])),
        }
        times = time_in_turn(calls, warm_up=WARM_UP, rounds=rounds, repeats=REPEATS, settle=2, clock=time.thread_time)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "megabytes": megabytes,
        "median_ms": medians,
        "time_of_onnxruntime": medians["executorch"] / medians["onnxruntime"],
        "time_of_onnxruntime_by_minima": min(times["executorch"]) / min(times["onnxruntime"]),
        "spread_ms": {name: [min(values), max(values)] for name, values in times.items()},
        "compared": asdict(compared),
    }


if __name__ == "__main__":
    typer.run(main)

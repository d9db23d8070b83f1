"""Time on-device classification and offloading, alternating in one process that has the device's side alone.

`python offload.py FOLDER WARM_UP ROUNDS` with the bundles that `run.py` made; it prints one line of JSON. The server is
`sfumato serve`, as a process of its own, on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "interop")]

from memory import peak_mb  # noqa: E402
from relay import relayed  # noqa: E402
from timing import time_in_turn  # noqa: E402

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle  # noqa: E402
from sfumato.artifacts.onnx_file import OnnxFunction  # noqa: E402
from sfumato.device import Client  # noqa: E402
from sfumato.device.endpoints import open_endpoint  # noqa: E402
from sfumato.device.image import load_image, prepare  # noqa: E402
from sfumato.device.predictions import read_predictions  # noqa: E402
from sfumato.wire import Tensor  # noqa: E402


class Plain:
    """Offload as `Client` does, but without an obfuscator: the plain image is sent in the same way."""

    def __init__(self, url: str, served: Bundle) -> None:
        self._bundle, self._endpoint = served, open_endpoint(url)

    def classify(self, image: np.ndarray) -> Any:
        """Return the endpoint's predictions."""
        pixels = prepare(load_image(image), self._bundle.preprocessing)
        tensor = self._bundle.preprocessing.normalize(pixels)[None]
        asked = self._endpoint.infer(self._bundle.name, Tensor("input", tensor), "logits")
        return read_predictions(asked, output_name="logits", count=1, labels=self._bundle.labels, obfuscate_ms=0.0)[0]


def main(folder: Path, warm_up: int, rounds: int) -> None:
    served = Bundle.load(folder / "resnet18")
    image = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    local = {name: _local(Bundle.load(folder / name), image) for name in ("resnet18", "resnet-local")}
    with serving(folder / "resnet18") as (url, process):
        asking: dict[str, Callable[[str], Any]] = {
            "plain": lambda url: Plain(url, served),
            "paper": lambda url: Client(url, folder / "paper", gate=False),
            "sketch": lambda url: Client(url, folder / "sketch", gate=False),
        }
        counted = {name: _bytes(url, make, image) for name, make in asking.items()}
        things = {name: _bound(make(url), image) for name, make in asking.items()}
        times = time_in_turn({**local, **things}, warm_up=warm_up, rounds=rounds)
        memory = {"client": peak_mb(os.getpid()), "server": peak_mb(process.pid)}
    print(json.dumps({"times_ms": times, "bytes": counted, "peak_memory_mb": memory}))


def _local(bundle: Bundle, image: np.ndarray) -> Callable[[], object]:
    function = OnnxFunction(bundle.path / CLASSIFIER_ONNX, threads=1)

    def classify() -> object:
        pixels = prepare(load_image(image), bundle.preprocessing)
        return function(bundle.preprocessing.normalize(pixels)[None]).argmax()

    return classify


def _bound(client: Any, image: np.ndarray) -> Callable[[], object]:
    return lambda: client.classify(image)


def _bytes(url: str, make: Callable[[str], Any], image: np.ndarray) -> dict[str, int]:
    """Return the bytes of an image each way, headers included, after the connection and the model's metadata."""
    with relayed(url) as (near, sent, received):
        client = make(near)
        client.classify(image)
        sizes = []
        for _ in range(2):
            sizes.append((len(sent), len(received)))
            client.classify(image)
        return {"sent_bytes": sizes[1][0] - sizes[0][0], "received_bytes": sizes[1][1] - sizes[0][1]}


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`sfumato serve` on a free port, until the end of the block."""
    command = [sys.executable, "-u", "-m", "sfumato", "serve", str(bundle), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # it comes when the server responds
        if not line:
            raise RuntimeError(f"{' '.join(command)} did not start")
        yield json.loads(line)["url"], process
    finally:
        process.terminate()
        process.wait(120)  # Ray takes its time


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

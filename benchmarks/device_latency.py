"""Time the obfuscators and ResNet18, each for one image on one thread, alternating in one run.

`python benchmarks/device_latency.py` writes results/device-latency.json

All run under ONNX Runtime in float32. Weights are random, as they do not change the time; the sketches are the shipped
one and that for ResNet18. What is counted is the thread's processor time, so that other work on the machine disturbs
little. Some rows are there to say where the time goes; "relu" is no obfuscator of ours.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image
from timing import time_in_turn
from torch import nn

from sfumato import wire
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import write_json
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.device import Client
from sfumato.device.transport import Reply
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.models import Normalize, Obfuscator, Payload, build_classifier, cost

WARM_UP, ROUNDS, REPEATS = 20, 100, 5
SAYS = {
    "resnet18": "the classifier that all are compared with",
    "obfuscator": "the paper's obfuscator as it is exported",
    "obfuscator_in_training_order": "the same, each upsampling directly after its bottleneck",
    "obfuscator_in_paper_order": "the same, each upsampling before the projection, as the paper counts",
    "relu": "the exported obfuscator with ReLU for leaky ReLU: another function, to show what that costs",
    "sketch": "the shipped sketch, with the on-device prediction and the code",
    "resnet18_sketch": "the sketch for ResNet18 in results/resnet18-sketch, likewise",
    "classify": "Client.classify with the exported obfuscator: a 32x32 PNG decoded and checked, the request "
    "encoded, the response read; everything but the network",
}
OF_RESNET18 = Path("results/resnet18-sketch/bundle")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def main(out: Path = Path("results/device-latency.json"), rounds: int = ROUNDS) -> None:
    """Measure, and write the results file."""
    torch.manual_seed(0)
    normalize = Normalize(MEAN, STD)
    obfuscator, relu = Obfuscator(), Obfuscator()
    _use_relu(relu)
    nets = {
        "resnet18": build_classifier("resnet18"),
        "obfuscator": Payload(obfuscator, normalize, 32, 32),
        "obfuscator_in_training_order": nn.Sequential(obfuscator, normalize),
        "obfuscator_in_paper_order": nn.Sequential(Obfuscator(order="paper"), normalize),
        "relu": Payload(relu, normalize, 32, 32),
    }
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in nets}
        for name, net in nets.items():
            export_onnx(net, files[name], torch.rand(4, 3, 32, 32), input_name="image", output_name="out")
        files["sketch"] = shipped.obfuscator_bundle() / OBFUSCATOR_ONNX
        files["resnet18_sketch"] = OF_RESNET18 / OBFUSCATOR_ONNX
        calls: dict[str, Callable[[], object]] = {
            name: partial(OnnxFunction(file, threads=1), image) for name, file in files.items()
        }
        calls["classify"] = partial(_client(Path(folder), files["obfuscator"]).classify, _png(pixels))
        times = time_in_turn(calls, warm_up=WARM_UP, rounds=rounds, repeats=REPEATS, settle=2, clock=time.thread_time)
    medians = {name: statistics.median(values) for name, values in times.items()}
    least = {name: min(values) for name, values in times.items()}
    of_resnet18 = {name: value / medians["resnet18"] for name, value in medians.items() if name != "resnet18"}
    macs = {name: cost(net).macs for name, net in nets.items()}
    write_json(
        out,
        {
            "what": "one 3x32x32 image, one thread, ONNX Runtime, float32; processor time of the thread",
            "rows": SAYS,
            "obfuscator_share_of_resnet18": of_resnet18["obfuscator"],
            "share_of_resnet18": of_resnet18,
            "share_of_resnet18_by_minima": {name: least[name] / least["resnet18"] for name in of_resnet18},
            "share_of_resnet18_in_multiply_accumulates": {name: n / macs["resnet18"] for name, n in macs.items()},
            "classify_adds_ms": medians["classify"] - medians["obfuscator"],
            "median_ms": medians,
            "spread_ms": {name: [min(values), max(values)] for name, values in times.items()},
            "rounds": rounds,
            "repeats_per_round": REPEATS,
            "measured": provenance().to_json(),
        },
    )
    for name, share in of_resnet18.items():
        print(f"{name}: {medians[name]:.3f} ms, {share:.2%} of ResNet18's {medians['resnet18']:.2f} ms")


def _use_relu(net: nn.Module) -> None:
    for name, child in net.named_children():
        if isinstance(child, nn.LeakyReLU):
            setattr(net, name, nn.ReLU())
        else:
            _use_relu(child)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _client(folder: Path, onnx_file: Path) -> Client:
    """Return a client whose network responds at once."""
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / OBFUSCATOR_ONNX).write_bytes(onnx_file.read_bytes())
    Bundle(
        path=bundle,
        kind="obfuscator",
        name="timed",
        labels=tuple("abcdefghij"),
        preprocessing=Preprocessing(32, 32, mean=MEAN, std=STD),
        classifier_fingerprint=fingerprint(onnx_file),
    ).save()
    client = Client("http://localhost:1", bundle, encoding="binary")
    metadata = wire.ModelMetadata(
        name="timed",
        versions=(),
        platform="none",
        inputs=(wire.TensorSpec("input", "FP32", (-1, 3, 32, 32)),),
        outputs=(wire.TensorSpec("logits", "FP32", (-1, 10)),),
    )
    asked = wire.InferRequest(
        inputs=(wire.Tensor("input", np.zeros((1, 3, 32, 32), np.float32)),),
        outputs=(wire.RequestedOutput("logits", binary=True),),
    )
    logits = wire.Tensor("logits", np.zeros((1, 10), np.float32))
    response = wire.encode_response(wire.InferResponse("timed", (logits,)), asked)
    headers = {name.lower(): value for name, value in response.headers().items()}
    transport = client._endpoint._transport  # type: ignore[attr-defined]

    async def get(path: str) -> Reply:
        return Reply(200, {}, wire.encode_metadata(metadata))

    async def request(*_: object) -> Reply:
        return Reply(200, headers, response.body)

    transport.get, transport.request = get, request
    return client


if __name__ == "__main__":
    typer.run(main)

"""ResNet in CrypTen: two parties, one with the weights, one with the image. Runs in `.interop/crypten`.

`python crypten_party.py NET WEIGHTS` with NET "resnet18" or "resnet20" and WEIGHTS "private" or "public". Started so,
it is the first party, which also deals the triples, and starts the second. For each line on its input it classifies one
image and prints what that took as a line of JSON.

CrypTen 0.4.1 is of 2022. With a torch of today one import of its converter, which is not needed here, has to be put out
of its way. Batch norms are taken as folded into the convolutions, as the owner of the weights would do before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from memory import peak_mb

warnings.filterwarnings("ignore")
sys.modules["torch.onnx._internal.registration"] = types.SimpleNamespace(registry=None)  # type: ignore[assignment]

import crypten  # noqa: E402
import crypten.communicator as comm  # noqa: E402

NETS = {"resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)), "resnet20": ((3, 3, 3), (16, 32, 64))}
TOLERANCE = 0.05
"""Fixed point with 16 bits behind the point, through twenty layers."""


def convolutions(net: str) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Weights, biases and strides of all convolutions and of the last, linear layer; random."""
    torch.manual_seed(0)
    depths, widths = NETS[net]
    made, channels = [], widths[0]

    def add(inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        scale = (2 / (inputs * kernel**2)) ** 0.5
        made.append((torch.randn(outputs, inputs, kernel, kernel) * scale, 0.1 * torch.randn(outputs), stride))

    add(3, channels, 3)
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            add(channels, width, 3, stride)
            add(width, width, 3)
            if stride > 1:
                add(channels, width, 1, stride)
            channels = width
    add(channels, 10, 1)
    return made


def forward(x, layers, net: str):
    """Return the logits (1, 10, 1, 1) of an image, both encrypted or both plain."""
    rest = iter(layers)

    def convolve(x):
        weight, bias, stride = next(rest)
        out = x.conv2d(weight, stride=stride, padding=weight.shape[-1] // 2) if crypten.is_encrypted_tensor(x) else (
            torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        )  # fmt: skip
        return out + bias.view(1, -1, 1, 1)

    x = convolve(x).relu()
    for stage, depth in enumerate(NETS[net][0]):
        for block in range(depth):
            inner = convolve(convolve(x).relu())
            x = (inner + (convolve(x) if stage and not block else x)).relu()
    return convolve(x.mean((2, 3), keepdim=True) if not crypten.is_encrypted_tensor(x) else pooled(x))


def pooled(x):
    """The mean over places, kept as a map of one place."""
    return x.sum(3, keepdim=True).sum(2, keepdim=True) / (x.shape[2] * x.shape[3])


def serve(net: str, weights: str) -> None:
    """Classify an image for each line on the first party's input."""
    rank = comm.get().get_rank()
    crypten.cfg.communicator.verbose = True
    plain = convolutions(net)
    image = torch.rand(1, 3, 32, 32)  # the same at both parties, to check the result
    wanted = forward(image, plain, net)
    with crypten.no_grad():
        if weights == "private":
            layers = [(crypten.cryptensor(w, src=0), crypten.cryptensor(b, src=0), s) for w, b, s in plain]
        else:
            layers = plain
        while _next_request(rank):
            comm.get().reset_communication_stats()
            start = time.perf_counter()
            found = forward(crypten.cryptensor(image, src=1), layers, net).get_plain_text()
            seconds = time.perf_counter() - start
            each: list[dict[str, float]] = [{}, {}]
            reported = {"bytes": comm.get().comm_bytes, "rounds": comm.get().comm_rounds, "memory_mb": peak_mb()}
            dist.all_gather_object(each, reported)
            if rank == 0:
                off = float((found - wanted).abs().max() / wanted.abs().max())
                said = {
                    "seconds": seconds,
                    "sent_bytes": each[1]["bytes"],
                    "received_bytes": each[0]["bytes"],
                    "rounds": each[1]["rounds"],
                    "peak_memory_mb": [party["memory_mb"] for party in each],
                    "relative_error": off,
                    "correct": off < TOLERANCE,
                }
                print(json.dumps(said), flush=True)


def _next_request(rank: int) -> bool:
    line = [bool(sys.stdin.readline()) if rank == 0 else None]
    dist.broadcast_object_list(line, src=0)
    return bool(line[0])


def main(net: str, weights: str, rendezvous: str = "") -> None:
    torch.set_num_threads(1)
    rank = 1 if rendezvous else 0
    second = None
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = rendezvous or str(Path(folder) / "rendezvous")
        os.environ.update(
            WORLD_SIZE="2", RANK=str(rank), RENDEZVOUS=f"file://{rendezvous}", DISTRIBUTED_BACKEND="gloo",
            GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip
        if rank == 0:
            second = subprocess.Popen([sys.executable, __file__, net, weights, rendezvous], stdin=subprocess.DEVNULL)
        try:
            crypten.init()
            serve(net, weights)
        finally:
            if second is not None:
                second.terminate()
                second.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])

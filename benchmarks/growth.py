"""Measure how cost grows with pixels, classes, clients, batch and training images, each as a short curve.

`make growth`, or `python benchmarks/growth.py`, writes results/growth.json, and from it docs/growth.md and
docs/growth.svg (`--page` writes these again from the file that is there; `--quick` tries it and writes nothing).
Weights and images are random: they do not change the time. One thread for each process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from growth_page import FIGURE, PAGE, plot, written
from timing import time_in_turn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "alternatives"))

import random_bundles  # noqa: E402
from offload import peak_mb, serving  # noqa: E402

from sfumato.artifacts.bundle import DECODER_ONNX, OBFUSCATOR_ONNX, Bundle  # noqa: E402
from sfumato.artifacts.files import write_json  # noqa: E402
from sfumato.artifacts.onnx_file import OnnxFunction  # noqa: E402
from sfumato.artifacts.provenance import provenance  # noqa: E402
from sfumato.cli.memory import keep_freed_memory  # noqa: E402
from sfumato.device import Obfuscator as DeviceObfuscator  # noqa: E402
from sfumato.device.endpoints import open_endpoint  # noqa: E402
from sfumato.lab.export.onnx import export_onnx  # noqa: E402
from sfumato.lab.models import (  # noqa: E402
    Deobfuscator,
    Normalize,
    Obfuscator,
    Payload,
    Sketcher,
    build_classifier,
    class_bits,
    cost,
    fold_norms,
)
from sfumato.lab.training.obfuscation_task import ObfuscationTask  # noqa: E402
from sfumato.wire import InferRequest, Tensor, encode_request  # noqa: E402

SIDES = (32, 64, 128, 224, 320)
CLASSES = (10, 100, 1000)
CLIENTS = (1, 4, 16, 64)
REPLICAS, REPLICAS_CLIENTS = (1, 2, 3, 4), 16
AUDITED = ((32, 1_000), (32, 10_000), (32, 40_000), (64, 1_000), (128, 1_000))
"""Sides, and training images; a fifth as many are asked for."""
AUDIT_SHARE, AUDIT_MEASURED = 0.02, 100
MODELS = ("resnet20", "resnet18")
TRAINED_SIDES, TRAINED_BATCHES = (32, 64, 128), (16, 32, 64, 128)
SIDES_BATCH = 16
TRAINING_SETS = (5_000, 10_000, 20_000)
LOAD_S, ROUNDS = 3.0, 7
SMALL = 64
"""The largest side for a classifier of small images."""


def device_against_pixels(folder: Path, sides: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Time one image on the device, and the classifiers that run in the cloud instead, in milliseconds."""
    normalize = Normalize(random_bundles.MEAN, random_bundles.STD)
    found = []
    for side in sides:
        nets: dict[str, torch.nn.Module] = {
            "paper": torch.nn.Sequential(Obfuscator(), normalize),
            "sketch": Payload(Sketcher(side, side), normalize, side, side),
            "resnet18-imagenet": build_classifier("resnet18-imagenet"),
        }
        if side <= SMALL:
            nets["resnet18"] = build_classifier("resnet18")
        image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
        calls = {}
        for name, net in nets.items():
            file = folder / f"{name}-{side}.onnx"
            export_onnx(net.eval(), file, torch.rand(2, 3, side, side), input_name="input", output_name="output")
            calls[name] = partial(OnnxFunction(file, threads=1), image)
        times = time_in_turn(calls, warm_up=2, rounds=rounds)
        found.append(
            {
                "side": side,
                "pixels": side**2,
                "median_ms": {name: statistics.median(values) for name, values in times.items()},
                "macs": {name: cost(net, height=side, width=side).macs for name, net in nets.items()},
            }
        )
    return found


def device_against_classes(folder: Path, classes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds, file and code of a sketch for so many classes, at 32 pixels."""
    bundles = {}
    for count in classes:
        served = random_bundles.classifier(folder / f"classifier-{count}", "resnet20", classes=count)
        bundles[count] = random_bundles.sketch(folder / f"sketch-{count}", served)
    image = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    calls = {str(count): partial(DeviceObfuscator(bundle).obfuscate, image) for count, bundle in bundles.items()}
    times = time_in_turn(calls, warm_up=3, rounds=3 * rounds)
    return [
        {
            "classes": count,
            "median_ms": statistics.median(times[str(count)]),
            "device_bytes": (bundle.path / OBFUSCATOR_ONNX).stat().st_size,
            "decoder_bytes": (bundle.path / DECODER_ONNX).stat().st_size,
            "code_bits": max(8, class_bits(count)),
        }
        for count, bundle in bundles.items()
    ]


def wire_against_pixels(sides: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the bytes of a request's body in each format; the code is that of 10 classes."""
    found = []
    for side in sides:
        with torch.no_grad():
            decoded = Sketcher(side, side).eval()(torch.rand(1, 3, side, side))[0][0]
        pixels = (decoded * 255).round().to(torch.uint8)
        forms = {
            "FP32": np.zeros((1, 3, side, side), np.float32),
            "UINT8": pixels.numpy()[None],
            "code": np.zeros((1, 1), np.uint8),
        }
        bodies = {name: len(encode_request(InferRequest((Tensor("input", x),))).body) for name, x in forms.items()}
        found.append({"side": side, "pixels": side**2, "bytes": {**bodies, "PNG": _png_bytes(pixels)}})
    return found


def _png_bytes(pixels: torch.Tensor) -> int:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "PNG", optimize=True)
    return len(stream.getvalue())


def server_against_clients(folder: Path, clients: tuple[int, ...], load_s: float) -> list[dict[str, Any]]:
    """Measure requests/s of the embedded server; each client sends its next request after the response."""
    found = []
    for model in MODELS:
        bundle = random_bundles.classifier(folder / model, model)
        macs = cost(build_classifier(model)).macs
        with serving(bundle.path) as (url, process):
            for count in clients:
                found.append(
                    {"model": model, "macs": macs, "clients": count, **_load(url, bundle, process, count, load_s)}
                )
            found[-1]["server_peak_memory_mb"] = peak_mb(process.pid)
    return found


def server_against_replicas(folder: Path, replicas: tuple[int, ...], load_s: float) -> list[dict[str, Any]]:
    """Measure the same for several processes behind one port, with ResNet18, which needs far more than the clients."""
    bundle = random_bundles.classifier(folder / "replicated", "resnet18")
    found = []
    for count in replicas:
        with serving(bundle.path, "--replicas", str(count)) as (url, process):
            loaded = _load(url, bundle, process, REPLICAS_CLIENTS, load_s)
            memory = sum(peak_mb(pid) for pid in _tree(process.pid))
        found.append(
            {"model": "resnet18", "replicas": count, "clients": REPLICAS_CLIENTS, **loaded, "memory_mb": memory}
        )
    return found


def _load(url: str, bundle: Bundle, process: subprocess.Popen[str], clients: int, load_s: float) -> dict[str, Any]:
    tensor = np.zeros((1, 3, 32, 32), np.float32)
    waits: list[float] = []
    refused: list[str] = []
    endpoints = [open_endpoint(url, retries=0) for _ in range(clients)]
    for endpoint in endpoints:
        endpoint.infer(bundle.name, Tensor("input", tensor), "logits")
    end = time.monotonic() + load_s

    def ask(endpoint: Any) -> None:
        while time.monotonic() < end:
            try:
                waits.append(endpoint.infer(bundle.name, Tensor("input", tensor), "logits").round_trip_ms)
            except Exception as error:
                refused.append(type(error).__name__)

    cpu, start = _cpu_s(process.pid), time.monotonic()
    threads = [threading.Thread(target=ask, args=(endpoint,)) for endpoint in endpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.monotonic() - start, _cpu_s(process.pid) - cpu
    for endpoint in endpoints:
        endpoint.close()
    return {
        "requests_per_s": len(waits) / seconds,
        "server_cpu_ms_a_request": 1000 * cpu / len(waits),
        "median_ms": statistics.median(waits),
        "p99_ms": float(np.percentile(waits, 99)),
        "failed": len(refused),
    }


def _cpu_s(pid: int) -> float:
    """Processor time of a process and all below it."""
    stats = [Path(f"/proc/{one}/stat").read_text(encoding="ascii").rpartition(")")[2].split() for one in _tree(pid)]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    below = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return [pid, *(one for child in below for one in _tree(child))]


def training(sides: tuple[int, ...], batches: tuple[int, ...], sets: tuple[int, ...]) -> dict[str, Any]:
    """A training step's time and the process's peak memory, each in a process of its own."""
    return {
        "against_pixels": [_trained(side, SIDES_BATCH) for side in sides],
        "against_batch": [_trained(32, batch) for batch in batches],
        "against_images": [_trained(32, batches[-1], images) for images in sets],
    }


def _trained(side: int, batch: int, images: int = 0) -> dict[str, Any]:
    return _alone("--train", side, batch, images)


def _alone(what: str, *numbers: int) -> dict[str, Any]:
    """Return what this file measures in a separate process."""
    command = [sys.executable, __file__, what, *map(str, numbers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train_one(side: int, batch: int, images: int) -> dict[str, Any]:
    """Time a few steps in this process, on so many images sampled and augmented as in `sfumato train`, if any."""
    from sfumato.lab.data import Augmentation, augment

    task = ObfuscationTask(
        Obfuscator(),
        Deobfuscator(),
        fold_norms(build_classifier("resnet20")),
        Normalize(random_bundles.MEAN, random_bundles.STD),
        privacy_weight=1.0,
    ).train()
    task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-3, fused=True)
    source = torch.Generator().manual_seed(0)
    count = max(images, 8 * batch)
    made = random_bundles.random_set(count, side, tuple("0123456789"))
    seconds = []
    for step, (x, labels) in enumerate(made.batches(0, batch)):
        start = time.perf_counter()
        x = augment(x, Augmentation(flip=True), source).float().div_(255)
        optimizer.zero_grad()
        task(x.contiguous(memory_format=torch.channels_last), labels)["loss"].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        if step == 5:
            break
    step_s = statistics.median(seconds[1:])
    found = {
        "side": side,
        "pixels": side**2,
        "batch": batch,
        "step_ms": 1000 * step_s,
        "peak_memory_mb": peak_mb(os.getpid()),
    }
    if images:
        found |= {
            "images": images,
            "epoch_s": step_s * (images // batch),
            "images_mb": made.images.numel() / 2**20,
        }
    return found


def audits(sizes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """An audit's peak memory, each in a process of its own."""
    return [_alone("--audit", side, images) for side, images in sizes]


def audit_one(side: int, images: int) -> dict[str, Any]:
    """Every step of a quick audit, each cut short: what is trained for longer takes no more memory."""
    from dataclasses import replace

    from sfumato.lab.audit.budget import BUDGETS, shared
    from sfumato.lab.audit.run import audit
    from sfumato.lab.audit.setting import AttackSetting
    from sfumato.lab.audit.targets import load_target
    from sfumato.lab.report.html import render_audit

    labels = tuple("0123456789")
    train, test = (random_bundles.random_set(count, side, labels) for count in (images, images // 5))
    target = load_target("random_bundles:blocks", size=(side, side))
    budget = replace(shared(BUDGETS["quick"], AUDIT_SHARE), references=True, test_images=AUDIT_MEASURED)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        setting = AttackSetting(target, train, test)
        render_audit(setting, audit(setting, budget, Path(folder)), Path(folder))
    return {
        "side": side,
        "images": images,
        "test_images": images // 5,
        "images_mb": (train.images.numel() + test.images.numel()) / 2**20,
        "peak_memory_mb": peak_mb(os.getpid()),
        "seconds": time.monotonic() - start,
    }


def main(out: Path | None = Path("results/growth.json"), *, quick: bool = False) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sides, rounds = ((32, 64), 2) if quick else (SIDES, ROUNDS)
    trained = ((32,), (8,), ()) if quick else (TRAINED_SIDES, TRAINED_BATCHES, TRAINING_SETS)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _say("the device, against pixels")
        result: dict[str, Any] = {
            "what": "how cost grows; one thread for each process, random weights and images, loopback",
            "device_against_pixels": device_against_pixels(home, sides, rounds),
        }
        _say("the device, against classes")
        result["device_against_classes"] = device_against_classes(home, CLASSES[:2] if quick else CLASSES, rounds)
        result["wire_against_pixels"] = wire_against_pixels(sides)
        _say("the server, against clients")
        result["server_against_clients"] = server_against_clients(
            home, CLIENTS[:2] if quick else CLIENTS, 0.5 if quick else LOAD_S
        )
        _say("the server, against replicas")
        result["server_against_replicas"] = server_against_replicas(
            home, REPLICAS[:2] if quick else REPLICAS, 0.5 if quick else 2 * LOAD_S
        )
    _say("training")
    result["training"] = training(*trained)
    _say("audits")
    result |= {"audits": audits(((32, 500),) if quick else AUDITED), "measured": provenance().to_json()}
    if out is None:
        print(json.dumps({key: value for key, value in result.items() if key != "measured"}))
        print(written(result))
        plot(result, Path(tempfile.gettempdir()) / "growth.svg")
        return
    write_json(out, result)
    page(result)


def page(result: dict[str, Any]) -> None:
    """Write the page and its figure."""
    plot(result, FIGURE)
    PAGE.write_text(written(result), encoding="utf-8")
    print(f"-> {PAGE}, {FIGURE}")


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def command(*, only_page: Annotated[bool, typer.Option("--page")] = False, quick: bool = False) -> None:
    """Measure, and write results file and page; `--page`: the page alone; `--quick`: try it and write neither."""
    out = Path("results/growth.json")
    if only_page:
        page(json.loads(out.read_text(encoding="utf-8")))
    else:
        main(None if quick else out, quick=quick)


if __name__ == "__main__":
    alone = {"--train": train_one, "--audit": audit_one}
    if sys.argv[1:] and sys.argv[1] in alone:
        keep_freed_memory()
        torch.manual_seed(0)
        torch.set_num_threads(1)
        print(json.dumps(alone[sys.argv[1]](*map(int, sys.argv[2:]))))
    else:
        typer.run(command)

"""Measure requests per second of `sfumato serve` and four other servers, alternating in one run.

`make serving` sets the environments up and runs this: about four minutes. It writes results/serving.json. With
SERVING_FORMER=FOLDER, an older checkout, its server is measured in the same rounds.

One image (3x32x32 float32) in each request, 16 connections that ask without a pause, one thread for the model. The
load comes from wrk, a program in C; while one server is measured, the others are asked nothing. The processor time
that a server takes for a request is steadier than requests per second where cores are shared, so both are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from sfumato import wire
from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX
from sfumato.artifacts.files import write_json
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance

sys.path.append(str(Path(__file__).resolve().parents[1] / "interop"))
from servers import ENVIRONMENTS, NAME, SERVERS, Served, Server, free_ports, python_of, running

HERE = Path(__file__).parent
CONNECTIONS = 16
ROUNDS = int(os.environ.get("SERVING_ROUNDS", "5"))
FORMER = os.environ.get("SERVING_FORMER")
SECONDS = int(os.environ.get("SERVING_SECONDS", "3"))
WARM_UP_S = 1
SLOW_SECONDS = 3 * SECONDS  # for a slow model: wrk leaves out the 16 requests that are under way at the end
INFER = f"/v2/models/{NAME}/infer"
IMAGE = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)


@dataclass(frozen=True)
class Contender:
    """A server, and how it is asked.

    Attributes:
        title: how people call it.
        path: where it is asked.
        body: with what.
        content_type: of which kind that is.
        header_length: how much of it is JSON, if bytes follow.
        server: which one it is.
        options: with which it is started.
    """

    title: str
    path: str
    body: bytes
    content_type: str
    header_length: int | None
    server: Server
    options: Mapping[str, Any] = field(default_factory=dict)

    def start(self, folder: Path, model: Path) -> AbstractContextManager[Served]:
        """Start it."""
        return self.server.start(folder, model, **self.options)


@contextlib.contextmanager
def litserve(folder: Path, model: Path) -> Iterator[Served]:
    """LitServe with an API of a few lines."""
    (http,) = free_ports(1)
    command = [python_of("litserve"), str(HERE / "litserve_server.py"), str(model), str(http)]
    with running(command, folder, http, ready="/health") as pid:
        try:
            yield Served(f"http://127.0.0.1:{http}", None, pid=pid)
        finally:
            for worker in reversed(_tree(pid)[1:]):  # they would outlive it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGTERM)


LITSERVE = Server("LitServe", ("litserve", "onnxruntime", "uvloop"), "litserve", litserve)


def contenders() -> dict[str, Contender]:
    """All of them: with bytes where the server takes them."""
    request = wire.InferRequest((wire.Tensor("input", IMAGE),), parameters={"binary_data_output": True})
    binary = wire.encode_request(request)
    plain = wire.encode_request(wire.InferRequest(request.inputs), binary=False)
    bytes_ = (INFER, binary.body, "application/octet-stream", binary.header_length)
    joining = {"code": HERE / "triton_model.py"}
    values = json.dumps({"input": IMAGE.ravel().tolist()}).encode()
    found = {
        "sfumato": Contender("sfumato serve", *bytes_, SERVERS["sfumato"]),
        "sfumato2": Contender("sfumato serve --replicas 2", *bytes_, SERVERS["sfumato"], {"replicas": 2}),
        "triton": Contender("Triton", *bytes_, SERVERS["triton"], joining),
        "triton2": Contender("Triton, 2 instances", *bytes_, SERVERS["triton"], {**joining, "instances": 2}),
        "kserve": Contender("KServe's SDK", *bytes_, SERVERS["kserve"]),
        "mlserver": Contender("MLServer", INFER, plain.body, "application/json", None, SERVERS["mlserver"]),
        "litserve": Contender("LitServe", "/predict", values, "application/json", None, LITSERVE),
    }
    if FORMER:
        older = {"source": Path(FORMER).resolve()}
        found["former"] = Contender("sfumato serve, the former version", *bytes_, SERVERS["sfumato"], older)
    if find_spec("ray"):
        ray = {"replicas": 2, "engine": "ray"}
        found["ray"] = Contender("sfumato serve --engine ray --replicas 2", *bytes_, SERVERS["sfumato"], ray)
    return found


def main(out: Path = Path("results/serving.json"), only: list[str] | None = None) -> None:
    """Measure, and write the results file."""
    chosen = {key: one for key, one in contenders().items() if not only or key in ("sfumato", *only)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny, resnet18 = _tiny(folder / "tiny.onnx"), _resnet18(folder / "resnet18.onnx")
        resnet20 = shipped.classifier_bundle() / CLASSIFIER_ONNX
        found = {
            name: _compared(chosen, model, folder / name) for name, model in (("tiny", tiny), ("resnet20", resnet20))
        }
        result = {
            "what": f"one 3x32x32 float32 image a request, {CONNECTIONS} connections, one thread for the model",
            "load": f"{_version_of_wrk()}, one thread",
            "rounds": ROUNDS,
            "seconds_a_round": SECONDS,
            "servers": {
                key: {"title": one.title, "encoding": "binary" if one.header_length else "JSON",
                      "request_bytes": len(one.body), "versions": one.server.versions()}
                for key, one in chosen.items()
            },
            "classifiers": found,
            "resnet18_relative_to_onnxruntime": _relative_to_runtime(chosen["sfumato"], resnet18, folder / "resnet18"),
            "measured": provenance().to_json(),
        }  # fmt: skip
    write_json(out, result)
    for name, each in found.items():
        for key, figures in each.items():
            print(f"{name:9} {key:9} {figures['requests_per_s']:8.0f}/s {figures['cpu_ms_per_request']:7.3f} ms CPU")
    share = result["resnet18_relative_to_onnxruntime"]["share_of_onnxruntime"]
    print(f"ResNet18: {share:.1%} of ONNX Runtime alone -> {out}")


def _compared(chosen: dict[str, Contender], model: Path, folder: Path) -> dict[str, Any]:
    """Every server with one model: all are started, then measured in turn."""
    rounds: dict[str, list[dict[str, float]]] = {key: [] for key in chosen}
    with contextlib.ExitStack() as started:
        served: dict[str, Served] = {}
        for key, one in chosen.items():
            (folder / key).mkdir(parents=True)
            served[key] = started.enter_context(one.start(folder / key, model))
            _load(one, served[key], WARM_UP_S)
        for _ in range(ROUNDS):
            for key, one in chosen.items():
                rounds[key].append(_load(one, served[key], SECONDS))
    ours = statistics.median(each["requests_per_s"] for each in rounds["sfumato"])
    return {key: _summary(each, ours) for key, each in rounds.items()}


def _summary(rounds: list[dict[str, float]], ours: float) -> dict[str, Any]:
    speeds = [each["requests_per_s"] for each in rounds]
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0] if name != "failed"}
    return {
        **medians,
        "requests_per_s_spread": [min(speeds), max(speeds)],
        "failed": int(sum(each["failed"] for each in rounds)),
        "sfumato_is_times_as_fast": ours / medians["requests_per_s"],
    }


def _load(one: Contender, served: Served, seconds: int) -> dict[str, float]:
    """Return what wrk found, and the processor time of the server."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(one.body)
        body.flush()
        script = {"BODY": body.name, "CONTENT_TYPE": one.content_type}
        if one.header_length is not None:
            script["HEADER_LENGTH"] = str(one.header_length)
        program, libraries = _wrk()
        command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s"]
        command += ["-s", str(HERE / "load.lua")]
        before = _cpu_s(served.pid)
        done = subprocess.run(
            [*command, served.http + one.path], capture_output=True, text=True, check=True, timeout=seconds + 60,
            env={**os.environ, "LD_LIBRARY_PATH": libraries, **script},
        )  # fmt: skip
        cpu_s = _cpu_s(served.pid) - before
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["requests"] or found["failed"]:
        raise RuntimeError(f"{one.title}: {found['failed']} of {found['requests']} requests failed\n{done.stdout}")
    return {
        "requests_per_s": found["requests"] / found["seconds"],
        "cpu_ms_per_request": 1000 * cpu_s / found["requests"],
        "cpu_s": cpu_s,
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "failed": found["failed"],
    }


def _relative_to_runtime(one: Contender, model: Path, folder: Path) -> dict[str, Any]:
    """Compare our server with ONNX Runtime in a loop: same model, one thread, batches as the server's."""
    function = OnnxFunction(model, threads=1)
    rounds: dict[str, list[float]] = {"served": [], "alone": [], "served_cpu_ms": [], "alone_cpu_ms": [], "batch": []}
    folder.mkdir()
    with one.start(folder, model) as served:
        _load(one, served, WARM_UP_S)
        for _ in range(ROUNDS):
            before = _runs(served.http)
            found = _load(one, served, SLOW_SECONDS)
            made = {what: count - before[what] for what, count in _runs(served.http).items()}
            several = made["count"] - made["of_one"]
            size = round((made["sum"] - made["of_one"]) / several) if several else 1
            sizes = itertools.cycle(_mixed({1: int(made["of_one"]), size: int(several)}))
            batches = {batch: np.repeat(IMAGE, batch, axis=0) for batch in {1, size}}
            for batch in batches.values():
                function(batch)
            start, start_cpu, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - start < SLOW_SECONDS:
                batch = next(sizes)
                function(batches[batch])
                count += batch
            rounds["alone"].append(count / (time.perf_counter() - start))
            rounds["alone_cpu_ms"].append(1000 * (time.process_time() - start_cpu) / count)
            rounds["served"].append(found["requests_per_s"])
            rounds["served_cpu_ms"].append(1000 * found["cpu_s"] / made["sum"])
            rounds["batch"].append(made["sum"] / made["count"])
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "share_of_onnxruntime": statistics.median(
            served / alone for served, alone in zip(rounds["served"], rounds["alone"], strict=True)
        ),
        "served_images_per_s": medians["served"],
        "alone_images_per_s": medians["alone"],
        "served_cpu_ms_per_image": medians["served_cpu_ms"],
        "alone_cpu_ms_per_image": medians["alone_cpu_ms"],
        "mean_batch": medians["batch"],
        "threads": 1,
    }


def _runs(url: str) -> dict[str, float]:
    """Return the number of runs of our server, of those with one row, and of rows."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    starts = {"count": "count{", "sum": "sum{", "of_one": 'bucket{le="1.0",'}
    return {
        what: next(float(line.split()[-1]) for line in lines if line.startswith(f"sfumato_batch_rows_{start}"))
        for what, start in starts.items()
    }


def _mixed(counts: dict[int, int]) -> list[int]:
    """Return each size as often as it is wanted, shuffled."""
    sizes = np.repeat(list(counts), list(counts.values()))
    return [int(size) for size in np.random.default_rng(0).permutation(sizes)]


def _tree(pid: int) -> list[int]:
    """A process and all that came of it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    ticks = 0
    for one in _tree(pid):
        with contextlib.suppress(OSError):  # it has ended
            ticks += sum(map(int, _stat(one)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _wrk() -> tuple[str, str]:
    """wrk, and where its libraries are."""
    own = (ENVIRONMENTS / "wrk" / "usr").resolve()
    if (own / "bin" / "wrk").is_file():
        return str(own / "bin" / "wrk"), ":".join(str(path) for path in (own / "lib").glob("*-linux-gnu"))
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is missing; run: make serving, or install it (Debian: apt install wrk)")
    return program, os.environ.get("LD_LIBRARY_PATH", "")


def _version_of_wrk() -> str:
    program, libraries = _wrk()
    version = subprocess.run([program, "-v"], capture_output=True, text=True, env={"LD_LIBRARY_PATH": libraries}).stdout
    return " ".join(version.split()[:2])


def _tiny(file: Path) -> Path:
    """A classifier that costs next to nothing, so that the server is what is measured."""
    weight = np.random.default_rng(0).normal(size=(3 * 32 * 32, 10)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    floats = TensorProto.FLOAT
    given = helper.make_tensor_value_info("input", floats, ["batch", 3, 32, 32])
    made = helper.make_tensor_value_info("logits", floats, ["batch", 10])
    graph = helper.make_graph(nodes, "tiny", [given], [made], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), file)
    return file


def _resnet18(file: Path) -> Path:
    import torch

    from sfumato.lab.export.onnx import export_onnx
    from sfumato.lab.models import build_classifier

    torch.manual_seed(0)
    example = torch.rand(4, 3, 32, 32)
    export_onnx(build_classifier("resnet18").eval(), file, example, input_name="input", output_name="logits")
    return file


if __name__ == "__main__":
    typer.run(main)

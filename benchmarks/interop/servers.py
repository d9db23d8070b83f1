"""Other servers, each in its own environment, on this machine only; and ours for comparison."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, DECODER_ONNX, split_name

HERE = Path(__file__).parent
ENVIRONMENTS = Path(".interop")
NAME = shipped.CLASSIFIER
HALF = f"{NAME}-fp16"
START_S = 180


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        http: its address.
        grpc: its address for gRPC, if it has one.
        models: what it serves.
        pid: its process.
    """

    http: str
    grpc: str | None
    models: tuple[str, ...] = (NAME,)
    pid: int = 0


@dataclass(frozen=True)
class Server:
    """A server to try.

    Attributes:
        title: how people call it.
        packages: that make it, in its environment.
        environment: the environment's name; None for our own.
        start: starts it, with a folder for its files and, if it is not the shipped classifier, the ONNX file to serve.
    """

    title: str
    packages: tuple[str, ...]
    environment: str | None
    start: Callable[..., AbstractContextManager[Served]]

    def extensions(self, served: Served) -> list[str]:
        """The extensions of the protocol that it lists."""
        with urllib.request.urlopen(f"{served.http}/v2", timeout=10) as response:
            return list(json.load(response)["extensions"])

    def versions(self) -> dict[str, str]:
        """The versions of its packages."""
        code = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        done = subprocess.run(
            [python_of(self.environment), "-c", code, *self.packages], capture_output=True, check=True
        )
        return dict(json.loads(done.stdout))


@contextlib.contextmanager
def triton(folder: Path, model: Path | None = None, code: Path | None = None, instances: int = 1) -> Iterator[Served]:
    """Triton's own program, as the wheel of PyTriton carries it: with the Python backend alone.

    Args:
        folder: for its files.
        model: what it serves; None for the shipped classifier, with others next to it that need other types.
        code: another `model.py`, to which Triton hands joined requests.
        instances: so many processes run it.
    """
    site = next((ENVIRONMENTS / "triton").resolve().glob("lib/python*/site-packages"))
    program, stubs = (
        site / "pytriton/tritonserver/bin/tritonserver",
        site / "pytriton/tritonserver/python_backend_stubs",
    )
    backends = folder / "backends"
    shutil.copytree(site / "pytriton/tritonserver/backends", backends)
    version = site.parent.name.removeprefix("python")
    shutil.copy(stubs / version / "triton_python_backend_stub", backends / "python")
    repository = folder / "models"
    _triton_model(repository / NAME, model, ("count: 1", f"count: {instances}"))
    if model is None:
        _triton_model(repository / HALF, None, ("TYPE_FP32, dims: [ 3, 32, 32 ]", "TYPE_FP16, dims: [ 3, 32, 32 ]"))
        split = repository / split_name(NAME)
        _triton_model(split, None, ("TYPE_FP32, dims: [ 3, 32, 32 ]", "TYPE_UINT8, dims: [ 1 ]"))
        shutil.copy(shipped.obfuscator_bundle() / DECODER_ONNX, split / "1")
    if code is not None:
        shutil.copy(code, repository / NAME / "1" / "model.py")
        with (repository / NAME / "config.pbtxt").open("a", encoding="utf-8") as config:
            config.write("dynamic_batching { }\n")
    http, grpc = free_ports(2)
    command = [str(program), "--model-repository", str(repository), "--backend-directory", str(backends)]
    command += ["--http-address", "127.0.0.1", "--http-port", str(http)]
    command += ["--grpc-address", "127.0.0.1", "--grpc-port", str(grpc), "--allow-metrics", "false"]
    libraries = subprocess.run(
        [python_of("triton"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    environment = {
        # The backend's Python takes its packages from the environment whose python3 comes first; PYTHONPATH it ignores.
        "PATH": f"{Path(python_of('triton')).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{libraries}",
    }
    with running(command, folder, http, environment) as pid:
        names = (NAME, HALF, split_name(NAME)) if model is None else (NAME,)
        yield Served(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}", names, pid)


def _triton_model(folder: Path, model: Path | None, *changes: tuple[str, str]) -> None:
    shutil.copytree(HERE / "triton_repository", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(model or shipped.classifier_bundle() / CLASSIFIER_ONNX, folder / "1" / CLASSIFIER_ONNX)
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    for old, new in changes:
        text = text.replace(old, new)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def kserve(folder: Path, model: Path | None = None) -> Iterator[Served]:
    """A model server of KServe's SDK."""
    http, grpc = free_ports(2)
    file = str(model or shipped.classifier_bundle() / CLASSIFIER_ONNX)
    command = [python_of("kserve"), str(HERE / "kserve_server.py"), file, "--model_name", NAME]
    with running([*command, "--http_port", str(http), "--grpc_port", str(grpc)], folder, http) as pid:
        yield Served(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}", pid=pid)


@contextlib.contextmanager
def mlserver(folder: Path, model: Path | None = None) -> Iterator[Served]:
    """MLServer with a runtime of a few lines."""
    http, grpc, metrics = free_ports(3)
    served = folder / "served"
    shutil.copytree(HERE / "mlserver", served)
    shutil.copy(model or shipped.classifier_bundle() / CLASSIFIER_ONNX, served / CLASSIFIER_ONNX)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (served / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}), encoding="utf-8")
    program = str(Path(python_of("mlserver")).with_name("mlserver"))
    with running([program, "start", str(served)], folder, http, {"PYTHONPATH": str(served)}) as pid:
        yield Served(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}", pid=pid)


@contextlib.contextmanager
def ours(
    folder: Path, model: Path | None = None, replicas: int = 1, engine: str = "embedded", source: Path | None = None
) -> Iterator[Served]:
    """`sfumato serve`, maybe of another checkout."""
    (http,) = free_ports(1)
    command = [sys.executable, "-m", "sfumato", "serve", "--port", str(http), "--name", NAME]
    command += ["--replicas", str(replicas), "--engine", engine]
    if model is None:
        command += [str(shipped.classifier_bundle()), "--decoder", str(shipped.obfuscator_bundle())]
    else:
        command += [str(model)]
    environment = {**os.environ, **({} if source is None else {"PYTHONPATH": str(source / "src")})}
    with running(command, folder, http, environment) as pid:
        yield Served(f"http://127.0.0.1:{http}", None, (NAME, split_name(NAME)) if model is None else (NAME,), pid)


SERVERS = {
    "triton": Server("Triton", ("nvidia-pytriton", "onnxruntime", "numpy"), "triton", triton),
    "kserve": Server("KServe's SDK", ("kserve", "onnxruntime", "grpcio", "protobuf"), "kserve", kserve),
    "mlserver": Server("MLServer", ("mlserver", "onnxruntime", "grpcio", "protobuf"), "mlserver", mlserver),
    "sfumato": Server("sfumato serve", ("sfumato", "onnxruntime", "starlette", "uvicorn"), None, ours),
}


def python_of(environment: str | None) -> str:
    if environment is None:
        return sys.executable
    return str((ENVIRONMENTS / environment / "bin" / "python").absolute())


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    port: int,
    environment: dict[str, str] | None = None,
    ready: str = f"/v2/models/{NAME}/ready",
) -> Iterator[int]:
    """Run a server for the duration of the block, once it is ready; yield its process."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = folder / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**kept, **(environment or {})})
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(f"http://127.0.0.1:{port}{ready}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-8000:]}")
            time.sleep(0.3)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(120)  # Ray takes its time
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False

"""ONNX files: sessions, and an ONNX file as a function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
from sfumato.artifacts.class_map import class_logits
from sfumato.artifacts.execution_providers import CPU, native_providers, open_on_providers, provider_names
from sfumato.errors import BundleError, SfumatoError

Array = npt.NDArray[np.float32]

_SAID_BY_RUNTIME = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|Load model from .{1,4096}? failed:"
    r"|\S+\.(?:cc|h):\d+ (?:[^()]*::[^()]*\((?:[^()]|\([^()]*\))*\) |\w+ )"  # where in its source
)
_LONGEST = 400


def open_session(
    path: Path,
    *,
    threads: int,
    spinning: bool = False,
    providers: Sequence[str] = CPU,
    error: type[SfumatoError] = BundleError,
) -> Any:
    """Open an ONNX Runtime session.

    Args:
        path: the file.
        threads: for one run; 0 takes all cores.
        spinning: let idle threads wait in a loop, which is quicker, and takes the cores from everything else.
        providers: execution providers, the preferred one first; see `sfumato.artifacts.execution_providers`.
        error: what to raise.

    Raises:
        SfumatoError: of the class given; a provider is not there, or ONNX Runtime cannot load the file.
    """
    import onnxruntime  # a quarter of a second, which importing this module need not cost

    native = native_providers(providers, error=error)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors arrive as exceptions; warnings about node placement help nobody
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = open_on_providers(path, options, native)
        for node in (*session.get_inputs(), *session.get_outputs()):
            _ = node.name, node.type, node.shape  # not UTF-8: an error here, not where they are first used
        return session
    except Exception as reason:  # ONNX Runtime's errors have no common base
        raise error(f"{path} cannot be run: {runtime_reason(reason)}") from reason


def runtime_reason(error: BaseException) -> str:
    """Return ONNX Runtime's reason without codes, paths and places in its source; of a long one, both ends."""
    text = " ".join(str(error).split())
    text = _SAID_BY_RUNTIME.sub("", text).strip() or text or type(error).__name__
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def run_options() -> Any:
    """Return options for runs that compute only what the outputs asked for need."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


class OnnxFunction:
    """An ONNX file with one float32 input and float32 outputs; see `open_session` for the arguments.

    Attributes:
        input_shape: as the file states it; a name or None where a side is free.
        providers: the execution providers that run it.
    """

    def __init__(self, path: Path, *, threads: int = 0, providers: Sequence[str] = CPU) -> None:
        self._session = open_session(path, threads=threads, providers=providers)
        self.providers = provider_names(self._session)
        self._input = self._session.get_inputs()[0].name
        self.input_shape: tuple[int | str | None, ...] = tuple(self._session.get_inputs()[0].shape)

    def __call__(self, batch: Array) -> Array:
        """Batch (N, ...) float32 -> the first output, (N, ...) float32."""
        return self.all(batch)[0]

    def all(self, batch: Array) -> list[Array]:
        """Batch (N, ...) float32 -> every output, (N, ...) float32 each."""
        results: list[Array] = self._session.run(None, {self._input: batch})
        return results


class ClassifierFunction:
    """A classifier's bundle as a function, to the logits of its labels; see `open_session` for the arguments."""

    def __init__(self, bundle: Bundle, *, threads: int = 0, providers: Sequence[str] = CPU) -> None:
        self._function = OnnxFunction(bundle.file(CLASSIFIER_ONNX), threads=threads, providers=providers)
        self.providers = self._function.providers
        self._class_map = bundle.class_map

    def __call__(self, inputs: Array) -> Array:
        """Normalised images (N, 3, H, W) float32 -> logits (N, classes) float32."""
        return class_logits(self._function(inputs), self._class_map)

"""An ONNX file as a function, for the lab and the demonstration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sfumato.errors import BundleError

Array = npt.NDArray[np.float32]


class OnnxFunction:
    """An ONNX file with one float32 input and float32 outputs, run on the CPU.

    Args:
        path: the file.
        threads: for one run; 0 takes all cores.

    Attributes:
        input_shape: as the file states it; a name or None where a side is free.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        import onnxruntime  # a quarter of a second, paid by those who need it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores from whatever else the process computes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise BundleError(f"{path} cannot be run: {' '.join(str(error).split())[:200]}") from error
        self._input = self._session.get_inputs()[0].name
        self.input_shape: tuple[int | str | None, ...] = tuple(self._session.get_inputs()[0].shape)

    def __call__(self, batch: Array) -> Array:
        """Batch (N, ...) float32 -> the first output, (N, ...) float32."""
        return self.all(batch)[0]

    def all(self, batch: Array) -> list[Array]:
        """Batch (N, ...) float32 -> every output, (N, ...) float32 each."""
        results: list[Array] = self._session.run(None, {self._input: batch})
        return results

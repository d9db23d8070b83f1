"""A served model, apart from HTTP: its metadata, and how it handles inference requests."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, DECODER_ONNX, Bundle
from sfumato.artifacts.execution_providers import CPU
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.lab_files import refuse_deobfuscator
from sfumato.artifacts.onnx_file import open_session, runtime_reason
from sfumato.artifacts.signature import KeyFiles
from sfumato.cloud.batching import Arrays, Batcher
from sfumato.errors import BundleUntrusted, ServingError, WireError
from sfumato.wire import DTYPES, InferRequest, InferResponse, ModelMetadata, Tensor, TensorSpec

VERSION = "1"
PLATFORM = "onnxruntime_onnx"
# A model whose run on a full batch is shorter than this runs in the event loop, which it holds up no longer than that.
INLINE_S = 0.002
_TRIALS = 3
_KNOWN_MOST = 256
_Form = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
"""The names, types and shapes of a request's inputs."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_ONNX_NAMES = {"float32": "float", "float64": "double"}
_DATATYPES = {f"tensor({_ONNX_NAMES.get(dtype.name, dtype.name)})": name for name, dtype in DTYPES.items()}


class ServedModel:
    """An ONNX model that handles inference requests.

    Args:
        path: a classifier bundle's folder, or any ONNX file.
        name: what clients call it; by default the bundle's name or the file's, without its ending.
        threads: how many threads ONNX Runtime may use for one run.
        max_batch: rows in one run of the model; requests that wait are joined up to this.
        max_wait_ms: how long a lone request waits for others.
        max_queue: requests that may wait before further ones are refused.
        max_rows: rows that one request may have.
        decoder: an obfuscator bundle's folder; its decoder then turns what is sent, a code, into the model's input.
        version: which version of the model it is, a number.
        providers: execution providers, the preferred one first: "cpu", "cuda", "tensorrt", "openvino", "coreml", "qnn",
            "nnapi". Where one does not run the model, the CPU does, and the log says so once.
        trusted_keys: files with a public key each, as in `Bundle.load`; one of them has to have signed the bundle, and
            the decoder's.

    Raises:
        ServingError: the file is missing or no model that can be served, it breaks on a trial run of zeros, the name
            cannot stand in a URL, an execution provider is not there, the version is no number, or the decoder was
            made for another classifier.
        BundleUntrusted: keys are given, and none of them has signed a bundle as it is; or the model is an ONNX file,
            which has no signature.
        BundleError: a folder is no bundle of the kind it has to be, or is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        threads: int = 1,
        max_batch: int = 32,
        max_wait_ms: float = 0.0,
        max_queue: int = 256,
        max_rows: int = 1024,
        decoder: str | os.PathLike[str] | None = None,
        version: str = VERSION,
        providers: Sequence[str] = CPU,
        trusted_keys: KeyFiles | None = None,
    ) -> None:
        bundle = open_bundle(path, trusted_keys)
        split = None if decoder is None else Bundle.load(decoder, kind="obfuscator", trusted_keys=trusted_keys)
        file = bundle.file(CLASSIFIER_ONNX) if bundle else Path(path)
        self._session = _open(file, threads, providers)
        self._decoder = None if split is None else _open_decoder(split, file, self._session, threads, providers)
        name = name or (bundle.name if bundle else file.stem)
        if not _NAME.fullmatch(name):
            raise ServingError(
                f"a model cannot be called {name!r}: letters, digits, '.', '_' and '-' are allowed; choose another name"
            )
        parameters = {"fingerprint": fingerprint(file)}
        if split is not None:
            parameters["decoder"] = f"sha256:{split.files[DECODER_ONNX]}"
            if split.code_fingerprint is not None:
                parameters["code"] = split.code_fingerprint
        if bundle and bundle.labels and bundle.class_map is None:  # with one they do not name the outputs
            # The protocol's parameters are scalars, so the list is sent as JSON in a string.
            parameters["labels"] = json.dumps(bundle.labels, ensure_ascii=False)
        if bundle and bundle.multi_label:
            parameters["labelling"] = bundle.labelling
        self.metadata = ModelMetadata(
            name=name,
            versions=(checked_version(version),),
            platform=PLATFORM,
            inputs=tuple(_spec(node, file) for node in (self._decoder or self._session).get_inputs()),
            outputs=tuple(_spec(node, file) for node in self._session.get_outputs()),
            parameters=parameters,
        )
        self._inputs = {spec.name: spec for spec in self.metadata.inputs}
        self._accepted: set[_Form] = set()
        self._output_names = [spec.name for spec in self.metadata.outputs]
        self._max_rows = max_rows
        # Joining needs a batch axis of any size on both sides; a model without one takes requests one by one.
        self.batches = all(spec.shape[:1] == (-1,) for spec in (*self.metadata.inputs, *self.metadata.outputs))
        self.batcher = Batcher(
            self._run,
            max_batch=max_batch if self.batches else None,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
            max_queue_rows=max(4 * max_rows, max_queue),
            inline=self._try_out(max_batch) <= INLINE_S,
        )

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.metadata.name

    @property
    def version(self) -> str:
        """The version of the model."""
        return self.metadata.versions[0]

    @property
    def fingerprint(self) -> str:
        """`sha256:<hex>` of the ONNX file and of the files with its weights."""
        return str(self.metadata.parameters["fingerprint"])

    def rows(self, request: InferRequest) -> int:
        """Return how many rows a request has, for the metrics; `infer` checks whether it may have them."""
        shape = request.inputs[0].shape
        return shape[0] if self.batches and shape else 1

    async def infer(self, request: InferRequest) -> InferResponse:
        """Handle one request.

        Raises:
            WireError: an input is missing, unknown, or of the wrong type or shape, or an output is unknown.
            Overloaded: too many requests are waiting.
            ModelFailed: the model broke on this request.
        """
        return self.response(request, await self.enqueue(request))

    def enqueue(self, request: InferRequest) -> asyncio.Future[Arrays]:
        """Check a request and let it wait for the model; return what will have the outputs. Raises as `infer`."""
        for output in request.outputs:
            if output.name not in self._output_names:
                known = ", ".join(self._output_names)
                raise WireError(f"model {self.name!r} has no output {output.name!r}; it has {known}")
        return self.batcher.enqueue(self._checked_inputs(request))

    def response(self, request: InferRequest, results: Arrays) -> InferResponse:
        """Return the response to a request, made of the model's outputs."""
        outputs = dict(zip(self._output_names, results, strict=True))
        names = [output.name for output in request.outputs] or self._output_names
        return InferResponse(
            model_name=self.name,
            model_version=self.version,
            id=request.id,
            outputs=tuple([Tensor(name, outputs[name]) for name in names]),
        )

    async def close(self) -> None:
        """Finish the requests that wait, and stop; refuse further ones."""
        await self.batcher.close()

    def _checked_inputs(self, request: InferRequest) -> Arrays:
        form = tuple([(tensor.name, tensor.array.dtype, tensor.array.shape) for tensor in request.inputs])
        if form not in self._accepted:
            self._check(request)
            if len(self._accepted) < _KNOWN_MOST:
                self._accepted.add(form)
        arrays = {tensor.name: tensor.array for tensor in request.inputs}
        # A view into the message may start at any byte; ONNX Runtime wants aligned memory.
        return tuple([_aligned(arrays[name]) for name in self._inputs])

    def _check(self, request: InferRequest) -> None:
        """Refuse inputs whose names, types or shapes the model does not take; their values do not matter."""
        given = {tensor.name: tensor for tensor in request.inputs}
        if given.keys() != self._inputs.keys():
            expected, got = ", ".join(self._inputs), ", ".join(given)
            raise WireError(f"model {self.name!r} takes the inputs {expected}; got {got}")
        for name, spec in self._inputs.items():
            tensor = given[name]
            if tensor.datatype != spec.datatype:
                raise WireError(f"input {name!r} takes {spec.datatype}; got {tensor.datatype}")
            if not spec.takes(tensor.shape):
                raise WireError(f"input {name!r} takes the shape {list(spec.shape)}; got {list(tensor.shape)}")
        if self.batches:
            rows = [tensor.shape[0] for tensor in request.inputs]
            if len(set(rows)) != 1:
                raise WireError(f"the inputs must have equally many rows; got {rows}")
            if not 1 <= rows[0] <= self._max_rows:
                raise WireError(f"a request may have 1 to {self._max_rows} rows; got {rows[0]}")

    def _try_out(self, max_batch: int) -> float:
        """Run the model on zeros; return how many seconds a full batch takes, infinity if its shape is not known."""
        if any(size < 0 for spec in self.metadata.inputs for size in self._sizes(spec, rows=1)):
            return math.inf  # the file does not state which sizes it takes
        try:
            taken_s = min(self._timed(rows=1) for _ in range(_TRIALS))
            if self.batches and taken_s <= INLINE_S:
                taken_s = min(self._timed(rows=max_batch) for _ in range(_TRIALS))
        except Exception as error:
            reason = runtime_reason(error)  # it ran on zeros: the message holds nothing private
            raise ServingError(f"model {self.name!r} breaks on a trial run: {reason}") from error
        return taken_s

    def _timed(self, rows: int) -> float:
        zeros = tuple(np.zeros(self._sizes(spec, rows), DTYPES[spec.datatype]) for spec in self.metadata.inputs)
        start = time.perf_counter()
        self._run(zeros)
        return time.perf_counter() - start

    def _sizes(self, spec: TensorSpec, rows: int) -> tuple[int, ...]:
        return (rows, *spec.shape[1:]) if self.batches else spec.shape

    def _run(self, inputs: Arrays) -> Arrays:
        feed = dict(zip(self._inputs, inputs, strict=True))
        if self._decoder is not None:
            feed = {self._session.get_inputs()[0].name: self._decoder.run(None, feed)[0]}
        return tuple(self._session.run(self._output_names, feed))


def open_bundle(path: str | os.PathLike[str], trusted_keys: KeyFiles | None = None) -> Bundle | None:
    """Open a classifier's bundle; None for an ONNX file.

    Raises:
        BundleUntrusted: keys are given, and none of them has signed the bundle as it is; or it is an ONNX file.
        BundleError: a folder is no classifier's bundle, or is damaged.
    """
    if Path(path).is_dir():
        return Bundle.load(path, kind="classifier", trusted_keys=trusted_keys)
    if trusted_keys is not None:
        raise BundleUntrusted(f"{path} is no bundle, so that no key has signed it; serve a signed bundle's folder")
    return None


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=["C", "A"])


def _open(file: Path, threads: int, providers: Sequence[str]) -> Any:
    if not file.is_file():
        raise ServingError(f"no model at {file}: a classifier bundle's folder or an ONNX file is expected")
    if threads < 1:
        raise ServingError(f"threads must be at least 1, got {threads}")
    return open_session(file, threads=threads, spinning=True, providers=providers, error=ServingError)


def _open_decoder(bundle: Bundle, classifier: Path, session: Any, threads: int, providers: Sequence[str]) -> Any:
    """Open the decoder of an obfuscator's bundle, which has to fit the classifier, and have no deobfuscator."""
    refuse_deobfuscator(bundle)
    if DECODER_ONNX not in bundle.files:
        raise ServingError(f"{bundle.path} has no {DECODER_ONNX}: this obfuscator has no split form; serve without it")
    if bundle.classifier_fingerprint != fingerprint(classifier):
        raise ServingError(f"the decoder of {bundle.path} was made for another classifier than {classifier}")
    file = bundle.file(DECODER_ONNX)
    decoder = _open(file, threads, providers)
    made, taken = (_spec(nodes[0], file) for nodes in (decoder.get_outputs(), session.get_inputs()))
    if len(session.get_inputs()) != 1 or made.datatype != taken.datatype or not taken.takes(made.shape):
        raise ServingError(
            f"{file} makes {made.datatype} {list(made.shape)}, {classifier} takes {taken.datatype} {list(taken.shape)}"
        )
    return decoder


def _spec(node: Any, file: Path) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise ServingError(f"{file} cannot be served: {node.name!r} is a {node.type}, which the wire does not carry")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)


def checked_version(version: str) -> str:
    """Return the version if it is a number as Triton has them, positive, without a leading 0; else `ServingError`."""
    if not _VERSION.fullmatch(version):
        raise ServingError(f"a version has to be a number such as 1 or 23, got {version!r}; rename it")
    return version

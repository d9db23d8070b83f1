"""Export an obfuscator's network for phones: an ExecuTorch program, compared with the bundle's ONNX file.

The file holds the network alone. Everything else that `sfumato.device` does with an image is up to the app.

Source: ExecuTorch's documentation of its XNNPACK backend for how a network is lowered to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import whole_file
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device.image import load_image, prepare
from sfumato.errors import BundleError
from sfumato.lab.data import INFERENCE_BATCH
from sfumato.lab.evaluation.results import Result
from sfumato.lab.export.onnx import TOLERANCE, difference
from sfumato.lab.libraries import first_line, quiet
from sfumato.lab.models import Normalize, Payload, Sketcher, SketchGraph
from sfumato.lab.models.device_nets import fold_branches
from sfumato.lab.models.rebuild import rebuilt

Array = npt.NDArray[Any]
Classify = Callable[[Array], Array]
_MOST_CODES = 0.01
"""The share of images whose code may change: a bit is a sign, and a value close to 0 may get either."""


class ExecutorchFunction:
    """An ExecuTorch program that takes one image, run on the CPU.

    Args:
        program: the file, or its content.

    Raises:
        BundleError: ExecuTorch cannot load it.
    """

    def __init__(self, program: Path | bytes) -> None:
        with quiet():
            from executorch.runtime import Runtime

        try:
            self._program = Runtime.get().load_program(program)
            self._forward = self._program.load_method("forward")
        except RuntimeError as error:
            raise BundleError(f"ExecuTorch cannot load the program: {first_line(error)}") from error

    def one(self, image: Tensor) -> list[Tensor]:
        """Return every output, (1, ...) each, for an image (1, 3, H, W) float32 in [0, 1]."""
        outputs: list[Tensor] = self._forward.execute([image])
        return outputs

    def all(self, batch: Array) -> list[Array]:
        """Return every output, (N, ...) each, for images (N, 3, H, W) float32 in [0, 1], run one by one."""
        rows = [self.one(image[None]) for image in torch.from_numpy(batch)]
        return [torch.cat(list(column)).numpy() for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Comparison(Result):
    """Two runs of one obfuscator on the same images.

    Attributes:
        images: how many.
        largest_difference: of any number, relative to the largest of its output (or 1), over images with equal codes.
        codes_changed: images whose code changed; None without codes.
        device_predictions_changed: images whose on-device prediction changed; None without these.
        cloud_predictions_changed: images whose prediction in the cloud changed; None without a classifier.
    """

    images: int
    largest_difference: float
    codes_changed: int | None = None
    device_predictions_changed: int | None = None
    cloud_predictions_changed: int | None = None

    @property
    def same(self) -> bool:
        """Whether both compute the same function, up to rounding."""
        return self.largest_difference <= TOLERANCE and (self.codes_changed or 0) <= _MOST_CODES * self.images


def compare(
    found: list[Array], wanted: list[Array], *, step: float = 0.0, classify: Classify | None = None
) -> Comparison:
    """Compare an obfuscator's outputs, in the order of its ONNX file, with those of another run.

    They are the payload, (N, 3, H, W) float32, alone or followed by the on-device logits (N, classes) float32 and codes
    (N, B) uint8. `step` is of rounding the payload, see `sfumato.lab.export.onnx.difference`; `classify` goes from the
    payload to the cloud's logits.

    Raises:
        BundleError: outputs differ in number, shape or type.
    """
    shapes = [[(part.shape, str(part.dtype)) for part in outputs] for outputs in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise BundleError(f"the outputs are {shapes[0]}, those of the ONNX file {shapes[1]}")
    same_code = np.ones(len(found[0]), bool)
    codes = own = None
    if len(found) > 1:
        same_code = (found[2] == wanted[2]).all(axis=1)
        codes = int((~same_code).sum())
        own = _changed(found[1], wanted[1])
    apart = [0.0]
    for index, (got, expected) in enumerate(zip(found[:2], wanted[:2], strict=True)):
        rows = same_code if index == 0 else slice(None)  # another code gives another payload
        if expected[rows].size:
            scale = max(1.0, float(np.abs(expected).max()))
            apart.append(difference(got[rows], expected[rows], step=step if index == 0 else 0.0) / scale)
    cloud = None
    if classify is not None:
        parts = zip(_batches(found[0]), _batches(wanted[0]), strict=True)
        cloud = sum(_changed(classify(got), classify(expected)) for got, expected in parts)
    return Comparison(len(same_code), float(np.max(apart)), codes, own, cloud)


def export_executorch(bundle: Bundle, path: Path, images: Array, *, classify: Classify | None = None) -> Comparison:
    """Write an obfuscator's network as an ExecuTorch program for one image, float32, lowered to XNNPACK.

    Its outputs are those of the bundle's ONNX file, in the same order; both are compared before anything is written.

    Args:
        bundle: an obfuscator's, with its weights.
        path: the file; is replaced.
        images: (N, 3, H, W) float32 in [0, 1], real ones, to compare on.
        classify: from the payload to the cloud's logits, to count predictions that change.

    Raises:
        BundleError: the network cannot be rebuilt or lowered, or its outputs differ from the ONNX file's; then
            nothing is written.
    """
    run = OnnxFunction(bundle.file(OBFUSCATOR_ONNX), threads=1)
    parts = [run.all(part) for part in _batches(images)]
    wanted = [np.concatenate(column) for column in zip(*parts, strict=True)]
    graph = _graph(bundle, torch.from_numpy(images[:INFERENCE_BATCH]), wanted)
    program = _lowered(graph, torch.from_numpy(images[:1]), bundle.path)
    step = float(getattr(graph, "step", 0.0))
    compared = compare(ExecutorchFunction(program).all(images), wanted, step=step, classify=classify)
    if not compared.same:
        raise BundleError(
            f"the ExecuTorch program of {bundle.path} differs from its ONNX file by {compared.largest_difference:.1e} "
            f"(at most {TOLERANCE:.0e} is allowed), and has other codes for {compared.codes_changed or 0} of "
            f"{compared.images} images (at most {_MOST_CODES:.0%}); nothing was written"
        )
    _write(path, program)
    return compared


def _write(path: Path, program: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(program)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror or error}") from error


def sample_images(preprocessing: Preprocessing) -> Array:
    """Return the shipped images at a bundle's size, (N, 3, H, W) float32 in [0, 1]."""
    return np.stack([prepare(load_image(sample.pixels), preprocessing) for sample in shipped.samples()])


def _graph(bundle: Bundle, images: Tensor, wanted: list[Array]) -> nn.Module:
    """Return the network whose outputs are those of the ONNX file."""
    net, size = rebuilt(bundle), bundle.preprocessing
    if net is None:
        raise BundleError(
            f"{bundle.path} has no network that can be exported: a bundle with weights that `sfumato train` wrote is "
            f"needed, in float32; this one is of kind {bundle.recipe.kind!r}"
        )
    normalize = Normalize(size.mean, size.std)
    if isinstance(net, Sketcher):
        return SketchGraph(net, normalize, temperature=_temperature(net, images, wanted)).eval()
    if net.noise is not None:
        raise BundleError(
            f"{bundle.path} adds noise, so that no ExecuTorch program can be compared with it; run its ONNX file"
        )
    return Payload(net, normalize, size.height, size.width).eval()


@torch.no_grad()
def _temperature(sketcher: Sketcher, images: Tensor, wanted: list[Array]) -> float:
    """What the device's logits are divided by, which stands in the ONNX file alone: by least squares."""
    own = sketcher.encode(images)[1].double()
    calibrated = torch.from_numpy(wanted[1][: len(images)]).double()
    return float(own.square().sum() / (own * calibrated).sum())


def _lowered(graph: nn.Module, image: Tensor, source: Path) -> bytes:
    try:
        with torch.no_grad(), quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(fold_branches(graph), (image,))
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:  # its passes have no common error
        said = f"{type(error).__name__}: {first_line(error)}"
        raise BundleError(f"{source} cannot be lowered to ExecuTorch: {said}") from error


def _batches(whole: Array) -> list[Array]:
    return [whole[start : start + INFERENCE_BATCH] for start in range(0, len(whole), INFERENCE_BATCH)]


def _changed(found: Array, wanted: Array) -> int:
    return int((found.argmax(axis=1) != wanted.argmax(axis=1)).sum())

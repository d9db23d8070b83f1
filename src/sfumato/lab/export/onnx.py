"""Write networks to files: safetensors, and ONNX checked against torch on real images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from safetensors.torch import save
from torch import Tensor, nn

from sfumato.artifacts.files import whole_file
from sfumato.errors import TrainingError
from sfumato.lab.libraries import quiet
from sfumato.lab.models.device_nets import fold_branches

TOLERANCE = 1e-4
"""The largest allowed difference of ONNX Runtime from torch, relative to the largest output."""
_ROUNDED_OTHERWISE = 0.01


def export_onnx(
    net: nn.Module,
    path: Path,
    images: Tensor,
    *,
    input_name: str,
    output_name: str | tuple[str, ...],
    compare: bool = True,
    step: float = 0.0,
) -> None:
    """Write one ONNX file with its weights inside and a free batch size, and check it.

    Branches that are needed in training alone are folded, see `sfumato.lab.models.device_nets`.

    Args:
        net: one tensor to one tensor, or to as many as there are output names; is moved to the CPU, in evaluation mode.
        path: the file.
        images: (N, 3, H, W) float32, N at least 2, real inputs to export with and to check on.
        input_name: of the graph's input.
        output_name: of the graph's output, or outputs.
        compare: check it; leave out for a net that adds noise, and check the noise's distribution instead.
        step: where the output is rounded, see `difference`.

    Raises:
        TrainingError: ONNX Runtime's outputs differ from torch's.
    """
    net = net.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    images = images.cpu().contiguous()
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            fold_branches(net),
            (images[:2],),
            dynamo=True,
            external_data=False,
            input_names=[input_name],
            output_names=[output_name] if isinstance(output_name, str) else list(output_name),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)
        outputs = net(images)
    _strip(path)
    if not compare:
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (len(images), 1):
        found = session.run(None, {input_name: images[:count].numpy()})
        for got, output in zip(found, [outputs] if isinstance(outputs, Tensor) else outputs, strict=True):
            expected = output.numpy()
            error = difference(got, expected[:count], step=step) / max(1.0, float(np.abs(expected).max()))
            if not error <= TOLERANCE:
                raise TrainingError(
                    f"{path.name}: ONNX Runtime differs from torch by {error:.1e}, at most {TOLERANCE:.0e} is allowed"
                )


def difference(got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], *, step: float = 0.0) -> float:
    """Return the largest difference between two runs of one function, of any shape.

    `step` is the largest distance of neighbouring values where both are rounded; 0 where they are not. One number in a
    hundred may be rounded to the other neighbour, which does not count.
    """
    apart = np.abs(got - expected)
    if float((apart > TOLERANCE).mean()) <= _ROUNDED_OTHERWISE:
        apart = np.where(apart <= 1.01 * step, 0, apart)
    return float(apart.max())


def _strip(path: Path) -> None:
    """Remove what the exporter records of the exporting machine: source lines and paths."""
    model = onnx.load(str(path))
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.save(model, str(path))


def round_weights(net: nn.Module) -> None:
    """Round a network's parameters and buffers to what half precision can hold; they stay float32.

    Raises:
        TrainingError: one of them is too large for that.
    """
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            rounded = value.half().to(value.dtype)
            if not torch.isfinite(rounded).all():
                raise TrainingError(f"half_weights: {name} has values beyond the range of half precision; leave it out")
            value.copy_(rounded)


def save_weights(net: nn.Module, path: Path, *, half: bool = False) -> None:
    """Write a network's parameters and buffers as safetensors.

    In half precision the file is half the size; see `round_weights`.

    Raises:
        TrainingError: the disk refuses.
    """
    values = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    if half:
        values = {name: value.half() if value.is_floating_point() else value for name, value in values.items()}
    try:
        with whole_file(path) as partial:
            partial.write_bytes(save(values))
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error


def renew(folder: Path) -> None:
    """Empty a folder, or create it.

    Raises:
        TrainingError: the disk refuses.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror or error}") from error

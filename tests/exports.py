"""Exports to ONNX that trace each architecture once.

Tracing a network with torch and translating what comes of it takes seconds, for a tiny one too, and the weights have no
part in it. A traced graph is kept for the whole test run; the next network of the same structure puts its own weights
into it. The optimisation, which folds weights, is done anew, as are the caller's checks against torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from filelock import FileLock
from torch import nn

from sfumato.lab.models.sketch import SketchGraph

PROBE = 1.2345678
"""Stands for a sketch's temperature while its graph is traced: the one number of ours that becomes a constant in it."""


def structure(net: nn.Module) -> str | None:
    """What an export depends on but for the weights' values; None where that cannot be told for sure."""
    rows: list[Any] = []
    for name, module in net.named_modules():
        kind = type(module)
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind or "forward" in vars(module):
            return None  # made inside a test: another one may have the same name
        held = {key: repr(value) for key, value in vars(module).items() if key[0] != "_"}
        if isinstance(module, SketchGraph):
            del held["temperature"]
        if any(" at 0x" in value or "tensor(" in value for value in held.values()):
            return None
        rows.append([name, kind.__module__, kind.__qualname__, sorted(held.items())])
    for name, value in (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)):
        rows.append([name, list(value.shape), str(value.dtype)])
    return json.dumps(rows)


@contextmanager
def probing(net: nn.Module) -> Iterator[float | None]:
    """Takes a sketch's temperature out of a graph that is traced in the meantime."""
    if not isinstance(net, SketchGraph):
        yield None
        return
    temperature, net.temperature = net.temperature, PROBE
    try:
        yield temperature
    finally:
        net.temperature = temperature


def traced_once(folder: Path, plain: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.onnx.export`, as `sfumato.lab.export.onnx` calls it, with the graphs that it has traced in a folder.

    Args:
        folder: that all processes of the test run share.
        plain: `torch.onnx.export` itself.
    """

    def export(net: nn.Module, args: tuple[torch.Tensor, ...], **how: Any) -> Any:
        known = structure(net)
        named = dict([*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)])
        if known is None or len({id(value) for value in named.values()}) < len(named):
            return plain(net, args, **how)
        about = [(list(value.shape), str(value.dtype)) for value in args]
        key = hashlib.sha256(f"{known} {about} {how}".encode()).hexdigest()
        file = folder / f"{key}.onnx"
        with FileLock(f"{file}.lock"), probing(net) as temperature:
            if not file.exists():
                plain(net, args, **how, optimize=False).save(str(file), external_data=False)
        model = onnx_ir.load(file)
        for node in model.graph if temperature is not None else ():
            held = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(0)
            if held.size == 1 and held.item() == np.float32(PROBE):
                number = onnx_ir.tensor(np.float32(temperature))
                node.attributes["value"] = onnx_ir.AttrTensor("value", number)
        for name, value in model.graph.initializers.items():
            if name in named:
                value.const_value = onnx_ir.tensor(named[name].detach().numpy().copy(), name=name)
        program = torch.onnx.ONNXProgram(model, None)
        program.optimize()
        return program

    export.plain = plain  # type: ignore[attr-defined]
    return export


@contextmanager
def tracing_once(folder: Path) -> Iterator[None]:
    """Has every export to ONNX in this process trace an architecture once."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced_once(folder, torch.onnx.export))
        yield

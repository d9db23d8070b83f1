"""What the tests' exports save must change nothing in what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from exports import structure, traced_once
from sfumato.lab.export.onnx import export_onnx


def net(seed: int, *, slope: float = 0.1) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(slope), nn.Conv2d(4, 2, 3))
    made(torch.rand(8, 3, 8, 8))
    return made.eval()


def exported(net: nn.Module, path: Path) -> tuple[list[bytes], dict[str, bytes]]:
    """(nodes without their running numbers, weights by name)."""
    export_onnx(net, path, torch.rand(2, 3, 8, 8), input_name="image", output_name="out")
    graph = onnx.load(path).graph
    for node in graph.node:
        node.name = ""
    nodes = [part.SerializeToString() for part in (*graph.input, *graph.node, *graph.output)]
    return nodes, {weight.name: weight.raw_data for weight in graph.initializer}


def test_a_graph_with_other_weights_is_the_one_that_is_traced_anew(tmp_path: Path, monkeypatch) -> None:
    traced = []

    patched: Any = torch.onnx.export

    def plain(*args, **how):
        traced.append(1)
        return patched.plain(*args, **how)

    monkeypatch.setattr(torch.onnx, "export", plain)
    wanted = exported(net(2), tmp_path / "wanted.onnx")
    monkeypatch.setattr(torch.onnx, "export", traced_once(tmp_path, plain))
    first, second = exported(net(1), tmp_path / "first.onnx"), exported(net(2), tmp_path / "second.onnx")
    assert len(traced) == 2 and second == wanted
    assert first[0] == wanted[0] and first[1] != wanted[1]


def test_a_structure_is_all_but_the_weights() -> None:
    class Local(nn.Linear):
        pass

    assert structure(net(1)) == structure(net(2)) != structure(net(1, slope=0.2))
    assert structure(Local(2, 2)) is None

"""Measure the limits of this machine, and count the operations and bytes of a piece of work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timing import time_in_turn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

SIDE, NUMBERS, ROUNDS = 2048, 32 * 2**20, 7


@dataclass(frozen=True)
class Counted:
    """Operations and bytes of a piece of work.

    Attributes:
        operations: of convolutions and products, two for each multiply-accumulate.
        moved_bytes: that its operators read and write if each of them has each of its tensors once from memory.
    """

    operations: int
    moved_bytes: int


def limits() -> dict[str, Any]:
    """The fastest large matrix product of each datatype, and the fastest copy, on torch's threads."""
    products = {}
    for datatype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(SIDE, SIDE).to(datatype) for _ in range(2))
        products[str(datatype).removeprefix("torch.")] = lambda a=a, b=b: torch.mm(a, b)
    source, target = torch.ones(NUMBERS), torch.empty(NUMBERS)
    times = time_in_turn({**products, "copy": lambda: target.copy_(source)}, warm_up=1, rounds=ROUNDS)
    best = {name: min(values) for name, values in times.items()}
    return {
        "gflop_per_s": {name: 2 * SIDE**3 / best[name] / 1e6 for name in products},
        "gb_per_s": 2 * 4 * NUMBERS / best["copy"] / 1e6,
        "spread": {name: statistics.median(values) / min(values) for name, values in times.items()},
        "threads": torch.get_num_threads(),
    }


def counted(work: Callable[[], object]) -> Counted:
    """Count the operations and bytes of a piece of work while it runs once."""
    given = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=given) as operations, _Moved() as moved:
        work()
    return Counted(int(operations.get_total_flops()), moved.bytes)


def _convolution_backward(
    out: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Any = None, **more: Any
) -> int:
    """As many operations as forward for each gradient that is asked for; torch's own count forgets groups.

    Args:
        out: the output's shape.
        x: the input's.
        weight: (C_out, C_in / groups, kH, kW), or of a transposed convolution (C_in, C_out / groups, kH, kW).
        rest: bias, stride, padding, dilation, transposed, output padding, groups, and which gradients are asked for.
        out_shape: of what is returned.
        more: nothing.
    """
    transposed, wanted = rest[4], rest[7]
    return 2 * math.prod(x if transposed else out) * math.prod(weight[1:]) * (wanted[0] + wanted[1])


class _Moved(TorchDispatchMode):
    """Sum the sizes of all tensors that operators read or write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        made = list(_tensors(out))
        in_place = func._schema.is_mutable
        if in_place or any(tensor.untyped_storage().data_ptr() not in given for tensor in made):
            self.bytes += sum(_size(tensor) for tensor in (*_tensors((args, kwargs)), *made))
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

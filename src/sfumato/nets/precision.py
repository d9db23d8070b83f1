"""Half precision where it is faster."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def autocast(device: torch.device = CPU) -> torch.autocast:
    """Networks compute in bfloat16 inside, where the machine is faster at it; weights stay float32.

    Convolutions of many channels gain, depthwise ones lose. A CPU that does not compute in bfloat16 itself stays with
    float32.

    Args:
        device: where the networks are.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or cpu_has_bfloat16())


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor computes in bfloat16 itself (AVX-512 BF16)."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())

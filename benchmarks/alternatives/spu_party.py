"""ResNet18 in SPU: two parties with the protocol Semi2k, simulated in one process. Runs in `.interop/spu`.

For each line on its input it classifies one image and prints what that took as a line of JSON. The parties' messages
stay in memory here and are not counted. Batch norms are taken as folded into the convolutions.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import spu
import spu.utils.simulation as simulation
from memory import peak_mb

DEPTHS, WIDTHS = (2, 2, 2, 2), (64, 128, 256, 512)
TOLERANCE = 0.05


def weights() -> list[np.ndarray]:
    """Of all convolutions in the order of their use, and of the last layer; random, without biases."""
    random, made, channels = np.random.default_rng(0), [], WIDTHS[0]

    def add(inputs: int, outputs: int, kernel: int) -> None:
        scale = (2 / (inputs * kernel**2)) ** 0.5
        made.append((random.normal(size=(outputs, inputs, kernel, kernel)) * scale).astype(np.float32))

    add(3, channels, 3)
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        for block in range(depth):
            add(channels, width, 3)
            add(width, width, 3)
            if stage and not block:
                add(channels, width, 1)
            channels = width
    add(channels, 10, 1)
    return made


def forward(image: jax.Array, layers: list[jax.Array]) -> jax.Array:
    """Return the logits (1, 10, 1, 1) of an image (1, 3, 32, 32)."""
    rest = iter(layers)

    def convolve(x: jax.Array, stride: int = 1) -> jax.Array:
        weight = next(rest)
        side = weight.shape[-1] // 2
        return jax.lax.conv_general_dilated(x, weight, (stride, stride), [(side, side)] * 2)

    x = jnp.maximum(convolve(image), 0)
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            inner = convolve(jnp.maximum(convolve(x, stride), 0))
            x = jnp.maximum(inner + (convolve(x, stride) if stride == 2 else x), 0)
    return convolve(x.mean((2, 3), keepdims=True))


def main() -> None:
    config = spu.RuntimeConfig(protocol=spu.ProtocolKind.SEMI2K, field=spu.FieldType.FM64)
    parties = simulation.Simulator(2, config)
    secret = simulation.sim_jax(parties, forward)
    layers = weights()
    image = np.random.default_rng(1).random((1, 3, 32, 32), dtype=np.float32)
    wanted = np.asarray(forward(image, layers))
    for _ in sys.stdin:
        start = time.perf_counter()
        found = np.asarray(secret(image, layers))
        seconds = time.perf_counter() - start
        off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        reported = {
            "seconds": seconds,
            "peak_memory_mb": [peak_mb()],
            "relative_error": off,
            "correct": off < TOLERANCE,
        }
        print(json.dumps(reported), flush=True)


if __name__ == "__main__":
    main()

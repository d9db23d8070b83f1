"""A network of one convolution and two linear layers under CKKS with TenSEAL. Runs in `.interop/tenseal`.

For each line on its input it classifies one image and prints what that took as a line of JSON. A ResNet cannot be had
so: nothing is refreshed (no bootstrapping), so only as many products follow each other as the parameters allow, and the
activations are squares. Device and server are one process here; the bytes to send are counted.

Source: the network is that of TenSEAL's tutorial on convolutional networks in shape, for three channels.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import tenseal as ts
from memory import peak_mb

SIDE, CHANNELS, KERNEL, STRIDE, FILTERS, HIDDEN, CLASSES = 32, 3, 7, 5, 4, 64, 10
WINDOWS = ((SIDE - KERNEL) // STRIDE + 1) ** 2
MACS = WINDOWS * FILTERS * CHANNELS * KERNEL**2 + WINDOWS * FILTERS * HIDDEN + HIDDEN * CLASSES
TOLERANCE = 0.1
"""CKKS is approximate, and 26 bits behind the point are few."""


def windows(image: np.ndarray) -> np.ndarray:
    """A channel (32, 32) -> what the kernel sees at each place, (places, 49)."""
    seen = np.lib.stride_tricks.sliding_window_view(image, (KERNEL, KERNEL))[::STRIDE, ::STRIDE]
    return seen.reshape(WINDOWS, KERNEL**2)


def main() -> None:
    random = np.random.default_rng(0)
    kernels = random.normal(size=(FILTERS, CHANNELS, KERNEL, KERNEL)) / KERNEL / 2
    first = random.normal(size=(WINDOWS * FILTERS, HIDDEN)) / (WINDOWS * FILTERS) ** 0.5
    second = random.normal(size=(HIDDEN, CLASSES)) / HIDDEN**0.5
    image = random.random((CHANNELS, SIDE, SIDE))
    plain = np.concatenate(
        [sum(windows(image[c]) @ kernels[f, c].ravel() for c in range(CHANNELS)) for f in range(FILTERS)]
    )
    wanted = np.square(np.square(plain) @ first) @ second

    bits = 26
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[31, *[bits] * 6, 31])
    context.global_scale = 2**bits
    context.generate_galois_keys()
    keys_bytes = len(context.serialize(save_secret_key=False))
    for _ in sys.stdin:
        start = time.perf_counter()
        sent = [ts.im2col_encoding(context, channel.tolist(), KERNEL, KERNEL, STRIDE)[0] for channel in image]
        parts = []
        for kernel in kernels:
            each = [x.conv2d_im2col(k.tolist(), WINDOWS) for x, k in zip(sent, kernel, strict=True)]
            parts.append(each[0] + each[1] + each[2])
        hidden = ts.CKKSVector.pack_vectors(parts)
        hidden.square_()
        hidden = hidden.mm(first.tolist())
        hidden.square_()
        encrypted = hidden.mm(second.tolist())
        found = np.asarray(encrypted.decrypt())
        seconds = time.perf_counter() - start
        off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        reported = {
            "seconds": seconds,
            "sent_bytes": sum(len(x.serialize()) for x in sent),
            "received_bytes": len(encrypted.serialize()),
            "once_sent_bytes": keys_bytes,
            "peak_memory_mb": [peak_mb()],
            "macs": MACS,
            "relative_error": off,
            "correct": off < TOLERANCE,
        }
        print(json.dumps(reported), flush=True)


if __name__ == "__main__":
    main()

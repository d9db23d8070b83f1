"""The allocator setting that makes training on a CPU fast."""

from __future__ import annotations

import os
import platform
import sys

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def keep_freed_memory() -> None:
    """Start the process again with an allocator that keeps freed memory, unless the environment sets it already.

    glibc gives every large tensor back to the system and faults its pages in again at the next step, which doubles
    the time of a training step on a CPU. It reads these variables only at the start of a process.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC):
        return
    os.environ.update(_MALLOC)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

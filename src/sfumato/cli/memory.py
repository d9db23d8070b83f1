"""The allocator settings that make training on a CPU fast."""

from __future__ import annotations

import os
import platform
import sys

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def keep_freed_memory() -> None:
    """Start the process again with an allocator that keeps freed memory, unless the environment sets it already.

    glibc gives every large tensor back to the system and faults its pages in again at the next step, which doubles
    the time of a training step on a CPU. Where the system leaves huge pages to those who ask (`madvise`), it is asked
    for them as well: steps are bound by memory, and miss fewer translations of its addresses then. glibc reads these
    variables only at the start of a process; before 2.35 it ignores the last one.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC):
        return
    tunables = ":".join(filter(None, (os.environ.get(_TUNABLES), _HUGE_PAGES)))
    os.environ.update({**_MALLOC, _TUNABLES: tunables})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

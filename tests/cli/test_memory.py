"""The allocator settings, in a process of their own: they are read at its start."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os
from sfumato.cli.memory import keep_freed_memory
keep_freed_memory()
print(os.environ["MALLOC_TRIM_THRESHOLD_"], os.environ.get("GLIBC_TUNABLES"))
"""
NAMES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def said(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**kept, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, f"{16 << 30} glibc.malloc.hugetlb=1"),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"},
            f"{16 << 30} glibc.malloc.tcache_count=7:glibc.malloc.hugetlb=1",
        ),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, "1 None"),
    ],
)
def test_a_process_starts_again_with_them_unless_they_are_set(environment: dict[str, str], expected: str) -> None:
    assert said(**environment) == expected

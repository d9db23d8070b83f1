"""`sfumato protect` on many images: memory at three sizes, and a run that is killed half-way and resumes.

`python benchmarks/protect_many.py` writes results/protect-many.json

The images are small (32 x 32, 64 different ones, in folders of 1,000), so that it is files and processes that are
measured; the obfuscator is the shipped one, which makes every image of the largest size in the end.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.artifacts.files import write_json
from sfumato.artifacts.provenance import provenance

SIZES = (1_000, 10_000, 100_000)
IN_A_FOLDER = 1_000
DIFFERENT = 64
SAMPLE_EVERY_S = 0.2


class Command:
    """`sfumato protect` as a process, and the most memory that it and its processes ever held."""

    def __init__(self, source: Path, out: Path, *options: str) -> None:
        command = [sys.executable, "-m", "sfumato", "protect", str(source), "-o", str(out), "--always-send", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.start_s = time.perf_counter()
        self.peaks_mb: dict[int, float] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> dict[str, Any]:
        """Wait for it; return its output and its cost."""
        out, errors = self.process.communicate()
        seconds = time.perf_counter() - self.start_s
        self._ended.set()
        counts = re.search(r"(\d+) of (\d+) images written to .*?(?:; (\d+) were there)?$", out.strip())
        if self.process.returncode == 0 and counts is None:
            raise SystemExit(f"unexpected output: {out} {errors}")
        parent, *workers = [
            self.peaks_mb[pid] for pid in sorted(self.peaks_mb, key=lambda pid: pid != self.process.pid)
        ]
        return {
            "seconds": seconds,
            "written": int(counts[1]) if counts else None,
            "there": int(counts[3] or 0) if counts else None,
            "peak_mb_first_process": parent,
            "peak_mb_largest_worker": max(workers, default=0.0),
            "peak_mb_sum": parent + sum(workers),
        }

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            for pid in (self.process.pid, *_children(self.process.pid)):
                try:
                    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                except OSError:
                    continue
                if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
                    self.peaks_mb[pid] = int(found[1]) / 1024


def _children(pid: int) -> list[int]:
    try:
        return [int(text) for file in Path(f"/proc/{pid}/task").glob("*/children") for text in file.read_text().split()]
    except OSError:
        return []


def make(folder: Path, count: int) -> Path:
    """Save images as files."""
    random = np.random.default_rng(0)
    different = []
    for _ in range(DIFFERENT):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
        different.append(stream.getvalue())
    for index in range(count):
        file = folder / f"{index // IN_A_FOLDER:04d}" / f"{index:07d}.png"
        if index % IN_A_FOLDER == 0:
            file.parent.mkdir(parents=True)
        file.write_bytes(different[index % DIFFERENT])
    return folder


def written(out: Path) -> int:
    """Complete previews in a folder."""
    return sum(name.endswith(".obfuscated.png") for _, _, names in os.walk(out) for name in names)


def at_one_go(place: Path, count: int) -> dict[str, Any]:
    found = Command(make(place / f"images-{count}", count), place / f"out-{count}").end()
    return {**found, "images_per_s": found["written"] / found["seconds"]}


def killed_and_resumed(place: Path, count: int) -> dict[str, Any]:
    source, out = make(place / f"images-{count}", count), place / f"out-{count}"
    first = Command(source, out)
    while written(out) < count // 2:
        if first.process.poll() is not None:
            raise SystemExit(f"it ended before it was killed: {first.process.communicate()[1]}")
        time.sleep(1)
    first.process.send_signal(signal.SIGKILL)
    killed = first.end()
    time.sleep(1)  # the workers end with it
    done = written(out)
    resumed = Command(source, out, "--resume").end()
    rates = {"before": done / killed["seconds"], "resumed": resumed["written"] / resumed["seconds"]}
    return {
        "written_before_the_kill": done,
        "of_these_made_again": done - resumed["existing"],
        "written_after": resumed["written"],
        "complete_in_the_end": written(out),
        "seconds": killed["seconds"] + resumed["seconds"],
        "images_per_s": rates,
        **{name: max(killed[name], resumed[name]) for name in killed if name.startswith("peak_mb")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path("results/protect-many.json"))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="the last one is killed and resumed")
    given = parser.parse_args()
    *whole, largest = map(int, given.sizes.split(","))
    with tempfile.TemporaryDirectory() as folder:
        runs = {str(count): at_one_go(Path(folder), count) for count in whole}
        runs[str(largest)] = killed_and_resumed(Path(folder), largest)
    memory = {name: round(run["peak_mb_first_process"], 1) for name, run in runs.items()}
    write_json(
        given.out,
        {
            "what": "sfumato protect --always-send on folders of 32 x 32 PNG files, the shipped obfuscator, a process "
            "for each core; the largest folder's run killed by SIGKILL half-way and resumed",
            "runs": runs,
            "measured": provenance(different_images=DIFFERENT, images_in_a_folder=IN_A_FOLDER).to_json(),
        },
    )
    last = runs[str(largest)]
    print(f"{last['images_per_s']['resumed']:,.0f} images/s; peak of the first process, MB: {memory} -> {given.out}")


if __name__ == "__main__":
    main()

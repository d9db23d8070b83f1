"""Classify the JPEG files that a camera writes into a folder, without showing the images to the cloud.

Each file is classified once it is whole, and gets one line in a JSON-lines file. After a restart the files without a
line follow; a server that is down is tried again until it responds.

    python examples/watched_folder.py camera/ --server https://classify.example.org --bundle bundle/ --out results.jsonl

Needs `pip install sfumato`; runs until Ctrl-C.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sfumato.artifacts import shipped
from sfumato.device import Client
from sfumato.errors import BundleError, EndpointError, ImageError

POLL_S = 0.5
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0


def whole_images(folder: Path, done: set[tuple[str, int]]) -> Iterator[tuple[Path, int]]:
    """Yield each JPEG file that is not done, and when it was written, in ns; one that still changes is waited for."""
    before: dict[Path, tuple[int, int]] = {}
    while True:
        states = {file: (s.st_mtime_ns, s.st_size) for file in sorted(folder.glob("*.jp*g")) if (s := status(file))}
        for file, (modified_ns, size) in states.items():
            if size and before.get(file) == (modified_ns, size) and (file.name, modified_ns) not in done:
                yield file, modified_ns
        before = states
        time.sleep(POLL_S)


def status(file: Path) -> os.stat_result | None:
    """Return the file's status, None if it was just deleted."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def classify(client: Client, file: Path) -> dict[str, object]:
    """Return the result for one file, however long the server is down; the image stays on the device meanwhile."""
    pause_s = RETRY_S
    while True:
        try:
            found = client.classify(file)
        except (ImageError, BundleError) as error:  # damaged, deleted or not hidden: trying again would not help
            return {"error": str(error)}
        except EndpointError as error:
            print(f"{file.name}: {error}; next try in {pause_s:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)
        else:
            return {"label": found.label, "probability": round(found.probability, 4), "by": found.predicted_by}


def watch(client: Client, folder: Path, out: Path) -> None:
    """Append a line to `out` for each image in the folder; never return."""
    out.touch()
    text = out.read_bytes()
    os.truncate(out, text.rfind(b"\n") + 1)  # a line that a power cut left unfinished: its image follows again
    lines = [json.loads(line) for line in text.split(b"\n")[:-1]]
    done = {(line["file"], line["modified_ns"]) for line in lines}
    with out.open("a", encoding="utf-8") as stream:
        for file, modified_ns in whole_images(folder, done):
            result = {"file": file.name, "modified_ns": modified_ns, **classify(client, file)}
            print(json.dumps(result), file=stream, flush=True)
            done.add((file.name, modified_ns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", required=True)
    parser.add_argument("--bundle", type=Path, default=shipped.obfuscator_bundle(), help="Default: the shipped one.")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    arguments = parser.parse_args()
    with Client(arguments.server, arguments.bundle) as client:
        watch(client, arguments.folder, arguments.out)

"""The codec under atheris, the coverage-guided fuzzer: `.interop/atheris/bin/python guided.py RUNS SEED FOLDER`.

It runs in an environment that has atheris and numpy alone, and writes FOLDER/guided.json. What atheris adds to the own
mutator (`codec_fuzz.py`) are inputs that reach lines which random changes do not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]
_REPORT_EVERY = 5000


def main(runs: int, seed: int, folder: Path) -> None:
    import atheris

    with contextlib.redirect_stderr(sys.stdout), atheris.instrument_imports(include=["sfumato.wire"]):
        wire = importlib.import_module("sfumato.wire")
    from sfumato.errors import WireError

    decoders = (wire.decode_request, wire.decode_response, wire.decode_metadata, wire.decode_extensions)
    counted: Counter[str] = Counter()
    begun = time.perf_counter()

    def report(failure: str = "", example: bytes = b"") -> None:
        said = {"runs": sum(counted.values()), "seconds": time.perf_counter() - begun, "outcomes": dict(counted)}
        said |= {"tool": f"atheris {metadata.version('atheris')}", "failure": failure, "example_hex": example.hex()}
        (folder / "guided.json").write_text(json.dumps(said))

    def one(data: bytes) -> None:
        kind, length = (data[0] % 4 if data else 0), int.from_bytes(data[1:3])
        decode, body = decoders[kind], data[3:]
        try:
            decode(body, length) if kind < 2 and length != 0xFFFF else decode(body)
            counted["accepted"] += 1
        except WireError:
            counted["refused"] += 1
        except BaseException as error:
            counted["unexpected error"] += 1
            report(type(error).__name__, data)
            raise
        if sum(counted.values()) % _REPORT_EVERY == 0:
            report()
        if sum(counted.values()) >= runs:
            report()
            os._exit(0)

    arguments = [sys.argv[0], f"-seed={seed + 1}", "-rss_limit_mb=4096", "-timeout=20", "-max_len=4096"]
    atheris.Setup([*arguments, f"-artifact_prefix={folder}/", str(folder / "corpus")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

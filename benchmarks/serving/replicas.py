"""Requests a second against replicas on Ray Serve, beside the embedded server, in one run.

`make bench-ray` runs it with the other one. It writes results/replicas.json

The load is that of run.py: wrk, 16 connections, one 3x32x32 picture a request; the classifier is the shipped ResNet20.
All of it, wrk too, shares this machine's cores, so that replicas beyond their number can win nothing.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from run import CONNECTIONS, _load, _version_of_wrk, contenders
from servers import NAME, Served

from sfumato import shipped
from sfumato.bundle import write_json
from sfumato.provenance import provenance

ROUNDS, SECONDS, WARM_UP_S = 3, 5, 2
SERVERS = {
    "embedded": (),
    "1 replica": ("--engine", "ray", "--replicas", "1"),
    "2 replicas": ("--engine", "ray", "--replicas", "2"),
}


def main(out: Path = Path("results/replicas.json")) -> None:
    one = contenders()["sfumato"]
    found: dict[str, Any] = {}
    for name, options in SERVERS.items():  # one after the other: replicas that idle take time, too
        command = [sys.executable, "-m", "sfumato", "serve", str(shipped.classifier_bundle()), "--name", NAME]
        server = subprocess.Popen([*command, "--port", "0", "--json", *options], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            served = Served(json.loads(server.stdout.readline())["url"], None, pid=server.pid)
            _load(one, served, WARM_UP_S)
            rounds = [_load(one, served, SECONDS) for _ in range(ROUNDS)]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=120)
        found[name] = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(name, {key: round(value, 3) for key, value in found[name].items()})
    write_json(
        out,
        {
            "what": f"the shipped ResNet20, one 3x32x32 float32 picture a request, {CONNECTIONS} connections",
            "load": f"{_version_of_wrk()}, one thread, on the same {os.cpu_count()} cores",
            "rounds": ROUNDS,
            "seconds_a_round": SECONDS,
            "servers": found,
            "measured": provenance(ray=metadata.version("ray")),
        },
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

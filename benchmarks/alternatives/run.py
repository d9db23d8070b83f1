"""Compare the alternatives to an obfuscator: one 3x32x32 image each, on one machine, in one run.

`make alternatives`, or `python benchmarks/alternatives/run.py [NAME ...]`, writes results/alternatives.json, and the
table of docs/alternatives.md from it. The names choose among the foreign systems (`SYSTEMS` below); each lies in an
environment of its own under `.interop/` (`make .interop/crypten/.installed`), and one whose environment is missing is
left out, with the reason. Weights are random: they do not change the time, and no accuracies are compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import random_bundles  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from page import OWN, table  # noqa: E402

from sfumato.artifacts.files import write_json  # noqa: E402
from sfumato.artifacts.provenance import provenance  # noqa: E402
from sfumato.lab.models import Obfuscator, build_classifier, cost  # noqa: E402
from sfumato.lab.report.attribute_table import write_between  # noqa: E402

ENVIRONMENTS = Path(".interop")
PAGE = Path("docs/alternatives.md")
WARM_UP, ROUNDS, SLOW_ROUNDS = 20, 200, 2
MARKS = "<!-- make alternatives -->", "<!-- end -->"


@dataclass(frozen=True)
class System:
    """A foreign system.

    Attributes:
        title: for people.
        environment: its folder in `.interop`.
        packages: whose versions are noted.
        command: the script next to this file, and its arguments.
        net: what it classifies with.
        promises: what it promises and to whom.
    """

    title: str
    environment: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    net: str
    promises: str


_DEALT = (
    "the image stays hidden from the server as long as the two parties do not join; here one of them deals the triples"
)
SYSTEMS = {
    "crypten": System(
        "CrypTen (MPC), private weights", "crypten", ("crypten", "torch"), ("crypten_party.py", "resnet18", "private"),
        "resnet18", f"{_DEALT}; the weights stay hidden from the device",
    ),
    "crypten-public": System(
        "CrypTen (MPC), public weights", "crypten", ("crypten", "torch"), ("crypten_party.py", "resnet18", "public"),
        "resnet18", f"{_DEALT}; the device learns the weights",
    ),
    "crypten-resnet20": System(
        "CrypTen (MPC), private weights", "crypten", ("crypten", "torch"), ("crypten_party.py", "resnet20", "private"),
        "resnet20", f"{_DEALT}; the weights stay hidden from the device",
    ),
    "spu": System(
        "SPU Semi2k (MPC), private weights", "spu", ("spu", "jax"), ("spu_party.py",), "resnet18",
        "the image stays hidden from the server as long as the parties do not join; a third one deals the triples",
    ),
    "tenseal": System(
        "TenSEAL CKKS (homomorphic)", "tenseal", ("tenseal",), ("tenseal_party.py",), "one convolution, two linear",
        "the image is encrypted under the device's own key: the server learns nothing, whoever it joins with",
    ),
}  # fmt: skip
FULL = ("crypten", "spu")
"""Full runs of ResNet18 in which image and weights both stay private: what the obfuscator is compared with."""


class Party:
    """A running foreign system; it classifies on request and reports the cost."""

    def __init__(self, system: System) -> None:
        python = ENVIRONMENTS / system.environment / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"there is no {python}; make {ENVIRONMENTS / system.environment}/.installed")
        self.system = system
        script, *arguments = system.command
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def classify(self) -> dict[str, Any]:
        """Classify one image.

        Raises:
            RuntimeError: it ended, or its result is incorrect.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = next((line for line in self._process.stdout if line.startswith("{")), "")
        if not line:
            self._said.seek(0)
            raise RuntimeError("; ".join(self._said.read().strip().splitlines()[-1:]) or "it ended")
        reported = dict(json.loads(line))
        if not reported["correct"]:
            raise RuntimeError(f"its result is off by {reported['relative_error']:.2g} of the largest logit")
        return reported

    def versions(self) -> dict[str, str]:
        """Of its packages."""
        code = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        python = str(ENVIRONMENTS / self.system.environment / "bin" / "python")
        done = subprocess.run([python, "-c", code, *self.system.packages], capture_output=True, check=True)
        return dict(json.loads(done.stdout))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._said.close()


def main(*names: str, out: Path = Path("results/alternatives.json"), quick: bool = False) -> None:
    rows = _fast(*((2, 3) if quick else (WARM_UP, ROUNDS)))
    rows += _slow(names or tuple(SYSTEMS), 1 if quick else SLOW_ROUNDS)
    seconds = {row["name"]: row["seconds"] for row in rows if "seconds" in row}
    full = {name: seconds[name] for name in FULL if name in seconds}
    result = {
        "what": (
            "one 3x32x32 image, one thread for each process, loopback, random weights; seconds are medians, all of "
            "one run; bytes are of one image, without what is exchanged once"
        ),
        "round_trip_of_plain": {name: seconds[name] / seconds["plain"] for name in ("paper", "sketch")},
        "fastest_full_mpc_of_paper": min(full.values()) / seconds["paper"] if full else None,
        "rows": rows,
        "measured": provenance(rounds=3 if quick else ROUNDS, slow_rounds=1 if quick else SLOW_ROUNDS).to_json(),
    }
    write_json(out, result)
    if not quick:
        write_between(PAGE, table(result), *MARKS)
    print(f"{out}: round trip {result['round_trip_of_plain']['paper']:.3f} times the plain one's")


def _fast(warm_up: int, rounds: int) -> list[dict[str, Any]]:
    """Measure on-device classification, plain offload, and offload through the obfuscators."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        served = random_bundles.classifier(home / "resnet18", "resnet18")
        random_bundles.classifier(home / "resnet-local", "resnet-local")
        random_bundles.obfuscator(home / "paper", served)
        random_bundles.sketch(home / "sketch", served)
        command = [sys.executable, str(HERE / "offload.py"), str(home), str(warm_up), str(rounds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    reported = json.loads(done.stdout.splitlines()[-1])
    macs = {name: cost(build_classifier(name)).macs for name in ("resnet18", "resnet-local")}
    macs["paper"] = cost(Obfuscator()).macs
    rows = []
    for name, times in reported["times_ms"].items():
        payload = reported["bytes"].get(name)
        row = {
            "name": name,
            "title": OWN[name].title,
            "net": OWN[name].net,
            "promises": OWN[name].promises,
            **_summary([value / 1000 for value in times]),
            **(payload or {"sent_bytes": 0, "received_bytes": 0}),
            "peak_memory_mb": [
                reported["peak_memory_mb"][who] for who in (("client", "server") if payload else ("client",))
            ],
        }
        rows.append(row | ({"device_macs": macs[name]} if name in macs else {}))
    return rows


def _slow(names: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """The foreign systems, once a round each, after a first image that is not counted."""
    parties: dict[str, Party] = {}
    failed: dict[str, str] = {}
    reported: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for round_ in range(rounds + 1):
            for name in names:
                if name in failed:
                    continue
                print(f"{SYSTEMS[name].title}, {SYSTEMS[name].net}: {round_} of {rounds}", file=sys.stderr)
                try:
                    if name not in parties:
                        parties[name] = Party(SYSTEMS[name])
                    said = parties[name].classify()
                except (OSError, RuntimeError) as error:
                    failed[name] = str(error)
                else:
                    reported[name] += [said] * bool(round_)
        rows = []
        for name in names:
            system = SYSTEMS[name]
            row = {"name": name, "title": system.title, "net": system.net, "promises": system.promises}
            if name in failed:
                rows.append(row | {"skipped": failed[name]})
                continue
            last = {key: value for key, value in reported[name][-1].items() if key not in ("seconds", "correct")}
            seconds = _summary([said["seconds"] for said in reported[name]])
            rows.append(row | seconds | last | {"versions": parties[name].versions()})
        return rows
    finally:
        for party in parties.values():
            party.close()


def _summary(seconds: list[float]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "times": len(seconds),
    }


def command(
    systems: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SYSTEMS)}; default: all.")] = None,
    *,
    quick: bool = False,
) -> None:
    """Compare the alternatives, and write results file and table; with `--quick`, try it and write neither."""
    chosen = tuple(systems or ())
    if unknown := set(chosen) - set(SYSTEMS):
        raise typer.BadParameter(f"unknown system {', '.join(sorted(unknown))}; known: {', '.join(SYSTEMS)}")
    if quick:
        with tempfile.TemporaryDirectory() as scratch:
            main(*chosen, out=Path(scratch) / "alternatives.json", quick=True)
    else:
        main(*chosen)


if __name__ == "__main__":
    typer.run(command)

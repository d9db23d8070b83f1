"""The measured figures of speed as one page: docs/how-fast.md.

`python benchmarks/how_fast.py` after the benchmarks that it names. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "how-fast.md"


@dataclass(frozen=True)
class Target:
    """What was to be reached.

    Attributes:
        what: in words.
        file: of the results.
        figure: finds it there.
        wanted: at least, or at most if `at_most`.
        shown: how a figure is written.
        command: that measures it again.
        reason: why it was not reached, where it was not.
    """

    what: str
    file: str
    figure: Callable[[Any], float]
    wanted: float
    shown: str
    command: str
    reason: str = ""
    at_most: bool = False

    def reached(self, value: float) -> bool:
        """Whether that is good enough."""
        return value <= self.wanted if self.at_most else value >= self.wanted


def _times_as_fast(*servers: str, ours: str = "sfumato") -> Callable[[Any], float]:
    """Requests/s of a tiny classifier beside the fastest of these."""

    def ratio(found: Any) -> float:
        speeds = {key: each["requests_per_s"] for key, each in found["classifiers"]["tiny"].items()}
        return float(speeds[ours] / max(speeds[server] for server in servers))

    return ratio


TARGETS = (
    Target(
        "the paper's obfuscator, time of ResNet18's, one image, one thread",
        "device-latency.json",
        lambda found: found["obfuscator_share_of_resnet18"],
        0.04,
        "{:.1%}",
        "python benchmarks/device_latency.py",
        "Its operations are fewer than that. With ReLU in place of leaky ReLU the same graph comes to the share that "
        "the table below shows: ONNX Runtime computes ReLU for nothing, leaky ReLU in a pass of its own. The rest is "
        "depthwise layers, which run at a third of the other convolutions' rate, and what a call costs however small "
        "the network is.",
        at_most=True,
    ),
    Target(
        "requests/s of one process beside Triton, tiny classifier, 16 connections, binary",
        "serving.json",
        _times_as_fast("triton"),
        1.0,
        "{:.2f} x",
        "make serving",
        "Ours is one process whose loop keeps one core busy; Triton spreads over more of the machine. Processor time a "
        "request is in the table below.",
    ),
    Target(
        "the same with `--replicas 2`, beside Triton with one instance or two, whichever is faster",
        "serving.json",
        _times_as_fast("triton", "triton2", ours="sfumato2"),
        1.0,
        "{:.2f} x",
        "make serving",
        "The load generator shares the cores with all processes.",
    ),
    *(
        Target(f"requests/s beside {title}", "serving.json", _times_as_fast(key), 3.0, "{:.1f} x", "make serving")
        for key, title in (
            ("kserve", "KServe's SDK, binary"),
            ("mlserver", "MLServer, JSON"),
            ("litserve", "LitServe, JSON"),
        )
    ),
    Target(
        "ResNet18 served, of what ONNX Runtime does alone in a loop",
        "serving.json",
        lambda found: found["resnet18_beside_onnxruntime"]["share_of_onnxruntime"],
        0.9,
        "{:.1%}",
        "make serving",
        "The load generator and the protocol share the machine's cores with the model's thread.",
    ),
    Target(
        "a training step beside the plain loop of the paper's recipe",
        "training-step.json",
        lambda found: found["speedup"],
        3.0,
        "{:.2f} x",
        "python benchmarks/training_step.py",
        "Both loops use the same convolutions; what ours saves is a second pass, norms and memory. What a step must "
        "compute and move at least stands below.",
    ),
    Target(
        "training in two processes, of one process with one thread",
        "training-processes.json",
        lambda found: found["of_one_process_and_thread"]["2 processes x 1 thread"],
        1.5,
        "{:.2f} x",
        "python benchmarks/training_processes.py",
        "The cores are two threads of one physical core, or share its memory.",
    ),
    Target(
        "a round trip through the paper's obfuscator, of plain offload's",
        "alternatives.json",
        lambda found: found["round_trip_of_plain"]["paper"],
        1.15,
        "{:.3f} x",
        "make alternatives",
        at_most=True,
    ),
    Target(
        "the fastest full run under multi-party computation, of the same round trip",
        "alternatives.json",
        lambda found: found["fastest_full_mpc_of_paper"] or float("nan"),
        200.0,
        "{:,.0f} x",
        "make alternatives",
        "Its parties run on one machine, where what they exchange crosses no network: the 448 MB that each of them "
        "sends would take 3.6 s at 1 Gbit/s, more than all that was measured. The round trip that it is compared with "
        "is mostly the cloud's ResNet18 itself.",
    ),
    Target(
        "requests that failed while a replica was killed under load",
        "failover.json",
        lambda found: float(sum(one["failed_after_retries"] for one in found["engines"].values())),
        0.0,
        "{:.0f}",
        "make failover",
        at_most=True,
    ),
)


def read(name: str) -> Any | None:
    """A results file; None if it was not measured."""
    file = RESULTS / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def page() -> str:
    """All of it."""
    parts = [
        "# How fast",
        "",
        "Written by `python benchmarks/how_fast.py` from the files in [results](../results). Every figure is a "
        "ratio of what ran in",
        "turn in one run on one machine, with random weights where they do not matter; a CPU's figures, no GPU's. What "
        "grows with what",
        "is on [a page of its own](growth.md), what else one could use on [another](alternatives.md).",
        "",
        *_targets(),
        *_device(),
        *_serving(),
        *_training(),
        *_many(),
        *_failover(),
        *_machines(),
    ]
    return "\n".join(parts).rstrip() + "\n"


def sentence(text: str) -> str:
    """With a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table's lines, and an empty one."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)] + [""]


def _targets() -> list[str]:
    rows, reasons = [], []
    for target in TARGETS:
        found = read(target.file)
        bound = ("at most " if target.at_most else "at least ") + target.shown.format(target.wanted)
        if found is None:
            rows.append([target.what, bound, "not measured", "", f"`{target.command}`"])
            continue
        value = target.figure(found)
        good = target.reached(value)
        rows.append(
            [target.what, bound, target.shown.format(value), "yes" if good else "**no**", f"`{target.command}`"]
        )
        if not good:
            reasons.append(f"- **{target.what}: {target.shown.format(value)}.** {target.reason}")
    lines = ["## What was to be reached", "", *table(["", "target", "measured", "reached", "again"], rows)]
    return lines + (["What was not reached, and why:", "", *reasons, ""] if reasons else [])


def _device() -> list[str]:
    found = read("device-latency.json")
    lines = ["## On the device", ""]
    if found is not None and "rows" in found:
        rows = [
            [
                what,
                f"{found['median_ms'][name]:.2f}",
                f"{100 * share:.1f} %" if (share := found["share_of_resnet18"].get(name)) is not None else "100 %",
                f"{100 * macs:.1f} %"
                if (macs := found["share_of_resnet18_in_multiply_accumulates"].get(name)) is not None
                else "",
            ]
            for name, what in found["rows"].items()
            if name in found["median_ms"]
        ]
        lines += [f"{sentence(found['what'])}:", ""]
        lines += table(["", "ms", "of ResNet18's time", "of its multiply-accumulates"], rows)
    lines += _mobile()
    found = read("quantized.json")
    if found is not None:
        rows = []
        for name, kinds in found["obfuscators"].items():
            for kind, one in kinds.items():
                rows.append([name, kind, *_quantized(one), _leakage(f"{name}-{kind}")])
        lines += ["In 8-bit integers, calibrated on 500 training images, all test images:", ""]
        lines += table(
            ["", "", "time, of float32", "accuracy of the cloud", "answers changed", "MB", "leaks at least"], rows
        )
        lines += [
            "U8S8 is what `sfumato export --to int8` makes ([how](device.md#in-8-bit-integers)): another",
            "obfuscator, with an audit of its own. What it saves is little beside decoding the image and",
            "asking the cloud.",
            "",
        ]
    return lines


def _mobile() -> list[str]:
    found = read("mobile-runtimes.json")
    if found is None:
        return []
    rows = [
        [
            name,
            *(f"{one['median_ms'][runtime]:.2f}" for runtime in ("onnxruntime", "executorch")),
            f"{one['time_of_onnxruntime']:.2f}",
            *(f"{one['megabytes'][runtime]:.2f}" for runtime in ("onnxruntime", "executorch")),
            f"{(compared := one['compared'])['largest_difference']:.0e}",
            f"{compared['cloud_answers_changed']} of {compared['images']:,}",
            "" if compared["codes_changed"] is None else f"{compared['codes_changed']}",
        ]
        for name, one in found["obfuscators"].items()
    ]
    head = [
        "",
        "ONNX Runtime, ms",
        "ExecuTorch, ms",
        "of ONNX Runtime's time",
        ".onnx, MB",
        ".pte, MB",
        "largest difference of outputs, relative",
        "answers of the cloud changed",
        "codes changed",
    ]
    version, machine = found["measured"]["executorch"], found["measured"]["machine"]["cpu"]
    said = f"Under ExecuTorch {version} with XNNPACK (`make mobile`): {found['what']}, {machine}; not timed on a phone."
    return [said, "", *table(head, rows)]


def _quantized(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['time_of_float32']:.2f}",
        f"{100 * one['accuracy_obfuscated']:.1f} %",
        f"{100 * one['answers_changed']:.1f} %",
        f"{one['megabytes']:.2f}",
    ]


def _leakage(name: str) -> str:
    """What its audit says, if it has one."""
    audit = read(f"quantized/{name}.json")
    return "not audited" if audit is None else f"{audit['best']['excess_leakage']:.2f} ({audit['budget']['name']})"


def _serving() -> list[str]:
    found = read("serving.json")
    if found is None:
        return []
    lines = [
        "## The server",
        "",
        f"{sentence(found['what'])}; load by {found['load']}. Triton is NVIDIA's program as the wheel "
        "`nvidia-pytriton` carries it, with the Python backend and ONNX Runtime in it; its own ONNX backend was not at "
        "hand.",
        "",
    ]
    rows = [
        [
            model,
            f"{found['servers'][key]['title']}, {found['servers'][key]['encoding']}",
            f"{one['requests_per_s']:,.0f}",
            f"{one['cpu_ms_per_request']:.3f}",
            f"{one['p50_ms']:.1f}",
            f"{one['p99_ms']:.1f}",
            f"{one['sfumato_is_times_as_fast']:.2f}",
        ]
        for model, each in found["classifiers"].items()
        for key, one in each.items()
    ]
    head = [
        "classifier",
        "server",
        "requests/s",
        "server's CPU, ms a request",
        "median, ms",
        "99 %, ms",
        "ours is so many times as fast",
    ]
    return lines + table(head, rows)


def _training() -> list[str]:
    found = read("training-step.json")
    if found is None or "work" not in found:
        return []
    medians = found["median_ms"]
    rows = [
        [
            name.replace("_", " "),
            f"{ms:,.0f}",
            f"{medians['plain_two_pass'] / ms:.2f}",
            *(
                [f"{work['gflop']:.1f}", f"{work['moved_gb']:.2f}", f"{100 * work['share_of_the_limit']:.0f} %"]
                if (work := found["work"].get(name))
                else ["", "", ""]
            ),
        ]
        for name, ms in medians.items()
    ]
    lines = [
        "## Training",
        "",
        f"{sentence(found['what'])}, {found['threads']} thread(s). Operations and bytes are counted operator "
        "by operator; the limit is the longer of the two at what this machine reaches in a large product and a large "
        "copy.",
        "",
        *table(["", "ms a step", "times as fast as the plain loop", "GFLOP", "GB moved", "of the limit"], rows),
        "Where our step's time goes, in parts (ms, each alone) and by operator:",
        "",
        *table(["part", "ms"], [[name, f"{ms:,.1f}"] for name, ms in found["parts_ms"].items()]),
        *table(
            ["operator", "share"],
            [[f"`{name}`", f"{100 * share:.1f} %"] for name, share in list(found["operators"]["ours"].items())[:8]],
        ),
    ]
    lines += _full_size(found["full_size"])
    processes = read("training-processes.json")
    if processes is not None:
        rows = [
            [name, f"{speed:,.1f}", f"{processes['of_one_process_and_thread'][name]:.2f}"]
            for name, speed in processes["images_per_s"].items()
        ]
        lines += [f"{processes['what']}:", ""]
        lines += table(["", "images/s", "of one process and thread"], rows)
    no_gpu = "No GPU was at hand: what `torch.compile`, bfloat16 and CUDA graphs do on one is not measured."
    return [*lines, *_compilation(found), no_gpu, ""]


def _full_size(found: dict[str, Any]) -> list[str]:
    """The paper's own classifiers, and its obfuscator behind them, in float32 and in auto."""
    rows = [
        [
            row["net"],
            row["trained"] if row["trained"] == "classifier" else "obfuscator for it",
            f"{row['median_ms']['float32']:,.0f}",
            f"{row['median_ms']['auto']:,.0f}",
            f"{row['speedup']:.2f}",
            f"{100 * row['share_of_matrix_product']['float32']:.0f} %",
            f"{100 * row['share_of_matrix_product']['auto']:.0f} %",
        ]
        for row in found["rows"]
    ]
    says = (
        f'`precision = "auto"` at the paper\'s size, batch {found["batch"]}: {found["auto"]}. Shares are of the '
        "fastest large matrix product in float32, and in bfloat16."
    )
    head = ["", "trained", "float32, ms", "auto, ms", "times as fast", "share, float32", "share, auto"]
    lines = [says, "", *table(head, rows)]
    short = read("precision.json")
    if short is not None:
        accuracy = {
            name: f"{100 * value['mean']:.1f} % ± {100 * value['std']:.1f}" for name, value in short["accuracy"].items()
        }
        lines += [
            f"Accuracy of {short['what']}; {short['accuracy']['auto']['seeds']} seeds each: {accuracy['32-true']} in "
            f"float32, {accuracy['auto']} in auto ([results/precision.json](../results/precision.json)).",
            "",
        ]
    return lines


def _compilation(found: dict[str, Any]) -> list[str]:
    """What `torch.compile` costs before it can save anything, on the CPU; nothing where it was not tried."""
    compiling = found.get("compilation")
    if compiling is None:
        return []
    if "failed" in compiling:
        return [f"`torch.compile` failed on this CPU ({compiling['failed']}).", ""]
    without, compiled = (found["median_ms"][name] for name in ("ours_float32", "ours_compiled"))
    said = (
        f"`torch.compile` on this CPU: the first step takes {compiling['first_step_s']:,.0f} s, each further one "
        f"{compiled / without:.2f} times as long as without"
    )
    if compiled < without:
        steps = 1000 * compiling["first_step_s"] / (without - compiled)
        return [f"{said}, so that it pays after about {steps:,.0f} steps.", ""]
    return [f"{said}, so that it does not pay.", ""]


def _many() -> list[str]:
    lines: list[str] = []
    found = read("protect-many.json")
    if found is not None:
        lines += ["## Many images", "", f"{found['what']}:", ""]
        rows = []
        for size, run in found["runs"].items():
            speed = run["images_per_s"]
            parts = {"before": "before the kill", "resumed": "resumed"}
            speeds = (
                ", ".join(f"{speed[name]:,.0f} {said}" for name, said in parts.items())
                if isinstance(speed, dict)
                else f"{speed:,.0f}"
            )
            rows.append(
                [
                    f"{int(size):,}",
                    speeds,
                    f"{run['peak_mb_first_process']:,.0f}",
                    f"{run['peak_mb_largest_worker']:,.0f}",
                ]
            )
        lines += table(["images", "images/s", "peak memory of the first process, MB", "of the largest worker"], rows)
    return lines


def _failover() -> list[str]:
    found = read("failover.json")
    if found is None:
        return []
    names = {"embedded": "`--replicas 2`", "ray": "`--engine ray --replicas 2`"}
    rows = [
        [
            names[engine],
            f"{one['requests']:,}",
            f"{one['failed_after_retries']}",
            f"{one['median_ms']['before']:.1f}",
            f"{one['slowest_ms']['from_then_on']:,.0f}",
            f"{one['new_process_after_s']:.1f}",
        ]
        for engine, one in found["engines"].items()
    ]
    head = [
        "",
        "requests",
        "failed",
        "median before, ms",
        "slowest after, ms",
        "next process began after, s",
    ]
    lines = ["## A replica is killed", "", f"{sentence(found['what'])}:", "", *table(head, rows)]
    scaled = found.get("scaled_by_ray")
    if scaled is not None:
        lines += [
            f"{scaled['what']}: the second replica was there after {scaled['second_replica_after_s']:.0f} s, and "
            f"{scaled['requests_per_s_with_one']:.0f} requests/s became {scaled['requests_per_s_with_two']:.0f}; "
            f"{scaled['failed_after_retries']} of {scaled['requests']:,} failed.",
            "",
        ]
    return lines


def _machines() -> list[str]:
    names = dict.fromkeys(target.file for target in TARGETS)
    said = dict.fromkeys(
        f"{measured['machine']['cores']} cores of {measured['machine']['cpu']}, {measured['written'][:10]}"
        for name in names
        if (found := read(name)) is not None and "machine" in (measured := found["measured"])
    )
    return [f"Measured on {'; '.join(said)}.", ""] if said else []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

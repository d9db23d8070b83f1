"""Write the measured figures of speed as one page: docs/how-fast.md.

Run `python benchmarks/how_fast.py` after the benchmarks that it names. It measures nothing itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page_parts import percent, sentence, table, titled
from speed_targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "how-fast.md"


def read(name: str) -> Any | None:
    """Read a results file; return None if it was not measured."""
    file = RESULTS / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def page() -> str:
    """Return the text of the page."""
    parts = [
        "# Speed",
        "",
        "Look up how fast the device, the server and the training are, and which command measures each figure again.",
        "",
        "Written by `python benchmarks/how_fast.py` from the files in [results](../results). Every ratio compares runs",
        "that alternated in one session on one machine, with random weights where weights do not matter. All figures",
        "are of CPUs, none of a GPU. See also [how cost grows](growth.md) and [alternatives](alternatives.md).",
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
    lines = ["## Targets", "", *table(["", "target", "measured", "reached", "command"], rows)]
    return lines + (["Missed targets, and why:", "", *reasons, ""] if reasons else [])


def _device() -> list[str]:
    found = read("device-latency.json")
    lines = ["## On the device", ""]
    if found is not None and "rows" in found:
        shares, macs = found["share_of_resnet18"], found["share_of_resnet18_in_multiply_accumulates"]
        rows = [
            [
                what,
                f"{found['median_ms'][name]:.2f}",
                percent(shares[name]) if name in shares else "100 %",
                percent(macs[name]) if name in macs else "",
            ]
            for name, what in found["rows"].items()
            if name in found["median_ms"]
        ]
        lines += [f"{sentence(found['what'])}:", ""]
        lines += table(["", "ms", "time relative to ResNet18", "multiply-accumulates relative to ResNet18"], rows)
    lines += _mobile()
    found = read("quantized.json")
    if found is not None:
        rows = []
        for name, kinds in found["obfuscators"].items():
            for kind, one in kinds.items():
                rows.append([name, kind, *_quantized(one), _leakage(f"{name}-{kind}")])
        lines += ["In 8-bit integers, calibrated on 500 training images, measured on all test images:", ""]
        head = ["time relative to float32", "accuracy", "predictions changed", "MB", "excess leakage, at least"]
        lines += table(["", "", *head], rows)
        lines += [
            "U8S8 is what `sfumato export --to int8` makes ([how](how-to/int8.md)): another obfuscator, with an",
            "audit of its own. What it saves is little beside decoding the image and asking the cloud.",
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
            f"{compared['cloud_predictions_changed']} of {compared['images']:,}",
            "" if compared["codes_changed"] is None else f"{compared['codes_changed']}",
        ]
        for name, one in found["obfuscators"].items()
    ]
    head = [
        "",
        "ONNX Runtime, ms",
        "ExecuTorch, ms",
        "time relative to ONNX Runtime",
        ".onnx, MB",
        ".pte, MB",
        "largest difference of outputs, relative",
        "predictions changed",
        "codes changed",
    ]
    version, machine = found["measured"]["executorch"], found["measured"]["machine"]["cpu"]
    says = f"Under ExecuTorch {version} with XNNPACK (`make mobile`): {found['what']}, {machine}; not timed on a phone."
    return [says, "", *table(head, rows)]


def _quantized(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['time_of_float32']:.2f}",
        percent(one["accuracy_obfuscated"]),
        percent(one["predictions_changed"]),
        f"{one['megabytes']:.2f}",
    ]


def _leakage(name: str) -> str:
    """Return the leakage that its audit found, if it has one."""
    audit = read(f"quantized/{name}.json")
    return "not audited" if audit is None else f"{audit['best']['excess_leakage']:.2f} ({audit['budget']['name']})"


def _serving() -> list[str]:
    found = read("serving.json")
    if found is None:
        return []
    lines = [
        "## The server",
        "",
        f"{sentence(found['what'])}; load by {found['load']}. Triton comes from NVIDIA's wheel "
        "`nvidia-pytriton`, with the Python backend and ONNX Runtime in it; its own ONNX backend was not available.",
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
        "CPU time of the server, ms per request",
        "median, ms",
        "99th percentile, ms",
        "speed of `sfumato serve` relative to it",
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
                [f"{work['gflop']:.1f}", f"{work['moved_gb']:.2f}", percent(work["share_of_the_limit"], 0)]
                if (work := found["work"].get(name))
                else ["", "", ""]
            ),
        ]
        for name, ms in medians.items()
    ]
    lines = [
        "## Training",
        "",
        f"{sentence(found['what'])}, {found['threads']} thread(s). Operations and bytes are counted per "
        "operator. The limit is the longer of the times that this machine needs for them, at the rates of a large "
        "matrix product and of a large copy.",
        "",
        *table(["", "ms per step", "speed relative to the plain loop", "GFLOP", "GB moved", "of the limit"], rows),
        "Time of our step, by part (each measured alone) and by operator:",
        "",
        *table(["part", "ms"], [[name, f"{ms:,.1f}"] for name, ms in found["parts_ms"].items()]),
        *table(
            ["operator", "share"],
            [[f"`{name}`", percent(share)] for name, share in list(found["operators"]["ours"].items())[:8]],
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
        lines += table(["", "images/s", "relative to one process with one thread"], rows)
    no_gpu = "`torch.compile`, bfloat16 and CUDA graphs were not measured on a GPU."
    return [*lines, *_compilation(found), no_gpu, ""]


def _full_size(found: dict[str, Any]) -> list[str]:
    """Return the table of the paper's classifiers and of an obfuscator for each, in float32 and in auto."""
    rows = [
        [
            row["net"],
            row["trained"] if row["trained"] == "classifier" else "obfuscator for it",
            f"{row['median_ms']['float32']:,.0f}",
            f"{row['median_ms']['auto']:,.0f}",
            f"{row['speedup']:.2f}",
            *(percent(row["share_of_matrix_product"][name], 0) for name in ("float32", "auto")),
        ]
        for row in found["rows"]
    ]
    says = (
        f'`precision = "auto"` at the paper\'s size, batch {found["batch"]}: {found["auto"]}. Shares are relative '
        "to the fastest large matrix product in float32 and in bfloat16."
    )
    head = ["", "trained", "float32, ms", "auto, ms", "speed of auto", "share, float32", "share, auto"]
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
    """Say whether `torch.compile` pays off on the CPU; return nothing if it was not tried."""
    compiling = found.get("compilation")
    if compiling is None:
        return []
    if "failed" in compiling:
        return [f"`torch.compile` failed on this CPU ({compiling['failed']}).", ""]
    without, compiled = (found["median_ms"][name] for name in ("ours_float32", "ours_compiled"))
    says = (
        f"`torch.compile` on this CPU: the first step takes {compiling['first_step_s']:,.0f} s, each further one "
        f"{compiled / without:.2f} times as long as without it"
    )
    if compiled < without:
        steps = 1000 * compiling["first_step_s"] / (without - compiled)
        return [f"{says}. It pays off after about {steps:,.0f} steps.", ""]
    return [f"{says}. It does not pay off.", ""]


def _many() -> list[str]:
    found = read("protect-many.json")
    if found is None:
        return []
    rows = [
        [
            f"{int(size):,}",
            _speeds(run["images_per_s"]),
            f"{run['peak_mb_first_process']:,.0f}",
            f"{run['peak_mb_largest_worker']:,.0f}",
        ]
        for size, run in found["runs"].items()
    ]
    head = ["images", "images/s", "peak memory of the first process, MB", "of the largest worker, MB"]
    return titled("Many images", found["what"], head, rows)


def _speeds(speed: float | dict[str, float]) -> str:
    if not isinstance(speed, dict):
        return f"{speed:,.0f}"
    return f"{speed['before']:,.0f} before the kill, {speed['resumed']:,.0f} resumed"


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
    head = ["", "requests", "failed", "median before, ms", "slowest after, ms", "new process after, s"]
    lines = titled("A replica is killed", found["what"], head, rows)
    scaled = found.get("scaled_by_ray")
    if scaled is not None:
        lines += [
            f"{scaled['what']}: the second replica was ready after {scaled['second_replica_after_s']:.0f} s and raised "
            f"the rate from {scaled['requests_per_s_with_one']:.0f} to {scaled['requests_per_s_with_two']:.0f} "
            f"requests/s; {scaled['failed_after_retries']} of {scaled['requests']:,} requests failed.",
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

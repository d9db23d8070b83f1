"""Write results/growth.json as a page and a figure: docs/growth.md, docs/growth.svg."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from page_parts import table as markdown

PAGE, FIGURE = Path("docs/growth.md"), Path("docs/growth.svg")
IMAGES_A_DAY = 1_000_000
PEAK = 3
"""Requests in the busiest hour, relative to the mean: an assumption, replace it with your own."""
USED = 0.7
"""Share of a core's time to plan with: an assumption as well."""
DEVICE = {
    "paper": "the paper's obfuscator",
    "sketch": "sketch",
    "resnet18": "ResNet18 for small images",
    "resnet18-imagenet": "ResNet18 for photos",
}


def exponent(xs: list[float], ys: list[float]) -> float:
    """Return the power with which cost grows between the last two points."""
    return math.log(ys[-1] / ys[-2]) / math.log(xs[-1] / xs[-2])


def written(result: dict[str, Any]) -> str:
    """Return the text of the page."""
    machine = result["measured"]["machine"]
    lines = [
        "# How cost grows",
        "",
        "Estimate what your image size, number of classes and load will cost.",
        "",
        "Written by `make growth` from [results/growth.json](../results/growth.json): "
        f"{machine['cores']} cores of {machine['cpu']}, {result['measured']['written'][:10]}, one "
        f"thread for each process,",
        "loopback, random weights and images. Each curve is short, and of one run: read ratios, not last digits.",
        "",
        "![How cost grows with pixels, classes, clients, batch](growth.svg)",
        "",
        *_device(result["device_against_pixels"]),
        *_classes(result["device_against_classes"]),
        *_wire(result["wire_against_pixels"]),
        *_server(result["server_against_clients"]),
        *_replicas(result["server_against_replicas"], machine["cores"]),
        *_training(result["training"]),
        *_audits(result["audits"]),
        *_day(result),
        "## Not measured",
        "",
        "Energy; replicas on more cores or on several machines; a GPU. For the cost of a killed replica, see "
        "[speed](how-fast.md).",
    ]
    return "\n".join(lines) + "\n"


def _device(rows: list[dict[str, Any]]) -> list[str]:
    names = [name for name in DEVICE if any(name in row["median_ms"] for row in rows)]
    table = [
        [f"{row['side']}", *(f"{row['median_ms'][name]:.2f}" if name in row["median_ms"] else "" for name in names)]
        for row in rows
    ]
    pixels = [row["pixels"] for row in rows]
    powers = {name: exponent(pixels, [row["median_ms"][name] for row in rows]) for name in ("paper", "sketch")}
    return [
        "## On the device: pixels",
        "",
        "Milliseconds per image, ONNX Runtime:",
        "",
        *markdown(["side", *(DEVICE[name] for name in names)], table),
        f"Between the two largest sizes, time grows with the pixels to the power of {powers['paper']:.2f} for the "
        f"paper's obfuscator, which works at full resolution at every size, and of {powers['sketch']:.2f} for the "
        "sketch. The sketch's curve bends where its stem starts to shrink the image: above 64 pixels to half, above "
        "160 to a quarter of each side. Its decoded image has 32 pixels and is enlarged. Once feature maps exceed the "
        "processor's caches, time grows faster than the operations.",
        "",
    ]


def _classes(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        [
            f"{row['classes']:,}", f"{row['median_ms']:.2f}", f"{row['device_bytes'] / 1e6:.2f}",
            f"{row['decoder_bytes'] / 1e6:.2f}", f"{row['code_bits']}",
        ]
        for row in rows
    ]  # fmt: skip
    return [
        "## On the device: classes",
        "",
        "A sketch at 32 pixels. The paper's obfuscator does not depend on the classes.",
        "",
        *markdown(
            ["classes", "ms per image", "obfuscator's file, MB", "decoder's file, MB", "bits of the code"], table
        ),
        "Only the last linear layer and the decoder's first one have a number for each class, so the files grow by a "
        "fixed amount per class. The code grows with the logarithm.",
        "",
    ]


def _wire(rows: list[dict[str, Any]]) -> list[str]:
    forms = ("FP32", "UINT8", "PNG", "code")
    return [
        "## On the wire: pixels and format",
        "",
        "Bytes of a request's body, without HTTP headers. PNG is the decoded image of a sketch with random weights, "
        "which is smooth; that of a trained one may be larger.",
        "",
        *markdown(["side", *forms], [[f"{r['side']}", *(f"{r['bytes'][form]:,}" for form in forms)] for r in rows]),
        "Tensors grow with the pixels; FP32 is four times as large as UINT8. A code does not grow.",
        "",
    ]


def _server(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        [
            row["model"], f"{row['macs'] / 1e6:,.0f}", f"{row['clients']}", f"{row['requests_per_s']:,.0f}",
            f"{row['server_cpu_ms_a_request']:.2f}", f"{row['median_ms']:.1f}", f"{row['p99_ms']:.1f}",
            f"{row['failed']}",
        ]
        for row in rows
    ]  # fmt: skip
    return [
        "## In the cloud: clients and the model's cost",
        "",
        "`sfumato serve` with one model thread; each client sends its next request after the response. Clients run on "
        "the same cores.",
        "",
        *markdown(
            [
                "model",
                "million MACs",
                "clients",
                "requests/s",
                "CPU time of the server, ms per request",
                "median, ms",
                "p99, ms",
                "failed",
            ],
            table,
        ),
        "Requests/s rise until the model's thread is always busy, which takes two or three clients. Further clients "
        "only wait, and the median grows with their number. Batching the waiting requests lowers the CPU time per "
        "request if the model is faster on batches.",
        "",
    ]


def _replicas(rows: list[dict[str, Any]], cores: int) -> list[str]:
    table = [
        [
            f"{row['replicas']}", f"{row['requests_per_s']:,.0f}", f"{row['server_cpu_ms_a_request']:.2f}",
            f"{row['median_ms']:.0f}", f"{row['p99_ms']:.0f}", f"{row['memory_mb']:,.0f}", f"{row['failed']}",
        ]
        for row in rows
    ]  # fmt: skip
    relative = [f"{row['replicas']}: {row['requests_per_s'] / rows[0]['requests_per_s']:.2f}" for row in rows[1:]]
    several = rows[1:]
    added = several[-1]["replicas"] - several[0]["replicas"]
    each = f"{(several[-1]['memory_mb'] - several[0]['memory_mb']) / added:,.0f} MiB" if added else "not known"
    return [
        "## In the cloud: replicas",
        "",
        f"`sfumato serve --replicas N` with {rows[0]['model']}, {rows[0]['clients']} clients on the same {cores} "
        "cores:",
        "",
        *markdown(
            ["replicas", "requests/s", "CPU, ms per request", "median, ms", "p99, ms", "memory, MiB", "failed"], table
        ),
        f"Requests/s relative to one replica: {', '.join(relative)}. A further replica helps only if it has a core of "
        f"its own. Memory per further replica: {each}; a single one has no supervising parent process.",
        "",
    ]


def _training(found: dict[str, Any]) -> list[str]:
    lines = ["## Training", "", "A step of obfuscator and deobfuscator with a frozen ResNet20, one thread:", ""]
    rows = [
        [f"{row['side']}", f"{row['batch']}", f"{row['step_ms']:,.0f}", f"{1000 * row['batch'] / row['step_ms']:,.1f}",
         f"{row['peak_memory_mb']:,.0f}"]
        for row in (*found["against_batch"], *found["against_pixels"])
    ]  # fmt: skip
    lines += markdown(["side", "batch", "ms per step", "images/s", "peak memory, MiB"], rows)
    lines += [
        "Time and memory grow with pixels times batch. The fixed cost, torch itself and the weights, matters only for "
        "small batches.",
        "",
    ]
    rows = [
        [
            f"{row['images']:,}",
            f"{row['epoch_s']:,.0f}",
            f"{row['images_mb']:,.0f}",
            f"{row['peak_memory_mb']:,.0f}",
        ]
        for row in found["against_images"]
    ]
    lines += ["An epoch, extrapolated from a few steps on a set of that size:", ""]
    lines += markdown(["training images", "seconds per epoch", "images in memory, MiB", "peak memory, MiB"], rows)
    lines += [
        "As far as so short a timing shows, it grows linearly: sampling a batch does not depend on the number of "
        "images.",
        "",
    ]
    return lines


def _audits(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        [
            f"{row['side']}", f"{row['images']:,} + {row['test_images']:,}", f"{row['images_mb']:,.0f}",
            f"{row['peak_memory_mb']:,.0f}", f"{row['seconds']:,.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    small = [row for row in rows if row["side"] == rows[0]["side"]]
    more_mb = small[-1]["peak_memory_mb"] - small[0]["peak_memory_mb"]
    times = more_mb / (small[-1]["images_mb"] - small[0]["images_mb"]) if len(small) > 1 else float("nan")
    return [
        "## Audits",
        "",
        "Every step of a quick audit, with a fiftieth of its training and attackers measured on 100 images instead of "
        "500. A whole audit takes longer and may take somewhat more memory. The obfuscation itself costs nothing here:",
        "",
        *markdown(["side", "images", "images in memory, MiB", "peak memory, MiB", "seconds"], table),
        f"From {small[0]['images']:,} to {small[-1]['images']:,} images of {small[0]['side']} pixels, memory grows by "
        f"{times:.1f} times the size of the images: images are 8-bit numbers, and some attackers hold them or their "
        "payloads as 32-bit floats. With the side it grows less than the pixels, because decoders process large "
        "images in parts.",
        "",
    ]


def _day(result: dict[str, Any]) -> list[str]:
    """Return the cost of a million images a day, with the arithmetic."""
    device = next(row for row in result["device_against_pixels"] if row["side"] == 32)
    wire = next(row for row in result["wire_against_pixels"] if row["side"] == 32)["bytes"]
    rows = [row for row in result["server_against_clients"] if row["model"] == "resnet18"]
    served = min(rows, key=lambda row: row["server_cpu_ms_a_request"])
    mean = IMAGES_A_DAY / 86_400
    busy = mean * served["server_cpu_ms_a_request"] / 1000
    cores = math.ceil(PEAK * busy / USED)
    device_ms = device["median_ms"]["paper"]
    gigabytes = {name: IMAGES_A_DAY * wire[name] / 1e9 for name in ("FP32", "UINT8", "code")}
    return [
        f"## Cost of {IMAGES_A_DAY:,} images a day",
        "",
        "At 32 pixels, all images sent (with a gate, multiply by its offload rate), ResNet18 in the cloud:",
        "",
        f"- devices, all together: {IMAGES_A_DAY:,} x {device_ms:.2f} ms = "
        f"{IMAGES_A_DAY * device_ms / 1000:,.0f} s of one "
        f"thread a day for the paper's obfuscator; "
        f"{IMAGES_A_DAY * device['median_ms']['sketch'] / 1000:,.0f} s for a sketch",
        f"- sent: {IMAGES_A_DAY:,} x {wire['FP32']:,} bytes = {gigabytes['FP32']:,.1f} GB a day as FP32, "
        f"{gigabytes['UINT8']:,.1f} GB as UINT8, {gigabytes['code']:,.2f} GB as codes, without headers",
        f"- servers, mean: {IMAGES_A_DAY:,} / 86,400 s = {mean:.1f} images/s x "
        f"{served['server_cpu_ms_a_request']:.2f} ms = "
        f"{busy:.2f} cores",
        f"- servers, planned: with {PEAK} times the mean in the busiest hour and cores busy "
        f"{USED:.0%} of the time, both "
        f"assumed: {PEAK} x {busy:.2f} / {USED} = {PEAK * busy / USED:.2f}, so {cores} "
        f"core{'s' * (cores > 1)} of this machine",
        "",
        "In money, with your prices `c` per core-hour and `g` per GB received:",
        f"`{cores} x 24 x c + {gigabytes['FP32']:.1f} x g` a day. No price is assumed here.",
        "",
    ]


def plot(result: dict[str, Any], file: Path) -> None:
    """Plot all curves in one figure."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})  # text as text: half the size
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, ((a, b, c), (d, e, f)) = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    pixels = result["device_against_pixels"]
    for name, title in DEVICE.items():
        rows = [row for row in pixels if name in row["median_ms"]]
        a.loglog([row["side"] for row in rows], [row["median_ms"][name] for row in rows], "o-", label=title)
    a.set(title="device, ms an image", xlabel="side, pixels")
    rows = result["device_against_classes"]
    b.semilogx([row["classes"] for row in rows], [row["median_ms"] for row in rows], "o-", label="ms an image")
    b.semilogx([row["classes"] for row in rows], [row["device_bytes"] / 1e6 for row in rows], "s-", label="file, MB")
    b.set(title="sketch, 32 pixels", xlabel="classes", ylim=(0, None))
    rows = result["wire_against_pixels"]
    for form in ("FP32", "UINT8", "PNG", "code"):
        c.loglog([row["side"] for row in rows], [row["bytes"][form] for row in rows], "o-", label=form)
    c.set(title="bytes a request", xlabel="side, pixels")
    rows = result["server_against_clients"]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        d.loglog([row["clients"] for row in mine], [row["requests_per_s"] for row in mine], "o-", label=model)
    d.set(title="server, requests/s", xlabel="clients")
    for axes, key, x in ((e, "against_batch", "batch"), (f, "against_pixels", "side")):
        rows = result["training"][key]
        axes.loglog([row[x] for row in rows], [row["step_ms"] for row in rows], "o-", label="ms a step")
        axes.loglog([row[x] for row in rows], [row["peak_memory_mb"] for row in rows], "s-", label="peak memory, MiB")
    e.set(title="training, 32 pixels", xlabel="batch")
    f.set(title=f"training, batch {result['training']['against_pixels'][0]['batch']}", xlabel="side, pixels")
    for axes in (a, b, c, d, e, f):
        axes.grid(alpha=0.3)
        places = sorted({float(x) for line in axes.lines for x in line.get_xdata()})
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.minorticks_off()
        axes.legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    print(written(json.loads(Path("results/growth.json").read_text(encoding="utf-8"))))

"""Targets of speed: the figure of a results file, the value it should reach, and why it does not where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        what: the figure, in words.
        file: of the results.
        figure: reads it from the file.
        wanted: smallest value, or largest if `at_most`.
        shown: format of the figure.
        command: that measures it again.
        reason: why it was missed, if it was.
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
        """Return whether a value is good enough."""
        return value <= self.wanted if self.at_most else value >= self.wanted


def _times_as_fast(*servers: str, ours: str = "sfumato") -> Callable[[Any], float]:
    """Return requests/s of a tiny classifier, relative to the fastest of these servers."""

    def ratio(found: Any) -> float:
        speeds = {key: each["requests_per_s"] for key, each in found["classifiers"]["tiny"].items()}
        return float(speeds[ours] / max(speeds[server] for server in servers))

    return ratio


TARGETS = (
    Target(
        "time of the paper's obfuscator, relative to ResNet18, one image, one thread",
        "device-latency.json",
        lambda found: found["obfuscator_share_of_resnet18"],
        0.04,
        "{:.1%}",
        "python benchmarks/device_latency.py",
        "Its share of the operations is smaller. The table below shows the same graph with ReLU in place of leaky "
        "ReLU: ONNX Runtime fuses ReLU, but computes leaky ReLU in a separate pass. The rest is due to depthwise "
        "layers, which run at a third of the rate of other convolutions, and to the fixed cost of a call.",
        at_most=True,
    ),
    Target(
        "requests/s of one process, relative to Triton, tiny classifier, 16 connections, binary",
        "serving.json",
        _times_as_fast("triton"),
        1.1,
        "{:.2f} x",
        "make serving",
        "Ours is one process whose event loop uses one core; Triton uses more of the machine. The table below gives "
        "the processor time per request.",
    ),
    Target(
        "the same with `--replicas 2`, relative to Triton with one or two instances, whichever is faster",
        "serving.json",
        _times_as_fast("triton", "triton2", ours="sfumato2"),
        1.0,
        "{:.2f} x",
        "make serving",
        "The load generator shares the cores with all processes.",
    ),
    *(
        Target(f"requests/s relative to {title}", "serving.json", _times_as_fast(key), 3.0, "{:.1f} x", "make serving")
        for key, title in (
            ("kserve", "KServe's SDK, binary"),
            ("mlserver", "MLServer, JSON"),
            ("litserve", "LitServe, JSON"),
        )
    ),
    Target(
        "requests/s of ResNet18, relative to ONNX Runtime alone in a loop",
        "serving.json",
        lambda found: found["resnet18_relative_to_onnxruntime"]["share_of_onnxruntime"],
        0.9,
        "{:.1%}",
        "make serving",
        "The load generator and the protocol share the machine's cores with the model's thread.",
    ),
    Target(
        "predictions/s of `AsyncClient` with 64 requests in flight, relative to `Client` in 64 threads",
        "async-client.json",
        lambda found: found["throughput_ratio"],
        1.0,
        "{:.2f} x",
        "python benchmarks/async_client.py",
        "Both obfuscate on the same cores.",
    ),
    Target(
        "memory of the same above the idle process, likewise",
        "async-client.json",
        lambda found: found["memory_ratio"],
        1 / 3,
        "{:.0%}",
        "python benchmarks/async_client.py",
        "More than half of it is there with the first request already: the obfuscator's own memory, which both need.",
        at_most=True,
    ),
    Target(
        "speed of a training step, relative to a plain loop of the paper's recipe",
        "training-step.json",
        lambda found: found["speedup"],
        3.0,
        "{:.2f} x",
        "python benchmarks/training_step.py",
        "Both loops use the same convolutions; ours saves a second pass, norms and memory. The minimum that a step "
        "must compute and move is given below.",
    ),
    Target(
        "speed of training in two processes, relative to one process with one thread",
        "training-processes.json",
        lambda found: found["of_one_process_and_thread"]["2 processes x 1 thread"],
        1.5,
        "{:.2f} x",
        "python benchmarks/training_processes.py",
        "The cores are two threads of one physical core, or share its memory.",
    ),
    Target(
        "time of a round trip through the paper's obfuscator, relative to plain offload",
        "alternatives.json",
        lambda found: found["round_trip_of_plain"]["paper"],
        1.15,
        "{:.3f} x",
        "make alternatives",
        at_most=True,
    ),
    Target(
        "time of the fastest full run under multi-party computation, relative to the same round trip",
        "alternatives.json",
        lambda found: found["fastest_full_mpc_of_paper"] or float("nan"),
        200.0,
        "{:,.0f} x",
        "make alternatives",
        "Its parties run on one machine and exchange nothing over a network: the 448 MB that each of them sends would "
        "take 3.6 s at 1 Gbit/s, more than the whole run that was measured. Most of the round trip that it is compared "
        "with is the cloud's ResNet18 itself.",
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

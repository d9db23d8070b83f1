"""What the benchmarks count and write, and that their pages are of their results files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
MEASURED = {"machine": {"cores": 2, "cpu": "a CPU"}, "written": "2026-01-01T00:00:00+00:00"}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("benchmarks", "benchmarks/alternatives"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield
    ours = (
        "how_fast",
        "async_client",
        "page",
        "growth_page",
        "machine_limits",
        "timing",
        "full_size",
        "speed_targets",
        "page_parts",
        "device_nets",
    )
    for name in ours:
        sys.modules.pop(name, None)  # other folders have a page too


def alternatives() -> dict[str, Any]:
    own = {
        "times": 3,
        "seconds_range": [0.01, 0.03],
        "sent_bytes": 12_459,
        "received_bytes": 300,
        "promises": "nothing",
    }
    row = {"title": "plain offload", "net": "resnet18", "peak_memory_mb": [50.0, 70.0]}
    return {
        "rows": [
            {"name": "plain", "seconds": 0.02, **row, **own},
            {"name": "crypten", "seconds": 20.0, **row, **own, "title": "MPC", "seconds_range": [19.0, 21.0]},
            {"name": "spu", "title": "SPU", "net": "resnet18", "promises": "much", "skipped": "there is no python"},
        ],
        "round_trip_of_plain": {"paper": 1.08, "sketch": 1.06},
        "fastest_full_mpc_of_paper": 920.4,
        "measured": MEASURED,
    }


def test_the_table_of_alternatives_has_ratios_and_says_what_is_missing():
    from page import table

    said = table(alternatives())
    assert (
        "| plain offload | resnet18 | 0.0200 (0.0100 to 0.0300, n = 3) | 1.00 | 12,459 | 300 | 50 + 70 | nothing |"
        in said
    )
    assert "| MPC | resnet18 | 20.0 (19.0 to 21.0, n = 3) | 1,000 |" in said
    assert "Left out: SPU, resnet18 (there is no python)." in said
    assert "1.08 times" in said and "920 times" in said


def test_a_table_without_any_full_mpc_run_compares_with_none():
    from page import table

    assert "multi-party" not in table({**alternatives(), "fastest_full_mpc_of_paper": None})


def test_how_steep_a_curve_ends():
    from growth_page import exponent

    assert exponent([1, 2, 4], [100, 3, 12]) == pytest.approx(2)


def test_what_a_product_computes_and_moves_is_counted():
    from machine_limits import counted

    a, b = torch.rand(3, 5), torch.rand(5, 7)
    found = counted(lambda: torch.mm(a, b))
    assert found.operations == 2 * 3 * 5 * 7
    assert found.moved_bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)


def test_views_move_nothing_and_what_is_done_in_place_does():
    from machine_limits import counted

    a = torch.rand(4, 6)
    assert counted(lambda: a.view(6, 4).transpose(0, 1)).moved_bytes == 0
    assert counted(lambda: a.mul_(2)).moved_bytes > 0


def test_the_page_of_alternatives_is_of_the_results():
    file = ROOT / "results" / "alternatives.json"
    if not file.exists():
        pytest.skip("not measured yet: make alternatives")
    from page import table

    assert table(json.loads(file.read_text(encoding="utf-8"))) in (ROOT / "docs/alternatives.md").read_text("utf-8")


def test_the_page_of_growth_is_of_the_results(monkeypatch: pytest.MonkeyPatch):
    file = ROOT / "results" / "growth.json"
    if not file.exists():
        pytest.skip("not measured yet: make growth")
    from growth_page import written

    monkeypatch.chdir(ROOT)
    assert written(json.loads(file.read_text(encoding="utf-8"))) == (ROOT / "docs/growth.md").read_text("utf-8")
    assert (ROOT / "docs/growth.svg").stat().st_size < 100_000


@pytest.mark.parametrize("groups", [1, 4])
def test_operations_of_a_convolution_both_ways(groups: int) -> None:
    from machine_limits import counted

    net = torch.nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=False)
    x = torch.rand(2, 4, 5, 5, requires_grad=True)
    one_way = 2 * (2 * 8 * 5 * 5) * (4 // groups * 9)
    assert counted(lambda: net(x)).operations == one_way
    assert counted(lambda: net(x).sum().backward()).operations == 3 * one_way


def test_the_page_of_speed_is_of_the_results() -> None:
    import how_fast

    assert (ROOT / "docs" / "how-fast.md").read_text(encoding="utf-8") == how_fast.page()


def test_a_target_that_is_missed_says_why() -> None:
    import how_fast

    missed = [
        target
        for target in how_fast.TARGETS
        if (found := how_fast.read(target.file)) is not None and not target.reached(target.figure(found))
    ]
    assert all(target.reason for target in missed)


def test_what_compiling_costs_is_said_only_where_it_was_measured() -> None:
    from how_fast import _compilation as said

    medians = {"ours_float32": 1000.0, "ours_compiled": 800.0}
    assert said({"median_ms": {"ours_float32": 1000.0}}) == []
    assert "pays off after about 300 steps" in said({"median_ms": medians, "compilation": {"first_step_s": 60.0}})[0]
    slower = said({"median_ms": {**medians, "ours_compiled": 1100.0}, "compilation": {"first_step_s": 60.0}})[0]
    assert "1.10 times as long" in slower and "does not pay off" in slower
    assert "no compiler" in said({"median_ms": medians, "compilation": {"failed": "no compiler"}})[0]


def test_a_step_is_counted_alike_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    import full_size

    monkeypatch.setattr(full_size, "NETS", ("vgg7",))
    reached = {"gflop_per_s": {"float32": 100.0, "bfloat16": 400.0}}
    found = full_size.full_size(reached, batch=2, rounds=2)
    trained, behind = found["rows"]
    assert (trained["trained"], behind["trained"]) == ("classifier", "obfuscator")
    for row in (trained, behind):
        times = row["median_ms"]
        assert row["speedup"] == times["float32"] / times["auto"]
        share = row["share_of_matrix_product"]["auto"]
        assert share == pytest.approx(row["gflop"] / (times["auto"] / 1000) / 400)
    # Forward, and a gradient for the weights and one for the input, which the first layer does not pass on.
    stem = 3 * 32 * 9 * 32 * 32
    second, third = (32 * 64 + 64 * 64) * 9 * 16 * 16, (64 * 128 + 128 * 128) * 9 * 8 * 8
    macs = stem + 32 * 32 * 9 * 32 * 32 + second + third + 128 * 10
    assert trained["gflop"] == pytest.approx(2 * 2 * (3 * macs - stem) / 1e9, rel=1e-6)


def test_the_table_of_a_phones_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    import how_fast

    row = {
        "median_ms": {"onnxruntime": 0.5, "executorch": 0.6},
        "time_of_onnxruntime": 1.2,
        "megabytes": {"onnxruntime": 1.3, "executorch": 1.31},
        "compared": {
            "largest_difference": 1.5e-6,
            "cloud_predictions_changed": 2,
            "codes_changed": None,
            "images": 10_000,
        },
    }
    found = {"what": "one image", "obfuscators": {"mine": row}, "measured": {**MEASURED, "executorch": "1.5.1"}}
    monkeypatch.setattr(how_fast, "read", lambda name: found if name == "mobile-runtimes.json" else None)
    said = how_fast.page()
    assert "| mine | 0.50 | 0.60 | 1.20 | 1.30 | 1.31 | 2e-06 | 2 of 10,000 |  |" in said
    assert "ExecuTorch 1.5.1" in said and "not timed on a phone" in said
    monkeypatch.setattr(how_fast, "read", lambda name: None)
    assert "ExecuTorch" not in how_fast.page()


def test_candidates_for_the_device_compete_within_a_presets_budget():
    from device_nets import CANDIDATES

    from sfumato.lab.models import cost
    from sfumato.lab.models.device_nets import DEVICE_NETS, DeviceNet

    most = {"nano": (100_000, 2.5e6), "paper": (300_502, 20.95e6), "large": (2_000_000, 59.2e6)}
    for name, shape in CANDIDATES.items():
        preset = name.partition("-")[0]
        with torch.device("meta"):
            found = cost(DeviceNet(shape, 10))
        parameters, macs = most[preset]
        assert found.params <= parameters and 0.8 * macs < found.macs <= macs, name
        if name == preset:
            assert shape == DEVICE_NETS[f"device-{name}"]


def test_the_async_client_is_compared_by_medians():
    from async_client import Comparison, Measured

    def one(kind: Any, rate: float, memory_mb: float) -> Measured:
        return Measured(kind, rate, 1.0, 10.0, 20.0, 90.0, memory_mb, 0)

    rounds = [one("threads", 100.0, 8.0), one("asyncio", 150.0, 2.0), one("threads", 80.0, 6.0)]
    rounds += [one("asyncio", 120.0, 3.0), one("threads", 90.0, 900.0), one("asyncio", 135.0, 2.0)]
    found = Comparison.of(rounds, seconds=10.0, rounds=3)
    assert (found.throughput_ratio, found.memory_ratio) == (1.5, 0.25)

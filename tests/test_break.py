"""The short form of the break test, that it sees what is broken, and that the pages are of its results."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import crashing
from scripts.write_openapi import FILE, description
from sfumato import wire
from sfumato.cloud import Application
from sfumato.wire import codec

ROOT = Path(__file__).parents[1]
MODULES = [file.stem for file in (ROOT / "benchmarks" / "break").glob("*.py")]


@pytest.fixture(scope="module", autouse=True)
def broken() -> Iterator[None]:
    """The scripts' folder is on the path, for other processes too."""
    folder = str(ROOT / "benchmarks" / "break")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
    for name in MODULES:
        sys.modules.pop(name, None)


def tried(name: str, count: int, examples: Path) -> Any:
    specification = importlib.util.spec_from_file_location("break_run", ROOT / "benchmarks" / "break" / "run.py")
    assert specification is not None and specification.loader is not None
    run = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(run)
    return run.tried(name, range(count), 1, examples)


@pytest.mark.parametrize(("name", "count"), [("codec", 2000), ("http", 200), ("bundles", 25), ("checkpoints", 25)])
def test_nothing_breaks(name: str, count: int, tmp_path: Path) -> None:
    part = tried(name, count, tmp_path)
    assert part.failures == []
    assert part.inputs >= count and part.totals()["refused"] > count // 5
    assert list(tmp_path.glob("*.bin")) == []


def test_no_fault_of_an_endpoint_leaks_or_lasts(tmp_path: Path) -> None:
    from fault_matrix import cells

    found = list(cells(every=8))
    assert {cell.path for cell in found} >= {"HTTP", "image files"}
    assert [cell for cell in found if not cell.good] == []


def test_another_error_than_ours_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import codec_fuzz

    def careless(text: bytes, what: str) -> Any:
        return json.loads(text)

    monkeypatch.setattr(codec.fields, "parse_object", careless)
    judge = codec_fuzz.judge()
    found = [judge(random.Random(case)) for case in range(300)]
    assert {one.outcome for one in found} > {"accepted", "unexpected error"}
    assert all("at" in one.detail and one.example for one in found if one.outcome == "unexpected error")


def test_a_wrong_value_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import codec_fuzz

    real = wire.decode_request
    monkeypatch.setattr(wire, "decode_request", lambda *given: wire.InferRequest(real(*given).inputs[:1]))
    judge = codec_fuzz.judge()
    found = {one.detail for one in (judge(random.Random(case)) for case in range(300)) if one.outcome == "wrong"}
    assert "a valid message is decoded to something else" in found


def test_a_crash_and_a_hang_are_failures_and_not_the_end(tmp_path: Path) -> None:
    from isolated import judged_apart
    from outcomes import Judged, Part

    part = Part("some", 1)
    judged_apart(part, partial(crashing.judge, Judged, 1), range(8), examples=tmp_path, limit_s=3)
    assert part.inputs == 8
    assert {(one.outcome, one.case) for one in part.failures} == {("crash", crashing.CRASHES), ("hang", crashing.HANGS)}
    assert part.totals()["accepted"] == 6


def test_the_same_seed_gives_the_same_inputs() -> None:
    from http_requests import Requests

    first, second = (Requests(8).sending(random.Random(3)) for _ in range(2))
    assert first.pieces == second.pieces


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx"]
)
def test_what_is_no_response_is_seen(data: bytes) -> None:
    from http_requests import Malformed, replies_in

    with pytest.raises(Malformed):
        replies_in(data)


def test_the_page_is_of_the_results() -> None:
    from break_page import written

    result = json.loads((ROOT / "results" / "break.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "break-test.md").read_text(encoding="utf-8") == written(result), "run make break"


def test_the_security_page_has_the_soaks_figures() -> None:
    soak = json.loads((ROOT / "results" / "soak.json").read_text(encoding="utf-8"))
    assert soak["passed"] and soak["wrong_predictions"] == soak["tracebacks"] == 0
    first, last = soak["first_and_last_third"]["memory_mb"]
    events = soak["events"]
    said = f"""{soak["predictions"]:,} predictions, none of them wrong, {events["reload"]} reloads,
    {events["replica killed"]} replicas killed, {first:.0f} MB of memory in the first third and {last:.0f} MB in
    the last,
    no traceback"""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert " ".join(said.split()) in " ".join(page.split())
    assert f"All of it at once for {soak['minutes']:.0f} minutes" in page


def test_the_description_of_the_interface_is_up_to_date(classifier_bundle: Any) -> None:
    from sfumato.cloud.dataplane import ServedModel

    assert json.loads(FILE.read_text(encoding="utf-8")) == description(), "run python -m scripts.write_openapi"
    app = Application([ServedModel(classifier_bundle.path)])
    routes = {re.sub(r"/$", "", route.path) for route in app._router.routes}
    assert routes == set(description()["paths"])


def test_the_tests_that_the_security_page_names_are_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 40
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file() or f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []

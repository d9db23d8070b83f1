import json
import re
from xml.etree import ElementTree

import pytest
from PIL import Image
from pydantic import ValidationError

from fakes import fake_audit, gate, point
from sfumato.errors import AuditError
from sfumato.lab.audit.points import PAPER, collect
from sfumato.lab.report import frontier
from sfumato.lab.report.frontier import draw_frontier, save_frontier_png

ENDS = [point("device", 0.89, 0.0, "local", None), point("plain", 0.91, 1.0, "identity", None)]
POINTS = [point("mine", 0.7, 0.4, "this", "standard"), point("blur", 0.8, 0.9, "baseline"), *ENDS, *PAPER]


def save(folder, name, **changes):
    fake_audit(**changes).write(folder / name)


def test_an_audit_becomes_a_point_and_its_classifiers_the_ends(tmp_path):
    save(tmp_path, "a.json", mse=0.0287)
    points = collect(tmp_path)
    mine, local, identity = points[:3]
    assert (mine.name, mine.role, mine.source) == ("cifar10-fake", "other", "a.json")
    assert mine.excess_leakage == pytest.approx(0.5)
    assert (local.role, local.accuracy, local.excess_leakage) == ("local", 0.89, 0.0)
    assert (identity.role, identity.accuracy, identity.excess_leakage) == ("identity", 0.9138, 1.0)
    assert points[3:] == list(PAPER)


def test_a_gate_gives_a_second_point_and_the_plain_image_behind_one_a_curve(tmp_path):
    rows = [{"offload_rate": 0.1, "excess_leakage": 0.11, "accuracy": 0.9}]
    gated = gate(accuracy_gated=0.912, excess_leakage_mean=0.03)
    save(tmp_path, "a.json", mse=0.0287, gate=gated, utility={"gated_plain": rows})
    save(tmp_path, "b.json", utility={"gated_plain": [rows[0] | {"accuracy": 0.88}]})
    points = {p.name: p for p in collect(tmp_path)}
    assert (points["cifar10-fake, gated"].accuracy, points["cifar10-fake, gated"].excess_leakage) == (0.912, 0.03)
    curve = [p for p in points.values() if p.role == "gated"]
    assert [(p.accuracy, p.excess_leakage) for p in curve] == [(0.9, 0.11)], "the better one of two audits"
    assert 'id="gated-curve"' in draw_frontier(list(points.values())) and 'id="gated-curve"' not in draw_frontier(
        POINTS
    )


def test_the_kind_says_the_role_and_an_audited_end_is_not_added_twice(tmp_path):
    save(tmp_path, "a.json", target={"kind": "baseline", "name": "blur"})
    save(tmp_path, "b.json", target={"kind": "identity"})
    roles = [p.role for p in collect(tmp_path)]
    assert roles[:2] == ["baseline", "identity"]
    assert roles.count("identity") == 1


def test_the_paper_stands_beside_its_own_data_only(tmp_path):
    save(tmp_path, "a.json", data={"source": "imagenette"})
    assert not [p for p in collect(tmp_path) if p.role == "paper"]


def test_other_json_and_audits_without_accuracy_are_passed_over(tmp_path):
    (tmp_path / "cost.json").write_text("{}")
    (tmp_path / "list.json").write_text("[1]")
    save(tmp_path, "a.json", utility=None)
    assert [p for p in collect(tmp_path) if p.role != "paper"] == []


@pytest.mark.parametrize(
    "content",
    ["{", json.dumps({"schema": "sfumato.audit/1"}), json.dumps(fake_audit().as_json | {"target": None}), b"\xff\xfe"],
)
def test_a_broken_audit_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AuditError, match=r"broken\.json"):
        collect(tmp_path)


def test_audits_of_several_data_sets_are_refused(tmp_path):
    save(tmp_path, "a.json")
    save(tmp_path, "b.json", data={"source": "imagenette"})
    with pytest.raises(AuditError, match=r"a\.json.*b\.json"):
        collect(tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(AuditError, match="not a folder"):
        collect(tmp_path / "none")


def test_the_drawing_is_svg_the_same_each_time_and_loads_nothing():
    drawing = draw_frontier(POINTS)
    assert drawing == draw_frontier(POINTS), "a report must not change when it is written again"
    assert drawing != draw_frontier(POINTS, dark=True)
    root = ElementTree.fromstring(drawing)
    assert root.tag.endswith("svg")
    links = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|<dc:date", drawing)


def test_the_mixing_line_needs_both_ends_and_the_band_the_paper():
    assert 'id="mixing-line"' in draw_frontier(POINTS)
    assert 'id="mixing-line"' not in draw_frontier([p for p in POINTS if p.role != "local"])
    assert 'id="paper-band"' in draw_frontier(POINTS)
    assert 'id="paper-band"' not in draw_frontier(ENDS)


def test_the_mixing_line_joins_the_best_ends():
    figure = frontier._figure([*POINTS, point("worse", 0.5, 0.0, "local", None)], dark=False)
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0.0, 0.89], [1.0, 0.91]]


def test_the_points_of_a_dial_are_joined_in_its_order_with_bars_for_their_seeds():
    swept = [
        point(f"b={n}", 0.8 + 0.01 * n, 0.4 - 0.1 * n, "swept").model_copy(update={"series": "a b"}) for n in (2, 1, 3)
    ]
    swept[0] = swept[0].model_copy(update={"spread": (0.01, 0.02)})
    figure = frontier._figure([*ENDS, *swept], dark=False)
    (line,) = [line for line in figure.axes[0].lines if line.get_gid() == "series-a-b"]
    assert line.get_xydata().round(6).tolist() == [[0.2, 0.82], [0.3, 0.81], [0.1, 0.83]]
    bars = [bar for bar in figure.axes[0].collections if hasattr(bar, "get_segments")]
    assert sorted(len(bar.get_segments()) for bar in bars) == [1, 1], "one bar each way, at the first point alone"


def test_every_point_is_labelled_with_its_smaller_budget_and_no_labels_overlap():
    crowd = [point(f"point {n}", 0.5 + 0.01 * (n % 3), 0.5 + 0.01 * n, "baseline") for n in range(8)]
    figure = frontier._figure([*POINTS, *crowd], dark=False)
    texts = [t for t in figure.axes[0].texts if t.get_text()]
    names = {t.get_text() for t in texts}
    assert {"mine (standard)", "blur", "device", "plain"} | {p.name for p in crowd} <= names
    boxes = [t.get_window_extent() for t in texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_names_are_not_read_as_formulas_or_markup():
    drawing = draw_frontier([point("a $\\frac$ <b>", 0.5, 0.5, "this")])
    ElementTree.fromstring(drawing)


def test_nothing_can_be_drawn_too():
    ElementTree.fromstring(draw_frontier([]))


def test_an_unknown_role_is_refused():
    with pytest.raises(ValidationError, match="'friend'"):
        point("x", 0.5, 0.5, "friend")


def test_the_png_is_large_and_the_same_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        save_frontier_png(POINTS, tmp_path / name)
    assert Image.open(tmp_path / "a.png").width == 1600
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(AuditError, match="cannot be written"):
        save_frontier_png(POINTS, tmp_path / "no" / "a.png")

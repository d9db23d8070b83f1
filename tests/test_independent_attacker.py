"""The independent attacker: that it learns what there is and nothing else, chooses without test images, and judges."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scenes
from audit_bundles import SIZE, written
from fakes import fake_audit
from sfumato.errors import AuditError
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.audit.targets import load_target

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("independent_attacker", "independent_network", "independent_results", "page_parts"):
        sys.modules.pop(name, None)


@pytest.fixture
def narrow(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network with fewer channels."""
    import independent_network

    monkeypatch.setattr(independent_network, "WIDTHS", (16, 16, 32, 32))


class Nothing(nn.Module):
    """The same payload for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.3)


def retrieval(top1: float, **changes: Any) -> dict[str, Any]:
    row = {"measure": "retrieval", "attacker": "distance", "threat": "white-box", "candidates": 100, "top1": top1}
    return row | {"chance": 0.01, "queries": 500, "low": 0.0, "high": 1.0} | changes


def pair(module: nn.Module, *, train: int = 300, test: int = 60, **changes: Any) -> Any:
    from independent_attacker import Pair

    audit = fake_audit(identification=changes.pop("identification", []), **changes)
    return Pair("scene", audit, scenes.target(module), scenes.images(train), scenes.images(test, seed=1))


def network(loss: str = "L2", **changes: float) -> Any:
    from independent_results import Network

    figures = {"held_out_mse": 0.05, "held_out_top1": 0.1, "mse": 0.05, "psnr_db": 13.0, "ssim": 0.2, "top1": 0.1}
    return Network(loss, **(figures | changes))


def attacked(*networks: Any, key: tuple[str, ...] = ("f",)) -> Any:
    from independent_results import Attack

    return Attack(1, key, 32_768, 5_000, 10_000, 100, 500, 4_160_739, networks or (network(),), 500.0, {})


def compared(audit: AuditResult, *networks: Any) -> Any:
    from independent_results import compare

    return compare("blur", audit, attacked(*networks))


def test_it_reconstructs_from_the_image_and_no_better_than_the_mean_image_from_nothing(narrow: None):
    from independent_attacker import attack
    from independent_network import Settings

    seen, blind = pair(nn.Identity()), pair(Nothing())
    of_image = attack(seen, Settings(steps=30, batch=16, held_out=20), device=CPU)
    of_nothing = attack(blind, Settings(steps=5, batch=16, held_out=20), device=CPU)
    images = seen.test.images.float() / 255
    mean_mse = float((images - seen.train.images.float().mean(dim=0) / 255).square().mean())
    assert [one.loss for one in of_image.networks] == ["L2", "L1", "Laplacian"]
    assert all(one.mse < 0.75 * mean_mse for one in of_image.networks)
    assert of_image.by_identification.top1 > 0.8 and of_nothing.by_identification.top1 < 0.2
    assert all(one.mse > 0.97 * mean_mse for one in of_nothing.networks)
    assert (of_image.pairs, of_image.held_out, of_image.test_images) == (280, 20, 60)


def test_it_has_about_four_million_parameters():
    from independent_network import Inverter

    net = Inverter(torch.rand(4, 3, 32, 32), torch.rand(3, 32, 32))
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(4.2e6, rel=0.02)


def test_before_training_it_is_the_mean_image_at_any_size_of_payload():
    from independent_network import Inverter

    mean_image = torch.rand(3, 18, 13, generator=torch.Generator().manual_seed(0))
    net = Inverter(torch.rand(4, 5, 7, 9), mean_image)
    assert torch.equal(net.reconstruct(torch.rand(2, 5, 7, 9)), mean_image.expand(2, -1, -1, -1))


def test_held_out_images_are_never_trained_on(monkeypatch: pytest.MonkeyPatch):
    import independent_attacker

    told: list[Tensor] = []

    def fit(payloads: Tensor, images: Tensor, *rest: Any, **options: Any) -> Any:
        told.append(images)
        raise AuditError("enough")

    monkeypatch.setattr(independent_attacker, "fit", fit)
    one = pair(scenes.Swap(), train=100)
    with pytest.raises(AuditError, match="enough"):
        independent_attacker.attack(one, independent_attacker.Settings(), device=CPU)
    trained = {image.numpy().tobytes() for image in told[0]}
    assert len(trained) == 90, "the tenth that is held out is not among them"
    assert trained < {image.numpy().tobytes() for image in one.train.images}


@pytest.mark.parametrize(
    ("difference", "value"),
    [
        (torch.full((2, 3, 16, 16), -0.5), 0.5),  # only the coarsest level sees it
        ((torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(2.0).sub(1).expand(1, 3, 16, 16), 1.0),
        (torch.ones(1, 1, 1, 1), 1.0),  # no level but the last
    ],
)
def test_the_pyramid_of_a_constant_and_of_a_chessboard(difference: Tensor, value: float):
    from independent_network import laplacian_loss

    assert float(laplacian_loss(difference)) == pytest.approx(value)


def test_the_rate_rises_and_falls_to_nothing():
    from independent_network import rate

    rates = [rate(step, 256) for step in range(256)]
    assert rates[0] == pytest.approx(1 / 13) and max(rates) == rates[12] == 1
    assert rates[12:] == sorted(rates[12:], reverse=True) and 0 < rates[-1] < 1e-3


def test_large_images_come_in_smaller_batches():
    from independent_network import Settings

    assert [Settings().batch_of(side, side) for side in (16, 32, 64, 224)] == [128, 128, 32, 8]


@pytest.mark.parametrize(
    ("mse", "top1", "beaten"),
    [
        (0.95 * 0.05, 0.11, ()),
        (0.0474, 0.11, ("mse",)),
        (0.06, 0.1299, ()),
        (0.06, 0.1301, ("top1",)),
        (0.0, 1.0, ("mse", "top1")),
    ],
)
def test_what_beats_the_audit(mse: float, top1: float, beaten: tuple[str, ...]):
    row = compared(fake_audit(mse=0.05, identification=[retrieval(0.11)]), network(mse=mse, top1=top1))
    assert row.beaten == beaten
    assert (row.mse_ratio, row.top1_difference) == pytest.approx((mse / 0.05, top1 - 0.11))


def test_a_perfect_audit_is_not_beaten_and_one_without_re_identification_not_by_it():
    row = compared(fake_audit(mse=0.0, identification=[]), network(mse=0.0, top1=1.0))
    assert (row.beaten, row.mse_ratio, row.audit_top1, row.top1_difference) == ((), None, None, None)


def test_the_audits_best_counts_among_most_candidates_of_one_class():
    rows = [
        retrieval(0.9, candidates=10),
        retrieval(0.2),
        retrieval(0.3, attacker="best"),
        retrieval(0.8, measure="linkage"),
    ]
    row = compared(fake_audit(identification=rows))
    assert (row.identifier, row.audit_top1) == ("best", 0.3)


def test_the_loss_is_chosen_on_held_out_images_alone():
    better_on_test = network("L1", held_out_mse=0.06, held_out_top1=0.05, mse=0.01, top1=0.9)
    row = compared(
        fake_audit(), network("L2"), better_on_test, network("Laplacian", held_out_mse=0.07, held_out_top1=0.2)
    )
    assert (row.loss, row.mse, row.identifier_loss) == ("L2", 0.05, "Laplacian")


def test_other_candidates_than_the_audits_are_refused(narrow: None):
    from independent_attacker import attack
    from independent_network import Settings

    with pytest.raises(AuditError, match="cannot be compared"):
        attack(pair(scenes.Swap(), identification=[retrieval(0.1)]), Settings(steps=2, batch=8), device=CPU)


def test_results_are_kept_and_an_attack_is_compared_again_with_a_new_audit(monkeypatch: Any, tmp_path: Path):
    import independent_attacker as ours

    file, settings, one = tmp_path / "results.json", ours.Settings(), pair(Nothing(), mse=0.05)
    key = ours.key_of(one.audit, one.target.fingerprint, settings)
    monkeypatch.setattr(ours, "attack", lambda *_, **__: attacked(key=key))
    assert not ours.run([one], ours.Comparison(), settings, file, device=CPU).rows[0].beaten

    monkeypatch.setattr(ours, "attack", lambda *_, **__: pytest.fail("it was attacked before"))
    known = ours.results_so_far(file, None)
    again = ours.run([replace(one, audit=fake_audit(mse=0.06, identification=[]))], known, settings, file, device=CPU)
    assert again.rows[0].beaten == ("mse",) and ours.Comparison.read(file) == again and not again.holds
    with pytest.raises(AuditError, match="another --out"):
        ours.results_so_far(file, 100)


def test_a_pair_that_fails_is_missing_and_the_others_go_on(monkeypatch: Any):
    import independent_attacker as ours

    def attack(one: Any, *_: Any, **__: Any) -> Any:
        if one.name == "first":
            raise AuditError("numbers that are not finite")
        return attacked()

    monkeypatch.setattr(ours, "attack", attack)
    both = [replace(pair(Nothing()), name=name) for name in ("first", "second")]
    found = ours.run(both, ours.Comparison(), ours.Settings(), None, device=CPU)
    assert [row.audit for row in found.rows] == ["second"]
    assert found.missing == (ours.Missing("first", "numbers that are not finite"),) and not found.holds


def test_obfuscators_are_found_by_fingerprint_and_a_lost_one_keeps_its_attack(monkeypatch: Any, tmp_path: Path):
    import independent_attacker as ours

    bundle = written(tmp_path / "runs" / "baselines" / "blur" / "bundle", "blur")
    target = load_target(str(bundle.path), size=SIZE)
    facts = {"name": "blur", "kind": "baseline", "fingerprint": target.fingerprint, "height": 16, "width": 16}
    train, test = scenes.images(100), scenes.images(40, seed=1)
    monkeypatch.setattr(ours, "load_train_test", lambda *_, **__: (train, test, {}))
    data = {"sha256": {"train": train.sha256, "test": test.sha256}}
    audits = {
        "blur": fake_audit(target=facts, data=data),
        "pixelate": fake_audit(target=facts | {"name": "pixelate", "fingerprint": "0" * 64}, data=data),
        "other-images": fake_audit(target=facts),
    }
    shutil.copytree(bundle.path, tmp_path / "runs" / "other-images" / "bundle")
    found, missing = ours.find_pairs(audits, [], runs=tmp_path / "runs")
    assert [one.name for one in found] == ["blur"]
    reasons = {one.audit: one.reason for one in missing}
    assert "sfumato baseline pixelate" in reasons["pixelate"] and "not those that" in reasons["other-images"]
    assert ours.find_pairs(audits, [bundle.path])[0][0].name == "blur"
    with pytest.raises(AuditError, match="no audit is of"):
        ours.find_pairs({"pixelate": audits["pixelate"]}, [bundle.path])

    done = attacked(key=ours.key_of(audits["pixelate"], "0" * 64, ours.Settings()))
    known = ours.Comparison(rows=(ours.compare("gone", fake_audit(), done),))
    left = ours.only(known, audits, found, missing, ours.Settings())
    assert [row.audit for row in left.rows] == ["pixelate"] and [one.audit for one in left.missing] == ["other-images"]


def test_the_section_says_what_was_beaten_and_what_is_missing():
    from independent_results import Comparison, Missing, section

    fine = compared(fake_audit(mse=0.05, identification=[retrieval(0.11)]))
    said = section(Comparison(rows=(fine,)))
    assert "in none of 1 audit." in said and "4.2 million parameters, trained on 32,768 pairs" in said
    assert "| blur | 0.05000 | 0.05000 | 1 | 11.0 % of 100 | 10.0 % | -1.0 | no |" in said
    lost = replace(compared(fake_audit(mse=0.06, identification=[retrieval(0.01)])), audit="sketch")
    said = section(Comparison(rows=(fine, lost), missing=(Missing("pca", "no bundle"),)))
    assert "in 1 of 2 audits: sketch (MSE and re-identification)." in said and "Not attacked: pca (no bundle)." in said
    with pytest.raises(AuditError, match="without --limit"):
        section(Comparison(rows=(fine,), trial=100))


def test_the_page_is_of_the_results():
    from independent_results import BEGIN, END, PAGE, RESULTS, Comparison, section

    if not (ROOT / RESULTS).exists():
        pytest.skip("not measured yet: python benchmarks/independent_attacker.py")
    found = Comparison.from_json(json.loads((ROOT / RESULTS).read_text(encoding="utf-8")))
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == section(found)

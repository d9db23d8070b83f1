from __future__ import annotations

import numpy as np
import torch

from reproduction import constants
from reproduction.plan import CPU, PAPER, SIZES, Target, parts
from reproduction.tables import table_4, transfer
from sfumato.lab.data import ImageSet
from tiny import SIZE, logits, obfuscate, save_bundles


def test_table_4_is_the_papers_and_adds_up():
    found = table_4()
    assert [(row.module, row.output[0], row.stride) for row in found.rows] == [
        (module, channels, stride) for _, module, channels, stride in constants.TABLE_4
    ]
    assert [row.input[1] for row in found.rows] == [32, 32, 16, 8, 4, 8, 16]
    assert (found.params, found.macs, found.macs_paper_order) == (324_518, 21_288_960, 26_449_920)
    for key in ("params", "macs", "macs_paper_order"):
        assert sum(getattr(row, key) for row in found.rows) == getattr(found, key)
    # conv 3x3, 3 -> 32, without bias, and a batch norm; one multiplication for each weight and pixel
    assert found.rows[0].params == 3 * 32 * 9 + 2 * 32
    assert found.rows[0].macs == 3 * 32 * 9 * 32 * 32


def test_transfer_is_what_numpy_computes(tmp_path):
    obfuscator, classifier = save_bundles(tmp_path)
    raw = torch.randint(0, 256, (30, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = raw.numpy().astype(np.float32) / 255
    answers = logits(obfuscate(images)).argmax(axis=1)
    labels = answers.copy()
    labels[:6] = (labels[:6] + 1) % 4
    test = ImageSet(raw, torch.from_numpy(labels), classifier.labels, "made up", "hash")
    found = transfer([obfuscator, obfuscator], [classifier], test, device=torch.device("cpu"))
    assert found == [[24 / 30], [24 / 30]]


def test_what_is_needed_comes_once_and_in_an_order_that_works():
    for plan in SIZES.values():
        for target in Target:
            made = parts(plan, target)
            names = [item.name for part in made for item in part.items]
            assert len(names) == len(set(names))
            for part in made:
                for item in part.items:
                    for other in (item.classifier, item.teacher, item.start):
                        assert other is None or names.index(other) < names.index(item.name)
                assert set(part.audited) <= set(part.items)
        assert {item.name for part in parts(plan, Target.ALL) for item in part.items} == {i.name for i in plan.items}


def test_the_papers_first_row_is_made_first_with_its_obfuscator_and_audit():
    first, second, *_ = parts(PAPER, Target.ALL)
    assert [item.name for item in first.items] == [
        "resnet18-1",
        "obfuscator-trunk",
        "obfuscator-trunk-2",
        "resnet18-1-obfuscator",
    ]
    assert [item.name for item in first.audited] == ["resnet18-1-obfuscator"]
    assert second.items[0].name == "vgg19"


def test_the_plans_name_the_papers_nets_and_one_obfuscator_for_each():
    assert sorted(str(item.paper) for item in PAPER.classifiers) == sorted(constants.NETS)
    for plan in (PAPER, CPU):
        assert [item.classifier for item in plan.obfuscators] == [item.name for item in plan.classifiers]


def test_every_recipe_of_the_plans_is_valid(tmp_path):
    from reproduction.lab import Lab

    seen = set()
    for plan in SIZES.values():
        lab = Lab(plan, tmp_path, torch.device("cpu"))
        for item in plan.items:
            recipe = lab.recipe(item)
            assert recipe.name == item.name
            seen.add((plan.size, item.name))
    first = Lab(PAPER, tmp_path, torch.device("cpu")).recipe(PAPER.obfuscators[-1])
    assert (first.training.epochs, first.training.schedule) == (5, "one-cycle") and first.privacy_weight == 1.0
    assert "5 epochs" in PAPER.description and "5 epochs" in first.note and constants.EPOCHS == 100
    cycles = [Lab(PAPER, tmp_path, torch.device("cpu")).recipe(item) for item in PAPER.trunk]
    assert {recipe.architecture for recipe in cycles} == {"obfuscator-trunk"}
    assert "cycles of " + " and ".join(str(recipe.training.epochs) for recipe in cycles) in PAPER.description
    assert first.classifier == str(tmp_path / "vgg19" / "bundle")
    assert len(seen) == 5 + 5 + 2 + 1 + 6 + 3 + 3 + 1 + 4

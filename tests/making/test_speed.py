import pytest
import torch

from counting import count_macs
from scenes import TINY
from sfumato.making import speed
from sfumato.making.speed import Entry, Speed, device_macs, training_macs
from sfumato.nets import Obfuscator, Sketcher, build_classifier
from sfumato.training.recipe import parse_recipe

CLASSIFIER = parse_recipe({"kind": "classifier", "name": "c", "architecture": "resnet20"})
OBFUSCATOR = parse_recipe({"kind": "obfuscator", "name": "o", "classifier": "c"})
SKETCH = parse_recipe({"kind": "sketch", "name": "s", "classifier": "c", "code_bits": 5})


@pytest.mark.parametrize(
    ("recipe", "net"),
    [
        (CLASSIFIER, build_classifier("resnet20", 7)),
        (OBFUSCATOR, Obfuscator()),
        (SKETCH, Sketcher(48, 64, classes=7, bits=5)),
    ],
)
def test_the_devices_cost_is_that_of_the_network(recipe, net):
    assert device_macs(recipe, height=48, width=64, classes=7) == count_macs(net, 48, 64)


def test_a_training_passes_through_all_its_networks():
    own = {recipe.kind: device_macs(recipe) for recipe in (CLASSIFIER, OBFUSCATOR, SKETCH)}
    assert training_macs(CLASSIFIER) == own["classifier"]
    assert training_macs(OBFUSCATOR, 1_000) == 2 * own["obfuscator"] + 1_000
    assert training_macs(SKETCH, 1_000) == own["sketch"] + 2_000


def test_seconds_follow_what_was_measured(monkeypatch):
    monkeypatch.setattr(speed, "_mac_seconds", lambda *_: 1e-9)
    monkeypatch.setattr(speed, "decoder_seconds", lambda *_: 0.5)
    machine = Speed(torch.device("cpu"))
    assert machine.training_s(1_000_000, 100, 2) == pytest.approx(0.6)  # three passes
    # 640 and 64 pictures of its decoders, 128 for identification and 128 for attributes.
    assert machine.audit_s(TINY) == 0.5 * (640 + 64 + 128 + 128)


def test_a_line_tells_the_time_that_is_left():
    assert Entry("a", "done", None).line == "a: done"
    assert Entry("b", "half done: epoch 3 of 20", 1_200).line == "b: half done: epoch 3 of 20, about 20 minutes"

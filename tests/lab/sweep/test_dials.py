from pathlib import Path

import pytest

from sfumato.errors import RecipeError
from sfumato.lab.sweep.plan import parse_dial, settings

SKETCH = Path(__file__).parents[3] / "recipes" / "cifar10-resnet20-sketch.toml"
CLASSIFIER = SKETCH.with_name("cifar10-resnet20.toml")


def grid(*dials, seeds=1, recipe=SKETCH, **more):
    return settings(recipe, dials, seeds=seeds, **more)


def test_a_dial_is_a_key_and_its_values():
    assert parse_dial("code_bits=4, 8,16") == ("code_bits", ("4", "8", "16"))
    assert parse_dial('training.schedule="step"') == ("training.schedule", ('"step"',))


@pytest.mark.parametrize("text", ["code_bits", "code_bits=", "=4", "code_bits=4,,8", "", "code_bits=4,"])
def test_what_is_no_dial_is_told(text):
    with pytest.raises(RecipeError, match="KEY=VALUE,VALUE"):
        parse_dial(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [("training.seed=1,2", "--seeds"), ("name=a,b", "named after its setting"), ("code_bits=4,8,4", "there twice")],
)
def test_what_cannot_be_swept_is_refused(text, says):
    with pytest.raises(RecipeError, match=says):
        parse_dial(text)


def test_dials_span_a_grid_and_each_place_has_its_seeds():
    found = grid("code_bits=4,8", "offload_rate=0.1,0.2", seeds=2, overrides=["training.seed=5"])
    assert [setting.label for setting in found] == [
        "code_bits=4, offload_rate=0.1",
        "code_bits=4, offload_rate=0.2",
        "code_bits=8, offload_rate=0.1",
        "code_bits=8, offload_rate=0.2",
    ]
    assert list(found[1].recipes) == ["code_bits-4-offload_rate-0.2-seed5", "code_bits-4-offload_rate-0.2-seed6"]
    recipes = list(found[1].recipes.values())
    assert [(r.code_bits, r.offload_rate, r.training.seed) for r in recipes] == [(4, 0.2, 5), (4, 0.2, 6)]
    assert recipes[0].name == "cifar10-resnet20-sketch-code_bits-4-offload_rate-0.2-seed5"
    assert len({recipe.name for setting in found for recipe in setting.recipes.values()}) == 8


def test_without_a_dial_there_is_one_place():
    (only,) = grid(seeds=3)
    assert (only.label, only.values, list(only.recipes)) == ("cifar10-resnet20-sketch", {}, ["seed0", "seed1", "seed2"])


@pytest.mark.parametrize(
    ("dials", "says"),
    [
        (["code_bit=4,8"], "unknown key 'code_bit'"),
        (["code_bits=4,65"], "'code_bits': .*64"),
        (["code_bits=4,many"], "'code_bits': .*integer"),
        (["training.epochs=1,0"], r"'training\.epochs'"),
        (["code_bits=4", "code_bits=8"], "is repeated"),
        (["classifier=a,b"], "must share"),
        (["data.source=cifar10,photos"], "must share"),
        (["note=a/b,a:b"], "same folder"),
    ],
)
def test_a_bad_grid_is_told(dials, says):
    with pytest.raises(RecipeError, match=says):
        grid(*dials)


def test_recipes_of_classifiers_are_not_swept():
    with pytest.raises(RecipeError, match="recipe of an obfuscator"):
        grid("training.epochs=1,2", recipe=CLASSIFIER)

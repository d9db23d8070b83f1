from pathlib import Path

import pytest

from sfumato.errors import RecipeError
from sfumato.lab.training import ClassifierRecipe, ObfuscatorRecipe, load_recipe
from sfumato.lab.training.recipe import parse_recipe

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
GOOD = """
kind = "classifier"
name = "tiny"
architecture = "resnet20"

[training]
epochs = 3
"""
SKETCH = 'kind = "sketch"\nname = "s"\nclassifier = "x"\n'
OTHER = 'kind = "obfuscator"\nname = "o"\nclassifier = "x"\n'


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_loads_and_says_how_it_is_run(path):
    loaded = load_recipe(path)
    assert loaded.name == path.stem
    assert path.read_text().splitlines()[0].startswith(f"# sfumato train recipes/{path.name}")


def test_the_kind_decides_what_a_recipe_is(recipe):
    assert isinstance(load_recipe(recipe(GOOD)), ClassifierRecipe)
    loaded = load_recipe(recipe(OTHER))
    assert isinstance(loaded, ObfuscatorRecipe)
    # What the recipe leaves out is the paper's: section 3.
    assert (loaded.training.optimizer, loaded.training.learning_rate) == ("adam", 1e-3)
    assert (loaded.training.epochs, loaded.training.schedule, loaded.training.step_epochs) == (100, "step", 30)
    assert (loaded.privacy.target, loaded.privacy.attackers, loaded.privacy.restart_epochs) == (
        "error",
        ("paper",),
        None,
    )
    assert loaded.output.format == "float"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD + "epoch = 3\n", "unknown key 'training.epoch'"),
        (GOOD.replace("architecture", "arhcitecture"), "unknown key 'arhcitecture'.*|'architecture' is missing"),
        ('clasifier = "x"\n' + GOOD, "unknown key 'clasifier'"),
        (GOOD.replace("epochs = 3", 'epochs = "many"'), "'training.epochs'"),
        (GOOD.replace("epochs = 3", "epochs = 0"), "'training.epochs'"),
        (GOOD.replace("epochs = 3", "epochs = 2.5"), "'training.epochs'"),
        (GOOD.replace("epochs = 3", "learning_rate = -1.0"), "'training.learning_rate'"),
        (GOOD.replace("epochs = 3", "learning_rate = nan"), "'training.learning_rate'"),
        (GOOD.replace("epochs = 3", "learning_rate = inf"), "'training.learning_rate'"),
        (GOOD.replace("resnet20", "resnet21"), "'architecture'"),
        (GOOD.replace('"tiny"', '"../tiny"'), "'name'"),
        ("teacher = 3\n" + GOOD, "'teacher'"),
        ("teacher = []\n" + GOOD, r"'teacher': expected a classifier, or a list of some, got \[\]"),
        ('teacher = ["a", 3]\n' + GOOD, "'teacher': expected a classifier"),
        ("mixup = -0.1\n" + GOOD, "'mixup'"),
        (GOOD + "weight_average = 1.0\n", "'training.weight_average'"),
        (GOOD + "int8_epochs = 3\n", "'training': int8_epochs = 3 are the last of the 3 epochs and must be fewer"),
        (GOOD + "int8_epochs = 1\ncompile = true\n", "'training': int8_epochs cannot be compiled"),
        (GOOD + "[data]\ncutout = -1\n", "'data.cutout'"),
        (GOOD + "small_epochs = 3\n", "small_epochs = 3 are the first of the 3 epochs and must be fewer"),
        (OTHER + "[training]\nsmall_epochs = 1", "training.small_epochs is for classifiers"),
        (SKETCH + "[training]\nsmall_epochs = 1", "training.small_epochs is for classifiers"),
        (GOOD.replace("resnet20", "vgg19") + "small_epochs = 1\n", "small_epochs: vgg19 halves images until"),
        (OTHER + "[training]\nint8_epochs = 1", "training.int8_epochs is for classifiers and sketches"),
        (OTHER + "[privacy]\nrestart_epochs = 9\n[training]\nweight_average = 0.9", "average would be of two networks"),
        (SKETCH + 'trunk = "resnet20"', "'trunk'"),
        ("teacher_weight = 1.5\n" + GOOD, "'teacher_weight'"),
        ("temperature = 0.0\n" + GOOD, "'temperature'"),
        (GOOD.replace('"classifier"', '"clasifier"'), "kind"),
        (GOOD.replace('kind = "classifier"', ""), "kind"),
        ('training = 3\nkind = "classifier"\nname = "t"\narchitecture = "resnet20"', "'training'"),
        (GOOD + "[data]\nsize = [32]\n", "'data.size"),
        ('kind = "obfuscator"\nname = "o"\n', "'classifier' is missing"),
        ('kind = "obfuscator"\nname = "o"\nclassifier = "x"\nprivacy_weight = -1.0', "'privacy_weight'"),
        ('kind = "obfuscator"\nname = "o"\nclassifier = "x"\nprivacy_weight = inf', "'privacy_weight'"),
        ('kind = "obfuscator"\nname = "o"\nclassifier = 3\n', "'classifier'"),
        (OTHER + "[utility]\nteacher_weight = 0.7\nfeature_weight = 0.4", "'utility'.*at most 1 together"),
        (OTHER + "[utility]\nlabel_weight = 0.7", "unknown key 'utility.label_weight'"),
        (OTHER + '[privacy]\nattackers = ["papers"]', "'privacy.attackers.0'"),
        (OTHER + '[privacy]\ntarget = "mean"', "'privacy.target'"),
        (OTHER + "[privacy]\nattackers = []", "privacy_weight needs attackers: name some.*or set it to 0"),
        (OTHER + "[privacy]\nattackers = []\nrestart_epochs = 2", "'privacy'.*none to restart"),
        (OTHER + "[privacy]\nrestart_epochs = 100", "restart_epochs = 100 is never reached in 100 epochs"),
        ("privacy_weight = 0.0\n" + OTHER + '[privacy]\ntarget = "class-mean"', '"class-mean" has no effect'),
        (OTHER + "[bottleneck]\nrate_weight = -1.0", "'bottleneck.rate_weight'"),
        (OTHER + "[output]\nformat = 8", "'output.format'"),
        (OTHER + "[input]\nremove_frequencies = -1", "'input.remove_frequencies'"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_the_key(recipe, text, complaint):
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(recipe(text))


@pytest.mark.parametrize(
    ("given", "found"), [("", ()), ('teacher = "a"\n', ("a",)), ('teacher = ["a", "b"]\n', ("a", "b"))]
)
@pytest.mark.parametrize("text", [GOOD, SKETCH])
def test_a_teacher_is_one_or_several(recipe, given, found, text):
    loaded = load_recipe(recipe(given + text))
    assert loaded.teachers == found
    assert parse_recipe(loaded.model_dump(mode="json")) == loaded


@pytest.mark.parametrize("text", ["kind = ", "kind == 3", "[training\n", "kind = 'a'\nkind = 'b'"])
def test_what_is_no_toml_is_refused(recipe, text):
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(recipe(text))


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(tmp_path / "recipe.toml")


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_values_are_changed_from_the_command_line(recipe):
    changes = ["training.epochs=7", "data.flip=false", "data.size=[40, 24]", "name=other", 'data.source = "x/y"']
    changed = load_recipe(recipe(GOOD), changes)
    assert changed.training.epochs == 7
    assert changed.data.flip is False
    assert changed.data.size == (40, 24)
    assert changed.name == "other"
    assert changed.data.source == "x/y"


def test_the_last_change_counts(recipe):
    assert load_recipe(recipe(GOOD), ["training.epochs=7", "training.epochs=8"]).training.epochs == 8


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("training.epochs", "key=value"),
        ("=3", "key=value"),
        ("training.epoch=3", "unknown key 'training.epoch'"),
        ("name.first=3", "'name' is a value"),
        ("training.epochs=many", "'training.epochs'"),
        ("training=3", "'training'"),
    ],
)
def test_a_change_that_is_wrong_is_refused(recipe, change, complaint):
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(recipe(GOOD), [change])


def test_a_change_cannot_smuggle_in_a_second_key(recipe):
    with pytest.raises(RecipeError):
        load_recipe(recipe(GOOD), ["training.epochs=3\nname = 'x'"])


def test_a_recipe_does_not_change_once_it_is_read(recipe):
    loaded = load_recipe(recipe(GOOD))
    with pytest.raises(Exception, match="frozen"):
        loaded.name = "other"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["data.zoom=0.3", "data.crop_padding=2"], "'data': zoom and crop_padding are two ways to crop"),
        (["data.zoom=0"], "'data.zoom'"),
        (["data.stream=true", "data.source=x", "data.test_images=9"], "'data': stream needs size"),
        (["data.stream=true", "data.source=x", "data.size=[8, 8]"], "'data': stream needs test_images"),
        (["data.stream=true", "data.size=[8, 8]", "data.test_images=9"], "cifar10 fits the memory"),
    ],
)
def test_what_does_not_go_together_in_the_data_is_refused(recipe, changes, complaint):
    good = GOOD.replace("crop_padding", "# crop_padding")
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(recipe(good), changes)


def test_no_zoom_goes_with_shifts(recipe):
    assert load_recipe(recipe(GOOD), ["data.zoom=1.0", "data.crop_padding=2"]).data.crop_padding == 2


def test_earlier_names_of_keys_are_accepted():
    common = {"kind": "sketch", "name": "s", "classifier": "x"}
    old = {**common, "drawing": "photographs", "drawn_share": 0.5, "learn": "drawing", "transfer": {"also": ["y"]}}
    new = {
        **common,
        "decoder": "photographs",
        "decoded_share": 0.5,
        "learn": "decoder",
        "transfer": {"ensemble": ["y"]},
    }
    assert parse_recipe(old) == parse_recipe(new)

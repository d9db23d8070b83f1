import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from full_disk import disk_with_room_for
from hostile_json import damaged as almost
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.class_map import ClassMap
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.gate import Gate
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import Figures, Provenance, RecipeRecord
from sfumato.errors import BundleError


@pytest.fixture
def folder(tmp_path, obfuscator_bundle) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(obfuscator_bundle.path, tmp_path / "bundle")


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("kind", ["classifier", "obfuscator"])
def test_what_was_saved_is_loaded(tmp_path, kind):
    for name in ("model.onnx", "obfuscator.onnx", "weights.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    saved = Bundle(
        path=tmp_path,
        kind=kind,
        name="näme",
        labels=("cat", "Hündchen"),
        preprocessing=Preprocessing(8, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 1 / 3)),
        classifier_fingerprint="sha256:0",
        recipe=RecipeRecord(kind="sketch", others={"training": {"epochs": 3}}),
        figures=Figures(accuracy_plain=0.1234567890123),
        provenance=Provenance(others={"commit": None}),
    ).save()
    assert Bundle.load(tmp_path) == saved == Bundle.load(str(tmp_path), kind=kind)
    assert Bundle.load(tmp_path).files == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("model.onnx", "obfuscator.onnx", "weights.safetensors")
    }


def test_saving_again_keeps_up_with_the_files(folder):
    bundle = Bundle.load(folder)
    (folder / "deobfuscator.onnx").write_bytes(b"new")
    saved = replace(bundle, figures=bundle.figures.updated(accuracy_plain=0.5)).save()
    assert "deobfuscator.onnx" not in bundle.files and bundle.figures == Figures(), "the old one is as it was"
    again = Bundle.load(folder)
    assert again == saved
    assert again.file("deobfuscator.onnx").read_bytes() == b"new"
    assert again.figures == Figures(accuracy_plain=0.5)


def test_a_bundle_may_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "moved")
    assert Bundle.load(tmp_path / "moved").file("obfuscator.onnx").is_file()
    assert str(tmp_path) not in (tmp_path / "moved" / "bundle.json").read_text()


def test_a_file_that_is_not_listed_is_not_given(folder):
    (folder / "extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"has no extra\.onnx; it lists obfuscator\.onnx"):
        Bundle.load(folder).file("extra.onnx")


def test_a_changed_file_is_refused(damaged):
    with pytest.raises(BundleError, match="changed or damaged"):
        Bundle.load(damaged)


def test_a_missing_file_is_named(folder):
    (folder / "obfuscator.onnx").unlink()
    with pytest.raises(BundleError, match=r"obfuscator\.onnx is missing"):
        Bundle.load(folder)


def test_another_kind_than_the_one_needed_is_refused(obfuscator_bundle, classifier_bundle):
    with pytest.raises(BundleError, match="kind 'obfuscator'; one of kind 'classifier'"):
        Bundle.load(obfuscator_bundle.path, kind="classifier")
    with pytest.raises(BundleError, match="kind 'classifier'; one of kind 'obfuscator'"):
        Bundle.load(classifier_bundle.path, kind="obfuscator")


@pytest.mark.parametrize("schema", [None, "sfumato.bundle/3", "other", 1])
def test_a_manifest_of_another_schema_is_refused(folder, schema):
    edit(folder, schema=schema)
    with pytest.raises(BundleError, match="this version of sfumato reads"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "sub/x.onnx", "..", ".", "", "./obfuscator.onnx"])
def test_a_manifest_cannot_reach_out_of_its_folder(folder, name):
    secret = folder.parent / "secret.onnx"
    secret.write_bytes(b"secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "x.onnx").write_bytes(b"secret")
    files = json.loads((folder / "bundle.json").read_text())["files"]
    edit(folder, files={**files, name: hashlib.sha256(b"secret").hexdigest()})
    with pytest.raises(BundleError):
        Bundle.load(folder)


WRONG = [None, 3, "text", [1], {"a": 1}, True]
OPTIONAL = ("recipe", "figures", "provenance")


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("kind", ()),
        ("name", (str,)),
        ("labels", ()),
        ("preprocessing", ()),
        ("classifier_fingerprint", (str,)),
        ("files", ()),
        ("recipe", (dict,)),
        ("figures", (dict,)),
        ("provenance", (dict,)),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(folder, key, right, value):
    edit(folder, **{key: value})
    if isinstance(value, right):
        Bundle.load(folder)
        return
    with pytest.raises(BundleError, match=r"must be|malformed|unknown kind|strings|does not list|missing"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": -8},
        {"height": "tall"},
        {"height": None},
        {"mean": [0.5, 0.5]},
        {"mean": 0.5},
        {"std": [1, 1, 0]},
        {"std": [1, 1, -1]},
        {"std": [1, 1, float("nan")]},
        {"mean": [0, 0, float("inf")]},
    ],
    ids=repr,
)
def test_a_preprocessing_that_makes_no_sense_is_refused(folder, change):
    preprocessing = json.loads((folder / "bundle.json").read_text())["preprocessing"]
    edit(folder, preprocessing={**preprocessing, **change})
    with pytest.raises(BundleError, match="preprocessing"):
        Bundle.load(folder)


@pytest.mark.parametrize("key", ["kind", "name", "labels", "preprocessing", "classifier_fingerprint", "files"])
def test_a_manifest_that_lacks_something_is_refused(folder, key):
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest[key]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=key):
        Bundle.load(folder)


def test_what_every_bundle_can_do_without_may_be_absent(folder):
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({k: v for k, v in manifest.items() if k not in OPTIONAL}))
    assert Bundle.load(folder).figures == Figures()


def test_a_gate_is_saved_and_loaded(folder):
    bundle = replace(Bundle.load(folder), gate=Gate(threshold=0.75, offload_rate=0.15, images=2000))
    bundle = bundle.save()
    assert Bundle.load(folder).gate == bundle.gate
    edit(folder, gate=None)
    assert Bundle.load(folder).gate is None


@pytest.mark.parametrize(
    "gate",
    [
        "open", 0.5, [], {}, {"threshold": 0.5, "offload_rate": 0.1},
        {"threshold": "x", "offload_rate": 0, "images": 1},
        {"threshold": 1.5, "offload_rate": 0.1, "images": 9}, {"threshold": 0.5, "offload_rate": -1, "images": 9},
        {"threshold": float("nan"), "offload_rate": 0.1, "images": 9},
    ],
)  # fmt: skip
def test_a_gate_that_makes_no_sense_is_refused(folder, gate):
    edit(folder, gate=gate)
    with pytest.raises(BundleError, match="gate"):
        Bundle.load(folder)


def test_a_classifier_has_no_gate(classifier_bundle, tmp_path):
    copy = shutil.copytree(classifier_bundle.path, tmp_path / "classifier")
    edit(copy, gate={"threshold": 0.5, "offload_rate": 0.1, "images": 9})
    with pytest.raises(BundleError, match="gate"):
        Bundle.load(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(folder, content):
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.load(folder)


def test_the_folder_around_a_bundle_names_it(folder):
    with pytest.raises(BundleError, match=r"is not a bundle: .*bundle is one"):
        Bundle.load(folder.parent)
    with pytest.raises(BundleError, match=r"is not a bundle: .*sfumato import"):
        Bundle.load(folder.parent.parent)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.load(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        Bundle.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.load(tmp_path / "file")


def test_a_bundle_is_not_saved_without_the_file_it_is_for(folder):
    bundle = Bundle.load(folder)
    (folder / "obfuscator.onnx").unlink()
    with pytest.raises(BundleError, match=r"without obfuscator\.onnx"):
        bundle = bundle.save()
    with pytest.raises(BundleError):
        replace(bundle, path=folder / "absent").save()


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_disk_leaves_the_old_manifest(folder, room):
    bundle = Bundle.load(folder)
    before, files = (folder / "bundle.json").read_bytes(), sorted(folder.iterdir())
    with disk_with_room_for(len(before) * room // 3), pytest.raises(BundleError, match="cannot write"):
        bundle.save()
    assert (folder / "bundle.json").read_bytes() == before
    assert sorted(folder.iterdir()) == files


def test_a_fingerprint_is_the_hash_of_the_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"abc")
    # Source: FIPS 180-4, the example of "abc".
    expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(tmp_path / "model.onnx") == expected


def full_manifest() -> dict[str, Any]:
    """A manifest with every part that one can have."""
    folder = Path(tempfile.mkdtemp())
    bundle, _ = tiny.save_bundles(folder, threshold=0.5)
    bundle = replace(
        bundle,
        recipe=RecipeRecord(kind="obfuscator", seed=1, notes=("a",), output={"format": "8-bit"}, code_bits=8),
        figures=Figures(accuracy_plain=0.5, joint_deobfuscator_psnr_db=float("inf"), test_images=3, audit={"a": [1]}),
        provenance=Provenance(libraries={"torch": "2"}, epochs=1.5, history=[{"epoch": 1}]),
        code_fingerprint="sha256:0",
        class_map=ClassMap.of({label: index for index, label in enumerate(bundle.labels)}, 9),
    ).save()
    shutil.rmtree(folder)
    return bundle.to_json()


MANIFEST = full_manifest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=almost(MANIFEST), data=st.data())
def test_a_damaged_manifest_is_an_error_of_ours_or_a_bundle(tmp_path, text, data):
    bundle, _ = tiny.save_bundles(tmp_path / "bundles", threshold=0.5)
    (bundle.path / "bundle.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        loaded = Bundle.load(bundle.path)
    except BundleError as error:
        assert len(str(error)) < 1000, "an error fits a screen, however long the values are"
        return
    assert Bundle.load(bundle.path) == loaded.save() or "inf" in text.lower() or "nan" in text.lower()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preprocessing": {"height": float("inf"), "width": 8, "mean": [0] * 3, "std": [1] * 3}}, r"height is inf"),
        ({"preprocessing": {"height": "8", "width": 8, "mean": [0] * 3, "std": [1] * 3}}, "height must be an integer"),
        ({"preprocessing": {"height": True, "width": 8, "mean": [0] * 3, "std": [1] * 3}}, "height must be an integer"),
        ({"preprocessing": {"height": 10**9, "width": 8, "mean": [0] * 3, "std": [1] * 3}}, "at most 50,000,000"),
        ({"preprocessing": {"height": 8, "width": 8, "mean": [10**400] * 3, "std": [1] * 3}}, r"mean\[0\] has 401"),
        ({"gate": {"threshold": 10**400, "offload_rate": 0.1, "images": 9}}, "gate.threshold has 401 digits"),
        ({"gate": {"threshold": 0.5, "offload_rate": 0.1, "images": 9.5}}, "images must be an integer"),
        ({"gate": {"threshold": 0.5, "offload_rate": 0.1, "images": -1}}, "-1 images"),
        ({"files": {"a" * 5000: "x"}}, "a{80} is missing"),
        ({"files": {"a\0b": "x"}}, "is missing"),
        ({"figures": {"accuracy_plain": float("nan")}}, "accuracy_plain is nan"),
        ({"figures": {"test_images": True}}, "test_images"),
        ({"name": "\ud800"}, "half a character"),
    ],
)
def test_the_place_of_what_is_wrong_is_named(folder, change, said):
    edit(folder, **change)
    with pytest.raises(BundleError, match=said):
        Bundle.load(folder)


def test_a_key_that_stands_twice_is_refused(folder):
    text = (folder / "bundle.json").read_text().rstrip().removesuffix("}")
    (folder / "bundle.json").write_text(text + ', "name": "another"}')
    with pytest.raises(BundleError, match="the key 'name' stands twice"):
        Bundle.load(folder)


def test_a_path_that_cannot_be_is_no_bundle(tmp_path):
    for path in (tmp_path / ("a" * 5000), "a\0b"):
        with pytest.raises(BundleError, match="no bundle at"):
            Bundle.load(path)

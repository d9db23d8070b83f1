"""Networks kept with the results, in half precision, and bundles of the lab rebuilt from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reproduction.audits import audit_folder
from reproduction.lab import Lab
from reproduction.plan import Item
from sfumato.artifacts.bundle import (
    CLASSIFIER_WEIGHTS,
    DEOBFUSCATOR_WEIGHTS,
    MANIFEST,
    OBFUSCATOR_WEIGHTS,
    Bundle,
)
from sfumato.artifacts.lab_files import find_lab_file
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import Figures, Provenance, RecipeRecord
from sfumato.errors import ResultsError
from sfumato.lab.evaluation.results import read_object
from sfumato.lab.export.onnx import renew
from sfumato.lab.models import Deobfuscator, build_classifier, obfuscator_of
from sfumato.lab.training.building import normalize
from sfumato.lab.training.export import write_classifier_bundle, write_obfuscator_bundle
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe import ObfuscatorRecipe
from sfumato.lab.training.run import CHECK_IMAGES
from sfumato.lab.training.tasks import ClassifierTask
from sfumato.progress import Say

REBUILT_FROM = "restored_from"
"""Key in the provenance of a rebuilt bundle: the fingerprint of the classifier that was kept, or that it was for."""
_Net = TypeVar("_Net", bound=nn.Module)
_Json = dict[str, object]
_WEIGHTS = (CLASSIFIER_WEIGHTS, OBFUSCATOR_WEIGHTS, DEOBFUSCATOR_WEIGHTS)


class _Manifest(BaseModel):
    """What a kept manifest says, beside what stays with its recipe."""

    name: str
    labels: tuple[str, ...]
    preprocessing: _Json
    classifier_fingerprint: str
    recipe: _Json
    figures: _Json
    provenance: _Json
    files: dict[str, str]


def kept_folder(results: Path, item: Item) -> Path:
    """Return the folder in which an item's network is kept, if it is.

    Args:
        results: folder of the results files.
        item: of the plan.
    """
    return results / "networks" / item.name


def keep(lab: Lab, results: Path) -> None:
    """Copy the finished networks of the paper's rows and their trunk next to the results: manifests, weights, audits.

    Of classifiers that the plan does not keep, copy the manifest alone: hashes, recipe and accuracy.

    Args:
        lab: what is not finished is left out.
        results: folder of the results files.

    Raises:
        ResultsError: the files cannot be written.
        BundleError: a bundle is damaged.
    """
    if not any(item.kept for item in lab.plan.items):
        return
    for item in (*lab.plan.classifiers, *lab.plan.trunk, *lab.plan.obfuscators):
        if lab.state(item).name != "done":
            continue
        bundle, folder = lab.bundle(item), kept_folder(results, item)
        audit = audit_folder(lab, item) / "audit.json"
        weights = [file for name in _WEIGHTS if (file := find_lab_file(bundle, name))] if item.kept else []
        files = [bundle.path / MANIFEST, *weights, *([audit] if audit.is_file() else [])]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, folder / file.name)
        except OSError as error:
            raise ResultsError(f"{item.name} cannot be kept in {folder}: {error.strerror or error}") from error


def rebuild(lab: Lab, item: Item, results: Path, say: Say) -> bool:
    """Rebuild an item's bundle in the lab from its kept weights, with their figures and provenance.

    Args:
        lab: that lacks the item.
        item: of the plan.
        results: folder of the results files.
        say: see `Say`.

    Returns:
        False if its weights are not kept, or were trained for another classifier.

    Raises:
        ResultsError: the kept files are damaged.
    """
    folder = kept_folder(results, item)
    manifest = read_object(folder / MANIFEST)
    names = [name for name in _WEIGHTS if (folder / name).is_file()]
    if manifest is None or not names:
        return False
    images = lab.test.images[:CHECK_IMAGES].float() / 255
    try:
        about = _Manifest.model_validate(manifest)
        if item.classifier is None:
            bundle = _classifier(lab, item, folder, about, images)
        elif not _has_classifier(lab, lab.plan.item(item.classifier), about.classifier_fingerprint):
            return False
        else:
            bundle = _obfuscator(lab, item, folder, about, images)
        origin = {**about.provenance, REBUILT_FROM: about.classifier_fingerprint}
        figures, facts = Figures.from_json(about.figures), Provenance.from_json(origin)
        bundle = replace(bundle, figures=figures, provenance=facts).save()
        same = bundle.files.items() <= about.files.items()
    except (KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise ResultsError(f"{folder} is damaged ({reason}); move it away to train {item.name}") from error
    exported = "" if same else "; its ONNX files differ in bytes, as other versions of the libraries wrote them"
    say(f"{item.name}: rebuilt from the weights in {folder}{exported}")
    return True


def _has_classifier(lab: Lab, item: Item, fingerprint: str) -> bool:
    """Return whether the lab has a classifier with that fingerprint."""
    if lab.state(item).name != "done":
        return False
    bundle = lab.bundle(item)
    return fingerprint in (bundle.classifier_fingerprint, bundle.provenance.others.get(REBUILT_FROM))


def _classifier(lab: Lab, item: Item, folder: Path, about: _Manifest, images: Tensor) -> Bundle:
    labels, recipe = about.labels, about.recipe
    net = _loaded(build_classifier(str(recipe["architecture"]), len(labels)), folder / CLASSIFIER_WEIGHTS)
    preprocessing = Preprocessing.from_json(about.preprocessing)
    run = lab.run(item)
    renew(run.folder)
    return write_classifier_bundle(
        run.bundle,
        ClassifierTask(net, normalize(preprocessing)),
        images,
        name=about.name,
        labels=labels,
        preprocessing=preprocessing,
        recipe=RecipeRecord.from_json(recipe),
        half=True,
    )


def _obfuscator(lab: Lab, item: Item, folder: Path, about: _Manifest, images: Tensor) -> Bundle:
    frozen, run, recipe = lab.frozen(item), lab.run(item), ObfuscatorRecipe.model_validate(about.recipe)
    task = ObfuscationTask(
        _loaded(obfuscator_of(recipe), folder / OBFUSCATOR_WEIGHTS),
        _loaded(Deobfuscator(), folder / DEOBFUSCATOR_WEIGHTS),
        frozen.net,
        normalize(frozen.preprocessing),
        privacy_weight=recipe.privacy_weight,
    )
    renew(run.folder)
    resolved = RecipeRecord.from_json(about.recipe)
    return write_obfuscator_bundle(run.bundle, task.eval(), images, classifier=frozen, recipe=resolved, half=True)


def _loaded(net: _Net, path: Path) -> _Net:
    net.load_state_dict(load_file(path))
    return net.eval()

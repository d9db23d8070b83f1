"""The networks that are kept with the results, in half precision, and the lab's bundles made of them again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reproduction.lab import Lab
from reproduction.plan import Item
from sfumato.artifacts.bundle import (
    CLASSIFIER_WEIGHTS,
    DEOBFUSCATOR_WEIGHTS,
    MANIFEST,
    OBFUSCATOR_WEIGHTS,
    Bundle,
    Preprocessing,
)
from sfumato.errors import ResultsError
from sfumato.lab.export.onnx import renew
from sfumato.lab.models import Deobfuscator, build_classifier, obfuscator_of
from sfumato.lab.runs.folders import read_json
from sfumato.lab.training.building import normalize
from sfumato.lab.training.export import write_classifier_bundle, write_obfuscator_bundle
from sfumato.lab.training.recipe import ObfuscatorRecipe
from sfumato.lab.training.run import CHECK_IMAGES
from sfumato.lab.training.tasks import ClassifierTask, ObfuscationTask

RESTORED = "restored_from"
"""Where a restored bundle's provenance says which classifier the kept one had, or was for."""
_Net = TypeVar("_Net", bound=nn.Module)
_WEIGHTS = (CLASSIFIER_WEIGHTS, OBFUSCATOR_WEIGHTS, DEOBFUSCATOR_WEIGHTS)


def kept_folder(results: Path, item: Item) -> Path:
    """Where an item's network is kept, if it is.

    Args:
        results: folder of the results files.
        item: of the plan.
    """
    return results / "networks" / item.name


def keep(lab: Lab, results: Path) -> None:
    """Copies the finished networks of the paper's rows beside the results: manifests, weights, and audits.

    Of classifiers that the plan does not keep it is the manifest alone: hashes, recipe and accuracy.

    Args:
        lab: with a plan of what is finished.
        results: folder of the results files.

    Raises:
        ResultsError: the disk refuses.
        BundleError: a bundle is damaged.
    """
    if not any(item.kept for item in lab.plan.items):
        return
    for item in (*lab.plan.classifiers, *lab.plan.obfuscators):
        bundle, folder = lab.bundle(item), kept_folder(results, item)
        audit = lab.folder / "audits" / item.name / "audit.json"
        names = [name for name in _WEIGHTS if name in bundle.files] if item.kept else []
        files = [bundle.path / MANIFEST, *map(bundle.file, names), *([audit] if audit.is_file() else [])]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, folder / file.name)
        except OSError as error:
            raise ResultsError(f"{item.name} cannot be kept in {folder}: {error.strerror or error}") from error


def restore(lab: Lab, item: Item, results: Path, say: Callable[[str], None]) -> bool:
    """Makes an item's bundle in the lab of the weights that are kept, with the figures and the provenance of then.

    Args:
        lab: that lacks the item.
        item: of the plan.
        results: folder of the results files.
        say: is told a line for people.

    Returns:
        Whether it could be done: not if its weights are not kept, or if they were trained for another classifier.

    Raises:
        ResultsError: what is kept is damaged.
    """
    folder = kept_folder(results, item)
    about = read_json(folder / MANIFEST)
    names = [name for name in _WEIGHTS if (folder / name).is_file()]
    if about is None or not names:
        return False
    images = lab.test.images[:CHECK_IMAGES].float() / 255
    try:
        if item.classifier is None:
            bundle = _classifier(lab, item, folder, about, images)
        elif not _has_classifier(lab, lab.plan.item(item.classifier), about["classifier_fingerprint"]):
            return False
        else:
            bundle = _obfuscator(lab, item, folder, about, images)
        bundle = replace(
            bundle,
            figures=bundle.figures.updated(**about["figures"]),
            provenance=bundle.provenance.updated(**{**about["provenance"], RESTORED: about["classifier_fingerprint"]}),
        ).save()
        same = bundle.files == about["files"]
    except (KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error!s:.120}"
        raise ResultsError(f"{folder} is damaged ({reason}); move it away, then {item.name} is trained") from error
    exported = "" if same else "; its ONNX files differ in bytes, as other versions of the libraries wrote them"
    say(f"{item.name}: made of the weights in {folder}{exported}")
    return True


def _has_classifier(lab: Lab, item: Item, fingerprint: str) -> bool:
    """Whether the lab has a classifier, and it is the one of that fingerprint."""
    if lab.state(item).name != "done":
        return False
    bundle = lab.bundle(item)
    return fingerprint in (bundle.classifier_fingerprint, bundle.provenance.others.get(RESTORED))


def _classifier(lab: Lab, item: Item, folder: Path, about: dict[str, Any], images: Tensor) -> Bundle:
    labels, recipe = tuple(about["labels"]), about["recipe"]
    net = _loaded(build_classifier(recipe["architecture"], len(labels)), folder / CLASSIFIER_WEIGHTS)
    preprocessing = Preprocessing.from_json(about["preprocessing"])
    run = lab.run(item)
    renew(run.folder)
    return write_classifier_bundle(
        run.bundle,
        ClassifierTask(net, normalize(preprocessing)),
        images,
        name=about["name"],
        labels=labels,
        preprocessing=preprocessing,
        recipe=recipe,
        half=True,
    )


def _obfuscator(lab: Lab, item: Item, folder: Path, about: dict[str, Any], images: Tensor) -> Bundle:
    frozen, recipe, run = lab.frozen(item), about["recipe"], lab.run(item)
    task = ObfuscationTask(
        _loaded(obfuscator_of(ObfuscatorRecipe.model_validate(recipe)), folder / OBFUSCATOR_WEIGHTS),
        _loaded(Deobfuscator(), folder / DEOBFUSCATOR_WEIGHTS),
        frozen.net,
        normalize(frozen.preprocessing),
        privacy_weight=recipe["privacy_weight"],
    )
    renew(run.folder)
    return write_obfuscator_bundle(run.bundle, task.eval(), images, classifier=frozen, recipe=recipe, half=True)


def _loaded(net: _Net, path: Path) -> _Net:
    net.load_state_dict(load_file(path))
    return net.eval()

"""Import a classifier from elsewhere: make the bundle that the rest of sfumato works with."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, CLASSIFIER_PROGRAM, MANIFEST, Bundle
from sfumato.artifacts.class_map import ClassMap, are_probabilities
from sfumato.artifacts.external_data import external_data
from sfumato.artifacts.files import file_sha256, whole_folder
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.manifest import local_folder
from sfumato.artifacts.onnx_file import OnnxFunction, runtime_reason
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import BundleError, ClassifierError, TrainingError
from sfumato.lab.classifiers.exported_programs import load_program, save_program
from sfumato.lab.classifiers.frozen import IMPORTED, is_imported
from sfumato.lab.classifiers.grey import NOTE, Grey, check_alike, takes_grey
from sfumato.lab.classifiers.imported import ImportedClassifier, Metadata
from sfumato.lab.classifiers.sources import read_classifier
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.libraries import first_line

_PROBES = 4
_LEAST_SIDE = 8
_SHOWN = 5
_EXAGGERATED = 10
"""Small logits may lie in [0, 1] as probabilities do; those of images with so much contrast hardly do."""
_NOTHING = Metadata()


def classifier_bundle(source: str, folder: Path) -> Path:
    """Return the bundle of a recipe's classifier; it is imported into `folder` if it is no bundle yet.

    Args:
        source: a bundle's folder or its place on the hub, the name of a shipped classifier, or what `read_classifier`
            takes, if it has all metadata itself.
        folder: for the imported bundle; one that is there already, made of the same source, is used again.

    Raises:
        ClassifierError: it cannot be found or used.
        BundleError: a damaged bundle.
    """
    path = local_folder(source).expanduser()
    if (path / MANIFEST).is_file() or (path.is_dir() and not any(path.iterdir())):
        return path
    if source == shipped.CLASSIFIER:
        return shipped.classifier_bundle()
    if (folder / MANIFEST).is_file():
        recipe = Bundle.load(folder, kind="classifier").recipe.others
        # Earlier versions wrote "given" and "given_sha256".
        known, sha256 = (recipe.get(f"source{end}", recipe.get(f"given{end}")) for end in ("", "_sha256"))
        if known == source and _content(source) in (None, sha256):
            return folder
    return import_classifier(source, folder).path


def import_classifier(source: str, folder: Path, metadata: Metadata = _NOTHING) -> Bundle:
    """Make a classifier's bundle of a classifier from elsewhere; the classifier itself is not changed.

    Args:
        source: see `read_classifier`.
        folder: is created, or replaced if it is the bundle of an imported classifier.
        metadata: what the classifier does not say about itself.

    Raises:
        ClassifierError: it cannot be found or used, or it does not say how an image becomes its input.
    """
    if folder.resolve() in Path(source).expanduser().resolve().parents:
        raise ClassifierError(f"{source} lies in {folder}, which would be replaced; choose another folder")
    ours = (folder / MANIFEST).is_file() and is_imported(Bundle.load(folder))
    if not ours and folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ClassifierError(f"{folder} holds something else than an imported classifier's bundle; choose another")
    found = read_classifier(source)
    metadata = metadata.over(found.metadata)
    preprocessing = metadata.preprocessing(found.origin)
    if min(preprocessing.height, preprocessing.width) < _LEAST_SIDE:
        raise ClassifierError(f"{source}: images have sides of at least {_LEAST_SIDE} pixels, got {preprocessing}")
    shape = _PROBES, 3, preprocessing.height, preprocessing.width
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.from_numpy(preprocessing.normalize(images.numpy()))
    if isinstance(found.model, nn.Module) and (found.grey or takes_grey(found.model, inputs)):
        check_alike(preprocessing, source)
        found = replace(found, model=Grey(found.model).eval(), notes=(*found.notes, NOTE))
    logits = _logits(found.model, inputs, source)
    _check_logits(found.model, inputs, logits, metadata, source)
    classes = _classes(found, metadata, logits, source)
    with whole_folder(folder, ClassifierError) as partial:
        if isinstance(found.model, Path):
            _copy(found.model, partial / CLASSIFIER_ONNX)
        else:
            _write(found.model, partial, inputs, source)
        bundle = _bundle(found, partial, preprocessing, classes, source, str(metadata.name))
        made = replace(bundle, labelling=metadata.labelling or "single-label").save()
    return replace(made, path=folder)


def _content(source: str) -> str | None:
    """Return the hash of the source's files; None if they are no local files, or are gone."""
    path = Path(source).expanduser()
    files = [path] if path.is_file() else sorted((*path.glob("*.safetensors"), *path.glob("*.json")))
    if path.suffix == ".onnx" and path.is_file():
        files += [path.parent / name for name in external_data(path)]
    parts = [f"{file.name}:{file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None


@torch.no_grad()
def _logits(model: nn.Module | Path, inputs: Tensor, source: str) -> Tensor:
    try:
        if isinstance(model, Path):
            logits: Any = torch.from_numpy(np.asarray(OnnxFunction(model)(inputs.numpy())))
        else:
            logits = model(inputs)
    except Exception as error:  # a user's own network raises anything, and ONNX Runtime's errors have no common base
        size, kind = tuple(inputs.shape[2:]), type(error).__name__
        raise ClassifierError(f"{source} fails on images of {size}: {kind}: {runtime_reason(error)}") from error
    if not isinstance(logits, Tensor):
        raise ClassifierError(f"{source} gives a {type(logits).__name__}; one tensor of logits is expected")
    if logits.ndim != 2 or len(logits) != _PROBES or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ClassifierError(
            f"{source} gives {tuple(logits.shape)} of {logits.dtype} for {_PROBES} images; logits "
            f"({_PROBES}, classes) in floating point are expected, for two classes or more"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ClassifierError(f"{source} gives NaN or infinite values")
    return logits


def _check_logits(model: nn.Module | Path, inputs: Tensor, logits: Tensor, metadata: Metadata, source: str) -> None:
    """Refuse probabilities where logits are needed."""
    if metadata.labelling == "multi-label":
        if _in_unit_range(logits) and _in_unit_range(_logits(model, _EXAGGERATED * inputs, source)):
            raise ClassifierError(f"{source} gives probabilities; leave its sigmoid out, as the client applies it")
    elif isinstance(model, nn.Module) and are_probabilities(logits.numpy()):
        raise ClassifierError(f"{source} gives probabilities; leave its softmax out, as training needs the logits")


def _in_unit_range(outputs: Tensor) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())


@dataclass(frozen=True)
class _Classes:
    """What a classifier's outputs mean: its labels, the class map if it has one, and what users should know."""

    labels: tuple[str, ...]
    class_map: ClassMap | None
    notes: tuple[str, ...]


def _classes(found: ImportedClassifier, metadata: Metadata, logits: Tensor, source: str) -> _Classes:
    outputs, labels, notes = logits.shape[1], metadata.labels, list(found.notes)
    if labels is not None and len(labels) != outputs:
        raise ClassifierError(f"{source} has {outputs} classes, but {len(labels)} labels were given")
    class_map = None
    if metadata.class_map is not None:
        try:
            class_map = ClassMap.of(metadata.class_map, outputs)
        except BundleError as error:
            raise ClassifierError(f"{source} does not fit the class map: {error}") from error
        if class_map.sums and metadata.labelling == "multi-label":
            raise ClassifierError(
                f"{source} is multi-label: its class map must give one index for each class: the probability of "
                "several outputs together does not follow from theirs"
            )
        if labels is not None:
            notes.append(_named(metadata.class_map, class_map, labels))
        labels = tuple(metadata.class_map)
    elif labels is None:
        labels = tuple(str(index) for index in range(outputs))
        notes.append("It has no names for its classes; they are called by their number, in the order of its outputs.")
    if isinstance(found.model, Path) and are_probabilities(logits.numpy()):
        if class_map is not None and class_map.sums:
            raise ClassifierError(
                f"{source} gives probabilities; a class of several outputs needs logits: leave its softmax out, or "
                "give one index for each class"
            )
        notes.append("It gives probabilities: its labels are correct, but the client computes a lower confidence.")
    return _Classes(labels, class_map, tuple(notes))


def _named(classes: Iterable[str], class_map: ClassMap, labels: Sequence[str]) -> str:
    """Say what the outputs of the first classes are called, so that a shifted index is noticed."""
    pairs = [
        f"{name} = {' + '.join(labels[index] for index in group[:_SHOWN])}{' + ...' * (len(group) > _SHOWN)}"
        for name, group in zip(classes, class_map.groups, strict=True)
    ]
    return f"Its class map: {'; '.join(pairs[:_SHOWN])}{'; ...' * (len(pairs) > _SHOWN)}."


def _copy(source: Path, target: Path) -> None:
    """Copy an ONNX file byte for byte, or, where it keeps weights in other files, as one file with all of them."""
    if not external_data(source):
        shutil.copyfile(source, target)
        return
    try:
        onnx.save(onnx.load(source), target)
    except OSError:
        raise
    except Exception as error:  # onnx's errors and protobuf's have no common base
        raise ClassifierError(
            f"{source} cannot be made one file with its weights, which must not exceed 2 GB: {first_line(error)}; "
            "export a smaller model, or its weights in half precision"
        ) from error


def _write(net: nn.Module, folder: Path, inputs: Tensor, source: str) -> None:
    save_program(net, folder / CLASSIFIER_PROGRAM, inputs)
    program = load_program(folder / CLASSIFIER_PROGRAM)
    probe = inputs.clone().requires_grad_()
    loss = program(probe).square().sum()
    gradient = torch.autograd.grad(loss, probe, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None or not bool(gradient.abs().sum() > 0):
        raise ClassifierError(f"{source} passes no gradients back to the image, so nothing can be trained for it")
    try:
        export_onnx(net, folder / CLASSIFIER_ONNX, inputs, input_name="input", output_name="logits")
    except TrainingError:
        raise
    except Exception as error:  # the exporter's errors have no common base
        raise ClassifierError(f"{source} cannot be exported to ONNX: {first_line(error)}") from error


def _bundle(
    found: ImportedClassifier,
    folder: Path,
    preprocessing: Preprocessing,
    classes: _Classes,
    source: str,
    name: str,
) -> Bundle:
    return Bundle(
        path=folder,
        kind="classifier",
        name=name,
        labels=classes.labels,
        preprocessing=preprocessing,
        classifier_fingerprint=fingerprint(folder / CLASSIFIER_ONNX),
        recipe=RecipeRecord.from_json(
            {
                "kind": IMPORTED,
                "source": source,
                "source_sha256": _content(source),
                "origin": found.origin,
                "notes": list(classes.notes),
                **found.facts,
            }
        ),
        provenance=provenance(),
        class_map=classes.class_map,
    )

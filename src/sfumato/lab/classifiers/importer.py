"""From whatever people have to a classifier's bundle, which is all that the rest of the house knows."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import (
    CLASSIFIER_ONNX,
    CLASSIFIER_PROGRAM,
    MANIFEST,
    Bundle,
    Preprocessing,
    file_sha256,
    fingerprint,
)
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import ClassifierError, TrainingError
from sfumato.lab.classifiers.exported_programs import from_bundle, save_program
from sfumato.lab.classifiers.sources import Given, Stated, read_given
from sfumato.lab.export.onnx import export_onnx, renew

KIND = "adopted"
_PROBES = 4
_LEAST_SIDE = 8
_NOTHING = Stated()


def classifier_bundle(given: str, folder: Path) -> Path:
    """The bundle of whatever a recipe calls its classifier; made in `folder` if it is no bundle yet.

    Args:
        given: a bundle's folder, the name of a shipped classifier, or what `read_given` takes and says all of itself.
        folder: for the bundle of what is none; one that lies there already, made of the same, is used again.

    Raises:
        ClassifierError: it cannot be found or used.
        BundleError: a damaged bundle.
    """
    path = Path(given).expanduser()
    if (path / MANIFEST).is_file() or (path.is_dir() and not any(path.iterdir())):
        return path
    if given == shipped.CLASSIFIER:
        return shipped.classifier_bundle()
    if (folder / MANIFEST).is_file():
        recipe = Bundle.load(folder, kind="classifier").recipe.to_json()
        if recipe.get("given") == given and _content(given) in (None, recipe.get("given_sha256")):
            return folder
    return adopt(given, folder).path


def adopt(given: str, folder: Path, stated: Stated = _NOTHING) -> Bundle:
    """Makes a classifier's bundle of a classifier from elsewhere; the classifier itself is not changed.

    Args:
        given: see `read_given`.
        folder: is created, or replaced if it is a classifier's bundle.
        stated: what it does not say of itself.

    Raises:
        ClassifierError: it cannot be found or used, or it does not say how an image becomes its input.
    """
    if folder.resolve() in Path(given).expanduser().resolve().parents:
        raise ClassifierError(f"{given} lies in {folder}, which would be replaced; choose another folder")
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]) and not _is_adopted(folder):
        raise ClassifierError(f"{folder} holds something else than an adopted classifier's bundle; choose another")
    found = read_given(given)
    preprocessing = found.preprocessing(stated)
    if min(preprocessing.height, preprocessing.width) < _LEAST_SIDE:
        raise ClassifierError(f"{given}: images have sides of at least {_LEAST_SIDE} pixels, got {preprocessing}")
    inputs = _probes(preprocessing)
    renewed = False
    try:
        if found.net is not None:
            answers = _answers(found.net, inputs, given)
            _check_answers(answers, given, is_net=True)
            renew(folder)
            renewed = True
            _write(found.net, folder, inputs, given)
        else:
            assert found.onnx is not None
            answers = _onnx_answers(found.onnx, inputs)
            _check_answers(answers, given, is_net=False)
            renew(folder)
            renewed = True
            shutil.copyfile(found.onnx, folder / CLASSIFIER_ONNX)
        bundle = _bundle(found, folder, preprocessing, answers, given, stated).save()
    except BaseException:
        if renewed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return bundle


def _content(given: str) -> str | None:
    """Hash of the files that somebody gave; None if they are no local files, or are gone."""
    path = Path(given).expanduser()
    files = [path] if path.is_file() else sorted((*path.glob("*.safetensors"), *path.glob("*.json")))
    parts = [f"{file.name}:{file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None


def _is_adopted(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and Bundle.load(folder).recipe.kind == KIND


def _probes(preprocessing: Preprocessing) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_PROBES, 3, preprocessing.height, preprocessing.width, generator=generator)
    return torch.from_numpy(preprocessing.normalize(images.numpy()))


@torch.no_grad()
def _answers(net: nn.Module, inputs: Tensor, given: str) -> Tensor:
    try:
        answers: Any = net(inputs)
    except Exception as error:  # somebody's own network fails in its own way
        size = tuple(inputs.shape[2:])
        raise ClassifierError(f"{given} fails on images of {size}: {type(error).__name__}: {error}") from error
    if not isinstance(answers, Tensor):
        raise ClassifierError(f"{given} gives a {type(answers).__name__}; one tensor of logits is expected")
    return answers


def _onnx_answers(path: Path, inputs: Tensor) -> Tensor:
    try:
        answers = OnnxFunction(path)(inputs.numpy())
    except Exception as error:  # ONNX Runtime's errors have no common base
        size = tuple(inputs.shape[2:])
        raise ClassifierError(f"{path} fails on images of {size}: {' '.join(str(error).split())[:200]}") from error
    return torch.from_numpy(np.asarray(answers))


def _check_answers(answers: Tensor, given: str, *, is_net: bool) -> None:
    if answers.ndim != 2 or len(answers) != _PROBES or answers.shape[1] < 2 or not answers.is_floating_point():
        raise ClassifierError(
            f"{given} gives {tuple(answers.shape)} of {answers.dtype} for {_PROBES} images; logits "
            f"({_PROBES}, classes) in floating point are expected, for two classes or more"
        )
    if not bool(torch.isfinite(answers).all()):
        raise ClassifierError(f"{given} gives NaN or infinite values")
    if is_net and _probabilities(answers):
        raise ClassifierError(f"{given} gives probabilities; leave its softmax out, as training needs the logits")


def _probabilities(answers: Tensor) -> bool:
    return bool((answers >= 0).all()) and bool(((answers.sum(dim=1) - 1).abs() < 1e-3).all())


def _write(net: nn.Module, folder: Path, inputs: Tensor, given: str) -> None:
    save_program(net, folder / CLASSIFIER_PROGRAM, inputs)
    program = from_bundle(folder / CLASSIFIER_PROGRAM)
    probe = inputs.clone().requires_grad_()
    answer = program(probe).square().sum()
    gradient = torch.autograd.grad(answer, probe, allow_unused=True)[0] if answer.requires_grad else None
    if gradient is None or not bool(gradient.abs().sum() > 0):
        raise ClassifierError(f"{given} passes no gradients back to the image, so nothing can be trained for it")
    try:
        export_onnx(net, folder / CLASSIFIER_ONNX, inputs, input_name="input", output_name="logits")
    except TrainingError:
        raise
    except Exception as error:  # the exporter's errors have no common base
        raise ClassifierError(f"{given} cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error


def _bundle(
    found: Given, folder: Path, preprocessing: Preprocessing, answers: Tensor, given: str, stated: Stated
) -> Bundle:
    classes, notes = answers.shape[1], list(found.notes)
    labels = stated.labels or found.labels
    if labels is None:
        labels = tuple(str(index) for index in range(classes))
        notes.append("It has no names for its classes; they are called by their number, in the order of its outputs.")
    if len(labels) != classes:
        raise ClassifierError(f"{given} has {classes} classes, but {len(labels)} labels were given")
    if found.net is None and _probabilities(answers):
        notes.append("It answers with probabilities: its labels are right, but the client takes it for less sure.")
    return Bundle(
        path=folder,
        kind="classifier",
        name=stated.name or found.name,
        labels=labels,
        preprocessing=preprocessing,
        classifier_fingerprint=fingerprint(folder / CLASSIFIER_ONNX),
        recipe=RecipeRecord.from_json(
            {
                "kind": KIND,
                "given": given,
                "given_sha256": _content(given),
                "origin": found.origin,
                "notes": notes,
                **found.facts,
            }
        ),
        provenance=provenance(),
    )

"""Check that a classifier, images and perhaps a server fit together, and write a recipe for them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.apps.doctor import Finding, examine_endpoint, is_well
from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.files import whole_file
from sfumato.device.endpoint_binding import PayloadSpec
from sfumato.errors import DataError, EndpointError
from sfumato.lab.classifiers import Metadata, classifier_bundle, import_classifier, trains_through
from sfumato.lab.classifiers.frozen import is_imported
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.evaluation.accuracy import evaluate_classifier
from sfumato.lab.evaluation.multi_label import evaluate_multi_label
from sfumato.lab.models import Obfuscator, class_bits
from sfumato.progress import Progress, silent

Kind = Literal["sketch", "obfuscator"]

RECIPE = "recipe.toml"
CLASSIFIER = "classifier"
IMAGES = 500
"""Test images that the plain accuracy is measured on."""
_BETTER_THAN_CHANCE = 1.5
_LEAST_BITS = 8
_MOST_HELD_OUT = 2000
_MOST_IN_A_BATCH = 128
_LEAST_STEPS = 8
"""Steps in an epoch, at least; small sets get small batches."""
_UNLABELLED = "sort them into one folder per class, or list them in a CSV file with a column `label`"


@dataclass(frozen=True)
class DataCheck:
    """The result of `check_data`.

    Attributes:
        findings: one for each check.
        recipe: the file, if everything fits.
        next_commands: to run after that.
        accuracy_plain: of the classifier on some plain test images, in [0, 1]; None if it was not measured, as of a
            multi-label one, whose average precision is among the findings.
    """

    findings: tuple[Finding, ...]
    recipe: Path | None
    next_commands: tuple[str, ...]
    accuracy_plain: float | None


def check_data(
    classifier: str,
    data: str,
    folder: Path,
    *,
    kind: Kind = "sketch",
    metadata: Metadata,
    allow_outside: bool = False,
    server: str | None = None,
    model: str | None = None,
    token: str | None = None,
    progress: Progress = silent,
) -> DataCheck:
    """Check that a classifier, images and a server fit together, and write a recipe if they do.

    Args:
        classifier: a bundle, or what `read_classifier` takes, which is imported into the folder.
        data: as `load_images` takes it.
        folder: of the recipe and all further files; created.
        kind: of obfuscator.
        metadata: what the classifier does not say about itself.
        allow_outside: read images outside a CSV file's folder.
        server: the endpoint that serves the classifier, if there is one already.
        model: its name there; by default the classifier's.
        token: bearer token of the endpoint.
        progress: see `Progress`.

    Raises:
        ClassifierError: the classifier cannot be found or used.
        DataError: the images cannot be found or used, or lack a column for a class of a multi-label classifier.
    """
    place = folder / CLASSIFIER
    if metadata != Metadata():
        served = import_classifier(classifier, place, metadata)
    else:
        served = Bundle.load(classifier_bundle(classifier, place), kind="classifier")
    size = (served.preprocessing.height, served.preprocessing.width)
    findings = [_about(served, kind)]
    findings += [Finding("classifier", "note", note) for note in served.recipe.notes or ()]
    columns = served.labels if served.multi_label else None
    train, test, _ = load_train_test(
        data, size=size, label_columns=columns, allow_outside=allow_outside, progress=progress
    )
    findings += [Finding("images", "note", remark) for part in (train, test) for remark in part.remarks()]
    accuracy = None
    try:
        train, test = (part.of_classes(served.labels) for part in (train, test))
        findings.append(Finding("images", "good", f"{len(train):,} to train with, {len(test):,} to test"))
        sample = test.subset(IMAGES)
        if served.multi_label:
            findings.append(_precision(served, sample, progress))
        else:
            accuracy = evaluate_classifier(served, sample, progress=progress).accuracy_plain
            findings.append(_accuracy(accuracy, sample))
    except DataError as error:
        advice = "name or sort the images as the classifier names its classes" if train.labelled else _UNLABELLED
        findings.append(Finding("classes", "bad", str(error), advice))
    if server is not None:
        findings += _endpoint(server, model or served.name, served, token)
    if not is_well(findings):
        return DataCheck(tuple(findings), None, (), accuracy)
    recipe = folder / RECIPE
    text = _recipe(folder, kind, served, data, train, allow_outside=allow_outside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(recipe) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {recipe}: {error.strerror or error}") from error
    following = tuple(_next(folder, served, data, server, model, allow_outside=allow_outside))
    return DataCheck(tuple(findings), recipe, following, accuracy)


def _endpoint(url: str, model: str, served: Bundle, token: str | None) -> Iterator[Finding]:
    payload = PayloadSpec((3, served.preprocessing.height, served.preprocessing.width), served.outputs)
    known = None if is_imported(served) else served.classifier_fingerprint
    try:
        yield from examine_endpoint(url, model, payload=payload, classifier=served, fingerprint=known, token=token)
    except EndpointError as error:
        yield Finding("the endpoint", "bad", str(error), "start it first, or leave --server out")


def _about(served: Bundle, kind: Kind) -> Finding:
    size = served.preprocessing
    outputs = "" if served.class_map is None else f" of {served.outputs:,} outputs"
    said = f"{served.name}: {len(served.labels)} classes{outputs}, images of {size.height}x{size.width}"
    if not trains_through(served):
        advice = "give the network that it was exported from: a transformers folder, .pt2 or package.module:callable"
        return Finding("classifier", "bad", f"{said}; it can be served, but not trained through", advice)
    if kind == "sketch" and served.multi_label:
        return Finding("classifier", "bad", f"{said}; a sketch's code names one class", "choose --kind obfuscator")
    multiple = Obfuscator.size_multiple
    if kind == "obfuscator" and (size.height % multiple or size.width % multiple):
        said += f"; this obfuscator takes multiples of {multiple}"
        return Finding("classifier", "bad", said, "choose --kind sketch")
    return Finding("classifier", "good", said)


def _accuracy(accuracy: float, test: ImageSet) -> Finding:
    commonest = int(test.labels.bincount().max()) / len(test)
    said = f"{accuracy:.1%} on {len(test)} plain test images; {commonest:.1%} for the most frequent class alone"
    if accuracy >= min(_BETTER_THAN_CHANCE * commonest, (1 + commonest) / 2):
        return Finding("accuracy", "good", said)
    advice = "if it should be higher: check mean, std, and that the labels are in the order of the classifier's outputs"
    return Finding("accuracy", "note", said, advice)


def _precision(served: Bundle, test: ImageSet, progress: Progress) -> Finding:
    found = evaluate_multi_label(served, test, progress=progress)[0].mean_average_precision_plain
    if found is None:
        return Finding("accuracy", "note", f"none of {len(test)} test images has any of the classes", "use more images")
    guessing = float(test.labels.double().mean(dim=0)[test.labels.any(dim=0)].mean())
    said = f"mean average precision {found:.1%} on {len(test)} plain test images; guessing gives about {guessing:.1%}"
    if found >= min(_BETTER_THAN_CHANCE * guessing, (1 + guessing) / 2):
        return Finding("accuracy", "good", said)
    advice = "if it should be higher: check mean, std, and that the labels are in the order of the classifier's outputs"
    return Finding("accuracy", "note", said, advice)


def _recipe(folder: Path, kind: Kind, served: Bundle, data: str, train: ImageSet, *, allow_outside: bool) -> str:
    size, text = served.preprocessing, json.dumps  # a JSON string is a TOML string, too
    trained_on, sketch, more = len(train), "", "allow_outside = true\n" if allow_outside else ""
    if train.multi_label:
        more += f"label_columns = {text(list(train.names), ensure_ascii=False)}\n"
    if kind == "sketch":
        bits = max(_LEAST_BITS, class_bits(len(served.labels)))
        held_out = max(2, min(_MOST_HELD_OUT, len(train) // 10))
        trained_on -= held_out
        sketch = f"code_bits = {bits}\noffload_rate = 0.15\nheld_out_images = {held_out}\n"
    return f"""\
# {_typed("train", folder / RECIPE, "-o", folder / "run")}
# Written by sfumato init for {len(train):,} training images; every value can be changed.
kind = {text(kind)}
name = {text(served.name + "-" + kind)}
classifier = {text(served.path.as_posix())}
{sketch}
[data]
source = {text(data)}
size = [{size.height}, {size.width}]
{more}flip = true
crop_padding = 2

[training]
epochs = 20
batch_size = {max(2, min(_MOST_IN_A_BATCH, trained_on // _LEAST_STEPS))}
optimizer = "adam"
learning_rate = 3e-3
schedule = "one-cycle"
"""


def _next(
    folder: Path, served: Bundle, data: str, server: str | None, model: str | None, *, allow_outside: bool
) -> Iterator[str]:
    run, outside = folder / "run", ["--allow-outside"] if allow_outside else []
    of: list[str | Path] = ["--classifier", served.path]
    images = ["--data", data, *outside]
    audited = [] if served.multi_label else of  # an audit measures the accuracy of single-label ones alone
    named = [] if model is None else ["--model", model]
    at = ["--server", server or "http://127.0.0.1:8080", *named]
    yield _typed("train", folder / RECIPE, "-o", run)
    yield _typed("evaluate", run / "bundle", *of, *images)
    yield _typed("audit", run / "bundle", *audited, *images)
    if server is None:
        yield _typed("serve", served.path, "--port", "8080")
    yield _typed("doctor", run / "bundle", *at, "--classifier", served.path)
    yield _typed("classify", "IMAGES", "--bundle", run / "bundle", *at)


def _typed(*words: str | Path) -> str:
    """Return a command as it is typed, with quotes where a shell needs them."""
    return shlex.join(["sfumato", *map(str, words)])

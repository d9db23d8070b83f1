"""Measure other classifiers on an obfuscator's payload: the paper's table 3, together with the leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import ClassifierFunction, OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import device_logits, evaluate_classifier
from sfumato.lab.evaluation.results import Result
from sfumato.lab.models import CLASSIFIERS, build_classifier, cost
from sfumato.progress import Progress, silent

SCHEMA = "sfumato.transfer/2"


@dataclass(frozen=True)
class TransferClassifier:
    """A classifier that is measured on the payloads.

    Attributes:
        name: its name at a server.
        fingerprint: of its ONNX file.
        training: provenance of its bundle.
        accuracy_plain: top-1 accuracy on plain images, in [0, 1].
        architecture: its name in `sfumato.lab.models.CLASSIFIERS`, if it is one of these.
        params: trainable numbers; None for another architecture.
        macs: multiply-accumulates for one image; None for another architecture.
    """

    name: str
    fingerprint: str
    training: dict[str, object]
    accuracy_plain: float
    architecture: str | None = None
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Leakage:
    """What an audit found about an obfuscator.

    Attributes:
        target: the audited file's hash; of audits from before that was recorded, the obfuscator's name.
        excess_leakage: the best attacker's; at least this much leaks.
        best_attacker: its name.
        budget: the attack budget's name.
        bits_at_most: upper bound of the information in the payload, in bits, if the audit certifies one.
    """

    target: str
    excess_leakage: float
    best_attacker: str | None = None
    budget: str | None = None
    bits_at_most: float | None = None


@dataclass(frozen=True)
class TransferObfuscator:
    """An obfuscator whose payload the classifiers get.

    Attributes:
        name: of its recipe; of a baseline, its method's.
        files: SHA-256 in hex of each file, by name.
        training: provenance of its bundle.
        trained_for: for each classifier, whether the obfuscator was trained for it.
        accuracy: top-1 accuracy of each classifier on the payload, in [0, 1].
        kind: of its recipe.
        accuracy_device: with a gate, accuracy of the on-device predictions, in [0, 1].
        leakage: from its audit, if there is one.
    """

    name: str
    files: dict[str, str]
    training: dict[str, object]
    trained_for: tuple[bool, ...]
    accuracy: tuple[float, ...]
    kind: str | None = None
    accuracy_device: float | None = None
    leakage: Leakage | None = None


@dataclass(frozen=True)
class Transfer(Result):
    """The content of a results file.

    Attributes:
        classifiers: the columns.
        obfuscators: the rows.
        test_images: how many images were measured.
        provenance: what was run, on which images.
        schema: of the file.
    """

    classifiers: tuple[TransferClassifier, ...]
    obfuscators: tuple[TransferObfuscator, ...]
    test_images: int
    provenance: dict[str, object] = field(default_factory=dict)
    schema: Literal["sfumato.transfer/2"] = "sfumato.transfer/2"

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """Read a results file of this version, or of `sfumato.transfer/1`.

        Raises:
            ResultsError: it is no such file.
        """
        if isinstance(raw, dict) and raw.get("schema") == "sfumato.transfer/1":
            raw = {**raw, "schema": SCHEMA, "obfuscators": [_row_of_version_1(row) for row in raw["obfuscators"]]}
        return super().from_json(raw)


def _row_of_version_1(row: Mapping[str, Any]) -> dict[str, object]:
    leakage = None if row["excess_leakage"] is None else {"target": row["files"][OBFUSCATOR_ONNX], **row}
    return {"trained_for": row["seen"], "leakage": leakage, **row}


def transfer(
    obfuscators: Sequence[Bundle],
    classifiers: Sequence[Bundle],
    images: ImageSet,
    *,
    leakages: Sequence[Leakage] = (),
    progress: Progress = silent,
) -> Transfer:
    """Measure every obfuscator with every classifier, through the shipped files, over all images.

    The payload is normalised as the obfuscator's own classifier expects it. For another one it is denormalised, and
    normalised as that one was trained, which a server can do: the image is the same. Leakages of these obfuscators are
    found by their `target`.

    Raises:
        BundleError: classes or sizes differ, or one is multi-label.
        DataError: a class of the images is none of the classifiers'.
    """
    first = classifiers[0]
    needed = first.preprocessing
    for bundle in (*obfuscators, *classifiers):
        bundle.check_single_label("the table of several bundles")
        size = bundle.preprocessing
        if (size.height, size.width) != (needed.height, needed.width):
            raise BundleError(
                f"{bundle.path} takes images of {size.height}x{size.width}, {first.path} of "
                f"{needed.height}x{needed.width}"
            )
        if bundle.labels != first.labels:
            raise BundleError(f"{bundle.path} has other classes than {first.path}, or in another order")
    images = images.of_classes(first.labels)
    audited = {leakage.target: leakage for leakage in leakages}
    columns = tuple(_described(classifier, images, progress) for classifier in classifiers)
    rows = tuple(_measured(obfuscator, classifiers, images, audited, progress) for obfuscator in obfuscators)
    return Transfer(columns, rows, len(images), provenance(data=images.source, data_sha256=images.sha256).to_json())


def _described(classifier: Bundle, images: ImageSet, progress: Progress) -> TransferClassifier:
    architecture, size = classifier.recipe.architecture, classifier.preprocessing
    count = None
    if architecture in CLASSIFIERS:
        net = build_classifier(str(architecture), len(classifier.labels)).eval()
        count = cost(net, height=size.height, width=size.width)
    return TransferClassifier(
        name=classifier.name,
        fingerprint=classifier.classifier_fingerprint,
        training=classifier.provenance.to_json(),
        accuracy_plain=evaluate_classifier(classifier, images, progress=progress).accuracy_plain,
        architecture=architecture,
        params=None if count is None else count.params,
        macs=None if count is None else count.macs,
    )


def _measured(
    obfuscator: Bundle,
    classifiers: Sequence[Bundle],
    images: ImageSet,
    audited: Mapping[str, Leakage],
    progress: Progress,
) -> TransferObfuscator:
    recipe = obfuscator.recipe
    name = str(recipe.name or recipe.method or obfuscator.path.name)
    obfuscate = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX))
    predict = [ClassifierFunction(classifier) for classifier in classifiers]
    correct, on_device = np.zeros(len(classifiers), np.int64), 0
    for batch, labels in images.scaled_batches(name, progress):
        outputs = obfuscate.all(batch)
        image = obfuscator.preprocessing.denormalize(outputs[0])
        for place, classifier in enumerate(classifiers):
            logits = predict[place](classifier.preprocessing.normalize(image))
            correct[place] += int((logits.argmax(axis=1) == labels).sum())
        if obfuscator.gate is not None:
            on_device += int((device_logits(outputs, obfuscator).argmax(axis=1) == labels).sum())
    known = {str(entry["fingerprint"]) for entry in obfuscator.provenance.trained_for or ()}
    known.add(obfuscator.classifier_fingerprint)
    return TransferObfuscator(
        name=name,
        files=dict(obfuscator.files),
        training=obfuscator.provenance.to_json(),
        trained_for=tuple(classifier.classifier_fingerprint in known for classifier in classifiers),
        accuracy=tuple(int(count) / len(images) for count in correct),
        kind=recipe.kind,
        accuracy_device=None if obfuscator.gate is None else on_device / len(images),
        leakage=audited.get(obfuscator.files[OBFUSCATOR_ONNX]) or audited.get(name),
    )

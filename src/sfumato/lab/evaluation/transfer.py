"""What other classifiers make of what an obfuscator sends: the paper's table 3, with the leakage beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import BATCH, device_logits, evaluate_classifier
from sfumato.lab.models import CLASSIFIERS, build_classifier, cost

SCHEMA = "sfumato.transfer/1"


def transfer(
    obfuscators: Sequence[Bundle],
    classifiers: Sequence[Bundle],
    images: ImageSet,
    *,
    audits: Mapping[Path, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every obfuscator with every classifier, through the shipped files, over all images given.

    The payload is normalised as the obfuscator's own classifier wants it. Another one gets what it would if its
    server undid that, and normalised as it was trained: the image is the same.

    Args:
        obfuscators: of one size of images, for the same classes.
        classifiers: likewise; seen in training or not.
        images: the images.
        audits: contents of `audit.json` files; those of these obfuscators are found by their fingerprints.

    Returns:
        The content of a results file: "classifiers" with their accuracy on plain images; "obfuscators" with accuracy
        by classifier, which of these they were trained for, and the excess leakage of their audit, None without one.

    Raises:
        BundleError: classes or sizes differ.
        DataError: a class of the images is none of the classifiers'.
    """
    first = classifiers[0]
    for bundle in (*obfuscators, *classifiers):
        _check_like(bundle, first)
    images = images.of_classes(first.labels)
    audited = {_whose(audit): audit for audit in (audits or {}).values()}
    return {
        "schema": SCHEMA,
        "classifiers": [_described(classifier, images) for classifier in classifiers],
        "obfuscators": [
            {
                "name": _name(obfuscator),
                "kind": obfuscator.recipe.kind,
                "files": obfuscator.files,
                "training": obfuscator.provenance.to_json(),
                "seen": [_seen(obfuscator, classifier) for classifier in classifiers],
                **_answers(obfuscator, classifiers, images),
                **_leakage(audited.get(obfuscator.files[OBFUSCATOR_ONNX]) or audited.get(_name(obfuscator))),
            }
            for obfuscator in obfuscators
        ],
        "test_images": len(images),
        "provenance": provenance(data=images.source, data_sha256=images.sha256).to_json(),
    }


def _name(obfuscator: Bundle) -> str:
    """The recipe's; of a baseline, its method's."""
    return str(obfuscator.recipe.name or obfuscator.recipe.method or obfuscator.path.name)


def _seen(obfuscator: Bundle, classifier: Bundle) -> bool:
    known = {str(entry["fingerprint"]) for entry in obfuscator.provenance.trained_for or ()}
    return classifier.classifier_fingerprint in known | {obfuscator.classifier_fingerprint}


def _check_like(bundle: Bundle, first: Bundle) -> None:
    size, wanted = bundle.preprocessing, first.preprocessing
    if (size.height, size.width) != (wanted.height, wanted.width):
        raise BundleError(
            f"{bundle.path} takes images of {size.height}x{size.width}, {first.path} of {wanted.height}x{wanted.width}"
        )
    if bundle.labels != first.labels:
        raise BundleError(f"{bundle.path} has other classes than {first.path}, or in another order")


def _described(classifier: Bundle, images: ImageSet) -> dict[str, Any]:
    described = {
        "name": classifier.name,
        "fingerprint": classifier.classifier_fingerprint,
        "architecture": classifier.recipe.architecture,
        "training": classifier.provenance.to_json(),
        "accuracy_plain": evaluate_classifier(classifier, images)["accuracy_plain"],
    }
    if described["architecture"] in CLASSIFIERS:
        net, size = build_classifier(str(described["architecture"]), len(classifier.labels)), classifier.preprocessing
        count = cost(net.eval(), height=size.height, width=size.width)
        described |= {"params": count.params, "macs": count.macs}
    return described


def _answers(obfuscator: Bundle, classifiers: Sequence[Bundle], images: ImageSet) -> dict[str, Any]:
    obfuscate = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX))
    answer = [OnnxFunction(classifier.file(CLASSIFIER_ONNX)) for classifier in classifiers]
    right, at_home = np.zeros(len(classifiers), np.int64), 0
    console, name = Console(stderr=True), _name(obfuscator)
    starts = range(0, len(images), BATCH)
    for start in track(starts, f"{name}", console=console, transient=True, disable=not console.is_terminal):
        batch = images.images[start : start + BATCH].numpy().astype(np.float32) / np.float32(255)
        labels = images.labels[start : start + BATCH].numpy()
        outputs = obfuscate.all(batch)
        drawn = obfuscator.preprocessing.denormalize(outputs[0])
        for place, classifier in enumerate(classifiers):
            logits = answer[place](classifier.preprocessing.normalize(drawn))
            right[place] += int((logits.argmax(axis=1) == labels).sum())
        if obfuscator.gate is not None:
            at_home += int((device_logits(outputs, obfuscator).argmax(axis=1) == labels).sum())
    found: dict[str, Any] = {"accuracy": [int(count) / len(images) for count in right]}
    if obfuscator.gate is not None:
        found["accuracy_device"] = at_home / len(images)
    return found


def _whose(audit: dict[str, Any]) -> str:
    """The audited file's hash; of audits from before that was noted, the name."""
    return str(audit["target"].get("fingerprint") or audit["target"]["name"])


def _leakage(audit: dict[str, Any] | None) -> dict[str, Any]:
    if audit is None or not audit.get("best"):
        return {"excess_leakage": None}
    best = audit["best"]
    certificate = audit.get("certificate") or {}
    return {
        "excess_leakage": best["excess_leakage"],
        "best_attacker": best["attacker"],
        "budget": audit["budget"]["name"] if isinstance(audit["budget"], dict) else audit["budget"],
        "bits_at_most": certificate.get("bits"),
    }

"""Check a deployed pair: an obfuscator's bundle here, a classifier at an endpoint. No private image is sent.

Only obfuscated synthetic images are sent, generated here from random numbers.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.execution_providers import available_providers
from sfumato.artifacts.gate import Gate
from sfumato.artifacts.onnx_file import ClassifierFunction
from sfumato.artifacts.records import Figures
from sfumato.artifacts.signature import read_signature, short
from sfumato.device.client import Client, FingerprintWarning
from sfumato.device.endpoint_binding import PayloadSpec, Plan, make_plan
from sfumato.device.endpoints import open_endpoint
from sfumato.device.image import from_pixels
from sfumato.device.image_file_client import FileClient
from sfumato.device.obfuscator import Obfuscator
from sfumato.device.predictions import Prediction, class_probabilities
from sfumato.device.recognisable import synthetic_images
from sfumato.device.transport import ConnectionOptions
from sfumato.errors import BundleError, BundleUntrusted, EndpointResponseInvalid, SfumatoError
from sfumato.wire import ModelMetadata

IMAGES = 8
SAME_WITHIN = 1e-3
"""Largest allowed difference of a probability; float32 on other hardware differs far less."""
SAME_WITHIN_FP16 = 2e-2
"""The same where the payload has 11 significant bits, and the endpoint perhaps computes with as many."""

_RARELY = 0.5
"""Below this share of the classifier's accuracy, predictions are of no use instead of it."""
_NEARLY = 0.97
"""From this share on, nearly all images are sent; likewise nearly none."""
_AS_LIKELY_WRONG = 0.5
_SMALL_LOSS = 0.02

Verdict = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was checked.
        verdict: "good"; "note" for what cannot be known, may be intended, or is poor; "bad" if predictions will fail,
            or be others than the classifier's.
        said: what was found.
        advice: what to do, if anything.
    """

    check: str
    verdict: Verdict
    said: str
    advice: str = ""


def examine(client: Client | FileClient, *, classifier: Bundle | None = None) -> list[Finding]:
    """Check a deployed pair from end to end; stop where nothing further can be known.

    Args:
        client: of the bundle and the endpoint, with `gate=False`, so that every image is sent; or of a bundle that
            predicts on the device alone.
        classifier: the bundle of its classifier, if available, to compare predictions with.
    """
    found: list[Finding] = []
    try:
        found.extend(_examined(client, classifier))  # keeps those before an error
    except SfumatoError as error:
        found.append(Finding("the endpoint", "bad", str(error), "check the server's own log, --server and --model"))
    return found


def _examined(client: Client | FileClient, classifier: Bundle | None) -> Iterator[Finding]:
    bundle, size = client.bundle, client.bundle.preprocessing
    images = synthetic_images(IMAGES, size.height, size.width)
    yield _kind(bundle)
    yield _signature(bundle)
    if client.on_device:
        yield from _on_device(client, images)
        return
    try:
        hidden = client.obfuscator.obfuscate_batch(images)
    except SfumatoError as error:
        yield Finding("the bundle", "bad", str(error), "copy the bundle again, or train it again")
        return
    yield Finding("the bundle", "good", f"its files are whole, and it obfuscates {len(hidden)} synthetic images")
    yield _providers(client)
    try:
        if classifier is not None:
            bundle.check_classifier(classifier)
    except BundleError as error:
        yield Finding("the classifier's bundle", "bad", str(error), "give the correct --classifier")
        return
    with client, warnings.catch_warnings():
        warnings.simplefilter("ignore", FingerprintWarning)  # it is a finding already
        if isinstance(client, Client):
            client.check_ready()
            yield from _metadata_findings(client.metadata(), client.plan, bundle, bundle.classifier_fingerprint)
        else:
            yield Finding("the endpoint", "note", "takes image files, and so does not say what it serves")
        predictions = [client.classify(image) for image in images]
    yield Finding("predictions", "good", f"{len(predictions)} synthetic images were sent, obfuscated, and classified")
    if classifier is None:
        advice = "give --classifier BUNDLE to compare them with the classifier's own"
        yield Finding("probabilities", "note", "not compared with anything", advice)
    else:
        inputs = np.stack([image.tensor for image in hidden])
        if isinstance(client, FileClient):
            inputs = from_pixels(inputs, size)
        half = isinstance(client, Client) and client.datatype == "FP16"
        yield _compared(predictions, inputs, classifier, SAME_WITHIN_FP16 if half else SAME_WITHIN)
    times, here = [one.round_trip_ms for one in predictions], [one.obfuscate_ms for one in predictions]
    said = f"round trip {statistics.median(times):.1f} ms (median of {len(times)}, longest {max(times):.1f} ms), "
    said += f"obfuscation {statistics.median(here):.1f} ms; {predictions[0].payload_bytes:,} bytes per image"
    yield Finding("latency", "good", said)
    yield _accuracy(bundle.figures, len(bundle.labels))
    yield _gate(client.obfuscator, images)


def _kind(bundle: Bundle) -> Finding:
    code = f", at most {bundle.recipe.code_bits} bits about each image" if bundle.recipe.code_bits else ""
    gate = "" if bundle.gate is None else "; with a gate, which keeps images on the device"
    said = {
        "classifier": "a classifier: it predicts on the device alone, and nothing is sent",
        "obfuscator": f"{bundle.recipe.kind or 'an obfuscator'}: it sends payloads to an endpoint{code}{gate}",
    }[bundle.kind]
    return Finding("kind", "good", said)


def _signature(bundle: Bundle) -> Finding:
    if bundle.signed_by is not None:
        return Finding("signature", "good", f"signed by key {short(bundle.signed_by)}, which is trusted")
    try:
        stated = read_signature(bundle.path)
    except BundleUntrusted as error:
        return Finding("signature", "bad", str(error), "get the bundle from its publisher again")
    if stated is None:
        return Finding("signature", "good", "unsigned; none was asked for (--trusted-key)")
    said = f"states to be signed by key {short(stated.key)}, which was not checked"
    return Finding("signature", "note", said, "give the publisher's public key: --trusted-key FILE")


def _on_device(client: Client | FileClient, images: Sequence[npt.NDArray[np.uint8]]) -> Iterator[Finding]:
    try:
        predictions = [client.classify(image) for image in images]
    except SfumatoError as error:
        yield Finding("the bundle", "bad", str(error), "copy the bundle again, or train it again")
        return
    took = statistics.median(one.obfuscate_ms for one in predictions)
    yield Finding("the bundle", "good", f"its files are whole, and it classifies {len(images)} synthetic images")
    yield _providers(client)
    yield Finding("latency", "good", f"{took:.1f} ms on the device (median of {len(images)}); nothing was sent")


def examine_endpoint(
    server_url: str,
    model: str,
    *,
    payload: PayloadSpec,
    classifier: Bundle,
    fingerprint: str | None,
    **options: Unpack[ConnectionOptions],
) -> Iterator[Finding]:
    """Compare a model's metadata with what is needed. Send nothing of any image.

    Args:
        server_url: the endpoint's address.
        model: the model's name there.
        payload: what it has to take.
        classifier: has the labels, and a class map if not all outputs are classes.
        fingerprint: of the classifier; None if it does not matter.
        options: see `ConnectionOptions`.

    Raises:
        EndpointError: it cannot be reached, has no such model, or says nothing that can be understood.
    """
    with contextlib.closing(open_endpoint(server_url, **options)) as endpoint:
        endpoint.check_ready()
        metadata = endpoint.metadata(model)
    yield from _metadata_findings(metadata, partial(make_plan, metadata, payload), classifier, fingerprint)


def _metadata_findings(
    metadata: ModelMetadata, make: Callable[[], Plan], bundle: Bundle, fingerprint: str | None
) -> Iterator[Finding]:
    yield Finding("the endpoint", "good", f"ready, {metadata.platform or 'platform not stated'}")
    yield _shapes(metadata, make)
    yield _labels(metadata, bundle)
    stated = metadata.parameters.get("fingerprint")
    if fingerprint is not None and stated is None:
        yield Finding("fingerprint", "note", "the endpoint does not state which classifier it serves")
    elif fingerprint is not None and stated == fingerprint:
        yield Finding("fingerprint", "good", f"{fingerprint[:19]}…, the same at both ends")
    elif fingerprint is not None:
        said = f"the endpoint serves {str(stated)[:19]}…, {fingerprint[:19]}… is needed"
        advice = "serve the classifier that the obfuscator was trained for, or train an obfuscator for this one"
        yield Finding("fingerprint", "bad", said, advice)


def _labels(metadata: ModelMetadata, bundle: Bundle) -> Finding:
    labels = bundle.labels
    if metadata.parameters.get("labelling", bundle.labelling) != bundle.labelling:
        said = f"the endpoint's classifier is {metadata.parameters['labelling']}, this bundle is {bundle.labelling}"
        return Finding("labels", "bad", said, "train the obfuscator for the classifier as it is imported now")
    if bundle.class_map is not None:  # the endpoint's labels, if it states any, are those of all its outputs
        return Finding("labels", "good", f"{len(labels)}, by the bundle's class map from {bundle.outputs:,} outputs")
    try:
        served = json.loads(str(metadata.parameters["labels"]))
    except (KeyError, ValueError):
        return Finding("labels", "note", "the endpoint does not state any; the bundle's are used, in their order")
    if served == list(labels):
        return Finding("labels", "good", f"{len(labels)}, the same at both ends")
    said, advice = "the endpoint's differ, or are in another order", "serve the classifier of this bundle"
    return Finding("labels", "bad", said, advice)


def _shapes(metadata: ModelMetadata, make: Callable[[], Plan]) -> Finding:
    inputs, outputs = (
        [f"{spec.datatype} {list(spec.shape)}" for spec in specs] for specs in (metadata.inputs, metadata.outputs)
    )
    said = f"takes {', '.join(inputs) or 'an unstated input'}, returns {', '.join(outputs) or 'an unstated output'}"
    try:
        plan = make()
    except EndpointResponseInvalid as error:
        advice = "serve the classifier that the obfuscator was trained for: one FP32 input (N, 3, H, W), and its logits"
        return Finding("shapes and datatypes", "bad", f"{said}: {error}", advice)
    said = f"{said}; {plan.datatype} is sent"
    if metadata.inputs:
        return Finding("shapes and datatypes", "good", said)
    advice = "if that is incorrect: --input-name"
    return Finding("shapes and datatypes", "note", f"{said} as {plan.input_name!r}", advice)


def _compared(
    predictions: Sequence[Prediction], inputs: npt.NDArray[np.float32], classifier: Bundle, allowed: float
) -> Finding:
    wanted = class_probabilities(ClassifierFunction(classifier)(inputs), classifier.labelling)
    stated = np.array([prediction.probabilities for prediction in predictions])
    known = ~np.isnan(stated)  # an endpoint that takes files need not state all
    equal = sum(prediction.index == row.argmax() for prediction, row in zip(predictions, wanted, strict=True))
    said = f"{equal} of {len(predictions)} labels are those of the classifier's bundle"
    farthest = float(np.abs(stated - wanted)[known].max(initial=0.0))
    if known.any():
        said = f"probabilities differ from the classifier's bundle by {farthest:.1e} at most"
    if farthest <= allowed and (known.any() or equal == len(predictions)):
        return Finding("probabilities", "good", said)
    advice = "the endpoint computes something else: another model or preprocessing, an extra softmax, or fewer bits"
    return Finding("probabilities", "bad", f"{said}; {allowed:.0e} is allowed", advice)


def _providers(client: Client | FileClient) -> Finding:
    used, there = client.providers, available_providers()
    idle = [name for name in there if name not in used]
    advice = f"--provider {idle[0]} may be faster" if idle else ""
    said = f"the bundle runs on {', then '.join(used)}; this ONNX Runtime has {', '.join(there)}"
    return Finding("execution providers", "good", said, advice)


def _gate(obfuscator: Obfuscator, images: Sequence[npt.NDArray[np.uint8]]) -> Finding:
    bundle = obfuscator.bundle
    if bundle.gate is None:
        return Finding("gate", "note", "none: every image is sent, obfuscated")
    sent = sum(decision.obfuscated is not None for decision in obfuscator.decide_batch(images))
    said = (
        f"images with an on-device probability of at least {bundle.gate.threshold:.1%} are not sent; chosen for an "
        f"offload rate of {bundle.gate.offload_rate:.1%}; of the {len(images)} synthetic images, {sent} would be sent"
    )
    doubt = doubt_about_gate(bundle.gate, bundle.figures)
    return Finding("gate", "good", said) if doubt is None else replace(doubt, said=f"{doubt.said}; {said}")


def doubt_about_gate(gate: Gate, figures: Figures) -> Finding | None:
    """Return what is wrong with a gate, by its numbers and by what was measured with it; None if nothing is."""
    rate = gate.offload_rate if figures.offload_rate is None else figures.offload_rate
    measured = "" if figures.offload_rate is None else f" of {figures.test_images or 0:,} test images"
    device, cloud = figures.accuracy_device, figures.accuracy_plain
    if device is not None and cloud is not None and device < _RARELY * cloud:
        said = f"the device is correct for {device:.1%}{measured}, the classifier for {cloud:.1%}"
        return Finding("gate", "note", said, "send every image (gate=False, --always-send), or train for more epochs")
    if rate >= _NEARLY:
        said = f"{rate:.1%}{measured} are sent, so the gate saves next to nothing"
        return Finding("gate", "note", said, "train again with a lower offload_rate, or leave the gate out")
    if rate <= 1 - _NEARLY:
        said = f"{rate:.1%}{measured} are sent, so the device decides nearly alone"
        return Finding("gate", "note", said, "train again with a higher offload_rate, or do without the endpoint")
    if gate.threshold < _AS_LIKELY_WRONG:
        said = (
            f"a threshold of {gate.threshold:.1%} makes predictions final that are more likely incorrect than correct"
        )
        return Finding("gate", "note", said, "train for more epochs or with a higher offload_rate, or send every image")
    return None


def _accuracy(figures: Figures, classes: int) -> Finding:
    plain, payload = figures.accuracy_plain, figures.accuracy_obfuscated
    if figures.mean_average_precision_obfuscated is not None:
        found, of = figures.mean_average_precision_obfuscated, figures.mean_average_precision_plain
        said = f"mean average precision {found:.1%} on {figures.test_images or 0:,} payloads"
        return Finding("accuracy", "good", said + ("" if of is None else f", {of:.1%} on the plain images"))
    if payload is None:
        said = "not measured on payloads"
        return Finding("accuracy", "note", said, "sfumato evaluate BUNDLE --classifier CLASSIFIER --data DATA")
    said = f"{payload:.1%} of {figures.test_images or 0:,} payloads were classified correctly"
    if plain is None:
        return Finding("accuracy", "good" if payload > _RARELY else "note", said)
    said += f", {plain:.1%} of the plain images"
    if payload <= 1 / classes + _RARELY * max(0.0, plain - 1 / classes):
        said, advice = f"of no use: {said}", "train for more epochs, on more images, or with more bits"
    else:
        advice = "" if plain - payload <= _SMALL_LOSS else "more epochs, images or bits may win some of it back"
    return Finding("accuracy", "note" if advice else "good", said, advice)


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether no finding is "bad"."""
    return all(finding.verdict != "bad" for finding in findings)

"""Check a deployed pair: an obfuscator's bundle here, a classifier at an endpoint. No private image is sent.

Only obfuscated synthetic images are sent, generated here from random numbers.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.device.client import Client, FingerprintWarning
from sfumato.device.connect import open_endpoint
from sfumato.device.eight_bit import EightBit, from_pixels
from sfumato.device.endpoint_binding import Payload, make_plan, payload_from
from sfumato.device.gate import softmax
from sfumato.device.image_file_client import FileClient
from sfumato.device.obfuscator import Obfuscator
from sfumato.device.predictions import Prediction
from sfumato.errors import EndpointResponseInvalid, SfumatoError
from sfumato.wire import ModelMetadata

IMAGES = 8
SAME_WITHIN = 1e-3
"""Largest allowed difference of a probability; float32 on other hardware differs far less."""
SAME_WITHIN_FP16 = 2e-2
"""The same where the payload has 11 significant bits, and the endpoint perhaps computes with as many."""
_COARSE = 4

Verdict = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was checked.
        verdict: "good"; "note" for what cannot be known, or may be intended; "bad" if predictions will fail or be
            incorrect.
        said: what was found.
        advice: what to do, if anything.
    """

    check: str
    verdict: Verdict
    said: str
    advice: str = ""


def synthetic_images(count: int, height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    """Synthesise images: smooth random colours with some grain, always the same ones, (H, W, 3) uint8 each."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        images.append((smooth + random.integers(-16, 17, smooth.shape)).clip(0, 255).astype(np.uint8))
    return images


def examine(
    bundle: Bundle,
    server_url: str,
    *,
    classifier: Bundle | None = None,
    model: str | None = None,
    files: Mapping[str, Any] | None = None,
    datatype: str | None = None,
    input_name: str | None = None,
    **options: Any,
) -> list[Finding]:
    """Check a deployed pair from end to end; stop where nothing further can be known.

    Args:
        bundle: the obfuscator's.
        server_url: the endpoint.
        classifier: the bundle of its classifier, if available, to compare predictions with.
        model: the model's name at the endpoint; by default the bundle's.
        files: options of `FileClient` for an endpoint that takes image files, such as style and answer; None
            for the Open Inference Protocol.
        datatype: as for `Client`.
        input_name: as for `Client`.
        options: as for `open_endpoint`: encoding, token, timeout_s, ca_file, ...
    """
    found: list[Finding] = []
    asked: dict[str, Any] = {"datatype": datatype, "input_name": input_name}
    try:
        for finding in _examined(bundle, server_url, classifier, model or bundle.name, files, asked, options):
            found.append(finding)
    except SfumatoError as error:
        found.append(Finding("the endpoint", "bad", str(error), "check the server's own log, --server and --model"))
    return found


def _examined(
    bundle: Bundle,
    server_url: str,
    classifier: Bundle | None,
    model: str,
    files: Mapping[str, Any] | None,
    asked: dict[str, Any],
    options: dict[str, Any],
) -> Iterator[Finding]:
    size = bundle.preprocessing
    images = synthetic_images(IMAGES, size.height, size.width)
    eight_bit: EightBit | None = None if files is None else "rounded" if files.get("rounding") else "exact"
    try:
        hidden = Obfuscator(bundle, eight_bit=eight_bit).obfuscate_batch(images)
    except SfumatoError as error:
        yield Finding("the bundle", "bad", str(error), "copy the bundle again, or train it again")
        return
    yield Finding("the bundle", "good", f"its files are whole, and it obfuscates {len(hidden)} synthetic images")
    if classifier is not None and classifier.classifier_fingerprint != bundle.classifier_fingerprint:
        yield Finding(
            "the classifier's bundle",
            "bad",
            "the obfuscator was trained for another classifier",
            "give the right --classifier",
        )
        return
    client: Client | FileClient
    if files is None:
        client = Client(server_url, bundle, model=model, gate=False, **asked, **options)
    else:
        client = FileClient(server_url, bundle, gate=False, **files, **options)
    with client, warnings.catch_warnings():
        warnings.simplefilter("ignore", FingerprintWarning)  # it is a finding already
        if isinstance(client, Client):
            client.check_ready()
            yield from compare_metadata(
                client.metadata(),
                payload=payload_from(bundle, (3, size.height, size.width), split=False),
                labels=bundle.labels,
                fingerprint=bundle.classifier_fingerprint,
                **asked,
            )
        else:
            yield Finding("the endpoint", "note", "takes image files, and so does not say what it serves")
        predictions = [client.classify(image) for image in images]
    yield Finding("predictions", "good", f"{len(predictions)} synthetic images were sent, obfuscated, and classified")
    if classifier is None:
        advice = "give --classifier BUNDLE to compare them with the classifier's own"
        yield Finding("probabilities", "note", "not compared with anything", advice)
    else:
        sent = np.stack([image.tensor for image in hidden])
        half = isinstance(client, Client) and client.datatype == "FP16"
        allowed = SAME_WITHIN_FP16 if half else SAME_WITHIN
        yield _compared(predictions, sent if files is None else from_pixels(sent, size), classifier, allowed)
    yield _timed(predictions)
    yield _gate(bundle, images)


def examine_endpoint(
    server_url: str,
    model: str,
    *,
    payload: Payload,
    labels: Sequence[str],
    fingerprint: str | None,
    **options: Any,
) -> Iterator[Finding]:
    """Compare what an endpoint says of its model with what is needed. Send nothing of any image.

    Args:
        server_url: the endpoint.
        model: its name there.
        payload: as for `compare_metadata`.
        labels: as for `compare_metadata`.
        fingerprint: as for `compare_metadata`.
        options: as for `open_endpoint`.

    Yields:
        Findings; a "bad" one if predictions would fail or be incorrect.

    Raises:
        EndpointError: it cannot be reached, has no such model, or says nothing that can be understood.
    """
    with contextlib.closing(open_endpoint(server_url, **options)) as endpoint:
        endpoint.check_ready()
        metadata = endpoint.metadata(model)
    yield from compare_metadata(metadata, payload=payload, labels=labels, fingerprint=fingerprint)


def compare_metadata(
    metadata: ModelMetadata,
    *,
    payload: Payload,
    labels: Sequence[str],
    fingerprint: str | None,
    datatype: str | None = None,
    input_name: str | None = None,
) -> Iterator[Finding]:
    """Compare a model's metadata with what is needed.

    Args:
        metadata: of a ready endpoint.
        payload: what the model has to take.
        labels: of the classifier, in the order of its outputs.
        fingerprint: of the classifier; None if it does not matter.
        datatype: as for `Client`.
        input_name: as for `Client`.
    """
    yield Finding("the endpoint", "good", f"ready, {metadata.platform or 'platform not stated'}")
    yield _shapes(metadata, payload, datatype, input_name)
    yield _labels(metadata, labels)
    if fingerprint is not None:
        yield _fingerprint(metadata, fingerprint)


def _shapes(metadata: ModelMetadata, payload: Payload, datatype: str | None, input_name: str | None) -> Finding:
    inputs, outputs = (
        [f"{spec.datatype} {list(spec.shape)}" for spec in specs] for specs in (metadata.inputs, metadata.outputs)
    )
    said = f"takes {', '.join(inputs) or 'an unstated input'}, returns {', '.join(outputs) or 'an unstated output'}"
    try:
        plan = make_plan(metadata, payload, datatype=datatype, input_name=input_name)
    except EndpointResponseInvalid as error:
        advice = (
            "serve the classifier that the obfuscator was trained for, with one FP32 input (N, 3, H, W) and its logits"
        )
        return Finding("shapes and datatypes", "bad", f"{said}: {error}", advice)
    said = f"{said}; {plan.datatype} is sent"
    if metadata.inputs:
        return Finding("shapes and datatypes", "good", said)
    return Finding(
        "shapes and datatypes", "note", f"{said} as {plan.input_name!r}", "if that is incorrect: --input-name"
    )


def _labels(metadata: ModelMetadata, labels: Sequence[str]) -> Finding:
    try:
        served = json.loads(str(metadata.parameters["labels"]))
    except (KeyError, ValueError):
        return Finding("labels", "note", "the endpoint does not state any; the bundle's are used, in their order")
    if served == list(labels):
        return Finding("labels", "good", f"{len(labels)}, the same at both ends")
    return Finding(
        "labels", "bad", "the endpoint's differ, or are in another order", "serve the classifier of this bundle"
    )


def _fingerprint(metadata: ModelMetadata, fingerprint: str) -> Finding:
    served = metadata.parameters.get("fingerprint")
    if served == fingerprint:
        return Finding("fingerprint", "good", f"{fingerprint[:19]}…, the same at both ends")
    if served is None:
        return Finding("fingerprint", "note", "the endpoint does not state which classifier it serves")
    advice = "serve the classifier that the obfuscator was trained for, or train an obfuscator for this one"
    return Finding(
        "fingerprint", "bad", f"the endpoint serves {str(served)[:19]}…, {fingerprint[:19]}… is needed", advice
    )


def _compared(
    predictions: Sequence[Prediction], inputs: npt.NDArray[np.float32], classifier: Bundle, allowed: float
) -> Finding:
    wanted = softmax(OnnxFunction(classifier.file(CLASSIFIER_ONNX))(inputs))
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


def _timed(predictions: Sequence[Prediction]) -> Finding:
    times = [prediction.round_trip_ms for prediction in predictions]
    here = statistics.median(prediction.obfuscate_ms for prediction in predictions)
    return Finding(
        "latency",
        "good",
        f"round trip {statistics.median(times):.1f} ms (median of {len(times)}, longest {max(times):.1f} ms), "
        f"obfuscation {here:.1f} ms; {predictions[0].payload_bytes:,} bytes per image",
    )


def _gate(bundle: Bundle, images: Sequence[npt.NDArray[np.uint8]]) -> Finding:
    if bundle.gate is None:
        return Finding("gate", "note", "none: every image is sent, obfuscated")
    sent = sum(decision.obfuscated is not None for decision in Obfuscator(bundle).decide_batch(images))
    return Finding(
        "gate",
        "good",
        f"images with an on-device probability of at least {bundle.gate.threshold:.1%} are not sent; chosen for an "
        f"offload rate of {bundle.gate.offload_rate:.1%}; of the {len(images)} synthetic images, {sent} would be sent",
    )


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether no finding is "bad"."""
    return all(finding.verdict != "bad" for finding in findings)

"""8-bit integers: from an obfuscator's bundle to another one that computes faster where the processor has them.

What comes out is another obfuscator: it makes other drawings and, now and then, other codes. So nothing that was
measured of the original is taken over; accuracies are measured anew, and it counts as not audited until it is audited
itself.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.progress import track

from sfumato.artifacts.bundle import (
    CLASSIFIER_ONNX,
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    FLOAT_WEIGHTS,
    MANIFEST,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
)
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import Figures
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import evaluate_obfuscator

CALIBRATED_ON = 500
WORTH_SAYING = 0.01
"""By how much an accuracy may fall, or the share that is sent change, before it is said."""
_BATCH = 250
_WARM_UP, _LEAST_ROUNDS, _MOST_ROUNDS, _SETTLE, _REPEATS, _TIMED_S = 3, 5, 60, 2, 5, 5.0
_INTEGER_NODES = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"}


def quantize(
    bundle: Bundle,
    folder: Path,
    classifier: Bundle,
    calibration: ImageSet,
    test: ImageSet,
    *,
    overwrite: bool = False,
) -> Bundle:
    """Makes a bundle of 8-bit integers of an obfuscator's, and measures both side by side.

    The new bundle has the gate, the decoder and the deobfuscator of the original, as they are: codes mean the same. Of
    the weights it has a copy under a name of its own, for attackers who need gradients; of the figures none.

    Args:
        bundle: the obfuscator's, in float32.
        folder: of the new bundle; is created, or replaced if `overwrite` and it holds an obfuscator in 8-bit integers.
        classifier: the bundle of the classifier that it is for.
        calibration: training images, whose activations say how numbers are rounded.
        test: images to measure on, none of them among the others.
        overwrite: replace what was made before.

    Returns:
        The new bundle. Its `figures` are those of `evaluate_obfuscator`, and "quantized": what `differences` finds
        changed; "accuracy_obfuscated_before" and, with a gate, "accuracy_device_before", "accuracy_gated_before" and
        "offload_rate_before", of the original on the same images; "time_of_float32", see `time_ratio`; "megabytes"
        and "megabytes_before" of the file that the device runs.

    Raises:
        BundleError: it is in 8-bit integers already, has nothing to quantise, or is for another classifier; images of
            another size; the folder holds something; or the disk refuses.
        DataError: a class of the images is none of the classifier's.
    """
    if bundle.recipe.quantized is not None:
        raise BundleError(f"{bundle.path} is in 8-bit integers already; give the bundle that it was made of")
    _check_folder(folder, overwrite)
    size = (bundle.preprocessing.height, bundle.preprocessing.width)
    if tuple(calibration.images.shape[2:]) != size or not len(calibration):
        raise BundleError(
            f"got {len(calibration)} images of {tuple(calibration.images.shape[2:])} to calibrate with; some of "
            f"{size} are needed"
        )
    check_quantizable(bundle.file(OBFUSCATOR_ONNX))
    with _made_beside(folder) as partial:  # before the long part, so that nothing is measured in vain
        before = evaluate_obfuscator(bundle, classifier, test)
        quantize_file(bundle.file(OBFUSCATOR_ONNX), partial / OBFUSCATOR_ONNX, calibration)
        for name, new_name in _KEPT.items():
            if name in bundle.files:
                shutil.copyfile(bundle.file(name), partial / new_name)
        made = _described(bundle, partial, calibration, test).save()
        figures = made.figures.updated(**evaluate_obfuscator(made, classifier, test))
        made = replace(made, figures=figures)
        replace(made, figures=figures.updated(quantized=_compared(bundle, before, made, classifier, test))).save()
    return Bundle.load(folder, kind="obfuscator")


_KEPT = {DECODER_ONNX: DECODER_ONNX, DEOBFUSCATOR_ONNX: DEOBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS: FLOAT_WEIGHTS}
"""What is copied of a bundle, and what it is called afterwards."""


def remarks(bundle: Bundle) -> list[str]:
    """What somebody should know who quantised: that it did not become faster, or that it became worse.

    Args:
        bundle: as `quantize` gives it.
    """
    figures, quantized = bundle.figures.to_json(), bundle.figures.quantized or {}
    said = []
    if quantized["time_of_float32"] >= 1:
        said.append(
            f"on this machine it is not faster: it takes {quantized['time_of_float32']:.2f} times as long as in "
            "float32, so that there is nothing to gain from it here"
        )
    for name, what in (("accuracy_obfuscated", "the cloud's accuracy"), ("accuracy_gated", "accuracy with the gate")):
        before = quantized.get(f"{name}_before")
        if before is not None and before - figures[name] > WORTH_SAYING:
            said.append(f"{what} fell by {100 * (before - figures[name]):.1f} points")
    before = quantized.get("offload_rate_before")
    if before is not None and abs(figures["offload_rate"] - before) > WORTH_SAYING:
        said.append(
            f"the gate keeps its threshold, and now sends {100 * figures['offload_rate']:.1f} % of the images "
            f"instead of {100 * before:.1f} %"
        )
    if any(node.op_type.startswith("Random") for node in onnx.load(str(bundle.file(OBFUSCATOR_ONNX))).graph.node):
        said.append("it draws noise: answers change by themselves, and an audit states a bound for the original alone")
    return said


def check_quantizable(file: Path) -> None:
    """Whether there is something to quantise in an ONNX file.

    Raises:
        BundleError: it cannot be read, has integers already, or has no convolution.
    """
    try:
        kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    except Exception as error:  # protobuf's errors have no base that onnx states
        raise BundleError(f"{file} cannot be read as ONNX: {' '.join(str(error).split())[:200]}") from error
    if kinds & _INTEGER_NODES:
        raise BundleError(f"{file} is in 8-bit integers already; give the one that it was made of")
    if "Conv" not in kinds:
        raise BundleError(f"{file} has no convolution, so there is nothing that 8-bit integers would make faster")


def quantize_file(plain: Path, out: Path, calibration: ImageSet, *, signed_weights: bool = True) -> None:
    """Writes an ONNX file with its convolutions in 8-bit integers.

    Static quantisation as ONNX Runtime's documentation advises it for convolutions: QDQ, unsigned activations, one
    scale for each output channel.

    Args:
        plain: one input (N, 3, H, W) float32 in [0, 1].
        out: the file.
        calibration: training images, of the size that it takes.
        signed_weights: in 7 bits, so that sums do not saturate on processors without VNNI; otherwise unsigned in 8.

    Raises:
        BundleError: see `check_quantizable`; or ONNX Runtime cannot quantise it.
    """
    check_quantizable(plain)
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(out),
                _Images(calibration, onnx.load(str(prepared)).graph.input[0].name),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=signed_weights,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8 if signed_weights else QuantType.QUInt8,
            )
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BundleError(f"{plain} cannot be quantised: {' '.join(str(error).split())[:200]}") from error


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """The images one by one, as ONNX Runtime asks for them, with a bar."""

    def __init__(self, images: ImageSet, name: str) -> None:
        self._rest = iter(_shown(range(len(images)), "calibrating"))
        self._images, self._name = images.images, name

    def get_next(self) -> dict[str, Array] | None:
        """The next image (1, 3, H, W) float32 in [0, 1] by the input's name, or None."""
        place = next(self._rest, None)
        return None if place is None else {self._name: _unit(self._images[place : place + 1].numpy())}


def differences(
    after: OnnxFunction, before: OnnxFunction, classifier: OnnxFunction, images: ImageSet
) -> dict[str, float]:
    """What an obfuscator's file makes other than another one, and how often it is right.

    Args:
        after: the file; its outputs are the payload, logits of its own if it has any, and a uint8 code if it has one.
        before: the one to compare with, of the same outputs.
        classifier: what answers on the payload.
        images: with the classifier's classes.

    Returns:
        "accuracy_obfuscated", "answers_changed" (the share of images that the classifier answers otherwise) and
        "drawing_mean_difference" (per number, in the classifier's scale). With logits of its own also "accuracy_device"
        and "device_answers_changed", with a code "codes_changed" (the share of images that get another).
    """
    sums: dict[str, float] = {}

    def count(name: str, values: Any) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.sum())

    for start in _shown(range(0, len(images), _BATCH), "comparing"):
        batch = _unit(images.images[start : start + _BATCH].numpy())
        labels = images.labels[start : start + _BATCH].numpy()
        new, old = after.all(batch), before.all(batch)
        answers, answers_before = (classifier(outputs[0]).argmax(axis=1) for outputs in (new, old))
        count("accuracy_obfuscated", answers == labels)
        count("answers_changed", answers != answers_before)
        count("drawing_mean_difference", np.abs(new[0] - old[0]).mean(axis=(1, 2, 3)))
        for own, own_before in zip(new[1:], old[1:], strict=True):
            if own.dtype == np.uint8:
                count("codes_changed", (own != own_before).any(axis=1))
            else:
                count("accuracy_device", own.argmax(axis=1) == labels)
                count("device_answers_changed", own.argmax(axis=1) != own_before.argmax(axis=1))
    return {name: total / len(images) for name, total in sums.items()}


def time_ratio(after: Path, before: Path, image: Array) -> float:
    """Processor time of one ONNX file beside another's, the medians over rounds in turn: one image, one thread.

    Args:
        after: the file.
        before: the one to compare with.
        image: (1, 3, H, W) float32 in [0, 1].
    """
    functions = [OnnxFunction(file, threads=1) for file in (after, before)]
    times: list[list[float]] = [[], []]
    until, rounds = time.monotonic() + _TIMED_S, 0
    while rounds < _LEAST_ROUNDS + _WARM_UP or (rounds < _MOST_ROUNDS and time.monotonic() < until):
        for function, own in zip(functions, times, strict=True):
            for _ in range(_SETTLE):  # what ran before does not leave its data in the caches
                function(image)
            start = time.thread_time()
            for _ in range(_REPEATS):
                function(image)
            own.append(time.thread_time() - start)
        rounds += 1
    new, old = (statistics.median(own[_WARM_UP:]) for own in times)
    return new / old


def _compared(
    bundle: Bundle, before: dict[str, float | int], made: Bundle, classifier: Bundle, test: ImageSet
) -> dict[str, float]:
    test = test.of_classes(classifier.labels)
    after_file, before_file = made.file(OBFUSCATOR_ONNX), bundle.file(OBFUSCATOR_ONNX)
    served = OnnxFunction(classifier.file(CLASSIFIER_ONNX))
    changed = differences(OnnxFunction(after_file), OnnxFunction(before_file), served, test)
    known = ("accuracy_obfuscated", "accuracy_device", "accuracy_gated", "offload_rate")
    return {
        **{name: value for name, value in changed.items() if not name.startswith("accuracy")},
        **{f"{name}_before": before[name] for name in known if name in before},
        "time_of_float32": time_ratio(after_file, before_file, _unit(test.images[:1].numpy())),
        "megabytes": after_file.stat().st_size / 1e6,
        "megabytes_before": before_file.stat().st_size / 1e6,
    }


def _described(bundle: Bundle, folder: Path, calibration: ImageSet, test: ImageSet) -> Bundle:
    """The new bundle without its figures: what it is made of, and how."""
    name = str(bundle.recipe.name or bundle.recipe.method or bundle.path.resolve().name)
    origin = {"name": name, "fingerprint": f"sha256:{bundle.files[OBFUSCATOR_ONNX]}"}
    how = {
        "kind": "U8S8",
        "from": origin,
        "calibrated_on": len(calibration),
        "data": calibration.source,
        "data_sha256": calibration.sha256,
    }
    known = {} if bundle.provenance.trained_for is None else {"trained_for": bundle.provenance.trained_for}
    return replace(
        bundle,
        path=folder,
        recipe=bundle.recipe.updated(name=f"{name}-int8", quantized=how),
        figures=Figures(),
        provenance=provenance(
            data=test.source,
            data_sha256=test.sha256,
            test_images=len(test),
            training=bundle.provenance.to_json(),
            **known,
        ),
        files={},
    )


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise BundleError(f"{folder} exists already; choose another folder, or --overwrite what was quantised before")
    if not (folder / MANIFEST).is_file() or Bundle.load(folder).recipe.quantized is None:
        raise BundleError(f"{folder} holds something else than an obfuscator in 8-bit integers; choose another folder")


@contextmanager
def _made_beside(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of the one given once all is well, and is gone otherwise."""
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError as error:
            raise BundleError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ONNX Runtime's advice on quantisation, which is followed already, from people."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _shown(places: range, doing: str) -> Any:
    console = Console(stderr=True)
    return track(places, doing, console=console, transient=True, disable=not console.is_terminal)


def _unit(pixels: Any) -> Array:
    """(N, 3, H, W) uint8 -> float32 in [0, 1]."""
    images: Array = pixels.astype(np.float32) / np.float32(255)
    return images

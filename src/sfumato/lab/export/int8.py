"""Quantise an obfuscator's bundle to 8-bit integers, for processors that compute faster in them.

The result is another obfuscator: its payloads differ and, now and then, its codes. No figure of the original is
therefore taken over; accuracies are measured again, and it counts as not audited until it is audited itself.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from sfumato.artifacts.bundle import (
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    FLOAT_WEIGHTS,
    MANIFEST,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
)
from sfumato.artifacts.files import whole_folder
from sfumato.artifacts.lab_files import find_lab_file, lab_folder, new_lab_folder, save_lab
from sfumato.artifacts.onnx_file import Array, ClassifierFunction, OnnxFunction
from sfumato.artifacts.provenance import provenance
from sfumato.artifacts.records import Figures
from sfumato.errors import BundleError
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.accuracy import Evaluation, evaluate_obfuscator
from sfumato.lab.evaluation.out_of_distribution import with_ood_detector
from sfumato.lab.evaluation.results import Result
from sfumato.lab.libraries import first_line, quiet
from sfumato.progress import Progress, silent, tracked

CALIBRATED_ON = 500
REPORTED_CHANGE = 0.01
"""Report a fall in accuracy, or a change of the offload rate, that is larger than this."""
_WARM_UP, _LEAST_ROUNDS, _MOST_ROUNDS, _SETTLE, _REPEATS, _TIMED_S = 3, 5, 60, 2, 5, 5.0
_INTEGER_NODES = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger"}
_BEFORE = ("accuracy_obfuscated", "accuracy_device", "accuracy_gated", "offload_rate")
_TO_LAB = {DEOBFUSCATOR_ONNX: DEOBFUSCATOR_ONNX, OBFUSCATOR_WEIGHTS: FLOAT_WEIGHTS}
"""What only the lab needs of a bundle, and the names of the copies."""


@dataclass(frozen=True, kw_only=True)
class Differences(Result):
    """How an obfuscator's file differs from another one on the same images.

    Attributes:
        predictions_changed: the share of images whose prediction in the cloud changed.
        payload_mean_difference: mean absolute difference of the payload's numbers, in the classifier's scale.
        device_predictions_changed: with on-device logits, the share of images whose prediction changed.
        codes_changed: with codes, the share of images whose code changed.
    """

    predictions_changed: float
    payload_mean_difference: float
    device_predictions_changed: float | None = None
    codes_changed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Int8Comparison(Differences):
    """An obfuscator in 8-bit integers compared with its original, on the same images.

    Attributes:
        accuracy_obfuscated_before: of the original; see `Evaluation`, as the next three.
        accuracy_device_before: likewise.
        accuracy_gated_before: likewise.
        offload_rate_before: likewise.
        time_of_float32: processor time in units of the original's, see `time_ratio`.
        megabytes: size of the file that the device runs, in MB.
        megabytes_before: of the original's.
    """

    accuracy_obfuscated_before: float
    accuracy_device_before: float | None = None
    accuracy_gated_before: float | None = None
    offload_rate_before: float | None = None
    time_of_float32: float
    megabytes: float
    megabytes_before: float

    @classmethod
    def of(cls, bundle: Bundle) -> Int8Comparison:
        """Return the comparison that `quantize` stored in its bundle.

        Raises:
            ResultsError: there is none.
        """
        return cls.from_json(bundle.figures.quantized)


def quantize(
    bundle: Bundle,
    folder: Path,
    classifier: Bundle,
    calibration: ImageSet,
    test: ImageSet,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Make a bundle in 8-bit integers from an obfuscator's, and measure both on the same images.

    The new bundle has the gate and the decoder of the original, unchanged: codes mean the same. Its lab folder has the
    deobfuscator, and a copy of the weights under another name, for attackers that need gradients.

    Args:
        bundle: the obfuscator's, in float32.
        folder: of the new bundle; is created, or replaced if `overwrite` and it holds an obfuscator in 8-bit integers.
        classifier: the bundle of the classifier that it is for.
        calibration: training images, whose activations determine how numbers are rounded.
        test: images to measure on, none of them among the others.
        overwrite: replace an earlier result.
        progress: is told of each batch, and each image of the calibration.

    Returns:
        The new bundle. Its `figures` are an `Evaluation`, and "quantized", an `Int8Comparison`.

    Raises:
        BundleError: it is in 8-bit integers already, has nothing to quantise, or is for another classifier; images of
            another size; the folder holds something; or the disk refuses.
        DataError: a class of the images is none of the classifier's.
    """
    if bundle.recipe.quantized is not None:
        raise BundleError(f"{bundle.path} is in 8-bit integers already; give the bundle that it was made of")
    size = (bundle.preprocessing.height, bundle.preprocessing.width)
    if tuple(calibration.images.shape[2:]) != size or not len(calibration):
        raise BundleError(
            f"got {len(calibration)} images of {tuple(calibration.images.shape[2:])} to calibrate with; some of "
            f"{size} are needed"
        )
    _check_folder(folder, overwrite)
    with _replacing(folder) as partial:  # before the long part, so that nothing is measured in vain
        quantize_file(bundle.file(OBFUSCATOR_ONNX), partial / OBFUSCATOR_ONNX, calibration, progress=progress)
        before = evaluate_obfuscator(bundle, classifier, test, progress=progress)
        if DECODER_ONNX in bundle.files:
            shutil.copyfile(bundle.file(DECODER_ONNX), partial / DECODER_ONNX)
        lab = new_lab_folder(partial)
        for name, new_name in _TO_LAB.items():
            if (file := find_lab_file(bundle, name)) is not None:
                shutil.copyfile(file, lab / new_name)
        made = _described(bundle, partial, calibration, test).save()
        save_lab(made)
        after = evaluate_obfuscator(made, classifier, test, progress=progress)
        if bundle.ood_detector is not None:  # of the float32 logits
            made = with_ood_detector(made, test, progress=progress)
        compared = _compared(bundle, before, made, classifier, test, progress)
        figures = made.figures.updated(**after.to_json(), quantized=compared.to_json())
        replace(made, figures=figures).save()
    return Bundle.load(folder, kind="obfuscator")


def remarks(bundle: Bundle) -> list[str]:
    """Return what a user should know of a bundle that `quantize` made: that it is no faster, or less accurate.

    Raises:
        ResultsError: the bundle has no such figures.
    """
    figures, compared = Evaluation.from_json(bundle.figures.to_json()), Int8Comparison.of(bundle)
    said = []
    if compared.time_of_float32 >= 1:
        said.append(
            f"on this machine it is not faster: it takes {compared.time_of_float32:.2f} times as long as in "
            "float32, so that there is nothing to gain from it here"
        )
    for before, after, what in (
        (compared.accuracy_obfuscated_before, figures.accuracy_obfuscated, "the cloud's accuracy"),
        (compared.accuracy_gated_before, figures.accuracy_gated, "accuracy with the gate"),
    ):
        if before is not None and after is not None and before - after > REPORTED_CHANGE:
            said.append(f"{what} fell by {100 * (before - after):.1f} points")
    before, after = compared.offload_rate_before, figures.offload_rate
    if before is not None and after is not None and abs(after - before) > REPORTED_CHANGE:
        said.append(
            f"the gate keeps its threshold, and now sends {100 * after:.1f} % of the images instead of "
            f"{100 * before:.1f} %"
        )
    if any(node.op_type.startswith("Random") for node in onnx.load(str(bundle.file(OBFUSCATOR_ONNX))).graph.node):
        said.append("it adds noise: predictions vary between runs, and an audit's bound holds for the original alone")
    return said


def _check_quantizable(file: Path) -> None:
    try:
        kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    except Exception as error:  # protobuf's errors have no documented base
        raise BundleError(f"{file} cannot be read as ONNX: {first_line(error)}") from error
    if kinds & _INTEGER_NODES:
        raise BundleError(f"{file} is in 8-bit integers already; give the one that it was made of")
    if "Conv" not in kinds:
        raise BundleError(f"{file} has no convolution, so there is nothing that 8-bit integers would make faster")


def quantize_file(
    plain: Path, out: Path, calibration: ImageSet, *, signed_weights: bool = True, progress: Progress = silent
) -> None:
    """Write an ONNX file with its convolutions in 8-bit integers.

    Static quantisation as ONNX Runtime's documentation advises it for convolutions: QDQ, unsigned activations, one
    scale for each output channel. A ReLU behind a convolution becomes a part of it, so that rows of both stay integers.

    Args:
        plain: one input (N, 3, H, W) float32 in [0, 1].
        out: the file.
        calibration: training images, of the size that it takes.
        signed_weights: in 7 bits, so that sums do not saturate on processors without VNNI; otherwise unsigned in 8.
        progress: is told of each image.

    Raises:
        BundleError: it cannot be read or quantised, has integers already, or has no convolution.
    """
    _check_quantizable(plain)
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(out),
                _Images(calibration, onnx.load(str(prepared)).graph.input[0].name, progress),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu"],
                per_channel=True,
                reduce_range=signed_weights,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8 if signed_weights else QuantType.QUInt8,
            )
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BundleError(f"{plain} cannot be quantised: {first_line(error)}") from error


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images one by one, as ONNX Runtime takes them."""

    def __init__(self, images: ImageSet, name: str, progress: Progress) -> None:
        self._rest = iter(tracked(images.images, "calibrating", progress, total=len(images)))
        self._name = name

    def get_next(self) -> dict[str, Array] | None:
        """Return the next image (1, 3, H, W) float32 in [0, 1] by the input's name, or None."""
        image = next(self._rest, None)
        return None if image is None else {self._name: image[None].numpy().astype(np.float32) / np.float32(255)}


def differences(
    after: OnnxFunction,
    before: OnnxFunction,
    classifier: Callable[[Array], Array],
    images: ImageSet,
    *,
    progress: Progress = silent,
) -> Differences:
    """Compare an obfuscator's file with another one, on images of the size that both take.

    The outputs of both are the payload, on-device logits if they have any, and a uint8 code if they have one; the
    classifier goes from the payload to logits.
    """
    found: dict[str, list[npt.NDArray[np.generic]]] = defaultdict(list)  # one number for each image
    for batch, _ in images.scaled_batches("comparing", progress):
        new, old = after.all(batch), before.all(batch)
        predictions, predictions_before = (classifier(outputs[0]).argmax(axis=1) for outputs in (new, old))
        found["predictions_changed"].append(predictions != predictions_before)
        found["payload_mean_difference"].append(np.abs(new[0] - old[0]).mean(axis=(1, 2, 3)))
        for own, own_before in zip(new[1:], old[1:], strict=True):
            if own.dtype == np.uint8:
                found["codes_changed"].append((own != own_before).any(axis=1))
            else:
                found["device_predictions_changed"].append(own.argmax(axis=1) != own_before.argmax(axis=1))
    return Differences(**{name: float(np.concatenate(parts).mean(dtype=float)) for name, parts in found.items()})


def time_ratio(after: Path, before: Path, image: Array) -> float:
    """Return the processor time of one ONNX file in units of another's, for one image and one thread.

    Both run in turn, on `image` (1, 3, H, W) float32 in [0, 1]; the ratio is that of the medians over rounds.
    """
    functions = [OnnxFunction(file, threads=1) for file in (after, before)]
    times: list[list[float]] = [[], []]
    until = time.monotonic() + _TIMED_S
    for rounds in range(_MOST_ROUNDS):
        if rounds >= _LEAST_ROUNDS + _WARM_UP and time.monotonic() >= until:
            break
        for function, own in zip(functions, times, strict=True):
            for _ in range(_SETTLE):  # so that the data of what ran before is no longer in the caches
                function(image)
            start = time.thread_time()
            for _ in range(_REPEATS):
                function(image)
            own.append(time.thread_time() - start)
    new, old = (statistics.median(own[_WARM_UP:]) for own in times)
    return new / old


def _compared(
    bundle: Bundle, before: Evaluation, made: Bundle, classifier: Bundle, test: ImageSet, progress: Progress
) -> Int8Comparison:
    test = test.of_classes(classifier.labels)
    after_file, before_file = made.file(OBFUSCATOR_ONNX), bundle.file(OBFUSCATOR_ONNX)
    classify = ClassifierFunction(classifier)
    changed = differences(OnnxFunction(after_file), OnnxFunction(before_file), classify, test, progress=progress)
    image, _ = next(test.subset(1).scaled_batches())
    return Int8Comparison(
        **asdict(changed),
        **{f"{name}_before": getattr(before, name) for name in _BEFORE},
        time_of_float32=time_ratio(after_file, before_file, image),
        megabytes=after_file.stat().st_size / 1e6,
        megabytes_before=before_file.stat().st_size / 1e6,
    )


def _described(bundle: Bundle, folder: Path, calibration: ImageSet, test: ImageSet) -> Bundle:
    """Return the new bundle without its figures: how it was made, and of which one."""
    name = str(bundle.recipe.name or bundle.recipe.method or bundle.path.resolve().name)
    how = {
        "kind": "U8S8",
        "from": {"name": name, "fingerprint": f"sha256:{bundle.files[OBFUSCATOR_ONNX]}"},
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
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a new folder that, with its lab folder, takes the place of `folder` if the block succeeds."""
    with whole_folder(folder, BundleError) as partial:
        try:
            yield partial
            shutil.rmtree(new_lab_folder(folder))
            lab_folder(partial).rename(lab_folder(folder))
        finally:
            shutil.rmtree(lab_folder(partial), ignore_errors=True)

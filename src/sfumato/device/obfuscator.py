"""The obfuscator as it runs on the device: image in, obfuscated image out, or an error; never the image.

With a gate in the bundle, the same run gives the on-device prediction, and an image whose prediction is final is not
sent.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import BASELINE, DECODER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.execution_providers import CPU, provider_names
from sfumato.artifacts.onnx_file import open_session, run_options
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device.image import EightBit, ImageSource, load_image, prepare, to_pixels
from sfumato.device.predictions import softmax
from sfumato.device.recognisable import IMAGE_EXPLAINS, explained, probe_images, shows_probes
from sfumato.errors import BundleError, ImageError

if TYPE_CHECKING:
    from PIL import Image

# An output this close to the image everywhere is the image.
SAME_WITHIN = 1e-3
_LOG = logging.getLogger(__name__)
# A code of more bytes could hold a thumbnail.
MOST_CODE_BYTES = 64
# A preview is scaled only if its values leave [0, 1] by more than rounding does.
_RANGE_SLACK = 0.02


@dataclass(frozen=True, eq=False)
class ObfuscatedImage:
    """An obfuscated image, which alone may leave the device. Its representation never shows the values.

    Attributes:
        tensor: the classifier's input: (3, H, W) float32, normalised, read-only. In the split form the decoder's: the
            code, (B,) uint8, read-only. As an 8-bit image its pixels: (H, W, 3) uint8, RGB, read-only.
        preprocessing: the size and normalisation that it was made for.
    """

    tensor: NDArray[Any] = field(repr=False)
    preprocessing: Preprocessing

    def preview(self) -> Image.Image:
        """Return the obfuscated image as people see it, in RGB.

        Mean and deviation are undone. If values leave [0, 1], the whole image is scaled so that its smallest is black
        and its largest is white.

        Raises:
            ImageError: it is a code, which is no image.
        """
        from PIL import Image

        if self.tensor.ndim != 3:
            raise ImageError("a code has no preview; obfuscate without the split form to see its decoded image")
        if self.tensor.dtype == np.uint8:
            return Image.fromarray(self.tensor)
        pixels = self.preprocessing.denormalize(self.tensor)
        low, high = float(pixels.min()), float(pixels.max())
        if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
            pixels = (pixels - low) / max(high - low, 1e-12)
        return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


@dataclass(frozen=True, eq=False)
class Decision:
    """The on-device prediction for one image, and what has to be sent, if anything.

    Attributes:
        probabilities: of every class in the order of the labels, each in [0, 1]; they sum to 1, unless the bundle is
            multi-label. None if the bundle has no gate; then `obfuscated` is not None.
        obfuscated: what has to be sent; None if the prediction is final, so that it cannot be sent by mistake.
        out_of_distribution: whether the image is unlike the training images; None if the bundle is not calibrated.

    Raises:
        ValueError: both are None.
    """

    probabilities: tuple[float, ...] | None
    obfuscated: ObfuscatedImage | None
    out_of_distribution: bool | None = None

    def __post_init__(self) -> None:
        if self.probabilities is None and self.obfuscated is None:
            raise ValueError("an image that is handled on-device needs its prediction")


class Obfuscator:
    """Runs a bundle's obfuscator.

    Args:
        bundle: an obfuscator bundle, or its folder.
        threads: threads for one image; one is best for an obfuscator of this size.
        split: return the code instead of the image decoded from it; the bundle's decoder then runs in the cloud.
        eight_bit: return the 8-bit image instead of the classifier's input: "exact" refuses outputs that are none,
            "rounded" rounds those in [0, 1].
        providers: execution providers, the preferred one first: "cpu", "cuda", "tensorrt", "openvino", "coreml", "qnn",
            "nnapi". Where one does not run the obfuscator, the CPU does, and the log says so once.
        allow_recognisable: accept a payload that shows the image (see `sfumato.device.recognisable`), of a bundle that
            declares itself a baseline; it is logged. The image itself is refused all the same.

    Attributes:
        bundle: the bundle.
        split: whether it returns codes.
        providers: the execution providers that run it; the CPU takes what those before it do not.
        payload_shape: of one image's payload, without the batch.

    Raises:
        BundleError: the bundle is missing, damaged or of another kind, or the installed ONNX Runtime has no such
            provider, or its ONNX file is not an obfuscator, or lacks
            the logits that its gate needs, or the code that the split form needs; or its payload of synthetic images
            is malformed, or shows them, and that is not allowed, or asked for with a bundle that is no baseline.
        ValueError: the split form of an 8-bit image was asked for.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        *,
        threads: int = 1,
        split: bool = False,
        eight_bit: EightBit | None = None,
        providers: Sequence[str] = CPU,
        allow_recognisable: bool = False,
    ) -> None:
        if split and eight_bit is not None:
            raise ValueError("a code is no image; ask for the split form or for 8-bit images, not for both")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle, kind="obfuscator")
        if allow_recognisable and self.bundle.recipe.kind != BASELINE:
            raise BundleError(
                f"{self.bundle.path} does not declare itself a baseline (recipe.kind is {self.bundle.recipe.kind!r}), "
                "so that recognisable payloads cannot be allowed; leave allow_recognisable out"
            )
        self.split = split
        self._eight_bit = eight_bit
        self._recognisable_allowed = allow_recognisable
        self._shape = (3, self.bundle.preprocessing.height, self.bundle.preprocessing.width)
        self._session = open_session(self.bundle.file(OBFUSCATOR_ONNX), threads=threads, providers=providers)
        self.providers = provider_names(self._session)
        self._input_name = self._session.get_inputs()[0].name
        outputs = self._checked_outputs()
        payload = _code_output(self.bundle, outputs) if split else outputs[0]
        self._outputs = [payload.name] + ([outputs[1].name] if self.bundle.gate is not None else [])
        self._run_options = run_options()
        self.payload_shape = (int(payload.shape[1]),) if split else self._shape
        self._check_on_probes()

    def obfuscate(self, source: ImageSource) -> ObfuscatedImage:
        """Obfuscate one image. See `obfuscate_batch`."""
        return self.obfuscate_batch([source])[0]

    def obfuscate_batch(self, sources: Iterable[ImageSource]) -> list[ObfuscatedImage]:
        """Obfuscate images together, including those that a gate would handle on-device; an empty batch gives [].

        Raises:
            ImageError: one of them cannot be used.
            BundleError: the obfuscator failed or did not hide the image; nothing is returned then.
        """
        images = self._prepared(sources)
        if not len(images):
            return []
        return [ObfuscatedImage(tensor, self.bundle.preprocessing) for tensor in self(images)]

    def decide_batch(self, sources: Iterable[ImageSource], *, gate: bool = True) -> list[Decision]:
        """Decide for each image whether it has to be sent, in one run for all.

        Args:
            sources: whatever `load_image` takes; an empty batch gives an empty list.
            gate: whether on-device predictions may be final; if not, or if the bundle has no gate, everything has to
                be sent.

        Returns:
            One decision per image, in order.

        Raises:
            ImageError: one of them cannot be used.
            BundleError: the obfuscator failed, did not hide an image (including those not to be sent), or gave no
                usable on-device prediction; nothing is returned then.
        """
        images = self._prepared(sources)
        if not len(images):
            return []
        obfuscated, own = self._run(images)
        packed = [ObfuscatedImage(tensor, self.bundle.preprocessing) for tensor in obfuscated]
        if own is None or self.bundle.gate is None:
            return [Decision(None, image) for image in packed]
        probabilities = softmax(own)
        sent = self.bundle.gate.sends(probabilities) | (not gate)
        unlike = out_of_distribution(self.bundle, own)
        return [
            Decision(tuple(row), image if sends else None, is_unlike)
            for row, image, sends, is_unlike in zip(probabilities.tolist(), packed, sent.tolist(), unlike, strict=True)
        ]

    def __call__(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """Obfuscate prepared images, including those that a gate would handle on-device.

        Args:
            images: (N, 3, H, W) float32 in [0, 1], of the bundle's size.

        Returns:
            The classifier's input: (N, 3, H, W) float32, normalised, read-only; in the split form codes (N, B) uint8;
            as 8-bit images (N, H, W, 3) uint8.

        Raises:
            ImageError: the array is not as described.
            BundleError: an output is not finite or of another shape, or what would be sent (nearly) equals the input,
                or is no 8-bit image where one is needed.
        """
        return self._run(images)[0]

    def _prepared(self, sources: Iterable[ImageSource]) -> NDArray[np.float32]:
        images = [prepare(load_image(source), self.bundle.preprocessing) for source in sources]
        return np.stack(images) if images else np.empty((0, *self._shape), np.float32)

    def _run(self, images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return the payload, and with a gate the on-device logits (N, classes); both checked, so that it fails closed.

        What does not look like an obfuscated image, or a code of the stated size, does not leave this class.
        """
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != self._shape:
            wanted = ("N", *self._shape)
            raise ImageError(f"got an array {images.shape} of {images.dtype}; expected {wanted} of float32")
        # Written so that NaN fails too.
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ImageError("images must have values in [0, 1]; divide 8-bit values by 255")
        payload, own = self._computed(images)
        if not self.split:
            self._check_hidden(images, payload)
        if self._eight_bit is not None:
            payload = to_pixels(payload, self.bundle.preprocessing, self._eight_bit)
            self._check_pixels(images, payload)
        payload.flags.writeable = False
        return payload, own

    def _computed(self, images: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return what the graph computes, if it has the shapes, types and values that the bundle declares."""
        given = {self._input_name: np.ascontiguousarray(images)}
        try:
            payload, *own = self._session.run(self._outputs, given, self._run_options)
        except Exception as error:  # ONNX Runtime's errors have no common base, and may quote values
            raise BundleError(f"the obfuscator of {self.bundle.path} failed ({type(error).__name__})") from None
        what = "code" if self.split else "output"
        self._check(what, payload, self.payload_shape, len(images), np.uint8 if self.split else np.float32)
        if self.split:
            self._check_code(payload)
        elif self.bundle.recipe.eight_bit_output and self._eight_bit is None:
            to_pixels(payload, self.bundle.preprocessing, "exact")
        if not own:
            return payload, None
        self._check("on-device logits", own[0], (len(self.bundle.labels),), len(images), np.float32)
        return payload, own[0]

    def _check_on_probes(self) -> None:
        """Refuse, before there is an image, an obfuscator that does not work, or whose payload shows the image."""
        probes = probe_images(*self._shape[1:])
        payload, _ = self._computed(probes)
        if self.split or not shows_probes(probes, payload):
            return
        if not self._recognisable_allowed:
            raise self._recognisable()
        _LOG.warning(
            "%s: the payload shows the image; it is sent because the bundle is a baseline and this was allowed",
            self.bundle.path,
        )

    def _recognisable(self) -> BundleError:
        return BundleError(
            f"what the obfuscator of {self.bundle.path} makes shows the image (scaled, shifted, negated or in other "
            "colours); nothing was sent; use another bundle, or, to try a baseline, allow_recognisable "
            "(--allow-recognisable)"
        )

    def _check(self, what: str, made: NDArray[Any], row: tuple[int, ...], count: int, dtype: type[np.generic]) -> None:
        wanted = (count, *row)
        if made.shape != wanted or made.dtype != dtype:
            raise BundleError(
                f"the {what} of {self.bundle.path}'s obfuscator is {made.shape} of {made.dtype}, expected {wanted} of "
                f"{np.dtype(dtype)}; nothing was sent"
            )
        if dtype == np.float32 and not np.isfinite(made).all():
            raise BundleError(f"the {what} of {self.bundle.path}'s obfuscator is not all finite; nothing was sent")

    def _check_code(self, codes: NDArray[np.uint8]) -> None:
        """Refuse codes that the bundle does not declare: first the number of a class, then bits, then zeros."""
        count, classes = self.bundle.recipe.code_bits, len(self.bundle.labels)
        if count is None:
            return
        bits, places = np.unpackbits(codes, axis=1), max(0, classes - 1).bit_length()
        number = bits[:, :places] @ (1 << np.arange(places)[::-1])
        if bits[:, count:].any() or (number >= max(1, classes)).any():
            raise BundleError(
                f"the obfuscator of {self.bundle.path} made a code that is none of {count} bits with one of {classes} "
                "classes; nothing was sent"
            )

    def _check_hidden(self, images: NDArray[np.float32], payload: NDArray[np.float32]) -> None:
        share = explained(images, payload).max(axis=1)
        hidden = share < IMAGE_EXPLAINS  # false for a flat image, of which nothing can be said
        if hidden.all():
            return
        if (share >= IMAGE_EXPLAINS).any() and not self._recognisable_allowed:
            raise self._recognisable()
        for plain in (images, self.bundle.preprocessing.normalize(images)):
            distance = np.abs(payload - plain).max(axis=(1, 2, 3), initial=0.0)
            if (distance <= SAME_WITHIN).any():
                raise BundleError(f"the obfuscator of {self.bundle.path} returned the image itself; nothing was sent")

    def _check_pixels(self, images: NDArray[np.float32], pixels: NDArray[np.uint8]) -> None:
        """Rounding could remove the small difference from the image."""
        plain = np.rint(images.transpose(0, 2, 3, 1) * 255)
        if (pixels == plain).all(axis=(1, 2, 3)).any():
            raise BundleError(
                f"what the obfuscator of {self.bundle.path} makes, in 8 bits, is the image itself; nothing was sent"
            )

    def _checked_outputs(self) -> list[Any]:
        """Return the graph's outputs, if they and its input are those of an obfuscator, and fit the bundle's gate."""
        file, classes = self.bundle.file(OBFUSCATOR_ONNX), len(self.bundle.labels)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(node.name, node.type, node.shape) for node in (*inputs, *outputs)]
        if len(inputs) != 1 or not outputs or not all(_is_batch_of(n, self._shape) for n in (inputs[0], outputs[0])):
            raise BundleError(
                f"{file} is not an obfuscator: one float input and output (N, *{self._shape}) are expected, got {found}"
            )
        code = int(DECODER_ONNX in self.bundle.files)
        if self.bundle.gate is None and len(outputs) != 1 + code:
            raise BundleError(
                f"{file} has {len(outputs)} outputs, and the bundle states no gate: {1 + code} expected, got {found}"
            )
        if self.bundle.gate is not None and not (
            classes and len(outputs) == 2 + code and _is_batch_of(outputs[1], (classes,))
        ):
            raise BundleError(
                f"{file} does not fit the bundle's gate: a second float output (N, {classes}), one column for each of "
                f"the bundle's labels, is expected, got {found}"
            )
        return list(outputs)


def out_of_distribution(bundle: Bundle, logits: NDArray[np.float32]) -> Sequence[bool | None]:
    """Return what a bundle's detector says of on-device logits (N, classes); None for each if it has none."""
    detector = bundle.ood_detector
    return [None] * len(logits) if detector is None else detector.detects(logits).tolist()


def _code_output(bundle: Bundle, outputs: list[Any]) -> Any:
    """Return the output with the code, of a size that the file states."""
    if DECODER_ONNX not in bundle.files:
        raise BundleError(
            f"the bundle {bundle.path} has no {DECODER_ONNX}, so there is no split form of it; send decoded images"
        )
    node = outputs[-1]
    size = node.shape[-1]
    if node.type != "tensor(uint8)" or len(node.shape) != 2 or not isinstance(size, int) or size > MOST_CODE_BYTES:
        raise BundleError(
            f"{bundle.path}: the split form needs a last output of codes (N, B) uint8, B at most {MOST_CODE_BYTES}, "
            f"got {node.type} {node.shape}"
        )
    return node


def _is_batch_of(node: Any, size: tuple[int, ...]) -> bool:
    """Return whether a node is float32 of (any number, *size); sizes that the file leaves open may be anything."""
    shape = node.shape
    if node.type != "tensor(float)" or len(shape) != len(size) + 1 or isinstance(shape[0], int):
        return False
    return all(not isinstance(got, int) or got == want for got, want in zip(shape[1:], size, strict=True))

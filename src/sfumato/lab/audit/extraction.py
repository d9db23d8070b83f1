"""Training-set extraction from a bundle: everything that its files decode to, and the check that it would be found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.artifacts.bundle import DECODER_ONNX, DEOBFUSCATOR_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import file_sha256
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import AuditError
from sfumato.lab.attacks import extraction
from sfumato.lab.attacks.extraction import Extraction, comparable, extract, memorises
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.result_store import cached, code_sha256
from sfumato.lab.audit.schema import SanityCheck
from sfumato.lab.data import ImageSet
from sfumato.lab.export.onnx import export_onnx
from sfumato.lab.libraries import first_line
from sfumato.lab.models import Normalize, SketchDecoder, Sketcher
from sfumato.lab.models.codewords import CodewordMeans
from sfumato.progress import Progress, silent

_MOST_BITS = 12
"""Of codes that are all decoded; of longer ones those that some images have."""
_MOST_IMAGES = 4_096
_CODED_IMAGES = 5_000
_BATCH = 256
_CONTROL_IMAGES, _CONTROL_CLASSES, _CONTROL_BITS, _CONTROL_FOUND = 64, 4, 10, 16
"""Of the check: training images, classes and bits of its code, and the fewest training images that must be found."""


def extract_training_set(
    bundle: Bundle, train: ImageSet, test: ImageSet, *, progress: Progress = silent
) -> tuple[Extraction, ...]:
    """Compare what each file of an obfuscator's bundle decodes to with the images that it was trained on.

    Args:
        bundle: the obfuscator's, as it is handed out.
        train: the images that it was trained on, maybe among others.
        test: images of the same kind that it has never seen.
        progress: see `Progress`.

    Raises:
        AuditError: images of another size, or a file that cannot be read.
        BundleError: a file cannot be run.
    """
    size = (bundle.preprocessing.height, bundle.preprocessing.width)
    for images in (train, test):
        if tuple(images.images.shape[2:]) != size:
            raise AuditError(f"images are {tuple(images.images.shape[2:])}, {bundle.path} takes {size}")
    found = []
    for file, method, decoded in _decoded(bundle, train, test):
        found.append(extract(file, method, decoded.clamp(0, 1), train, test, progress=progress))
    return tuple(found)


def _decoded(bundle: Bundle, train: ImageSet, test: ImageSet) -> Iterator[tuple[str, str, Tensor]]:
    """Yield file, method and images (M, 3, H', W') float32, nearly all in [0, 1], as large as they are compared."""
    size, leaks = bundle.preprocessing, DEOBFUSCATOR_ONNX in bundle.files
    if DECODER_ONNX in bundle.files:
        start, (batch, how) = OnnxFunction(bundle.file(DECODER_ONNX)), _codes(bundle, train, test)
        yield DECODER_ONNX, f"decodes {how}", _through((start, size.denormalize), batch)
    elif leaks:
        start, batch, how = OnnxFunction(bundle.file(OBFUSCATOR_ONNX)), class_means(train).numpy(), "class means"
    if leaks:
        reconstruct = OnnxFunction(bundle.file(DEOBFUSCATOR_ONNX))
        yield DEOBFUSCATOR_ONNX, f"reconstructs {how}", _through((start, reconstruct), batch)
    for name in sorted(bundle.files):
        if stored := [_through((), images) for images in _stored(bundle.file(name), size)]:
            yield name, "stores images", torch.cat(stored)


def _codes(bundle: Bundle, train: ImageSet, test: ImageSet) -> tuple[npt.NDArray[np.uint8], str]:
    """Return codes (K, B) uint8, different ones, and which they are."""
    decoder = OnnxFunction(bundle.file(DECODER_ONNX))
    size = decoder.input_shape[-1]
    if not isinstance(size, int):
        raise AuditError(f"{bundle.path / DECODER_ONNX} leaves the size of its codes open")
    bits = bundle.recipe.code_bits or 8 * size
    if bits <= _MOST_BITS:
        numbers = np.arange(2**bits, dtype=np.uint64) << np.uint64(8 * size - bits)
        places = np.arange(8 * (size - 1), -1, -8, dtype=np.uint64)
        return (numbers[:, None] >> places & np.uint64(255)).astype(np.uint8), "every code"
    obfuscator = OnnxFunction(bundle.file(OBFUSCATOR_ONNX))
    of = [
        obfuscator.all(batch)[-1]
        for images in (train.subset(_CODED_IMAGES), test.subset(_CODED_IMAGES))
        for batch, _ in images.scaled_batches("extraction: codes")
    ]
    return np.unique(np.concatenate(of), axis=0)[:_MOST_IMAGES].astype(np.uint8), "codes of images"


def _through(functions: Sequence[Callable[[Any], Array]], batch: npt.NDArray[np.generic]) -> Tensor:
    """Return what functions make of a batch, one after the other, as large as images are compared."""
    found = []
    for start in range(0, min(len(batch), _MOST_IMAGES), _BATCH):
        part: Any = batch[start : min(start + _BATCH, _MOST_IMAGES)]
        for function in functions:
            part = function(part)
        found.append(comparable(torch.from_numpy(part.astype(np.float32))))
    return torch.cat(found)


def _stored(file: Path, size: Preprocessing) -> Iterator[Array]:
    """Yield a file's tensors that are as large as images: (K, 3, H, W), or flattened (K, 3 H W)."""
    shape = (3, size.height, size.width)
    for tensor in _tensors(file):
        if (tensor.ndim == 4 and tensor.shape[1:] == shape) or (tensor.ndim == 2 and tensor.shape[1] == np.prod(shape)):
            images: Array = tensor.reshape(-1, *shape).astype(np.float32)
            if tensor.dtype == np.uint8:
                images /= 255
            low, high = float(images.min()), float(images.max())
            # Payloads and other scales: correlation is the same in any.
            yield images if low >= 0 and high <= 1 else (images - low) / max(high - low, 1e-6)


def _tensors(file: Path) -> Iterator[npt.NDArray[np.generic]]:
    if file.suffix == ".safetensors":
        yield from (value.float().numpy() if value.is_floating_point() else value.numpy() for value in _loaded(file))
    elif file.suffix == ".onnx":
        try:
            graph = onnx.load(str(file)).graph
        except Exception as error:  # protobuf's errors have no documented base
            raise AuditError(f"{file} cannot be read as ONNX: {first_line(error)}") from error
        constants = [
            a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
        ]
        yield from map(onnx.numpy_helper.to_array, (*graph.initializer, *constants))


def _loaded(file: Path) -> list[Tensor]:
    return list(load_file(file).values())


def extraction_check(train: ImageSet, test: ImageSet) -> SanityCheck:
    """Check that a deobfuscator of 64 images, left in the bundle, gives them away; from the cache if that was done."""
    code = code_sha256(__file__, extraction.__file__)
    of = (code, torch.__version__, train.sha256, test.sha256, len(train), len(test))
    return cached("extraction-check", of, SanityCheck, partial(_extraction_check, train, test))


@torch.no_grad()
def _extraction_check(train: ImageSet, test: ImageSet) -> SanityCheck:
    few = train.subset(_CONTROL_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _leaking_bundle(Path(folder), few)
        rows = [row for row in extract_training_set(bundle, few, test) if row.file == DEOBFUSCATOR_ONNX]
    best = max(rows, key=lambda row: row.train_recognised)
    needed = min(_CONTROL_FOUND, len(few) // 2)
    return SanityCheck(
        name="training-set extraction, a deobfuscator of a few images",
        passed=best.train_recognised >= needed and memorises(best),
        measured=f"{best.train_recognised} of {len(few)} training, {best.test_recognised} of {len(test):,} test images",
        needed=f"at least {needed}, and a larger share than of test images",
        detail="the mean of the training images with each code, left in the bundle",
    )


def _leaking_bundle(folder: Path, few: ImageSet) -> Bundle:
    """Write decoder and deobfuscator of a sketch that has fresh weights: its codes tell images apart all the same."""
    height, width = few.images.shape[2:]
    images = few.images.float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sketcher = Sketcher(height, width, classes=_CONTROL_CLASSES, bits=_CONTROL_BITS)
    for part in sketcher.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # the statistics become those of the images at once
    normalize = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    sketcher.train()(images)
    sketcher.eval()
    codes = sketcher.encode(images)[0]
    decoder = SketchDecoder(sketcher, normalize)
    different, group = torch.unique(codes, dim=0, return_inverse=True)
    sums = torch.zeros(len(different), *images.shape[1:]).index_add(0, group, images)
    packed = sketcher.pack(different)
    payloads = decoder(packed)
    means = CodewordMeans(payloads.flatten(1), sums / group.bincount().view(-1, 1, 1, 1))
    export_onnx(decoder, folder / DECODER_ONNX, packed, input_name="code", output_name="obfuscated")
    export_onnx(means, folder / DEOBFUSCATOR_ONNX, payloads, input_name="obfuscated", output_name="reconstructed")
    files = {name: file_sha256(folder / name) for name in (DECODER_ONNX, DEOBFUSCATOR_ONNX)}
    recipe = RecipeRecord(code_bits=sketcher.bits)
    return Bundle(folder, "obfuscator", "check", few.names, Preprocessing(height, width), "", recipe, files=files)

"""From trained networks to a bundle."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.artifacts.bundle import (
    CLASSIFIER_ONNX,
    CLASSIFIER_WEIGHTS,
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    DEOBFUSCATOR_WEIGHTS,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
)
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.gate import Gate
from sfumato.artifacts.lab_files import new_lab_folder, save_lab
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import Figures, RecipeRecord
from sfumato.errors import AuditError, TrainingError
from sfumato.lab.classifiers import FrozenClassifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.export.onnx import export_onnx, renew, round_weights, save_weights
from sfumato.lab.models import Normalize, Obfuscator, Payload, SketchDecoder, Sketcher, SketchGraph
from sfumato.lab.models.codewords import codeword_means
from sfumato.lab.training.gate import choose_threshold, fit_temperature
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.tasks import ClassifierTask, SketchTask

log = logging.getLogger(__name__)

_DRAWS, _NOISY_IMAGES = 64, 8
_MOST_DRIFT, _MOST_SPREAD = 8, 0.1
"""Standard errors, and share of the variance, by which noise may differ by chance."""
_RECONSTRUCTED_CODES = 256
"""How many of the commonest codes a bundle's deobfuscator knows, so that its file stays small."""


def write_classifier_bundle(
    folder: Path,
    task: ClassifierTask,
    images: Tensor,
    *,
    name: str,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    recipe: RecipeRecord,
    half: bool = False,
) -> Bundle:
    """Write a classifier's bundle, without figures and provenance.

    The folder is created, or replaced. The file is checked on images (N, 3, H, W) float32 in [0, 1], real ones. If
    `half`, the weights are rounded and written in half precision. The recipe is the resolved one.
    """
    renew(folder)
    _save(task.net, folder / CLASSIFIER_WEIGHTS, half)
    with torch.no_grad():
        inputs = task.normalize.cpu()(images.cpu())
    export_onnx(task.net, folder / CLASSIFIER_ONNX, inputs, input_name="input", output_name="logits")
    return Bundle(
        path=folder,
        kind="classifier",
        name=name,
        labels=labels,
        preprocessing=preprocessing,
        classifier_fingerprint=fingerprint(folder / CLASSIFIER_ONNX),
        recipe=recipe,
    ).save()


def write_obfuscator_bundle(
    folder: Path,
    task: ObfuscationTask,
    images: Tensor,
    *,
    classifier: FrozenClassifier,
    recipe: RecipeRecord,
    half: bool = False,
) -> Bundle:
    """Write an obfuscator's bundle, without figures and provenance.

    The obfuscator's graph ends with the classifier's normalisation, so that the payload is the classifier's input; the
    deobfuscator's graph begins with its inverse. Weights and the best deobfuscator go to the lab's folder. The noise's
    size lies among the weights.

    `classifier` is the one that it was trained for; for the other arguments see `write_classifier_bundle`.
    """
    renew(folder)
    lab = new_lab_folder(folder)
    _save(task.obfuscator, lab / OBFUSCATOR_WEIGHTS, half)
    normalize, size = task.normalize.cpu(), classifier.preprocessing
    payload = Payload(task.obfuscator, normalize, size.height, size.width).cpu().eval()
    export_obfuscator(payload, folder / OBFUSCATOR_ONNX, images)
    if task.deobfuscator is not None:
        deobfuscator = task.attackers[task.faced]
        _save(deobfuscator, lab / DEOBFUSCATOR_WEIGHTS, half)
        mean, std = (values.flatten().tolist() for values in (-normalize.mean / normalize.std, 1 / normalize.std))
        reconstructs = nn.Sequential(Normalize(tuple(mean), tuple(std)), deobfuscator)
        with torch.no_grad():
            obfuscated = payload(images.cpu())
        export_onnx(
            reconstructs, lab / DEOBFUSCATOR_ONNX, obfuscated, input_name="obfuscated", output_name="reconstructed"
        )
    return _saved(classifier.obfuscator(folder, recipe))


def _saved(bundle: Bundle) -> Bundle:
    saved = bundle.save()
    save_lab(saved)
    return saved


def export_obfuscator(payload: Payload, path: Path, images: Tensor) -> None:
    """Write an obfuscator's ONNX file, with its fixed steps and its noise, and check it.

    The images are (N, 3, H, W) float32 in [0, 1], real ones, N at least 2.

    Raises:
        TrainingError: ONNX Runtime computes something else than torch, or other noise.
    """
    write = partial(export_onnx, payload, path, images, input_name="image", output_name="obfuscated")
    obfuscator = payload.obfuscator
    assert isinstance(obfuscator, Obfuscator)
    noise, obfuscator.noise = obfuscator.noise, None
    write(step=payload.step)  # all but the noise can be compared number by number
    if noise is not None:
        obfuscator.noise = noise
        write(compare=False)
        _check_noise(path, payload, images[:_NOISY_IMAGES])


@torch.no_grad()
def _check_noise(path: Path, payload: Payload, images: Tensor) -> None:
    """Check that the file's payloads have the same means and variances as torch's."""
    function, images = OnnxFunction(path), images.cpu()
    found = torch.stack([torch.from_numpy(function(images.numpy())) for _ in range(_DRAWS)]).double()
    wanted = torch.stack([payload(images) for _ in range(_DRAWS)]).double()
    spread, wanted_spread = found.var(dim=0), wanted.var(dim=0)
    errors = ((spread + wanted_spread) / _DRAWS).sqrt().clamp_min(1e-4)
    drift = float(((found.mean(dim=0) - wanted.mean(dim=0)).abs() / errors).max())
    ratio = float(spread.mean() / wanted_spread.mean().clamp_min(1e-12))
    if bool((found[0] == found[1]).all()) or not drift < _MOST_DRIFT or not abs(ratio - 1) < _MOST_SPREAD:
        raise TrainingError(
            f"{path.name}: ONNX Runtime's noise differs from torch's: means off by {drift:.1f} standard errors, "
            f"variance {ratio:.3f} times as large"
        )


@torch.no_grad()
def write_sketch_bundle(
    folder: Path,
    task: SketchTask,
    images: Tensor,
    *,
    classifier: FrozenClassifier,
    recipe: RecipeRecord,
    known: ImageSet,
    held_out: ImageSet,
    offload_rate: float,
    least: int,
    trained_on: Iterable[Tensor],
    half: bool = False,
) -> Bundle:
    """Write a sketch's bundle, with its gate and the decoder of its split form.

    Codes of fewer than `least` of the images that it was `trained_on`, in batches (B, 3, H, W) uint8, are merged; see
    `Sketcher.merge`. The figures say how many. The deobfuscator, which goes to the lab's folder with the weights,
    reconstructs the mean of the images `known` for each code; where there are too many codes for a table, it is left
    out. `held_out` ones, which were not trained on, calibrate the device's
    confidence and the threshold, so that the share `offload_rate` in [0, 1] is sent. For the other arguments see
    `write_obfuscator_bundle`.
    """
    renew(folder)
    lab = new_lab_folder(folder)
    sketcher, normalize = task.sketcher.cpu().eval(), task.normalize.cpu()
    if half:
        round_weights(sketcher)
    figures = merge_rare_codes(sketcher, (part.float() / 255 for part in trained_on), least)
    _save(sketcher, lab / OBFUSCATOR_WEIGHTS, half)
    own = torch.cat([sketcher(part)[1] for part in _scaled(held_out)])
    temperature = fit_temperature(own, held_out.labels)
    threshold = choose_threshold(own / temperature, offload_rate)
    graph = SketchGraph(sketcher, normalize, temperature=temperature)
    outputs = ("obfuscated", "device_logits", "code")
    export_onnx(graph, folder / OBFUSCATOR_ONNX, images, input_name="image", output_name=outputs)
    code = graph(images.cpu())[2]
    decoder = SketchDecoder(sketcher, normalize)
    export_onnx(decoder, folder / DECODER_ONNX, code, input_name="code", output_name="obfuscated")
    payload = Payload(sketcher, normalize, *sketcher.size).eval()
    with suppress(AuditError):
        reconstructs, counts = codeword_means((part, payload(part)) for part in _scaled(known))
        small, file = reconstructs.reduced(counts, _RECONSTRUCTED_CODES, least), lab / DEOBFUSCATOR_ONNX
        export_onnx(small, file, payload(images.cpu()), input_name="obfuscated", output_name="reconstructed")
    digest = hashlib.sha256()  # of the encoder's weights: equal fingerprints, equal meaning of codes
    for name, value in sorted(sketcher.encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    gate = Gate(threshold=threshold, offload_rate=offload_rate, images=len(held_out))
    bundle = replace(classifier.obfuscator(folder, recipe), gate=gate, figures=figures)
    return _saved(replace(bundle, code_fingerprint=f"sha256:{digest.hexdigest()}"))


def merge_rare_codes(sketcher: Sketcher, batches: Iterable[Tensor], least: int) -> Figures:
    """Merge the codes of fewer than `least` training images, given in batches (B, 3, H, W) float32 in [0, 1].

    Nothing is merged if `least` is 0, or if the sketcher decodes to photographs, which are public.

    Returns:
        How many of the codes that occur were merged, and the fewest images behind a code that is left.
    """
    if not least or sketcher.photographs is not None:
        return Figures()
    packed = torch.cat([sketcher.pack(sketcher.encode(part)[0]) for part in batches])
    packed, counts = torch.unique(packed, dim=0, return_counts=True)
    codes = sketcher.unpack(packed)
    sketcher.keep_codes(codes, counts, least)
    merged, behind = torch.unique(sketcher.merge(codes), dim=0, return_inverse=True)
    fewest = int(torch.zeros(len(merged), dtype=counts.dtype).index_add(0, behind, counts).min())
    if fewest < least:
        log.warning(
            "%d training images are too few: what is decoded has %d images behind it at least, not the %d of "
            "min_images_per_code",
            int(counts.sum()),
            fewest,
            least,
        )
    return Figures(merged_codes=int((counts < least).sum()), occurring_codes=len(codes), fewest_images_per_code=fewest)


def _scaled(images: ImageSet) -> Iterator[Tensor]:
    return (part.float() / 255 for part in torch.split(images.images, INFERENCE_BATCH))


def _save(net: nn.Module, path: Path, half: bool) -> None:
    if half:
        round_weights(net)
    save_weights(net, path, half=half)

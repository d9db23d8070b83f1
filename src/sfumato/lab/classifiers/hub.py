"""Load image classifiers that the transformers library saved, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.artifacts.labelling import Labelling
from sfumato.errors import ClassifierError
from sfumato.lab.classifiers.imported import ImportedClassifier, Metadata, plain_name
from sfumato.lab.libraries import first_line, quiet

_BILINEAR = 2  # Pillow's number for it, which the processors use
_DEFAULTS = (("image_mean", 0.0), ("image_std", 1.0))
_HUB_TIMEOUT_S = 5.0
_LABELLINGS: dict[str | None, Labelling] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
}
"""By what a configuration calls its problem, if it says so."""
_CONVNEXT_FULL_SIZE = 384
"""From this side on, ConvNeXt's processor stretches instead of cropping."""

_Channels = tuple[float, float, float]


class _Logits(nn.Module):
    """A transformers classifier from tensor to tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, classes)."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def from_transformers(where: str) -> ImportedClassifier:
    """Load an image classifier and the settings of its image processor; no code and no pickle from there.

    Args:
        where: a local folder, or a hub id.

    Raises:
        ClassifierError: transformers is not installed, there is no such model, it is no classifier of RGB or grey
            images, its weights are pickled or incomplete, or its processor cannot be reproduced here.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ModuleNotFoundError as error:
        raise ClassifierError(f"{error.name} is not installed; run: pip install 'sfumato[hub]'") from error
    folder = Path(where)
    if folder.is_dir():
        _check_folder(folder)
    options = {"trust_remote_code": False, "local_files_only": folder.is_dir() or not _reached(where)}
    errors = (OSError, ValueError, RuntimeError, KeyError, ImportError)
    with quiet(), _without_bars():
        try:
            config = AutoConfig.from_pretrained(where, **options)
            channels = getattr(config, "num_channels", 3)
            if channels not in (1, 3):
                raise ClassifierError(f"{where} takes images with {channels} channels; RGB images have 3, grey ones 1")
            if config.problem_type not in (None, *_LABELLINGS):
                raise ClassifierError(f"{where} solves a problem of type {config.problem_type!r}; classes are expected")
            model, info = AutoModelForImageClassification.from_pretrained(
                where, config=config, use_safetensors=True, output_loading_info=True, **options
            )
        except errors as error:
            raise ClassifierError(f"{where} cannot be loaded by transformers: {first_line(error)}") from error
        missing = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
        if missing:
            raise ClassifierError(
                f"{where} lacks the weights {', '.join(sorted(map(str, missing))[:3])} of a classifier: it was saved "
                "without its head, or is no image classifier"
            )
        try:
            find: Any = AutoImageProcessor.from_pretrained  # untyped
            processor = find(where, backend="pil", **options).to_dict()
        except errors as error:
            raise ClassifierError(f"{where} has no image processor that can be used: {first_line(error)}") from error
    size, notes = _framing(processor, config)
    mean, std = _scaling(processor, where)
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return ImportedClassifier(
        "a transformers model",
        _Logits(model.float()).eval().requires_grad_(False),
        Metadata(size, mean, std, labels, plain_name(folder.name), labelling=_LABELLINGS.get(config.problem_type)),
        notes,
        facts={"architecture": type(model).__name__, "processor": processor.get("image_processor_type")},
        grey=channels == 1,
    )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ClassifierError(f"{folder} has neither bundle.json nor config.json: no bundle, no transformers model")
    if not any(folder.glob("*.safetensors")):
        raise ClassifierError(
            f"{folder} has no .safetensors file, and pickled weights (.bin) can run code when they are loaded: where "
            "you trust them, load the model and save it again with save_pretrained"
        )


def _reached(hub_id: str) -> bool:
    """Return whether the hub can be reached; if not, use what was fetched before, without minutes of retries."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT_S)
    except Exception:  # its transport has its own error tree, which changes between releases
        return False
    return True


def _scaling(processor: Any, where: str) -> tuple[_Channels, _Channels]:
    """Return mean and deviation on the [0, 1] scale, whatever scale the processor uses."""
    if processor.get("do_flip_channel_order"):
        raise ClassifierError(f"{where} takes its channels in the order BGR; here they are RGB")
    # Its input is (255 x factor - offset - mean) / std for an image x in [0, 1].
    factor = 255 * float(processor.get("rescale_factor") or 1 / 255) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") and processor.get("do_rescale", True) else 0.0
    normalizes = processor.get("do_normalize", True) and processor.get("image_mean") is not None
    mean, std = (_three(processor[key] if normalizes else default) for key, default in _DEFAULTS)
    return _three([(m + offset) / factor for m in mean]), _three([s / factor for s in std])


def _three(value: Any) -> _Channels:
    values = [float(v) for v in ([value] if isinstance(value, int | float) else value)]
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3:
        raise ClassifierError(f"the image processor normalises {len(values)} channels; RGB images have 3")
    return values[0], values[1], values[2]


def _framing(processor: Any, config: Any) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """Return the size, and how its own processor frames an image differently from the client."""
    resized, cropped = _sides(processor.get("size")), _sides(processor.get("crop_size"))
    short = (processor.get("size") or {}).get("shortest_edge")
    if not processor.get("do_resize", True) or resized is None:
        resized = _sides(getattr(config, "image_size", None))
    if not processor.get("do_center_crop"):
        cropped = None
    size = cropped or resized
    notes = []
    share = min(size[0] / resized[0], size[1] / resized[1]) if size and resized else 1.0
    if processor.get("crop_pct") and short and short < _CONVNEXT_FULL_SIZE:
        share = float(processor["crop_pct"])
    if cropped is None and (not short or ("crop_pct" in processor and short >= _CONVNEXT_FULL_SIZE)):
        notes.append(
            "Its own processor stretches an image that is not square; the client fits the shorter side and crops the "
            "centre. Square images are framed alike."
        )
    if share < 1:
        notes.append(
            f"Its own processor shows it the inner {share:.1%} of an image's shorter side; the client shows all of it."
        )
    resampling = processor.get("resample")  # 0 is Pillow's number of the nearest pixel
    if processor.get("do_resize", True) and resampling is not None and int(resampling) != _BILINEAR:
        notes.append("Its own processor does not resample bilinearly as the client does; pixels differ a little.")
    return size, tuple(notes)


def _sides(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    if not isinstance(value, dict):
        return None
    edge = value.get("shortest_edge")
    height, width = value.get("height") or edge, value.get("width") or edge
    return (int(height), int(width)) if height and width else None


@contextmanager
def _without_bars() -> Iterator[None]:
    """Turn transformers' progress bars off while the block runs."""
    from transformers.utils import logging as untyped

    theirs: Any = untyped
    bars = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            theirs.enable_progress_bar()

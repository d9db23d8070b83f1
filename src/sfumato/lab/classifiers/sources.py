"""What people have, turned into a network or an ONNX file with everything that a client must know of it.

Nothing is unpickled, no code comes with a file: weights are safetensors, programs are checked before they are
loaded, and Python code runs only where somebody names a module of his own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.artifacts.bundle import MANIFEST, Preprocessing
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.plugins import import_object
from sfumato.errors import BundleError, ClassifierError
from sfumato.lab.classifiers.exported_programs import batch_is_free, image_size, load_program

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".h5", ".keras", ".joblib")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Stated:
    """What somebody says of a classifier; it goes before what the classifier says of itself. None: nothing is said.

    Attributes:
        size: (height, width) of its input, in pixels.
        mean: per RGB channel, on the [0, 1] scale.
        std: likewise.
        labels: one name per class, in the order of its outputs.
        name: what a server calls it.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: tuple[str, ...] | None = None
    name: str | None = None


@dataclass(frozen=True)
class Given:
    """A classifier from elsewhere, with what it says of itself.

    Attributes:
        origin: what kind of thing it came as, for people and for the bundle.
        name: what a server calls it, unless somebody says otherwise.
        net: normalised images (N, 3, H, W) float32 -> logits (N, classes), in evaluation mode on the CPU; None if
            there is only an ONNX file.
        onnx: the ONNX file that is served as it is; None if one has to be made.
        size: (height, width) of its input; None if it says nothing of it.
        mean: per RGB channel, on the [0, 1] scale; None if it says nothing of it.
        std: likewise.
        labels: one name per class; None if it has none.
        notes: what people should know, one sentence each.
        facts: goes into the bundle's recipe.
    """

    origin: str
    name: str
    net: nn.Module | None = None
    onnx: Path | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def preprocessing(self, stated: Stated) -> Preprocessing:
        """How an image becomes its input.

        Raises:
            ClassifierError: neither it nor anybody says so.
        """
        size, mean, std = stated.size or self.size, stated.mean or self.mean, stated.std or self.std
        missing = [
            flag
            for flag, value in (("--size", size), ("--mean", mean), ("--std", std))
            if value is None
        ]  # fmt: skip
        if size is None or mean is None or std is None:
            raise ClassifierError(
                f"{self.origin} does not say how an image becomes its input: give {', '.join(missing)} "
                "(--size 224x224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225, or --mean 0,0,0 --std 1,1,1 if it "
                "takes values in [0, 1])"
            )
        return Preprocessing(*size, mean, std)


def read_given(given: str) -> Given:
    """Finds out what somebody gave, and reads it.

    Args:
        given: a folder as transformers saves it or a hub id of one; a torch.export program (`.pt2`); an ONNX file; or
            `package.module:callable`, an `nn.Module`, or a callable without arguments that makes one.

    Raises:
        ClassifierError: nothing of these, or it cannot be used.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if (path / MANIFEST).is_file():
            raise ClassifierError(f"{given} is a bundle already; use it as it is")
        return _from_hub(str(path))
    if path.suffix == ".pt2":
        return _from_program(_existing(path))
    if path.suffix == ".onnx":
        return _from_onnx(_existing(path))
    if path.suffix in _PICKLES:
        raise ClassifierError(
            f"{given} is a kind of file that can run code when it is loaded, and is never loaded here. Load it where "
            "you trust it, and give its network as package.module:callable, or save it with torch.export.save "
            "(.pt2), torch.onnx.export (.onnx) or, in transformers, save_pretrained (a folder with safetensors)"
        )
    if ":" in given:
        return _from_module(given)
    if _HUB_ID.fullmatch(given):
        return _from_hub(given)
    raise ClassifierError(
        f"{given!r} is no classifier that can be found: expected a bundle's or a transformers folder, a hub id such as "
        "owner/name, a .pt2 or .onnx file, or package.module:callable"
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ClassifierError(f"no file at {path}")
    return path


def _from_hub(where: str) -> Given:
    from sfumato.lab.classifiers.hub import from_transformers

    net, described = from_transformers(where)
    return Given(net=net, name=_plain_name(Path(where).name), **described)


def _from_program(path: Path) -> Given:
    program = load_program(path)
    channels, height, width = image_size(program)
    if channels != 3:
        raise ClassifierError(f"{path} takes {channels} channels; RGB images have 3")
    if not batch_is_free(program):
        raise ClassifierError(
            f"{path} was exported for one number of images at a time; training takes batches. Export it again with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    return Given("a torch.export program", _plain_name(path.stem), net=program, size=(height, width))


def _from_onnx(path: Path) -> Given:
    try:
        shape = OnnxFunction(path).input_shape
    except BundleError as error:
        raise ClassifierError(
            f"{error} (weights in a file beside it? Put them inside: onnx.save(onnx.load(path), other_path))"
        ) from error
    if len(shape) != 4 or shape[1] != 3:
        hint = "; its channels come last, export it with channels first" if shape[-1:] == (3,) else ""
        raise ClassifierError(f"{path} takes {shape}; RGB images (N, 3, height, width) are expected{hint}")
    if isinstance(shape[0], int):
        raise ClassifierError(
            f"{path} takes {shape[0]} images at a time, no more and no less; export it with a free batch axis "
            "(dynamic_axes or dynamic_shapes)"
        )
    height, width = shape[2:]
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    note = "An ONNX file alone: it can be served, measured and audited, but nothing can be trained for it."
    return Given("an ONNX file", _plain_name(path.stem), onnx=path, size=size, notes=(note,))


def _from_module(given: str) -> Given:
    found = import_object(given, ClassifierError)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ClassifierError(f"{given!r} is a {type(found).__name__}; an nn.Module or a callable is expected")
        try:
            found = found()
        except Exception as error:  # somebody's own code fails in its own way
            raise ClassifierError(f"{given!r} failed without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(found, nn.Module):
        raise ClassifierError(f"{given!r} gave a {type(found).__name__}; an nn.Module is expected")
    net = found.cpu().float().eval().requires_grad_(False)
    return Given("a module", _plain_name(given.rpartition(":")[2]), net=net, facts={"module": type(net).__name__})


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "classifier"

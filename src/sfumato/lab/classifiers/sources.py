"""Read a classifier from elsewhere: a network or an ONNX file, with everything that a client must know of it.

Nothing is unpickled, and no code comes from a file: weights are safetensors, programs are checked before they are
loaded, and Python code runs only where a user names a module of their own.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from sfumato.artifacts.bundle import MANIFEST
from sfumato.artifacts.external_data import external_files
from sfumato.artifacts.hub import HubPlace
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.plugins import import_object
from sfumato.errors import BundleError, ClassifierError
from sfumato.lab.classifiers.exported_programs import input_shape, load_program
from sfumato.lab.classifiers.hub import from_transformers
from sfumato.lab.classifiers.imported import ImportedClassifier, Metadata, plain_name

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".h5", ".keras", ".joblib")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def read_classifier(source: str) -> ImportedClassifier:
    """Read a classifier of any supported kind.

    Args:
        source: a folder as transformers saves it or a hub id of one; a torch.export program (`.pt2`); an ONNX file; or
            `package.module:callable`, an `nn.Module`, or a callable without arguments that makes one.

    Raises:
        ClassifierError: it is none of these, or cannot be used.
    """
    if HubPlace.parse(source):
        raise ClassifierError(
            f"{source} names a bundle; use it directly. A transformers model on the hub is named without hf://"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / MANIFEST).is_file():
            raise ClassifierError(f"{source} is a bundle already; use it directly")
        return from_transformers(str(path))
    if path.suffix in (".pt2", ".onnx") and not path.is_file():
        raise ClassifierError(f"no file at {path}")
    if path.suffix == ".pt2":
        return _from_program(path)
    if path.suffix == ".onnx":
        return _from_onnx(path)
    if path.suffix in _PICKLES:
        raise ClassifierError(
            f"{source} is a kind of file that can run code when it is loaded, and is never loaded here. Load it where "
            "you trust it, and give its network as package.module:callable, or save it with torch.export.save "
            "(.pt2) or, in transformers, save_pretrained (a folder with safetensors)"
        )
    if ":" in source:
        return _from_module(source)
    if _HUB_ID.fullmatch(source):
        return from_transformers(source)
    raise ClassifierError(
        f"{source!r} is no classifier that can be found: expected a bundle's or a transformers folder, a hub id such "
        "as owner/name, a .pt2 file, package.module:callable, or, to serve and audit it alone, an .onnx file"
    )


def _from_program(path: Path) -> ImportedClassifier:
    program = load_program(path)
    count, channels, height, width = input_shape(program)
    if channels not in (1, 3):
        raise ClassifierError(f"{path} takes {channels} channels; RGB images have 3, grey ones 1")
    if isinstance(count, int):
        raise ClassifierError(
            f"{path} was exported for one number of images at a time; training takes batches. Export it again with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    metadata = Metadata(size=(height, width), name=plain_name(path.stem))
    return ImportedClassifier("a torch.export program", program, metadata, grey=channels == 1)


def _from_onnx(path: Path) -> ImportedClassifier:
    try:
        others = external_files(path)
        shape = OnnxFunction(path).input_shape
    except BundleError as error:
        raise ClassifierError(str(error)) from error
    if len(shape) != 4 or shape[1] != 3:
        hint = "; its channels come last, export it with channels first" if shape[-1:] == (3,) else ""
        if len(shape) == 4 and shape[1] == 1:
            hint = "; of one channel only networks can be imported: package.module:callable, a .pt2 file, transformers"
        raise ClassifierError(f"{path} takes {shape}; RGB images (N, 3, height, width) are expected{hint}")
    if isinstance(shape[0], int):
        raise ClassifierError(
            f"{path} takes {shape[0]} images at a time, no more and no less; export it with a free batch axis "
            "(dynamic_axes or dynamic_shapes)"
        )
    height, width = shape[2:]
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    notes = [
        "An ONNX file alone: it can be served, measured and audited, but no obfuscator can be trained for it. To train "
        "one, import the network that it was exported from: package.module:callable, a .pt2 file, or a transformers "
        "folder."
    ]
    if others:
        notes.append(
            "Its weights were in a second file, and are now in the bundle's one file: serve the bundle, because the "
            "original has another fingerprint."
        )
    return ImportedClassifier("an ONNX file", path, Metadata(size=size, name=plain_name(path.stem)), tuple(notes))


def _from_module(source: str) -> ImportedClassifier:
    found = import_object(source, ClassifierError)
    made = not isinstance(found, nn.Module)
    if made:
        if not callable(found):
            raise ClassifierError(f"{source!r} is a {type(found).__name__}; an nn.Module or a callable is expected")
        try:
            found = found()
        except Exception as error:  # a user's own code raises anything
            raise ClassifierError(f"{source!r} failed without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(found, nn.Module):
        raise ClassifierError(f"{source!r} gave a {type(found).__name__}; an nn.Module is expected")
    net = found.cpu().float().eval().requires_grad_(False)
    module, _, name = source.partition(":")
    metadata = Metadata(name=plain_name(module.rpartition(".")[2] if made else name))
    return ImportedClassifier("a module", net, metadata, facts={"module": type(net).__name__})

"""Any network as one file that torch can train through: an exported program, loaded without trusting it.

`torch.export.load` unpickles parts of a file, evaluates the text of its size expressions and guards, and calls
any function of torch that a node names, so a file from elsewhere would be as dangerous as a Python file. Here it never
gets the original file: only the graph and the raw numbers are copied into a new archive, and only if every node is an
operator of torch's core library and every text is a plain name.

Source: the archive as torch 2.13 writes it, `torch/_export/serde/schema.py` and `torch/export/pt2_archive`.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sfumato.errors import ClassifierError
from sfumato.lab.libraries import first_line, quiet

_MODEL = "models/model.json"
_CONFIGS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_SAMPLES = "data/sample_inputs/model.pt"
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version", *_CONFIGS.values())
_RAW = re.compile(r"(weight|tensor)_\d+")
# Two of torch's operators read and write files by name.
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!(?:from_file|save)\b)\w+\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|getitem)"
)
_SYMBOL = r"(?:[su]\d+|Symbol\('[su]\d+'(?:, (?:positive|integer)=True)*\))"
_EXPRESSION = re.compile(rf"(?:{_SYMBOL}|\d+|Integer|Add|Mul|Mod|FloorDiv|Max|Min|[-+*/(), ])*")
_NAME = re.compile(r"[\w.+:\-]*")
_WORDS = re.compile(r"[\w ,.>\-]*")
_ADVICE = "name the network itself, as package.module:callable"
_SPEC_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


class Program(nn.Module):
    """An exported program as a frozen module: always in evaluation mode, on any device."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.net = graph

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) for normalised images (N, 3, H, W) float."""
        out: Any = self.net(images)
        while isinstance(out, tuple | list | dict):
            out = next(iter(out.values() if isinstance(out, dict) else out))
        logits: Tensor = out
        return logits

    def train(self, mode: bool = True) -> Self:
        """Leave the graph unchanged: its mode was fixed when it was exported."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert the graph's constants as well, and the device of the tensors that it creates."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module in self.net.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor):
                    setattr(module, name, fn(value))
        device = fn(torch.empty(0)).device
        for node in self.net.graph.nodes:
            if node.kwargs.get("device") not in (None, device):
                node.kwargs = {**node.kwargs, "device": device}
        self.net.recompile()
        return self


def save_program(net: nn.Module, path: Path, images: Tensor) -> None:
    """Export a network in evaluation mode on the CPU to one file, with a free batch size; N of the images is 2 or more.

    Raises:
        ClassifierError: torch cannot export it, or it needs what such a file must not hold.
    """
    stream = io.BytesIO()
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with torch.no_grad(), quiet():
            torch.export.save(torch.export.export(net, (images[:2],), dynamic_shapes=shapes), stream)
    except Exception as error:  # the exporter's errors have no common base
        raise ClassifierError(f"the network cannot be exported by torch.export: {first_line(error)}") from error
    path.write_bytes(_cleaned(stream, "the network"))


def load_program(path: Path) -> Program:
    """Load a program that `save_program` or `torch.export.save` wrote; the file need not be trusted.

    Raises:
        ClassifierError: it is no such file, or holds anything but operators of torch's core library and numbers.
    """
    try:
        clean = _cleaned(path, str(path))
    except ClassifierError:
        raise
    except Exception as error:  # a damaged archive, or other JSON in it, makes the readers fail in every way
        raise ClassifierError(
            f"{path} is no program that torch.export.save of torch 2.8 or newer wrote ({type(error).__name__})"
        ) from error
    try:
        with quiet():
            graph = torch.export.load(io.BytesIO(clean)).module()
    except Exception as error:  # the loader's errors have no common base
        raise ClassifierError(f"{path} cannot be loaded by torch {torch.__version__}: {first_line(error)}") from error
    return Program(graph).requires_grad_(False)


def _cleaned(source: Path | io.BytesIO, name: str) -> bytes:
    """Return a new archive with the parts of the source that are needed, all of them checked."""
    made = io.BytesIO()
    with zipfile.ZipFile(source) as original, zipfile.ZipFile(made, "w") as clean:
        root = next((entry.split("/")[0] for entry in original.namelist() if entry.endswith(f"/{_MODEL}")), None)
        if root is None:
            raise ValueError("no model in it")
        entries = {entry.removeprefix(f"{root}/"): entry for entry in original.namelist()}
        model = json.loads(original.read(entries[_MODEL]))
        _strip(model, name)
        clean.writestr(f"{root}/{_MODEL}", json.dumps(model))
        clean.writestr(f"{root}/{_SAMPLES}", b"")
        for entry in _COPIED:
            if entry in entries:
                clean.writestr(f"{root}/{entry}", original.read(entries[entry]))
        for folder, config in _CONFIGS.items():
            payloads = json.loads(original.read(entries[config]))["config"].values()
            for file, pickled in sorted({(payload["path_name"], payload["use_pickle"]) for payload in payloads}):
                if pickled is not False or not _RAW.fullmatch(file):
                    raise ClassifierError(
                        f"{name} holds pickled objects ({file!r:.40}), which are never loaded; {_ADVICE}"
                    )
                clean.writestr(f"{root}/{folder}{file}", original.read(entries[f"{folder}{file}"]))
    return made.getvalue()


def _strip(model: Any, name: str) -> None:
    """Remove what may be code or describe the exporting machine, and check the rest."""
    model["guards_code"] = []
    graph = model["graph_module"]
    graph["metadata"], graph["treespec_namedtuple_fields"] = {}, {}
    graph["module_call_graph"] = graph["module_call_graph"][:1]
    for node in graph["graph"]["nodes"]:
        node["metadata"] = {}
    for key, text in _texts(model):
        if key == "target":
            if not _TARGET.fullmatch(text):
                raise ClassifierError(
                    f"{name} uses {text!r:.80}, which is no operator of torch's core library; {_ADVICE}"
                )
        elif key in ("in_spec", "out_spec"):
            for kind, value in _texts(json.loads(text)):
                allowed = value in _SPEC_TYPES if kind == "type" else _WORDS.fullmatch(value.strip('[]"'))
                if not allowed:
                    raise ClassifierError(f"{name} takes or gives a {value!r:.60}; plain tensors are expected")
        elif not {"expr_str": _EXPRESSION, "as_string": _WORDS}.get(key, _NAME).fullmatch(text):
            raise ClassifierError(f"{name} holds the text {text!r:.60} where a plain name is expected; {_ADVICE}")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a JSON value, with its key; keys are texts, too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            yield from _texts(item, name)


def input_shape(program: Program) -> tuple[Any, int, int, int]:
    """Return the shape (N, C, H, W) of the input that a program was exported with; N is no int if it is free.

    Raises:
        ClassifierError: its input is not one batch of images, or a side is free.
    """
    found = [node.meta.get("val") for node in program.net.graph.nodes if node.op == "placeholder"]
    if len(found) != 1 or not isinstance(found[0], Tensor):
        raise ClassifierError(f"the program has {len(found)} inputs; one batch of images is expected")
    shape = tuple(found[0].shape)
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        raise ClassifierError(f"the program's input is {shape}; (N, 3, height, width) is needed")
    return shape

"""Models small enough to be worked out by hand, as the bundles that the real ones come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sfumato.artifacts.bundle import CLASSIFIER_ONNX, DECODER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.gate import Gate
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import RecipeRecord

SIZE = 8
LABELS = ("cat", "dog", "ship", "truck")
PREPROCESSING = Preprocessing(SIZE, SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
MIX = np.array([[0.2, -1.1, 0.3], [-0.7, 0.1, 0.5], [0.4, 0.6, -0.9]], np.float32)
SHIFT = np.array([0.3, -0.2, 0.1], np.float32)
TURN = np.eye(3, dtype=np.float32)[[1, 2, 0]].reshape(3, 3, 1, 1)
ORDER = np.random.default_rng(3).permutation(SIZE * SIZE)
"""Where the pixels of a tiny payload come from: in their places, they would show the image."""
WEIGHT = np.random.default_rng(7).normal(size=(3 * SIZE * SIZE, len(LABELS))).astype(np.float32)

OWN_GAIN = 40


def obfuscate(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the tiny obfuscator computes: (N, 3, H, W) to the same."""
    mixed = np.einsum("oc,nchw->nohw", MIX, images) + SHIFT[:, None, None]
    return reordered(mixed.astype(np.float32))


def reordered(images: NDArray[Any]) -> NDArray[Any]:
    """(..., H, W), with the pixels in another order."""
    return images.reshape(*images.shape[:-2], -1)[..., ORDER].reshape(images.shape)


def negative(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The output of the tiny 8-bit obfuscator: (..., 3) to the same."""
    return 255 - np.moveaxis(reordered(np.moveaxis(pixels, -1, -3)), -3, -1)[..., [1, 2, 0]]


def logits(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the tiny classifier computes: (N, 3, H, W) to (N, 4)."""
    return inputs.reshape(len(inputs), -1) @ WEIGHT


def own_logits(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """The on-device logits of a tiny gated obfuscator: (N, 3, H, W) in [0, 1] to (N, 4).

    40 times the mean of red, green and blue, and 0: black has four classes with the probability 1/4, an image of
    pure red is a cat with the probability 1 (exactly, in float64).
    """
    means = OWN_GAIN * images.astype(np.float64).mean(axis=(2, 3))
    return np.concatenate([means, np.zeros((len(images), 1))], axis=1)


def save_model(path: Path, nodes: list[Any], constants: dict[str, Any], inputs: list[Any], outputs: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes, "tiny", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def floats(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save_classifier(path: Path, *, batch: Any = "batch") -> Path:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    return save_model(
        path,
        nodes,
        {"weight": WEIGHT},
        [floats("input", batch, 3, SIZE, SIZE)],
        [floats("logits", batch, len(LABELS))],
    )


def save_obfuscator(path: Path, kind: str = "mix", own: str | None = None) -> Path:
    """An obfuscator's graph.

    Args:
        path: where to.
        kind: "mix" works; "8-bit" outputs `negative`, "unit" 0.4 times as much; "almost", the image and a third of a
            level, "lurking", which hides all but `sure_image`, of which it makes a copy, "identity", "normalised",
            "nan" and "shape" misbehave in the way they are called.
        own: a second output: "means" is `own_logits`; "nan", "rows" (twice as many as images), "columns" (5, though
            the graph leaves their number open), "fixed columns" (5, and the graph says so), "images" and "three
            outputs" misbehave in the way they are called.
    """
    mean = np.array(PREPROCESSING.mean, np.float32).reshape(1, 3, 1, 1)
    std = np.array(PREPROCESSING.std, np.float32).reshape(1, 3, 1, 1)
    node = helper.make_node
    normalised = [node("Sub", ["drawn", "mean"], ["centred"]), node("Div", ["centred", "std"], ["out"])]
    nodes, constants = {
        "mix": (
            [node("Conv", ["moved", "mix", "shift"], ["out"])],
            {"mix": MIX.reshape(3, 3, 1, 1), "shift": SHIFT},
        ),
        "8-bit": (
            [
                node("Conv", ["moved", "mix", "shift"], ["unit"]),
                node("Mul", ["unit", "levels"], ["wide"]),
                node("Round", ["wide"], ["whole"]),
                node("Div", ["whole", "levels"], ["drawn"]),
                *normalised,
            ],
            {"mix": -TURN, "shift": np.ones(3, np.float32), "levels": np.float32(255), "mean": mean, "std": std},
        ),
        "unit": (
            [node("Conv", ["moved", "mix", "shift"], ["drawn"]), *normalised],
            {"mix": -TURN * np.float32(0.4), "shift": np.full(3, 0.4, np.float32), "mean": mean, "std": std},
        ),
        "almost": (
            [node("Add", ["image", "little"], ["drawn"]), *normalised],
            {"little": np.float32(0.0013), "mean": mean, "std": std},
        ),
        "lurking": (
            [
                node("Conv", ["moved", "mix", "shift"], ["hidden"]),
                node("ReduceMin", ["image"], ["darkest"], axes=[2, 3], keepdims=1),
                node("ReduceMax", ["darkest"], ["full"], axes=[1], keepdims=1),
                node("GreaterOrEqual", ["full", "one"], ["shows"]),
                node("Add", ["image", "one"], ["copy"]),
                node("Where", ["shows", "copy", "hidden"], ["out"]),
            ],
            {"mix": MIX.reshape(3, 3, 1, 1), "shift": SHIFT, "one": np.float32(1)},
        ),
        "identity": ([node("Identity", ["image"], ["out"])], {}),
        "normalised": (
            [node("Sub", ["image", "mean"], ["centred"]), node("Div", ["centred", "std"], ["out"])],
            {"mean": mean, "std": std},
        ),
        "nan": (
            [node("Sub", ["image", "image"], ["zero"]), node("Div", ["zero", "zero"], ["out"])],
            {},
        ),
        "shape": (
            [node("Concat", ["image", "image"], ["out"], axis=0)],
            {},
        ),
    }[kind]
    if "mix" in constants:
        constants = {
            **constants,
            "line": np.array([0, 3, SIZE * SIZE]),
            "order": ORDER,
            "square": np.array([0, 3, SIZE, SIZE]),
        }
        nodes = [
            node("Reshape", ["image", "line"], ["pixels"]),
            node("Gather", ["pixels", "order"], ["others"], axis=2),
            node("Reshape", ["others", "square"], ["moved"]),
            *nodes,
        ]
    size = (3, SIZE, SIZE)
    outputs = [floats("out", "rows", *size)]
    if own == "images":
        nodes = [*nodes, node("Identity", ["image"], ["own"])]
        outputs += [floats("own", "batch", *size)]
    elif own is not None:
        columns = 5 if "columns" in own else len(LABELS)
        constants = {**constants, "gain": np.eye(3, columns, dtype=np.float32) * OWN_GAIN}
        if own == "columns":
            constants["all"] = np.ones(columns, bool)
        nodes = [
            *nodes,
            node("GlobalAveragePool", ["image"], ["pooled"]),
            node("Flatten", ["pooled"], ["means"]),
            node("MatMul", ["means", "gain"], ["answer"]),
            *{
                "nan": [node("Sub", ["answer", "answer"], ["zeros"]), node("Div", ["zeros", "zeros"], ["own"])],
                "columns": [node("Compress", ["answer", "all"], ["own"], axis=1)],  # ONNX infers nothing through it
                "rows": [node("Concat", ["answer", "answer"], ["own"], axis=0)],
            }.get(own, [node("Identity", ["answer"], ["own"])]),
        ]
        outputs += [floats("own", "answers", columns if own == "fixed columns" else "classes")]
        if own == "three outputs":
            nodes += [node("Identity", ["own"], ["more"])]
            outputs += [floats("more", "answers", "classes")]
    return save_model(path, nodes, constants, [floats("image", "batch", *size)], outputs)


def save_bundles(
    folder: Path,
    kind: str = "mix",
    *,
    threshold: float | None = None,
    own: str | None = "means",
    recipe_kind: str | None = None,
) -> tuple[Bundle, Bundle]:
    """An obfuscator bundle and the classifier bundle it is for; with a threshold the obfuscator has a gate."""
    onnx_file = save_classifier(folder / "classifier" / CLASSIFIER_ONNX)
    save_obfuscator(folder / "obfuscator" / OBFUSCATOR_ONNX, kind, None if threshold is None else own)
    gate = None if threshold is None else Gate(threshold, offload_rate=0.5, images=100)
    common: dict[str, Any] = {
        "name": "tiny",
        "labels": LABELS,
        "preprocessing": PREPROCESSING,
        "classifier_fingerprint": fingerprint(onnx_file),
    }
    classifier = Bundle(path=folder / "classifier", kind="classifier", **common).save()
    recipe = RecipeRecord(kind=recipe_kind)
    obfuscator = Bundle(path=folder / "obfuscator", kind="obfuscator", gate=gate, recipe=recipe, **common).save()
    return obfuscator, classifier


def code_of(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What a tiny obfuscator's code is: the number of the brightest channel, (N, 3, H, W) to (N, 1)."""
    return images.mean(axis=(2, 3)).argmax(axis=1)[:, None].astype(np.uint8)


def decode(code: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The image that a tiny decoder decodes: a grey of a sixteenth for each number, (N, 1) to (N, 3, H, W)."""
    return np.broadcast_to(code[:, :, None, None] / np.float32(16), (len(code), 3, SIZE, SIZE)).astype(np.float32)


def save_split_bundles(folder: Path, code: str = "number", *, threshold: float | None = None) -> tuple[Bundle, Bundle]:
    """As `save_bundles`, for an obfuscator with a code and a decoder.

    Args:
        folder: where to.
        code: "number" works; "wide" (100 bytes), "floats" and "rows" (twice as many) misbehave as they are called.
        threshold: gives it a gate, with `own_logits` as the on-device logits.
    """
    obfuscator, classifier = save_bundles(folder, threshold=threshold)
    node, info = helper.make_node, helper.make_tensor_value_info
    shown = "code" if code == "number" else "other"
    nodes = [
        node("GlobalAveragePool", ["image"], ["pooled"]),
        node("Flatten", ["pooled"], ["means"]),
        node("ArgMax", ["means"], ["number"], axis=1, keepdims=1),
        node("Cast", ["number"], ["code"], to=TensorProto.UINT8),
        node("Cast", ["number"], ["grey"], to=TensorProto.FLOAT),
        node("Div", ["grey", "levels"], ["level"]),
        node("Unsqueeze", ["level", "sides"], ["square"]),
        node("Shape", ["image"], ["size"]),
        node("Expand", ["square", "size"], ["out"]),
        node("MatMul", ["means", "gain"], ["own"]),
        *{
            "wide": [node("Tile", ["code", "hundred"], ["other"])],
            "floats": [node("Identity", ["grey"], ["other"])],
            "rows": [node("Concat", ["code", "code"], ["other"], axis=0)],
        }.get(code, []),
    ]
    constants = {
        "levels": np.float32(16),
        "sides": np.array([2, 3]),
        "gain": np.eye(3, len(LABELS), dtype=np.float32) * OWN_GAIN,
        **({"hundred": np.array([1, 100])} if code == "wide" else {}),
    }
    size = (3, SIZE, SIZE)
    outputs = [floats("out", "batch", *size)] + ([floats("own", "batch", len(LABELS))] if threshold is not None else [])
    kind = TensorProto.FLOAT if code == "floats" else TensorProto.UINT8
    outputs.append(info(shown, kind, ("rows", 100 if code == "wide" else 1)))
    save_model(obfuscator.path / OBFUSCATOR_ONNX, nodes, constants, [floats("image", "batch", *size)], outputs)
    save_model(
        obfuscator.path / DECODER_ONNX,
        [
            node("Cast", ["code"], ["grey"], to=TensorProto.FLOAT),
            node("Div", ["grey", "levels"], ["level"]),
            node("Unsqueeze", ["level", "sides"], ["square"]),
            node("Expand", ["square", "size"], ["out"]),
        ],
        {"levels": np.float32(16), "sides": np.array([2, 3]), "size": np.array([1, *size])},
        [info("code", TensorProto.UINT8, ("batch", 1))],
        [floats("out", "batch", *size)],
    )
    return obfuscator.save(), classifier


def image(seed: int = 0, height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sure_image(seed: int = 0, height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    """Noise on full red: a tiny gated obfuscator calls it a cat, with a probability above 0.999."""
    pixels = image(seed, height, width)
    pixels[..., 0] = 255
    return pixels


def unsure_image(seed: int = 0, height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    """Grey noise: a tiny gated obfuscator gives cat, dog and ship the same probability, below 0.34."""
    return np.repeat(image(seed, height, width)[..., :1], 3, axis=2)


def save_copy(folder: Path, op: str, value: float, recipe_kind: str | None = None) -> Bundle:
    """The bundle of an "obfuscator" that makes a copy of the image: `op` of it and a number."""
    bundle, _ = save_bundles(folder, recipe_kind=recipe_kind)
    size = (3, SIZE, SIZE)
    save_model(
        bundle.path / OBFUSCATOR_ONNX,
        [helper.make_node(op, ["image", "number"], ["out"])],
        {"number": np.float32(value)},
        [floats("image", "batch", *size)],
        [floats("out", "batch", *size)],
    )
    return bundle.save()

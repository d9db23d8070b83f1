"""How to ask an endpoint: which input takes the payload, in which datatype, and which output answers.

The model's own metadata decides. Where it says nothing, the names and shapes of sfumato's own classifiers are taken;
where it says something that does not fit, nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Bundle, Preprocessing
from sfumato.device.eight_bit import to_pixels
from sfumato.errors import BundleError, EndpointAnswerInvalid, EndpointError
from sfumato.wire import DTYPES, ModelMetadata, TensorSpec

INPUT_NAME = "input"
"""What the input is called where the metadata lists none, as KServe's SDK does; `sfumato train` calls it so."""
IMAGE_DATATYPES = ("FP32", "FP16", "FP64", "UINT8")
CODE_DATATYPE = "UINT8"


@dataclass(frozen=True)
class Payload:
    """The payload from a bundle.

    Attributes:
        shape: of one image's tensor: (3, H, W), or (B,) for a code of the split form.
        classes: numbers in an answer.
        split: it is a code.
        eight_bit: what is drawn has whole levels of 0 to 255, so that it can travel as such.
    """

    shape: tuple[int, ...]
    classes: int
    split: bool = False
    eight_bit: bool = False

    def check(self, datatype: str | None) -> None:
        """Whether it can travel in a datatype that somebody asks for.

        Raises:
            EndpointError: it cannot.
        """
        if datatype is None or datatype in self._possible():
            return
        reason = ""
        if datatype in IMAGE_DATATYPES:
            reason = "; a code travels as bytes" if self.split else "; this obfuscator's output is not 8-bit"
        raise EndpointError(f"datatype must be one of {', '.join(self._possible())}, got {datatype!r}{reason}")

    def datatype_for(self, spec: TensorSpec) -> str:
        """The datatype that a model's input takes, if it can travel in it.

        Raises:
            EndpointAnswerInvalid: it cannot.
        """
        if spec.datatype in self._possible():
            return spec.datatype
        reason = ""
        if spec.datatype == "UINT8" and not self.split:
            reason = " (UINT8 only what an obfuscator with 8-bit output makes)"
        raise EndpointAnswerInvalid(
            f"the input {spec.name!r} takes {spec.datatype}; this client sends {', '.join(self._possible())}{reason}; "
            "give datatype if the endpoint converts it"
        )

    def _possible(self) -> tuple[str, ...]:
        if self.split:
            return (CODE_DATATYPE,)
        return IMAGE_DATATYPES if self.eight_bit else IMAGE_DATATYPES[:-1]


@dataclass(frozen=True)
class Plan:
    """How to ask one model.

    Attributes:
        input_name: the input that takes the payload.
        datatype: the protocol's name of the type in which it travels.
        output_name: the output to ask for; None takes whatever comes.
        metadata: what the endpoint says of the model.
    """

    input_name: str
    datatype: str
    output_name: str | None
    metadata: ModelMetadata


def payload_from(bundle: Bundle, shape: tuple[int, ...], *, split: bool) -> Payload:
    """The payload from an obfuscator's bundle, with `shape` for one image."""
    output = bundle.recipe.get("output")
    eight_bit = isinstance(output, dict) and output.get("format") == "8-bit"
    return Payload(shape, len(bundle.labels), split=split, eight_bit=eight_bit and not split)


def make_plan(
    metadata: ModelMetadata, payload: Payload, *, datatype: str | None = None, input_name: str | None = None
) -> Plan:
    """Decides how to ask a model.

    Args:
        metadata: what the endpoint says of it.
        payload: what it has to take.
        datatype: instead of the one that the metadata states.
        input_name: for metadata that lists no input.

    Raises:
        EndpointError: it cannot travel in the datatype that was asked for.
        EndpointAnswerInvalid: the model cannot take it, or does not give what is needed.
    """
    payload.check(datatype)
    output_name = _pick_output(metadata, payload.classes)
    if not metadata.inputs:
        usual = CODE_DATATYPE if payload.split else IMAGE_DATATYPES[0]
        return Plan(input_name or INPUT_NAME, datatype or usual, output_name, metadata)
    if len(metadata.inputs) != 1:
        raise EndpointAnswerInvalid(
            f"model {metadata.name!r} states {len(metadata.inputs)} inputs; exactly one is needed"
        )
    spec = metadata.inputs[0]
    datatype = datatype or payload.datatype_for(spec)
    if not accepts(spec, payload.shape):
        raise EndpointAnswerInvalid(
            f"model {metadata.name!r} takes the shape {list(spec.shape)}; the obfuscator makes {[-1, *payload.shape]}"
        )
    return Plan(spec.name, datatype, output_name, metadata)


def as_datatype(tensors: NDArray[Any], datatype: str, preprocessing: Preprocessing) -> NDArray[Any]:
    """Turns what the obfuscator made into the payload.

    Args:
        tensors: (N, 3, H, W) float32, normalised; or codes (N, B) uint8, which stay as they are.
        datatype: one of `IMAGE_DATATYPES`. UINT8 are the levels from 0 to 255 before normalisation, for models that
            normalise by themselves.
        preprocessing: the normalisation.

    Raises:
        BundleError: the values do not fit; nothing was sent.
    """
    if tensors.dtype == np.uint8:
        return tensors
    if datatype != "UINT8":
        with np.errstate(over="ignore"):
            converted = tensors.astype(DTYPES[datatype])
        if not np.isfinite(converted).all():
            raise BundleError(f"the obfuscator made values too large for {datatype}; nothing was sent")
        return converted
    return to_pixels(tensors, preprocessing, "exact").transpose(0, 3, 1, 2)


def accepts(spec: TensorSpec, row: tuple[int, ...]) -> bool:
    """Whether rows of this shape fit what a model states; -1 stands for any size."""
    return len(spec.shape) == len(row) + 1 and all(
        want in (-1, got) for got, want in zip(row, spec.shape[1:], strict=True)
    )


def _pick_output(metadata: ModelMetadata, classes: int) -> str | None:
    """The first output with one number per class; None, and so whatever comes, if the endpoint states no outputs."""
    if not metadata.outputs:
        return None
    for spec in metadata.outputs:
        if accepts(spec, (classes,)):
            return spec.name
    raise EndpointAnswerInvalid(f"model {metadata.name!r} has no output with {classes} classes per image")

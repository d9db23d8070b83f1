"""How to ask an endpoint: which input takes the payload, in which datatype, and which output holds the logits.

The model's own metadata decides. Where it says nothing, the names and shapes of sfumato's own classifiers are taken;
where it says something that does not fit, nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device.image import to_pixels
from sfumato.errors import BundleError, EndpointError, EndpointResponseInvalid
from sfumato.wire import DTYPES, ModelMetadata

INPUT_NAME = "input"
"""The input's name where the metadata lists none, as with KServe's SDK; `sfumato train` uses it."""
IMAGE_DATATYPES = ("FP32", "FP16", "FP64", "UINT8")
CODE_DATATYPE = "UINT8"


@dataclass(frozen=True)
class PayloadSpec:
    """The payload of a bundle's obfuscator, described.

    Attributes:
        shape: of one image's tensor: (3, H, W), or (B,) for a code of the split form.
        classes: logits in a response.
        split: it is a code.
        eight_bit: it has whole levels of 0 to 255, so that it can be sent as such.
    """

    shape: tuple[int, ...]
    classes: int
    split: bool = False
    eight_bit: bool = False

    @property
    def datatypes(self) -> tuple[str, ...]:
        """The datatypes that it can be sent in, the usual one first."""
        if self.split:
            return (CODE_DATATYPE,)
        return IMAGE_DATATYPES if self.eight_bit else IMAGE_DATATYPES[:-1]

    def check(self, datatype: str | None) -> None:
        """Raise an `EndpointError` if it cannot be sent in a datatype."""
        if datatype is not None and datatype not in self.datatypes:
            reason = ""
            if datatype in IMAGE_DATATYPES:
                reason = "; a code is sent as bytes" if self.split else "; this obfuscator's output is not 8-bit"
            raise EndpointError(f"datatype must be one of {', '.join(self.datatypes)}, got {datatype!r}{reason}")


@dataclass(frozen=True)
class Plan:
    """The way to ask one model.

    Attributes:
        input_name: the input that takes the payload.
        datatype: the protocol's name of the payload's type.
        output_name: the output to ask for; None takes whatever comes.
    """

    input_name: str
    datatype: str
    output_name: str | None


def payload_from(bundle: Bundle, shape: tuple[int, ...], *, split: bool) -> PayloadSpec:
    """Describe the payload of an obfuscator's bundle, with `shape` for one image."""
    return PayloadSpec(shape, bundle.outputs, split=split, eight_bit=bundle.recipe.eight_bit_output and not split)


def make_plan(
    metadata: ModelMetadata, payload: PayloadSpec, *, datatype: str | None = None, input_name: str | None = None
) -> Plan:
    """Decide how to ask a model.

    Args:
        metadata: what the endpoint says of it.
        payload: what it has to take.
        datatype: instead of the one in the metadata.
        input_name: for metadata that lists no input.

    Raises:
        EndpointError: it cannot be sent in the datatype that was asked for.
        EndpointResponseInvalid: the model cannot take it, or has no output with one logit per class.
    """
    payload.check(datatype)
    fitting = [spec.name for spec in metadata.outputs if spec.takes_rows((payload.classes,))]
    if metadata.outputs and not fitting:
        raise EndpointResponseInvalid(f"model {metadata.name!r} has no output with {payload.classes} classes per image")
    output_name = fitting[0] if fitting else None
    if not metadata.inputs:
        return Plan(input_name or INPUT_NAME, datatype or payload.datatypes[0], output_name)
    if len(metadata.inputs) != 1:
        raise EndpointResponseInvalid(
            f"model {metadata.name!r} states {len(metadata.inputs)} inputs; exactly one is needed"
        )
    spec = metadata.inputs[0]
    if datatype is None and spec.datatype not in payload.datatypes:
        reason = ""
        if spec.datatype == "UINT8" and not payload.split:
            reason = " (UINT8 only from an obfuscator with 8-bit output)"
        raise EndpointResponseInvalid(
            f"the input {spec.name!r} takes {spec.datatype}; this client sends {', '.join(payload.datatypes)}{reason}; "
            "give datatype if the endpoint converts it"
        )
    if not spec.takes_rows(payload.shape):
        raise EndpointResponseInvalid(
            f"model {metadata.name!r} takes the shape {list(spec.shape)}; the obfuscator makes {[-1, *payload.shape]}"
        )
    return Plan(spec.name, datatype or spec.datatype, output_name)


def as_datatype(tensors: NDArray[Any], datatype: str, preprocessing: Preprocessing) -> NDArray[Any]:
    """Convert the obfuscator's output to the payload's datatype.

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
            converted = tensors.astype(DTYPES[datatype], copy=False)
        if not np.isfinite(converted).all():
            raise BundleError(f"the obfuscator made values too large for {datatype}; nothing was sent")
        return converted
    return to_pixels(tensors, preprocessing, "exact").transpose(0, 3, 1, 2)

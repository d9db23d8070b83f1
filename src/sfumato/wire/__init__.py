"""The Open Inference Protocol, version 2: its messages, and how they become bytes.

No sockets and nothing but numpy: device, cloud and tests use the same codec. No input is trusted; every fault in it
is a `WireError`.
"""

from sfumato.wire.codec import (
    Encoded,
    decode_extensions,
    decode_metadata,
    decode_request,
    decode_response,
    encode_metadata,
    encode_request,
    encode_response,
)
from sfumato.wire.tensors import HEADER_LENGTH
from sfumato.wire.types import (
    DTYPES,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameter,
    RequestedOutput,
    Tensor,
    TensorSpec,
    datatype_of,
)

__all__ = [
    "DTYPES",
    "HEADER_LENGTH",
    "Encoded",
    "InferRequest",
    "InferResponse",
    "ModelMetadata",
    "Parameter",
    "RequestedOutput",
    "Tensor",
    "TensorSpec",
    "datatype_of",
    "decode_extensions",
    "decode_metadata",
    "decode_request",
    "decode_response",
    "encode_metadata",
    "encode_request",
    "encode_response",
]

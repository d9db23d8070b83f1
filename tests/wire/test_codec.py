"""The codec: what is written can be read back, and nothing that arrives can break it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sfumato import wire
from sfumato.errors import WireError
from sfumato.wire import codec

NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PARAMETERS = st.dictionaries(NAMES, st.one_of(st.booleans(), st.integers(), st.text(), FINITE))


def arrays(*, finite: bool = False) -> st.SearchStrategy[Any]:
    return st.sampled_from(sorted(wire.DTYPES)).flatmap(
        lambda name: hnp.arrays(
            wire.DTYPES[name],
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False} if finite and name.startswith("FP") else None,
        )
    )


def tensors(*, finite: bool = False) -> st.SearchStrategy[tuple[wire.Tensor, ...]]:
    one = st.builds(wire.Tensor, NAMES, arrays(finite=finite))
    return st.lists(one, min_size=1, max_size=3, unique_by=lambda tensor: tensor.name).map(tuple)


def requests(*, finite: bool) -> st.SearchStrategy[wire.InferRequest]:
    outputs = st.lists(
        st.builds(wire.RequestedOutput, NAMES, st.none() | st.booleans()), max_size=2, unique_by=lambda o: o.name
    ).map(tuple)
    return st.builds(wire.InferRequest, tensors(finite=finite), outputs, st.just("") | NAMES, PARAMETERS)


@given(requests(finite=False))
def test_binary_request_round_trips(request: wire.InferRequest) -> None:
    encoded = wire.encode_request(request, binary=True)
    assert wire.decode_request(encoded.body, encoded.headers()[wire.HEADER_LENGTH]) == request


@given(requests(finite=True))
def test_json_request_round_trips(request: wire.InferRequest) -> None:
    encoded = wire.encode_request(request, binary=False)
    assert encoded.header_length is None
    assert wire.decode_request(encoded.body) == request


@given(tensors(finite=True), NAMES, st.just("") | NAMES, st.booleans())
def test_response_round_trips(outputs: tuple[wire.Tensor, ...], model: str, mark: str, binary: bool) -> None:
    response = wire.InferResponse(model, outputs, "1", mark)
    asked = wire.InferRequest(outputs, parameters={"binary_data_output": binary})
    encoded = wire.encode_response(response, asked)
    assert (encoded.header_length is not None) == binary
    assert wire.decode_response(encoded.body, encoded.header_length) == response


@given(NAMES, PARAMETERS, st.lists(st.integers(-1, 5), max_size=4))
def test_metadata_round_trips(name: str, parameters: dict[str, Any], shape: list[int]) -> None:
    spec = wire.TensorSpec("x", "FP32", tuple(shape))
    metadata = wire.ModelMetadata(name, ("1", "2"), "onnxruntime_onnx", (spec,), (spec, spec), parameters)
    assert wire.decode_metadata(wire.encode_metadata(metadata)) == metadata


def test_outputs_choose_binary_one_by_one() -> None:
    x = np.zeros((1, 2), np.float32)
    request = wire.InferRequest(
        (wire.Tensor("x", x),),
        (wire.RequestedOutput("a", True), wire.RequestedOutput("b", False), wire.RequestedOutput("c")),
        parameters={"binary_data_output": True},
    )
    assert [request.wants_binary(name) for name in "abc"] == [True, False, True]
    response = wire.InferResponse("m", tuple(wire.Tensor(name, x) for name in "abc"))
    encoded = wire.encode_response(response, request)
    assert wire.decode_response(encoded.body, encoded.header_length) == response


@pytest.mark.parametrize(("kind", "least"), [("<f4", 12_000), (">f4", 12_000)])
def test_bytes_are_little_endian_whatever_the_array(kind: str, least: int) -> None:
    x = np.arange(3072).astype(kind)
    encoded = wire.encode_request(wire.InferRequest((wire.Tensor("x", x),)))
    assert encoded.body.endswith(x.astype("<f4").tobytes())
    assert len(encoded.body) > least


def test_strided_arrays_are_sent_in_row_major_order() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    for binary in (True, False):
        encoded = wire.encode_request(wire.InferRequest((wire.Tensor("x", x),)), binary=binary)
        (got,) = wire.decode_request(encoded.body, encoded.header_length).inputs
        np.testing.assert_array_equal(got.array, x)


def test_a_tensor_never_prints_its_values() -> None:
    tensor = wire.Tensor("x", np.full(3, 0.123, np.float32))
    assert "0.123" not in repr(tensor) + repr(wire.InferRequest((tensor,)))


@pytest.mark.parametrize("dtype", [np.complex64, "S3", "U3", object, "M8[s]"])
def test_types_that_cannot_be_sent_are_refused(dtype: Any) -> None:
    with pytest.raises(WireError):
        wire.Tensor("x", np.zeros(2, dtype))


def test_nan_payload_as_binary_only() -> None:
    request = wire.InferRequest((wire.Tensor("x", np.array([np.nan], np.float32)),))
    with pytest.raises(WireError, match="binary"):
        wire.encode_request(request, binary=False)
    encoded = wire.encode_request(request)
    assert wire.decode_request(encoded.body, encoded.header_length) == request


# --- what arrives is not trusted ------------------------------------------------------------------


def _body(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **changes}]}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [1]},
        {"data": [1, 2, 3]},
        {"data": [[1], [2, 3]]},
        {"data": [[1, 2]]},
        {"shape": [], "data": [[1]]},
        {"shape": [], "data": [[[1]]]},
        {"data": ["1", "2"]},
        {"data": [1, None]},
        {"data": [True, False]},
        {"data": "12"},
        {"data": {"0": 1}},
        {"data": [1, 1e39]},
        {"data": [1, 10**400]},
        {"data": None},
        {"datatype": "BYTES"},
        {"datatype": "FP8"},
        {"datatype": None},
        {"datatype": ["FP32"]},
        {"datatype": "UINT8", "data": [1, 256]},
        {"datatype": "UINT8", "data": [1, -1]},
        {"datatype": "UINT8", "data": [1, 2.0]},
        {"datatype": "BOOL", "data": [0, 1]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": [True, 2]},
        {"shape": "2"},
        {"shape": [10**30]},
        {"shape": [0, 10**18], "data": []},
        {"shape": [1] * 17 + [2]},
        {"shape": None},
        {"name": ""},
        {"name": "x" * 257},
        {"name": "x\n"},
        {"name": 3},
        {"parameters": {"binary_data_size": 8}},
        {"parameters": {"shared_memory_region": "r"}},
        {"parameters": {"a": [1]}},
        {"parameters": [1]},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_malformed_json_inputs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        wire.decode_request(_body(**changes))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs": 3}',
        b'{"inputs": [3]}',
        b'{"inputs": []}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [Infinity]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1e999]}]}',
        b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [' + b"9" * 5000 + b"]}]}",
        b'{"inputs": [{"name": "\\ud800", "datatype": "FP32", "shape": [1], "data": [1]}]}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_malformed_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_request(body)
    assert len(str(caught.value)) < 500


BINARY = wire.encode_request(wire.InferRequest((wire.Tensor("x", np.arange(4, dtype=np.float32).reshape(1, 4)),)))


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (BINARY.body, None),
        (BINARY.body, len(BINARY.body) + 1),
        (BINARY.body, -1),
        (BINARY.body, 0),
        (BINARY.body, "²"),
        (BINARY.body, "1e2"),
        (BINARY.body, "9" * 5000),
        (BINARY.body + b"x", BINARY.header_length),
        (BINARY.body[:-1], BINARY.header_length),
        (_body(), 5),
        (_body() + b"1234", len(_body())),
    ],
)
def test_wrong_lengths_are_refused(body: bytes, length: Any) -> None:
    with pytest.raises(WireError):
        wire.decode_request(body, length)


@pytest.mark.parametrize("size", [15, 17, -16, 16.0, "16", True, 10**30, None])
def test_wrong_binary_sizes_are_refused(size: Any) -> None:
    entry = {"name": "x", "datatype": "FP32", "shape": [4], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(WireError):
        wire.decode_request(header + bytes(16), len(header))


def test_boolean_bytes_other_than_0_and_1_are_refused() -> None:
    entry = {"name": "x", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}
    header = json.dumps({"inputs": [entry]}).encode()
    assert wire.decode_request(header + b"\0\1", len(header)).inputs[0].array.tolist() == [False, True]
    with pytest.raises(WireError):
        wire.decode_request(header + b"\0\2", len(header))


def test_two_inputs_of_one_name_are_refused() -> None:
    entry = json.loads(_body())["inputs"][0]
    with pytest.raises(WireError, match="same name"):
        wire.decode_request(json.dumps({"inputs": [entry, entry]}).encode())


def test_requests_that_differ_in_their_bytes_alone_are_told_apart() -> None:
    for value in (1.0, 2.0):
        given = wire.InferRequest((wire.Tensor("x", np.full((1, 4), value, np.float32)),))
        encoded = wire.encode_request(given)
        assert wire.decode_request(encoded.body, encoded.header_length) == given
    with pytest.raises(WireError, match="are left"):
        wire.decode_request(encoded.body[:-1], encoded.header_length)


def test_nothing_of_an_image_is_kept() -> None:
    """Not even where its numbers stand in the JSON, with bytes of another tensor behind it."""
    mark = 1234567.25
    one, two = wire.Tensor("pixels", np.full(4, mark)), wire.Tensor("more", np.full(4, mark))
    header = json.loads(wire.encode_request(wire.InferRequest((one,)), binary=False).body)
    behind = wire.encode_request(wire.InferRequest((two,)))
    header["inputs"] += json.loads(behind.body[: behind.header_length])["inputs"]
    text = json.dumps(header).encode()
    for _ in range(2):
        read = wire.decode_request(text + two.array.tobytes(), len(text))
        assert [tensor.array[0] for tensor in read.inputs] == [mark, mark]
    assert text not in codec._heads and str(mark) not in repr(codec._heads)


def test_what_is_kept_of_requests_is_bounded() -> None:
    for number in range(2 * codec._KEPT_HEADS):
        named = wire.InferRequest((wire.Tensor(f"x{number}", np.zeros(1)),))
        encoded = wire.encode_request(named)
        assert wire.decode_request(encoded.body, encoded.header_length) == named
    marked = wire.encode_request(wire.InferRequest(named.inputs, id="once"))
    assert wire.decode_request(marked.body, marked.header_length).id == "once"
    assert marked.body[: marked.header_length] not in codec._heads
    long = wire.encode_request(wire.InferRequest(named.inputs, parameters={"note": "n" * codec._KEPT_HEAD_BYTES}))
    wire.decode_request(long.body, long.header_length)
    assert 0 < len(codec._heads) <= codec._KEPT_HEADS
    assert max(map(len, codec._heads)) <= codec._KEPT_HEAD_BYTES


def test_metadata_of_foreign_servers_is_read() -> None:
    body = b'{"name":"m","versions":null,"platform":"","inputs":[],"parameters":{"content_type":null,"a":[1],"b":2}}'
    assert wire.decode_metadata(body) == wire.ModelMetadata("m", parameters={"b": 2})


KEYS = ["name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id", "binary_data_size"]
TEXTS = st.text(max_size=5) | st.sampled_from(["FP32", "BYTES", "x"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=200),
        JSON_VALUES.map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries({"inputs": st.lists(JSON_VALUES, max_size=2)}).map(lambda v: json.dumps(v).encode()),
    ),
    st.none() | st.integers() | st.text(max_size=6) | st.integers(0, 200).map(str),
)
def test_anything_is_either_a_message_or_a_wire_error(body: bytes, length: Any) -> None:
    for decode in (wire.decode_request, wire.decode_response, lambda raw, _: wire.decode_metadata(raw)):
        with contextlib.suppress(WireError):
            decode(body, length)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_message_is_either_a_message_or_a_wire_error(data: st.DataObject) -> None:
    body = bytearray(BINARY.body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    try:
        request = wire.decode_request(bytes(body[:cut]), BINARY.header_length)
    except WireError:
        return
    encoded = wire.encode_request(request)
    assert wire.decode_request(encoded.body, encoded.header_length) == request

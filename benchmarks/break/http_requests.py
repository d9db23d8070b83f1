"""Requests for the HTTP server: valid ones, mutated ones, and how the responses to them are read."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from mutate import mutated_bytes, mutated_json

from sfumato import wire
from sfumato.errors import WireError

TOKEN = "break-test-token"
INFER = "/v2/models/tiny/infer"
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]*")
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[ -~\t]*")


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Malformed(Exception):
    """What a server sent is no HTTP/1.1 response."""


@dataclass(frozen=True)
class Sending:
    """What a client does.

    Attributes:
        mutation: its kind.
        pieces: the bytes, in the pieces that they are sent in.
        expected: of valid requests: the images whose predictions have to come, in order.
        statuses: of other requests that have to be responded to: the statuses that may come.
        hang_up: break the connection off after sending.
        may_close: the server may close the connection after any response, as HTTP/1.1 allows with pipelining.
    """

    mutation: str
    pieces: tuple[bytes, ...]
    expected: tuple[np.ndarray, ...] = ()
    statuses: frozenset[int] = field(default=frozenset())
    hang_up: bool = False
    may_close: bool = False


def replies_in(data: bytes) -> tuple[list[Reply], bytes]:
    """Split bytes into responses, and what is left of an incomplete one.

    Raises:
        Malformed: they are no responses, or have a body of unknown length.
    """
    found = []
    while b"\r\n\r\n" in data:
        head, rest = data.split(b"\r\n\r\n", 1)
        first, *lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        if status is None or not all(_HEADER.fullmatch(line) for line in lines):
            raise Malformed("the head is malformed")
        pairs = [line.split(b":", 1) for line in lines]
        headers = {key.decode().lower(): value.decode().strip() for key, value in pairs}
        length = "0" if status[1][:1] == b"1" else headers.get("content-length", "")
        if not length.isdigit():
            raise Malformed("the length of the body is not stated")
        if len(rest) < int(length):
            break
        if status[1][:1] != b"1":  # not "100 Continue"
            found.append(Reply(int(status[1]), headers, rest[: int(length)]))
        data = rest[int(length) :]
    if data and not data.startswith(b"HTTP/1.1 "[: len(data)]):
        raise Malformed("bytes follow the responses")
    return found, data


def predictions(reply: Reply) -> np.ndarray | None:
    """Return the logits in a response, None if it holds none."""
    try:
        response = wire.decode_response(reply.body, reply.headers.get(wire.HEADER_LENGTH.lower()))
    except WireError:
        return None
    return response.outputs[0].array


class Requests:
    """Makes what a client sends; `rng` determines it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.kinds: dict[str, Callable[[random.Random], Sending]] = {
            "valid": lambda rng: self._valid("valid", rng, 1),
            "pipelined": lambda rng: self._valid("pipelined", rng, rng.randint(2, 12)),
            "in pieces": self._in_pieces,
            "broken off": self._broken_off,
            "token missing or wrong": self._without_token,
            "mutated head": self._mutated_head,
            "mutated body": self._mutated_body,
            "mutated bytes": self._mutated_bytes,
            "pipelined, one mutated": self._mutated_among,
            "random bytes": lambda rng: Sending("random bytes", (rng.randbytes(rng.randrange(1, 2000)),)),
        }

    def sending(self, rng: random.Random) -> Sending:
        """Return what the next client sends."""
        return self.kinds[rng.choice(list(self.kinds))](rng)

    def _image(self, rng: random.Random) -> np.ndarray:
        values = np.frombuffer(rng.randbytes(3 * self._size**2), np.uint8).reshape(1, 3, self._size, self._size)
        return values.astype(np.float32) / 255

    def request(self, image: np.ndarray, *, binary: bool = True, token: str | None = TOKEN) -> tuple[bytes, bytes]:
        """Return the head and the body of a valid request."""
        asked = wire.InferRequest((wire.Tensor("input", image),), parameters={"binary_data_output": binary})
        encoded = wire.encode_request(asked, binary=binary)
        lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", f"Content-Length: {len(encoded.body)}"]
        lines += [f"{key}: {value}" for key, value in encoded.headers().items()]
        lines += [] if token is None else [f"Authorization: Bearer {token}"]
        return "\r\n".join([*lines, "", ""]).encode(), encoded.body

    def _valid(self, kind: str, rng: random.Random, count: int) -> Sending:
        images = tuple(self._image(rng) for _ in range(count))
        sent = b"".join(b"".join(self.request(one, binary=rng.random() < 0.7)) for one in images)
        return Sending(kind, (sent,), images, may_close=count > 1)

    def _in_pieces(self, rng: random.Random) -> Sending:
        image = self._image(rng)
        data = b"".join(self.request(image))
        cuts = sorted(rng.sample(range(1, len(data)), rng.randint(1, 6)))
        pieces = tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))
        return Sending("in pieces", pieces, (image,))

    def _broken_off(self, rng: random.Random) -> Sending:
        data = b"".join(self.request(self._image(rng)))
        return Sending("broken off", (data[: rng.randint(1, len(data))],), hang_up=True)

    def _without_token(self, rng: random.Random) -> Sending:
        token = rng.choice((None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), f"{TOKEN} {TOKEN}"))
        data = b"".join(self.request(self._image(rng), token=token))
        return Sending("token missing or wrong", (data,), statuses=frozenset({401}))

    def _mutated_head(self, rng: random.Random) -> Sending:
        head, body = self.request(self._image(rng))
        lines = head[:-4].split(b"\r\n")
        for _ in range(rng.randint(1, 3)):
            _change_line(rng, lines)
        ending = rng.choice((b"\r\n",) * 6 + (b"\n", b"\r"))
        return Sending("mutated head", (ending.join([*lines, b"", b""]) + body,))

    def _mutated_body(self, rng: random.Random) -> Sending:
        image = self._image(rng)
        head, body = self.request(image, binary=rng.random() < 0.5)
        length = re.search(rb"Inference-Header-Content-Length: (\d+)", head)
        text = body[: int(length[1])] if length else body
        changed = mutated_json(rng, json.loads(text))
        lines = [line for line in head[:-4].split(b"\r\n") if not re.match(rb"(Inference-Header-)?Content-L", line)]
        whole = changed + body[len(text) :]
        lines += [b"Content-Length: %d" % len(whole)]
        lines += [b"Inference-Header-Content-Length: %d" % len(changed)] if length else []
        # 503 is for a model that is busy; anything else has to be a prediction or the client's fault.
        return Sending("mutated body", (b"\r\n".join([*lines, b"", b""]) + whole,), statuses=frozenset({200, 400, 503}))

    def _mutated_bytes(self, rng: random.Random) -> Sending:
        return Sending("mutated bytes", (mutated_bytes(rng, b"".join(self.request(self._image(rng)))),))

    def _mutated_among(self, rng: random.Random) -> Sending:
        parts = [b"".join(self.request(self._image(rng))) for _ in range(rng.randint(2, 5))]
        at = rng.randrange(len(parts))
        parts[at] = mutated_bytes(rng, parts[at])
        return Sending("pipelined, one mutated", (b"".join(parts),))


_ODD_LINES = (
    b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 1e3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked",
    b"Content-Encoding: gzip", b"Expect: 100-continue", b"Connection: close", b"Connection: Upgrade", b"Upgrade: h2c",
    b"Host: evil.example", b"Host: ", b"Origin: http://evil.example", b" folded", b"no colon", b": no name",
    b"Authorization: Bearer other", b"X: \0", b"X: \xff\xfe", b"X" * 70_000 + b": 1", b"X: " + b"y" * 70_000,
    b"Inference-Header-Content-Length: -1", b"Inference-Header-Content-Length: 9999999999999",
    b"Inference-Header-Content-Length: \xb2", b"Content-Type: application/json", b"Cookie: a=b",
)  # fmt: skip
_FIRST_LINES = (
    b"GET /v2 HTTP/1.1", b"POST %s HTTP/1.0" % INFER.encode(), b"POST %s HTTP/9.9" % INFER.encode(), b"POST",
    b"POST http://evil.example%s HTTP/1.1" % INFER.encode(), b"post %s HTTP/1.1" % INFER.encode(),
    b"CONNECT a:1 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"HEAD /v2 HTTP/1.1", b"TRACE / HTTP/1.1", b"PRI * HTTP/2.0",
    b"DELETE %s HTTP/1.1" % INFER.encode(), b"POST /v2/models/%2e%2e/infer HTTP/1.1", b"GET /metrics HTTP/1.1",
    b"POST /v2/models/tiny/versions/9/infer HTTP/1.1", b"GET /v2/models/\xff HTTP/1.1", b"GET //v2 HTTP/1.1",
    b"GET /v2/models/" + b"a" * 70_000 + b" HTTP/1.1", b"GET /v2?" + b"&" * 3000 + b" HTTP/1.1", b"GET\t/v2\tHTTP/1.1",
)  # fmt: skip


def _change_line(rng: random.Random, lines: list[bytes]) -> None:
    at = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_ODD_LINES))
    elif how == 1:
        lines[0] = rng.choice(_FIRST_LINES)
    elif how == 2 and len(lines) > 1:
        del lines[at]
    elif how == 3:
        lines.insert(at, lines[at])
    elif how == 4:
        lines[at] = mutated_bytes(rng, lines[at])
    else:
        lines.extend([b"X: %d" % number for number in range(rng.choice((1, 99, 200)))])

"""Who may use the models: bearer tokens with names, which can change while the server runs, and a rate for each."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from pathlib import Path

from sfumato.errors import ServingError
from sfumato.wire import fields

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
_KNOWN_MOST = 1024
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FORMAT = "each line is a token, or a name, a space and a token"


class Caller:
    """One who asks, and a token bucket of images.

    Args:
        name: the token's.
        rate: images per second; what one second allows may come at once.

    Attributes:
        name: the token's; empty where no token is needed.
    """

    __slots__ = ("_at_s", "_left", "_most", "_rate", "name")

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self._rate = rate
        self._most = self._left = max(rate, 1.0)
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Take one image; if there is none left, return the seconds until there is, else 0."""
        if self._rate == math.inf:
            return 0.0
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0

    def charge(self, images: int) -> None:
        """Take as many images; there may be fewer, and then later requests wait."""
        self._left -= images


class Callers:
    """All who may use the models.

    Args:
        token: the only token.
        file: a file with tokens, one on each line, perhaps with a name before it; it is read again when it changes.
            Lines that start with "# " are comments. A name may have several tokens, an old and a new one.
        rate: images per second of each name.

    Raises:
        ServingError: both are given, the file cannot be read or has no tokens, or a token is unusable.
    """

    def __init__(
        self,
        token: str | None = None,
        file: str | os.PathLike[str] | None = None,
        *,
        rate: float = math.inf,
    ) -> None:
        if token is not None and file is not None:
            raise ServingError("a token and a file with tokens were given; give one of them")
        if rate <= 0:
            raise ServingError(f"a rate has to be more than 0 images per second, got {rate}")
        self._rate = rate
        self._file = None if file is None else Path(file)
        self._state: tuple[int, int, int] | None = None
        self._looked_s = -math.inf
        self._known: dict[bytes, Caller] = {}
        self._by_name: dict[str, Caller] = {}
        self._by_digest: dict[bytes, Caller] | None = None
        if self._file is not None:
            self._state = _state(self._file)
            self._replace(_read(self._file))
        elif token is not None:
            if not fields.is_token(token):
                raise ServingError("the token must be printable ASCII without spaces")
            self._replace({_digest(token.encode()): "token-1"})
        else:
            self._anybody = Caller("", rate)

    def find(self, authorization: bytes, now_s: float) -> Caller | None:
        """Return whom the value of an `Authorization` header belongs to; None if to nobody."""
        if self._file is not None and now_s - self._looked_s > _LOOK_AGAIN_S:
            self._looked_s = now_s
            self.reload()
        if self._by_digest is None:
            return self._anybody
        known = self._known.get(authorization)
        if known is not None:
            return known
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        # Digests are looked up, so that the time taken says nothing of the tokens; and so are the few headers that are
        # known to be good: Python finds them by a hash with a secret key.
        caller = self._by_digest.get(_digest(token.strip(b" ")))
        if caller is not None and len(self._known) < _KNOWN_MOST:
            self._known[authorization] = caller
        return caller

    def reload(self, *, always: bool = False) -> None:
        """Read the file again if it has changed, or `always`; if it is unusable, log why and keep the tokens."""
        if self._file is None:
            return
        state = _state(self._file)
        if state == self._state and not always:
            return
        self._state = state
        try:
            tokens = _read(self._file)
        except ServingError as error:
            log.error("the tokens stay as they were: %s", error)
            return
        self._replace(tokens)
        log.info("read %d token(s) from %s", len(tokens), self._file)

    def _replace(self, tokens: dict[bytes, str]) -> None:
        before = self._by_name
        self._by_name = {name: before.get(name) or Caller(name, self._rate) for name in tokens.values()}
        self._known.clear()
        self._by_digest = {digest: self._by_name[name] for digest, name in tokens.items()}


def _read(file: Path) -> dict[bytes, str]:
    """Read the tokens' digests, and whose they are. No message quotes the file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ServingError(f"cannot read the tokens from {file}: {reason}") from None
    tokens: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0] == "#":
            continue
        if len(words) > 2 or not fields.is_token(words[-1]):
            raise ServingError(f"line {number} of {file} is no token of printable ASCII: {_FORMAT}")
        name = words[0] if len(words) == 2 else f"token-{len(tokens) + 1}"
        if not _NAME.fullmatch(name):
            raise ServingError(
                f"line {number} of {file}: a name has up to 64 letters, digits and any of ._-; {_FORMAT}"
            )
        digest = _digest(words[-1].encode())
        if digest in tokens:
            raise ServingError(f"line {number} of {file} has the same token as {tokens[digest]!r}; remove one of them")
        tokens[digest] = name
    if not tokens:
        raise ServingError(f"the token file {file} is empty: {_FORMAT}")
    return tokens


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _state(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file does; None if it is not there."""
    try:
        fact = file.stat()
    except OSError:
        return None
    return fact.st_mtime_ns, fact.st_size, fact.st_ino

"""Tokens with names, from a file that changes, and how many images each may have classified."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sfumato.cloud.callers import Caller, Callers
from sfumato.errors import ServingError


def who(callers: Callers, authorization: str, now_s: float = 0.0) -> str | None:
    caller = callers.find(authorization.encode(), now_s)
    return None if caller is None else caller.name


def test_without_tokens_anybody_may_ask() -> None:
    assert who(Callers(), "") == who(Callers(), "Bearer x") == ""


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_has_any_case(scheme: str) -> None:
    assert who(Callers("s3cret"), f"{scheme} s3cret") == "token-1"


@pytest.mark.parametrize(
    "given", ["", "s3cret", "Bearer", "Bearer ", "Bearer S3CRET", "Bearer s3cret x", "Basic s3cret", "Bearers3cret"]
)
def test_anything_else_is_nobody(given: str) -> None:
    assert who(Callers("s3cret"), given) is None


def test_a_file_has_tokens_with_and_without_names(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# of the phones\nphones old-1\nphones new-2\n\n  #loose\n")
    callers = Callers(file=file)
    assert [who(callers, f"Bearer {token}") for token in ("old-1", "new-2", "#loose", "phones", "#")] == [
        "phones", "phones", "token-3", None, None
    ]  # fmt: skip


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "tokens"
    file.write_text("a old-1\n")
    callers = Callers(file=file)
    assert who(callers, "Bearer new-2", 0.0) is None and who(callers, "Bearer old-1", 0.0) == "a"
    file.write_text("a old-1\nb new-2\n")
    assert who(callers, "Bearer new-2", 0.5) is None, "looked at once a second"
    assert who(callers, "Bearer new-2", 1.5) == "b"
    _written(tmp_path / "next", "b new-2\n").replace(file)
    assert who(callers, "Bearer old-1", 3.0) is None
    assert "new-2" not in caplog.text


@pytest.mark.parametrize("content", ["", "a b c\n", "é\n", "naïve token\n", "x y\nx y\n", None, b"\xff"])
def test_an_unusable_file_leaves_the_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | bytes | None
) -> None:
    file = _written(tmp_path / "tokens", "a s3cret\n")
    callers = Callers(file=file)
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for now_s in (2.0, 4.0, 6.0):
        assert who(callers, "Bearer s3cret", now_s) == "a"
    assert caplog.text.count("stay as they were") == 1, "told once"
    with pytest.raises(ServingError) as raised:
        Callers(file=file)
    assert str(file) in str(raised.value) and "naïve" not in str(raised.value)


def test_what_is_left_survives_a_reload(tmp_path: Path) -> None:
    """Or a caller could wait less by having its token rotated."""
    file = _written(tmp_path / "tokens", "a old-1\n")
    callers = Callers(file=file, rate=1.0)
    caller = callers.find(b"Bearer old-1", 0.0)
    assert caller is not None and caller.wait_s(0.0) == 0.0
    _written(file, "a new-2\n")
    callers.reload(always=True)
    assert callers.find(b"Bearer new-2", 0.0) is caller


def test_a_rate_is_kept_over_time() -> None:
    """Against a plain simulation: in the long run, as many images as the rate, however large the requests."""
    for rate, images in ((10.0, 1), (10.0, 32), (0.5, 3)):
        caller, served, now_s = Caller("a", rate), 0, 0.0
        while now_s < 400:
            wait_s = caller.wait_s(now_s)
            if wait_s:
                assert caller.wait_s(now_s + 0.9 * wait_s) > 0, "it may not ask earlier than it is told"
                now_s += 1.001 * wait_s
            else:
                caller.charge(images - 1)
                served += images
        assert served == pytest.approx(rate * now_s, rel=0.1, abs=images + rate)


def test_without_a_rate_nobody_waits() -> None:
    caller = Caller("a", float("inf"))
    caller.charge(10**6)
    assert caller.wait_s(0.0) == 0.0


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="one of them"):
        Callers("a", tmp_path / "tokens")
    with pytest.raises(ServingError, match="more than 0"):
        Callers("a", rate=0)


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file

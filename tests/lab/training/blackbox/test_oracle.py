"""The oracle against a server that counts: nothing twice, nothing beyond the budget, nothing lost."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

import tiny
from recording import Exchange, RecordingServer, metadata, recording, respond_with
from sfumato.artifacts.class_map import ClassMap
from sfumato.errors import EndpointResponseInvalid, EndpointUnreachable, QueryBudgetExhausted, TrainingError
from sfumato.lab.training.blackbox.oracle import Oracle, is_endpoint, log_probabilities
from sfumato.lab.training.recipe_parts import BlackBoxRecipe

FIELDS = {*BlackBoxRecipe.model_fields} - {"class_map"}  # the oracle is given what is in the file


class Counting:
    """Answers as the tiny classifier, and counts the images that it was asked about."""

    def __init__(self, compute: Any = tiny.logits) -> None:
        self.rows: list[bytes] = []
        self._compute = compute

    def __call__(self, exchange: Exchange) -> None:
        def compute(inputs: Any) -> Any:
            self.rows += [row.tobytes() for row in inputs]
            return self._compute(inputs)

        respond_with(compute)(exchange)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(seed))


@contextmanager
def asking(tmp_path: Path, counting: Any, **changes: Any) -> Iterator[tuple[Oracle, RecordingServer]]:
    with recording(infer=counting) as server, oracle(server, tmp_path, **changes) as it:
        yield it, server


def oracle(server: RecordingServer, tmp_path: Path, **changes: Any) -> Oracle:
    given: dict[str, Any] = {
        "preprocessing": tiny.PREPROCESSING,
        "classes": 4,
        "memory": tmp_path / "answers.sqlite",
    }
    limits = {"queries": 100, "rate": 1e6} | {key: changes.pop(key) for key in changes.keys() & FIELDS}
    box = BlackBoxRecipe(model="tiny").model_copy(update=limits)  # unchecked: fewer queries than a recipe may allow
    return Oracle(server.url, box, **{**given, **changes})


def test_answers_are_those_of_the_classifier(tmp_path: Path) -> None:
    with asking(tmp_path, Counting()) as (it, _):
        x = images(20)
        inputs = tiny.PREPROCESSING.normalize(x.numpy())
        assert np.allclose(it(x), log_softmax(tiny.logits(inputs).astype(np.float64), axis=1), atol=1e-4)


GROUPS = {"ship": 2, "pet": [1, 0]}


@pytest.mark.parametrize("answers", ["scores", "label"])
@pytest.mark.parametrize("softmax_in_the_cloud", [False, True])
def test_a_class_map_merges_the_outputs(tmp_path: Path, answers: str, softmax_in_the_cloud: bool) -> None:
    """The oracle sums the probabilities of all four outputs itself."""

    def compute(inputs: Any) -> Any:
        return softmax(tiny.logits(inputs), axis=1) if softmax_in_the_cloud else tiny.logits(inputs)

    with asking(tmp_path, Counting(compute), classes=2, class_map=GROUPS, answers=answers) as (it, _):
        x = images(20)
        found = it(x).exp().numpy()
        assert it.class_map == ClassMap(4, ((2,), (1, 0)))
    p = softmax(tiny.logits(tiny.PREPROCESSING.normalize(x.numpy())).astype(np.float64), axis=1)
    merged = np.stack([p[:, 2], p[:, 0] + p[:, 1]], axis=1)
    merged /= merged.sum(axis=1, keepdims=True)
    if answers == "label":
        assert (found.argmax(axis=1) == merged.argmax(axis=1)).all() and found.max(axis=1).min() > 0.99
    else:
        assert np.allclose(found, merged, atol=1e-4)


def test_answers_of_another_class_map_are_not_mixed_in(tmp_path: Path) -> None:
    with asking(tmp_path, Counting(), classes=2, class_map=GROUPS) as (it, _):
        it(images(3))
    other = {"ship": 2, "pet": [1, 3]}
    with recording() as server, pytest.raises(TrainingError, match="predictions of another classifier"):
        oracle(server, tmp_path, classes=2, class_map=other)


def test_a_class_map_needs_the_outputs_that_it_names(tmp_path: Path) -> None:
    with recording() as server, pytest.raises(TrainingError, match=r"takes the output 4, but the classifier has 4"):
        oracle(server, tmp_path, classes=2, class_map={"ship": 4, "pet": 0})
    outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, -1]}]
    behaviour: Any = {"tiny": lambda exchange: exchange.reply(200, metadata(outputs=outputs))}
    with recording(**behaviour) as server, pytest.raises(EndpointResponseInvalid, match="how many outputs"):
        oracle(server, tmp_path, classes=2, class_map=GROUPS)


def test_nothing_is_asked_twice_even_in_another_run(tmp_path: Path) -> None:
    counting = Counting()
    with recording(infer=counting) as server:
        with oracle(server, tmp_path) as it:
            first = it(torch.cat([images(20), images(20)]))  # the second half is the first again
            assert torch.equal(first[:20], first[20:])
        with oracle(server, tmp_path) as it:
            assert torch.equal(it(images(20)), first[:20])
            assert it.spent == 20
    assert len(counting.rows) == len(set(counting.rows)) == 20


def test_a_rounding_error_is_not_another_image(tmp_path: Path) -> None:
    counting = Counting()
    with asking(tmp_path, counting) as (it, _):
        x = torch.full((1, 3, tiny.SIZE, tiny.SIZE), 0.4)
        it(x)
        it(x + 1e-7)
        it(x + 1e-2)
    assert len(counting.rows) == 2


def test_the_budget_is_kept_over_runs_and_what_was_answered_stays(tmp_path: Path) -> None:
    counting = Counting()
    with recording(infer=counting) as server:
        with oracle(server, tmp_path, queries=40) as it, pytest.raises(QueryBudgetExhausted, match="40"):
            it(images(50))
        assert len(counting.rows) == 32  # two whole batches; a third does not fit
        with oracle(server, tmp_path, queries=40) as it:
            assert it.queries - it.spent == 8
            assert it(images(50)[:32]).shape == (32, 4)  # known, and so free
            with pytest.raises(QueryBudgetExhausted):
                it(images(9, seed=1))
    assert len(counting.rows) == 32


def test_it_waits_so_that_no_more_are_asked_a_second_than_allowed(tmp_path: Path) -> None:
    waits: list[float] = []
    with asking(tmp_path, Counting(), rate=8.0, pause=waits.append) as (it, _):
        it(images(48))
    assert waits == pytest.approx([2.0, 4.0], abs=0.5)  # 16 images at 8 a second, and these waits take no time


def test_of_labels_nothing_but_the_highest_class_is_kept(tmp_path: Path) -> None:
    x = images(20)
    with asking(tmp_path, Counting(), answers="label") as (it, _):
        answers = it(x)
    wanted = tiny.logits(tiny.PREPROCESSING.normalize(x.numpy())).argmax(axis=1)
    assert answers.argmax(dim=1).tolist() == wanted.tolist()
    ordered = answers.sort(dim=1).values
    assert torch.allclose(ordered, ordered[:1].expand_as(ordered), atol=1e-5)  # all the same but for order


def test_probabilities_and_logits_come_to_the_same() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        log_probabilities(logits.softmax(1), "scores"), log_probabilities(logits, "scores"), atol=1e-5
    )


def test_answers_of_another_version_are_not_mixed_up(tmp_path: Path) -> None:
    def version(name: str) -> Any:
        return lambda exchange: exchange.reply(200, metadata(parameters={"fingerprint": name}))

    with recording(tiny=version("sha256:a")) as server, oracle(server, tmp_path) as it:
        it(images(2))
        assert it.fingerprint == "sha256:a"
    with recording(tiny=version("sha256:b")) as server, pytest.raises(TrainingError, match="another"):
        oracle(server, tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 9, 9]}]}, "9, 9"),
        ({"inputs": [{"name": "input", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}]}, "UINT8"),
        ({"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}]}, "4 classes"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_sent(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with recording(tiny=lambda exchange: exchange.reply(200, metadata(**changes))) as server:
        with pytest.raises(EndpointResponseInvalid, match=match):
            oracle(server, tmp_path)
        assert not any(path.endswith("/infer") for path in server.paths)


@pytest.mark.parametrize("broken", [lambda x: tiny.logits(x) * np.float32("nan"), lambda x: tiny.logits(x)[:, :3]])
def test_answers_that_are_none_are_not_kept(tmp_path: Path, broken: Any) -> None:
    with asking(tmp_path, Counting(broken)) as (it, _):
        with pytest.raises(EndpointResponseInvalid):
            it(images(2))
        assert it.spent == 0


def test_a_file_that_is_no_memory_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"not a database" * 100)
    with recording() as server, pytest.raises(TrainingError, match="cannot be kept"):
        oracle(server, tmp_path)


def test_what_was_answered_is_on_disk_before_the_next_question(tmp_path: Path) -> None:
    asked = []

    def failing(exchange: Exchange) -> None:
        asked.append(1)
        respond_with(tiny.logits)(exchange) if len(asked) < 3 else exchange.connection.shutdown(socket.SHUT_RDWR)

    with recording(infer=failing) as server, pytest.raises(EndpointUnreachable), oracle(server, tmp_path) as it:
        it(images(64))
    ((count,),) = sqlite3.connect(tmp_path / "answers.sqlite").execute("SELECT count(*) FROM answers")
    assert count == 32


def test_what_an_endpoint_is() -> None:
    assert is_endpoint("http://127.0.0.1:8080") and is_endpoint("https://vision.example.org/api")
    assert not any(map(is_endpoint, ["runs/x/bundle", "microsoft/resnet-18", "module:net", "model.onnx", "C:/model"]))


def test_the_token_goes_to_the_endpoint_and_into_no_file(tmp_path: Path) -> None:
    with asking(tmp_path, Counting(), token="s3cret-token") as (it, server):
        it(images(2))
        assert bytes(server.recorded).count(b"Authorization: Bearer s3cret-token") >= 2
    assert b"s3cret" not in (tmp_path / "answers.sqlite").read_bytes()

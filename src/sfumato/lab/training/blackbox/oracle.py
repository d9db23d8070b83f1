"""Query-only access to an endpoint: each image is sent once, within a budget, and its prediction is kept.

Only public images are sent, as they are; a device's own images never are.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.artifacts.class_map import ClassMap, are_probabilities
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.device.endpoints import open_endpoint
from sfumato.errors import BundleError, EndpointResponseInvalid, QueryBudgetExhausted, TrainingError
from sfumato.lab.training.recipe_parts import BlackBoxRecipe
from sfumato.wire import ModelMetadata
from sfumato.wire import Tensor as WireTensor

Answers = Literal["scores", "label"]
_BATCH = 16
_TIMEOUT_S, _RETRIES = 60.0, 5
_LEAST = 1e-6
"""Lower bound of probabilities, so that logarithms stay finite."""
_TINY = float(np.finfo(np.float32).tiny)
"""The same before outputs are merged: those of a class may be unlikely all together."""
_SUMS_TO_ONE = 1e-3
_DECIMALS = 4


def is_endpoint(classifier: str) -> bool:
    """Return whether a recipe's classifier is the address of an endpoint."""
    return urlsplit(classifier).scheme in ("http", "https")


class Oracle:
    """Query an Open Inference Protocol endpoint for its predictions.

    It sends one request at a time, keeps to a rate, and waits where the server asks for that. Every prediction is kept
    in a file before the next request, so that nothing is sent twice, and an interrupted run has lost nothing.

    Args:
        url: the endpoint's address.
        box: the model's name there, and how often and for what it may be queried, over all runs with `memory`.
        preprocessing: how an image becomes its input.
        classes: how many it has, or the task.
        memory: the file that predictions are kept in; an SQLite database.
        token: the bearer token, if the endpoint needs one.
        ca_file: PEM file with the authorities to trust instead of the system's.
        pause: waits for seconds.
        class_map: the task's classes, each with the index of one of its outputs or a list of them.

    Attributes:
        class_map: the same, for as many outputs as the endpoint states; None if they are the classes.
        fingerprint: of the classifier, if the endpoint publishes it.
        spent: how many images were sent so far, over all runs with this file.

    Raises:
        EndpointError: one of its kinds; see `sfumato.errors`.
        TrainingError: the file cannot be used, or holds the predictions of another classifier; or the class map does
            not fit the endpoint's outputs; or the classifier is multi-label.
    """

    def __init__(
        self,
        url: str,
        box: BlackBoxRecipe,
        *,
        preprocessing: Preprocessing,
        classes: int,
        memory: Path,
        token: str | None = None,
        ca_file: Path | None = None,
        pause: Callable[[float], None] = time.sleep,
        class_map: Mapping[str, object] | None = None,
    ) -> None:
        self.preprocessing, self.classes, self.queries, self.answers = preprocessing, classes, box.queries, box.answers
        self._endpoint = open_endpoint(
            url, encoding="binary", token=token, ca_file=ca_file, timeout_s=_TIMEOUT_S, retries=_RETRIES
        )
        self.model, self._rate, self._pause = box.model, box.rate, pause
        self._next = 0.0
        metadata = self._endpoint.metadata(box.model)
        if metadata.parameters.get("labelling") == "multi-label":
            raise TrainingError(f"{box.model} is multi-label; query-only training needs one class per image")
        self.class_map = None if class_map is None else _class_map(metadata, class_map)
        self._outputs = classes if self.class_map is None else self.class_map.outputs
        self._input, self._output = _names(metadata, preprocessing, self._outputs)
        stated = metadata.parameters.get("fingerprint")
        self.fingerprint = stated if isinstance(stated, str) else None
        whose = f"{box.model} {box.answers} {self.fingerprint or 'unstated'} {classes}"
        self._memory = _open(memory, whose if self.class_map is None else f"{whose} {self.class_map.digest}")
        ((count,),) = self._memory.execute("SELECT count(*) FROM answers")  # once: it reads the whole file
        self.spent = int(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._memory.close()
        self._endpoint.close()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the endpoint's predictions on images (N, 3, H, W) float32 in [0, 1]; only new ones are sent.

        Returns:
            Log-probabilities (N, classes) float32; of a label, that of its class is nearly 0.

        Raises:
            QueryBudgetExhausted: the budget does not allow it; earlier predictions are kept.
            EndpointError: one of its kinds; see `sfumato.errors`.
        """
        return torch.cat([self._batch(part) for part in torch.split(images, _BATCH)])

    def _batch(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing.normalize(images.detach().cpu().numpy().astype(np.float32))
        keys = [_key(row) for row in inputs]
        places = ", ".join("?" * len(keys))
        rows = self._memory.execute(f"SELECT image, answer FROM answers WHERE image IN ({places})", keys)
        known = {key: np.frombuffer(answer, "<f4") for key, answer in rows}
        new = {key: row for key, row in zip(keys, inputs, strict=True) if key not in known}  # equal ones once
        if new:
            if self.spent + len(new) > self.queries:
                raise QueryBudgetExhausted(
                    f"{self.spent} of {self.queries} queries are spent, {len(new)} more are needed; allow more"
                )
            known |= dict(zip(new, self._ask(np.stack(list(new.values()))), strict=True))
            with self._memory:  # one transaction for the whole answer
                answers = [(key, np.asarray(known[key], "<f4").tobytes()) for key in new]
                self._memory.executemany("INSERT INTO answers VALUES (?, ?)", answers)
            self.spent += len(new)
        return torch.from_numpy(np.stack([np.asarray(known[key], np.float32) for key in keys]))

    def _ask(self, inputs: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        now = time.monotonic()
        if now < self._next:
            self._pause(self._next - now)
        self._next = max(now, self._next) + len(inputs) / self._rate
        response = self._endpoint.infer(self.model, WireTensor(self._input, inputs), self._output).response
        scores = next((tensor.array for tensor in response.outputs if tensor.name == self._output), None)
        if scores is None or scores.shape != (len(inputs), self._outputs) or not np.isfinite(scores).all():
            raise EndpointResponseInvalid(
                f"{self._endpoint.server} answered {None if scores is None else scores.shape} for {len(inputs)} "
                f"images; finite scores {(len(inputs), self._outputs)} are expected"
            )
        if self.class_map is not None:  # logarithms of probabilities are logits
            scores = scores.astype(np.float32)
            logits = np.log(np.maximum(scores, _TINY)) if are_probabilities(scores) else scores
            scores = self.class_map.logits(logits)
        return list(log_probabilities(torch.from_numpy(scores.astype(np.float32)), self.answers).numpy())


def log_probabilities(scores: Tensor, answers: Answers) -> Tensor:
    """Return log-probabilities of logits or probabilities, both (N, classes) float32; of a "label" the highest class.

    They are probabilities if all rows are non-negative and sum to 1.
    """
    classes = scores.shape[1]
    if answers == "label":
        probabilities = F.one_hot(scores.argmax(dim=1), classes).float()
    elif bool((scores >= 0).all()) and bool(((scores.sum(dim=1) - 1).abs() < _SUMS_TO_ONE).all()):
        probabilities = scores
    else:
        return F.log_softmax(scores, dim=1)
    return (probabilities.clamp_min(_LEAST) / probabilities.clamp_min(_LEAST).sum(dim=1, keepdim=True)).log()


def _key(row: npt.NDArray[np.float32]) -> bytes:
    """Return the same key for images that differ by rounding errors alone."""
    return hashlib.sha256((np.round(row, _DECIMALS) + 0.0).astype("<f4").tobytes()).digest()  # no negative zero


def _open(memory: Path, whose: str) -> sqlite3.Connection:
    """Open the file of one classifier's predictions, and refuse that of another one."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(memory)
        with database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (image BLOB PRIMARY KEY, answer BLOB NOT NULL)")
            database.execute("CREATE TABLE IF NOT EXISTS whose (name TEXT PRIMARY KEY)")
            known = database.execute("SELECT name FROM whose").fetchone()
            if known is None:
                database.execute("INSERT INTO whose VALUES (?)", (whose,))
    except (OSError, sqlite3.Error) as error:
        raise TrainingError(f"predictions cannot be kept in {memory}: {error}") from error
    if known is not None and known[0] != whose:
        database.close()
        raise TrainingError(
            f"{memory} holds the predictions of another classifier, or of another version of it; --overwrite restarts"
        )
    return database


def _class_map(metadata: ModelMetadata, classes: Mapping[str, object]) -> ClassMap:
    """Return the map for the outputs that the model states: one row of them for each image."""
    stated = [spec.shape[1] for spec in metadata.outputs if len(spec.shape) == 2 and spec.shape[1] > 0]
    if not stated:
        raise EndpointResponseInvalid(
            f"model {metadata.name!r} does not state how many outputs it has, which a class map needs"
        )
    try:
        return ClassMap.of(classes, stated[0])
    except BundleError as error:
        raise TrainingError(f"black_box.class_map does not fit the model {metadata.name!r}: {error}") from error


def _names(metadata: ModelMetadata, preprocessing: Preprocessing, classes: int) -> tuple[str, str]:
    """Return the names of the model's input, and of its output with one number per class."""
    size = (3, preprocessing.height, preprocessing.width)
    fits = [spec for spec in metadata.inputs if spec.datatype == "FP32" and spec.takes_rows(size)]
    if len(metadata.inputs) != 1 or not fits:
        shapes = ", ".join(f"{spec.datatype} {list(spec.shape)}" for spec in metadata.inputs) or "none"
        raise EndpointResponseInvalid(
            f"model {metadata.name!r} takes {shapes}; FP32 {[-1, *size]} is needed: set data.size"
        )
    output = next((spec.name for spec in metadata.outputs if spec.takes_rows((classes,))), None)
    if output is None:
        shapes = ", ".join(str(list(spec.shape)) for spec in metadata.outputs) or "nothing"
        raise EndpointResponseInvalid(
            f"model {metadata.name!r} returns {shapes}; one number for each of {classes} classes is needed"
        )
    return fits[0].name, output

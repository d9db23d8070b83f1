"""How often people recognise an image in its reconstruction: questions for a blind reading, and their score.

Each question shows a reconstruction and originals of one class, of which one is its own. Some questions show the mean
image of the class instead, which has nothing but the label (0), and some the image itself (1): both ends are measured
with the same readers.

Source: forced choice among alternatives, Macmillan and Creelman 2005, chapter 10.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from sfumato.artifacts.files import read_json
from sfumato.errors import AuditError
from sfumato.lab.audit.model import Model
from sfumato.lab.audit.references import class_means
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.data import ImageSet
from sfumato.lab.evaluation.measures import proportion_interval

QUESTIONS = 60
CANDIDATES = 4
_CONTROLS = 5
"""One question of so many shows the label alone, and one the image itself."""

Kind = Literal["attacker", "label only", "image"]


class KeyEntry(Model):
    """The answer to one question: the place of the image among the candidates, from 0; `image` is its test image."""

    kind: Kind
    image: int
    answer: int


class ReadingKey(Model):
    """The key of a kit, which readers must not see.

    Attributes:
        kit: identifies the page that it belongs to.
        candidates: originals in each question.
        attacker: whose reconstructions are shown.
        test_sha256: of the test images, hex.
    """

    version: Literal["sfumato.reading-key/1"] = Field(default="sfumato.reading-key/1", alias="schema")
    kit: str
    obfuscator: str
    attacker: str
    test_sha256: str
    seed: int
    candidates: int = Field(ge=2)
    questions: tuple[KeyEntry, ...] = Field(min_length=1)


class Answers(Model):
    """What one reader answered: for each question the place of a candidate, or None for "cannot tell"."""

    version: Literal["sfumato.readings/1"] = Field(alias="schema")
    kit: str
    reader: str = ""
    answers: tuple[int | None, ...]


class Score(Model):
    """How often images were recognised.

    Attributes:
        kind: what was shown.
        correct: share of the answers; "cannot tell" counts as a guess, 1 out of the candidates.
        low: of the 95 % interval, which takes answers as independent; those of several readers to one question are not.
        high: likewise.
        chance: 1 / candidates.
        answers: how many were given.
    """

    kind: Kind
    correct: float
    low: float
    high: float
    chance: float
    answers: int


class Readings(Model):
    """The score of a kit.

    Attributes:
        scores: of all readers together, by kind.
        by_reader: file -> share correct of the attacker's reconstructions.
        recognisability: 0, no more is recognised than in the label alone; 1, as much as in the image. None where
            readers did not recognise the image itself more often than the label alone.
    """

    kit: str
    obfuscator: str
    attacker: str
    scores: tuple[Score, ...]
    by_reader: dict[str, float]
    recognisability: float | None


@dataclass(frozen=True)
class Kit:
    """A kit's questions.

    Attributes:
        shown: (Q, 3, H, W) uint8, the reconstructions.
        candidates: (Q, C, 3, H, W) uint8.
        key: the answers.
    """

    shown: Tensor
    candidates: Tensor
    key: ReadingKey


def make_kit(
    audit: AuditResult,
    reconstructed: Tensor,
    train: ImageSet,
    test: ImageSet,
    *,
    questions: int = QUESTIONS,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> Kit:
    """Return questions about the reconstructions of an audit's best attacker.

    Args:
        audit: with a best attacker.
        reconstructed: (K, 3, H, W) uint8, the first K test images by it.
        train: for the mean image of each class.
        test: the images that were attacked.
        questions: at most; each is about another image.
        candidates: originals in each; fewer, at least 2, where half of the images have not so many of their class.
        seed: of everything random.

    Raises:
        AuditError: other test images than the audit's, no attacker, or too few images that share a class.
    """
    if audit.best is None or not len(reconstructed):
        raise AuditError("no attacker of this audit finished: there is nothing to read")
    if test.sha256 != audit.data.sha256["test"] or reconstructed.shape[1:] != test.images.shape[1:]:
        raise AuditError(f"the test images of {test.source} are not those of the audit; give its --data and options")
    sizes = test.labels.bincount()[test.labels]
    candidates = min(candidates, int(sizes.median()))
    source = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(reconstructed), generator=source)
    asked = order[sizes[order] >= candidates][:questions]
    if candidates < 2 or len(asked) < _CONTROLS:
        raise AuditError(f"{len(asked)} images share a class with another: at least {_CONTROLS} are needed")
    controls = len(asked) // _CONTROLS
    amounts: dict[Kind, int] = {"label only": controls, "image": controls, "attacker": len(asked) - 2 * controls}
    kinds = [kind for kind, amount in amounts.items() for _ in range(amount)]
    means = (class_means(train) * 255).round().byte()
    shown, choices, entries = [], [], []
    for image, place in zip(asked.tolist(), torch.randperm(len(asked), generator=source).tolist(), strict=True):
        kind, label = kinds[place], int(test.labels[image])
        by_kind = {"attacker": reconstructed[image], "label only": means[label], "image": test.images[image]}
        others = (test.labels == label).nonzero()[:, 0]
        others = others[others != image]
        row = others[torch.randperm(len(others), generator=source)[: candidates - 1]].tolist()
        answer = int(torch.randint(candidates, (), generator=source))
        row.insert(answer, image)
        # The last bit is sampled, so that not even an image that is shown twice has the same bytes in the page.
        last = torch.randint(2, by_kind[kind].shape, generator=source, dtype=torch.uint8)
        shown.append(by_kind[kind] & 254 | last)
        choices.append(test.images[row])
        entries.append(KeyEntry(kind=kind, image=image, answer=answer))
    pictures, originals = torch.stack(shown), torch.stack(choices)
    digest = hashlib.sha256(pictures.numpy().tobytes() + originals.numpy().tobytes()).hexdigest()[:16]
    key = ReadingKey(
        kit=digest,
        obfuscator=audit.target.name,
        attacker=audit.best.attacker,
        test_sha256=test.sha256,
        seed=seed,
        candidates=candidates,
        questions=tuple(entries),
    )
    return Kit(pictures, originals, key)


def score_readings(key_file: Path, files: Sequence[Path]) -> Readings:
    """Score readers' answers.

    Raises:
        AuditError: a file that cannot be read, that is no reading of this kit, or that answers otherwise than asked.
    """
    key = ReadingKey.of(read_json(key_file, AuditError), key_file)
    if not files:
        raise AuditError("no answers to score; give the files that readers saved")
    hits: dict[Kind, list[float]] = {kind: [] for kind in get_args(Kind)}
    by_reader = {}
    for file in files:
        given = Answers.of(read_json(file, AuditError), file)
        _check(given, key, file)
        if str(file) in by_reader:
            raise AuditError(f"{file} is given twice")
        own: dict[Kind, list[float]] = {kind: [] for kind in hits}
        for entry, answer in zip(key.questions, given.answers, strict=True):
            own[entry.kind].append(1 / key.candidates if answer is None else float(answer == entry.answer))
        for kind, values in own.items():
            hits[kind] += values
        by_reader[str(file)] = sum(own["attacker"]) / max(1, len(own["attacker"]))
    scores = tuple(_score(kind, values, key.candidates) for kind, values in hits.items() if values)
    correct = {score.kind: score.correct for score in scores}
    recognisability = None
    if correct.keys() == hits.keys() and correct["image"] > correct["label only"]:
        between = (correct["attacker"] - correct["label only"]) / (correct["image"] - correct["label only"])
        recognisability = min(max(between, 0.0), 1.0)
    return Readings(
        kit=key.kit,
        obfuscator=key.obfuscator,
        attacker=key.attacker,
        scores=scores,
        by_reader=by_reader,
        recognisability=recognisability,
    )


def _score(kind: Kind, values: list[float], candidates: int) -> Score:
    low, high = proportion_interval(sum(values), len(values))
    correct = sum(values) / len(values)
    return Score(kind=kind, correct=correct, low=low, high=high, chance=1 / candidates, answers=len(values))


def _check(given: Answers, key: ReadingKey, file: Path) -> None:
    if given.kit != key.kit:
        raise AuditError(f"{file} answers kit {given.kit}, the key is that of kit {key.kit}")
    if len(given.answers) != len(key.questions):
        raise AuditError(f"{file} has {len(given.answers)} answers, the kit has {len(key.questions)} questions")
    wrong = [answer for answer in given.answers if answer is not None and not 0 <= answer < key.candidates]
    if wrong:
        raise AuditError(f"{file} chooses candidate {wrong[0]}; they are numbered 0 to {key.candidates - 1}")

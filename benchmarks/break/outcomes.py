"""What became of the inputs of one part of the break test: the types of results/break.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ACCEPTED, REFUSED = "accepted", "refused"
GOOD = {ACCEPTED, REFUSED, "closed", "waiting", "busy", "abandoned"}
"""Every other outcome is a failure."""
_SHOWN_BYTES = 200


@dataclass(frozen=True)
class Judged:
    """One input and what became of it.

    Attributes:
        mutation: how the input was made.
        outcome: one of `GOOD`, or how it failed.
        detail: of a failure: what was raised or found, without the input's values.
        example: the input itself; only of failures.
    """

    mutation: str
    outcome: str
    detail: str = ""
    example: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether it is a failure."""
        return self.outcome not in GOOD


@dataclass
class Failure:
    """Failures of one kind.

    Attributes:
        mutation: how their inputs were made.
        outcome: how they failed.
        detail: what was raised or found.
        count: how many there were.
        case: the number of the first one, for `--case`.
        example_hex: the first bytes of its input.
        example_bytes: the length of its input.
    """

    mutation: str
    outcome: str
    detail: str
    count: int
    case: int
    example_hex: str
    example_bytes: int


@dataclass
class Part:
    """One part of the break test.

    Attributes:
        name: such as "codec".
        seed: the seed; with a case's number it determines the input.
        inputs: how many inputs were tried.
        seconds: how long it took.
        outcomes: mutation -> outcome -> count.
        failures: one entry for each kind of failure.
        facts: other figures of this part, such as memory.
    """

    name: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many inputs failed."""
        return sum(failure.count for failure in self.failures)

    def add(self, case: int, judged: Judged, examples: Path) -> None:
        """Count one input; see `count`."""
        self.count({(judged.mutation, judged.outcome): 1}, [(case, judged)] if judged.failed else [], examples)

    def count(
        self, counted: Mapping[tuple[str, str], int], failures: Iterable[tuple[int, Judged]], examples: Path
    ) -> None:
        """Count many inputs, whose failures come one by one; save the first input of each kind of failure there."""
        for (mutation, outcome), times in counted.items():
            at = self.outcomes.setdefault(mutation, {})
            at[outcome] = at.get(outcome, 0) + times
            self.inputs += times
        for case, judged in failures:
            kind = (judged.mutation, judged.outcome, judged.detail)
            for known in self.failures:
                if (known.mutation, known.outcome, known.detail) == kind:
                    known.count += 1
                    break
            else:
                shown = judged.example[:_SHOWN_BYTES].hex()
                self.failures.append(Failure(*kind, 1, case, shown, len(judged.example)))
                examples.mkdir(parents=True, exist_ok=True)
                (examples / f"{self.name}-{case}.bin").write_bytes(judged.example)

    def totals(self) -> Counter[str]:
        """Return outcome -> count over all mutations."""
        return sum((Counter(outcomes) for outcomes in self.outcomes.values()), Counter())

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)


def told(error: BaseException) -> str:
    """Return an error's type and where it was raised, without its message, which may quote the input."""
    at, place = error.__traceback__, ""
    while at is not None:
        place = f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}"
        at = at.tb_next
    return f"{type(error).__name__} at {place}"

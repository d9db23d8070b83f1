"""Match the classes of a data set with those of a classifier, by name."""

from __future__ import annotations

import re

from sfumato.errors import DataError

_NAMED = 3
_FEW_UNCLEAR = 0.01


def class_places(names: tuple[str, ...], labels: tuple[str, ...], source: str) -> list[int]:
    """Return the place of each of the data's classes among a classifier's; see `ImageSet.of_classes`.

    Raises:
        DataError: a class of the data is none of the classifier's, or it is ambiguous which.
    """
    known = _places(labels)
    unknown = [name for name in names if len(known.get(_plain(name), ())) != 1]
    if not unknown:
        places = [known[_plain(name)][0] for name in names]
        if len(set(places)) < len(places):
            raise DataError(f"{source}: two of its classes are one class of the classifier's")
        return places
    if len(labels) == len(names):
        numbered = any(all(name.isdigit() for name in side) for side in (names, labels))
        clear = [known[_plain(name)][0] == place for place, name in enumerate(names) if name not in unknown]
        # ImageNet has two cranes; with all the others in the same order, there is no doubt about a few.
        if numbered or (all(clear) and len(unknown) <= _FEW_UNCLEAR * len(names)):
            return list(range(len(labels)))
    raise DataError(
        f"{source}: {len(unknown)} of its {len(names)} classes are not, or not clearly, among the "
        f"classifier's {len(labels)} ({', '.join(unknown[:_NAMED])}; the classifier has "
        f"{', '.join(labels[:_NAMED])}, ...); name the classes of the data as the classifier does"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _places(labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the places of the classes that a name could mean: of exactly this name, or with it among several."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        whole.setdefault(_plain(label), []).append(place)
        for part in label.split(","):
            parts.setdefault(_plain(part), []).append(place)
    return {**parts, **whole}

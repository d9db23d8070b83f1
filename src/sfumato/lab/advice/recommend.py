"""From measurements to a recommendation for each of three policies: a pure function."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from sfumato.lab.advice.schema import Measurements, Policy, Recommendation, Way
from sfumato.lab.audit.verdict import LEAKS_ABOVE

FEW = 0.2
"""The largest share of images that "few images" may be."""
AS_GOOD = 0.01
"""What "least bytes" may cost in accuracy against the plain image: one point."""
SIZE_TELLS = 0.05
"""The size of a payload gives its class away if it predicts the class so much better than chance."""
MOST_BITS = 16
"""A payload of so few bits shows no image: it is one of 65,536 at most."""
_EQUAL = 0.002
_LONGER = 4
HOW_TO_SEND = "docs/how-to/advise.md"
ALLOW_OUTSIDE = "--allow-outside"


def recommend(measured: Measurements) -> tuple[Recommendation, ...]:
    """Return the way to go under each policy.

    Of ways that meet a policy and are equally accurate, within the standard error of the test images, that one is
    chosen which shows the fewest images, then sends the fewest bytes, then takes the least time.
    """
    ways = measured.ways
    plain = next((way.accuracy for way in ways if way.kind == "plain"), 0.0)
    unseen = [way for way in ways if shown(way) == 0]
    few = [way for way in ways if shown(way) <= FEW]
    as_good = [way for way in ways if way.accuracy >= plain - AS_GOOD]
    return (
        _recommendation("no recognisable image leaves", _most_accurate(unseen, measured), measured),
        _recommendation("few images leave", _most_accurate(few, measured), measured),
        _recommendation(
            "least bytes", min(as_good, key=lambda way: (bytes_of(way, measured), _cost(way)), default=None), measured
        ),
    )


def shown(way: Way) -> float:
    """Return the share of images that leave in a form that may show them, in [0, 1].

    What an audit found counts in any case; that it found nothing counts only if it could have found something. Without
    such an audit, only payloads of at most `MOST_BITS` show nothing.
    """
    audit, hidden = way.audit, way.bits <= MOST_BITS
    if audit is not None:
        leaks = audit.excess_leakage > LEAKS_ABOVE or audit.finding == "leaks"
        hidden = not leaks and (hidden or audit.finding == "withstood")
    return 0.0 if hidden else way.offload_rate


def size_tells(way: Way, measured: Measurements) -> bool:
    """Return whether the size of a payload gives its class away."""
    return way.accuracy_from_size is not None and way.accuracy_from_size > measured.chance + SIZE_TELLS


def bytes_of(way: Way, measured: Measurements) -> float:
    """Return the bytes per image, padded where their number would give the class away."""
    padded = way.padded_bytes is not None and size_tells(way, measured)
    return way.padded_bytes if padded and way.padded_bytes is not None else way.payload_bytes


def _most_accurate(ways: Sequence[Way], measured: Measurements) -> Way | None:
    best = max(ways, key=lambda way: way.accuracy, default=None)
    if best is None:
        return None
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.test_images)
    near = [way for way in ways if way.accuracy >= best.accuracy - max(_EQUAL, error)]
    return min(near, key=lambda way: (shown(way), bytes_of(way, measured), _cost(way)))


def _cost(way: Way) -> tuple[float, float]:
    return (way.device_ms or 0) + (way.cloud_ms or 0), -way.accuracy


def _recommendation(policy: Policy, way: Way | None, measured: Measurements) -> Recommendation:
    minutes = f"{_LONGER * measured.minutes:g}"
    about = [measured.classifier, "--data", measured.data, "--minutes", minutes, "-o", measured.folder]
    longer = _typed("advise", *about, *measured.options)
    if way is None:
        return Recommendation(policy, None, ("Nothing that was measured meets this policy.",), True, longer)
    nets = [other for other in measured.ways if other.kind == "local"]
    unfinished = bool(measured.missing) or not nets or any(net.at_least for net in nets)
    provisional = way.offload_rate > 0 and unfinished
    sentences = tuple(_sentences(way, measured, provisional=provisional))
    plain = max((other.accuracy for other in measured.ways if other.kind == "plain"), default=0.0)
    train_on = provisional or (way.at_least and way.accuracy < plain - AS_GOOD)
    return Recommendation(policy, way.name, sentences, provisional, longer if train_on else _next(way, measured))


def _sentences(way: Way, measured: Measurements, *, provisional: bool) -> list[str]:
    plain = next((other for other in measured.ways if other.kind == "plain"), None)
    said = [
        f"{'At least ' if way.at_least else ''}{way.accuracy:.1%} {measured.measure} on {way.test_images:,} images."
    ]
    if plain is not None and way is not plain:
        points = 100 * (way.accuracy - plain.accuracy)
        said.append(f"{points:+.1f} points against the plain image, which has {plain.accuracy:.1%}.")
    if way.offload_rate == 0:
        said.append("Nothing is sent.")
    elif size_tells(way, measured):
        said.append(
            f"The size of the payload alone gives the class of {way.accuracy_from_size:.1%} of the images "
            f"({measured.chance:.1%} by chance): pad every payload to the longest one, {bytes_of(way, measured):,.0f} "
            "bytes per image."
        )
    if way.audit is not None:
        said.append(f"Audited, {way.audit.finding}: an excess leakage of at least {way.audit.excess_leakage:.2f}.")
    elif way.kind in ("sketch", "obfuscator"):
        said.append(f"Not audited: at most {way.bits:.2f} bits about an image leave.")
    if shown(way) > 0 and way.kind not in ("sketch", "obfuscator"):
        leaves = "Every image leaves in a form that may show it."
        if way.threshold is not None:
            unsure = f"those with an on-device probability below {way.threshold:.3f}"
            leaves = f"{way.offload_rate:.0%} of the images, {unsure}, leave in the clear."
        said.append(f"{leaves} sfumato's client sends no such thing; {HOW_TO_SEND} shows how any other client does.")
    if provisional:
        said.append("Provisional: not every local net has been trained to its end, and one might become as good.")
    return said


def _next(way: Way, measured: Measurements) -> str:
    bundle, classifier = way.bundle or "", measured.classifier
    if way.kind == "local":
        return _typed("classify", "IMAGES", "--bundle", bundle)
    if way.kind == "sketch" and way.audit is None:
        outside = [option for option in measured.options if option == ALLOW_OUTSIDE]
        into = ["-o", f"{measured.folder}/audits/sketch"]
        return _typed("audit", bundle, "--classifier", classifier, "--data", measured.data, *outside, *into)
    return _typed("serve", classifier, "--port", "8080")


def _typed(*words: str) -> str:
    """Return a command as it is typed, with quotes where a shell needs them."""
    return shlex.join(["sfumato", *words])

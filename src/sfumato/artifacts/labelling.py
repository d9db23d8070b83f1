"""How many classes of a classifier one image may have: exactly one, or any number at once."""

from __future__ import annotations

from typing import Literal, cast, get_args

from sfumato.errors import BundleError

Labelling = Literal["single-label", "multi-label"]
"""Single-label: softmax, and the likeliest class. Multi-label: a sigmoid for each class, and every class from
`PRESENT_FROM` on."""
PRESENT_FROM = 0.5
"""The probability from which on a class of a multi-label classifier counts as present; its logit is 0 there."""

SUPPORTED = (
    'import, init and train (kind = "obfuscator"), evaluate (of one pair), serve, doctor, classify and the clients of '
    "the protocol; audit, without --classifier"
)
"""What can be done with multi-label classifiers, for the errors of all that cannot."""


def read_labelling(stated: object) -> Labelling:
    """Return what a manifest states; those of earlier versions state nothing, and are single-label.

    Raises:
        BundleError: it is neither.
    """
    if stated is None:
        return "single-label"
    if stated not in get_args(Labelling):
        raise BundleError(f"the labelling is {stated!r:.60}; expected one of {', '.join(get_args(Labelling))}")
    return cast(Labelling, stated)

"""Is the attacker broken? What an audit's own trials tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sfumato.lab.attacks.decoders import PAPER
from sfumato.lab.attacks.fit import FLAT, flattened
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.sanity_checks import ORACLE_HIGH, Control
from sfumato.lab.evaluation.measures import RECONSTRUCTED_BELOW

TOLERANCE = 1.02
"""How much worse an attacker may be for knowing more: chance of one training."""


def trial_controls(trials: Sequence[dict[str, Any]], class_mean_mse: float) -> list[Control]:
    """What the audit's own trials tell of the attackers.

    Args:
        trials: as in `audit.json`.
        class_mean_mse: the error of the class mean.
    """
    done = [t for t in trials if t["status"] == "done" and t["views"] == 1]
    return [_more_pairs(done), _white_box(done), _learned(done, class_mean_mse)]


def _more_pairs(done: list[dict[str, Any]]) -> Control:
    best: dict[int, float] = {}
    for trial in done:
        if trial["threat"] == Threat.PAIRS:
            best[trial["pairs"]] = min(best.get(trial["pairs"], 1e9), trial["mse_compared"])
    name, needed = "more pairs do not hurt", f"at most {TOLERANCE} times the error with fewer"
    if len(best) < 2:
        return Control(name, None, "fewer than two numbers of pairs were tried", needed)
    counts = sorted(best)
    rises = [best[more] / best[fewer] for fewer, more in pairwise(counts)]
    measured = ", ".join(f"{count:,}: {best[count]:.4f}" for count in counts)
    return Control(name, max(rises) <= TOLERANCE, measured, needed, "best MSE by number of known pairs")


def _white_box(done: list[dict[str, Any]]) -> Control:
    def best(threat: Threat) -> float:
        return min((t["mse_compared"] for t in done if t["threat"] == threat), default=float("inf"))

    white, black = best(Threat.WHITE_BOX), best(Threat.PAIRS)
    name, needed = "the white box does not lose to the black box", f"at most {TOLERANCE} times its error"
    if float("inf") in (white, black):
        return Control(name, None, "not both were tried", needed)
    return Control(name, white <= TOLERANCE * black, f"{white:.4f} against {black:.4f}", needed, "best MSE of each")


def _learned(done: list[dict[str, Any]], class_mean_mse: float) -> Control:
    name = "the best learned attacker has learned all that it can"
    needed = f"reconstructed, or: it learned, and the last third of the training changed under {100 * FLAT:g} %"
    learned = [t for t in done if t["curve"]]
    if not learned:
        return Control(name, None, "no learned attacker was tried", needed)
    best = min(learned, key=lambda t: float(t["mse_compared"]))
    detail = f"{best['attacker']}, {best['threat']}"
    if best["mse_compared"] < RECONSTRUCTED_BELOW:
        return Control(name, True, "the image is reconstructed, nothing is left to gain", needed, detail)
    after = f"after {best['images_seen']:,} images"
    if not flattened([(int(seen), float(error)) for seen, error in best["curve"]]):
        return Control(name, False, f"still changing {after}", needed, detail)
    errors = [error for _, error in best["curve"]]
    if min(errors) < (1 - FLAT) * errors[0]:
        return Control(name, True, f"flat {after}", needed, detail)
    # A network that never left its start shows nothing, unless one that began with nothing came to the same end,
    # and that is better than the mean image, which takes no learning.
    fresh = min((t["mse_compared"] for t in done if t["attacker"] == PAPER.name), default=float("inf"))
    confirmed = fresh <= min(TOLERANCE * best["mse_compared"], ORACLE_HIGH * class_mean_mse)
    words = "ends there too" if confirmed else "is not as far"
    measured = f"where it began {after}; a decoder that began with nothing {words}, at MSE {fresh:.4f}"
    return Control(name, confirmed, measured, needed, detail)

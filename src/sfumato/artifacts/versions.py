"""Names of keys: those of earlier versions, read wherever they stand in a JSON value, and those that are misspelt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RENAMED = {
    "accuracy_others": "accuracy_ensemble",
    "also": "ensemble",
    "answers_changed": "predictions_changed",
    "cloud_answers_changed": "cloud_predictions_changed",
    "column_pictures": "column_images",
    "controls": "sanity_checks",
    "decoder_pictures": "decoder_images",
    "device_answers_changed": "device_predictions_changed",
    "drawing": "decoder",
    "drawing_mean_difference": "payload_mean_difference",
    "drawn_share": "decoded_share",
    "held_out_pictures": "held_out_images",
    "new_pictures": "new_images",
    "pictures": "images",
    "pictures_seen": "images_seen",
    "remains_test_pictures": "remains_test_images",
    "sent_pictures": "sent_images",
    "test_pictures": "test_images",
    "train_pictures": "train_images",
    "understood_after_tuning": "agreement_after_tuning",
    "understood_before_tuning": "agreement_before_tuning",
    "unreadable_pictures": "unreadable_images",
}


def upgraded(value: Any) -> Any:
    """Return a JSON value with today's names for its keys; a value of today's version comes back equal.

    Args:
        value: plain JSON: objects, lists, strings, numbers, booleans, None.
    """
    if isinstance(value, dict):
        renamed = {_RENAMED.get(key, key): upgraded(item) for key, item in value.items()}
        if renamed.get("learn") == "drawing":  # of a sketch's recipe
            renamed["learn"] = "decoder"
        return renamed
    if isinstance(value, list):
        return [upgraded(item) for item in value]
    return value


def nearest(name: str, known: Mapping[str, str]) -> str:
    """Return the end of a message about an unknown name: a question after the known one like it; nothing if none is.

    Args:
        name: as it was given.
        known: names, each with what is shown for it.
    """
    import difflib  # commands start faster without it

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""

"""Read what earlier versions of sfumato wrote: keys that were renamed since, wherever they stand in a JSON value."""

from __future__ import annotations

from typing import Any

_RENAMED = {
    "column_pictures": "column_images",
    "controls": "sanity_checks",
    "decoder_pictures": "decoder_images",
    "held_out_pictures": "held_out_images",
    "new_pictures": "new_images",
    "pictures": "images",
    "pictures_seen": "images_seen",
    "remains_test_pictures": "remains_test_images",
    "sent_pictures": "sent_images",
    "test_pictures": "test_images",
    "train_pictures": "train_images",
    "unreadable_pictures": "unreadable_images",
}


def upgraded(value: Any) -> Any:
    """Return a JSON value with today's names for its keys; a value of today's version comes back equal.

    Args:
        value: plain JSON: objects, lists, strings, numbers, booleans, None.
    """
    if isinstance(value, dict):
        return {_RENAMED.get(key, key): upgraded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [upgraded(item) for item in value]
    return value

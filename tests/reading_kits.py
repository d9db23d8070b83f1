"""A reading kit of made-up images: reconstructions at half of the contrast."""

from __future__ import annotations

from fakes import fake_audit
from sfumato.lab.audit.readings import Kit, make_kit
from synthetic import image_set

TRAIN, TEST = image_set(80), image_set(100, seed=1)
AUDIT = fake_audit(data={"sha256": {"train": TRAIN.sha256, "test": TEST.sha256}})
GUESSES = (TEST.images.float() * 0.5 + 64).byte()


def kit(**options: object) -> Kit:
    return make_kit(AUDIT, GUESSES, TRAIN, TEST, **({"questions": 40} | options))

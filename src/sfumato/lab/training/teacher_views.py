"""A teacher's logits on a few fixed views of each training image: computed once, and learned from in every epoch.

A teacher costs many times what its student does. With K views, epoch e sees view e modulo K of every image; the teacher
is computed in the first K epochs alone, as the images come, and the same views are seen again from then on. Crops and
flips follow from the seed, so that logits are all that is kept.

Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition" (arXiv 2112.01528): a
teacher's predictions for crops, stored with the crops; that the student must see the very same crops is from Beyer et
al. 2022, "Knowledge distillation: A good teacher is patient and consistent". Ours is that the crops come from a seed,
and that the logits are computed while the student already learns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sfumato.artifacts.files import whole_file
from sfumato.errors import RecipeError, TrainingError
from sfumato.lab.data import Augmentation, ImageSet
from sfumato.lab.data.augment import Changes
from sfumato.lab.models.checkpoint import same_identity
from sfumato.lab.training.batches import Place, as_input, derived_seed, ordered
from sfumato.lab.training.recipe_parts import TrainingRecipe

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
"""Of all logits of a run, on disk; memory holds those of one view."""
_LOGIT_BYTES = 2
_LOGITS = "logits"


def most_views(images: int, classes: int) -> int:
    """Return of how many views the logits fit into `MOST_BYTES`."""
    return MOST_BYTES // (_LOGIT_BYTES * images * classes)


@dataclass
class _View:
    """The logits of one view, (N, classes) float16, and which images they are known of, (N,) bool."""

    number: int
    changes: Changes
    logits: Tensor
    known: Tensor
    saved: bool = True


class TeacherViews:
    """Training batches of fixed views, with the teacher's logits.

    Args:
        teacher: images (n, 3, H, W) float in [0, 1] -> logits (n, classes); called once for each image and view.
        classes: of the logits.
        images: how many training images there are.
        views: of each image, at least 1.
        augmentation: that the views are sampled from.
        folder: of the logits, a file for each view; what is there of the same identity is not computed again.
        identity: of everything that the logits depend on, as text.

    Raises:
        RecipeError: so many logits would take more than `MOST_BYTES`.
    """

    def __init__(
        self,
        teacher: Callable[[Tensor], Tensor],
        *,
        classes: int,
        images: int,
        views: int,
        augmentation: Augmentation,
        folder: Path,
        identity: str,
    ) -> None:
        if views > (most := most_views(images, classes)):
            gib = _LOGIT_BYTES * images * classes * views / 2**30
            instead = f"set it to at most {most}" if most else "leave it out, to have the teacher in every step"
            raise RecipeError(
                f"teacher_views = {views}: the logits of {images:,} images and {classes:,} classes would take "
                f"{gib:.1f} GiB, more than {MOST_BYTES >> 30}; {instead}"
            )
        self.views = views
        self._teacher = teacher
        self._shape = images, classes
        self._augmentation = augmentation
        self._folder = folder
        self._identity = identity
        self._now: _View | None = None

    def batches(
        self, images: ImageSet, plan: TrainingRecipe, place: Place, fabric: Fabric
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the rest of an epoch's batches.

        The teacher is computed of what is not known yet; several processes tell each other what they computed.

        Yields:
            Images (n, 3, H, W) float in [0, 1], labels (n,) int64 and the teacher's logits (n, classes) float32.
        """
        height, width = images.images.shape[2:]
        view = self._now = self._read(place.epoch % self.views, plan.seed, height, width)
        numbered = replace(images, labels=torch.arange(len(images)))
        for batch, rows in ordered(numbered, plan, place):
            x = as_input(view.changes.of(rows)(batch), channels_last=plan.channels_last)
            if not view.known.all():
                self._compute(view, rows, x, fabric)
            taught = view.logits[rows].to(x.device).float()
            yield x, images.labels[rows.to(images.labels.device)], taught

    def save(self) -> None:
        """Write the logits that were computed since they were last saved.

        Raises:
            TrainingError: the disk refuses; the file is as it was.
        """
        view = self._now
        if view is None or view.saved:
            return
        about = {"identity": self._identity, "sha256": _hash(view.logits)}
        try:
            self._folder.mkdir(exist_ok=True)
            with whole_file(self._file(view.number)) as partial:
                partial.write_bytes(save({_LOGITS: view.logits}, about))
        except OSError as error:
            raise TrainingError(
                f"the teacher's logits cannot be written to {self._folder}: {error.strerror or error}; make room, then "
                "--resume"
            ) from error
        view.saved = True

    @torch.no_grad()
    def _compute(self, view: _View, rows: Tensor, x: Tensor, fabric: Fabric) -> None:
        """Complete the logits of a batch: of these rows, (n,) int64, whose views are x."""
        missing = ~view.known[rows]
        if missing.any():
            with fabric.autocast():
                logits = self._teacher(x if missing.all() else x[missing.to(x.device)])
            largest = torch.finfo(torch.float16).max
            view.logits[rows[missing]] = logits.float().clamp(-largest, largest).half().cpu()
        found = view.logits[rows]
        if fabric.world_size > 1:
            gathered: Any = fabric.all_gather((rows.to(x.device), found.to(x.device)))
            rows, found = (part.flatten(0, 1).cpu() for part in gathered)
            view.logits[rows] = found
        view.known[rows] = True
        view.saved = False

    def _read(self, number: int, seed: int, height: int, width: int) -> _View:
        """Return a view with what is known of its logits on disk; the others are not a number there."""
        generator = torch.Generator().manual_seed(derived_seed(seed, "view", number))
        changes = Changes.sample(self._shape[0], height, width, self._augmentation, generator)
        logits = self._stored(self._file(number))
        if logits is None:
            logits = torch.full(self._shape, torch.nan, dtype=torch.float16)
        return _View(number, changes, logits, ~logits.isnan().any(dim=1))

    def _stored(self, file: Path) -> Tensor | None:
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                about = stored.metadata() or {}
                logits: Tensor = stored.get_tensor(_LOGITS)
            same = same_identity(about.get("identity", ""), self._identity)
            if same and (tuple(logits.shape), logits.dtype) == (self._shape, torch.float16):
                if about.get("sha256") == _hash(logits):
                    return logits
                raise SafetensorError("its checksum does not match")
        except (OSError, SafetensorError) as error:
            log.warning("the teacher's logits in %s cannot be read (%s), and are computed again", file, error)
        return None

    def _file(self, number: int) -> Path:
        return self._folder / f"view-{number:03d}.safetensors"


def _hash(logits: Tensor) -> str:
    return sha256(logits.contiguous().numpy().data).hexdigest()

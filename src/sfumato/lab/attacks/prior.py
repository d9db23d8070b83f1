"""An image prior: a rectified flow to images of a data set, trained once for it and kept in the cache folder.

What it learned does not depend on the obfuscator: its training is not counted in an audit's time.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.artifacts.files import whole_file
from sfumato.errors import AuditError
from sfumato.lab.attacks.fit import BATCH
from sfumato.lab.attacks.flow import LEARNING_RATE, WIDTHS, Endpoint, Flow, Given, fit_flow
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FreshPairs
from sfumato.lab.data.cache import root
from sfumato.lab.models.checkpoint import remove_checkpoint

STAGE = "image prior, once for these images"
_SIDE = 32
_LARGE = 16
"""Of larger images the prior sees fewer, so that its training takes as long, up to 128x128; beyond, this share."""
_VERSION = 1
"""Of everything that is not in the key, such as the architecture: the cache of earlier ones is not used."""


@dataclass(frozen=True)
class Prior:
    """A flow without a payload.

    Attributes:
        base: (3, H, W) float32 in [0, 1], the mean image.
    """

    flow: Flow
    base: Tensor

    def given(self, count: int) -> Given:
        """What the flow is told about so many images: nothing but the mean."""
        base = self.base.expand(count, -1, -1, -1)
        return Given(base, base[:, :0])


def images_seen(prior_images: int, height: int, width: int) -> int:
    """Return how many training images a prior sees, given how many it would see of 32x32."""
    alike = prior_images * _SIDE**2 // (height * width)
    return min(max(alike, prior_images // _LARGE, 1), prior_images)


def mean_image(images: Tensor) -> Tensor:
    """Return the mean of images, (N, 3, H, W) uint8 -> (3, H, W) float32 in [0, 1], without a copy of all of them."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in images.split(1000):  # type: ignore[no-untyped-call]
        total += part.double().sum(dim=0)
    return (total / (255 * max(1, len(images)))).float()


def prior_file(images: Tensor, prior_images: int) -> Path:
    """Return the place of a prior in the cache, by the images (N, 3, H, W) uint8 and the recipe; it may not exist."""
    recipe = (_VERSION, tuple(images.shape), prior_images, WIDTHS, LEARNING_RATE, BATCH)
    content = hashlib.sha256(repr(recipe).encode())
    for part in images.split(1000):  # type: ignore[no-untyped-call]
        content.update(part.contiguous().numpy().data)
    return root() / "priors" / f"{content.hexdigest()[:32]}.safetensors"


def image_prior(images: Tensor, budget: AttackBudget) -> Prior:
    """Return the prior of images (N, 3, H, W) uint8 from the cache, or train and keep it.

    An interrupted training resumes from its checkpoint, which is in the cache, too. The budget's `prior_images`, its
    device and its progress are used; the prior does not depend on its seed.

    Raises:
        AuditError: fewer than 5 images, no training images in the budget, or a disk that refuses.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
    """
    if not budget.prior_images:
        raise AuditError("this budget trains no image prior: its prior_images are 0")
    file = prior_file(images, budget.prior_images)
    with contextlib.suppress(OSError, SafetensorError, KeyError, RuntimeError):
        return _loaded(file, budget)
    seen = images_seen(budget.prior_images, images.shape[2], images.shape[3])
    checkpoint = file.with_suffix(".pt")
    own = replace(budget, images=seen, seed=0, checkpoint=checkpoint, stage=STAGE)
    base = mean_image(images)
    given = Prior(Flow(torch.nn.Identity(), 1.0), base).given
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        nothing = FreshPairs(images, lambda x: x[:, :0])
        flow, _ = fit_flow(nothing, lambda observed: given(len(observed)), own, identity=file.stem, widths=WIDTHS)
        state = {name: value.contiguous() for name, value in flow.net.cpu().state_dict().items()}
        with whole_file(file) as partial:
            save_file({**state, "base": base, "spread": torch.tensor(flow.spread)}, partial)
    except (OSError, SafetensorError) as error:
        raise AuditError(
            f"the image prior cannot be kept in {file.parent}: {error}; make room or set SFUMATO_CACHE"
        ) from error
    remove_checkpoint(checkpoint)
    return _loaded(file, budget)


def _loaded(file: Path, budget: AttackBudget) -> Prior:
    state = load_file(file)
    base, spread = state.pop("base"), float(state.pop("spread"))
    net = Endpoint(0, WIDTHS)
    net.load_state_dict(state)
    return Prior(Flow(net.eval().requires_grad_(False).to(budget.device), spread, budget.device), base)

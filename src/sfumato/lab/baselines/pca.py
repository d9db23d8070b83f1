"""Projection on principal components."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import TrainingError
from sfumato.lab.baselines.method import STAGE, Method, Training

MAX_SIDE = 4096
"""Eigenvectors are computed of a matrix of at most this side: of the numbers of an image, or of as many images."""


class PrincipalComponents(Method):
    """Keeps the directions in which the training images vary most, and drops the rest of the image.

    Source: Pearson 1901; as obfuscation: Singh et al. 2024 (SIMBA).
    """

    summary = "projects on principal components of the training images"
    source = "Pearson 1901; Singh et al. 2024"
    strength_help = "the number of components kept"
    default = 400.0
    learns = True
    base: Tensor
    components: Tensor

    def _set_up(self) -> None:
        count, numbers = self._whole(), 3 * self.height * self.width
        if count > numbers:
            raise TrainingError(f"a {self.height}x{self.width} image has {numbers} components, {count} were asked for")
        self.register_buffer("base", torch.zeros(numbers))
        self.register_buffer("components", torch.zeros(count, numbers))

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        codes = (images.flatten(1) - self.base) @ self.components.T
        return (codes @ self.components + self.base).reshape(-1, 3, self.height, self.width)

    @torch.no_grad()
    def fit(self, training: Training) -> nn.Module:
        """See `Method`; exact for all images, or for a random sample of them where an image has very many numbers."""
        count, numbers = self.components.shape
        images = training.images
        if numbers > MAX_SIDE:
            images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))[:MAX_SIDE]]
        if len(images) <= count:
            raise TrainingError(f"{count} components need more images than that, got {len(images)}")
        parts = torch.split(images, 1000)
        total = torch.stack([part.flatten(1).sum(0, dtype=torch.float64) for part in parts]).sum(0)
        self.base.copy_(total / (255 * len(images)))
        small = len(images) < numbers
        if small:
            x = self._centred(images)
            gram = x @ x.T
        else:
            gram = torch.zeros(numbers, numbers)
            for done, part in enumerate(parts, start=1):
                x = self._centred(part)
                gram += x.T @ x
                training.progress(STAGE, done, len(parts))
        vectors = torch.linalg.eigh(gram.double()).eigenvectors[:, -count:].flip(1).float()
        directions = (x.T @ vectors).T if small else vectors.T
        self.components.copy_(directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12))
        return training.classifier

    def _centred(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255 - self.base

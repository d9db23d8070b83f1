"""Scrambling with a key: a fixed permutation of pixels or of blocks, derived from the seed.

A permutation is linear: an attacker with pairs of images and payloads, or only with statistics of images, inverts it.

Source: Tanaka 2018; Kiya et al. 2022 (overview of learnable image transformations with a key), without their
inversions of intensities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.lab.baselines.method import Method


class _Scramble(Method):
    """A fixed permutation of square tiles, or of the pixels in each of them."""

    key: Tensor

    def _set_up(self) -> None:
        self.side = self._tiles()
        self.register_buffer("key", _key(self._permuted(), self.seed))

    def _permuted(self) -> int:
        """Return how many things are permuted."""
        raise NotImplementedError

    def _split(self, images: Tensor) -> Tensor:
        """Return tiles (N, 3, rows, columns, side, side)."""
        rows, columns = self.height // self.side, self.width // self.side
        return images.reshape(-1, 3, rows, self.side, columns, self.side).permute(0, 1, 2, 4, 3, 5)

    def _joined(self, tiles: Tensor) -> Tensor:
        return tiles.permute(0, 1, 2, 4, 3, 5).reshape(-1, 3, self.height, self.width)


class ScramblePixels(_Scramble):
    """Permutes the pixels of every tile, in every tile in the same way.

    Source: AprilPyone and Kiya 2021, "pixel shuffling" with one key for all blocks; colours stay together here.
    """

    summary = "permutes the pixels inside each tile by a key"
    source = "AprilPyone and Kiya 2021; Tanaka 2018"
    strength_help = "the side of a tile in pixels"
    default = 2.0

    def _permuted(self) -> int:
        return self.side**2

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        tiles = self._split(images)
        return self._joined(tiles.flatten(4)[..., self.key].reshape(tiles.shape))


class ScrambleBlocks(_Scramble):
    """Permutes the image's blocks.

    Source: Chuman et al. 2019 (block scrambling), the permutation alone; Kiya et al. 2022.
    """

    summary = "permutes square blocks by a key"
    source = "Chuman et al. 2019; Kiya et al. 2022"
    strength_help = "the side of a block in pixels"
    default = 16.0

    def _permuted(self) -> int:
        return (self.height // self.side) * (self.width // self.side)

    def forward(self, images: Tensor) -> Tensor:
        """See `Method`."""
        tiles = self._split(images)
        return self._joined(tiles.flatten(2, 3)[:, :, self.key].reshape(tiles.shape))


def _key(count: int, seed: int) -> Tensor:
    """Return a permutation (count,) int64 that is not the identity, if count is above 1."""
    source = torch.Generator().manual_seed(seed)
    key = torch.randperm(count, generator=source)
    while count > 1 and torch.equal(key, torch.arange(count)):
        key = torch.randperm(count, generator=source)
    return key

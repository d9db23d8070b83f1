"""Classifiers of one channel: an adapter in front of them converts RGB images to grey."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.errors import ClassifierError

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey.

Source: ITU-R BT.601, as Pillow's mode "L" has them; Pillow rounds the result to one of 256 levels, this does not.
"""
NOTE = (
    "It takes images of one channel: the bundle's network converts RGB images to grey first, 0.299 R + 0.587 G + 0.114 "
    "B. Serve the bundle: the classifier as it was does not take the payloads."
)


class Grey(nn.Module):
    """A classifier of grey images as one of RGB images; payloads have three channels, as for any other.

    Args:
        net: normalised images (N, 1, H, W) float -> logits (N, classes).
    """

    luma: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB images (N, 3, H, W) float, each channel normalised alike -> logits (N, classes).

        The shares sum to 1, so that grey of normalised images is normalised grey.
        """
        logits: Tensor = self.net((images * self.luma).sum(dim=1, keepdim=True))
        return logits


@torch.no_grad()
def takes_grey(net: nn.Module, inputs: Tensor) -> bool:
    """Return whether a network fails on images (N, 3, H, W), and takes their first channel (N, 1, H, W)."""
    works = []
    for images in (inputs, inputs[:, :1]):
        try:
            net(images)
            works.append(True)
        except Exception:  # a user's own network raises anything
            works.append(False)
    return works == [False, True]


def check_alike(preprocessing: Preprocessing, source: str) -> None:
    """Check that all channels are normalised alike.

    Raises:
        ClassifierError: they are not.
    """
    if len(set(preprocessing.mean)) > 1 or len(set(preprocessing.std)) > 1:
        raise ClassifierError(
            f"{source} takes images of one channel; give one number each for mean and std "
            f"(--mean 0.1307 --std 0.3081), got {preprocessing.mean} and {preprocessing.std}"
        )

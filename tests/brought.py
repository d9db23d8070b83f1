"""Classifiers as people bring them: tiny networks of the real architectures, saved the way their libraries do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

LABELS = ("apple", "banana", "cherry", "date")


def save_transformers(folder: Path, kind: str, *, size: int = 64, labels: tuple[str, ...] = LABELS) -> Path:
    """A tiny ViT, ResNet or ConvNeXt with random weights and the image processor of its kind."""
    import transformers as tf

    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }
    convnext = tf.ConvNextImageProcessorPil
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        if kind == "vit":
            shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
            config = tf.ViTConfig(image_size=size, patch_size=8, **shape, **names)
            model, processor = (
                tf.ViTForImageClassification(config),
                tf.ViTImageProcessorPil(size={"height": size, "width": size}),
            )
        elif kind == "resnet":
            sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            model = tf.ResNetForImageClassification(tf.ResNetConfig(**sizes, **names))
            processor = convnext(size={"shortest_edge": size}, crop_pct=0.875, resample=3)
        else:
            config = tf.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], image_size=size, **names)
            model, processor = (
                tf.ConvNextForImageClassification(config),
                convnext(size={"shortest_edge": size}, crop_pct=1.0),
            )
        _spread(model)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _spread(model: nn.Module) -> None:
    """Random answers that differ from image to image by more than rounding."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


class Small(nn.Module):
    """A network of somebody's own, with a batch norm, a constant and a tensor made on the way."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("shift", torch.linspace(-1, 1, classes), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(x)).relu().mean(dim=(2, 3))
        return self.head(features) + self.shift + 0 * torch.arange(x.shape[0], device=x.device)[:, None]


def small(classes: int = 4) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small(classes)
        nn.init.uniform_(net.norm.running_mean, -0.2, 0.2)
    return net.eval()


def save_program(path: Path, net: nn.Module, *, size: tuple[int, int] = (32, 32), free: bool = True) -> Path:
    """What `torch.export.save` writes, untouched by us."""
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    torch.export.save(torch.export.export(net, (torch.rand(2, 3, *size),), dynamic_shapes=shapes), path)
    return path

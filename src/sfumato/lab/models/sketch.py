"""An obfuscator that decides on the device and draws only its decision.

What an obfuscated image may tell is limited before anything is drawn: a trunk looks at the image and answers, its
answer and a few bits more make a code, and the drawing is made from the code alone. Two images with the same code
give the same drawing, so no attacker, whatever he knows, learns more about an image than those bits.

Source: the discrete bottleneck is that of van den Oord et al. 2017 (VQ-VAE) in its binary form, Theis et al. 2017,
section 2.1; the trunk's blocks are those of He et al. 2016. That the answer itself is a part of the code is ours, as
are widths and depths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.models.classifiers import BasicBlock, ResNet
from sfumato.lab.models.normalize import Normalize
from sfumato.lab.models.precision import compute

TRUNK = (2, 2, 1), (32, 64, 88)
"""Depths and widths of the stages behind the stem, chosen so that all fits the paper's 324,518 parameters."""
_HIDDEN = 48
"""Numbers between the trunk's features and the bits of the code."""
_MEANING = 24
"""Numbers that a code is turned into before anything is drawn, so that many classes do not take many parameters."""
_DRAWN = 4, 32
"""Side and channels of the first drawn map."""
_STEM_REDUCTIONS = (64, 1), (160, 2)
"""Up to which side of the image the trunk's stem makes it smaller by how much; by 4 beyond."""


def answer_bits(classes: int) -> int:
    """How many bits it takes to say one of so many classes, at least 2."""
    return (classes - 1).bit_length()


def stem_reduction(height: int, width: int) -> int:
    """By how much the trunk's stem makes an image's sides smaller: 1, 2 or 4.

    The paper's obfuscator works at full resolution whatever the size. The trunk does so for small images alone, so
    that for large ones its cost stays about the same: 14 % of a ResNet18's at 128 pixels, 4 % at 224.
    """
    return next((reduction for side, reduction in _STEM_REDUCTIONS if max(height, width) <= side), 4)


class _Sign(torch.autograd.Function):
    """+1 or -1 forward; backward the gradient passes where the input lies in [-1, 1].

    Source: Bengio et al. 2013 (straight-through estimator), in the clipped form of Courbariaux et al. 2016.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = grads[0] * (x.abs() <= 1)
        return passed


def sign(x: Tensor) -> Tensor:
    """Bits as +1 and -1, with a gradient; 0 counts as -1."""
    if torch.compiler.is_exporting():
        return torch.where(x > 0, 1.0, -1.0)
    out: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return out


class Photographs(nn.Module):
    """One image for each answer in place of a drawing: the same for every code that begins with that answer.

    Args:
        classes: answers.
        height: rows of the images.
        width: columns of the images.
    """

    images: Tensor

    def __init__(self, classes: int, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(classes, 3, height, width, dtype=torch.uint8))

    def forward(self, code: Tensor) -> Tensor:
        """Codes, as `Sketcher.look` gives them -> (N, 3, H, W) float32 in [0, 1]."""
        return self.images[code[:, : len(self.images)].argmax(dim=1)].float() / 255


class Sketcher(nn.Module):
    """Image in, drawing out, and what the device itself believes.

    The code says the device's answer first, so that the classifier in the cloud can answer no worse than the device;
    the bits that are left are learned.

    Args:
        height: rows of the images.
        width: columns of the images.
        classes: that the device's own head tells apart, at least 2.
        bits: of the code.
        photographs: draw a photograph for each answer; whoever builds it puts them in, and nothing is learned.

    Attributes:
        photographs: what is drawn instead, if anything.

    Raises:
        ValueError: the bits are too few to say the answer.
    """

    def __init__(
        self, height: int = 32, width: int = 32, *, classes: int = 10, bits: int = 8, photographs: bool = False
    ) -> None:
        super().__init__()
        learned = bits - answer_bits(classes)
        if learned < 0:
            raise ValueError(f"to say one of {classes} classes takes {answer_bits(classes)} bits, got {bits}")
        depths, widths = TRUNK
        side, channels = _DRAWN
        self.size = height, width
        self.classes = classes
        self.bits = bits
        reduction = stem_reduction(height, width)
        self.trunk = ResNet(BasicBlock, (0, *depths), (widths[0], *widths), classes, reduction=reduction)
        self.to_bits: nn.Module | None = None
        if learned:
            # Signs of a linear map would be half-spaces, which are few for what there is to tell.
            self.to_bits = nn.Sequential(
                nn.Linear(widths[-1], _HIDDEN),
                nn.ReLU(inplace=True),
                nn.Linear(_HIDDEN, learned),
                nn.BatchNorm1d(learned),
            )
        self.photographs = Photographs(classes, height, width) if photographs else None
        if photographs:
            return
        self.from_code = nn.Sequential(
            nn.Linear(classes + learned, _MEANING),
            nn.LeakyReLU(inplace=True),
            nn.Linear(_MEANING, channels * side * side),
            nn.Unflatten(1, (channels, side, side)),
        )
        self.draw = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.LeakyReLU(inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels // 2, 12, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Sigmoid(),
        )

    @property
    def looking(self) -> nn.ModuleList:
        """What makes the code of an image: all that has to stay as it is for codes to keep their meaning."""
        return nn.ModuleList(part for part in (self.trunk, self.to_bits) if part is not None)

    def look(self, images: Tensor, *, bits_alone: bool = False, bfloat16: bool = False) -> tuple[Tensor, Tensor]:
        """The code and the device's own answer.

        Args:
            images: (N, 3, H, W) float32 in [0, 1].
            bits_alone: let what is learned from the code reach the learned bits, but not the trunk beneath them.
            bfloat16: compute the trunk so; see `sfumato.lab.models.precision`.

        Returns:
            Codes (N, classes + learned bits) float32, a 1 for the answer among 0 for the other classes and then +1 or
            -1 for each learned bit; and logits (N, classes) float32.
        """
        features = compute(self.trunk.features, (images - 0.5) / 0.25, bfloat16=bfloat16)
        logits = self.trunk.head(features)
        classes = torch.arange(logits.shape[1], device=logits.device)
        answer = (classes == logits.argmax(dim=1, keepdim=True)).to(features.dtype)
        if self.to_bits is None:
            return answer, logits
        return torch.cat([answer, sign(self.to_bits(features.detach() if bits_alone else features))], dim=1), logits

    def pack(self, code: Tensor) -> Tensor:
        """Codes, as `look` gives them -> (N, B) uint8: the bits from the left, zeros after them.

        The first bits number the answer's class, the highest first; the others are 1 for +1 and 0 for -1.
        """
        answer = code[:, : self.classes].argmax(dim=1, keepdim=True) // self._places().to(code.device) % 2
        bits = torch.cat([answer.to(code.dtype), (code[:, self.classes :] > 0).to(code.dtype)], dim=1)
        whole = F.pad(bits, (0, -self.bits % 8)).reshape(-1, (self.bits + 7) // 8, 8)
        weights = torch.tensor([128.0, 64, 32, 16, 8, 4, 2, 1], device=code.device)
        packed: Tensor = (whole * weights).sum(dim=2).to(torch.uint8)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of `pack`. A class number that no class has gives a code without an answer."""
        shifts = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], device=packed.device)
        bits = (packed.to(torch.int64).unsqueeze(2) // shifts % 2).flatten(1)
        places = self._places()
        number = (bits[:, : len(places)] * places.to(packed.device)).sum(dim=1, keepdim=True)
        answer = torch.arange(self.classes, device=packed.device) == number
        return torch.cat([answer.float(), bits[:, len(places) : self.bits].float() * 2 - 1], dim=1)

    def _places(self) -> Tensor:
        return torch.tensor([2**place for place in reversed(range(answer_bits(self.classes)))])

    def drawing(self, code: Tensor) -> Tensor:
        """Codes, as `look` gives them -> drawings (N, 3, H, W) float32 in [0, 1]."""
        if self.photographs is not None:
            taken: Tensor = self.photographs(code)
            return taken
        drawn: Tensor = self.draw(self.from_code(code)).float()
        return drawn if drawn.shape[2:] == self.size else F.interpolate(drawn, size=self.size, mode="bilinear")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Obfuscates.

        Args:
            images: (N, 3, H, W) float32 in [0, 1], of the size that it was built for.

        Returns:
            Drawings (N, 3, H, W) float32 in [0, 1], and the device's own logits (N, classes) float32.
        """
        code, logits = self.look(images)
        return self.drawing(code), logits


def sketcher_of(recipe: Mapping[str, Any], height: int, width: int, *, classes: int) -> Sketcher:
    """The network that a recipe describes, with fresh weights; training and audit build it here.

    Args:
        recipe: of kind "sketch", as it lies in a bundle.
        height: rows of the images.
        width: columns of the images.
        classes: of the classifier.

    Raises:
        KeyError, TypeError, ValueError: it describes no sketch, or its code is too short.
    """
    photographs = recipe.get("drawing", "learned") == "photographs"
    return Sketcher(height, width, classes=classes, bits=int(recipe["code_bits"]), photographs=photographs)


class SketchGraph(nn.Module):
    """A sketcher as the device runs it: the payload, the device's own answer, calibrated, and the code.

    The payload is the drawing, or in the split form the code, from which `SketchDecoder` draws the same.

    Args:
        sketcher: trained.
        normalize: from images in [0, 1] to the classifier's input.
        temperature: that the device's logits are divided by, above 0.
    """

    def __init__(self, sketcher: Sketcher, normalize: Normalize, *, temperature: float) -> None:
        super().__init__()
        self.sketcher = sketcher
        self.normalize = normalize
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Looks once, for all that the device may need.

        Args:
            images: (N, 3, H, W) float32 in [0, 1].

        Returns:
            The classifier's input (N, 3, H, W) float32, logits (N, classes) float32, packed codes (N, B) uint8.
        """
        code, logits = self.sketcher.look(images)
        drawn = self.normalize(self.sketcher.drawing(code))
        return drawn, logits / self.temperature, self.sketcher.pack(code)


class SketchDecoder(nn.Module):
    """The cloud's half of a sketcher, which is no secret: draws what the classifier in the cloud looks at.

    Args:
        sketcher: trained.
        normalize: from images in [0, 1] to the classifier's input.
    """

    def __init__(self, sketcher: Sketcher, normalize: Normalize) -> None:
        super().__init__()
        self.sketcher = sketcher
        self.normalize = normalize

    def forward(self, packed: Tensor) -> Tensor:
        """Packed codes (N, B) uint8 -> the classifier's input (N, 3, H, W) float32."""
        out: Tensor = self.normalize(self.sketcher.drawing(self.sketcher.unpack(packed)))
        return out


class SketchPayload(nn.Module):
    """The payload of a sketcher's images: the first output of its graph.

    Args:
        sketcher: trained.
        normalize: from images in [0, 1] to the classifier's input.

    Attributes:
        code_bits: the payload takes at most 2 to this power different values.
    """

    def __init__(self, sketcher: Sketcher, normalize: Normalize) -> None:
        super().__init__()
        self.sketcher = sketcher
        self.normalize = normalize
        self.code_bits = sketcher.bits

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> the classifier's input, the same shape."""
        out: Tensor = self.normalize(self.sketcher(images)[0])
        return out

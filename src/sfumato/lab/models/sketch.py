"""An obfuscator that classifies on the device and sends an image decoded from a few bits.

A trunk classifies the image; its prediction and a few learned bits make a code, and the obfuscated image is decoded
from the code alone. Two images with the same code give the same obfuscated image, so no attacker, whatever it knows,
learns more about an image than those bits.

Source: the discrete bottleneck is that of van den Oord et al. 2017 (VQ-VAE) in its binary form, Theis et al. 2017,
section 2.1; the trunk's blocks are those of He et al. 2016, or see `sfumato.lab.models.device_nets`. That the
prediction is a part of the code is ours, as are widths and depths.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.lab.models.classifiers import BasicBlock, ResNet
from sfumato.lab.models.device_nets import DEVICE_NETS, DeviceNet
from sfumato.lab.models.fixed_ops import Normalize, straight_through
from sfumato.lab.models.precision import compute

Trunk = Literal["resnet", "device-nano", "device-paper", "device-large"]
"""A residual network within the paper's budget, which every sketch of the first version has, or a device network."""
_RESNET = (2, 2, 1), (32, 64, 88)
"""Depths and widths of the stages behind the stem, chosen so that all fits the paper's 324,518 parameters."""
_HIDDEN = 48
"""Units between the trunk's features and the bits of the code."""
_EMBEDDING = 24
"""Units that a code is embedded in before it is decoded, so that many classes do not take many parameters."""
_DECODED = 4, 32
"""Side and channels of the decoder's first map."""
_PLACES = 128, 64, 32, 16, 8, 4, 2, 1
MOST_KEPT = 4096
"""Codes with enough images that are told apart at most, besides one for each class; the commonest ones."""
_STEM_REDUCTIONS = (64, 1), (160, 2)
"""Largest image side, and by how much the stem of the residual trunk reduces it; by 4 beyond.

The paper's obfuscator works at full resolution at any size. The trunk does so for small images only, so that its cost
for large ones stays about the same: 14 % of a ResNet18's at 128 pixels, 4 % at 224.
"""


def class_bits(classes: int) -> int:
    """Return how many bits number one of so many classes, at least 2."""
    return (classes - 1).bit_length()


def _class_places(classes: int) -> Tensor:
    return torch.tensor([2**place for place in reversed(range(class_bits(classes)))])


def _packing_map(classes: int, bits: int) -> tuple[Tensor, Tensor]:
    """Return the affine map from codes to their bytes, as each is linear: (classes + learned bits, B) and (B,)."""
    weights = torch.zeros(bits, (bits + 7) // 8)
    for place in range(bits):
        weights[place, place // 8] = _PLACES[place % 8]
    numbers = (torch.arange(classes)[:, None] // _class_places(classes) % 2).float()
    of_class, of_bits = weights[: numbers.shape[1]], weights[numbers.shape[1] :]
    return torch.cat([numbers @ of_class, of_bits / 2]), of_bits.sum(dim=0) / 2


def sign(x: Tensor) -> Tensor:
    """Return bits as +1 and -1, with a gradient where x lies in [-1, 1]; 0 counts as -1."""
    return straight_through(x, torch.where(x > 0, 1.0, -1.0), -1.0)


class Photographs(nn.Module):
    """One public image per class in place of a learned decoder: the same for every code of that class."""

    images: Tensor

    def __init__(self, classes: int, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(classes, 3, height, width, dtype=torch.uint8))

    def forward(self, code: Tensor) -> Tensor:
        """Codes, as `Sketcher.encode` returns them -> (N, 3, H, W) float32 in [0, 1]."""
        return self.images[code[:, : len(self.images)].argmax(dim=1)].float() / 255


class Sketcher(nn.Module):
    """Images to decoded images, and the device's own prediction.

    The code begins with this prediction, so that the classifier in the cloud need not do worse; the other bits are
    learned.

    Args:
        height: rows of the images.
        width: columns of the images.
        classes: of the device's own head, at least 2.
        bits: of the code.
        photographs: decode to one image per class; the caller sets them, and no decoder is learned. The attribute of
            this name holds them, or None.
        trunk: the network that classifies.

    Attributes:
        kept_classes: (K,) int64, the classes of the codes that are decoded, see `keep_codes`; None if all are.
        kept_bits: (K, learned bits) float32, their other bits.

    Raises:
        ValueError: the bits are too few to number the classes.
    """

    kept_classes: Tensor | None
    kept_bits: Tensor | None
    _packing: Tensor
    _packing_offset: Tensor

    def __init__(
        self,
        height: int = 32,
        width: int = 32,
        *,
        classes: int = 10,
        bits: int = 8,
        photographs: bool = False,
        trunk: Trunk = "resnet",
    ) -> None:
        super().__init__()
        learned = bits - class_bits(classes)
        if learned < 0:
            raise ValueError(f"{classes} classes take {class_bits(classes)} bits, got {bits}")
        side, channels = _DECODED
        self.size, self.classes, self.bits = (height, width), classes, bits
        self.trunk = _trunk(trunk, max(height, width), classes)
        self.to_bits: nn.Module | None = None
        if learned:
            # Signs of a linear map would be half-spaces: too few functions.
            self.to_bits = nn.Sequential(
                nn.Linear(self.trunk.head.in_features, _HIDDEN),
                nn.ReLU(inplace=True),
                nn.Linear(_HIDDEN, learned),
                nn.BatchNorm1d(learned),
            )
        for name, value in zip(("_packing", "_packing_offset"), _packing_map(classes, bits), strict=True):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("kept_classes", None)
        self.register_buffer("kept_bits", None)
        self.photographs = Photographs(classes, height, width) if photographs else None
        if photographs:
            return
        self.from_code = nn.Sequential(
            nn.Linear(classes + learned, _EMBEDDING),
            nn.LeakyReLU(inplace=True),
            nn.Linear(_EMBEDDING, channels * side * side),
            nn.Unflatten(1, (channels, side, side)),
        )
        self.draw = nn.Sequential(  # with `from_code` the decoder; weights in bundles have this name
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
    def code_values(self) -> int:
        """How many different codes `encode` can return: each names one of the classes."""
        return int(self.classes * 2 ** (self.bits - class_bits(self.classes)))

    @property
    def encoder(self) -> nn.ModuleList:
        """What makes the code of an image: all that must not change for codes to keep their meaning."""
        return nn.ModuleList(part for part in (self.trunk, self.to_bits) if part is not None)

    def encode(self, images: Tensor, *, bits_alone: bool = False, bfloat16: bool = False) -> tuple[Tensor, Tensor]:
        """Return the code of images (N, 3, H, W) float32 in [0, 1], and the device's own logits.

        Args:
            images: of the size that it was built for.
            bits_alone: let the code's gradient reach the learned bits, but not the trunk beneath them.
            bfloat16: compute the trunk so; see `sfumato.lab.models.precision`.

        Returns:
            Codes (N, classes + learned bits) float32: the predicted class one-hot, then +1 or -1 for each learned bit;
            and logits (N, classes) float32.
        """
        features = compute(self.trunk.features, (images - 0.5) / 0.25, bfloat16=bfloat16)
        logits = self.trunk.head(features)
        classes = torch.arange(logits.shape[1], device=logits.device)
        predicted = (classes == logits.argmax(dim=1, keepdim=True)).to(features.dtype)
        if self.to_bits is None:
            return predicted, logits
        return torch.cat([predicted, sign(self.to_bits(features.detach() if bits_alone else features))], dim=1), logits

    def pack(self, code: Tensor) -> Tensor:
        """Codes, as `encode` returns them -> (N, B) uint8: the bits from the left, zeros after them.

        The first bits number the class, the highest first; the others are 1 for +1 and 0 for -1.
        """
        packed: Tensor = (code @ self._packing + self._packing_offset).to(torch.uint8)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Invert `pack`; a number that no class has gives a code without a class."""
        shifts = torch.tensor(_PLACES, device=packed.device)
        bits = (packed.to(torch.int64).unsqueeze(2) // shifts % 2).flatten(1)
        places = _class_places(self.classes)
        number = (bits[:, : len(places)] * places.to(packed.device)).sum(dim=1, keepdim=True)
        predicted = torch.arange(self.classes, device=packed.device) == number
        return torch.cat([predicted.float(), bits[:, len(places) : self.bits].float() * 2 - 1], dim=1)

    def keep_codes(self, codes: Tensor, counts: Tensor, least: int) -> None:
        """Decode only codes that at least so many images have, so that no image decoded shows fewer images than that.

        If a class has no such code, but as many images, its commonest code is kept for all of them.

        Source: k-anonymity by generalisation, Sweeney 2002.

        Args:
            codes: different ones, as `encode` returns them, (K, classes + learned bits) float32.
            counts: how many images have each, (K,) int64.
            least: at least 1.
        """
        order = counts.argsort(descending=True, stable=True)
        codes, counts = codes[order], counts[order]
        classes = codes[:, : self.classes].argmax(dim=1)
        totals = torch.zeros(self.classes, dtype=counts.dtype).index_add(0, classes, counts)
        first = torch.zeros(len(codes), dtype=torch.bool)
        first[[int((classes == own).int().argmax()) for own in torch.unique(classes)]] = True
        kept = (counts >= least) | (first & (totals[classes] >= least))
        kept[0] = True
        kept[MOST_KEPT:] &= first[MOST_KEPT:]
        self.kept_classes, self.kept_bits = classes[kept], codes[kept][:, self.classes :].clone()

    def merge(self, code: Tensor) -> Tensor:
        """Replace codes that are not kept by the most similar one, of the same class if it has one; same shape."""
        if self.kept_classes is None or self.kept_bits is None:
            return code
        own, bits = code[:, : self.classes], code[:, self.classes :]
        numbers = torch.arange(self.classes, device=code.device)
        of_class = (self.kept_classes.unsqueeze(1) == numbers).to(code.dtype)
        # Products of bits lie in [-learned, learned]: another class is never nearer.
        nearness = own @ of_class.T * (2 * bits.shape[1] + 1) + bits @ self.kept_bits.to(code.dtype).T
        nearest = nearness.argmax(dim=1)
        return torch.cat([of_class[nearest], self.kept_bits.to(code.dtype)[nearest]], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Take the kept codes, of whatever number, where the weights have them."""
        for name in ("kept_classes", "kept_bits"):
            found = state_dict.get(prefix + name)
            setattr(self, name, None if found is None else torch.empty_like(found))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def decode(self, code: Tensor) -> Tensor:
        """Codes, as `encode` returns them -> decoded images (N, 3, H, W) float32 in [0, 1]."""
        code = self.merge(code)
        if self.photographs is not None:
            taken: Tensor = self.photographs(code)
            return taken
        return self._decoded(code)

    def relaxed(self, images: Tensor) -> Tensor:
        """Return the decoded images, with the gradients that an attacker gets through a discrete code.

        The values are those of `forward`. Gradients are those of the decoder at the same bits and the class
        probabilities, as if no codes were merged.

        Source: straight-through, see `straight_through`; for attacks Athalye, Carlini and Wagner 2018, section 4.1.
        """
        code, logits = self.encode(images)
        exact = self.decode(code.detach())
        probable = logits.softmax(dim=1)
        if self.photographs is not None:
            near = (probable @ (self.photographs.images.float() / 255).flatten(1)).view_as(exact)
        else:
            near = self._decoded(torch.cat([probable, code[:, self.classes :]], dim=1))
        return near + (exact - near).detach()

    def _decoded(self, code: Tensor) -> Tensor:
        decoded: Tensor = self.draw(self.from_code(code)).float()
        return decoded if decoded.shape[2:] == self.size else F.interpolate(decoded, size=self.size, mode="bilinear")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) float32 in [0, 1] -> decoded images, likewise, and the device's own logits (N, classes)."""
        code, logits = self.encode(images)
        return self.decode(code), logits


def _trunk(name: Trunk, side: int, classes: int) -> ResNet | DeviceNet:
    if name != "resnet":
        return DeviceNet(DEVICE_NETS[name], classes)
    reduction = next((by for largest, by in _STEM_REDUCTIONS if side <= largest), 4)
    depths, widths = _RESNET
    return ResNet(BasicBlock, (0, *depths), (widths[0], *widths), classes, reduction=reduction)


class SketchGraph(nn.Module):
    """A sketcher as the device runs it: the payload, the device's own prediction, calibrated, and the code.

    The payload is the decoded image, or in the split form the code, which `SketchDecoder` decodes to the same image.
    The device's logits are divided by the temperature, above 0.
    """

    def __init__(self, sketcher: Sketcher, normalize: Normalize, *, temperature: float) -> None:
        super().__init__()
        self.sketcher, self.normalize, self.temperature = sketcher, normalize, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute in one pass all that the device may need of images (N, 3, H, W) float32 in [0, 1].

        Returns:
            The classifier's input (N, 3, H, W) float32, logits (N, classes) float32, packed codes (N, B) uint8.
        """
        code, logits = self.sketcher.encode(images)
        decoded = self.normalize(self.sketcher.decode(code))
        return decoded, logits / self.temperature, self.sketcher.pack(code)


class SketchDecoder(nn.Module):
    """The cloud's half of a sketcher, which need not be secret: decodes to the input of the classifier in the cloud."""

    def __init__(self, sketcher: Sketcher, normalize: Normalize) -> None:
        super().__init__()
        self.sketcher, self.normalize = sketcher, normalize

    def forward(self, packed: Tensor) -> Tensor:
        """Packed codes (N, B) uint8 -> the classifier's input (N, 3, H, W) float32."""
        out: Tensor = self.normalize(self.sketcher.decode(self.sketcher.unpack(packed)))
        return out

"""The payload in torch: what the device sends for an image."""

from __future__ import annotations

from torch import Tensor, nn

from sfumato.lab.models.fixed_ops import LEVEL
from sfumato.lab.models.normalize import Normalize
from sfumato.lab.models.obfuscator import NoisyCode, Obfuscator
from sfumato.lab.models.sketch import Sketcher


class Payload(nn.Module):
    """Images to the payload: obfuscated images as the classifier's input, computed as the device does it.

    `normalize` takes images (height, width) in [0, 1] to the classifier's input.

    Attributes:
        step: the largest distance of two neighbouring values where they are rounded; 0 where they are not.
        code_bits: of a sketcher alone; the payload takes at most `2 ** code_bits` different values.
        noisy_code: of an obfuscator with noise alone; the payload depends on the image through it alone.
    """

    code_bits: int
    noisy_code: NoisyCode

    def __init__(self, obfuscator: Obfuscator | Sketcher, normalize: Normalize, height: int, width: int) -> None:
        super().__init__()
        self.obfuscator = obfuscator
        self.normalize = normalize
        self.step = 0.0
        if isinstance(obfuscator, Sketcher):
            self.code_bits = obfuscator.bits
            return
        if obfuscator.eight_bit:
            self.step = LEVEL / float(normalize.std.min())
        if obfuscator.noise is not None:
            self.noisy_code = NoisyCode(obfuscator, height, width)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> the classifier's input, the same shape."""
        net = self.obfuscator
        out: Tensor
        if isinstance(net, Sketcher):
            out = self.normalize(net(images)[0])
        else:
            out = net.last_upsampling(self.normalize(net.decode_small(net.encode(images))))
        return out

"""What the operator of the cloud sees: the payload, and the classifier's features and logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import AuditError

_BATCH = 50


class CloudView(nn.Module):
    """Appends the classifier's last spatial features and its logits to the payload, as further channels.

    Source: features of split classifiers as the attacker's input, He et al. 2019, section 3.

    Args:
        classifier: the payload (N, C, H, W) float32 -> logits (N, classes).
        payload: (N, C, H, W) float32, an example.

    Raises:
        AuditError: the classifier does not take the payload.
    """

    def __init__(self, classifier: nn.Module, payload: Tensor) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self._features = torch.empty(0)
        last: list[nn.Module] = []

        def note(module: nn.Module, _: object, out: object) -> None:
            if isinstance(out, Tensor) and out.ndim == 4 and out.shape[-1] > 1:
                last[:] = [module]

        hooks = [module.register_forward_hook(note) for module in classifier.modules()]
        try:
            with torch.no_grad():
                classifier(payload)
        except (RuntimeError, ValueError) as error:
            raise AuditError(f"the classifier does not take the payload, {tuple(payload.shape)}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        if last:
            last[0].register_forward_hook(self._keep)
        self._channels = self._append(payload[:1]).shape[1]

    def _keep(self, _: nn.Module, __: object, features: Tensor) -> None:
        self._features = features

    @torch.no_grad()
    def forward(self, payload: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, C + features + classes, H, W) float32; the payload comes first."""
        # In place, a few images at a time: together they are some hundred times as large as the payload.
        view = payload.new_empty(len(payload), self._channels, *payload.shape[-2:])
        for rows in torch.split(torch.arange(len(payload)), _BATCH):
            view[rows] = self._append(payload[rows])
        return view

    @torch.no_grad()
    def _append(self, payload: Tensor) -> Tensor:
        size = payload.shape[-2:]
        logits = self.classifier(payload)
        parts = [payload, *([F.interpolate(self._features, size=size)] if self._features.numel() else [])]
        return torch.cat([*parts, logits[:, :, None, None].expand(-1, -1, *size)], dim=1)

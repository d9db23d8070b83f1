"""Makes a target of a bundle, any ONNX file, or a Python callable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.artifacts.bundle import (
    BASELINE,
    DECODER_ONNX,
    DEOBFUSCATOR_ONNX,
    FLOAT_WEIGHTS,
    OBFUSCATOR_ONNX,
    OBFUSCATOR_WEIGHTS,
    Bundle,
)
from sfumato.artifacts.fingerprint import fingerprint
from sfumato.artifacts.lab_files import find_lab_file
from sfumato.artifacts.onnx_file import OnnxFunction, runtime_reason
from sfumato.artifacts.plugins import import_object
from sfumato.errors import AuditError
from sfumato.lab.attacks.target import Coded, LocalClassifier, Obfuscate, Target
from sfumato.lab.baselines.bundles import load_module, refit
from sfumato.lab.evaluation.accuracy import device_logits
from sfumato.lab.export.onnx import TOLERANCE, difference
from sfumato.lab.models import Normalize, Payload
from sfumato.lab.models.rebuild import rebuilt

_PROBES = 4
_NEAR = 0.25
"""How far 8-bit integers may be from float32 on average, in standard deviations; far more than rounding makes."""


def load_target(source: Bundle | str, *, size: tuple[int, int]) -> Target:
    """Load what is to be audited.

    Args:
        source: a bundle or its folder, an ONNX file, or `module:name` of a Python callable; the latter two take
            images (N, 3, H, W) float32 in [0, 1] and return the payload, (N, C, H', W') float32. A callable
            that is an `nn.Module`, or passes gradients, is attacked with gradients too.
        size: (H, W) of the images that it takes.

    Raises:
        AuditError: nothing of the three, or it does not do what an obfuscator does.
        BundleError: a bundle that is damaged or not an obfuscator's.
    """
    found = _opened(source)
    if isinstance(found, Bundle):
        return bundle_target(found)
    if isinstance(found, Path):
        target = _probed(found.stem, size, _from_onnx(found), None)
        return replace(target, fingerprint=fingerprint(found).removeprefix("sha256:"))
    function = import_object(found, AuditError)
    if isinstance(function, type):
        function = function()
    if not callable(function):
        raise AuditError(
            f"{source!r} is a {type(function).__name__}; a callable from images to the payload is expected"
        )
    module = function if isinstance(function, nn.Module) else _Wrapped(function)
    target = _probed(found, size, _without_gradients(module), module)
    return target if _passes_gradients(module, size) else _probed(found, size, target.payload, None)


def native_size(source: Bundle | str) -> tuple[int, int] | None:
    """Return the image size (H, W) that a bundle or an ONNX file states; None if it states none.

    Raises:
        AuditError: nothing that can be audited.
        BundleError: a damaged file, or not an obfuscator's bundle.
    """
    found = _opened(source)
    if isinstance(found, Bundle):
        return found.preprocessing.height, found.preprocessing.width
    if isinstance(found, str):
        return None
    *_, height, width = [None, None, *OnnxFunction(found).input_shape]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _opened(source: Bundle | str) -> Bundle | Path | str:
    """A bundle, the path of an ONNX file, or the name of a callable."""
    if isinstance(source, Bundle):
        return source
    path = Path(source)
    if path.is_dir():
        return Bundle.load(path, kind="obfuscator")
    if path.suffix == ".onnx":
        if not path.is_file():
            raise AuditError(f"no ONNX file at {path}")
        return path
    if ":" not in source:
        raise AuditError(
            f"{source!r} is nothing that can be audited: expected a bundle's folder, an .onnx file, or module:name of "
            "a Python callable"
        )
    return source


def bundle_target(bundle: Bundle) -> Target:
    """Return the obfuscator of a bundle: the shipped ONNX file, and its weights for gradients where they are known.

    One in 8-bit integers has no gradient; it is attacked through that of the weights that it was made of.

    Raises:
        AuditError: the weights compute something else than the ONNX file, or, for one in 8-bit integers, something far
            from it.
        BundleError: the files do not fit the recipe.
    """
    size = bundle.preprocessing.height, bundle.preprocessing.width
    name = str(bundle.recipe.name or bundle.recipe.method or bundle.path.name)
    payload, module = _from_onnx(bundle.file(OBFUSCATOR_ONNX)), _module(bundle)
    if module is not None and find_lab_file(bundle, FLOAT_WEIGHTS):
        module = _ThroughFile(payload, module)
    target = _probed(name, size, payload, module)
    if isinstance(module, _ThroughFile) and not target.stochastic:
        _check_near(bundle, module)
    target = replace(
        target,
        fingerprint=bundle.files[OBFUSCATOR_ONNX],
        gate=_gate(bundle),
        bundle=bundle,
        deobfuscator=_deobfuscator(bundle),
    )
    if bundle.recipe.kind != BASELINE:
        return target

    def again(seed: int) -> Target | None:
        other = (bundle.recipe.seed or 0) + seed
        module = refit(bundle, other)
        return None if module is None else _probed(f"{name}, seed {other}", size, _without_gradients(module), module)

    kind = "identity" if bundle.recipe.method == "identity" else "baseline"
    return replace(target, kind=kind, refit=again)


def _module(bundle: Bundle) -> nn.Module | None:
    weights = FLOAT_WEIGHTS if find_lab_file(bundle, FLOAT_WEIGHTS) else OBFUSCATOR_WEIGHTS
    if bundle.recipe.kind == BASELINE:
        return load_module(bundle, weights)
    net, size = rebuilt(bundle, weights), bundle.preprocessing
    return None if net is None else Payload(net, Normalize(size.mean, size.std), size.height, size.width)


class _ThroughFile(nn.Module):
    """What a file in 8-bit integers computes, with the gradients of the network that it was made of.

    Source: backward pass differentiable approximation, Athalye, Carlini and Wagner 2018, section 4.1.
    """

    def __init__(self, payload: Obfuscate, module: nn.Module) -> None:
        super().__init__()
        self.payload, self.module = payload, module
        if isinstance(module, Coded):  # integers change which code it makes, and nothing else passes
            self.code_bits = module.code_bits
            self.code_values: int = getattr(module, "code_values", 2**module.code_bits)

    def forward(self, images: Tensor) -> Tensor:
        near: Tensor = self.module(images)
        exact = self.payload(images.detach().cpu()).to(near)
        return near + (exact - near).detach()


@torch.no_grad()
def _check_near(bundle: Bundle, module: _ThroughFile) -> None:
    """Check that a file in 8-bit integers differs from its float network by no more than rounding explains."""
    size = bundle.preprocessing
    images = torch.rand(_PROBES, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    exact, *more = OnnxFunction(bundle.file(OBFUSCATOR_ONNX)).all(images.numpy())
    if isinstance(module, Coded):  # another code is decoded to another image, but every image is that of its code
        wanted = torch.from_numpy(OnnxFunction(bundle.file(DECODER_ONNX))(more[-1]))
    else:
        wanted = module.module(images)
    apart = float((torch.from_numpy(exact) - wanted).abs().mean() / wanted.std().clamp_min(1e-6))
    if not apart <= _NEAR:
        raise AuditError(
            f"{bundle.path}: its file in 8-bit integers is far from what it was made of, {apart:.0%} of the spread: "
            "quantise it again, on more images; or audit the ONNX file by itself, without gradients"
        )


def _from_onnx(path: Path) -> Obfuscate:
    run = OnnxFunction(path, threads=torch.get_num_threads())
    return lambda images: torch.from_numpy(run(images.numpy()))


def _gate(bundle: Bundle) -> LocalClassifier | None:
    if bundle.gate is None:
        return None
    run = OnnxFunction(bundle.file(OBFUSCATOR_ONNX), threads=torch.get_num_threads())

    def own(images: Tensor) -> Tensor:
        return torch.from_numpy(device_logits(run.all(images.numpy()), bundle))

    own(torch.rand(_PROBES, 3, bundle.preprocessing.height, bundle.preprocessing.width))  # fails now, not in an hour
    return LocalClassifier(own, bundle.gate)


def _deobfuscator(bundle: Bundle) -> Obfuscate | None:
    """The network that was trained against the obfuscator; a sketch's file holds the mean image of each code."""
    path = None if bundle.recipe.kind == "sketch" else find_lab_file(bundle, DEOBFUSCATOR_ONNX)
    return None if path is None else _from_onnx(path)


def _without_gradients(module: nn.Module) -> Obfuscate:
    module = module.eval().requires_grad_(False)

    @torch.no_grad()
    def payload(images: Tensor) -> Tensor:
        out: Tensor = module(images)
        return out.float()

    return payload


class _Wrapped(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.function(images))


def _passes_gradients(module: nn.Module, size: tuple[int, int]) -> bool:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        out = module(images)
        return bool(torch.autograd.grad(out.sum(), images)[0].abs().sum() > 0)
    except (RuntimeError, TypeError, ValueError):
        return False


def _probed(name: str, size: tuple[int, int], payload: Obfuscate, module: nn.Module | None) -> Target:
    """Return a target that was tried once; whether it is stochastic is found out."""
    images = torch.rand(_PROBES, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        first, second = payload(images), payload(images)
    except Exception as error:  # anybody's code: whatever it raises, the person needs to know what it was given
        raise AuditError(
            f"{name} fails on images {tuple(images.shape)} float32 in [0, 1]: {runtime_reason(error)}"
        ) from error
    if not isinstance(first, Tensor) or first.ndim != 4 or len(first) != len(images):
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise AuditError(f"{name} gives {got} for {_PROBES} images; ({_PROBES}, C, H', W') is expected")
    if not torch.isfinite(first).all():
        raise AuditError(f"{name} gives numbers that are not finite")
    scale = float(first.abs().max().clamp_min(1.0))
    stochastic = float((first - second).abs().max()) > TOLERANCE * scale
    if module is not None:
        module = module.eval().requires_grad_(False)
        with torch.no_grad():
            own = module(images)
        apart = difference(own.numpy(), first.numpy(), step=float(getattr(module, "step", 0.0))) / scale
        if not stochastic and apart > 10 * TOLERANCE:
            raise AuditError(f"{name}: its weights and its ONNX file differ by {apart:.1e}; export it again")
    return Target(name, *size, payload, module, stochastic)

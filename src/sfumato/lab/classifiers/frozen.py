"""Load a frozen classifier from a bundle, for training and audits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.artifacts.bundle import CLASSIFIER_PROGRAM, CLASSIFIER_WEIGHTS, Bundle
from sfumato.artifacts.class_map import ClassMap, identity
from sfumato.artifacts.labelling import Labelling
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import RecipeRecord
from sfumato.errors import BundleError, ClassifierError
from sfumato.lab.classifiers.exported_programs import load_program
from sfumato.lab.models import build_classifier

IMPORTED = "imported"
"""The kind of the recipe of an imported classifier."""


@dataclass(frozen=True)
class FrozenClassifier:
    """A pretrained classifier that must not change.

    Attributes:
        net: normalised images (N, 3, H, W) float32 -> logits (N, classes); evaluation mode, no gradients.
        name: its name at a server.
        labels: one name per class, in the order of the logits.
        preprocessing: how an image becomes its input.
        fingerprint: of its served ONNX file.
        class_map: which of the outputs of the served file make up each class; `net` has it inside.
        labelling: whether an image has one of the classes, or any number of them at once.
    """

    net: nn.Module
    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str
    class_map: ClassMap | None = None
    labelling: Labelling = "single-label"

    @property
    def identity(self) -> str:
        """As `Bundle.classifier_identity`."""
        return identity(self.fingerprint, self.class_map)

    def obfuscator(self, folder: Path, recipe: RecipeRecord) -> Bundle:
        """Return the bundle of an obfuscator for it, whose files lie in the folder; not saved yet."""
        return Bundle(
            path=folder,
            kind="obfuscator",
            name=self.name,
            labels=self.labels,
            preprocessing=self.preprocessing,
            classifier_fingerprint=self.fingerprint,
            recipe=recipe,
            class_map=self.class_map,
            labelling=self.labelling,
        )


class Mapped(nn.Module):
    """A network followed by a class map: differentiable, and equal to `ClassMap.logits`.

    Args:
        net: one tensor to logits (N, outputs).
        class_map: of so many outputs.
    """

    order: Tensor
    owners: Tensor

    def __init__(self, net: nn.Module, class_map: ClassMap) -> None:
        super().__init__()
        self.net, self.classes, self.sums = net, len(class_map.groups), class_map.sums
        owners = [place for place, group in enumerate(class_map.groups) for _ in group]
        self.register_buffer("order", torch.tensor(class_map.order), persistent=False)
        self.register_buffer("owners", torch.tensor(owners), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) float -> logits (N, classes), float32 at least."""
        outputs: Tensor = self.net(inputs)
        members = outputs.to(torch.promote_types(outputs.dtype, torch.float32))[:, self.order]
        if not self.sums:
            return members
        start = members.new_full((len(members), self.classes), -torch.inf)
        highest = start.scatter_reduce(1, self.owners.expand_as(members), members.detach(), "amax")
        shares = (members - highest[:, self.owners]).exp()
        return highest + torch.zeros_like(highest).index_add(1, self.owners, shares).log()


def is_imported(bundle: Bundle) -> bool:
    """Return whether a classifier's bundle was made of a classifier from elsewhere; earlier versions say "adopted"."""
    return bundle.recipe.kind in (IMPORTED, "adopted")


def trains_through(bundle: Bundle) -> bool:
    """Return whether gradients can pass through a classifier's bundle, which otherwise can only be served."""
    return CLASSIFIER_PROGRAM in bundle.files or CLASSIFIER_WEIGHTS in bundle.files


def load_classifier(path: Path, *, multi_label: bool = False) -> FrozenClassifier:
    """Load the classifier of a bundle so that gradients pass through it.

    Args:
        path: the bundle's folder.
        multi_label: whether the caller knows what to do with a multi-label one.

    Raises:
        BundleError: not a classifier's bundle, one that can only be served, a program that cannot be used,
            weights that do not fit the architecture, or a multi-label one that the caller does not take.
    """
    bundle = Bundle.load(path, kind="classifier")
    if not multi_label:
        bundle.check_single_label("this")
    if not trains_through(bundle) and is_imported(bundle):
        raise BundleError(
            f"{path} holds an ONNX file alone: it can be served, measured and audited, but no gradient passes through "
            "it, so nothing can be trained for it; import the network that the file was exported from "
            "(`sfumato import --help`)"
        )
    architecture = bundle.recipe.architecture
    try:
        if CLASSIFIER_PROGRAM in bundle.files:
            net: nn.Module = load_program(bundle.file(CLASSIFIER_PROGRAM))
        else:
            net = build_classifier(str(architecture), bundle.outputs)
            net.load_state_dict(load_file(bundle.file(CLASSIFIER_WEIGHTS)))
    except ClassifierError as error:
        raise BundleError(str(error)) from error
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{bundle.path}: weights do not fit architecture {architecture!r}: {error}") from error
    if bundle.class_map is not None:
        net = Mapped(net, bundle.class_map)
    return FrozenClassifier(
        net=net.eval().requires_grad_(False),
        name=bundle.name,
        labels=bundle.labels,
        preprocessing=bundle.preprocessing,
        fingerprint=bundle.classifier_fingerprint,
        class_map=bundle.class_map,
        labelling=bundle.labelling,
    )

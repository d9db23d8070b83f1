"""The figures of tables 1, 3 and 4, from a finished lab."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reproduction.audits import make_audit
from reproduction.lab import Lab, origin
from reproduction.plan import Item
from reproduction.schema import (
    Layer,
    OnDeviceBaseline,
    Table1,
    Table1Row,
    Table3,
    Table4,
    TrainedLists,
    TrainedPair,
)
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.models import Obfuscator, build_classifier, cost
from sfumato.lab.models.cost import Cost
from sfumato.lab.models.obfuscator import Bottleneck
from sfumato.progress import Progress, silent, tracked


def table_1(lab: Lab) -> Table1:
    """Return accuracy, overhead, leakage to adaptive attackers, and the accuracy of the on-device baseline."""
    ours, papers = cost(Obfuscator()), cost(Obfuscator(order="paper"))
    rows = []
    for item, obfuscator in zip(lab.plan.classifiers, lab.plan.obfuscators, strict=True):
        classifier, figures = lab.bundle(item), lab.figures(obfuscator)
        theirs = _cost(classifier)
        rows.append(
            Table1Row(
                classifier=item.name,
                paper=item.paper,
                accuracy_plain=figures.accuracy_plain,
                accuracy_obfuscated=figures.accuracy_obfuscated,
                test_images=figures.joint.test_images,
                params=theirs.params,
                macs=theirs.macs,
                overhead_params=ours.params / theirs.params,
                overhead_macs=ours.macs / theirs.macs,
                overhead_macs_paper_order=papers.macs / theirs.macs,
                trained=TrainedPair(classifier=origin(classifier), obfuscator=origin(lab.bundle(obfuscator))),
                audit=make_audit(lab, obfuscator).summary,
            )
        )
    return Table1(rows=tuple(rows), on_device=None if lab.plan.local is None else _on_device(lab, lab.plan.local))


def _on_device(lab: Lab, item: Item) -> OnDeviceBaseline:
    bundle = lab.bundle(item)
    own = _cost(bundle)
    return OnDeviceBaseline(
        accuracy=lab.accuracy(item),
        test_images=len(lab.test),
        trained=origin(bundle),
        params=own.params,
        macs=own.macs,
    )


def _cost(classifier: Bundle) -> Cost:
    return cost(
        build_classifier(str(classifier.recipe.architecture), len(classifier.labels)),
        height=classifier.preprocessing.height,
        width=classifier.preprocessing.width,
    )


def table_3(lab: Lab) -> Table3:
    """Return the accuracy of every classifier on every obfuscator's images."""
    classifiers = [lab.bundle(item) for item in lab.plan.classifiers]
    obfuscators = [lab.bundle(item) for item in lab.plan.obfuscators]
    accuracy = transfer(obfuscators, classifiers, lab.test, device=lab.device, progress=lab.progress)
    return Table3(
        names=tuple(item.name for item in lab.plan.classifiers),
        paper=tuple(item.paper for item in lab.plan.classifiers),
        accuracy=tuple(map(tuple, accuracy)),
        test_images=len(lab.test),
        trained=TrainedLists(
            classifiers=tuple(map(origin, classifiers)),
            obfuscators=tuple(map(origin, obfuscators)),
        ),
    )


def transfer(
    obfuscators: list[Bundle],
    classifiers: list[Bundle],
    images: ImageSet,
    *,
    device: torch.device,
    progress: Progress = silent,
) -> list[list[float]]:
    """Measure the accuracy of every classifier on every obfuscator's images.

    The payload is brought back to the scale of images and normalised for each classifier. Classifiers run through
    ONNX on a CPU, and in torch on anything else.

    Args:
        obfuscators: bundles, all for images of the same size.
        classifiers: bundles.
        images: the images.
        device: that classifiers run on.
        progress: see `Progress`.

    Returns:
        One row for each obfuscator, one column for each classifier.
    """
    logits_of = [_logits(classifier, device) for classifier in classifiers]
    found = []
    for obfuscator in obfuscators:
        obfuscate, correct = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX)), [0] * len(classifiers)
        for start in tracked(range(0, len(images), INFERENCE_BATCH), f"transfer of {obfuscator.name}", progress):
            batch = images.images[start : start + INFERENCE_BATCH].numpy().astype(np.float32) / np.float32(255)
            labels = images.labels[start : start + INFERENCE_BATCH].numpy()
            obfuscated = obfuscator.preprocessing.denormalize(obfuscate(batch))
            for column, (classifier, logits) in enumerate(zip(classifiers, logits_of, strict=True)):
                predictions = logits(classifier.preprocessing.normalize(obfuscated)).argmax(axis=1)
                correct[column] += int((predictions == labels).sum())
        found.append([count / len(images) for count in correct])
    return found


def _logits(classifier: Bundle, device: torch.device) -> Callable[[Array], Array]:
    if device.type == "cpu":
        return OnnxFunction(classifier.file(CLASSIFIER_ONNX))
    net = load_classifier(classifier.path).net.to(device)

    @torch.no_grad()
    def logits(inputs: Array) -> Array:
        found: Array = net(torch.from_numpy(inputs).to(device)).float().cpu().numpy()
        return found

    return logits


def table_4() -> Table4:
    """Return the architecture, row by row, counted on the network itself."""
    net, papers = Obfuscator(), Obfuscator(order="paper")
    in_paper_order = _macs(papers)
    macs = _macs(net)
    blocks = _blocks(net)
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    hooks = [
        block.register_forward_hook(
            lambda _block, inputs, out, name=name: sizes.update({name: (inputs[0].shape[1:], out.shape[1:])})
        )
        for name, block in blocks.items()
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    rows = [
        Layer.model_validate(
            {
                "input": tuple(sizes[name][0]),
                "output": tuple(sizes[name][1]),
                "module": _module(block),
                "stride": max(int(part.stride[0]) for part in block.modules() if isinstance(part, nn.Conv2d)),
                "params": sum(p.numel() for p in block.parameters()),
                "macs": macs[name],
                "macs_paper_order": in_paper_order[name],
            }
        )
        for name, block in blocks.items()
    ]
    whole = cost(net)
    return Table4(rows=tuple(rows), params=whole.params, macs=whole.macs, macs_paper_order=cost(papers).macs)


def _blocks(net: Obfuscator) -> dict[str, nn.Module]:
    blocks: dict[str, nn.Module] = {"stem": net.stem}
    for part in ("down", "up"):
        blocks |= {f"{part}.{name}": block for name, block in getattr(net, part).named_children()}
    return blocks


def _macs(net: Obfuscator) -> dict[str, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, 32, 32))
    counts = counter.get_flop_counts()
    return {name: sum(counts[f"{type(net).__name__}.{name}"].values()) // 2 for name in _blocks(net)}


def _module(block: nn.Module) -> str:
    if not isinstance(block, Bottleneck):
        return "conv2d"
    return "bottleneck" if isinstance(block.upsample, nn.Identity) else "upsample bottleneck"

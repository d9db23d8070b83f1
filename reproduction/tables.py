"""The figures of tables 1, 3 and 4, from a finished lab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reproduction.audits import make_audit, summary
from reproduction.lab import Lab, origin
from reproduction.plan import Item
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.onnx_file import Array, OnnxFunction
from sfumato.lab.classifiers import load_classifier
from sfumato.lab.data import INFERENCE_BATCH, ImageSet
from sfumato.lab.models import Obfuscator, build_classifier, cost
from sfumato.lab.models.obfuscator import Bottleneck


def table_1(lab: Lab) -> dict[str, Any]:
    """Accuracy, overhead, what leaks to attackers trained afterwards, and what the device reaches alone."""
    ours, papers = cost(Obfuscator()), cost(Obfuscator(order="paper"))
    rows = []
    for classifier, obfuscator in zip(lab.plan.classifiers, lab.plan.obfuscators, strict=True):
        network, hider = lab.bundle(classifier), lab.bundle(obfuscator)
        theirs = _cost(network)
        figures = lab.figures(obfuscator)
        rows.append(
            {
                "classifier": classifier.name,
                "paper": classifier.paper,
                "accuracy_plain": figures["accuracy_plain"],
                "accuracy_obfuscated": figures["accuracy_obfuscated"],
                "test_images": figures["test_images"],
                "params": theirs["params"],
                "macs": theirs["macs"],
                "overhead_params": ours.params / theirs["params"],
                "overhead_macs": ours.macs / theirs["macs"],
                "overhead_macs_paper_order": papers.macs / theirs["macs"],
                "trained": {"classifier": origin(network), "obfuscator": origin(hider)},
                "audit": summary(make_audit(lab, obfuscator)),
            }
        )
    return {"rows": rows, "local": None if lab.plan.local is None else _alone(lab, lab.plan.local)}


def _alone(lab: Lab, local: Item) -> dict[str, Any]:
    bundle, figures = lab.bundle(local), lab.figures(local)
    return {
        "accuracy": figures["accuracy_plain"],
        "test_images": figures["test_images"],
        "trained": origin(bundle),
        **_cost(bundle),
    }


def _cost(classifier: Bundle) -> dict[str, int]:
    found = cost(
        build_classifier(str(classifier.recipe.architecture), len(classifier.labels)),
        height=classifier.preprocessing.height,
        width=classifier.preprocessing.width,
    )
    return {"params": found.params, "macs": found.macs}


def table_3(lab: Lab) -> dict[str, Any]:
    """Accuracy of every classifier on every obfuscator's images; each row an obfuscator, each column a classifier."""
    classifiers = [lab.bundle(item) for item in lab.plan.classifiers]
    obfuscators = [lab.bundle(item) for item in lab.plan.obfuscators]
    return {
        "names": [item.name for item in lab.plan.classifiers],
        "paper": [item.paper for item in lab.plan.classifiers],
        "accuracy": transfer(obfuscators, classifiers, lab.test, device=lab.device),
        "test_images": len(lab.test),
        "trained": {
            "classifiers": [origin(bundle) for bundle in classifiers],
            "obfuscators": [origin(bundle) for bundle in obfuscators],
        },
    }


def transfer(
    obfuscators: list[Bundle], classifiers: list[Bundle], images: ImageSet, *, device: torch.device
) -> list[list[float]]:
    """Accuracy of every classifier on every obfuscator's images.

    The payload is brought back to the scale of images and normalised as each classifier wants it. Classifiers run
    through ONNX on a CPU, and in torch on anything else.

    Args:
        obfuscators: bundles, all for images of the same size.
        classifiers: bundles.
        images: the images.
        device: that classifiers run on.

    Returns:
        One row for each obfuscator, one column for each classifier.
    """
    answers = [_answers(classifier, device) for classifier in classifiers]
    console = Console(stderr=True)
    found = []
    for obfuscator in obfuscators:
        hide, hits = OnnxFunction(obfuscator.file(OBFUSCATOR_ONNX)), [0] * len(classifiers)
        mean, std = (
            np.asarray(values, np.float32)[:, None, None]
            for values in (obfuscator.preprocessing.mean, obfuscator.preprocessing.std)
        )
        starts = range(0, len(images), INFERENCE_BATCH)
        for start in track(starts, "transfer", console=console, transient=True, disable=not console.is_terminal):
            batch = images.images[start : start + INFERENCE_BATCH].numpy().astype(np.float32) / np.float32(255)
            labels = images.labels[start : start + INFERENCE_BATCH].numpy()
            hidden = hide(batch) * std + mean
            for column, (classifier, answer) in enumerate(zip(classifiers, answers, strict=True)):
                logits = answer(classifier.preprocessing.normalize(hidden))
                hits[column] += int((logits.argmax(axis=1) == labels).sum())
        found.append([count / len(images) for count in hits])
    return found


def _answers(classifier: Bundle, device: torch.device) -> Callable[[Array], Array]:
    if device.type == "cpu":
        return OnnxFunction(classifier.file(CLASSIFIER_ONNX))
    net = load_classifier(classifier.path).net.to(device)

    @torch.no_grad()
    def answer(inputs: Array) -> Array:
        logits: Array = net(torch.from_numpy(inputs).to(device)).float().cpu().numpy()
        return logits

    return answer


def table_4() -> dict[str, Any]:
    """The architecture, row by row, counted on the network itself."""
    net, papers = Obfuscator(), Obfuscator(order="paper")
    rows = [{**row, "macs_paper_order": other["macs"]} for row, other in zip(_rows(net), _rows(papers), strict=True)]
    return {
        "rows": rows,
        "params": cost(net).params,
        "macs": cost(net).macs,
        "macs_paper_order": cost(papers).macs,
    }


def _rows(net: Obfuscator) -> list[dict[str, Any]]:
    blocks: dict[str, nn.Module] = {"stem": net.stem}
    for part in ("down", "up"):
        blocks |= {f"{part}.{name}": block for name, block in getattr(net, part).named_children()}
    sizes: dict[str, tuple[list[int], list[int]]] = {}
    hooks = [
        block.register_forward_hook(
            lambda _block, given, out, name=name: sizes.__setitem__(name, (list(given[0].shape), list(out.shape)))
        )
        for name, block in blocks.items()
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    counts = counter.get_flop_counts()
    return [
        {
            "input": sizes[name][0][1:],
            "output": sizes[name][1][1:],
            "module": _module(block),
            "stride": _stride(block),
            "params": sum(p.numel() for p in block.parameters()),
            "macs": sum(counts[f"{type(net).__name__}.{name}"].values()) // 2,
        }
        for name, block in blocks.items()
    ]


def _module(block: nn.Module) -> str:
    if not isinstance(block, Bottleneck):
        return "conv2d"
    return "bottleneck" if isinstance(block.upsample, nn.Identity) else "upsample bottleneck"


def _stride(block: nn.Module) -> int:
    return max(int(part.stride[0]) for part in block.modules() if isinstance(part, nn.Conv2d))

"""What happens at the paper's optimum: who reconstructs more, when, at which lambda, and what the image still shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from reproduction.audits import make_audit, setting_of, summary
from reproduction.lab import Lab, origin
from reproduction.later import measure_pair
from reproduction.plan import Item
from reproduction.remains import Remains, least_squares_guess, remains
from sfumato.errors import ResultsError
from sfumato.lab.attacks.threat_models import LazyPairs, Threat
from sfumato.lab.audit.references import class_means


def at_the_optimum(lab: Lab) -> dict[str, Any]:
    """Joint and later attackers side by side, and which colours and places an obfuscated image still shows."""
    rows = []
    for item in lab.plan.obfuscators:
        figures = lab.figures(item)
        rows.append(
            {
                "obfuscator": item.name,
                "paper": item.paper,
                "accuracy_obfuscated": figures["accuracy_obfuscated"],
                "joint_mse": figures["joint_deobfuscator_mse"],
                "test_images": figures["test_images"],
                "audit": summary(make_audit(lab, item)),
                "remains": asdict(_remains(lab, item)),
                "trained": origin(lab.bundle(item)),
            }
        )
    return {"rows": rows, "remains_test_images": len(_asked(lab)), "beside": _beside(lab)}


def _asked(lab: Lab) -> torch.Tensor:
    """(N, 3, H, W) uint8: the test images that explained variance is measured on."""
    return lab.test.subset(lab.plan.later.test_images).images


def _remains(lab: Lab, item: Item) -> Remains:
    setting, asked = setting_of(lab, item), _asked(lab)
    pairs = setting.knowledge(Threat.WHITE_BOX).pairs
    assert pairs is not None
    with lab.bars() as progress:
        progress(f"{item.name}: what still shows", 0, 1)
        guess = least_squares_guess(pairs, setting.observed(Threat.WHITE_BOX, len(asked)))
    return remains(guess, asked.float() / 255)


def _beside(lab: Lab) -> dict[str, Any]:
    """The same shares for an image that travels as it is, by the same least squares, and for its label alone."""
    asked = _asked(lab).float() / 255
    plain = least_squares_guess(LazyPairs(lab.images.images, lambda images: images), asked)
    labelled = class_means(lab.images)[lab.test.labels[: len(asked)]]
    return {"identity": asdict(remains(plain, asked)), "label": asdict(remains(labelled, asked))}


def over_epochs(lab: Lab, folder: Path) -> dict[str, Any]:
    """Each obfuscator as it was after its epochs: accuracy, the joint deobfuscator's error, later attackers' error.

    Args:
        lab: the lab.
        folder: that the curve of the accuracy is drawn into, where trainings kept their looks at the test images.
    """
    runs = []
    for item in lab.plan.obfuscators:
        trained = origin(lab.bundle(item))
        epochs = [
            {"epoch": epoch, **measure_pair(lab, item, folder, f"{item.name}, epoch {epoch}")}
            for epoch, folder in _kept(lab, item, trained["epochs"]).items()
        ]
        runs.append({"obfuscator": item.name, "paper": item.paper, "trained": trained, "epochs": epochs})
    curve = draw_curve(runs, folder / f"{lab.plan.size}-epochs.png")
    return {"runs": runs, "decoder_images": lab.plan.later.images, "curve": None if curve is None else curve.name}


def draw_curve(runs: list[dict[str, Any]], path: Path) -> Path | None:
    """Draws the accuracy on obfuscated test images over the epochs, a line for each obfuscator.

    Args:
        runs: as `over_epochs` finds them.
        path: of the PNG file.

    Returns:
        The path; None if no training kept its looks at the test images.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = {run["obfuscator"]: run["trained"]["history"] for run in runs if run["trained"].get("history")}
    if not lines:
        return None
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, looks in lines.items():
        epochs, accuracies = ([look[key] for look in looks] for key in ("epoch", "accuracy"))
        axes.plot(epochs, [100 * accuracy for accuracy in accuracies], marker=".", label=name)
    axes.set(xlabel="epochs trained", ylabel="accuracy on obfuscated test images, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ResultsError(f"the curve cannot be written to {path}: {error.strerror or error}") from error
    return path


def _kept(lab: Lab, item: Item, epochs: int) -> dict[int, Path]:
    """Epoch -> folder of the networks as they were then; the finished bundle is the last epoch."""
    kept = {}
    if item.shipped is None:
        for folder in sorted((lab.run(item).folder / "snapshots").glob("epoch-*")):
            number = folder.name.removeprefix("epoch-")
            if number.isdigit() and int(number) < epochs:
                kept[int(number)] = folder
    return {**kept, epochs: lab.path(item)}


def over_lambda(lab: Lab) -> dict[str, Any]:
    """Short runs that differ in lambda, and one in batch size."""
    rows = []
    for item in lab.plan.sweep:
        bundle = lab.bundle(item)
        rows.append({"run": item.name, "trained": origin(bundle), **measure_pair(lab, item, bundle.path, item.name)})
    return {
        "rows": rows,
        "classifier": lab.plan.classifiers[0].name,
        "decoder_images": lab.plan.later.images,
    }

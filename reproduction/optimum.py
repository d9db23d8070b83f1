"""The paper's claim under adaptive attackers: at the end of training, during it, and at several values of lambda."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from reproduction.adaptive import measure_pair
from reproduction.audits import make_audit, setting_of
from reproduction.explained import explained_variance, least_squares_estimate
from reproduction.lab import Lab, origin
from reproduction.plan import Item
from reproduction.schema import (
    EpochRow,
    EpochRun,
    Epochs,
    ExplainedReferences,
    ExplainedVariance,
    LambdaRow,
    Lambdas,
    Optimum,
    OptimumRow,
)
from sfumato.artifacts.bundle import DEOBFUSCATOR_WEIGHTS, Bundle
from sfumato.artifacts.lab_files import lab_file
from sfumato.errors import ResultsError
from sfumato.lab.attacks.threat_models import LazyPairs, Threat
from sfumato.lab.audit.references import class_means


def at_the_optimum(lab: Lab) -> Optimum:
    """Compare joint and adaptive attackers, and measure which colours and layout the payload still reveals."""
    rows = []
    for item in lab.plan.obfuscators:
        figures = lab.figures(item)
        rows.append(
            OptimumRow(
                obfuscator=item.name,
                paper=item.paper,
                accuracy_obfuscated=figures.accuracy_obfuscated,
                joint_mse=figures.joint.mse,
                test_images=figures.joint.test_images,
                audit=make_audit(lab, item).summary,
                explained=_explained(lab, item),
                trained=origin(lab.bundle(item)),
            )
        )
    return Optimum(rows=tuple(rows), explained_test_images=len(_asked(lab)), references=_references(lab))


def _asked(lab: Lab) -> torch.Tensor:
    """(N, 3, H, W) uint8: the test images that explained variance is measured on."""
    return lab.test.subset(lab.plan.snapshots.test_images).images


def _explained(lab: Lab, item: Item) -> ExplainedVariance:
    setting, asked = setting_of(lab, item), _asked(lab)
    pairs = setting.knowledge(Threat.WHITE_BOX).pairs
    assert pairs is not None
    stage = f"{item.name}: explained variance"
    lab.progress(stage, 0, 1)
    estimate = least_squares_estimate(pairs, setting.observed(Threat.WHITE_BOX, len(asked)))
    lab.progress(stage, 1, 1)
    return explained_variance(estimate, asked.float() / 255)


def _references(lab: Lab) -> ExplainedReferences:
    """The same shares for a plain image, by the same least squares, and for its label alone."""
    asked = _asked(lab).float() / 255
    plain = least_squares_estimate(LazyPairs(lab.images.images, lambda images: images), asked)
    labelled = class_means(lab.images)[lab.test.labels[: len(asked)]]
    return ExplainedReferences(
        plain_image=explained_variance(plain, asked), class_mean=explained_variance(labelled, asked)
    )


def over_epochs(lab: Lab, folder: Path) -> Epochs:
    """Measure each obfuscator after its epochs: accuracy, and the errors of the joint and of adaptive attackers.

    Args:
        lab: the lab.
        folder: of the curve of the accuracy, if trainings kept their validations.
    """
    runs = []
    for item in lab.plan.obfuscators:
        trained = origin(lab.bundle(item))
        epochs = tuple(
            EpochRow(epoch=epoch, **dict(measure_pair(lab, item, networks, f"{item.name}, epoch {epoch}")))
            for epoch, networks in _snapshots(lab, item, trained.epochs).items()
        )
        runs.append(EpochRun(obfuscator=item.name, paper=item.paper, trained=trained, epochs=epochs))
    curve = plot_accuracy(runs, folder / f"{lab.plan.size}-epochs.png")
    return Epochs(
        runs=tuple(runs),
        decoder_images=lab.plan.snapshots.images,
        curve=None if curve is None else curve.name,
    )


def plot_accuracy(runs: Sequence[EpochRun], path: Path) -> Path | None:
    """Plot the accuracy on obfuscated test images over the epochs, with a line for each obfuscator.

    Returns:
        The path of the PNG file; None if no training kept its validations.

    Raises:
        ResultsError: it cannot be written.
    """
    lines = {run.obfuscator: run.trained.history for run in runs if run.trained.history}
    if not lines:
        return None
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, history in lines.items():
        epochs, accuracies = ([one.epoch for one in history], [100 * one.accuracy for one in history])
        axes.plot(epochs, accuracies, marker=".", label=name)
    axes.set(xlabel="epochs trained", ylabel="accuracy on obfuscated test images, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ResultsError(f"the curve cannot be written to {path}: {error.strerror or error}") from error
    return path


def _snapshots(lab: Lab, item: Item, epochs: int) -> dict[int, Path]:
    """Return the folder of the networks after each epoch that was kept; the finished bundle is the last epoch."""
    kept = {}
    if item.shipped is None:
        for folder in sorted((lab.run(item).folder / "snapshots").glob("epoch-*")):
            number = folder.name.removeprefix("epoch-")
            if number.isdigit() and int(number) < epochs:
                kept[int(number)] = folder
    return {**kept, epochs: _networks(lab.bundle(item))}


def _networks(bundle: Bundle) -> Path:
    """Return the folder with the weights of a finished obfuscator and its deobfuscator."""
    return lab_file(bundle, DEOBFUSCATOR_WEIGHTS).parent


def over_lambda(lab: Lab) -> Lambdas:
    """Measure short runs that differ in lambda, and one in batch size."""
    rows = []
    for item in lab.plan.sweep:
        bundle = lab.bundle(item)
        figures = measure_pair(lab, item, _networks(bundle), item.name)
        rows.append(LambdaRow(run=item.name, trained=origin(bundle), **dict(figures)))
    return Lambdas(rows=tuple(rows), classifier=lab.plan.classifiers[0].name, decoder_images=lab.plan.snapshots.images)

"""`sfumato audit`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import image_size, obfuscator_bundle
from sfumato.cli.output import JsonOption, needs_train_extra, print_json
from sfumato.cli.progress import bars
from sfumato.cli.train import keep_freed_memory
from sfumato.errors import AuditError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.audit.budget import Budget
    from sfumato.lab.data import ImageSet


class BudgetName(StrEnum):
    """How hard the attackers try."""

    ATTRIBUTES = "attributes"
    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"


@app.command()
def audit(
    obfuscator: Annotated[
        str | None,
        typer.Argument(
            help="A bundle, any ONNX file, or module:name of a Python callable. Default: the shipped bundle.",
            show_default=False,
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="Bundle of the classifier it is for. Default for a bundle: the shipped one, if it fits."),
    ] = None,
    data: Annotated[str, typer.Option(help="cifar10, faces, a folder, or a hub id.")] = "cifar10",
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Image size, where a callable has none.")] = None,
    images: Annotated[int | None, typer.Option(min=10, help="Use only so many training and test images each.")] = None,
    budget: Annotated[BudgetName, typer.Option(help="How hard the attackers try.")] = BudgetName.QUICK,
    share: Annotated[
        float,
        typer.Option(help="Train every attacker this many times as long: less than 1 for large images, or in haste."),
    ] = 1.0,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repeat the strongest attacker with so many seeds.")] = None,
    shadow: Annotated[
        str | None, typer.Option(help="Another obfuscator by the same recipe, for who knows only the recipe.")
    ] = None,
    other: Annotated[
        str | None, typer.Option(help="Images of another kind: a data set. Default: drawn ones (dead leaves).")
    ] = None,
    local: Annotated[Path | None, typer.Option(help="Bundle of a classifier small enough for the device.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The column with the classes. Default: found by its type or name.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Another label column, to see whether it can be told; repeatable."),
    ] = None,
    beside: Annotated[Path | None, typer.Option(help="Folder of other audits' JSON files, for the plot.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder. [default: audits/NAME-BUDGET]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted audit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew in a folder that holds an audit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Attack an obfuscator with attackers who come after it, and say what they got.

    Writes `audit.json` and one self-contained page, `audit.html`. A bundle given by its path gets the figures,
    unless it has those of an audit with a larger budget that found as much.
    Ctrl-C loses nothing but the attacker at work; `--resume` goes on.

    Examples: `sfumato audit`, `sfumato audit runs/mine/bundle --classifier runs/resnet/bundle --budget standard`,
    `sfumato audit filter.onnx --data photos/ --size 64x64`, `sfumato audit mymodule:blur`,
    `sfumato audit mymodule:blur --data people.csv --attribute glasses --attribute age --budget attributes`
    """
    keep_freed_memory()
    with needs_train_extra():
        import torch

        from sfumato.lab.audit.budget import BUDGETS, shared
        from sfumato.lab.audit.points import collect
        from sfumato.lab.audit.run import Comparison, record
        from sfumato.lab.audit.run import audit as run_audit
        from sfumato.lab.audit.setting import AttackSetting
        from sfumato.lab.audit.targets import load_target, native_size
        from sfumato.lab.classifiers import load_classifier, trains_through
        from sfumato.lab.data import load_images, load_train_test
        from sfumato.lab.report.folder import render_audit
    from dataclasses import replace

    from sfumato.artifacts.bundle import Bundle
    from sfumato.cli.progress import bars

    if not 0 < share < float("inf"):
        raise AuditError(f"--share must be above 0, got {share}")
    given = obfuscator or str(obfuscator_bundle(None))
    source = Bundle.load(given, kind="obfuscator") if Path(given).is_dir() else given
    target_size = image_size(size) or native_size(source)
    train, test, extra = load_train_test(
        data, size=target_size, label_column=label_column, attributes=tuple(attribute or ())
    )
    train, test = train.subset(images), test.subset(images)
    height, width = train.images.shape[2:]
    target = load_target(source, size=(height, width))
    served = _classifier(source, classifier)
    if served and len(train.names) == len(served.labels):
        train, test = train.of_classes(served.labels), test.of_classes(served.labels)
    plan = BUDGETS[budget.value]
    plan = shared(replace(plan, seeds=seeds) if seeds else plan, share)
    setting = AttackSetting(
        target,
        train,
        test,
        classifier=load_classifier(served.path).net if served and trains_through(served) else None,
        shadow=load_target(shadow, size=(height, width)) if shadow else target.refit(1),
        other=load_images(other, "train", size=(height, width)).images if other else None,
    )
    folder = out or Path("audits") / f"{target.name.replace(':', '-').replace('/', '-')}-{plan.name}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not as_json:
        _announce(plan, target.name, (train, test), device.type)
    with bars(quiet=as_json) as shown:
        result = run_audit(
            setting,
            plan,
            folder,
            comparison=Comparison(
                classifier=served,
                local=Bundle.load(local, kind="classifier") if local else None,
                points=tuple(collect(beside)) if beside else (),
                attributes={name: (known[:images], asked[:images]) for name, (known, asked) in extra.items()},
            ),
            resume=resume,
            overwrite=overwrite,
            device=device,
            progress=shown.progress,
        )
    render_audit(setting, result, folder)
    own = Bundle.load(obfuscator) if obfuscator and isinstance(source, Bundle) else None  # may have changed meanwhile
    recorded = own is not None and record(own, result)
    if as_json:
        print_json(
            {
                "verdict": result.verdict.as_json,
                "best": None if result.best is None else result.best.as_json,
                "audit": str(folder / "audit.json"),
                "recorded": recorded,
            }
        )
        return
    typer.echo(f"\n{result.verdict.finding.upper()}")
    for sentence in result.verdict.sentences:
        typer.echo(sentence)
    typer.echo(f"\nreport: {folder / 'audit.html'}")
    if own is not None and not recorded:
        typer.echo("The bundle keeps the figures of an earlier audit, which had a larger budget and found as much.")


def _classifier(source: Bundle | str, classifier: Path | None) -> Bundle | None:
    """The classifier's bundle: the one named, or the shipped one if the obfuscator is for it."""
    from sfumato.artifacts.bundle import Bundle
    from sfumato.artifacts.shipped import classifier_bundle

    if classifier is not None:
        return Bundle.load(classifier, kind="classifier")
    if isinstance(source, str):
        return None
    shipped = Bundle.load(classifier_bundle())
    return shipped if source.classifier_fingerprint == shipped.classifier_fingerprint else None


def _announce(plan: Budget, name: str, sets: tuple[ImageSet, ImageSet], device: str) -> None:
    """Says beforehand what will run and roughly how long."""
    import torch

    from sfumato.lab.audit.speed import estimate_minutes

    train, test = sets
    minutes = estimate_minutes(plan, torch.device(device), size=train.images.shape[2:])
    attackers = len({trial.attacker for trial in plan.trials})
    threats = len({trial.threat for trial in plan.trials})
    typer.echo(
        f"auditing {name}: {len(plan.trials)} attacks by {attackers} attackers under {threats} threat models, then "
        f"identification and attributes, from {len(train):,} training and {len(test):,} test images, on {device}"
    )
    typer.echo(f"budget {plan.name}: {plan.description}; about {minutes} on this machine")

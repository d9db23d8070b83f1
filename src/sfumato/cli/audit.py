"""`sfumato audit`."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.audit_checks import check_attacks as run_checks
from sfumato.cli.audit_checks import print_attributes, print_references
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import (
    flag,
    image_size,
    obfuscator_path,
    open_classifier,
    open_obfuscator,
    option,
    refuse_others,
)
from sfumato.cli.output import needs_extra, print_json
from sfumato.cli.progress import audit_bars
from sfumato.errors import AuditError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.audit.budget import Budget
    from sfumato.lab.audit.run import Beside
    from sfumato.lab.audit.setting import Scene


class BudgetName(StrEnum):
    """The attack budgets."""

    ATTRIBUTES = "attributes"
    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"


TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="OBFUSCATOR",
        help="A bundle, any ONNX file, or module:name of a Python callable. Default: the shipped bundle. With "
        "--attributes-table: a folder of audits.",
    ),
]
AuditedOption = Annotated[
    Path | None, option("BUNDLE", "Bundle of its classifier. Default for a bundle: the shipped one, if it fits.")
]
BudgetOption = Annotated[BudgetName, option("BUDGET", "Attack budget: attributes, quick, standard or full.")]
EachOption = Annotated[int | None, option("N", "Use only N training and N test images.", min=10)]
ScaleOption = Annotated[
    float, option("X", "Multiply the training time of every attacker: less than 1 for large images.")
]
SeedsOption = Annotated[int | None, option("N", "Repeat the strongest attacker with N seeds.", min=1)]
ShadowOption = Annotated[
    str | None, option("BUNDLE", "Another obfuscator by the same recipe, for the attacker that knows only that.")
]
OtherDataOption = Annotated[
    str | None, option("DATA", "Surrogate images of another kind. Default: synthetic ones (dead leaves).")
]
AttributeOption = Annotated[
    list[str] | None, option("COLUMN", "Another label column, for attribute inference; repeatable.")
]
ChecksOption = Annotated[
    bool, flag("--check-attacks", "Run only the sanity checks of the attacks, which every audit includes.")
]
ReferencesOption = Annotated[
    bool, flag("--references", "Print what the label or the mean colour alone reconstructs: the scale.")
]
TableOption = Annotated[
    bool, flag("--attributes-table", "Compare the attribute inference of a folder of audits, in Markdown.")
]
IntoOption = Annotated[Path | None, option("PAGE", "With --attributes-table: put the table into this Markdown page.")]


@command
def audit(
    context: typer.Context,
    obfuscator: TargetArgument = None,
    classifier: AuditedOption = None,
    data: options.Data = "cifar10",
    budget: BudgetOption = BudgetName.QUICK,
    out: Annotated[Path | None, option("DIR", "Folder. [default: audits/NAME-BUDGET]", "--out", "-o")] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    images: EachOption = None,
    size: options.Size = None,
    label_column: options.LabelColumn = None,
    attribute: AttributeOption = None,
    budget_scale: ScaleOption = 1.0,
    seeds: SeedsOption = None,
    shadow: ShadowOption = None,
    other_data: OtherDataOption = None,
    local: options.Local = None,
    compare: options.Compare = None,
    check_attacks: ChecksOption = False,
    references: ReferencesOption = False,
    seed: Annotated[int, option("N", "With --references: seed of the random images.")] = 0,
    attributes_table: TableOption = False,
    into: IntoOption = None,
    as_json: options.Json = False,
) -> None:
    """Attack an obfuscator with adaptive attackers, trained after it is fixed, and report what leaks.

    Takes minutes (`quick`) to hours (`full`) and says so first. Writes `audit.json` and a page, `audit.html`, and the
    figures into a bundle given by its path. Ctrl-C loses only the attacker in progress; `--resume` continues.

    Examples: `sfumato audit runs/mine/bundle --classifier runs/resnet/bundle --budget standard`,
    `sfumato audit filter.onnx --data photos/ --size 64x64`, `sfumato audit mymodule:blur --attribute glasses`
    """
    if attributes_table or references or check_attacks:
        _without_audit(context, obfuscator, data, size, budget.value, seed, out, into, as_json=as_json)
        return
    refuse_others(context, context.params.keys() - {"into", "seed"}, "only with --attributes-table or --references")
    keep_freed_memory()
    with needs_extra("train"):
        from sfumato.lab.audit.budget import BUDGETS, shared
        from sfumato.lab.audit.recording import record

    if not 0 < budget_scale < float("inf"):
        raise AuditError(f"--budget-scale must be above 0, got {budget_scale}")
    plan = BUDGETS[budget.value]
    plan = shared(replace(plan, seeds=seeds) if seeds else plan, budget_scale)
    path = obfuscator or str(obfuscator_path(None))
    served = _classifier(path, classifier)
    scene, attributes = _setting(path, served, data, size, images, label_column, attribute, shadow, other_data)
    folder = out or Path("audits") / f"{scene.target.name.replace(':', '-').replace('/', '-')}-{plan.name}"
    beside = _comparison(served, local, compare, attributes)
    found = _run(scene, plan, folder, beside, resume=resume, overwrite=overwrite, quiet=as_json)
    bundle = open_obfuscator(Path(obfuscator)) if obfuscator and Path(obfuscator).is_dir() else None
    recorded = bundle is not None and record(bundle, found)
    if as_json:
        result = {"verdict": found["verdict"], "best": found["best"], "audit": str(folder / "audit.json")}
        print_json({**result, "recorded": recorded})
        return
    typer.echo(f"\n{found['verdict']['finding'].upper()}")
    for line in (*found["verdict"]["sentences"], f"\nreport: {folder / 'audit.html'}"):
        typer.echo(line)
    if bundle is not None and not recorded:
        typer.echo("The bundle keeps the figures of an earlier audit, which had a larger budget and found as much.")


def _without_audit(
    context: typer.Context,
    folder: str | None,
    data: str,
    size: str | None,
    budget: str,
    seed: int,
    out: Path | None,
    into: Path | None,
    *,
    as_json: bool,
) -> None:
    """Run one of the modes that audit nothing; refuse options that it does not take."""
    modes = {
        "attributes_table": {"obfuscator", "into"},
        "references": {"data", "size", "seed", "out"},
        "check_attacks": {"data", "size", "budget", "out"},
    }
    mode = next(name for name in modes if context.params[name])
    refuse_others(context, {mode, "as_json", *modes[mode]}, f"not with --{mode.replace('_', '-')}")
    if mode == "references":
        print_references(data, size, seed, out, as_json=as_json)
    elif mode == "check_attacks":
        keep_freed_memory()
        run_checks(data, size, budget, out, as_json=as_json)
    elif folder is None:
        raise AuditError("--attributes-table needs a folder of audits: sfumato audit --attributes-table DIR")
    else:
        print_attributes(Path(folder), into, as_json=as_json)


def _classifier(path: str, classifier: Path | None) -> Bundle | None:
    """Return the given classifier, or the shipped one if the obfuscator is for it."""
    if classifier is not None:
        return open_classifier(classifier)
    if not Path(path).is_dir():
        return None
    served = open_classifier(None)
    wanted = open_obfuscator(Path(path)).classifier_fingerprint
    return served if wanted == served.classifier_fingerprint else None


def _setting(
    path: str,
    served: Bundle | None,
    data: str,
    size: str | None,
    images: int | None,
    label_column: str | None,
    attributes: list[str] | None,
    shadow: str | None,
    other_data: str | None,
) -> tuple[Scene, dict[str, tuple[Tensor, Tensor]]]:
    """Return the attack setting, and the label columns of its training and test images."""
    from sfumato.lab.audit.setting import Scene
    from sfumato.lab.audit.targets import load_target, native_size
    from sfumato.lab.classifiers import load_classifier, trains_through
    from sfumato.lab.data import load_images, load_train_test

    train, test, columns = load_train_test(
        data, size=image_size(size) or native_size(path), label_column=label_column, attributes=tuple(attributes or ())
    )
    train, test = train.subset(images), test.subset(images)
    height, width = train.images.shape[2:]
    target = load_target(path, size=(height, width))
    if served and len(train.names) == len(served.labels):
        train, test = train.of_classes(served.labels), test.of_classes(served.labels)
    scene = Scene(
        target,
        train,
        test,
        classifier=load_classifier(served.path).net if served and trains_through(served) else None,
        shadow=load_target(shadow, size=(height, width)) if shadow else target.refit(1),
        other=load_images(other_data, "train", size=(height, width)).images if other_data else None,
    )
    return scene, {name: (known[:images], asked[:images]) for name, (known, asked) in columns.items()}


def _comparison(
    served: Bundle | None, local: Path | None, compare: Path | None, attributes: dict[str, tuple[Tensor, Tensor]]
) -> Beside:
    from sfumato.lab.audit.run import Beside
    from sfumato.lab.report.points import collect

    return Beside(
        classifier=served,
        local=open_classifier(local) if local else None,
        points=tuple(collect(compare)) if compare else (),
        attributes=attributes,
    )


def _run(
    scene: Scene, plan: Budget, folder: Path, beside: Beside, *, resume: bool, overwrite: bool, quiet: bool
) -> dict[str, Any]:
    """Say what will run and roughly how long, and run it."""
    import torch

    from sfumato.lab.audit.run import audit
    from sfumato.lab.audit.speed import estimate_minutes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not quiet:
        minutes = estimate_minutes(plan, device, size=scene.train.images.shape[2:])
        attackers = len({trial.attacker for trial in plan.trials})
        threats = len({trial.threat for trial in plan.trials})
        typer.echo(
            f"auditing {scene.target.name}: {len(plan.trials)} attacks by {attackers} attackers under {threats} threat "
            f"models, then re-identification and attribute inference, from {len(scene.train):,} training and "
            f"{len(scene.test):,} test images, on {device.type}\n"
            f"budget {plan.name}: {plan.says}; about {minutes} on this machine"
        )
    with audit_bars(quiet=quiet) as progress:
        return audit(
            scene, plan, folder, beside=beside, resume=resume, overwrite=overwrite, device=device, progress=progress
        )

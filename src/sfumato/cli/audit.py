"""`sfumato audit`."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import flag, option
from sfumato.cli.output import needs_extra, prepare, print_json, print_table, write_result
from sfumato.cli.progress import audit_bars, bars
from sfumato.errors import AuditError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.audit.budget import Budget
    from sfumato.lab.audit.run import Beside
    from sfumato.lab.audit.setting import Scene


BudgetName = Literal["attributes", "quick", "standard", "full"]


TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="OBFUSCATOR",
        help="A bundle, any ONNX file, or module:name of a Python callable. Default: the shipped bundle. With "
        "--attributes-table: a folder of audits.",
    ),
]
AuditedOption = Annotated[Path | None, option("BUNDLE", "Its classifier. Default: the shipped one, if it fits.")]
BudgetOption = Annotated[BudgetName, option("BUDGET", "Attack budget: attributes, quick, standard or full.")]
EachOption = Annotated[int | None, option("N", "Use only N training and N test images.", min=10)]
ShadowOption = Annotated[str | None, option("BUNDLE", "Shadow obfuscator: by the same recipe, known to an attacker.")]


@command
def audit(
    context: typer.Context,
    obfuscator: TargetArgument = None,
    classifier: AuditedOption = None,
    data: options.Data = "cifar10",
    budget: BudgetOption = "quick",
    out: Annotated[Path | None, option("DIR", "Folder. [default: audits/NAME-BUDGET]", "--out", "-o")] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    images: EachOption = None,
    size: options.Size = None,
    label_column: options.LabelColumn = None,
    attribute: Annotated[list[str] | None, option("COLUMN", "Another label column to infer; repeatable.")] = None,
    budget_scale: Annotated[float, option("X", "Multiply the training time of every attacker.")] = 1.0,
    seeds: Annotated[int | None, option("N", "Repeat the strongest attacker with N seeds.", min=1)] = None,
    shadow: ShadowOption = None,
    other_data: Annotated[str | None, option("DATA", "Surrogate images. Default: synthetic ones, dead leaves.")] = None,
    local: options.Local = None,
    compare: options.Compare = None,
    check_attacks: Annotated[bool, flag("--check-attacks", "Run only the sanity checks of the attacks.")] = False,
    references: Annotated[bool, flag("--references", "Print what the label alone reconstructs, as a scale.")] = False,
    seed: Annotated[int, option("N", "With --references: seed of the random images.")] = 0,
    attributes_table: Annotated[bool, flag("--attributes-table", "Compare attribute inference across audits.")] = False,
    into: Annotated[Path | None, option("PAGE", "Markdown page to put the attributes table into.")] = None,
    as_json: options.Json = False,
) -> None:
    """Attack an obfuscator with adaptive attackers, trained after it is fixed, and report what leaks.

    Takes minutes (`quick`) to hours (`full`) and says so first. Writes `audit.json` and a page, `audit.html`, and the
    figures into a bundle given by its path. Ctrl-C loses only the attacker in progress; `--resume` continues.

    Examples:
    - `sfumato audit runs/mine/bundle --classifier runs/resnet/bundle --budget standard`
    - `sfumato audit filter.onnx --data photos/ --size 64x64`
    - `sfumato audit mymodule:blur --attribute glasses`
    """
    mode = partial(options.run_mode, context, as_json=as_json)
    if attributes_table:
        return mode("attributes_table", _print_attributes, obfuscator=obfuscator, into=into)
    if references:
        return mode("references", _print_references, data=data, size=size, seed=seed, out=out)
    keep_freed_memory()
    if check_attacks:
        return mode("check_attacks", _check_attacks, data=data, size=size, budget=budget, out=out)
    options.refuse_others(context, context.params.keys() - {"into", "seed"}, "not of an audit")
    plan = _plan(budget, seeds, budget_scale)
    path = obfuscator or str(options.obfuscator_path(None))
    served = _classifier(path, classifier)
    scene, attributes = _setting(path, served, data, size, images, label_column, attribute, shadow, other_data)
    folder = out or Path("audits") / f"{scene.target.name.replace(':', '-').replace('/', '-')}-{plan.name}"
    beside = _comparison(served, local, compare, attributes)
    found = _run(scene, plan, folder, beside, resume=resume, overwrite=overwrite, quiet=as_json)
    _report(found, folder, obfuscator, as_json=as_json)
    return None


def _plan(budget: str, seeds: int | None, scale: float) -> Budget:
    with needs_extra("train"):
        from sfumato.lab.audit.budget import BUDGETS, shared

    if not 0 < scale < float("inf"):
        raise AuditError(f"--budget-scale must be above 0, got {scale}")
    return shared(replace(BUDGETS[budget], seeds=seeds) if seeds else BUDGETS[budget], scale)


def _classifier(path: str, classifier: Path | None) -> Bundle | None:
    """Return the given classifier, or the shipped one if the obfuscator is for it."""
    if classifier is not None:
        return options.open_classifier(classifier)
    if not Path(path).is_dir():
        return None
    served = options.open_classifier(None)
    wanted = options.open_obfuscator(Path(path)).classifier_fingerprint
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
        data,
        size=options.image_size(size) or native_size(path),
        label_column=label_column,
        attributes=tuple(attributes or ()),
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
        local=options.open_classifier(local) if local else None,
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


def _report(found: dict[str, Any], folder: Path, obfuscator: str | None, *, as_json: bool) -> None:
    """Record the audit in the bundle that was named, and print its verdict."""
    from sfumato.lab.audit.recording import record

    bundle = options.open_obfuscator(Path(obfuscator)) if obfuscator and Path(obfuscator).is_dir() else None
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


def _check_attacks(*, data: str, size: str | None, budget: str, out: Path | None, as_json: bool) -> None:
    """Print the sanity checks of the attacks: decoders against maps whose leakage is known.

    Raises:
        typer.Exit: a check fails.
    """
    with needs_extra("train"):
        import torch

        from sfumato.artifacts.provenance import provenance
        from sfumato.lab.audit.budget import BUDGETS
        from sfumato.lab.audit.sanity_checks import decoder_controls
        from sfumato.lab.data import load_train_test

    prepare(out)
    train, test, _ = load_train_test(data, size=options.image_size(size))
    images = BUDGETS[budget].control_images
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with bars(quiet=as_json) as shown:
        found = decoder_controls(train, test, images=images, device=device, progress=shown.progress)
    result = {
        "controls": [asdict(check) for check in found],
        "measured": provenance(
            budget=budget,
            images_seen=images,
            accelerator=device.type,
            train={"data": train.source, "data_sha256": train.sha256, "images": len(train)},
            test={"data": test.source, "data_sha256": test.sha256, "images": len(test)},
        ),
    }
    write_result(out, result)
    if as_json:
        print_json(result)
    else:
        rows = [(one.name, "passed" if one.passed else "FAILED", one.measured, one.needed) for one in found]
        title = f"{images:,} training images for each decoder, {data}"
        print_table(("sanity check", "", "measured", "needed"), rows, title=title)
    if not all(check.passed for check in found):
        raise typer.Exit(1)


def _print_references(*, data: str, size: str | None, seed: int, out: Path | None, as_json: bool) -> None:
    """Print what is reconstructed from the label or the mean colour alone: the scale for an audit."""
    with needs_extra("train"):
        from sfumato.lab.audit.references import write_references
        from sfumato.lab.data import load_images

    prepare(out)
    sides = options.image_size(size)
    train, test = load_images(data, "train", size=sides), load_images(data, "test", size=sides)
    with bars(quiet=as_json) as shown:
        result = write_references(
            None, train, test, seed=seed, progress=lambda done, total: shown.progress("references", done, total)
        )
    write_result(out, result)
    if as_json:
        print_json(result)
        return
    rows = [
        (row["name"], *(f"{row['figures'][key]:.{digits}f}" for key, digits in _REFERENCE_FIGURES.items()))
        for row in result["references"]
    ]
    title = f"on {len(test):,} test images of {test.source}"
    print_table(("what is known", "MSE", "PSNR, dB", "SSIM"), rows, numbers=(1, 2, 3), title=title)


_REFERENCE_FIGURES = {"mse": 4, "psnr_db": 2, "ssim": 3}


def _print_attributes(*, obfuscator: str | None, into: Path | None, as_json: bool) -> None:
    """Print a Markdown table of the attributes that can be inferred from several obfuscators' payloads."""
    if obfuscator is None:
        raise AuditError("--attributes-table needs a folder of audits: sfumato audit --attributes-table DIR")
    with needs_extra("train"):
        from sfumato.lab.report.attribute_table import markdown, side_by_side, write_into
        from sfumato.lab.report.points import read_audits

    rows = side_by_side(read_audits(Path(obfuscator)))
    if into is not None:
        write_into(into, markdown(rows))
    if as_json:
        print_json({"headers": rows[0], "rows": rows[1:]})
    else:
        typer.echo(markdown(rows))

"""`sfumato audit`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import flag, option
from sfumato.cli.output import needs_extra, prepare, print_json, print_table, write_result
from sfumato.cli.progress import bars
from sfumato.errors import AuditError
from sfumato.progress import Progress

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.audit.budget import Budget
    from sfumato.lab.audit.label_attributes import Columns
    from sfumato.lab.audit.run import Comparison
    from sfumato.lab.audit.schema import AuditResult
    from sfumato.lab.audit.setting import AttackSetting
    from sfumato.lab.data import ImageSet


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
    allow_outside: options.AllowOutside = False,
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
    images_of = {"data": data, "size": size, "allow_outside": allow_outside}
    if attributes_table:
        return mode("attributes_table", _print_attributes, obfuscator=obfuscator, into=into)
    if references:
        return mode("references", _print_references, **images_of, seed=seed, out=out)
    keep_freed_memory()
    if check_attacks:
        return mode("check_attacks", _check_attacks, **images_of, budget=budget, out=out)
    options.refuse_others(context, context.params.keys() - {"into", "seed"}, "not of an audit")
    plan = _plan(budget, seeds, budget_scale)
    source = _source(obfuscator)
    served = _classifier(source, classifier)
    with bars(quiet=as_json) as shown:
        setting, attributes = _setting(
            source,
            served,
            data,
            size,
            images,
            label_column,
            attribute,
            shadow,
            other_data,
            shown.progress,
            allow_outside=allow_outside,
        )
    folder = out or Path("audits") / f"{setting.target.name.replace(':', '-').replace('/', '-')}-{plan.name}"
    comparison = _comparison(served, local, compare, attributes)
    found = _run(setting, plan, folder, comparison, resume=resume, overwrite=overwrite, quiet=as_json)
    _report(found, folder, obfuscator, as_json=as_json)
    return None


def _plan(budget: str, seeds: int | None, scale: float) -> Budget:
    with needs_extra("train"):
        from sfumato.lab.audit.budget import BUDGETS, shared

    if not 0 < scale < float("inf"):
        raise AuditError(f"--budget-scale must be above 0, got {scale}")
    return shared(replace(BUDGETS[budget], seeds=seeds) if seeds else BUDGETS[budget], scale)


def _source(obfuscator: str | None) -> Bundle | str:
    """Return the named or the shipped bundle, or the name of something else that can be audited."""
    if obfuscator is None or Path(obfuscator).is_dir():
        return options.open_obfuscator(None if obfuscator is None else Path(obfuscator))
    return obfuscator


def _classifier(source: Bundle | str, classifier: Path | None) -> Bundle | None:
    """Return the named classifier, or the shipped one if the obfuscator is for it."""
    if classifier is not None:
        return options.open_classifier(classifier)
    if isinstance(source, str):
        return None
    served = options.open_classifier(None)
    return served if source.classifier_fingerprint == served.classifier_fingerprint else None


def _setting(
    source: Bundle | str,
    served: Bundle | None,
    data: str,
    size: str | None,
    images: int | None,
    label_column: str | None,
    attributes: list[str] | None,
    shadow: str | None,
    other_data: str | None,
    progress: Progress,
    *,
    allow_outside: bool,
) -> tuple[AttackSetting, Columns]:
    """Return the attack setting, and the label columns of its training and test images."""
    from sfumato.lab.audit.setting import AttackSetting
    from sfumato.lab.audit.targets import load_target, native_size
    from sfumato.lab.classifiers import load_classifier, trains_through
    from sfumato.lab.data import load_images, load_train_test

    train, test, columns = load_train_test(
        data,
        size=options.image_size(size) or native_size(source),
        label_column=label_column,
        attributes=tuple(attributes or ()),
        allow_outside=allow_outside,
        progress=progress,
    )
    train, test = train.subset(images), test.subset(images)
    height, width = train.images.shape[2:]
    target = load_target(source, size=(height, width))
    if served and len(train.names) == len(served.labels):
        train, test = train.of_classes(served.labels), test.of_classes(served.labels)
    how: dict[str, Any] = {"size": (height, width), "allow_outside": allow_outside, "progress": progress}
    other = load_images(other_data, "train", **how).images if other_data else None
    setting = AttackSetting(
        target,
        train,
        test,
        classifier=load_classifier(served.path).net if served and trains_through(served) else None,
        shadow=load_target(shadow, size=(height, width)) if shadow else target.refit(1),
        other=other,
    )
    return setting, {name: (known[:images], hidden[:images]) for name, (known, hidden) in columns.items()}


def _comparison(served: Bundle | None, local: Path | None, compare: Path | None, attributes: Columns) -> Comparison:
    from sfumato.lab.audit.points import collect
    from sfumato.lab.audit.run import Comparison

    return Comparison(
        classifier=served,
        local=options.open_classifier(local) if local else None,
        points=tuple(collect(compare)) if compare else (),
        attributes=attributes,
    )


def _run(
    setting: AttackSetting,
    plan: Budget,
    folder: Path,
    comparison: Comparison,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> AuditResult:
    """Print what will run and roughly how long, run it, and write the report."""
    import torch

    from sfumato.lab.audit.run import audit
    from sfumato.lab.report.html import render_audit
    from sfumato.lab.runs.speed import Speed, spoken

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not quiet:
        minutes = spoken(Speed(device).audit_s(plan, *setting.train.images.shape[2:]))
        attackers = len({trial.attacker for trial in plan.trials})
        threats = len({trial.threat for trial in plan.trials})
        typer.echo(
            f"auditing {setting.target.name}: {len(plan.trials)} attacks by {attackers} attackers under {threats} "
            f"threat models, then re-identification and attribute inference, from {len(setting.train):,} training and "
            f"{len(setting.test):,} test images, on {device.type}\n"
            f"budget {plan.name}: {plan.description}; about {minutes} on this machine"
        )
    with bars(quiet=quiet) as shown:
        found = audit(
            setting,
            plan,
            folder,
            comparison=comparison,
            resume=resume,
            overwrite=overwrite,
            device=device,
            progress=shown.progress,
        )
    render_audit(setting, found, folder)
    return found


def _report(found: AuditResult, folder: Path, obfuscator: str | None, *, as_json: bool) -> None:
    """Record the audit in the bundle that was named, and print its verdict."""
    from sfumato.lab.audit.run import record

    # The bundle is opened again: it may have changed meanwhile.
    bundle = options.open_obfuscator(Path(obfuscator)) if obfuscator and Path(obfuscator).is_dir() else None
    stored = bundle is not None and record(bundle, found)
    if as_json:
        best = None if found.best is None else found.best.as_json
        result = {"verdict": found.verdict.as_json, "best": best, "audit": str(folder / "audit.json")}
        print_json({**result, "recorded": stored})
        return
    typer.echo(f"\n{found.verdict.finding.upper()}")
    for line in (*found.verdict.sentences, f"\nreport: {folder / 'audit.html'}"):
        typer.echo(line)
    if bundle is not None and not stored:
        typer.echo("The bundle keeps the figures of an earlier audit, which had a larger budget and found as much.")


def _check_attacks(
    *, data: str, size: str | None, allow_outside: bool, budget: str, out: Path | None, as_json: bool
) -> None:
    """Print the sanity checks of the attacks: decoders against maps whose leakage is known.

    Raises:
        typer.Exit: a check fails.
    """
    with needs_extra("train"):
        import torch

        from sfumato.lab.audit.budget import BUDGETS
        from sfumato.lab.audit.sanity_checks import decoder_checks
        from sfumato.lab.data import load_train_test

    prepare(out)
    images = BUDGETS[budget].sanity_check_images
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with bars(quiet=as_json) as shown:
        sides = options.image_size(size)
        train, test, _ = load_train_test(data, size=sides, allow_outside=allow_outside, progress=shown.progress)
        found = decoder_checks(train, test, images=images, device=device, progress=shown.progress)
    measured = _measured(train, test, budget=budget, images_seen=images, accelerator=device.type)
    result = {"sanity_checks": [check.as_json for check in found], "measured": measured}
    write_result(out, result)
    if as_json:
        print_json(result)
    else:
        rows = [(one.name, "passed" if one.passed else "FAILED", one.measured, one.needed) for one in found]
        title = f"{images:,} training images for each decoder, {data}"
        print_table(("sanity check", "", "measured", "needed"), rows, title=title)
    if not all(check.passed for check in found):
        raise typer.Exit(1)


def _print_references(
    *, data: str, size: str | None, allow_outside: bool, seed: int, out: Path | None, as_json: bool
) -> None:
    """Print what is reconstructed from the label or the mean colour alone: the scale for an audit."""
    with needs_extra("train"):
        from sfumato.lab.audit.references import references
        from sfumato.lab.data import load_images

    prepare(out)
    with bars(quiet=as_json) as shown:
        how: dict[str, Any] = {
            "size": options.image_size(size),
            "allow_outside": allow_outside,
            "progress": shown.progress,
        }
        train, test = (load_images(data, split, **how) for split in ("train", "test"))
        found = references(train, test, seed=seed, progress=shown.progress)
    result = {"references": [row.as_json for row in found], "measured": _measured(train, test, seed=seed)}
    write_result(out, result)
    if as_json:
        print_json(result)
        return
    rows = [(row.name, f"{row.mse:.4f}", f"{row.psnr_db:.2f}", f"{row.ssim:.3f}") for row in found]
    title = f"on {len(test):,} test images of {test.source}"
    print_table(("what is known", "MSE", "PSNR, dB", "SSIM"), rows, numbers=(1, 2, 3), title=title)


def _measured(train: ImageSet, test: ImageSet, **facts: object) -> dict[str, object]:
    """Return the provenance of figures that were measured on these images."""
    from sfumato.artifacts.provenance import provenance

    sets = {
        name: {"data": images.source, "data_sha256": images.sha256, "images": len(images)}
        for name, images in (("train", train), ("test", test))
    }
    return provenance(**facts, **sets).to_json()


def _print_attributes(*, obfuscator: str | None, into: Path | None, as_json: bool) -> None:
    """Print a Markdown table of the attributes that can be inferred from several obfuscators' payloads."""
    if obfuscator is None:
        raise AuditError("--attributes-table needs a folder of audits: sfumato audit --attributes-table DIR")
    with needs_extra("train"):
        from sfumato.lab.audit.points import read_audits
        from sfumato.lab.report.attribute_table import markdown, side_by_side, write_between

    rows = side_by_side(read_audits(Path(obfuscator)))
    if into is not None:
        write_between(into, markdown(rows))
    if as_json:
        print_json({"headers": rows[0], "rows": rows[1:]})
    else:
        typer.echo(markdown(rows))

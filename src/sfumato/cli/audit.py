"""`sfumato audit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import flag, option
from sfumato.cli.output import conclude, prepare, print_checks, print_json, print_table, write_result
from sfumato.cli.progress import bars
from sfumato.cli.readings import make_reading_kit, score_reading_kit
from sfumato.errors import AuditError
from sfumato.progress import Progress

if TYPE_CHECKING:
    import torch

    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.audit.budget import Budget
    from sfumato.lab.audit.label_attributes import Columns
    from sfumato.lab.audit.schema import AuditResult
    from sfumato.lab.audit.setting import AttackSetting
    from sfumato.lab.data import ImageSet

BudgetName = Literal["attributes", "quick", "standard", "full"]
BudgetOption = Annotated[BudgetName, option("BUDGET", "Attack budget: attributes, quick, standard or full.")]
EachOption = Annotated[int | None, option("N", "Use only N training and N test images.", min=10)]
TargetArgument = typer.Argument(
    metavar="OBFUSCATOR",
    help="A bundle, any ONNX file, or module:name of a Python callable. Default: the shipped bundle. With "
    "--attributes-table: a folder of audits; with --reading-kit: an audit's; with --score-readings: a kit's.",
    parser=options.place_or_name,
)
AuditedOption = options.of_bundle("Its classifier. Default: the shipped one, if it fits.")
OtherHalfOption = options.of_bundle("With --membership: by the same recipe, from the other half of the images.")
ShadowOption = option(
    "BUNDLE", "Shadow obfuscator: by the same recipe, known to an attacker.", parser=options.place_or_name
)


_EXTRACTION = ("file", "images", "of training", "of test", "difference, points", "memorised")


@dataclass(frozen=True)
class Known:
    """What attackers are given besides the data set; each attribute is the option of its name."""

    images: EachOption = None
    size: options.Size = None
    label_column: options.LabelColumn = None
    allow_outside: options.AllowOutside = False
    attribute: Annotated[list[str] | None, option("COLUMN", "Another label column to infer; repeatable.")] = None
    shadow: Annotated[str | None, ShadowOption] = None
    other_data: Annotated[str | None, option("DATA", "Surrogate images. Default: synthetic ones, dead leaves.")] = None


@dataclass(frozen=True)
class Instead:
    """What to do instead of an audit; each attribute is the option of its name."""

    check_attacks: Annotated[bool, flag("--check-attacks", "Run only the sanity checks of the attacks.")] = False
    references: Annotated[bool, flag("--references", "Print what the label alone reconstructs, as a scale.")] = False
    extraction: Annotated[bool, flag("--extraction", "Run only training-set extraction.")] = False
    frames: Annotated[bool, flag("--frames", "Measure what many frames of one camera leak.")] = False
    membership: Annotated[bool, flag("--membership", "Infer which images a bundle was trained on.")] = False
    membership_reference: Annotated[Path | None, OtherHalfOption] = None
    reading_kit: Annotated[bool, flag("--reading-kit", "Write a page on which people say what they recognise.")] = False
    score_readings: Annotated[
        list[Path] | None, option("FILE", "Score the choices that a reader saved; repeatable.")
    ] = None
    seed: Annotated[int, option("N", "With --references, --membership, --frames, --reading-kit: seed.")] = 0
    attributes_table: Annotated[bool, flag("--attributes-table", "Compare attribute inference across audits.")] = False
    into: Annotated[Path | None, option("PAGE", "Markdown page to put the attributes table into.")] = None


@command("train")
def audit(
    context: typer.Context,
    obfuscator: Annotated[str | None, TargetArgument] = None,
    *,
    classifier: Annotated[Path | None, AuditedOption] = None,
    data: options.Data = "cifar10",
    budget: BudgetOption = "quick",
    out: Annotated[Path | None, option("DIR", "Folder. [default: audits/NAME-BUDGET]", "--out", "-o")] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    known: Known,
    budget_scale: Annotated[float, option("X", "Multiply the training time of every attacker.")] = 1.0,
    seeds: Annotated[int | None, option("N", "Repeat the strongest attacker with N seeds.", min=1)] = None,
    local: options.Local = None,
    compare: options.Compare = None,
    instead: Instead,
    as_json: options.Json = False,
) -> None:
    """Attack an obfuscator with adaptive attackers, trained after it is fixed, and report what leaks.

    Takes minutes (`quick`) to hours (`full`) and says so first. Writes `audit.json` and a page, `audit.html`, and the
    figures into a bundle in a folder of yours. Ctrl-C loses only the attacker in progress; `--resume` continues.

    Examples:
    - `sfumato audit runs/mine/bundle --classifier runs/resnet/bundle --budget standard`
    - `sfumato audit filter.onnx --data photos/ --size 64x64`
    - `sfumato audit mymodule:blur --attribute glasses`
    - `sfumato audit --extraction`: of the shipped bundles
    - `sfumato audit runs/mine/bundle --frames -o frames/mine.json`
    - `sfumato audit runs/first/bundle --membership --membership-reference runs/second/bundle`
    """
    mode = partial(options.run_mode, context, as_json=as_json)
    images_of = {"data": data, "size": known.size, "allow_outside": known.allow_outside}
    if instead.attributes_table:
        return mode("attributes_table", _print_attributes, obfuscator=obfuscator, into=instead.into, out=out)
    if instead.references:
        return mode("references", _print_references, **images_of, seed=instead.seed, out=out)
    if instead.score_readings:
        readings = {"files": instead.score_readings, "out": out}
        return mode("score_readings", score_reading_kit, obfuscator=obfuscator, **readings)
    if instead.reading_kit:
        given = context.get_parameter_source("data")
        chosen = data if given is not None and given.name == "COMMANDLINE" else None
        about: dict[str, object] = {"label_column": known.label_column, "seed": instead.seed, "out": out}
        return mode("reading_kit", make_reading_kit, obfuscator=obfuscator, data=chosen, **about)
    keep_freed_memory()
    if instead.extraction:
        about = {"data": data, "label_column": known.label_column, "out": out}
        return mode("extraction", _extract, obfuscator=obfuscator, **about)
    if instead.membership:
        from sfumato.cli.audit_membership import infer

        others = {"classifier": classifier, "membership_reference": instead.membership_reference}
        about = {"data": data, "label_column": known.label_column, "images": known.images, "seed": instead.seed}
        return mode("membership", infer, obfuscator=obfuscator, **others, **about, out=out)
    if instead.frames:
        from sfumato.cli.audit_frames import leak_over_time

        about = {"label_column": known.label_column, "images": known.images, "seed": instead.seed, "budget": budget}
        return mode("frames", leak_over_time, obfuscator=obfuscator, **images_of, **about, out=out, compare=compare)
    if instead.check_attacks:
        return mode("check_attacks", _check_attacks, **images_of, budget=budget, out=out)
    options.refuse_others(context, context.params.keys() - {"into", "seed", "membership_reference"}, "not of an audit")
    from sfumato.lab.audit import run
    from sfumato.lab.audit.points import collect
    from sfumato.lab.audit.result_store import stored_identity
    from sfumato.lab.models.precision import fastest_device
    from sfumato.lab.report.html import render_audit

    if out is not None and out.is_file():
        raise AuditError(f"{out} is a file; --out names the audit's folder, in which audit.json will be")
    if out is not None:
        stored_identity(out / "work", resume=resume, overwrite=overwrite)  # before the images are read
    plan = _plan(budget, seeds, budget_scale)
    bundle = Path(obfuscator) if obfuscator and Path(obfuscator).is_dir() else None
    source = obfuscator if obfuscator and not bundle else options.open_obfuscator(bundle, multi_label=True)
    served, device = _classifier(source, classifier), fastest_device()
    with bars(quiet=as_json) as shown:
        setting, attributes = _setting(source, served, data, known, shown.progress)
    if not as_json:
        _announce(setting, plan, device, columns=bool(attributes))
    folder = out or Path("audits") / f"{setting.target.name.replace(':', '-').replace('/', '-')}-{plan.name}"
    small = options.open_classifier(local) if local else None
    comparison = run.Comparison(served, small, tuple(collect(compare)) if compare else (), attributes)
    with bars(quiet=as_json) as shown:
        start = partial(run.audit, resume=resume, overwrite=overwrite, device=device, progress=shown.progress)
        found = start(setting, plan, folder, comparison=comparison)
    render_audit(setting, found, folder)
    return _report(found, folder, bundle, as_json=as_json)


def _plan(budget: BudgetName, seeds: int | None, scale: float) -> Budget:
    from sfumato.lab.audit.budget import BUDGETS, shared

    if not 0 < scale < float("inf"):
        raise AuditError(f"--budget-scale must be above 0, got {scale}")
    return shared(replace(BUDGETS[budget], seeds=seeds) if seeds else BUDGETS[budget], scale)


def _classifier(source: Bundle | str, classifier: Path | None) -> Bundle | None:
    """Return the named classifier, or the shipped one if the obfuscator is for it."""
    if classifier is not None:
        return options.open_classifier(classifier)
    if isinstance(source, str):
        return None
    served = options.open_classifier(None)
    return served if source.classifier_identity == served.classifier_identity else None


def _setting(
    source: Bundle | str, served: Bundle | None, data: str, known: Known, progress: Progress
) -> tuple[AttackSetting, Columns]:
    """Return the attack setting, and the label columns of its training and test images."""
    from sfumato.lab.audit.setting import HELD_OUT_SHARE, AttackSetting
    from sfumato.lab.audit.targets import load_target, native_size
    from sfumato.lab.classifiers import load_classifier, trains_through
    from sfumato.lab.data import load_images, load_train_test

    train, test, columns = load_train_test(
        data,
        size=options.image_size(known.size) or native_size(source),
        label_column=known.label_column,
        attributes=tuple(known.attribute or ()),
        allow_outside=known.allow_outside,
        progress=progress,
    )
    count = known.images
    train, test = train.subset(count), test.subset(count)
    height, width = train.images.shape[2:]
    target = load_target(source, size=(height, width))
    if served and len(train.names) == len(served.labels):
        train, test = train.of_classes(served.labels), test.of_classes(served.labels)
    other, others = known.other_data, partial(load_images, size=(height, width), allow_outside=known.allow_outside)
    setting = AttackSetting(
        target,
        train,
        test,
        classifier=load_classifier(served.path).net if served and trains_through(served) else None,
        shadow=load_target(known.shadow, size=(height, width)) if known.shadow else target.refit(1),
        other=others(other, "train", progress=progress).images if other else None,
        held_out_share=HELD_OUT_SHARE,
    )
    return setting, {name: (train_[:count], test_[:count]) for name, (train_, test_) in columns.items()}


def _announce(setting: AttackSetting, plan: Budget, device: torch.device, *, columns: bool) -> None:
    """Print what will run, and roughly how long."""
    from sfumato.lab.runs.speed import Speed, spoken

    minutes = spoken(Speed(device).audit_s(plan, *setting.train.images.shape[2:], columns=columns))
    attackers = len({trial.attacker for trial in plan.trials})
    threats = len({trial.threat for trial in plan.trials})
    typer.echo(
        f"auditing {setting.target.name}: {len(plan.trials)} attacks by {attackers} attackers under {threats} "
        f"threat models, then re-identification and attribute inference, from {len(setting.train):,} training and "
        f"{len(setting.test):,} test images, on {device.type}\n"
        f"budget {plan.name}: {plan.description}; about {minutes} on this machine"
    )
    if prior := _prior_needed(plan, setting.public, device):
        typer.echo(prior)


def _prior_needed(plan: Budget, train: ImageSet, device: torch.device) -> str | None:
    """Say how long the image prior trains that the budget needs; None if it needs none, or the cache has it."""
    from sfumato.lab.attacks.prior import prior_file
    from sfumato.lab.runs.speed import Speed, spoken

    if not plan.prior_images or (file := prior_file(train.images, plan.prior_images)).is_file():
        return None
    minutes = spoken(Speed(device).prior_s(plan, *train.images.shape[2:]))
    return f"first an image prior is trained, once for these images, and kept in {file.parent}: about {minutes}"


def _report(found: AuditResult, folder: Path, bundle: Path | None, *, as_json: bool) -> None:
    """Record the audit in the bundle that was named, and print its verdict."""
    from sfumato.artifacts.hub import in_cache
    from sfumato.lab.audit.run import record

    # The bundle is opened again: it may have changed meanwhile.
    own = bundle is not None and not in_cache(bundle)
    stored = own and record(options.open_obfuscator(bundle, multi_label=True), found)
    if as_json:
        best = None if found.best is None else found.best.as_json
        result = {"verdict": found.verdict.as_json, "best": best, "audit": str(folder / "audit.json")}
        print_json({**result, "recorded": stored})
        return
    for line in (f"\n{found.verdict.finding.upper()}", *found.verdict.sentences, f"\nreport: {folder / 'audit.html'}"):
        typer.echo(line)
    if own and not stored:
        typer.echo("The bundle keeps the figures of an earlier audit, which had a larger budget and found as much.")


def _check_attacks(
    *, data: str, size: str | None, allow_outside: bool, budget: str, out: Path | None, as_json: bool
) -> None:
    """Print the sanity checks of the attacks: decoders against maps whose leakage is known.

    Raises:
        typer.Exit: a check fails.
    """
    from sfumato.lab.audit.budget import BUDGETS
    from sfumato.lab.audit.sampler_checks import sampler_checks
    from sfumato.lab.audit.sanity_checks import decoder_checks
    from sfumato.lab.audit.setting import handed
    from sfumato.lab.data import load_train_test
    from sfumato.lab.models.precision import fastest_device

    prepare(out)
    plan, device = BUDGETS[budget], fastest_device()
    images = plan.sanity_check_images
    with bars(quiet=as_json) as shown:
        sides = options.image_size(size)
        train, test, _ = load_train_test(data, size=sides, allow_outside=allow_outside, progress=shown.progress)
        train = handed(train)  # as in an audit: the image prior is the same
        if not as_json and (prior := _prior_needed(plan, train, device)):
            typer.echo(prior)
        found = decoder_checks(train, test, images=images, device=device, progress=shown.progress)
        found += sampler_checks(train, test, budget=plan, device=device, progress=shown.progress)
    measured = _measured(train, test, budget=budget, images_seen=images, accelerator=device.type)
    result = {"sanity_checks": [check.as_json for check in found], "measured": measured}
    write_result(out, result)
    rows = [(one.name, "passed" if one.passed else "FAILED", one.measured, one.needed) for one in found]
    title = f"{images:,} training images for each decoder, {data}"
    show = partial(print_table, ("sanity check", "", "measured", "needed"), rows, title=title)
    conclude(result, found, show, as_json=as_json)


def _extract(*, obfuscator: str | None, data: str, label_column: str | None, out: Path | None, as_json: bool) -> None:
    """Print what the files of a bundle, or of the shipped ones, show of the training images.

    Raises:
        typer.Exit: a bundle gives training images away, or the check fails.
    """
    from sfumato.artifacts import shipped
    from sfumato.lab.attacks.extraction import memorises
    from sfumato.lab.audit.extraction import extract_training_set, extraction_check
    from sfumato.lab.data import load_train_test

    prepare(out)
    paths = [Path(obfuscator)] if obfuscator else [shipped.obfuscator_bundle(), shipped.papers_obfuscator_bundle()]
    bundles = [options.open_obfuscator(path) for path in paths]
    size = (bundles[0].preprocessing.height, bundles[0].preprocessing.width)
    with bars(quiet=as_json) as shown:
        train, test, _ = load_train_test(data, size=size, label_column=label_column, progress=shown.progress)
        found = {
            bundle.path.resolve().name: extract_training_set(bundle, train, test, progress=shown.progress)
            for bundle in bundles
        }
        check = extraction_check(train, test)
    extraction = {name: [vars(row) for row in rows] for name, rows in found.items()}
    files = {bundle.path.resolve().name: dict(bundle.files) for bundle in bundles}
    measured = _measured(train, test, files=files)
    result = {"extraction": extraction, "sanity_checks": [check.as_json], "measured": measured}
    write_result(out, result)
    if as_json:
        print_json(result)
    for name, rows in found.items() if not as_json else ():
        lines = [
            (
                f"{row.file} {row.method}",
                f"{row.decoded_images:,}",
                f"{row.train_recognised:,} of {row.train_images:,}",
                f"{row.test_recognised:,} of {row.test_images:,}",
                f"{100 * row.low:.2f} to {100 * row.high:.2f}",
                "YES" if memorises(row) else "not clearly",
            )
            for row in rows
        ]
        print_table(_EXTRACTION, lines, numbers=range(1, 5), title=f"{name}: images recognisable in its files")
    if not as_json:
        print_checks([check])
    if not check.passed or any(memorises(row) for rows in found.values() for row in rows):
        raise typer.Exit(1)


def _print_references(
    *, data: str, size: str | None, allow_outside: bool, seed: int, out: Path | None, as_json: bool
) -> None:
    """Print what is reconstructed from the label or the mean colour alone: the scale for an audit."""
    from sfumato.lab.audit.references import references
    from sfumato.lab.data import load_images

    prepare(out)
    with bars(quiet=as_json) as shown:
        sides = options.image_size(size)
        load = partial(load_images, size=sides, allow_outside=allow_outside, progress=shown.progress)
        train, test = (load(data, split) for split in ("train", "test"))
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


def _print_attributes(*, obfuscator: str | None, into: Path | None, out: Path | None, as_json: bool) -> None:
    """Print a Markdown table of the attributes that can be inferred from several obfuscators' payloads."""
    if obfuscator is None:
        raise AuditError("--attributes-table needs a folder of audits: sfumato audit --attributes-table DIR")
    from sfumato.lab.audit.points import read_audits
    from sfumato.lab.report.attribute_table import cells, markdown, side_by_side, write_between

    prepare(out)
    table = side_by_side(read_audits(Path(obfuscator)))
    text = markdown(cells(table))
    write_result(out, table.as_json)
    if into is not None:
        write_between(into, text)
    if as_json:
        print_json(table.as_json)
    else:
        typer.echo(text)

"""`sfumato evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.artifacts.records import Figures
from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.classes import print_by_class, print_precision_by_class
from sfumato.cli.conclusion import audit_command, init_command, print_conclusion
from sfumato.cli.options import flag, option
from sfumato.cli.output import percent, prepare, print_figures, print_json, print_table, write_result
from sfumato.cli.progress import bars
from sfumato.errors import SfumatoError
from sfumato.progress import Progress

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.data import ImageSet
    from sfumato.lab.evaluation.by_class import ByClass
    from sfumato.lab.evaluation.multi_label import PrecisionByClass
    from sfumato.lab.evaluation.transfer import Transfer

ObfuscatorsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Bundles. Default: the shipped one. Of --cost: architectures.", parser=options.place_or_name),
]

_OF_PAIRS = {"classifier", "rounding", "transfer", "audits", "size", "classes"}


@command("train")
def evaluate(
    context: typer.Context,
    bundles: ObfuscatorsArgument = None,
    classifier: Annotated[list[Path] | None, options.of_bundle("Repeatable. Default: the shipped one.")] = None,
    data: options.Data = "cifar10",
    images: options.Images = None,
    out: options.OutFile = None,
    as_json: options.Json = False,
    label_column: options.LabelColumn = None,
    allow_outside: options.AllowOutside = False,
    rounding: Annotated[bool, flag("--round", "Round payloads to 8 bits, as for image files.")] = False,
    transfer: Annotated[bool, flag("--transfer", "Allow classifiers that it was not trained for.")] = False,
    audits: Annotated[list[Path] | None, option("DIR", "Folder of audits, to add the leakage; repeatable.")] = None,
    calibrate: Annotated[
        bool, flag("--calibrate", "Write to the bundle which images are unlike these, so that the device warns.")
    ] = False,
    cost: Annotated[bool, flag("--cost", "Count operations of architectures instead.")] = False,
    size: Annotated[str, option("HxW", "With --cost: the image size.")] = "32x32",
    classes: Annotated[int, option("N", "With --cost: the number of classes.", min=2)] = 10,
) -> None:
    """Measure accuracy on plain and on obfuscated test images, through the files that are deployed.

    Takes seconds to minutes. A classifier's bundle in place of an obfuscator's is measured alone, on plain images.
    Of multi-label classifiers average precision and F1 are measured instead. Several bundles or several classifiers
    give a table, which also shows how an obfuscator transfers to classifiers that it was not trained for. `--cost`
    counts what obfuscators add to a classifier, without any bundle.

    Examples:
    - `sfumato evaluate runs/mine/bundle --classifier runs/resnet/bundle -o results/mine.json`
    - `sfumato evaluate runs/mine/bundle --classifier runs/vgg7/bundle --classifier runs/convmixer/bundle`
    - `sfumato evaluate runs/resnet/bundle --images 1000`
    - `sfumato evaluate --cost resnet18 vgg19`
    """
    if cost:
        options.run_mode(context, "cost", _print_cost, bundles=bundles, size=size, classes=classes, as_json=as_json)
        return
    options.refuse_others(context, context.params.keys() - {"size", "classes"}, "only with --cost")
    prepare(out)
    if alone := _alone(bundles):
        options.refuse_others(context, context.params.keys() - _OF_PAIRS, "not with a classifier's bundle alone")
        load = partial(options.load_split, data, "test", alone, label_column, images, allow_outside=allow_outside)
        following = init_command(alone.path, data, multi_label=alone.multi_label, allow_outside=allow_outside)
        _evaluate_alone(alone, load, following, calibrate=calibrate, out=out, as_json=as_json)
        return
    table = transfer or len(bundles or []) > 1 or len(classifier or []) > 1
    obfuscators = [options.open_obfuscator(Path(path), multi_label=not table) for path in bundles or []]
    obfuscators = obfuscators or [options.open_obfuscator(None)]
    classifiers = [options.open_classifier(path, multi_label=not table) for path in classifier or []]
    classifiers = classifiers or [options.open_classifier(None)]
    if table and rounding:
        raise SfumatoError("--round is for one bundle and the classifier that it was trained for")
    if table and calibrate:
        raise SfumatoError("--calibrate is for one bundle; leave out --transfer and the other bundles")
    if audits and not table:
        raise SfumatoError("--audits is for several bundles or classifiers, or --transfer")
    load = partial(options.load_split, data, "test", obfuscators[0], label_column, images, allow_outside=allow_outside)
    if table:
        _evaluate_all(obfuscators, classifiers, load, audits or [], out=out, as_json=as_json)
        return
    pair = obfuscators[0], classifiers[0]
    of = pair[1].path if classifier and not pair[1].multi_label else None
    following = audit_command(pair[0].path, of, data, allow_outside=allow_outside)
    _evaluate_pair(*pair, load, following, rounding=rounding, calibrate=calibrate, out=out, as_json=as_json)


def _alone(bundles: list[str] | None) -> Bundle | None:
    """Return the bundle if it is one, and a classifier's."""
    from sfumato.artifacts.bundle import Bundle

    found = Bundle.load(bundles[0]) if bundles and len(bundles) == 1 else None
    return found if found and found.kind == "classifier" else None


def _evaluate_alone(
    served: Bundle,
    load: Callable[..., ImageSet],
    following: str,
    *,
    calibrate: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure a classifier on plain images alone."""
    from sfumato.lab.evaluation.accuracy import classifier_by_class
    from sfumato.lab.evaluation.multi_label import evaluate_multi_label

    measure = evaluate_multi_label if served.multi_label else classifier_by_class
    with bars(quiet=as_json) as shown:
        test = load(progress=shown.progress)
        detector = _calibrated(served, test, shown.progress) if calibrate else {}
        measured, classes = measure(served, test, progress=shown.progress)
    facts = {**detector, **_origins(None, served, test)}
    _report(measured.to_json(), classes, facts, following, out=out, as_json=as_json)


def _evaluate_pair(
    obfuscator: Bundle,
    served: Bundle,
    load: Callable[..., ImageSet],
    following: str,
    *,
    rounding: bool,
    calibrate: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure a classifier on plain images and on payloads."""
    from sfumato.lab.evaluation.accuracy import obfuscator_by_class
    from sfumato.lab.evaluation.multi_label import evaluate_multi_label

    obfuscator.check_classifier(served)
    with bars(quiet=as_json) as shown:
        test = load(progress=shown.progress)
        detector = _calibrated(obfuscator, test, shown.progress) if calibrate else {}
        measure = (
            partial(evaluate_multi_label, served, test, obfuscator)
            if served.multi_label
            else partial(obfuscator_by_class, obfuscator, served, test)
        )
        measured, classes = measure(rounding=rounding, progress=shown.progress)
    facts = {"rounded_to_8_bits": rounding, **detector, **_origins(obfuscator, served, test)}
    _report(measured.to_json(), classes, facts, following, out=out, as_json=as_json)


def _calibrated(bundle: Bundle, test: ImageSet, progress: Progress) -> dict[str, object]:
    """Calibrate the bundle's out-of-distribution detector, save the bundle, and return what the results say of it."""
    from sfumato.lab.evaluation.out_of_distribution import with_ood_detector

    detector = with_ood_detector(bundle, test, progress=progress).save().ood_detector
    assert detector is not None
    typer.echo(
        f"calibrated on {detector.images:,} images: energy scores below {detector.threshold:.3f} count as out of "
        f"distribution; so do {percent(detector.false_alarm_rate, 0)} of images like these",
        err=True,
    )
    return {"ood_detector": asdict(detector)}


def _report(
    figures: dict[str, object],
    classes: ByClass | PrecisionByClass,
    facts: dict[str, object],
    following: str,
    *,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write what was measured, if that was asked for, and print it with a verdict."""
    from sfumato.lab.evaluation.multi_label import PrecisionByClass

    result = {"figures": figures, "by_class": classes.to_json(), **facts}
    write_result(out, result)
    if as_json:
        print_json(result)
        return
    print_figures(figures)
    if isinstance(classes, PrecisionByClass):
        print_precision_by_class(classes)
    else:
        print_by_class(classes)
    print_conclusion(Figures.from_json(figures), len(classes.classes), following)


def _evaluate_all(
    obfuscators: list[Bundle],
    classifiers: list[Bundle],
    load: Callable[..., ImageSet],
    audits: list[Path],
    *,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure all pairs."""
    with bars(quiet=as_json) as shown:
        found = _transfer(obfuscators, classifiers, load(progress=shown.progress), audits, shown.progress)
    write_result(out, found.to_json())
    if as_json:
        print_json(found.to_json())
    else:
        _print_table(found)


def _transfer(
    obfuscators: list[Bundle], classifiers: list[Bundle], test: ImageSet, audits: list[Path], progress: Progress
) -> Transfer:
    from sfumato.lab.audit.points import leakage_of, read_audits
    from sfumato.lab.evaluation.transfer import transfer

    found = [leakage_of(audit) for folder in audits for audit in read_audits(folder).values()]
    leakages = [leakage for leakage in found if leakage is not None]
    return transfer(obfuscators, classifiers, test, leakages=leakages, progress=progress)


def _origins(obfuscator: Bundle | None, served: Bundle, test: ImageSet) -> dict[str, object]:
    from sfumato.artifacts.provenance import provenance

    of_obfuscator = obfuscator and {
        "recipe": obfuscator.recipe.to_json(),
        "files": dict(obfuscator.files),
        "training": obfuscator.provenance.to_json(),
    }
    return {
        **({"obfuscator": of_obfuscator} if of_obfuscator else {}),
        "classifier": {
            "recipe": served.recipe.to_json(),
            "fingerprint": served.classifier_fingerprint,
            "training": served.provenance.to_json(),
        },
        "measured": provenance(data=test.source, data_sha256=test.sha256).to_json(),
    }


def _print_table(found: Transfer) -> None:
    rows = [["plain images", *(percent(one.accuracy_plain) for one in found.classifiers), "1"]]
    for one in found.obfuscators:
        accuracy = [
            percent(value) + ("" if known else "*") for value, known in zip(one.accuracy, one.trained_for, strict=True)
        ]
        leakage = "not audited" if one.leakage is None else f"at least {one.leakage.excess_leakage:.2f}"
        rows.append([one.name, *accuracy, leakage])
    headers = ("accuracy", *(one.name for one in found.classifiers), "excess leakage")
    print_table(headers, rows, numbers=range(1, len(headers)))
    typer.echo("* the obfuscator was not trained for this classifier")


def _print_cost(*, bundles: list[str] | None, size: str, classes: int, as_json: bool) -> None:
    """Print what obfuscators add to classifiers: parameters, multiply-accumulates, and their ratios.

    The paper's overhead counts the upsampling before the projection; ours comes after it, which computes the same
    with fewer operations.
    """
    from sfumato.lab import models

    height, width = options.image_size(size) or (32, 32)
    if height % models.Obfuscator.size_multiple or width % models.Obfuscator.size_multiple:
        raise SfumatoError(f"image sides must be multiples of {models.Obfuscator.size_multiple}, got {height}x{width}")
    count = partial(models.cost, height=height, width=width)
    ours, papers = count(models.Obfuscator()), count(models.Obfuscator(order="paper"))
    bits = max(8, models.class_bits(classes))
    sketch = count(models.Sketcher(height, width, classes=classes, bits=bits))
    rows = []
    for name in bundles or models.CLASSIFIERS:
        if name not in models.CLASSIFIERS:
            raise SfumatoError(f"unknown classifier {name!r}; known: {', '.join(models.CLASSIFIERS)}")
        try:
            theirs = count(models.build_classifier(name, classes))
        except RuntimeError as error:
            raise SfumatoError(f"{name} does not take images of {height}x{width}: {error}") from error
        added = (ours.params / theirs.params, *(one.macs / theirs.macs for one in (ours, papers, sketch)))
        rows.append((name, theirs, added))
    if as_json:
        obfuscator = {"params": ours.params, "macs": ours.macs, "macs_paper_order": papers.macs}
        counts = {"params": sketch.params, "macs": sketch.macs}
        keys = ("overhead_params", "overhead_macs", "overhead_macs_paper_order", "overhead_macs_sketch")
        found = [
            {"classifier": name, "params": its.params, "macs": its.macs, **dict(zip(keys, added, strict=True))}
            for name, its, added in rows
        ]
        print_json({"height": height, "width": width, "obfuscator": obfuscator, "sketch": counts, "classifiers": found})
        return
    typer.echo(
        f"obfuscator for 3x{height}x{width}: {ours.params:,} parameters, {ours.macs:,} MACs ({papers.macs:,} in the "
        f"paper's order); sketch: {sketch.params:,} parameters, {sketch.macs:,} MACs"
    )
    headers = ("classifier", "params", "MACs", "+params", "+MACs", "paper's", "sketch")
    lines = [(name, _millions(its.params), _millions(its.macs), *map(percent, added)) for name, its, added in rows]
    print_table(headers, lines, numbers=range(1, 7), title="what the obfuscator adds")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{2 if count < 1e8 else 0}f} M"

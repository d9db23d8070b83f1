"""`sfumato audit` with `--check-attacks`, `--references` or `--attributes-table`: all but an audit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from sfumato.cli.options import image_size
from sfumato.cli.output import needs_extra, prepare, print_json, print_table, write_result
from sfumato.cli.progress import bars


def check_attacks(data: str, size: str | None, budget: str, out: Path | None, *, as_json: bool) -> None:
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
    train, test, _ = load_train_test(data, size=image_size(size))
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


def print_references(data: str, size: str | None, seed: int, out: Path | None, *, as_json: bool) -> None:
    """Print what is reconstructed from the label or the mean colour alone: the scale for an audit."""
    with needs_extra("train"):
        from sfumato.lab.audit.references import write_references
        from sfumato.lab.data import load_images

    prepare(out)
    sides = image_size(size)
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


def print_attributes(folder: Path, into: Path | None, *, as_json: bool) -> None:
    """Print a Markdown table of the attributes that can be inferred from several obfuscators' payloads.

    Args:
        folder: audits' JSON files, with the same label columns.
        into: a Markdown page to put the table into.
        as_json: print one JSON object instead.
    """
    with needs_extra("train"):
        from sfumato.lab.report.attribute_table import markdown, side_by_side, write_into
        from sfumato.lab.report.points import read_audits

    rows = side_by_side(read_audits(folder))
    if into is not None:
        write_into(into, markdown(rows))
    if as_json:
        print_json({"headers": rows[0], "rows": rows[1:]})
    else:
        typer.echo(markdown(rows))

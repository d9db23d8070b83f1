"""`sfumato evaluate --cost`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sfumato.cli.output import needs_extra, percent, print_json, print_table
from sfumato.errors import SfumatoError


def print_cost(names: Sequence[str], size: tuple[int, int], classes: int, *, as_json: bool) -> None:
    """Print what obfuscators add to classifiers: parameters, multiply-accumulates, and their ratios.

    The paper's overhead counts the upsampling before the projection; ours comes after it, which computes the same
    with fewer operations.

    Args:
        names: architectures; none for all.
        size: rows and columns of the image.
        classes: of the classifier.
        as_json: print one JSON object.

    Raises:
        SfumatoError: an architecture is unknown, or cannot take the size.
    """
    with needs_extra("train"):
        from sfumato.lab import models

    height, width = size
    if height % models.Obfuscator.size_multiple or width % models.Obfuscator.size_multiple:
        raise SfumatoError(f"image sides must be multiples of {models.Obfuscator.size_multiple}, got {height}x{width}")
    unknown = [name for name in names if name not in models.CLASSIFIERS]
    if unknown:
        raise SfumatoError(f"unknown classifier {unknown[0]!r}; known: {', '.join(models.CLASSIFIERS)}")
    ours = models.cost(models.Obfuscator(), height=height, width=width)
    papers = models.cost(models.Obfuscator(order="paper"), height=height, width=width)
    bits = max(8, models.answer_bits(classes))
    sketch = models.cost(models.Sketcher(height, width, classes=classes, bits=bits), height=height, width=width)
    theirs = {}
    for name in names or models.CLASSIFIERS:
        try:
            theirs[name] = models.cost(models.build_classifier(name, classes), height=height, width=width)
        except RuntimeError as error:
            raise SfumatoError(f"{name} does not take images of {height}x{width}: {error}") from error
    if as_json:
        print_json(
            {
                "height": height,
                "width": width,
                "obfuscator": {"params": ours.params, "macs": ours.macs, "macs_paper_order": papers.macs},
                "sketch": {"params": sketch.params, "macs": sketch.macs},
                "classifiers": [
                    {
                        "classifier": name,
                        "params": one.params,
                        "macs": one.macs,
                        "overhead_params": ours.params / one.params,
                        "overhead_macs": ours.macs / one.macs,
                        "overhead_macs_paper_order": papers.macs / one.macs,
                        "overhead_macs_sketch": sketch.macs / one.macs,
                    }
                    for name, one in theirs.items()
                ],
            }
        )
        return
    typer.echo(
        f"obfuscator for 3x{height}x{width}: {ours.params:,} parameters, {ours.macs:,} MACs ({papers.macs:,} in the "
        f"paper's order); sketch: {sketch.params:,} parameters, {sketch.macs:,} MACs"
    )
    rows = [
        (
            name,
            _millions(one.params),
            _millions(one.macs),
            percent(ours.params / one.params),
            *(percent(added.macs / one.macs) for added in (ours, papers, sketch)),
        )
        for name, one in theirs.items()
    ]
    headers = ("classifier", "params", "MACs", "+params", "+MACs", "paper's", "sketch")
    print_table(headers, rows, numbers=range(1, 7), title="what the obfuscator adds")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{2 if count < 1e8 else 0}f} M"

"""`sfumato train`."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.app import app
from sfumato.cli.inputs import CaFileOption, TokenFileOption, read_token
from sfumato.cli.output import JsonOption, needs_train_extra, percent, print_json
from sfumato.cli.progress import bars
from sfumato.errors import RecipeError, TrainingError

if TYPE_CHECKING:
    from sfumato.lab.training.recipe import AnyRecipe

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/cifar10-resnet20.toml.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. [default: runs/NAME]")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="BUNDLE",
            help="Start from this obfuscator, maybe made for another classifier. Of a sketch only the decoder is then "
            "learned anew: the device's predictions, and the meaning of a code, stay.",
        ),
    ] = None,
    black_box: Annotated[
        str | None,
        typer.Option(
            "--black-box",
            metavar="URL",
            help="The classifier is this endpoint, with query-only access: the same as --set classifier=URL. The "
            "recipe's training images, which must be public, are sent there unchanged; its [black_box] says how many.",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes to train on.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Restart in a folder that holds a run.")] = False,
    estimate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train only a few steps, and write to this JSON file how long the whole run would take here.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier or an obfuscator from a recipe and write its bundle.

    Ctrl-C saves; `--resume` then continues to the same result. Progress is also in TensorBoard:
    `tensorboard --logdir runs`.

    When the cloud's classifier changes: `--from OLD_BUNDLE --set classifier=NEW` adapts deployed devices to it.

    Examples: `sfumato train recipes/cifar10-resnet20.toml --set training.epochs=4`,
    `sfumato train recipes/cifar10-resnet20.toml --estimate estimate.json`
    """
    keep_freed_memory()
    with needs_train_extra():
        from sfumato.artifacts.bundle import Bundle
        from sfumato.lab.runs.estimate import estimate as estimated
        from sfumato.lab.training import Run, load_recipe
        from sfumato.lab.training import train as run_training
        from sfumato.lab.training.blackbox import is_endpoint, protect_black_box
        from sfumato.lab.training.recipe import ClassifierRecipe

    plan = load_recipe(recipe, [*(set_ or []), *([f'classifier="{black_box}"'] if black_box else [])])
    if estimate is not None:
        if out or from_ or black_box or resume or overwrite or devices > 1:
            raise TrainingError(
                "--estimate keeps no run and uses one process: leave out -o, --from, --black-box, --resume, "
                "--overwrite and --devices"
            )
        if not isinstance(plan, ClassifierRecipe) and is_endpoint(plan.classifier):
            raise RecipeError(f"--estimate times steps through the classifier itself; {plan.classifier} is an endpoint")
        with bars() as shown:
            found = estimated(plan, accelerator=accelerator, progress=shown.progress)
        _print_estimate(plan, found, estimate, as_json=as_json)
        return
    folder = out or Path("runs") / plan.name
    start = None if from_ is None else Bundle.load(from_, kind="obfuscator")
    how: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "resume": resume, "overwrite": overwrite}
    if not isinstance(plan, ClassifierRecipe) and is_endpoint(plan.classifier):
        if start is not None:
            raise RecipeError("--from starts from an obfuscator; for an endpoint everything is learned anew")
        typer.echo(
            f"up to {plan.black_box.queries:,} images, of {plan.data.source} and decoded ones, are sent to "
            f"{plan.classifier} as they are: they must be public",
            err=True,
        )
        token = read_token(token_file)
        with bars() as shown:
            how |= {"progress": shown.progress, "say": shown.say}
            bundle = protect_black_box(plan, folder, token=token, ca_file=ca_file, **how)
    else:
        with bars() as shown:
            bundle = run_training(plan, folder, start=start, progress=shown.progress, say=shown.say, **how)
    if as_json:
        print_json({"bundle": str(bundle.path), "figures": bundle.figures.to_json()})
        return
    typer.echo(f"bundle: {Run(folder).bundle}")
    for name, value in bundle.figures.to_json().items():
        typer.echo(f"  {name}: {percent(value) if name.startswith('accuracy') else value}")


def _estimate(plan: AnyRecipe, file: Path, accelerator: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from sfumato.artifacts.bundle import write_json
    from sfumato.lab.audit.speed import spoken

    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(found))
    if as_json:
        print_json(asdict(found))
        return
    whole = found.extrapolated
    typer.echo(
        f"{plan.name}: {found.step_s:.3g} s a step, {found.images_per_s:.4g} images/s, "
        f"{percent(found.data_share)} of the time waiting for images"
    )
    typer.echo(f"  peak memory: {', '.join(f'{name} {mb:.0f} MB' for name, mb in found.peak_memory_mb.items())}")
    typer.echo(
        f"  {whole.epochs} epochs of {whole.steps_per_epoch} steps: about {spoken(3600 * whole.hours)} "
        f"({whole.hours} h)"
    )
    typer.echo(f"  {found.what}\nwritten: {file}")


def keep_freed_memory() -> None:
    """Restart the process with an allocator that keeps freed memory.

    glibc returns every large tensor to the system and faults its pages in again at the next step, which doubles the
    time of a training step on a CPU. It reads these variables only at the start of a process.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC):
        return
    os.environ.update(_MALLOC)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

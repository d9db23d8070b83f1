"""`sfumato train`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli import options
from sfumato.cli.app import command
from sfumato.cli.conclusion import audit_command, init_command, print_conclusion
from sfumato.cli.memory import keep_freed_memory
from sfumato.cli.options import flag, option
from sfumato.cli.output import percent, prepare, print_figures, print_json, write_result
from sfumato.cli.progress import bars
from sfumato.errors import RecipeError, TrainingError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.training import Run
    from sfumato.lab.training.recipe import AnyRecipe, ObfuscatorRecipe, SketchRecipe


LoggerOption = option("NAME", "tensorboard (the default), csv, mlflow, or wandb; repeatable.", "--logger")


@dataclass(frozen=True)
class RunOptions:
    """How a training runs; each attribute is the option of its name, `loggers` that of `--logger`."""

    resume: options.Resume = False
    overwrite: options.Overwrite = False
    accelerator: Annotated[str, option("NAME", "auto, cpu, cuda, mps, ...")] = "auto"
    devices: Annotated[int, option("N", "Processes to train on.", min=1)] = 1
    loggers: Annotated[list[str] | None, LoggerOption] = None
    log_images: Annotated[bool, flag("--log-images", "Send images to mlflow and wandb, too.")] = False


FromOption = options.of_bundle(
    "Start from this obfuscator, also one for another classifier, or from its trunk, a classifier; a classifier starts "
    "from a classifier. Of a sketch only the decoded images are learned again; the on-device predictions and the codes "
    "stay.",
    "--from",
)
BlackBoxOption = option(
    "URL",
    "Query-only access: train against the predictions of this endpoint. The recipe's training images are sent there as "
    "they are, so they must be public; its [black_box] says how many.",
    "--black-box",
)


@command("train")
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/cifar10-resnet20.toml.")],
    *,
    out: Annotated[Path | None, option("DIR", "Folder of the run. [default: runs/NAME]", "--out", "-o")] = None,
    set_: Annotated[list[str] | None, option("KEY=VALUE", "Change a value of the recipe; repeatable.", "--set")] = None,
    from_: Annotated[Path | None, FromOption] = None,
    how: RunOptions,
    estimate: Annotated[Path | None, option("FILE", "Train a few steps, and estimate the run's time.")] = None,
    allow_outside: options.AllowOutside = False,
    black_box: Annotated[str | None, BlackBoxOption] = None,
    token_file: options.TokenFile = None,
    ca_file: options.CaFile = None,
    as_json: options.Json = False,
) -> None:
    """Train a classifier or an obfuscator from a recipe, and write its bundle.

    Takes minutes to days: `--estimate` measures it. Ctrl-C saves, and `--resume` continues to the same result. Follow
    it with `tensorboard --logdir runs`, or elsewhere with `--logger`. When the classifier in the cloud changes, adapt
    the obfuscator: `--from OLD_BUNDLE --set classifier=NEW`.

    Examples:
    - `sfumato train recipes/cifar10-resnet20.toml --set training.epochs=4`
    - `sfumato train recipes/cifar10-resnet20.toml --estimate estimate.json`
    """
    keep_freed_memory()
    from sfumato.lab.training import Run, load_recipe
    from sfumato.lab.training import train as run_training
    from sfumato.lab.training.blackbox import is_endpoint
    from sfumato.lab.training.recipe import ClassifierRecipe

    changes = [*(set_ or []), *([f'classifier="{black_box}"'] if black_box else [])]
    plan = load_recipe(recipe, [*changes, *(["data.allow_outside=true"] if allow_outside else [])])
    queried = None if isinstance(plan, ClassifierRecipe) or not is_endpoint(plan.classifier) else plan
    if estimate is not None:
        if out or from_ or how.resume or how.overwrite or how.devices > 1:
            raise TrainingError("--estimate: leave out -o, --from, --resume, --overwrite and --devices")
        if queried is not None:
            raise RecipeError(f"--estimate needs the classifier itself; {queried.classifier} is an endpoint")
        _estimate(plan, estimate, how.accelerator, as_json=as_json)
        return
    folder = out or Path("runs") / plan.name
    start = None if from_ is None else options.open_start(from_)
    if queried is not None and start is not None:
        raise RecipeError("--from starts from an obfuscator; with query-only access it is learned from scratch")
    if queried is not None:
        bundle = _train_by_queries(queried, folder, how, token_file, ca_file)
    else:
        with bars() as shown:
            bundle = run_training(plan, folder, start=start, progress=shown.progress, say=shown.say, **vars(how))
    if as_json:
        print_json({"bundle": str(bundle.path), "figures": bundle.figures.to_json()})
        return
    typer.echo(f"bundle: {Run(folder).bundle}")
    print_figures(bundle.figures.to_json(), indent="  ")
    print_conclusion(bundle.figures, len(bundle.labels), _following(plan, Run(folder), bundle))


def _following(plan: AnyRecipe, run: Run, bundle: Bundle) -> str:
    """Return the command to type after a training."""
    from sfumato.artifacts import shipped
    from sfumato.artifacts.manifest import MANIFEST
    from sfumato.lab.training.blackbox import is_endpoint
    from sfumato.lab.training.recipe import ClassifierRecipe

    data, outside = plan.data.source, plan.data.allow_outside
    if isinstance(plan, ClassifierRecipe):
        return init_command(run.bundle, data, allow_outside=outside)
    of: Path | None = run.classifier if (run.classifier / MANIFEST).is_file() else Path(plan.classifier)
    if plan.classifier == shipped.CLASSIFIER or is_endpoint(plan.classifier) or bundle.multi_label:
        of = None
    return audit_command(run.bundle, of, data, allow_outside=outside)


def _train_by_queries(
    plan: ObfuscatorRecipe | SketchRecipe, folder: Path, how: RunOptions, token_file: Path | None, ca_file: Path | None
) -> Bundle:
    from sfumato.lab.training.blackbox import protect_black_box
    from sfumato.lab.training.engine import Options

    with bars() as shown:
        shown.say(
            f"up to {plan.black_box.queries:,} images, of {plan.data.source} and synthetic ones, are sent to "
            f"{plan.classifier} as they are: they must be public"
        )
        return protect_black_box(
            plan,
            folder,
            Options(**vars(how), progress=shown.progress, say=shown.say),
            token=options.read_token(token_file),
            ca_file=ca_file,
        )


def _estimate(plan: AnyRecipe, file: Path, accelerator: str, *, as_json: bool) -> None:
    from sfumato.lab.runs.estimate import estimate
    from sfumato.lab.runs.speed import spoken

    prepare(file)
    with bars(quiet=as_json) as shown:
        found = estimate(plan, accelerator=accelerator, progress=shown.progress)
    result = asdict(found)
    write_result(file, result)
    if as_json:
        print_json(result)
        return
    whole = found.extrapolated
    memory = ", ".join(f"{name} {mb:.0f} MB" for name, mb in found.peak_memory_mb.items())
    typer.echo(
        f"{plan.name}: {found.step_s:.3g} s a step, {found.images_per_s:.4g} images/s, "
        f"{percent(found.data_share)} of the time waiting for images\n"
        f"  peak memory: {memory}\n"
        f"  {whole.epochs} epochs of {whole.steps_per_epoch} steps: about {spoken(3600 * whole.hours)} "
        f"({whole.hours} h)\n"
        f"  {found.what}"
    )

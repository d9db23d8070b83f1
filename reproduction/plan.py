"""The networks to train for the paper's tables, as data: those of the paper, and a small plan for a few hours.

This module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from sfumato.errors import RecipeError


class Target(StrEnum):
    """The targets of the command."""

    TABLE_1 = "table1"
    TABLE_2 = "table2"
    TABLE_3 = "table3"
    TABLE_4 = "table4"
    TABLE_5 = "table5"
    OPTIMUM = "optimum"
    ALL = "all"
    PAGE = "page"


@dataclass(frozen=True)
class Item:
    """A network to train.

    Attributes:
        name: of its folder in the lab, and as the tables show it.
        recipe: the TOML file, from where the command is run.
        overrides: of the recipe, such as "training.epochs=5".
        paper: the paper's name of this classifier, if it has one.
        classifier: the name of the item that an obfuscator is for; None for a classifier.
        teacher: the name of the classifier that this one learns from.
        start: the name of the item whose weights this one begins with; None for fresh ones.
        shipped: "classifier" or "obfuscator" if it comes with sfumato and need not be trained.
        audit: an existing audit, from where the command is run.
        kept: keep its weights with the results, in half precision; else its manifest alone.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    paper: str | None = None
    classifier: str | None = None
    teacher: str | None = None
    start: str | None = None
    shipped: str | None = None
    audit: str | None = None
    kept: bool = False


@dataclass(frozen=True)
class SnapshotBudget:
    """Attack budget for each snapshot of a training.

    Attributes:
        images: training images that the learned decoder sees, with repetition.
        test_images: images that all figures of a snapshot are measured on.
    """

    images: int
    test_images: int


@dataclass(frozen=True)
class Plan:
    """Everything that one size of the reproduction consists of.

    Attributes:
        size: its name, as commands and files have it.
        title: its heading on the page.
        description: one sentence for the page, without a full stop.
        classifiers: in the tables' order.
        obfuscators: one for each classifier, in the same order.
        trunk: cycles of training of the classifier that the obfuscators begin as, each going on from the one before;
            none if they begin with fresh weights.
        local: the classifier within the obfuscator's own budget; None while it is missing.
        sweep: obfuscators for the first classifier that differ in lambda or batch size alone.
        snapshots: attack budget for each snapshot.
        order: names of the classifiers to make first, each with its obfuscator and audit; the others follow in the
            tables' order.
        budget: attack budget of the audits.
        data: as `sfumato train` takes it.
    """

    size: str
    title: str
    description: str
    classifiers: tuple[Item, ...]
    obfuscators: tuple[Item, ...]
    local: Item | None
    sweep: tuple[Item, ...]
    snapshots: SnapshotBudget
    order: tuple[str, ...] = ()
    budget: str = "standard"
    data: str = "cifar10"
    trunk: tuple[Item, ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """All networks, in the tables' order."""
        local = () if self.local is None else (self.local,)
        return (*self.classifiers, *self.obfuscators, *self.trunk, *local, *self.sweep)

    @property
    def rows(self) -> tuple[tuple[Item, Item], ...]:
        """Pairs of classifier and obfuscator, in the order in which they are made."""
        pairs = list(zip(self.classifiers, self.obfuscators, strict=True))
        first = {name: place for place, name in enumerate(self.order)}
        return tuple(sorted(pairs, key=lambda pair: first.get(pair[0].name, len(first))))

    def item(self, name: str) -> Item:
        """Return the item of that name.

        Raises:
            RecipeError: the plan has none.
        """
        for item in self.items:
            if item.name == name:
                return item
        raise RecipeError(f"the plan {self.size!r} has no item {name!r}")


def _sweep(recipe: str, classifier: str, lambdas: tuple[str, ...], batch: int, *overrides: str) -> tuple[Item, ...]:
    """Return one run for each lambda, and one at lambda 1 with another batch size."""
    runs = [
        Item(f"lambda-{value}", recipe, (*overrides, f"privacy_weight={value}"), classifier=classifier)
        for value in lambdas
    ]
    other = (*overrides, "privacy_weight=1.0", f"training.batch_size={batch}")
    return (*runs, Item(f"batch-{batch}", recipe, other, classifier=classifier))


_RESNET20, _VGG7 = "recipes/cifar10-resnet20.toml", "recipes/cifar10-vgg7.toml"
_SHORT = "recipes/cifar10-resnet20-obfuscator.toml"
_LOCAL = "recipes/cifar10-local.toml"
_FIVE, _TWO = ((f"training.epochs={n}", "snapshots_every=1") for n in (5, 2))

CPU = Plan(
    size="cpu",
    title="CPU size: smaller networks and short runs, not the paper's",
    description="smaller networks than the paper's, fewer epochs and fewer images for the attackers: hours on two "
    "CPU cores",
    classifiers=(
        Item("resnet20-1", _RESNET20, shipped="classifier"),
        Item("resnet20-2", _RESNET20, ("training.seed=1",)),
        Item("vgg7", _VGG7),
    ),
    obfuscators=(
        Item(
            "resnet20-1-obfuscator",
            _SHORT,
            classifier="resnet20-1",
            shipped="obfuscator",
            audit="results/audits/cifar10-resnet20-obfuscator.json",
        ),
        Item("resnet20-2-obfuscator", _SHORT, _FIVE, classifier="resnet20-2"),
        Item("vgg7-obfuscator", _SHORT, _TWO, classifier="vgg7"),
    ),
    local=Item("local", _LOCAL, teacher="resnet20-1"),
    sweep=_sweep(_SHORT, "resnet20-1", ("0.0", "1.0", "10.0"), 256, "data.train_images=10000", "training.epochs=3"),
    snapshots=SnapshotBudget(images=3_000, test_images=2_000),
    budget="quick",
)

_HALF = "training.half_weights=true"
"""The weights that are kept with the results (`reproduction.kept`) are exactly those that were measured."""
_CYCLES = (("obfuscator-trunk", 28, 0.03), ("obfuscator-trunk-2", 24, 0.02))
_TRUNK = tuple(
    Item(
        name,
        "recipes/cifar10-obfuscator-trunk.toml",
        (f"training.epochs={epochs}", f"training.learning_rate={rate}", f"training.seed={place}", _HALF),
        teacher="resnet18-1",
        start=_CYCLES[place - 1][0] if place else None,
        kept=True,
    )
    for place, (name, epochs, rate) in enumerate(_CYCLES)
)
_MUON = (
    "data.crop_padding=2",
    "training.epochs=5",
    "training.optimizer=muon",
    "training.learning_rate=0.004",
    "training.warmup=0.1",
    "training.validate_every=1",
    "note=Begun as a trunk that was trained as a classifier; one cycle of 5 epochs with Muon, where the paper trains "
    "100 in steps with Adam.",
)

_NETS = (
    ("resnet18-1", "resnet18", "ResNet18_1", 0),
    ("resnet18-2", "resnet18", "ResNet18_2", 1),
    ("resnet50", "resnet50", "ResNet50", 0),
    ("googlenet", "googlenet", "GoogLeNet", 0),
    ("vgg19", "vgg19", "VGG19", 0),
)

PAPER = Plan(
    size="paper",
    title="Paper size: the paper's networks on shorter schedules",
    description="the paper's networks on schedules shortened for CPUs: one cycle of 12 or 13 epochs for classifiers; "
    "for the obfuscator without its last bottleneck, as a classifier taught by ResNet18_1, cycles of 28 and 24 epochs; "
    "from there one cycle of 5 epochs for each obfuscator, with Muon, where the paper trains 100 in steps with Adam",
    classifiers=tuple(
        Item(
            name,
            f"recipes/cifar10-{net}.toml",
            (f"training.seed={seed}", _HALF),
            paper=paper,
            kept=name == "resnet18-1",  # 22 MB; the others would be 146 MB more
        )
        for name, net, paper, seed in _NETS
    ),
    obfuscators=tuple(
        Item(
            f"{name}-obfuscator",
            _SHORT,
            (*_MUON, _HALF, "snapshots_every=5"),
            paper=paper,
            classifier=name,
            start=_TRUNK[-1].name,
            audit=f"results/reproduction/networks/{name}-obfuscator/audit.json",
            kept=True,
        )
        for name, _, paper, _ in _NETS
    ),
    local=Item("local", _LOCAL, ("training.epochs=30",), teacher="resnet18-1"),
    sweep=_sweep(_SHORT, "resnet18-1", ("0.0", "0.1", "1.0", "3.0", "10.0"), 256, "training.epochs=10"),
    snapshots=SnapshotBudget(images=64_000, test_images=10_000),
    order=("resnet18-1", "vgg19", "resnet18-2", "resnet50", "googlenet"),
    trunk=_TRUNK,
)

SIZES = {plan.size: plan for plan in (PAPER, CPU)}
"""By name, in the page's order."""


@dataclass(frozen=True)
class Part:
    """Networks to make before the tables are written again.

    Attributes:
        items: to train, each after those that it needs.
        audited: obfuscators to audit afterwards.
    """

    items: tuple[Item, ...]
    audited: tuple[Item, ...] = ()


def parts(plan: Plan, target: Target) -> tuple[Part, ...]:
    """Return what a target needs, each network once, in the order that gives the first figures soonest."""
    if target in (Target.TABLE_4, Target.PAGE):
        return ()
    rows = plan.rows[:1] if target is Target.TABLE_2 else plan.rows
    audits = target is not Target.TABLE_3
    made = [Part((classifier, obfuscator), (obfuscator,) if audits else ()) for classifier, obfuscator in rows]
    classifier, obfuscator = rows[0]
    made[0] = replace(made[0], items=(classifier, *plan.trunk, obfuscator))  # the classifier is the trunk's teacher
    if target in (Target.TABLE_1, Target.ALL) and plan.local is not None:
        made.append(Part((plan.local,)))
    if target in (Target.OPTIMUM, Target.ALL):
        made += [Part((item,)) for item in plan.sweep]
    return tuple(made)

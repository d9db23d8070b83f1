"""The results files: one model for each table. This module needs no torch.

Files of version 1 are read too, under the names that their keys have had since.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


def _renamed(name: str, before: str, **options: Any) -> Any:
    """A field that version 1 called something else."""
    return Field(validation_alias=AliasChoices(name, before), **options)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Machine(_Model):
    """The machine of a measurement."""

    model_config = ConfigDict(frozen=True, extra="allow")

    cpu: str


class Provenance(_Model):
    """Where figures come from: commit, date and device, among others; see `sfumato.artifacts.provenance`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    written: str
    machine: Machine
    commit: str | None = None
    device: str | None = None


class Validation(_Model):
    """Figures on the test images after an epoch."""

    model_config = ConfigDict(frozen=True, extra="allow")

    epoch: int
    accuracy: float


class Begun(_Model):
    """The trainings of the network that another one began as.

    Attributes:
        epochs: of all of them.
        seconds: likewise; None if not known of each.
    """

    epochs: int
    seconds: float | None


class Origin(_Model):
    """How a network was trained.

    Attributes:
        epochs: passes over the training images.
        seed: of initial weights, order and augmentation.
        batch_size: images per step.
        optimizer: as a recipe names it.
        small_epochs: the first so many epochs were on smaller images.
        precision: number formats of the training.
        history: validations during the training.
        privacy_weight: the paper's lambda; None for a classifier.
        train_images: training images per epoch.
        seconds: duration of the training.
        device: that trained it.
        commit: of the code.
        begun: the trainings of its trunk as a classifier, before; None if it began with fresh weights.
    """

    epochs: int
    seed: int | None
    batch_size: int | None
    optimizer: str | None = None
    small_epochs: int = 0
    precision: str | None = None
    history: tuple[Validation, ...] | None = None
    privacy_weight: float | None = _renamed("privacy_weight", "lambda", default=None)
    train_images: int | None
    seconds: float | None
    device: str | None
    commit: str | None
    begun: Begun | None = None


class Reidentification(_Model):
    """How often the best attacker re-identifies an image among others of its class.

    Attributes:
        top1: share of queries, in [0, 1].
        candidates: images to choose from.
        chance: share that guessing reaches.
        queries: images that were tried.
        attacker: its name.
    """

    top1: float
    candidates: int
    chance: float
    queries: int
    attacker: str


class AuditSummary(_Model):
    """The best attacker of an audit; leakage is a lower bound.

    Attributes:
        attacker: its name.
        threat: its threat model.
        seed: of its training.
        mse: mean squared error of its reconstructions, on images in [0, 1].
        psnr_db: peak signal-to-noise ratio.
        ssim: structural similarity.
        excess_leakage: see `sfumato.lab.evaluation.measures.excess_leakage`.
        test_images: images it was measured on.
        images_seen: training images it saw, with repetition.
        class_mean_mse: error of the mean image of the true class.
        reidentified: None if it was not tried.
        budget: name of the attack budget.
        finding: of the audit's verdict.
        commit: of the code.
    """

    attacker: str
    threat: str
    seed: int
    mse: float
    psnr_db: float
    ssim: float
    excess_leakage: float
    test_images: int
    images_seen: int | None
    class_mean_mse: float
    reidentified: Reidentification | None = None
    budget: str
    finding: str
    commit: str | None


class Results(_Model):
    """A results file.

    Attributes:
        size: of the plan; set when the file is written.
        provenance: likewise.
    """

    table: ClassVar[str]

    size: str = ""
    provenance: Provenance | None = None


class TrainedPair(_Model):
    """How a classifier and its obfuscator were trained."""

    classifier: Origin
    obfuscator: Origin


class Table1Row(_Model):
    """A classifier with its obfuscator: accuracies in [0, 1], and the obfuscator's cost relative to the classifier's.

    Attributes:
        classifier: its name in the plan.
        paper: its name in the paper, if it has one.
        accuracy_plain: on plain images.
        accuracy_obfuscated: on obfuscated images.
        test_images: images both were measured on.
        params: of the classifier.
        macs: multiply-accumulates of the classifier per image.
        overhead_params: parameters of the obfuscator, relative to `params`.
        overhead_macs: multiply-accumulates of the obfuscator, relative to `macs`.
        overhead_macs_paper_order: likewise, with the operations in the paper's order.
        trained: how both were trained.
        audit: None if no attacker finished.
    """

    classifier: str
    paper: str | None
    accuracy_plain: float
    accuracy_obfuscated: float
    test_images: int
    params: int
    macs: int
    overhead_params: float
    overhead_macs: float
    overhead_macs_paper_order: float
    trained: TrainedPair
    audit: AuditSummary | None


class OnDeviceBaseline(_Model):
    """A classifier within the obfuscator's own budget."""

    accuracy: float
    test_images: int
    trained: Origin
    params: int
    macs: int


class Table1(Results):
    """Accuracy and overhead."""

    table = "table1"

    rows: tuple[Table1Row, ...]
    on_device: OnDeviceBaseline | None = _renamed("on_device", "local")


class JointFigures(_Model):
    """Errors of the jointly trained deobfuscator, on images in [0, 1]."""

    mse: float
    psnr_db: float | None
    ssim: float | None
    test_images: int


class Panel(_Model):
    """A PNG file with original, obfuscated and reconstructed images.

    Attributes:
        file: its name.
        obfuscator: name in the plan.
        first: number of the first test image.
        count: test images shown.
        joint: the jointly trained deobfuscator.
        adaptive: the best adaptive attacker; None if none finished.
    """

    file: str
    obfuscator: str
    first: int
    count: int
    joint: JointFigures
    adaptive: AuditSummary | None = _renamed("adaptive", "later")


class Table2(Results):
    """Panels of the first obfuscator."""

    table = "table2"

    panels: tuple[Panel, ...] = _renamed("panels", "images", min_length=1)


class Table5(Table2):
    """Panels of all obfuscators."""

    table = "table5"


class TrainedLists(_Model):
    """How all classifiers and their obfuscators were trained, in the tables' order."""

    classifiers: tuple[Origin, ...]
    obfuscators: tuple[Origin, ...]


class Table3(Results):
    """Transfer to other classifiers.

    Attributes:
        names: of the classifiers in the plan.
        paper: their names in the paper.
        accuracy: in [0, 1]; a row for each obfuscator, a column for each classifier.
        test_images: images it was measured on.
        trained: how the networks were trained.
    """

    table = "table3"

    names: tuple[str, ...]
    paper: tuple[str | None, ...]
    accuracy: tuple[tuple[float, ...], ...]
    test_images: int
    trained: TrainedLists


class Layer(_Model):
    """A row of the architecture; shapes are (channels, height, width), multiply-accumulates are per image."""

    input: tuple[int, int, int]
    output: tuple[int, int, int]
    module: str
    stride: int
    params: int
    macs: int
    macs_paper_order: int


class Table4(Results):
    """The architecture, with its totals."""

    table = "table4"

    rows: tuple[Layer, ...]
    params: int
    macs: int
    macs_paper_order: int


class ExplainedVariance(_Model):
    """Shares of variance that an estimate of images explains: at most 1; 0 for the mean over the images.

    Attributes:
        mean_colour: of the image's mean colour, 3 numbers.
        layout: of the mean colours of its 4x4 blocks minus the image's mean colour, 48 numbers.
    """

    mean_colour: float
    layout: float


class OptimumRow(_Model):
    """An obfuscator under the joint deobfuscator and adaptive attackers."""

    obfuscator: str
    paper: str | None
    accuracy_obfuscated: float
    joint_mse: float
    test_images: int
    audit: AuditSummary | None
    explained: ExplainedVariance = _renamed("explained", "remains")
    trained: Origin


class ExplainedReferences(_Model):
    """Explained variance of the plain image and of the mean image of the true class, for comparison."""

    plain_image: ExplainedVariance = _renamed("plain_image", "identity")
    class_mean: ExplainedVariance = _renamed("class_mean", "label")


class Optimum(Results):
    """The paper's claim under adaptive attackers."""

    table = "optimum"

    rows: tuple[OptimumRow, ...] = Field(min_length=1)
    explained_test_images: int = _renamed("explained_test_images", "remains_test_images")
    references: ExplainedReferences = _renamed("references", "beside")


class AttackerError(_Model):
    """An attacker's mean squared error, and the training images it saw."""

    attacker: str
    mse: float
    images_seen: int | None


class Utility(_Model):
    """What needs no attacker: accuracies in [0, 1] and mean squared errors, all on the same test images."""

    accuracy_obfuscated: float
    accuracy_plain: float
    joint_mse: float
    class_mean_mse: float
    test_images: int


class PairFigures(Utility):
    """The same with adaptive attackers, the best of them in `adaptive_mse` and `adaptive_attacker`."""

    attackers: tuple[AttackerError, ...]
    adaptive_mse: float = _renamed("adaptive_mse", "later_mse")
    adaptive_attacker: str = _renamed("adaptive_attacker", "later_attacker")


class EpochRow(PairFigures):
    """An obfuscator after an epoch."""

    epoch: int


class EpochRun(_Model):
    """An obfuscator's training, epoch by epoch."""

    obfuscator: str
    paper: str | None
    trained: Origin
    epochs: tuple[EpochRow, ...]


class Epochs(Results):
    """Accuracy and errors during training; `curve` is the name of a PNG file."""

    table = "epochs"

    runs: tuple[EpochRun, ...]
    decoder_images: int
    curve: str | None = None


class LambdaRow(PairFigures):
    """A short run."""

    run: str
    trained: Origin


class Lambdas(Results):
    """Short runs that differ in lambda or batch size."""

    table = "lambda"

    rows: tuple[LambdaRow, ...] = Field(min_length=1)
    classifier: str
    decoder_images: int


TABLES: tuple[type[Results], ...] = (Table1, Table2, Table3, Table4, Table5, Optimum, Epochs, Lambdas)
"""One results file each, for each size."""

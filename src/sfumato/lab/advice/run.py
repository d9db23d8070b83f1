"""From a classifier and images to advice: measure, train as long as there is time, and write what is known so far."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from sfumato.artifacts.bundle import OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.files import exclusive
from sfumato.artifacts.provenance import provenance
from sfumato.errors import ClassifierError, DataError, ResultsError, TrainingError
from sfumato.lab.advice.measure import (
    PLAIN,
    ImageWay,
    image_ways,
    measure_image_way,
    milliseconds,
    net_ways,
    sketch_ways,
)
from sfumato.lab.advice.nets import SKETCH, WHOLE, Lesson, make, plan, schedule_within
from sfumato.lab.advice.page import views_of, write_page
from sfumato.lab.advice.recommend import ALLOW_OUTSIDE, recommend
from sfumato.lab.advice.schema import Advice, Leak, Measurements, Part, Way
from sfumato.lab.audit.points import read_audits
from sfumato.lab.audit.schema import AuditResult
from sfumato.lab.classifiers import classifier_bundle, load_classifier
from sfumato.lab.data import ImageSet, load_train_test
from sfumato.lab.evaluation.accuracy import classify
from sfumato.lab.models.precision import fastest_device
from sfumato.lab.runs.speed import Speed, spoken
from sfumato.lab.runs.trainings import check_writable
from sfumato.progress import Progress, Say, mute, silent

ADVICE, PAGE = "advice.json", "advice.html"
IMAGES = "images"
IMAGE_WAYS = ("plain", "thumbnail", "blur", "pixelate")
_FOR_IMAGES = 1 / 6
"""The share of the time that may go into measuring what needs no training."""
_PROBED, _LEAST_IMAGES = 16, 200
_FLOAT_BYTES = 4


@dataclass
class _Work:
    """What is known so far, in memory and on disk."""

    folder: Path
    about: Measurements
    lesson: Lesson
    test: ImageSet
    audits: list[AuditResult]
    ways: dict[str, Way] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def write(self) -> Advice:
        """Write everything anew, and return it."""
        ways = {way.name: way for way in _audited(self.audits, self.ways, self.lesson, self.about.data)}
        missing = tuple(net for net in self.about.missing if net not in self.ways)
        measured = replace(self.about, ways=tuple(ways.values()), missing=missing)
        machine = provenance(data=self.test.source, data_sha256=self.test.sha256, train_images=self.lesson.images)
        parts, left_out = tuple(self.parts.values()), tuple(self.left_out)
        advice = Advice(measured, recommend(measured), parts, left_out, machine.to_json())
        advice.write(self.folder / ADVICE)
        write_page(advice, self.folder / PAGE)
        return advice


def advise(
    classifier: str,
    data: str,
    folder: Path,
    *,
    budget: str = "paper",
    minutes: float = 60,
    audits: Path | None = None,
    allow_outside: bool = False,
    progress: Progress = silent,
    say: Say = mute,
) -> Advice:
    """Find out which way to go, and write `advice.json` and `advice.html` whenever a part is done.

    Args:
        classifier: a bundle, or what is imported into the folder.
        data: as `load_images` takes it; without labels, agreement with the classifier stands for accuracy.
        folder: of everything that is written. What is finished there is read again, what was interrupted resumes, and
            with more minutes short trainings are made again, for longer.
        budget: of the largest net, see `Lesson.nets`.
        minutes: for all calls with this folder together; a training that was interrupted or is made again counts once.
        audits: a folder of further audits' JSON files; those in `folder` count in any case.
        allow_outside: read images outside a CSV file's folder.
        progress: see `Progress`.
        say: is given the estimates, and a line for each part.

    Raises:
        SfumatoError: the classifier or the images cannot be used, the time is too short for anything, the budget
            is too small, or the folder holds advice on something else.
        Interrupted: Ctrl-C or SIGTERM in a training; the state was saved.
    """
    started = time.monotonic()
    check_writable(folder)
    with exclusive(folder, ResultsError):
        path = classifier_bundle(classifier, folder / "classifier")
        lesson, test = _lesson(path, data, folder, allow_outside=allow_outside, progress=progress, say=say)
        nets, speed, seconds = lesson.nets(budget), Speed(fastest_device()), 60 * minutes
        served, known = Bundle.load(path, kind="classifier"), _known(folder, lesson)
        ways = image_ways(test)
        image_s, epoch_s = _seconds_per_image(ways, served, test), lesson.epoch(nets[0], speed).whole_s
        count = known.measured.ways[0].test_images if known else int(_FOR_IMAGES * seconds / image_s)
        count = min(len(test), max(_LEAST_IMAGES, count))
        if known is None and seconds < (least := image_s * min(_LEAST_IMAGES, len(test)) + epoch_s):
            raise TrainingError(
                f"{minutes:g} minutes are too short: measuring and one epoch of the smallest net take about "
                f"{spoken(least)}; give at least --minutes {math.ceil(least / 6) / 10:g}"
            )
        say(f"{count:,} test images, measured in about {spoken(image_s * count)}")
        for net in nets:
            epoch = lesson.epoch(net, speed)
            more = f"{spoken(epoch.teacher_s)} more where the classifier teaches anew"
            say(f"an epoch of {net} takes about {spoken(epoch.student_s)}, {more}")
        test = test.subset(count)
        cloud = classify(served, test, progress=progress).argmax(dim=1)
        test = _checked(test, cloud, served.labels, labelled=lesson.labelled)
        about = _about(lesson, test, folder, minutes)
        about = replace(about, options=_options(lesson, budget, audits), missing=tuple(nets))
        work = _Work(folder, about, lesson, test, _audits(folder, audits))
        if known is not None:
            work.parts = {part.name: part for part in known.parts}
            work.ways = {way.name: way for way in known.measured.ways if way.kind in IMAGE_WAYS}
        deadline = started + seconds - sum(part.seconds for part in work.parts.values())
        _measure_images(work, ways, served, progress)
        return _train(work, served, cloud, [*nets, SKETCH], speed, deadline, progress, say)


def _lesson(
    path: Path, data: str, folder: Path, *, allow_outside: bool, progress: Progress, say: Say
) -> tuple[Lesson, ImageSet]:
    """Load classifier and images, and return what is learned from them, and the test images."""
    frozen = load_classifier(path)
    size = frozen.preprocessing.height, frozen.preprocessing.width
    train, test, _ = load_train_test(data, size=size, allow_outside=allow_outside, progress=progress)
    if train.labelled:
        for remark in (*train.remarks(), *test.remarks()):
            say(remark)
        train, test = train.of_classes(frozen.labels), test.of_classes(frozen.labels)
    identity = f"{frozen.identity} {train.sha256} {test.sha256}"
    nets = folder / "nets"
    return Lesson(frozen, path, data, identity, len(train), train.labelled, nets, allow_outside), test


def _known(folder: Path, lesson: Lesson) -> Advice | None:
    """Read what is known already; None at first."""
    known = Advice.read(folder / ADVICE)
    if known is not None and known.measured.identity != lesson.identity:
        raise ResultsError(f"{folder} holds advice on another classifier or other images; choose another -o")
    return known


def _about(lesson: Lesson, test: ImageSet, folder: Path, minutes: float) -> Measurements:
    return Measurements(
        classifier=str(lesson.path),
        data=lesson.data,
        folder=str(folder),
        minutes=minutes,
        identity=lesson.identity,
        measure="accuracy" if lesson.labelled else "agreement",
        chance=float(test.labels.bincount().max()) / len(test),
        ways=(),
    )


def _options(lesson: Lesson, budget: str, audits: Path | None) -> tuple[str, ...]:
    """Return the options of the command that change what is measured, as they were given."""
    further = () if audits is None else ("--audits", str(audits))
    return ("--budget", budget, *further, *((ALLOW_OUTSIDE,) if lesson.allow_outside else ()))


def _checked(test: ImageSet, cloud: Tensor, labels: tuple[str, ...], *, labelled: bool) -> ImageSet:
    """Return the test images, with the classifier's predictions as labels if they have none."""
    if not labelled:
        test = replace(test, labels=cloud, names=labels)
    of_one = f"{test.source}: all test images are of one class"
    if len(set(test.labels.tolist())) < 2:
        raise DataError(f"{of_one}{'' if labelled else ' to the classifier'}; there is nothing to tell apart")
    commonest, accuracy = float(test.labels.bincount().max()) / len(test), float((cloud == test.labels).double().mean())
    if accuracy <= commonest:
        raise ClassifierError(
            f"the classifier has {accuracy:.1%} on {len(test)} test images of {test.source}, no better than the most "
            f"frequent class alone ({commonest:.1%}): check its mean and std, and the order of its labels"
        )
    return test


def _seconds_per_image(ways: list[ImageWay], served: Bundle, test: ImageSet) -> float:
    """Measure everything that needs no training on a few images."""
    probe = test.subset(_PROBED)
    started = time.monotonic()
    for way in ways:
        measure_image_way(way, served, probe, 0.0)
    return (time.monotonic() - started) / len(probe)


def _measure_images(work: _Work, ways: list[ImageWay], served: Bundle, progress: Progress) -> None:
    started, cloud_ms = time.monotonic(), milliseconds(served)
    for way in ways:
        if way.name not in work.ways:
            found = measure_image_way(way, served, work.test, cloud_ms, progress)
            if found is not None:
                work.ways[way.name] = found
            work.write()
    before = work.parts[IMAGES].seconds if IMAGES in work.parts else 0.0
    work.parts[IMAGES] = Part(IMAGES, round(before + time.monotonic() - started, 1))


def _train(
    work: _Work,
    served: Bundle,
    cloud: Tensor,
    names: list[str],
    speed: Speed,
    deadline: float,
    progress: Progress,
    say: Say,
) -> Advice:
    """Train the nets, the smallest first, and a sketch on the best of them; measure each as soon as it is there."""
    best: Way | None = None
    pace = 1.0
    for place, name in enumerate(names):
        trunk = best.name if best and name == SKETCH else ""
        if name == SKETCH and not trunk:
            work.left_out.append("sketch: no net was trained that it could be built on")
            continue
        earlier = work.parts[name].seconds if name in work.parts else 0.0
        left = max(0.0, deadline - time.monotonic() + earlier) / (len(names) - place)
        epoch = work.lesson.epoch(name, speed, trunk).times(pace)
        within = schedule_within(left, epoch, work.lesson.most_views)
        planned = plan(work.lesson, f"{name}-{trunk}" if trunk else name, within)
        if planned is None:
            took = spoken(epoch.whole_s)
            work.left_out.append(f"{name}: an epoch takes about {took}, and {spoken(left)} were left for it")
            say(work.left_out[-1])
            continue
        epochs, views = planned.schedule.epochs, planned.schedule.views
        rest = "made before" if planned.done else f"about {spoken(epoch.training_s(epochs, views))}"
        say(f"{name}: {epochs} of {WHOLE} epochs{views_of(views)}, {rest}")
        part = work.parts[name] = make(work.lesson, name, planned, left, trunk, progress, say)
        if part.finished and not planned.done:  # the next estimate is as wrong as this one was
            pace *= part.seconds / epoch.training_s(part.finished, views)
        bundle, at_least, plain = Bundle.load(part.bundle or ""), part.at_least, work.ways[PLAIN]
        if name == SKETCH:
            found = list(sketch_ways(bundle, served, work.test, plain.cloud_ms or 0, at_least=at_least))
        else:
            local, *gates = net_ways(bundle, name, work.test, plain, cloud, at_least=at_least)
            found = [local]
            if best is None or local.accuracy > best.accuracy:
                best, found = local, [local, *gates]
                work.ways = {key: way for key, way in work.ways.items() if way.kind != "gate"}
        work.ways |= {way.name: way for way in found}
        work.write()
    return work.write()


def _audits(folder: Path, further: Path | None) -> list[AuditResult]:
    """Read the audits in the folder of the advice, and others; of one target the worst is the last."""
    own = [AuditResult.read(file) for file in sorted(folder.rglob("audit.json")) if file.parent.name != "work"]
    found = [*own, *(read_audits(further).values() if further else ())]
    return sorted(found, key=lambda one: (one.verdict.finding == "leaks", one.best.excess_leakage if one.best else 0.0))


def _audited(audits: list[AuditResult], ways: dict[str, Way], lesson: Lesson, data: str) -> list[Way]:
    """Return the ways with what their audits found, and further audited obfuscators of the same classifier."""
    if not audits:
        return list(ways.values())
    found, plain = dict(ways), ways.get(PLAIN)
    size = lesson.shape
    by_fingerprint = {
        Bundle.load(way.bundle).files[OBFUSCATOR_ONNX]: way.bundle
        for way in ways.values()
        if way.kind == SKETCH and way.bundle
    }
    for audit in audits:
        best, utility = audit.best, audit.utility
        if best is None or audit.data.source != data:
            continue
        leak = Leak(best.excess_leakage, best.attacker, audit.budget.name, audit.verdict.finding)
        if bundle := by_fingerprint.get(audit.target.fingerprint):
            found |= {name: replace(way, audit=leak) for name, way in found.items() if way.bundle == bundle}
        elif utility is not None and plain is not None and _same_classifier(utility.accuracy_plain, plain):
            payload = _FLOAT_BYTES * 3 * size.height * size.width
            accuracy, images = utility.accuracy_obfuscated, utility.test_images
            name = f"{audit.target.name}, audited" if audit.target.name in ways else audit.target.name
            found[name] = Way(name, "obfuscator", accuracy, images, 1.0, payload, 8.0 * payload, audit=leak)
    return list(found.values())


def _same_classifier(accuracy: float, plain: Way) -> bool:
    """Whether an accuracy on plain images is that of this classifier, within three standard errors."""
    error = math.sqrt(plain.accuracy * (1 - plain.accuracy) / plain.test_images)
    return abs(accuracy - plain.accuracy) <= 3 * error + 1e-9

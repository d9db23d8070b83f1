import copy
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim import Adam

from sfumato.errors import Interrupted, TrainingError
from sfumato.lab.data import Augmentation, ImageSet
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator
from sfumato.lab.models.checkpoint import load_checkpoint
from sfumato.lab.training import batches, engine
from sfumato.lab.training.engine import _PARTS as PARTS
from sfumato.lab.training.engine import Fitted, Hooks, Options, fit, optimizers_of, validate
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.recipe_parts import TrainingRecipe
from sfumato.lab.training.tasks import ClassifierTask
from sfumato.progress import Progress, Say, mute, silent
from synthetic import image_set

STEPS, EPOCHS = 3, 2
TRAIN, TEST = image_set(14, size=(8, 8)), image_set(7, size=(8, 8), seed=1)


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


def classifier_task(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ClassifierTask(classifier(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)))


def obfuscation_task(seed: int = 0) -> nn.Module:
    torch.manual_seed(99)
    frozen = classifier()
    torch.manual_seed(seed)
    return ObfuscationTask(
        Obfuscator(), Deobfuscator(), frozen, Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)), privacy_weight=0.5
    )


def train(
    task: nn.Module,
    checkpoint: Path,
    *,
    resume: bool = False,
    identity: str = "recipe",
    images: ImageSet = TRAIN,
    before_epoch: Callable[[int], Iterable[nn.Parameter]] = lambda epoch: (),
    progress: Progress = silent,
    say: Say = mute,
    **plan: int,
) -> Fitted:
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    return fit(
        Fabric(accelerator="cpu", devices=1),
        task,
        TrainingRecipe(**{"epochs": EPOCHS, "batch_size": 4, "seed": 1, **plan}),
        optimizers=(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.9)),
        train=images,
        test=TEST,
        augmentation=Augmentation(flip=True, crop_padding=2),
        checkpoint=checkpoint,
        identity=identity,
        options=Options(resume=resume, progress=progress, say=say),
        hooks=Hooks(before_epoch),
    )


def do_at_step(task: nn.Module, step: int, action) -> nn.Module:
    """Runs `action(loss)` in the training step of that number, counted from 1; a tensor it returns becomes the loss."""
    forward, seen = task.forward, 0

    def acting(images, labels):
        nonlocal seen
        losses = forward(images, labels)
        seen += task.training
        if task.training and seen == step:
            changed = action(losses["loss"])
            if changed is not None:
                losses = {**losses, "loss": changed}
        return losses

    task.forward = acting
    return task


def send(number: signal.Signals):
    return lambda _loss: os.kill(os.getpid(), number)


def weights(task: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return tmp_path / "checkpoint.pt"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What the classifier's run ends with when nothing happens."""
    task = classifier_task()
    train(task, tmp_path_factory.mktemp("undisturbed") / "checkpoint.pt")
    return weights(task)


def test_training_lowers_the_loss(checkpoint):
    task = classifier_task()
    before = validate(Fabric(accelerator="cpu"), task, TRAIN, 4, channels_last=False)
    train(task, checkpoint, epochs=25)
    after = validate(Fabric(accelerator="cpu"), task, TRAIN, 4, channels_last=False)
    assert after["loss"] < before["loss"] - 0.2
    assert after["accuracy"] > before["accuracy"]


def test_the_same_seed_gives_the_same_weights(checkpoint, undisturbed):
    task = classifier_task()
    train(task, checkpoint)
    assert same(weights(task), undisturbed)
    assert not same(weights(classifier_task()), undisturbed)


def test_validations_are_kept_over_an_interrupt(checkpoint, undisturbed):
    whole = train(classifier_task(), checkpoint)
    assert [figures["epoch"] for figures in whole.history] == [1, 2]
    assert whole.history[-1] == {"epoch": 2, **whole.figures}
    with pytest.raises(Interrupted):
        train(do_at_step(classifier_task(), STEPS + 1, send(signal.SIGINT)), checkpoint)
    resumed = train(classifier_task(seed=3), checkpoint, resume=True)
    assert resumed.history == whole.history and resumed.seconds > 0


def test_a_checkpoint_without_validations_still_resumes(checkpoint):
    with pytest.raises(Interrupted):
        train(do_at_step(classifier_task(), STEPS + 1, send(signal.SIGINT)), checkpoint)
    state = load_checkpoint(checkpoint, PARTS)
    del state["history"]
    torch.save(state, checkpoint)
    assert [figures["epoch"] for figures in train(classifier_task(), checkpoint, resume=True).history] == [2]


def test_another_seed_gives_another_order(checkpoint, undisturbed):
    task = classifier_task()
    train(task, checkpoint, seed=2)
    assert not same(weights(task), undisturbed)


def test_the_global_state_of_randomness_does_not_matter(checkpoint, undisturbed):
    task = classifier_task()
    torch.manual_seed(12345)
    train(task, checkpoint)
    assert same(weights(task), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 2, STEPS, STEPS + 1, STEPS * EPOCHS])
def test_an_interrupted_run_resumes_to_the_same_weights(checkpoint, undisturbed, step, number):
    with pytest.raises(Interrupted, match="resume"):
        train(do_at_step(classifier_task(), step, send(number)), checkpoint)
    task = classifier_task(seed=77)  # whatever the new process starts with is overwritten
    train(task, checkpoint, resume=True)
    assert same(weights(task), undisturbed)


def test_a_run_may_be_interrupted_again_and_again(checkpoint, undisturbed):
    with pytest.raises(Interrupted):
        train(do_at_step(classifier_task(), 1, send(signal.SIGINT)), checkpoint)
    for _ in range(STEPS * EPOCHS - 1):
        with pytest.raises(Interrupted):
            train(do_at_step(classifier_task(7), 1, send(signal.SIGINT)), checkpoint, resume=True)
    task = classifier_task(8)
    fitted = train(task, checkpoint, resume=True)
    assert same(weights(task), undisturbed)
    assert fitted.figures["accuracy"] >= 0


def test_obfuscator_and_deobfuscator_resume_to_the_same_weights(checkpoint, tmp_path):
    whole, halves = obfuscation_task(), obfuscation_task()
    frozen = copy.deepcopy(whole.classifier.state_dict())
    train(whole, tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        train(do_at_step(halves, 2, send(signal.SIGINT)), checkpoint)
    halves = obfuscation_task(seed=5)
    train(halves, checkpoint, resume=True)
    assert same(weights(halves), weights(whole))
    assert same(halves.classifier.state_dict(), frozen)
    assert not same(weights(halves.obfuscator), weights(obfuscation_task().obfuscator))


def test_a_crash_resumes_from_the_last_regular_checkpoint(checkpoint, undisturbed, monkeypatch):
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY_S", 0.0)

    def crash(_loss):
        raise MemoryError

    with pytest.raises(MemoryError):
        train(do_at_step(classifier_task(), STEPS + 2, crash), checkpoint)
    assert (load_checkpoint(checkpoint, PARTS)["epoch"], load_checkpoint(checkpoint, PARTS)["step"]) == (1, 1)
    task = classifier_task(3)
    train(task, checkpoint, resume=True)
    assert same(weights(task), undisturbed)


def test_a_finished_run_resumes_to_its_figures(checkpoint, undisturbed):
    figures = train(classifier_task(), checkpoint)
    task = classifier_task(3)
    again = train(task, checkpoint, resume=True)
    assert same(weights(task), undisturbed)
    assert again == figures


def test_a_second_interrupt_does_not_wait(checkpoint):
    def twice(_loss):
        # To this very thread, and one after the other has been handled: otherwise two may arrive as one.
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a browser at work in this process has its own
    try:
        with pytest.raises(KeyboardInterrupt):
            train(do_at_step(classifier_task(), 1, twice), checkpoint)
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_handled_as_before_afterwards(checkpoint):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(do_at_step(classifier_task(), 1, send(signal.SIGTERM)), checkpoint)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_checkpoint_of_another_recipe_is_refused(checkpoint):
    train(classifier_task(), checkpoint)
    task = classifier_task(3)
    before = weights(task)
    with pytest.raises(TrainingError, match="another recipe"):
        train(task, checkpoint, resume=True, identity="another")
    assert same(weights(task), before)


def test_a_checkpoint_that_an_earlier_version_wrote_is_resumed(checkpoint):
    train(classifier_task(), checkpoint, identity='{"recipe": {"train_pictures": 24}}')
    train(classifier_task(), checkpoint, resume=True, identity='{"recipe": {"train_images": 24}}')
    with pytest.raises(TrainingError, match="another recipe"):
        train(classifier_task(), checkpoint, resume=True, identity='{"recipe": {"train_images": 25}}')


def test_a_checkpoint_of_other_networks_is_refused(checkpoint):
    train(classifier_task(), checkpoint)
    with pytest.raises(TrainingError, match="does not fit"):
        train(obfuscation_task(), checkpoint, resume=True)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("every_s", [0.0, 60.0])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(checkpoint, monkeypatch, loss, every_s):
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY_S", every_s)
    task = do_at_step(classifier_task(), STEPS + 1, lambda true_loss: true_loss * loss)
    with pytest.raises(TrainingError, match=rf"the loss is {loss} at epoch 2, step 1; the last good state is kept in"):
        train(task, checkpoint)
    kept = load_checkpoint(checkpoint, PARTS)
    assert (kept["epoch"], kept["step"]) == (1, 0)
    assert all(torch.isfinite(value).all() for value in kept["task"].values())


def test_an_interrupt_does_not_save_weights_that_are_lost(checkpoint):
    def both(loss):
        os.kill(os.getpid(), signal.SIGINT)
        return loss * math.nan

    with pytest.raises(TrainingError, match="the loss is nan"):
        train(do_at_step(classifier_task(), STEPS + 1, both), checkpoint)
    assert (load_checkpoint(checkpoint, PARTS)["epoch"], load_checkpoint(checkpoint, PARTS)["step"]) == (1, 0)


def test_more_images_per_step_than_there_are_is_refused(checkpoint):
    with pytest.raises(TrainingError, match="batch_size 16 does not fit 14"):
        train(classifier_task(), checkpoint, batch_size=16)


def test_every_epoch_sees_each_image_at_most_once_and_in_a_new_order(checkpoint, monkeypatch):
    seen_batches = []

    def noting(images, *_):
        seen_batches.append(images)
        return images

    monkeypatch.setattr(batches, "augment", noting)
    train(classifier_task(), checkpoint)
    assert len(seen_batches) == STEPS * EPOCHS
    orders = []
    for epoch in range(EPOCHS):
        seen = torch.cat(seen_batches[epoch * STEPS : (epoch + 1) * STEPS])
        matches = (seen[:, None] == TRAIN.images[None]).flatten(2).all(dim=2)
        assert matches.any(dim=1).all() and int(matches.any(dim=0).sum()) == STEPS * 4
        orders.append(matches.int().argmax(dim=1).tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_a_validation_averages_over_images_not_over_batches(batch_size):
    task = classifier_task().eval()
    with torch.no_grad():
        logits = task.net(task.normalize(TEST.images.float() / 255))
    figures = validate(Fabric(accelerator="cpu"), task, TEST, batch_size, channels_last=False)
    assert figures["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, TEST.labels)), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(float((logits.argmax(1) == TEST.labels).float().mean()), rel=1e-6)


def test_a_validation_changes_nothing():
    task = classifier_task()
    before = weights(task)
    validate(Fabric(accelerator="cpu"), task, TEST, 3, channels_last=True)
    assert same(weights(task), before)


@pytest.mark.parametrize("wanted", [pytest.param(True, marks=pytest.mark.long), False])
def test_compiling_is_passed_on_and_changes_nothing_but_the_speed(tmp_path, monkeypatch, wanted):
    compiled = []
    plain = nn.Module.compile

    def quickly(module):
        compiled.append(module)
        plain(module, backend="eager")  # traced and cut as ever, without the minute in the C++ compiler

    monkeypatch.setattr(nn.Module, "compile", quickly)
    task, other = obfuscation_task(), obfuscation_task()
    train(task, tmp_path / "compiled.pt", compile=wanted)
    train(other, tmp_path / "plain.pt")
    assert compiled == [task] * wanted
    for one, same in zip(task.state_dict().items(), other.state_dict().items(), strict=True):
        assert one[0] == same[0]
        torch.testing.assert_close(one[1], same[1])


class Sampling(ClassifierTask):
    """Samples noise in each step, as noise in a code does."""

    def forward(self, images, labels):
        return super().forward(images + 0.1 * torch.randn_like(images), labels)


def sampling_task() -> nn.Module:
    torch.manual_seed(0)
    return Sampling(classifier(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)))


def reset(task: nn.Module) -> Callable[[int], list[nn.Parameter]]:
    """Reset the last layer before the second epoch."""

    def before_epoch(epoch: int) -> list[nn.Parameter]:
        if epoch != 1:
            return []
        with torch.no_grad():
            task.net[-1].weight.zero_()
        return [task.net[-1].weight]

    return before_epoch


@pytest.mark.parametrize("step", [2, 5])
def test_what_is_sampled_and_reset_is_the_same_after_an_interruption(tmp_path, step):
    whole = sampling_task()
    train(whole, tmp_path / "whole.pt", before_epoch=reset(whole))
    first = sampling_task()
    with pytest.raises(Interrupted):
        train(do_at_step(first, step, send(signal.SIGINT)), tmp_path / "c.pt", before_epoch=reset(first))
    resumed = sampling_task()
    torch.rand(7)  # whatever was sampled before does not matter
    train(resumed, tmp_path / "c.pt", resume=True, before_epoch=reset(resumed))
    assert same(weights(resumed), weights(whole))


def test_the_optimiser_forgets_what_is_reset(checkpoint):
    task = classifier_task()
    train(task, checkpoint, before_epoch=reset(task))
    states = load_checkpoint(checkpoint, PARTS)["optimizer"]["state"]
    steps = [float(states[index]["step"]) for index in sorted(states)]
    trained = [name for name, p in task.named_parameters() if p.requires_grad]
    assert dict(zip(trained, steps, strict=True)) == {
        name: STEPS if name == "net.5.weight" else STEPS * EPOCHS for name in trained
    }


def noted_weights(task: nn.Module) -> list[dict[str, torch.Tensor]]:
    """The trained state before each step, and so after the one before it; the last one is missing."""
    seen, forward = [], task.forward

    def noting(images, labels):
        if task.training:
            seen.append({name: value for name, value in weights(task).items() if value.is_floating_point()})
        return forward(images, labels)

    task.forward = noting
    return seen


def test_a_training_ends_with_the_average_of_its_weights_and_validates_it(checkpoint, tmp_path):
    task, plain = classifier_task(), classifier_task()
    seen = noted_weights(plain)
    train(plain, tmp_path / "plain.pt", weight_average=0.4)
    fitted = train(task, checkpoint, weight_average=0.4)
    raw = load_checkpoint(checkpoint, PARTS)["task"]
    average = seen[0]
    for step, now in enumerate([*seen[1:], raw], start=1):
        kept = min(0.4, (1 + step) / (10 + step))
        average = {name: kept * value + (1 - kept) * now[name] for name, value in average.items()}
    for name, value in average.items():
        assert torch.allclose(task.state_dict()[name], value, atol=1e-6), name
    assert not same(weights(task), raw)
    after = validate(Fabric(accelerator="cpu"), task, TEST, 4, channels_last=True)
    assert fitted.figures == after == {key: value for key, value in fitted.history[-1].items() if key != "epoch"}
    assert same(raw, load_checkpoint(tmp_path / "plain.pt", PARTS)["task"]), "and trains on with the last ones"


@pytest.mark.parametrize("step", [2, STEPS, STEPS + 1])
def test_an_average_is_the_same_after_an_interruption(tmp_path, step):
    whole = classifier_task()
    fitted = train(whole, tmp_path / "whole.pt", weight_average=0.9)
    with pytest.raises(Interrupted):
        train(do_at_step(classifier_task(), step, send(signal.SIGINT)), tmp_path / "c.pt", weight_average=0.9)
    resumed = classifier_task(seed=5)
    assert train(resumed, tmp_path / "c.pt", resume=True, weight_average=0.9).figures == fitted.figures
    assert same(weights(resumed), weights(whole))
    finished = classifier_task(seed=6)
    assert train(finished, tmp_path / "c.pt", resume=True, weight_average=0.9).figures == fitted.figures
    assert same(weights(finished), weights(whole))


def test_a_checkpoint_without_an_average_is_refused_where_one_is_wanted(checkpoint):
    train(classifier_task(), checkpoint)
    with pytest.raises(TrainingError, match="does not fit"):
        train(classifier_task(), checkpoint, resume=True, weight_average=0.9)


def noted(task: nn.Module, what: Callable[[torch.Tensor], object]) -> list[object]:
    """What is seen of the images, or of the task, at each training step from now on."""
    seen, forward = [], task.forward

    def noting(images, labels):
        if task.training:
            seen.append(what(images))
        return forward(images, labels)

    task.forward = noting
    return seen


def integer_steps(task: nn.Module) -> list[object]:
    """Of each training step, whether it is in 8-bit integers, and whether norms learn."""
    return noted(task, lambda images: (task.int8, task.net[1].training))


def test_the_last_epochs_are_in_integers_also_after_an_interruption(tmp_path):
    plan = {"epochs": 3, "int8_epochs": 1}
    whole = classifier_task()
    steps = integer_steps(whole)
    train(whole, tmp_path / "whole.pt", **plan)
    assert steps == [(False, True)] * 2 * STEPS + [(True, False)] * STEPS
    for step in (2 * STEPS, 2 * STEPS + 2):
        with pytest.raises(Interrupted):
            train(do_at_step(classifier_task(), step, send(signal.SIGINT)), tmp_path / "c.pt", **plan)
        resumed = classifier_task(seed=4)
        steps = integer_steps(resumed)
        train(resumed, tmp_path / "c.pt", resume=True, **plan)
        assert steps == [(True, False)] * (3 * STEPS - step) and same(weights(resumed), weights(whole))
    plain = classifier_task()
    train(plain, tmp_path / "plain.pt", epochs=3)
    assert not same(weights(plain), weights(whole))


def test_in_integers_the_learning_rate_is_a_tenth(tmp_path, monkeypatch):
    rates = []

    class Noting(Adam):
        def step(self, *rest):
            rates.extend(group["lr"] for group in self.param_groups)
            return super().step(*rest)

    monkeypatch.setattr(torch.optim, "Adam", Noting)
    train(classifier_task(), tmp_path / "c.pt", epochs=3, int8_epochs=1)
    scheduled = [1e-2 * 0.9 ** (step // 4) for step in range(3 * STEPS)]
    assert rates == pytest.approx(scheduled[: 2 * STEPS] + [rate / 10 for rate in scheduled[2 * STEPS :]])


def test_the_first_epochs_are_on_smaller_images_also_after_an_interruption(tmp_path):
    plan = {"epochs": 3, "small_epochs": 2}
    whole = classifier_task()
    seen = noted(whole, lambda images: (images.dtype, tuple(images.shape[2:]), float(images.max()) <= 1))
    train(whole, tmp_path / "whole.pt", **plan)
    assert seen == [(torch.float32, (6, 6), True)] * 2 * STEPS + [(torch.float32, (8, 8), True)] * STEPS
    with pytest.raises(Interrupted):
        train(do_at_step(classifier_task(), STEPS + 1, send(signal.SIGINT)), tmp_path / "c.pt", **plan)
    resumed = classifier_task(seed=4)
    train(resumed, tmp_path / "c.pt", resume=True, **plan)
    assert same(weights(resumed), weights(whole))


def test_every_step_is_reported_and_every_validation_is_said(checkpoint):
    reports, lines = [], []
    train(classifier_task(), checkpoint, progress=lambda *report: reports.append(report), say=lines.append)
    assert [report[:3] for report in reports] == [("training", step, 6) for step in range(1, 7)]
    assert reports[-1][3].startswith("epoch 2/2  loss ") and "images/s" in reports[-1][3]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"] and "accuracy" in lines[-1]


@pytest.mark.parametrize(
    ("epochs", "steps", "warmup"), [(1, 4, 0.2), (1, 3, 0.25), (1, 1, 0.5), (2, 1, 0.1), (3, 3, 0.1)]
)
def test_a_cycle_of_few_steps_falls_to_nearly_nothing(epochs, steps, warmup):
    plan = TrainingRecipe(epochs=epochs, batch_size=4, schedule="one-cycle", warmup=warmup, learning_rate=0.1)
    optimizer, schedule = optimizers_of(plan, nn.Linear(1, 1), steps=steps)
    rates = []
    for _ in range(epochs * steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert 0 <= rates[-1] < 1e-4 and max(rates, default=0) <= 0.1

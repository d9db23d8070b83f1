import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.lab.data.augment import Mixup
from sfumato.lab.models import Deobfuscator, Normalize, Obfuscator, Sketcher, build_classifier, simulated_int8
from sfumato.lab.training.ensemble import Teachers
from sfumato.lab.training.obfuscation_task import ObfuscationTask
from sfumato.lab.training.objectives import classification_loss, distillation_loss, reconstruction_loss
from sfumato.lab.training.tasks import ClassifierTask, SketchTask

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


def obfuscation_task(privacy_weight: float = 0.5) -> ObfuscationTask:
    torch.manual_seed(1)
    classifier = build_classifier("resnet20", 4)
    task = ObfuscationTask(
        Obfuscator(), Deobfuscator(), classifier, Normalize(MEAN, STD), privacy_weight=privacy_weight
    )
    return task.double().train()


def two_passes(task: ObfuscationTask) -> None:
    """The paper's update as it is written: one objective for each network, one backward pass for each."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    mean, std = mean.float().double(), std.float().double()

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        obfuscated = task.obfuscator(IMAGES)
        logits = task.classifier((obfuscated - mean) / std)
        return classification_loss(logits, LABELS), reconstruction_loss(task.deobfuscator(obfuscated), IMAGES)

    l_c, l_r = losses()
    for_obfuscator = torch.autograd.grad(l_c - task.privacy_weight * l_r, list(task.obfuscator.parameters()))
    _, l_r = losses()
    for_deobfuscator = torch.autograd.grad(l_r, list(task.deobfuscator.parameters()))
    for net, gradients in ((task.obfuscator, for_obfuscator), (task.deobfuscator, for_deobfuscator)):
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient


# Powers of two: the losses are float32, where other factors would round.
@pytest.mark.parametrize("privacy_weight", [0.0, 0.5, 2.0])
def test_one_pass_gives_the_update_of_the_papers_two(privacy_weight):
    ours, paper = obfuscation_task(privacy_weight), obfuscation_task(privacy_weight)
    trained = [p for p in ours.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-3)
    adams = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (paper.obfuscator, paper.deobfuscator)]
    before = copy.deepcopy(ours.state_dict())

    ours(IMAGES, LABELS)["loss"].backward()
    two_passes(paper)
    expected = dict(paper.named_parameters())
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        scale = float(expected[name].grad.abs().max())
        assert torch.allclose(parameter.grad, expected[name].grad, rtol=0, atol=1e-9 * scale), name

    adam.step()
    for optimizer in adams:
        optimizer.step()
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter, expected[name], rtol=0, atol=1e-9), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_privacy_weight_changes_the_obfuscators_gradient_alone():
    gradients = []
    for weight in (0.0, 4.0):
        task = obfuscation_task(weight)
        task(IMAGES, LABELS)["loss"].backward()
        gradients.append({name: p.grad for name, p in task.named_parameters() if p.requires_grad})
    without, with_ = gradients
    for name, gradient in without.items():
        same = torch.allclose(gradient, with_[name], rtol=0, atol=1e-12)
        assert same == name.startswith("deobfuscator."), name


def test_without_a_weight_the_obfuscator_only_learns_to_be_classified():
    task = obfuscation_task(0.0)
    task(IMAGES, LABELS)["loss"].backward()
    alone = obfuscation_task(0.0)
    logits = alone.classifier(alone.normalize(alone.obfuscator(IMAGES)))
    F.cross_entropy(logits, LABELS).backward()
    for (name, got), wanted in zip(task.obfuscator.named_parameters(), alone.obfuscator.parameters(), strict=True):
        assert torch.allclose(got.grad, wanted.grad, rtol=0, atol=1e-5 * float(wanted.grad.abs().max())), name


def test_the_frozen_classifier_never_changes():
    task = obfuscation_task()
    before = copy.deepcopy(task.classifier.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        task.train()(IMAGES, LABELS)["loss"].backward()
        optimizer.step()
    after = task.classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_only_the_trained_networks_enter_training_mode():
    task = obfuscation_task().eval().train()
    assert task.obfuscator.training and task.deobfuscator.training
    assert not any(module.training for module in task.classifier.modules())
    assert not any(p.requires_grad for p in task.classifier.parameters())
    assert not any(module.training for module in task.eval().modules())


def test_the_figures_for_people_carry_no_gradient_and_are_right():
    task = obfuscation_task(0.5)
    with torch.no_grad():
        obfuscated = task.obfuscator(IMAGES)
        logits = task.classifier(task.normalize(obfuscated))
        reconstructed = task.deobfuscator(obfuscated)
    losses = task(IMAGES, LABELS)
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    assert float(losses["accuracy"]) == float((logits.argmax(1) == LABELS).double().mean())
    assert float(losses["reconstruction"]) == pytest.approx(float(((reconstructed - IMAGES) ** 2).mean()), rel=1e-5)
    assert float(losses["classification"]) == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-5)


def test_the_classifiers_task_normalises_and_classifies():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).double()
    task = ClassifierTask(net, Normalize(MEAN, STD), label_smoothing=0.1).double()
    inputs = torch.stack([(IMAGES[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    expected = F.cross_entropy(net(inputs), LABELS, label_smoothing=0.1)
    assert float(task(IMAGES, LABELS)["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def distilling_task(**options: float) -> ClassifierTask:
    torch.manual_seed(2)
    teacher = nn.Sequential(Normalize(STD, MEAN), build_classifier("resnet20", 4))
    return ClassifierTask(build_classifier("resnet20", 4), Normalize(MEAN, STD), teacher=teacher, **options).double()


# Halves and quarters: the losses are float32, where other shares would round.
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_teachers_answers_get_their_share_of_the_loss(weight):
    task = distilling_task(teacher_weight=weight, temperature=2.0, label_smoothing=0.1)
    logits = task.net(task.normalize(IMAGES))
    hard = classification_loss(logits, LABELS, label_smoothing=0.1)
    soft = distillation_loss(logits, task.teacher(IMAGES), temperature=2.0)
    losses = task(IMAGES, LABELS)
    assert float(losses["loss"].detach()) == pytest.approx(float(((1 - weight) * hard + weight * soft).detach()))
    assert float(losses["distillation"]) == pytest.approx(float(soft.detach()))
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]


def test_without_a_teacher_the_labels_are_all_there_is():
    task = distilling_task()
    alone = ClassifierTask(task.net, task.normalize)
    logits = task.net(task.normalize(IMAGES))
    losses = alone(IMAGES, LABELS)
    assert losses.keys() == {"loss", "accuracy"}
    assert float(losses["loss"].detach()) == pytest.approx(float(F.cross_entropy(logits, LABELS).detach()), rel=1e-6)


def test_the_teacher_never_changes():
    task = distilling_task(teacher_weight=1.0)
    before = copy.deepcopy(task.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        task.train()(IMAGES, LABELS)["loss"].backward()
        optimizer.step()
    assert task.net.training and not any(module.training for module in task.teacher.modules())
    after = task.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"net"}


def test_mixtures_are_classified_as_their_parts_and_the_teacher_sees_the_same():
    task = distilling_task(teacher_weight=0.25, temperature=2.0, mixup=1.0).train()
    seen = []
    task.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(5)
    losses = task(IMAGES, LABELS)
    torch.manual_seed(5)
    mix = Mixup.sample(4, 1.0)
    mixed = torch.stack([s * IMAGES[i] + (1 - s) * IMAGES[mix.partners[i]] for i, s in enumerate(mix.shares.double())])
    assert torch.allclose(seen[0], task.normalize(mixed)) and torch.allclose(seen[1], mixed)
    task.mixup = 0.0
    logits = task.net(task.normalize(mixed))  # in training mode: the batch is the same
    each = -logits.float().log_softmax(dim=1)
    hard = torch.stack(
        [s * each[i, LABELS[i]] + (1 - s) * each[i, LABELS[mix.partners[i]]] for i, s in enumerate(mix.shares)]
    ).mean()
    soft = distillation_loss(logits, task.teacher(mixed), temperature=2.0)
    assert float(losses["loss"].detach()) == pytest.approx(float((0.75 * hard + 0.25 * soft).detach()), rel=1e-5)


def test_nothing_is_mixed_in_evaluation():
    task = distilling_task(mixup=1.0).eval()
    plain = distilling_task().eval()
    assert torch.equal(task(IMAGES, LABELS)["loss"], plain(IMAGES, LABELS)["loss"])


def test_several_teachers_count_as_the_geometric_mean_of_their_predictions():
    torch.manual_seed(3)
    nets = [build_classifier("resnet20", 4).eval() for _ in range(3)]
    logits = Teachers(nets)(IMAGES.float())
    for temperature in (1.0, 4.0):
        each = torch.stack([(net(IMAGES.float()) / temperature).softmax(dim=1) for net in nets])
        wanted = each.log().mean(dim=0).exp()
        wanted = wanted / wanted.sum(dim=1, keepdim=True)
        assert torch.allclose((logits / temperature).softmax(dim=1), wanted, atol=1e-6)


def test_in_integers_the_student_alone_is_rounded_and_only_in_training(monkeypatch):
    task = distilling_task(teacher_weight=1.0).float().train()
    images = IMAGES.float()
    rounded = []
    plain = simulated_int8.rounded_inputs
    monkeypatch.setattr(simulated_int8, "rounded_inputs", lambda x: rounded.append(x) or plain(x))
    task(images, LABELS)
    assert not rounded
    task.int8 = True
    task.train()
    statistics = copy.deepcopy([part.running_mean for part in task.net.modules() if isinstance(part, nn.BatchNorm2d)])
    task(images, LABELS)["loss"].backward()
    assert len(rounded) == sum(isinstance(part, nn.Conv2d) for part in task.net.modules())
    after = [part.running_mean for part in task.net.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(torch.equal(*pair) for pair in zip(statistics, after, strict=True))
    assert all(p.grad is not None for p in task.net.parameters())
    task.eval()(images, LABELS)
    assert len(rounded) == sum(isinstance(part, nn.Conv2d) for part in task.net.modules())


def test_a_student_learns_its_teachers_answers():
    task = distilling_task(teacher_weight=1.0).train()
    optimizer = torch.optim.Adam(task.net.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        losses.append(task(IMAGES, LABELS)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.2 * float(losses[0].detach())


def test_the_panel_shows_three_rows_that_can_be_looked_at():
    task = obfuscation_task().float()  # in training mode, as fresh running statistics would flatten the images
    images = IMAGES.float()
    panel = task.panel(images)
    assert panel.shape == (3, 4, 3, 16, 16)
    assert torch.equal(panel[0], images)
    assert float(panel.min()) >= 0 and float(panel.max()) <= 1
    assert torch.allclose(panel[1].amax(dim=(1, 2, 3)), torch.ones(4))


def sketch_task() -> SketchTask:
    torch.manual_seed(1)
    classifier = build_classifier("resnet20", 4)
    sketcher = Sketcher(16, 16, classes=4, bits=6)
    return SketchTask(sketcher, classifier, Normalize(MEAN, STD), teacher_weight=0.25, temperature=2.0).train()


def test_a_sketch_is_asked_for_both_answers_by_label_and_teacher():
    task, images = sketch_task().eval(), IMAGES.float()
    losses = task(images, LABELS)
    with torch.no_grad():
        drawings, own = task.sketcher(images)
        teacher = (task.classifier(task.normalize(images)) / 2).softmax(dim=1)
        wanted = []
        for logits in (task.classifier(task.normalize(drawings)), own):
            labels = -logits.log_softmax(dim=1)[torch.arange(4), LABELS].mean()
            divergence = (teacher * (teacher.log() - (logits / 2).log_softmax(dim=1))).sum(dim=1).mean()
            wanted.append(float(0.75 * labels + 0.25 * 4 * divergence))
    assert float(losses["obfuscated"]) == pytest.approx(wanted[0], rel=1e-4)
    assert float(losses["device"]) == pytest.approx(wanted[1], rel=1e-4)
    assert losses["loss"].item() == pytest.approx(sum(wanted), rel=1e-4)


def test_only_the_sketcher_learns_and_all_of_it():
    task = sketch_task()
    before = copy.deepcopy(task.classifier.state_dict())
    task(IMAGES.float(), LABELS)["loss"].backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in task.sketcher.parameters())
    assert all(p.grad is None for p in task.classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.classifier.state_dict().items())


def test_a_share_of_each_batch_is_decoded_in_training_and_all_of_it_otherwise(monkeypatch):
    task, decoded = sketch_task(), []
    decode = task.sketcher.decode
    monkeypatch.setattr(task.sketcher, "decode", lambda code: decoded.append(len(code)) or decode(code))
    for share in (1.0, 0.75, 0.1):
        task.decoded_share = share
        assert {name: value.shape for name, value in task(IMAGES.float(), LABELS).items()}["loss"] == ()
    task.eval()(IMAGES.float(), LABELS)
    assert decoded == [4, 3, 2, 4]


def test_the_trunk_is_trained_for_the_devices_prediction_alone():
    task = sketch_task()
    task(IMAGES.float(), LABELS)["loss"].backward()
    first = next(task.sketcher.trunk.parameters())
    got = first.grad.clone()
    task.zero_grad()
    own = task.sketcher.encode(IMAGES.float())[1]
    teacher = task.classifier(task.normalize(IMAGES.float())).detach()
    alone = 0.75 * classification_loss(own, LABELS) + 0.25 * distillation_loss(own, teacher, temperature=2.0)
    alone.backward()
    torch.testing.assert_close(got, first.grad)


def test_a_sketch_may_have_another_teacher():
    task, images = sketch_task().eval(), IMAGES.float()
    own = task(images, LABELS)
    teacher = nn.Sequential(Normalize(STD, MEAN), build_classifier("resnet20", 4)).eval()
    taught = SketchTask(
        task.sketcher, task.classifier, task.normalize, teacher_weight=0.25, temperature=2.0, teacher=teacher
    ).eval()
    losses = taught(images, LABELS)
    with torch.no_grad():
        decoded, logits = task.sketcher(images)
        for key, found in (("obfuscated", task.classifier(task.normalize(decoded))), ("device", logits)):
            soft = distillation_loss(found, teacher(images), temperature=2.0)
            wanted = 0.75 * classification_loss(found, LABELS) + 0.25 * soft
            assert float(losses[key]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(losses["device"]) != float(own["device"])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(part.training for part in taught.train().teacher.modules())


def test_a_sketch_mixes_only_what_it_does_not_decode(monkeypatch):
    task, images = sketch_task(), IMAGES.float()
    task.mixup, task.decoded_share, encoded = 1.0, 0.5, []
    encode = task.sketcher.encode
    monkeypatch.setattr(task.sketcher, "encode", lambda x, **how: encoded.append(x) or encode(x, **how))
    torch.manual_seed(0)
    assert torch.isfinite(task(images, LABELS)["loss"])
    assert torch.equal(encoded[0][:2], images[:2])
    assert not any(torch.equal(*pair) for pair in zip(encoded[0][2:], images[2:], strict=True))
    task.eval()(images, LABELS)
    assert torch.equal(encoded[1], images)


def test_in_integers_trunk_and_decoder_of_a_sketch_are_rounded(monkeypatch):
    task, rounded = sketch_task(), []
    plain = simulated_int8.rounded_inputs
    monkeypatch.setattr(simulated_int8, "rounded_inputs", lambda x: rounded.append(x) or plain(x))
    task.int8 = True
    task.train()(IMAGES.float(), LABELS)["loss"].backward()
    assert len(rounded) == sum(isinstance(part, nn.Conv2d) for part in task.sketcher.modules())
    assert not any(part.training for part in task.sketcher.modules() if isinstance(part, nn.BatchNorm2d))
    task.eval()(IMAGES.float(), LABELS)
    assert len(rounded) == sum(isinstance(part, nn.Conv2d) for part in task.sketcher.modules())


def test_a_sketchs_panel_shows_images_and_decoded_images():
    task = sketch_task().eval()
    rows = task.panel(IMAGES.float())
    assert torch.equal(rows[0], IMAGES.float()) and torch.equal(rows[1], task.sketcher(IMAGES.float())[0])

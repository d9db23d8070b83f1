"""What is computed in which precision, and that it is nearly the same."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.errors import TrainingError
from sfumato.lab.models import build_classifier, fold_norms, precision
from sfumato.lab.models.precision import CPU, autocast, choose_precision, compute

BF16, AMX = ("AVX-512 BF16",), ("AVX-512 BF16", "AMX")


@pytest.fixture(params=[BF16, AMX], ids=["bf16", "amx"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A CPU with these features; what it lacks in truth is computed slowly."""
    monkeypatch.setattr(precision, "cpu_features", lambda: request.param)
    return request.param


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_features", lambda: ())


@pytest.fixture
def convolved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, torch.dtype]]]:
    """Input channels of the weight and its precision, of each convolution that torch computes."""
    seen: list[tuple[int, torch.dtype]] = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default:
                seen.append((args[1].shape[1], args[1].dtype))
            return func(*args, **kwargs or {})

    with Record():
        yield seen


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("architecture", ["resnet20", "vgg7"])
def test_output_and_gradients_are_nearly_those_of_float32(
    processor: tuple[str, ...], architecture: str, frozen: bool
) -> None:
    torch.manual_seed(0)
    net = build_classifier(architecture)
    if frozen:
        net = fold_norms(net)
    images, gradients, outputs = torch.randn(16, 3, 32, 32), [], []
    for bfloat16 in (False, True):
        seen = images.clone().requires_grad_()
        out = compute(net, seen, bfloat16=bfloat16)
        assert out.dtype == torch.float32
        F.cross_entropy(out, torch.arange(16) % 10).backward()
        first = seen if frozen else next(net.parameters())
        gradients.append(first.grad.clone())
        first.grad = None
        outputs.append(out.detach())
    assert not torch.equal(*outputs)
    assert (outputs[0] - outputs[1]).norm() < 0.1 * outputs[0].norm()
    assert F.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.9


def test_few_channels_and_depthwise_layers_stay_in_float32(
    processor: tuple[str, ...], convolved: list[tuple[int, torch.dtype]]
) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 48, 1)
    )
    compute(net, torch.rand(2, 3, 12, 12), bfloat16=True)
    assert convolved == [(3, torch.float32), (1, torch.float32), (32, torch.bfloat16)]


def test_small_maps_are_products_with_amx_alone(
    processor: tuple[str, ...], convolved: list[tuple[int, torch.dtype]]
) -> None:
    compute(nn.Conv2d(16, 16, 3, padding=1), torch.rand(2, 16, 8, 8), bfloat16=True)
    assert convolved == ([] if "AMX" in processor else [(16, torch.bfloat16)])


@pytest.mark.parametrize("options", [{"padding": 0}, {"padding": 2, "dilation": 2}, {"stride": (1, 2), "padding": 1}])
def test_other_convolutions_are_left_to_torch(processor: tuple[str, ...], options: dict[str, object]) -> None:
    conv = nn.Conv2d(16, 16, 3, **options)
    images = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(compute(conv, images, bfloat16=True), conv(images), atol=0.05, rtol=0.05)


def test_what_a_network_computes_in_float32_by_itself_stays_so(
    processor: tuple[str, ...], convolved: list[tuple[int, torch.dtype]]
) -> None:
    depthwise, dense = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3, padding=1)

    def net(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return dense(depthwise(images))

    compute(net, torch.rand(2, 16, 8, 8), bfloat16=True)
    assert convolved == [(1, torch.float32), (16, torch.float32)]


def test_exported_programs_are_computed_so_too(
    processor: tuple[str, ...], convolved: list[tuple[int, torch.dtype]]
) -> None:
    net, images = nn.Conv2d(16, 16, 1), torch.rand(2, 16, 8, 8)
    program = torch.export.export(net, (images,)).module()
    convolved.clear()
    compute(program, images, bfloat16=True)
    assert convolved == [(16, torch.bfloat16)]


def test_an_exception_inside_leaves_nothing_switched_on(processor: tuple[str, ...]) -> None:
    with pytest.raises(ZeroDivisionError), autocast():
        raise ZeroDivisionError
    assert not torch.is_autocast_enabled("cpu")
    assert nn.Conv2d(16, 16, 1)(torch.rand(1, 16, 4, 4)).dtype == torch.float32


def test_a_cpu_without_bfloat16_stays_with_float32(plain_cpu: None, convolved: list[tuple[int, torch.dtype]]) -> None:
    compute(nn.Conv2d(16, 16, 1), torch.rand(2, 16, 8, 8), bfloat16=True)
    assert convolved == [(16, torch.float32)]
    assert choose_precision("auto", CPU).dense_bfloat16 is False
    with pytest.raises(TrainingError, match='set it to "auto"'):
        choose_precision("bf16-mixed", CPU)


def test_what_is_chosen_is_said(processor: tuple[str, ...]) -> None:
    chosen = choose_precision("auto", CPU)
    assert (chosen.fabric, chosen.dense_bfloat16) == ("32-true", True)
    assert str(chosen).startswith("bfloat16 in dense convolutions") and processor[-1] in str(chosen)
    assert choose_precision("32-true", CPU).dense_bfloat16 is False
    assert choose_precision("bf16-mixed", CPU).fabric == "bf16-mixed"
    assert choose_precision("auto", torch.device("mps")).fabric == "32-true"

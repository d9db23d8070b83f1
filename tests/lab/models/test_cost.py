import pytest
import torch
from torch import nn

from counting import count_macs
from sfumato.lab.models import Deobfuscator, Obfuscator, build_classifier, cost

# Source: the paper's table 4 and overhead columns (see the measures), and He et al. 2016 for ResNet20.
CLASSIFIERS = {
    "resnet20": (272_474, 40.8e6),
    "resnet18": (11_173_962, 0.556e9),
    "resnet50": (23_520_842, 1.30e9),
    "vgg19": (20_040_522, 0.399e9),
    "googlenet": (6_166_250, 1.53e9),
}


@pytest.fixture(autouse=True)
def _without_memory():
    """Shapes are enough to count with."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("network", [Obfuscator, Deobfuscator])
@pytest.mark.parametrize(("order", "macs"), [("paper", 26_449_920), ("commuted", 21_288_960)])
def test_the_obfuscator_costs_what_the_paper_counts(network, order, macs):
    net = network(order=order)
    assert cost(net).params == 324_518
    assert cost(net).macs == macs
    assert count_macs(net) == macs


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_costs_what_the_paper_counts(name):
    net = build_classifier(name)
    params, macs = CLASSIFIERS[name]
    found = cost(net)
    assert found.params == params
    assert found.macs == count_macs(net)
    # The paper's counter takes a few elementwise operations along.
    assert found.macs == pytest.approx(macs, rel=0.01)


def test_the_cost_grows_with_the_image_but_the_parameters_do_not():
    small, large = (cost(Obfuscator(), height=side, width=32) for side in (32, 64))
    assert large.macs == 2 * small.macs
    assert large.params == small.params


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_was(training):
    with torch.device("cpu"):
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train(training)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        cost(net, height=8, width=8)
    assert net.training == training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

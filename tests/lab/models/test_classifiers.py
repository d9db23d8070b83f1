import pytest
import torch

from sfumato.lab.models import CLASSIFIERS, Obfuscator, build_classifier, cost


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_gives_one_logit_per_class(name):
    with torch.device("meta"):
        net = build_classifier(name, classes=7).eval()
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
        assert net(torch.zeros(1, 3, 64, 48)).shape == (1, 7)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_an_image_is_classified_alone(name):
    with torch.device("meta"):
        train_only = [m for m in build_classifier(name).modules() if isinstance(m, torch.nn.Dropout)]
    assert not train_only, "dropout would make the frozen classifier's training mode random"


def test_what_an_image_gets_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    net = build_classifier("resnet20").double().eval()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    together = net(images)
    assert torch.allclose(together[1:2], net(images[1:2]), atol=1e-12)
    assert not torch.allclose(together[0], together[1], atol=1e-6)


def test_the_local_classifier_fits_the_obfuscators_budget_and_uses_it():
    with torch.device("meta"):
        budget, local = cost(Obfuscator()), cost(build_classifier("resnet-local"))
    assert 0.95 * budget.params < local.params <= budget.params
    assert 0.95 * budget.macs < local.macs <= budget.macs


def test_an_unknown_classifier_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="resnet20"):
        build_classifier("resnet21")

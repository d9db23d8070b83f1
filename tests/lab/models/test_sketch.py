import pytest
import torch

from sfumato.lab.models import Normalize, Obfuscator, Payload, SketchDecoder, Sketcher, SketchGraph, cost
from sfumato.lab.models.sketch import class_bits, sign

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sketcher(bits: int = 5, height: int = 32, width: int = 32) -> Sketcher:
    torch.manual_seed(1)
    return Sketcher(height, width, classes=4, bits=bits).eval()


def test_bits_are_signs_and_pass_the_gradient_where_the_input_is_small():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.25, 7.0], requires_grad=True)
    out = sign(x)
    assert out.tolist() == [-1, -1, -1, 1, 1]
    (out * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 0]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_it_fits_the_papers_budget(bits):
    with torch.device("meta"):
        mine, papers = cost(Sketcher(bits=bits)), cost(Obfuscator(order="paper"))
    assert mine.params <= papers.params == 324_518
    assert mine.macs <= papers.macs == 26_449_920


@pytest.mark.parametrize("size", [(32, 32), (8, 16), (64, 48)])
def test_decoded_images_have_the_size_of_the_images_and_lie_in_the_visible_range(size):
    with torch.no_grad():
        decoded, logits = sketcher(5, *size)(torch.rand(3, 3, *size))
    assert decoded.shape == (3, 3, *size) and logits.shape == (3, 4)
    assert float(decoded.min()) >= 0 and float(decoded.max()) <= 1


def test_a_prediction_takes_as_many_bits_as_number_the_classes():
    assert [class_bits(classes) for classes in (2, 3, 4, 5, 10, 1000)] == [1, 2, 2, 3, 4, 10]
    with pytest.raises(ValueError, match="10 classes take 4 bits, got 3"):
        Sketcher(classes=10, bits=3)


@pytest.mark.parametrize("bits", [2, 5])
def test_a_code_is_the_devices_prediction_and_then_the_learned_bits(bits):
    net = sketcher(bits)
    with torch.no_grad():
        code, logits = net.encode(IMAGES)
    assert code.shape == (6, 4 + bits - 2)
    assert code[:, :4].sum(dim=1).tolist() == [1] * 6 and torch.equal(code.argmax(dim=1), logits.argmax(dim=1))
    assert set(code[:, 4:].unique().tolist()) <= {-1.0, 1.0}


def test_images_with_one_code_give_one_decoded_image_and_no_image_gives_anything_else():
    net = sketcher(3)
    with torch.no_grad():
        decoded, _ = net(torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
        all_eight = net.decode(torch.cat([torch.eye(4).repeat(2, 1), torch.tensor([[-1.0]] * 4 + [[1.0]] * 4)], dim=1))
    distance = (decoded[:, None] - all_eight).abs().amax(dim=(2, 3, 4))
    assert float(distance.min(dim=1).values.max()) < 1e-5
    assert float((all_eight[0] - all_eight[3]).abs().max()) > 1e-3, "different classes are different images"
    assert float((all_eight[0] - all_eight[4]).abs().max()) > 1e-3, "different bits are different images"


def test_the_payload_depends_on_the_code_alone_also_for_gradients():
    net = sketcher()
    x = IMAGES.clone().requires_grad_()
    code, _ = net.encode(x)
    decoded = net.decode(code.detach())
    assert torch.equal(decoded, net(x)[0])
    assert not torch.autograd.grad(decoded.sum(), x, allow_unused=True)[0], "nothing goes past the code"


def test_an_attacker_has_a_gradient_through_the_learned_bits():
    net, x = sketcher(), IMAGES.clone().requires_grad_()
    Payload(net, Normalize((0.5,) * 3, (0.25,) * 3), 32, 32)(x).square().sum().backward()
    assert float(x.grad.abs().max()) > 0


def test_the_graph_is_normalised_and_its_predictions_are_calibrated():
    net, normalize = sketcher(), Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    with torch.no_grad():
        decoded, logits = net(IMAGES)
        payload, own, _ = SketchGraph(net, normalize, temperature=2.0)(IMAGES)
        alone = Payload(net, normalize, 32, 32)
        assert torch.equal(payload, alone(IMAGES)) and alone.code_bits == 5
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    assert torch.allclose(payload, (decoded - mean) / std, atol=1e-6)
    assert torch.allclose(own, logits / 2)


def test_codes_are_packed_from_the_left_class_first():
    torch.manual_seed(1)
    net = Sketcher(classes=10, bits=11)
    code = torch.zeros(2, 17)
    code[0, 9] = code[1, 3] = 1  # 1001 and 0011
    code[:, 10:] = torch.tensor([[1.0, -1, -1, 1, 1, -1, 1], [-1.0, -1, -1, 1, -1, -1, -1]])
    packed = net.pack(code)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [[0b10011001, 0b10100000], [0b00110001, 0b00000000]]
    assert torch.equal(net.unpack(packed), code)
    assert net.unpack(torch.tensor([[0b11110000, 0]], dtype=torch.uint8))[0, :10].sum() == 0, "there is no class 15"


@pytest.mark.parametrize("bits", [2, 5, 10])
def test_the_decoder_in_the_cloud_decodes_to_what_the_device_would_have(bits):
    net, normalize = sketcher(bits), Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    with torch.no_grad():
        drawn, _, packed = SketchGraph(net, normalize, temperature=1.0)(IMAGES)
        assert packed.shape == (6, 2 if bits == 10 else 1)
        assert torch.equal(SketchDecoder(net, normalize)(packed), drawn)


def test_what_is_decoded_has_enough_images_behind_it():
    torch.manual_seed(0)
    sketcher = Sketcher(32, 32, classes=4, bits=5).eval()
    packed = torch.arange(32, dtype=torch.uint8).unsqueeze(1) << 3
    codes = sketcher.unpack(packed)
    # By class: most have enough; one has; the class has, but no code; the class has not.
    counts = torch.tensor(
        [9, 9, 9, 2, 0, 1, 9, 9, 0, 3, 7, 1, 2, 1, 0, 0, 2, 2, 2, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0]
    )
    seen = counts > 0
    assert torch.equal(sketcher.merge(codes), codes), "nothing is merged before it is asked for"
    sketcher.keep_codes(codes[seen], counts[seen], 5)
    merged = sketcher.merge(codes)
    behind = {row.tobytes(): 0 for row in merged.numpy()}
    for row, count in zip(merged.numpy(), counts.tolist(), strict=True):
        behind[row.tobytes()] += count
    assert min(behind.values()) >= 5, "every code, also one that no image has"
    assert torch.equal(merged[counts >= 5], codes[counts >= 5])
    classes, before = (part[:, :4].argmax(dim=1) for part in (merged, codes))
    assert torch.equal(classes[before < 3], before[before < 3]), "of the same class, where that has as many images"
    flipped = (merged[3, 4:] != codes[3, 4:]).sum()
    assert flipped == 1, "the most similar one"
    with torch.no_grad():
        assert torch.equal(sketcher.decode(codes), sketcher.decode(merged))
        again = Sketcher(32, 32, classes=4, bits=5).eval()
        again.load_state_dict(sketcher.state_dict())
        assert torch.equal(again.decode(codes), sketcher.decode(codes)), "the weights say which codes are kept"
    again.load_state_dict(Sketcher(32, 32, classes=4, bits=5).state_dict())
    assert torch.equal(again.merge(codes), codes), "weights of earlier versions keep all"


@pytest.mark.parametrize("photographs", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_an_attacker_has_a_gradient_where_the_code_has_none_and_the_same_payload(photographs, merged):
    torch.manual_seed(1)
    net = Sketcher(16, 16, classes=4, bits=2 if photographs else 5, photographs=photographs).eval()
    images = IMAGES[..., ::2, ::2].contiguous()
    if photographs:
        net.photographs.images.random_(256, generator=torch.Generator().manual_seed(0))
    if merged:
        codes = net.encode(images)[0].detach()
        net.keep_codes(codes[:1], torch.tensor([5]), 1)
    payload = Payload(net, Normalize((0.5,) * 3, (0.25,) * 3), 16, 16).eval().requires_grad_(False)
    asked = images.clone().requires_grad_()
    with torch.no_grad():
        exact = payload(images)
    sent = payload(asked)
    assert torch.allclose(sent.detach(), exact, atol=1e-5)
    (gradient,) = torch.autograd.grad((sent * torch.randn(sent.shape)).sum(), asked)
    assert float(gradient.abs().amax(dim=(1, 2, 3)).min()) > 0

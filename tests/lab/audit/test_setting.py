from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from scenes import SIDE, Noise, Swap, setting
from sfumato.errors import AuditError
from sfumato.lab.attacks import cloud_features
from sfumato.lab.attacks.cloud_features import CloudView
from sfumato.lab.attacks.dead_leaves import dead_leaves
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.setting import UnavailableError
from sfumato.lab.models import build_classifier

SOURCE = torch.Generator()


def every(pairs):
    return pairs.batch(torch.arange(len(pairs)), SOURCE)


@pytest.mark.parametrize("threat", Threat)
def test_no_attacker_is_handed_a_test_image(threat):
    played = setting(Swap())
    played.shadow, played.classifier = played.target, build_classifier("resnet20", 4)
    known = played.knowledge(threat)
    private = {image.numpy().tobytes() for image in played.test.images}
    held = [known.public] if known.pairs is None else [(every(known.pairs)[0] * 255).round().to(torch.uint8)]
    for images in held:
        both = torch.cat([images, images.flip(3)])
        assert not private & {image.numpy().tobytes() for image in both}


@pytest.mark.parametrize("threat", [threat for threat in Threat if threat is not Threat.OTHER_DATA])
def test_no_attacker_is_handed_an_image_that_was_held_out(threat):
    played = setting(Swap())
    played.held_out_share = 0.25
    played.shadow, played.classifier = played.target, build_classifier("resnet20", 4)
    assert (len(played.public), len(played.held_out)) == (180, 60)
    together = torch.cat([played.public.images, played.held_out.images])
    assert torch.equal(together, played.train.images)
    known = played.knowledge(threat)
    aside = {image.numpy().tobytes() for image in played.held_out.images}
    handed = (
        [known.public, known.intercepted] if known.pairs is None else [(every(known.pairs)[0] * 255).round().byte()]
    )
    for images in handed:
        shown = images if images.dtype == torch.uint8 else (1 - images.flip(3)).mul(255).round().byte()
        both = torch.cat([shown, shown.flip(3)])
        assert not aside & {image.numpy().tobytes() for image in both}


def test_only_the_white_box_has_the_obfuscator():
    played = setting(Swap())
    assert played.knowledge(Threat.WHITE_BOX).module is played.target.module
    for threat in (Threat.PAIRS, Threat.OTHER_DATA, Threat.NO_PAIRS):
        assert played.knowledge(threat).module is None


def test_so_many_pairs_are_known_as_were_asked_for():
    played = setting(Swap())
    assert len(played.knowledge(Threat.PAIRS, pairs=100).pairs) == 100
    assert len(played.knowledge(Threat.PAIRS).pairs) == len(played.train)
    with pytest.raises(UnavailableError, match="only 240 training images"):
        played.knowledge(Threat.PAIRS, pairs=10_000)


def test_a_known_pairs_noise_is_seen_once_and_the_white_boxs_is_fresh():
    played = setting(Noise(), stochastic=True)
    fixed, fresh = (played.knowledge(threat).pairs for threat in (Threat.PAIRS, Threat.WHITE_BOX))
    assert torch.equal(every(fixed)[1], every(fixed)[1])
    assert not torch.equal(every(fresh)[1], every(fresh)[1])


def test_views_are_averaged():
    played = setting(Noise(), stochastic=True)
    originals = played.test.images.float() / 255
    for views in (1, 16):
        spread = float((played.observed(Threat.WHITE_BOX, 60, views=views) - originals).std())
        assert spread == pytest.approx(0.2 / views**0.5, rel=0.05)


def test_intercepted_and_public_images_are_different_ones():
    known = setting(Swap()).knowledge(Threat.NO_PAIRS)
    reconstructed = ((1 - known.intercepted.flip(3)) * 255).round().to(torch.uint8)
    public = {image.numpy().tobytes() for image in known.public}
    assert not public & {image.numpy().tobytes() for image in reconstructed}


def test_missing_things_are_named():
    for threat, missing in ((Threat.SHADOW, "shadow"), (Threat.CLOUD, "classifier")):
        with pytest.raises(UnavailableError, match=missing):
            setting(Swap()).knowledge(threat)


@pytest.mark.parametrize("at_once", [1, 50])
def test_the_cloud_sees_the_payload_then_features_then_logits(at_once, monkeypatch):
    monkeypatch.setattr(cloud_features, "_BATCH", at_once)
    classifier = build_classifier("resnet20", 4).eval()
    payload = torch.rand(2, 3, SIDE, SIDE)
    view = CloudView(classifier, payload)(payload)
    assert view.shape == (2, 3 + 64 + 4, SIDE, SIDE)
    assert torch.equal(view[:, :3], payload)
    features = classifier.stages(classifier.stem(payload))
    assert torch.allclose(view[:, 3:67], nn.functional.interpolate(features, size=(SIDE, SIDE)), atol=1e-5)
    assert torch.allclose(view[:, 67:, 0, 0], classifier(payload), atol=1e-5)


def test_a_classifier_that_does_not_take_the_payload_is_named():
    with pytest.raises(AuditError, match="does not take the payload"):
        CloudView(build_classifier("resnet20", 4), torch.rand(2, 5, SIDE, SIDE))


def test_dead_leaves_are_reproducible_and_varied():
    first, again, other = (dead_leaves(8, 24, 16, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (8, 3, 24, 16) and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other)
    # Neighbours are alike, as in photographs and not as in noise.
    across = np.diff(first.numpy().astype(int), axis=3)
    assert np.median(np.abs(across)) == 0 and np.abs(across).max() > 100


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: x / (x - x.amax(dim=(1, 2, 3), keepdim=True)), "not finite for 60 of 60 images"),
        (lambda x: x[:, :, : 16 - (len(x) < 40)], r"60 payloads of sizes \(3, 15, 16\), \(3, 16, 16\)"),
        (lambda x: x[1:], "58 payloads of sizes"),
    ],
)
def test_payloads_that_are_not_finite_or_of_several_sizes_are_named(broken, message):
    played = setting(Swap())
    with pytest.raises(AuditError, match=message):
        replace(played.target, payload=broken).observe(played.test.images, batch=40)

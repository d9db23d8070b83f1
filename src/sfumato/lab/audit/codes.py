"""Exact statements about a deterministic code: what the best attacker that there can be makes of it.

With a deterministic code the images that share a payload cannot be told apart by anybody, and those that do not share
one can be told apart by whoever holds the obfuscator. So the best re-identification among n images, each equally
likely, is not estimated but counted: it is the number of their different payloads, divided by n.

Source: the hit rate of the best guess is the sum over all payloads of the most probable candidate's joint probability,
here 1 / n for each payload that occurs: Cover and Thomas 2006, section 2.10, has the bound in bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import AuditError
from sfumato.lab.attacks.identification import another_view
from sfumato.lab.attacks.threat_models import Threat
from sfumato.lab.audit.bounds import BestGuess, CodeFacts, Silence, Transmissions
from sfumato.lab.audit.selective import on_device
from sfumato.lab.audit.setting import AttackSetting
from sfumato.lab.models.codewords import word_numbers
from sfumato.progress import Progress, silent

CANDIDATES = (10, 100, 1_000, 10_000)
VIEWS = (1, 2, 4, 8, 16)
"""How many views of one scene are sent."""


def code_facts(setting: AttackSetting, bits: int, *, views_of: int, progress: Progress = silent) -> CodeFacts:
    """Return what the code of a deterministic obfuscator tells exactly of the test images.

    Args:
        setting: its target states a code.
        bits: that the code has.
        views_of: test images of which further views are sent.
        progress: its stage is "certificate"; steps are views.
    """
    target, test = setting.target, setting.test
    words = word_numbers(setting.observed(Threat.WHITE_BOX, len(test)))
    counts, values = words.bincount(), int(getattr(target.module, "code_values", 2**bits))
    some, source = test.subset(views_of), torch.Generator().manual_seed(setting.seed)
    views = [words[: len(some)]]
    for view in range(1, max(VIEWS)):
        progress("certificate", view, max(VIEWS))
        views.append(word_numbers(target.observe(another_view(some.images, source, alike=True))))
    return CodeFacts(
        bits=bits,
        values=values,
        observed=len(counts),
        images=len(words),
        entropy_bits=entropy_bits(counts),
        best=best_guesses(words, test.labels),
        transmissions=transmissions(views, values=values),
        silence=None if target.gate is None else silence(words, *on_device(target.gate, test.images)),
    )


def best_guesses(words: Tensor, labels: Tensor) -> tuple[BestGuess, ...]:
    """Return the best re-identification among images of all classes, and among those of one.

    Args:
        words: (N,) int64, which code each image has.
        labels: (N,) int64, the classes. Of one class are at most as many candidates as half of the images have.

    Raises:
        AuditError: no images, or not one label for each.
    """
    if not len(words) or words.shape != labels.shape:
        raise AuditError(f"{len(words)} codes and {len(labels)} labels: need one of each for every image")
    counts, sizes = words.bincount(), labels.bincount()
    best = [BestGuess(candidates=n, classes="all", top1=best_top1(counts, n)) for n in _sizes(len(words))]
    for n in _sizes(int(sizes[labels].median())):
        large = (sizes >= n).nonzero()[:, 0].tolist()
        hits = [best_top1(words[labels == label].bincount(), n) * int(sizes[label]) for label in large]
        best.append(BestGuess(candidates=n, classes="one", top1=sum(hits) / int(sizes[large].sum())))
    return tuple(best)


def best_top1(counts: Tensor, candidates: int) -> float:
    """Return the best attacker's top-1 among so many of the images, over all choices of them: exact.

    It is the expected number of different codes in a gallery that is sampled without replacement, divided by its size.

    Args:
        counts: how many images each code has, int64; codes without images do not count.
        candidates: from 1 up to the sum of the counts.

    Raises:
        AuditError: more candidates than images, or none.

    Source: rarefaction, Hurlbert 1971, equation 4.
    """
    total = int(counts.sum())
    if not 1 <= candidates <= total:
        raise AuditError(f"{candidates} candidates of {total} images: from 1 to all of them are possible")
    others = (total - counts[counts > 0]).double()
    possible = others >= candidates  # else one of the images with the code is always among the candidates
    chosen = torch.tensor(float(candidates), dtype=torch.float64)
    missing = torch.exp(_log_choose(others[possible], chosen) - _log_choose(torch.tensor(float(total)), chosen))
    return (len(others) - float(missing.sum())) / candidates


def entropy_bits(counts: Tensor) -> float:
    """Return the entropy of a distribution given by counts, in bits."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0  # no -0.0


def transmissions(views: Sequence[Tensor], *, values: int) -> tuple[Transmissions, ...]:
    """Return what k transmissions of one scene tell, for each k of `VIEWS`.

    Args:
        views: for each view, the code of every image, (N,) int64; a view changes all images alike, and the attacker is
            taken to know how, which is the most that it can know.
        values: how many codes can be reached at most.

    Raises:
        AuditError: no views, or of different numbers of images.
    """
    if not views or len({len(view) for view in views}) > 1 or not len(views[0]):
        raise AuditError(f"views of {[len(view) for view in views]} images: need the same images in each")
    found = []
    for k in (k for k in VIEWS if k <= len(views)):
        together = len(torch.unique(torch.stack([*views[:k]], dim=1), dim=0))
        images = len(views[0])
        bits = k * math.log2(values)
        found.append(Transmissions(count=k, bits=bits, observed=together, images=images, top1=together / images))
    return tuple(found)


def silence(words: Tensor, sent: Tensor, predicted: Tensor) -> Silence:
    """Return what it tells that an image is sent, or not.

    Args:
        words: (N,) int64, which code each image has.
        sent: (N,) bool.
        predicted: (N,) int64, the on-device predictions, which stay on the device where nothing is sent.

    Raises:
        AuditError: different lengths, or no images.
    """
    if not len(words) or not len(words) == len(sent) == len(predicted):
        raise AuditError(f"{len(words)} codes, {len(sent)} decisions, {len(predicted)} predictions: need one each")
    of_sent, together = len(torch.unique(words[sent])), predicted.max() + 1
    joint = (predicted + together * sent.long()).bincount()
    bit = entropy_bits(sent.long().bincount(minlength=2))
    label = max(0.0, bit + entropy_bits(predicted.bincount()) - entropy_bits(joint))
    quiet = int((~sent).any())
    return Silence(
        offload_rate=float(sent.double().mean()),
        bits=bit,
        label_bits=label,
        top1=(of_sent + quiet) / len(words),
        images=len(words),
        sent_images=int(sent.sum()),
        sent_top1=of_sent / int(sent.sum()) if bool(sent.any()) else None,
    )


def _sizes(most: int) -> list[int]:
    """How many candidates are told of: the usual numbers, or as many as there are."""
    return sorted({min(n, most) for n in CANDIDATES})


def _log_choose(total: Tensor, chosen: Tensor) -> Tensor:
    total = total.double()
    return torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - torch.lgamma(total - chosen + 1)

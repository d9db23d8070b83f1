"""Budgets: which attackers run, and how long each may train. Training is counted in images seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfumato.lab.attacks.threat_models import Threat

_COLUMN_TEST_IMAGES = 4_000
_EVALUATOR_IMAGES = 64_000
"""The same for all budgets, so that their figures can be compared."""
_LEAST_TEST_IMAGES = 16
_PRIOR_IMAGES = 600_000
"""The same in all budgets that have a prior, so that it is trained once."""


@dataclass(frozen=True)
class Trial:
    """One attacker under one threat model.

    Attributes:
        attacker: a name from `sfumato.lab.attacks.registry.ATTACKERS`.
        threat: the threat model.
        images: training images that a learned attacker sees at most, with repetition.
        pairs: known pairs under `Threat.PAIRS`; None for as many as there are training images.
        steps: for attackers that optimise the image.
        views: how many obfuscations of the same image the attacker has and averages.
        seed: of everything random.
        test_images: that it attacks at most, where each takes long; None for as many as the budget has.
    """

    attacker: str
    threat: Threat
    images: int = 0
    pairs: int | None = None
    steps: int = 0
    views: int = 1
    seed: int = 0
    test_images: int | None = None

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.attacker}, {self.threat}"

    @property
    def key(self) -> str:
        """A name for its files."""
        parts = [self.attacker, self.threat, *([f"n{self.pairs}"] if self.pairs else [])]
        parts += [f"k{self.views}"] if self.views > 1 else []
        words = "-".join([*parts, f"seed{self.seed}"]).lower()
        return "".join(c if c.isalnum() or c == "-" else "_" for c in words)


@dataclass(frozen=True)
class Budget:
    """What is spent on one audit: training images of each kind of attacker, and how they are measured.

    Attributes:
        trials: in order; the strongest attackers first.
        views: trials for stochastic obfuscators, that average several views.
        sanity_check_images: for each sanity check; 0 for none.
        identification_images: for the contrastive attackers.
        column_images: for each attacker that infers label columns.
        column_test_images: that it is measured on, at most.
        test_images: that every attacker is measured on; the best one is measured on all there are.
        seeds: how many the strongest attacker is repeated with.
        references: whether reconstructions that need no attack are computed, too.
        evaluator_images: that the evaluator of reconstructions is trained on, once for a data set; 0 for none.
        prior_images: training images of 32x32 that the image prior sees, which is trained once for a data set and is no
            part of an audit; 0 where no attacker of the budget uses it.
    """

    name: str
    description: str
    trials: tuple[Trial, ...]
    views: tuple[Trial, ...]
    sanity_check_images: int
    identification_images: int
    attribute_images: int
    test_images: int
    seeds: int
    column_images: int = 0
    column_test_images: int = 0
    references: bool = True
    evaluator_images: int = 0
    prior_images: int = 0

    @property
    def images(self) -> int:
        """Training images over all decoders of an obfuscator that is deterministic, without the sanity checks."""
        return sum(trial.images for trial in self.trials)


def shared(budget: Budget, share: float) -> Budget:
    """Return the budget with every attacker's training `share` times as long, above 0.

    Below 1 the references, which take long for large images, are left out, and attackers that take long for each image
    attack fewer.
    """
    if share == 1:
        return budget

    def part(count: int) -> int:
        return max(1, round(count * share)) if count else 0

    def fewer(count: int | None) -> int | None:
        return None if count is None else min(count, max(_LEAST_TEST_IMAGES, part(count)))

    def shorter(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
        return tuple(
            replace(trial, images=part(trial.images), steps=part(trial.steps), test_images=fewer(trial.test_images))
            for trial in trials
        )

    spent = (
        "sanity_check_images",
        "identification_images",
        "attribute_images",
        "column_images",
        "prior_images",
        "evaluator_images",
    )
    return replace(
        budget,
        name=f"{budget.name} x {share:g}",
        description=f"{budget.description}; here every attacker trained {share:g} times as long",
        trials=shorter(budget.trials),
        views=shorter(budget.views),
        references=budget.references and share >= 1,
        **{name: part(getattr(budget, name)) for name in spent},
    )


@dataclass(frozen=True)
class _Generative:
    """What the generative attackers spend, in images and steps, so that what they find does not depend on the clock.

    Estimated from a step on two cores: at "standard" each takes under 5 minutes, at "full" under 2 hours.

    Attributes:
        draws_of: test images that the posterior sampler attacks.
        guided: test images and steps of the guided prior; none for no prior.
        search: test images and generations of the search.
    """

    draws_of: int
    guided: tuple[int, int] | None = None
    search: tuple[int, int] | None = None

    def trials(self, unit: int) -> list[Trial]:
        """The trials, with `unit` training images as `_trials` has it."""
        box, sampler = Threat.WHITE_BOX, "posterior sampler"
        trials = [Trial(sampler, box, 2 * unit, test_images=self.draws_of)]
        for name, spent in (("guided prior", self.guided), ("prior search", self.search)):
            if spent is not None:
                trials.append(Trial(name, box, steps=spent[1], test_images=spent[0]))
        return [*trials, Trial(sampler, Threat.PAIRS, unit, test_images=self.draws_of)]


def _trials(unit: int, generative: _Generative, *, all_losses: bool, steps: int) -> tuple[Trial, ...]:
    """Every budget's list: `unit` training images for a decoder that plays a minor part."""
    box = Threat.WHITE_BOX
    trials = [
        Trial("least squares", box),
        Trial("codeword means", box),
        Trial("residual decoder", box, 4 * unit),
        Trial("U-Net with attention", box, 3 * unit),
        Trial("paper's decoder", box, 2 * unit),
        Trial("total variation", box, steps=steps),
    ]
    if all_losses:
        trials += [
            Trial("residual decoder, L1+SSIM", box, unit),
            Trial("residual decoder, GAN", box, unit),
            Trial("deep image prior", box, steps=2 * steps),
        ]
    *with_obfuscator, with_pairs = generative.trials(unit)
    trials += with_obfuscator
    for pairs, images in ((100, unit // 2), (1_000, unit // 2), (10_000, unit), (None, unit)):
        trials.append(Trial("least squares", Threat.PAIRS, pairs=pairs))
        trials.append(Trial("residual decoder", Threat.PAIRS, images, pairs))
    trials.append(with_pairs)
    trials += [Trial("residual decoder", threat, unit) for threat in (Threat.SHADOW, Threat.OTHER_DATA, Threat.CLOUD)]
    return (*trials, Trial("discriminator without pairs", Threat.NO_PAIRS, unit))


def _budget(
    name: str,
    description: str,
    unit: int,
    generative: _Generative,
    *,
    steps: int,
    all_losses: bool,
    test_images: int,
    seeds: int = 1,
) -> Budget:
    averaging = (("least squares", 0), ("residual decoder", unit // 2))
    return Budget(
        name=name,
        description=description,
        trials=_trials(unit, generative, all_losses=all_losses, steps=steps),
        views=tuple(Trial(who, Threat.WHITE_BOX, n, views=k) for k in (4, 16, 64) for who, n in averaging),
        sanity_check_images=min(unit, 2_000),
        identification_images=2 * unit,
        attribute_images=2 * unit,
        column_images=20 * unit,
        column_test_images=_COLUMN_TEST_IMAGES,
        test_images=test_images,
        seeds=seeds,
        evaluator_images=_EVALUATOR_IMAGES,
        prior_images=_PRIOR_IMAGES if generative.guided or generative.search else 0,
    )


_ATTRIBUTES = Budget(
    name="attributes",
    description="attributes and linkage in earnest; images are reconstructed only in passing, without a decoder",
    trials=(Trial("least squares", Threat.WHITE_BOX), Trial("codeword means", Threat.WHITE_BOX)),
    views=(),
    sanity_check_images=0,
    identification_images=10_000,
    attribute_images=2_000,
    column_images=30_000,
    column_test_images=_COLUMN_TEST_IMAGES,
    test_images=2_000,
    seeds=1,
    references=False,
)
_QUICK = "a first estimate; decoders stop long before they are done, so a low leakage means little"
_STANDARD = "every attacker and every loss; a lower bound of what leaks, from training that a laptop can afford"
_FULL = "decoders trained sixty times as long, the strongest with three seeds; wants a GPU"
BUDGETS = {
    "attributes": _ATTRIBUTES,
    "quick": _budget("quick", _QUICK, 1_500, _Generative(64), steps=60, all_losses=False, test_images=500),
    "standard": _budget(
        "standard",
        _STANDARD,
        4_000,
        _Generative(300, guided=(300, 30), search=(48, 8)),
        steps=100,
        all_losses=True,
        test_images=2_000,
    ),
    "full": _budget(
        "full",
        _FULL,
        250_000,
        _Generative(2_000, guided=(2_000, 200), search=(256, 40)),
        steps=1_000,
        all_losses=True,
        test_images=10_000,
        seeds=3,
    ),
}

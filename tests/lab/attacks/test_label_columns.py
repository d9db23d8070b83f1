"""What three attackers infer of label columns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.lab.attacks import label_columns
from sfumato.lab.attacks.encoders import Encoder, ResidualEncoder
from sfumato.lab.attacks.label_columns import ATTACKERS, NEAREST, guess_columns
from sfumato.lab.attacks.protocol import AttackBudget
from sfumato.lab.attacks.threat_models import FixedPairs, FreshPairs

BUDGET = AttackBudget(images=128 * 60, steps=1)


def noise(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def planted(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Grey with noise, darkened by its value, 0 to 2; and these values."""
    values = torch.arange(count) % 3
    return ((150 + noise(count, seed) // 4) // (1 + values[:, None, None, None])).byte(), values


def accuracies(payload, *, train: int = 300, test: int = 150) -> dict[str, float]:
    (known, values), (asked, truth) = planted(train, 0), planted(test, 1)
    pairs = FreshPairs(known, payload)
    guesses = guess_columns(pairs, {"shade": values}, payload(asked.float() / 255), {"shade": 3}, BUDGET)
    assert list(guesses) == list(ATTACKERS)
    return {who: float((guess["shade"] == truth).double().mean()) for who, guess in guesses.items()}


def test_every_attacker_finds_what_is_planted():
    found = accuracies(lambda x: x)
    assert min(found.values()) > 0.95, found


def test_no_attacker_finds_anything_in_noise():
    source = torch.Generator().manual_seed(3)
    found = accuracies(lambda x: torch.randn((len(x), 4, 5, 5), generator=source))
    assert max(found.values()) < 1 / 3 + 0.13, found


@pytest.mark.parametrize("numbers", [2, 3 * 20 * 20])
def test_against_a_code_the_nearest_payloads_are_those_of_the_same_word(numbers):
    """So the guess is the most frequent value of the word, counted here; large payloads are projected first."""
    source = torch.Generator().manual_seed(0)
    words = torch.randn((8, numbers, 1, 1), generator=source)
    word, asked = torch.randint(8, (500,), generator=source), torch.arange(8)
    values = (word + (torch.rand(500, generator=source) < 0.3).long()) % 8
    pairs = FixedPairs(noise(500, 0), words[word])
    counts = torch.zeros(8, 8).index_put_((word, values), torch.ones(500), accumulate=True)
    known = {"word": values}
    found = label_columns._by_nearest(pairs, known, words[asked], {"word": 8}, seed=0)["word"]
    assert found.tolist() == counts.argmax(dim=1).tolist()


def test_few_pairs_and_rare_words_are_enough_to_guess():
    pairs = FixedPairs(noise(2, 0), torch.zeros(2, 3, 1, 1))
    guesses = guess_columns(pairs, {"a": torch.tensor([1, 1])}, torch.ones(3, 3, 1, 1), {"a": 2}, BUDGET)
    assert guesses[NEAREST]["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("encoder", [Encoder, ResidualEncoder])
@pytest.mark.parametrize("shape", [(3, 32, 32), (12, 1, 1), (1, 5, 40)])
def test_encoders_take_payloads_of_any_size(encoder, shape):
    x = torch.randn(6, *shape)
    assert encoder(x, 7)(x).shape == (6, 7)

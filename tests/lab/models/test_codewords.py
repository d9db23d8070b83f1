import pytest
import torch

from sfumato.errors import AuditError
from sfumato.lab.models.codewords import CodewordMeans, codeword_means, word_numbers


def pairs(values, images):
    """The payload is a constant image of the value; one batch for every two images."""
    for at in range(0, len(values), 2):
        sent = torch.tensor(values[at : at + 2]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        yield images[at : at + 2], sent


def test_common_words_give_the_mean_of_their_images():
    torch.manual_seed(0)
    values = [0.0, 1.0] * 2_000
    images = (torch.tensor(values).view(-1, 1, 1, 1) * 0.5 + 0.1 * torch.rand(4_000, 3, 2, 2)).clamp(0, 1)
    estimate, counts = codeword_means(pairs(values, images))
    assert counts.tolist() == [2_000, 2_000]
    asked = torch.tensor([1.1, -0.2]).view(2, 1, 1, 1).expand(-1, 3, 2, 2)
    reconstructed = estimate(asked)
    assert torch.allclose(reconstructed[0], images[1::2].mean(dim=0), atol=1e-3)
    assert torch.allclose(reconstructed[1], images[::2].mean(dim=0), atol=1e-3)


def test_words_that_mean_nothing_are_drawn_to_the_mean_of_all():
    images = torch.rand(400, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    values = [float(i // 2) for i in range(400)]
    estimate, _ = codeword_means(pairs(values, images))
    grand, raw = images.mean(dim=0), images.view(200, 2, 3, 4, 4).mean(dim=1)
    assert float((estimate.means - grand).square().mean()) < 0.2 * float((raw - grand).square().mean())


def test_it_is_the_best_estimate_from_a_code():
    """Two words; the error that is left is the spread within them, which nobody can predict."""
    source = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (2_000,), generator=source).float()
    images = 0.25 + 0.5 * values.view(-1, 1, 1, 1) + 0.1 * (torch.rand(2_000, 3, 4, 4, generator=source) - 0.5)
    estimate, _ = codeword_means(pairs(values.tolist(), images))
    sent = values.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    error = float((estimate(sent) - images).square().mean())
    assert error == pytest.approx(0.1**2 / 12, rel=0.02)


def test_what_differs_in_the_last_bits_is_one_word():
    values = [1.0, 1.0 + 1e-6, 0.0, 1e-7]
    _, counts = codeword_means(pairs(values, torch.rand(4, 3, 2, 2)))
    assert counts.tolist() == [2, 2]


def test_the_commonest_words_can_be_kept_in_half_precision():
    values = [0.0] * 6 + [1.0] * 2 + [2.0] * 4
    estimate, counts = codeword_means(pairs(values, torch.rand(12, 3, 2, 2)))
    small = estimate.reduced(counts, 2)
    assert small.words[:, 0].tolist() == [0.0, 2.0] and small.means.dtype == torch.float16
    given = small(torch.tensor([1.9]).view(1, 1, 1, 1).expand(-1, 3, 2, 2))
    assert given.dtype == torch.float32
    assert torch.allclose(given[0], estimate.means[2], atol=1e-3)


def test_too_many_words_or_none_are_no_code(monkeypatch):
    monkeypatch.setattr("sfumato.lab.models.codewords.MOST_WORDS", 3)
    with pytest.raises(AuditError, match="more than 3"):
        codeword_means(pairs([0.0, 1.0, 2.0, 3.0], torch.rand(4, 3, 2, 2)))
    with pytest.raises(AuditError, match="no pairs"):
        codeword_means(iter(()))


def test_words_of_few_images_are_read_as_the_nearest_of_many():
    words, means = torch.eye(4).view(4, 4), torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2) / 4
    whole, counts = CodewordMeans(words, means), torch.tensor([3, 20, 30, 19])
    small = whole.reduced(counts, 256, 20)
    assert sorted(small.means[:, 0, 0, 0].tolist()) == [0.25, 0.5]
    assert len(whole.reduced(counts, 256, 99).means) == 1, "the commonest one stays"
    assert len(whole.reduced(counts, 3).means) == 3


def test_words_are_numbered_as_they_appear_and_rounding_does_not_count():
    values = torch.tensor([0.5, 0.25, 0.5 + 1e-6, 0.75, 0.25]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    assert word_numbers(values).tolist() == [0, 1, 0, 2, 1]
    assert word_numbers(values[:0]).tolist() == []

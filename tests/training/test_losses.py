"""Weights of the loss and what it does without a modality."""

import pytest
import torch

from skyvec_training.masked.losses import (
    normalized,
    sort_targets,
    sums_by_domain,
    weighted_loss,
)
from skyvec_training.masked.transformer import build_transformer

SUMS, COUNTS, ONES = torch.tensor([6.0, 8.0, 0.0]), torch.tensor([3, 1, 0]), torch.ones(3)


@pytest.mark.parametrize(
    ("power", "expected"), [(0.0, 14 / 4), (1.0, (2 + 8) / 2)], ids=["per token", "per modality"]
)
def test_the_power_weighs_tokens_or_modalities(power, expected):
    assert weighted_loss(SUMS, COUNTS, ONES, power=power).item() == pytest.approx(expected)


def test_a_multiplier_scales_one_modality():
    loss = weighted_loss(SUMS, COUNTS, torch.tensor([1.0, 3.0, 1.0]), power=0.0)
    assert loss.item() == pytest.approx((6 + 24) / (3 + 3))


def test_an_absent_modality_has_no_say():
    with_it = weighted_loss(SUMS, COUNTS, ONES, power=0.5)
    without = weighted_loss(SUMS[:2], COUNTS[:2], ONES[:2], power=0.5)
    assert with_it.item() == without.item()


def test_a_split_batch_has_the_loss_of_the_whole(transformer_run):
    model = build_transformer(transformer_run, seed=0)
    hidden = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    codes, domains = torch.arange(10), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    whole = sums_by_domain(model, hidden, codes, (3, 3, 2, 2))
    parts = [
        sums_by_domain(model, hidden[s], codes[s], counts(domains[s]))
        for s in (slice(0, 10, 2), slice(1, 10, 2))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_targets_are_sorted_by_domain_and_padding_is_left_out(vocabulary):
    starts = [vocabulary.positions[m.token_key].start for m in vocabulary.modalities]
    positions = torch.tensor([[starts[3], starts[0], 0], [starts[2] + 5, starts[0], starts[1]]])
    valid = torch.tensor([[True, True, False], [True, False, True]])
    codes = torch.tensor([[10, 20, 99], [30, 99, 50]])
    targets = sort_targets(codes, positions, valid, vocabulary)
    assert targets.counts == (1, 1, 1, 1)
    assert targets.codes_n.tolist() == [20, 50, 30, 10]
    assert codes.flatten()[targets.places_n].tolist() == targets.codes_n.tolist()


def test_a_blind_guess_has_normalized_loss_one(transformer_run):
    model = build_transformer(transformer_run, seed=0)
    targets = (1, 0, 1, 2)
    sums = sums_by_domain(model, torch.zeros(4, 16), torch.zeros(4, dtype=torch.int64), targets)
    scores = normalized(model.vocabulary, sums, torch.tensor(targets))
    assert set(scores) == {"tok_flux_g", "tok_image", "tok_z"}
    assert list(scores.values()) == pytest.approx([1.0, 1.0, 1.0])


def counts(domains):
    return tuple(torch.bincount(domains, minlength=4).tolist())


def test_smoothing_forgives_a_neighbouring_bin(transformer_run):
    model = build_transformer(transformer_run, seed=0)
    with torch.no_grad():
        model.head_table.zero_()
        model.head_table[500] = 5.0  # tok_flux_g is the first table
    hidden, first = torch.ones(1, 16), (1, 0, 0, 0)
    near, far = (
        sums_by_domain(model, hidden, torch.tensor([code]), first, smoothing=3.0)[0].item()
        for code in (501, 600)
    )
    assert near < 0.9 * far

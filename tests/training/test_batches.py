"""Masked batches as a function of (seed, step, slot), over missing modalities."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.tokens import TokenStore
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.recipe.data import DataRun


@pytest.fixture
def corpus(vocabulary):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1000, (120, vocabulary.num_positions)).astype(np.int16)
    codes[rng.random(codes.shape) < 0.2] = -1
    codes[:40, vocabulary.positions["tok_image"].rows] = -1  # a third has no image
    codes[:40, :2] = 7
    return TokenStore(codes_BA=codes, ids=np.arange(120), run=DataRun(held_out=0.2))


@pytest.fixture(params=["aion", "capped", "dirichlet"])
def run(request, transformer_run):
    return replace(
        transformer_run, batch=16, masking=replace(transformer_run.masking, policy=request.param)
    )


@pytest.fixture
def batches(corpus, vocabulary, run):
    return MaskedBatches(corpus, vocabulary, run, seed=5)


def together(parts):
    return {f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(parts[0])}


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_any_number_of_ranks_sees_the_same_global_batch(batches, ranks):
    size = 16 // ranks
    whole = together([batches.at(3, range(16))])
    parts = together([batches.at(3, range(r * size, (r + 1) * size)) for r in range(ranks)])
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_batch_holds_the_tokens_of_its_objects(batches, corpus, vocabulary):
    batch = batches.at(0, range(16))
    rows = corpus.train.rows_of_slots(seed=5, step=0, slots=range(16), batch=16)
    starts = torch.tensor([vocabulary.codes[m.token_key].start for m in vocabulary.modalities])
    own = batch.codes_BT - starts[vocabulary.domain_of_position()[batch.positions_BT]]
    codes = corpus.codes(rows)
    for row in range(len(batch)):
        seen = batch.positions_BT[row][batch.valid_BT[row]]
        hidden = batch.target_positions_BQ[row][batch.target_valid_BQ[row]]
        assert own[row][batch.valid_BT[row]].tolist() == codes[row, seen.numpy()].tolist()
        found = batch.target_codes_BQ[row][batch.target_valid_BQ[row]]
        assert found.tolist() == codes[row, hidden.numpy()].tolist()
        assert len(seen) >= 1
        assert len(hidden) >= 1
        assert not set(seen.tolist()) & set(hidden.tolist())


def test_padding_is_nothing_but_zeros(batches):
    batch = batches.at(0, range(16))
    assert not batch.codes_BT[~batch.valid_BT].any()
    assert not batch.target_codes_BQ[~batch.target_valid_BQ].any()


def test_steps_seeds_and_slots_differ(corpus, vocabulary, run, batches):
    one = batches.at(0, range(16)).codes_BT
    assert not torch.equal(one, batches.at(1, range(16)).codes_BT)
    other = MaskedBatches(corpus, vocabulary, run, seed=6)
    assert not torch.equal(one, other.at(0, range(16)).codes_BT)


def test_the_held_out_objects_are_always_masked_alike(batches, corpus):
    assert batches.held_out == len(corpus.held_out_rows) > 8
    whole = together([batches.held_out_at(range(8))])
    parts = together([batches.held_out_at(range(3)), batches.held_out_at(range(3, 8))])
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_fill_is_the_share_of_the_budgets_that_holds_tokens(batches):
    batch = batches.at(0, range(16))
    fill = batch.fill()
    assert fill["input_fill"] == pytest.approx(int(batch.valid_BT.sum()) / (16 * 24))
    assert fill["output_fill"] == pytest.approx(int(batch.target_valid_BQ.sum()) / (16 * 16))
    assert 0 < fill["output_fill"] <= 1


def test_the_digest_is_that_of_the_tokens(batches, corpus, vocabulary, run):
    other = replace(corpus, codes_BA=corpus.codes_BA.copy())
    assert MaskedBatches(other, vocabulary, run, seed=0).digest == batches.digest
    other.codes_BA[0, 0] += 1
    changed = replace(other)
    assert changed.digest != batches.digest


def test_objects_of_several_surveys_stand_in_one_batch(transformer_run):
    """Every slot is masked by what its own object has."""
    keys = ("tok_flux_g", "tok_spectrum_desi", "tok_xp_bp", "tok_z")
    vocabulary, rng = Vocabulary(keys), np.random.default_rng(0)
    codes = rng.integers(0, 1000, (60, vocabulary.num_positions)).astype(np.int16)
    codes[:30, vocabulary.positions["tok_xp_bp"].rows] = -1
    codes[30:, vocabulary.positions["tok_spectrum_desi"].rows] = -1
    corpus = TokenStore(codes_BA=codes, ids=np.arange(60), run=DataRun(held_out=0))
    sizes = replace(transformer_run.model, domains=keys)
    masking = replace(transformer_run.masking, drop={}, groups={})
    run = replace(transformer_run, model=sizes, masking=masking, batch=60)
    batch = MaskedBatches(corpus, vocabulary, run, seed=0).at(0, range(60))
    domains = vocabulary.domain_of_position()
    for row in range(60):
        used = torch.cat([batch.positions_BT[row][batch.valid_BT[row]],
                          batch.target_positions_BQ[row][batch.target_valid_BQ[row]]])  # fmt: skip
        assert not {1, 2} <= set(domains[used].tolist())

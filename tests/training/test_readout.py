"""Scalars read from the vector by fixed linear maps while it is trained."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from skyvec_training.loop.optimizer import build_optimizer
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.readout import TERMS, Readout, ranks_of, scalar_places
from skyvec_training.masked.transformer import TransformerTask, build_transformer
from skyvec_training.parallel.sharding import named_parameters
from skyvec_training.rehearsal.objects import TypicalObjects


@pytest.fixture
def readout_run(transformer_run):
    sizes = dataclasses.replace(transformer_run.model, dim=64)
    return dataclasses.replace(transformer_run, model=sizes, readout_weight=4.0, batch=8)


def made(run, store):
    model = build_transformer(run, seed=0)
    return TransformerTask(model, MaskedBatches(store, model.vocabulary, run, seed=0), run)


def test_ranks_are_shares_of_smaller_codes():
    codes = np.array([[3, 0], [3, -1], [5, 0], [7, -1]], np.int16)
    ranks = ranks_of(codes, [8, 2])
    assert ranks[0, [3, 5, 7]].tolist() == [0.25, 0.625, 0.875]
    assert ranks[1, 0].item() == 0.5
    assert (ranks.diff()[0] >= 0).all()


def test_a_scalar_that_nobody_has_says_nothing():
    ranks = ranks_of(np.full((5, 1), -1, np.int16), [4])
    readout = Readout.of(ranks, width=TERMS)
    vectors = torch.randn(5, TERMS, requires_grad=True)
    sums = readout.sums(vectors, torch.full((5, 1), -1))
    sums.sum().backward()
    assert sums.tolist() == [0.0]
    assert not vectors.grad.any()


def test_a_vector_that_holds_the_targets_is_read_without_error():
    ranks = ((torch.arange(16) + 0.5) / 16).expand(2, 16)
    readout = Readout.of(ranks, width=20)
    codes = torch.tensor([[0, 15], [7, 3]])
    terms = torch.arange(1, TERMS + 1)
    targets = math.sqrt(2) * torch.cos(math.pi * terms * ((codes + 0.5) / 16)[..., None])
    vectors = torch.einsum("bsk,skd->bd", targets, readout.directions_SKD)
    assert readout.sums(vectors, codes).max() < 1e-9
    # A vector of zeros misses all of the variance: one, on average over the codes.
    every = torch.arange(16)[:, None].expand(16, 2)
    missed = readout.sums(torch.zeros(16, 20), every) / 16
    torch.testing.assert_close(missed, torch.ones(2), atol=1e-5, rtol=0)


def test_more_numbers_than_the_vector_has_are_refused():
    with pytest.raises(ValueError, match="of 12 numbers from a vector of 8"):
        Readout.of(torch.zeros(3, 4), width=8)


def test_the_vector_learns_what_it_is_asked_for(readout_run, store):
    task = made(readout_run, store)
    plain = made(dataclasses.replace(readout_run, readout_weight=0.0), store)
    names = [f"read_{m.token_key}" for m in task.vocabulary.modalities if m.kind == "scalar"]
    assert names
    with torch.no_grad():
        before = task.evaluate()
        # What runs are compared by is the same with a readout and without.
        assert before["loss"] == pytest.approx(plain.evaluate()["loss"])
    optimizer = build_optimizer(
        named_parameters(task.module),
        dataclasses.replace(readout_run.optimizer, learning_rate=0.01),
    )
    for step in range(30):
        optimizer.zero_grad()
        batch = task.read(step, range(8))
        (task.coefficients(task.counts(batch)) * task.sums(batch)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        after = task.evaluate()
    assert np.mean([after[n] for n in names]) < 0.8 * np.mean([before[n] for n in names])


def test_each_scalar_is_asked_for_its_own_code_of_its_own_object(readout_run, store):
    batches = made(readout_run, store).batches
    vocabulary = build_transformer(readout_run, seed=0).vocabulary
    scalars = [vocabulary.modalities[place].token_key for place in scalar_places(vocabulary)]
    rows = store.train.rows_of_slots(seed=0, step=3, slots=range(8), batch=8)
    codes, asked = store.codes(rows), batches.at(3, range(8)).scalars_BS
    assert asked.shape == (8, len(scalars))
    for column, key in enumerate(scalars):
        (position,) = range(vocabulary.num_positions)[vocabulary.positions[key].rows]
        assert asked[:, column].tolist() == codes[:, position].tolist()


def test_how_a_batch_is_split_does_not_change_the_loss(readout_run, store):
    task = made(readout_run, store)
    whole = task.read(0, range(8))
    weights = task.coefficients(task.counts(whole))
    parts = [task.read(0, range(start, start + 2)) for start in range(0, 8, 2)]
    assert torch.equal(sum(task.counts(part) for part in parts), task.counts(whole))
    summed = sum((weights * task.sums(part)).sum() for part in parts)
    torch.testing.assert_close(summed, (weights * task.sums(whole)).sum())


def test_objects_of_a_rehearsal_are_read_out_too(readout_run):
    vocabulary = build_transformer(readout_run, seed=0).vocabulary
    kind = tuple(m.token_key for m in vocabulary.modalities)
    objects = TypicalObjects(vocabulary, readout_run.masking, kinds=[kind])
    scalars = scalar_places(vocabulary)
    assert objects.ranks().shape[0] == len(scalars)
    assert objects.at(0, range(4)).scalars_BS.shape == (4, len(scalars))

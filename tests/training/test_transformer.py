"""Masked modelling of tokens: batches, learning, pooling."""

import dataclasses

import numpy as np
import pytest
import torch

from skyvec_core.codecs.quantizers import FiniteScalarQuantizer
from skyvec_core.modalities import MODALITIES
from skyvec_training.loop.optimizer import build_optimizer
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.tables import code_features
from skyvec_training.masked.transformer import (
    MaskedModel,
    TransformerTask,
    build_transformer,
)
from skyvec_training.parallel.sharding import named_parameters


@pytest.fixture
def task(transformer_run, store):
    return made(transformer_run, store)


def made(run, store):
    model = build_transformer(run, seed=0)
    return TransformerTask(model, MaskedBatches(store, model.vocabulary, run, seed=0), run)


def test_the_loss_falls_by_a_quarter_in_forty_steps(transformer_run, store):
    run = dataclasses.replace(transformer_run, ordinal_smoothing=0.0, batch=8)
    task = made(run, store)
    optimizer = build_optimizer(
        named_parameters(task.module), dataclasses.replace(run.optimizer, learning_rate=0.02)
    )
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        batch = task.read(step, range(8))
        loss = (task.coefficients(task.counts(batch)) * task.sums(batch)).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


@pytest.mark.parametrize("pooling", ["mean", "mean_of_modalities"])
def test_a_pooled_object_is_predicted_from_its_vector_alone(transformer_run, store, pooling):
    sizes = dataclasses.replace(transformer_run.model, pooling=pooling)
    task = made(dataclasses.replace(transformer_run, model=sizes), store)
    assert task.module.config.pooling == pooling
    read = task.read(0, range(4))
    batch = dataclasses.replace(read.masked, pooled_B=torch.ones(4, dtype=torch.bool))
    seen = []
    task.module.decode = lambda context, valid, *_, **__: seen.append((context, valid)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        MaskedModel(task.module, smoothing=0.0, bfloat16=False)(
            dataclasses.replace(read, masked=batch)
        )
    context, valid = seen[0]
    assert (valid.sum(1) == 1).all()
    encoded = task.module.encode(batch.codes_BT, batch.positions_BT, batch.valid_BT)
    for row in range(4):
        tokens = encoded[row][batch.valid_BT[row]]
        domains = task.module.domain_of_position[batch.positions_BT[row][batch.valid_BT[row]]]
        kinds = [tokens[domains == kind].mean(0) for kind in domains.unique()]
        expected = tokens.mean(0) if pooling == "mean" else torch.stack(kinds).mean(0)
        torch.testing.assert_close(context[row, 0], expected)


def test_the_evaluation_is_always_the_same(task):
    task.module.eval()
    with torch.inference_mode():
        assert task.evaluate() == task.evaluate()


def test_neighbouring_codes_start_alike():
    waves = code_features(MODALITIES["tok_flux_g"])
    near, far = (waves[500] @ waves[i] for i in (505, 900))
    assert near > 0.9
    assert far < 0.5
    digits = FiniteScalarQuantizer((7, 5, 5, 5, 5)).latents(torch.tensor([0, 1, 4374]))
    image = code_features(MODALITIES["tok_image"])
    assert (digits[0] - digits[1]).norm() < (digits[0] - digits[2]).norm()
    assert (image[0] - image[1]).norm() < (image[0] - image[4374]).norm()


def test_what_is_described_counts_the_whole_batch(task):
    batch = task.read(0, range(4))
    counts = task.counts(batch)
    told = task.describe(task.sums(batch).detach(), counts)
    assert told["output_fill"] == pytest.approx(
        batch.masked.target_valid_BQ.sum().item() / (4 * 16)
    )
    assert told["input_fill"] == pytest.approx(batch.masked.valid_BT.sum().item() / (4 * 24))
    assert 0.5 < told["tok_image"] < 2


def test_bfloat16_is_for_training_only(transformer_run, store):
    task = made(dataclasses.replace(transformer_run, precision="bfloat16"), store)
    exact = made(transformer_run, store)
    batch = task.read(0, range(4))
    for model in (task.module, exact.module):
        model.eval()
    assert torch.equal(task.sums(batch), exact.sums(batch))
    for model in (task.module, exact.module):
        model.train()
    assert not torch.equal(task.sums(batch), exact.sums(batch))
    torch.testing.assert_close(task.sums(batch), exact.sums(batch), rtol=0.03, atol=0.5)

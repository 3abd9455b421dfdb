"""Masked modelling of tokens: batches, learning, pooling."""

import dataclasses

import numpy as np
import pytest
import torch

from skyvec_core.codecs.quantizers import FiniteScalarQuantizer
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.loop.optimizer import build_optimizer
from skyvec_training.masked.tables import code_features
from skyvec_training.masked.transformer import TransformerTask, build_transformer


@pytest.fixture
def task(transformer_run, store):
    return TransformerTask(
        build_transformer(transformer_run, seed=0), store, transformer_run, seed=0
    )


def test_a_batch_holds_the_tokens_of_its_objects(task):
    rows = np.arange(4)
    batch = task._batch(rows, 0, range(4))
    words, codes = task.module.vocabulary, task.store.codes_BA[rows]
    starts = torch.tensor([words.codes[m.token_key].start for m in words.modalities])
    own = batch.codes_BT - starts[task.module.domain_of_position[batch.positions_BT]]
    for row in range(4):
        valid, positions = batch.valid_BT[row], batch.positions_BT[row]
        assert own[row][valid].tolist() == codes[row, positions[valid].numpy()].tolist()
        hidden = batch.target_positions_BQ[row][batch.target_valid_BQ[row]]
        assert batch.target_codes_BQ[row][batch.target_valid_BQ[row]].tolist() == (
            codes[row, hidden.numpy()].tolist()
        )
        assert not set(hidden.tolist()) & set(positions[valid].tolist())


def test_the_loss_falls_by_a_quarter_in_forty_steps(transformer_run, store):
    run = dataclasses.replace(transformer_run, ordinal_smoothing=0.0, batch=8, held_out=12)
    task = TransformerTask(build_transformer(run, seed=0), store, run, seed=0)
    optimizer = build_optimizer(task.module, dataclasses.replace(run.optimizer, learning_rate=0.02))
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss, _ = task.loss(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.75 * losses[0]


def test_a_pooled_object_is_predicted_from_its_vector_alone(task):
    batch = task._batch(np.arange(4), 0, range(4))
    batch = dataclasses.replace(batch, pooled_B=torch.ones(4, dtype=torch.bool))
    seen = []
    task.module.decode = lambda context, valid, *_: seen.append((context, valid)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        _losses(task.module, batch)
    context, valid = seen[0]
    assert (valid.sum(1) == 1).all()
    mean = task.module.encode(batch.codes_BT, batch.positions_BT, batch.valid_BT)
    expected = mean[0][batch.valid_BT[0]].mean(0)
    torch.testing.assert_close(context[0, 0], expected)


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


def test_holding_out_everything_is_refused(transformer_run, store):
    run = dataclasses.replace(transformer_run, held_out=len(store))
    with pytest.raises(ConfigurationError, match="leaves none of 20 objects"):
        TransformerTask(build_transformer(run, seed=0), store, run, seed=0)


def _losses(model, batch):
    from skyvec_training.masked.transformer import losses_of_batch

    return losses_of_batch(model, batch, smoothing=0.0, bfloat16=False)

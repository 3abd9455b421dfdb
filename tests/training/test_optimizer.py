"""Learning rate and parameter groups."""

import pytest

from skyvec_training.loop.optimizer import build_optimizer, learning_rate
from skyvec_training.masked.transformer import build_transformer
from skyvec_training.recipe.optimizer import OptimizerRun

RUN = OptimizerRun(steps=110, learning_rate=2.0, warmup_steps=10, final_share=0.1)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.2), (9, 2.0), (10, 2.0), (60, 1.1), (110, 0.2)])
def test_the_rate_warms_up_and_falls_as_a_cosine(step, rate):
    assert learning_rate(step, RUN) == pytest.approx(rate)


def test_tables_and_norms_do_not_decay(transformer_run):
    model = build_transformer(transformer_run, seed=0)
    decaying, staying = build_optimizer(model, RUN).param_groups
    assert staying["weight_decay"] == 0
    still = {id(p) for p in staying["params"]}
    assert {
        id(model.token_table.weight),
        id(model.head_table),
        id(model.encoder_norm.weight),
    } <= still
    assert id(model.encoder[0].attn.qkv.weight) in {id(p) for p in decaying["params"]}

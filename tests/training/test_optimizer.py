"""Learning rate, parameter groups, and the guard against gradients that are not finite."""

import dataclasses

import pytest
import torch
from torch import nn

from skyvec_training.loop.optimizer import (
    FiniteGuard,
    build_optimizer,
    learning_rate,
    named_state,
)
from skyvec_training.masked.transformer import build_transformer
from skyvec_training.parallel.sharding import named_parameters
from skyvec_training.recipe.optimizer import OptimizerRun

RUN = OptimizerRun(steps=110, learning_rate=2.0, warmup_steps=10, final_share=0.1)
PLATEAU = dataclasses.replace(RUN, schedule="wsd", decay_share=0.2)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.2), (9, 2.0), (10, 2.0), (60, 1.1), (110, 0.2)])
def test_the_rate_warms_up_and_falls_as_a_cosine(step, rate):
    assert learning_rate(step, RUN) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.2), (10, 2.0), (50, 2.0), (88, 2.0), (88 + 5.5, 0.2 + 1.8 * 0.5), (110, 0.2)],
)
def test_the_rate_stays_and_falls_at_the_end(step, rate):
    assert PLATEAU.trunk_step == 88
    assert learning_rate(step, PLATEAU) == pytest.approx(rate)


def test_a_cosine_has_no_plateau_to_go_on_from():
    assert RUN.trunk_step is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "wsd", "warmup_steps": 100}, "the decay begins at step 88, inside"),
        ({"decay_share": 1.5}, "decay_share must lie in 0..1"),
        ({"keep_every": -1}, "keep_every must not be negative"),
        ({"keep": 0}, "must be positive"),
        ({"warmup_steps": 111}, "must lie in 0..110"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(RUN, **change)


def test_tables_and_norms_do_not_decay(transformer_run):
    model = build_transformer(transformer_run, seed=0)
    decaying, staying = build_optimizer(named_parameters(model), RUN).param_groups
    assert staying["weight_decay"] == 0
    still = {id(p) for p in staying["params"]}
    assert {
        id(model.token_table.weight),
        id(model.head_table),
        id(model.encoder_norm.weight),
    } <= still
    assert id(model.encoder[0].attn.qkv.weight) in {id(p) for p in decaying["params"]}


def test_the_state_is_there_before_the_first_step_and_is_that_of_adamw():
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(named_parameters(ours), RUN)
    plain = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": RUN.weight_decay},
         {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=RUN.learning_rate, betas=RUN.betas, fused=True,
    )  # fmt: skip
    for module, steps in ((ours, optimizer), (theirs, plain)):
        for _ in range(3):
            steps.zero_grad()
            module(torch.ones(1, 3)).square().sum().backward()
            steps.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    names = named_state(named_parameters(ours), optimizer)
    assert {"module.weight", "optimizer.weight.exp_avg", "optimizer.bias.step"} <= set(names)
    assert float(names["optimizer.bias.step"]) == 3


def test_from_the_first_bad_gradient_on_nothing_changes():
    line = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(named_parameters(line), RUN)
    guard = FiniteGuard(optimizer, torch.device("cpu"))
    seen = []
    for step, gradient in enumerate([1.0, 1.0, float("nan"), 1.0, float("inf")]):
        line.weight.grad = torch.full((1, 1), gradient)
        guard.see(line.weight.grad.norm(), step)
        optimizer.step()
        seen.append((line.weight.item(), guard.first_bad()))
    assert seen[0][0] != seen[1][0]
    assert seen[1][0] == seen[2][0] == seen[3][0] == seen[4][0]
    assert [bad for _, bad in seen] == [None, None, 2, 2, 2]

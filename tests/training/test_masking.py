"""Inputs and targets of masked modelling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.draws import Stream, rows_of_step, uniforms
from skyvec_training.masked.masking import draw_masks, layout_of
from skyvec_training.recipe.masking import MaskingRun

VOCABULARY = Vocabulary(("tok_flux_g", "tok_flux_r", "tok_image", "tok_xp_bp", "tok_z"))
RUN = MaskingRun(
    input_budget=40,
    output_budget=20,
    drop={"image": 0.3, "redshift": 0.5},
    groups={"image": ("tok_image",), "redshift": ("tok_z",)},
)
LAYOUT = layout_of(VOCABULARY, RUN)
Z = VOCABULARY.positions["tok_z"].rows
IMAGE = VOCABULARY.positions["tok_image"].rows


def draws(*, seed=0, step=0, slots=range(64)):
    return uniforms(seed=seed, stream=Stream.MASKING, step=step, slots=slots, width=LAYOUT.draws)


def objects(seed, *, present, count=64):
    rng = np.random.default_rng(seed)
    valid = rng.random((count, VOCABULARY.num_positions)) < present
    valid[:, :2] = True
    return valid


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), present=st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.0]))
def test_inputs_and_targets_keep_their_guards(seed, present):
    valid = objects(seed, present=present)
    inputs, targets = draw_masks(valid, draws(seed=seed), LAYOUT, RUN)
    assert not (inputs & targets).any()
    assert not ((inputs | targets) & ~valid).any()
    most = np.minimum(RUN.input_budget, valid.sum(1) - 1)
    assert (inputs.sum(1) >= 1).all()
    assert (inputs.sum(1) <= most).all()
    assert (targets.sum(1) >= 1).all()
    assert (targets.sum(1) <= RUN.output_budget).all()


def test_a_mask_depends_on_seed_step_and_slot_alone():
    valid = objects(1, present=0.5)
    whole = draw_masks(valid, draws(seed=3, step=7), LAYOUT, RUN)
    part = draw_masks(valid[16:24], draws(seed=3, step=7, slots=range(16, 24)), LAYOUT, RUN)
    np.testing.assert_array_equal(whole[0][16:24], part[0])
    np.testing.assert_array_equal(whole[1][16:24], part[1])


@pytest.mark.parametrize("other", [{"seed": 4}, {"step": 8}, {"slots": range(64, 128)}])
def test_another_seed_step_or_slot_gives_another_mask(other):
    valid = objects(1, present=0.5)
    same = {"seed": 3, "step": 7, "slots": range(64)}
    first = draw_masks(valid, draws(**same), LAYOUT, RUN)[0]
    assert (first != draw_masks(valid, draws(**{**same, **other}), LAYOUT, RUN)[0]).any()


def test_a_whole_object_fills_the_input_budget_unless_its_image_is_dropped():
    valid = objects(1, present=1.0, count=512)
    run = MaskingRun(input_budget=40, output_budget=20, least_input_share=1.0, stamp_probability=0)
    inputs, _ = draw_masks(valid, draws(slots=range(512)), layout_of(VOCABULARY, run), run)
    assert (inputs.sum(1) == 40).mean() > 0.95


def test_a_dropped_group_is_a_target_but_no_input():
    run = MaskingRun(drop={"redshift": 1.0}, groups={"redshift": ("tok_z",)})
    inputs, targets = draw_masks(objects(1, present=1.0), draws(), layout_of(VOCABULARY, run), run)
    assert not inputs[:, Z].any()
    assert targets[:, Z].all()


def test_a_stamp_keeps_a_central_square_of_the_image():
    run = MaskingRun(input_budget=2000, output_budget=2000, stamp_probability=1.0, target_skew=9.0)
    inputs, targets = draw_masks(objects(1, present=1.0), draws(), layout_of(VOCABULARY, run), run)
    used = (inputs | targets)[:, IMAGE].reshape(-1, 24, 24)
    assert not used[:, 0].any()
    assert not used[:, :, 23].any()
    assert used[:, 11:13, 11:13].any()


def test_an_object_with_one_token_is_refused():
    valid = np.zeros((1, VOCABULARY.num_positions), bool)
    valid[0, 0] = True
    with pytest.raises(ValueError, match="fewer than two tokens"):
        draw_masks(valid, draws(slots=range(1)), LAYOUT, RUN)


def test_an_epoch_sees_every_row_once():
    seen = np.concatenate([rows_of_step(seed=1, step=s, batch=7, rows=21) for s in range(3)])
    assert sorted(seen) == list(range(21))


def test_a_batch_may_span_two_epochs():
    rows = rows_of_step(seed=1, step=1, batch=4, rows=6)
    assert len(rows) == 4
    assert set(rows) <= set(range(6))


def test_scalars_go_first_where_they_are_preferred():
    run = MaskingRun(input_budget=40, least_input_share=1.0, scalars_first=1.0)
    inputs, _ = draw_masks(objects(1, present=1.0), draws(), layout_of(VOCABULARY, run), run)
    assert inputs[:, :2].mean() > 0.7  # all but where one modality took the whole budget
    uniform = MaskingRun(input_budget=40, least_input_share=1.0)
    without, _ = draw_masks(
        objects(1, present=1.0), draws(), layout_of(VOCABULARY, uniform), uniform
    )
    assert without[:, :2].mean() < 0.5

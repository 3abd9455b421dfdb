"""Inputs and targets of masked modelling, by every policy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_training.data.draws import Stream, words
from skyvec_training.masked.masks.dirichlet import dirichlet_shares, shared_out
from skyvec_training.masked.masks.draw import draw_masks
from skyvec_training.masked.masks.layout import layout_of
from skyvec_training.recipe.masking import MaskingRun

POLICIES = ("aion", "capped", "dirichlet")
VOCABULARY = Vocabulary(("tok_flux_g", "tok_flux_r", "tok_image", "tok_xp_bp", "tok_z"))
RUN = MaskingRun(
    input_budget=40,
    output_budget=20,
    drop={"image": 0.3, "redshift": 0.5},
    groups={"image": ("tok_image",), "redshift": ("tok_z",)},
)
WHOLE = MaskingRun(
    input_budget=40, output_budget=20, least_input_share=1.0, stamp_probability=0, alphas=(1.0,)
)
Z = VOCABULARY.positions["tok_z"].rows
IMAGE = VOCABULARY.positions["tok_image"].rows


def draw(valid, run, *, seed=0, step=0, slots=None, vocabulary=VOCABULARY):
    """Boolean masks (B, A), from the packed ones."""
    layout = layout_of(vocabulary, run)
    slots = slots or range(len(valid))
    random = words(
        seed=seed, stream=Stream.MASKING, step=step, slots=slots, width=layout.words
    )  # fmt: skip
    masks = draw_masks(valid, random, layout, run)
    assert masks.inputs_BT.shape == (len(valid), run.input_budget)
    assert masks.targets_BQ.shape == (len(valid), run.output_budget)
    return (
        dense(masks.inputs_BT, masks.inputs_valid_BT, valid.shape),
        dense(masks.targets_BQ, masks.targets_valid_BQ, valid.shape),
    )


def dense(positions, real, shape):
    for row, kept in zip(positions, real, strict=True):
        assert (np.diff(row[kept]) > 0).all()  # ascending, so none comes twice
        assert (np.diff(kept.astype(int)) <= 0).all()  # packed to the left
        assert not row[~kept].any()
    mask = np.zeros(shape, bool)
    mask[np.nonzero(real)[0], positions[real]] = True
    return mask


def objects(seed, *, present, count=64):
    rng = np.random.default_rng(seed)
    valid = rng.random((count, VOCABULARY.num_positions)) < present
    valid[:, :2] = True
    return valid


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    present=st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.0]),
    budgets=st.sampled_from([(40, 20), (1, 1), (2, 300), (700, 3), (700, 700)]),
    share=st.sampled_from([0.01, 0.5, 1.0]),
    skew=st.sampled_from([0.1, 5.0]),
)
def test_inputs_and_targets_keep_their_guards(policy, seed, present, budgets, share, skew):
    valid = objects(seed, present=present)
    run = replace(RUN, policy=policy, input_budget=budgets[0], output_budget=budgets[1],
                  least_input_share=share, target_skew=skew, scalars_first=0.5)  # fmt: skip
    inputs, targets = draw(valid, run, seed=seed)
    assert not (inputs & targets).any()
    assert not ((inputs | targets) & ~valid).any()
    most = np.minimum(run.input_budget, valid.sum(1) - 1)
    assert (inputs.sum(1) >= 1).all()
    assert (inputs.sum(1) <= most).all()
    assert (targets.sum(1) >= 1).all()
    assert (targets.sum(1) <= run.output_budget).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_star_smaller_than_the_budget_keeps_targets(policy):
    """116 tokens against a budget of 256: AION's rule as published hides nothing in 75 %."""
    keys = ("tok_xp_bp", "tok_xp_rp", "tok_parallax", "tok_flux_g_gaia", "tok_flux_bp_gaia",
            "tok_flux_rp_gaia", "tok_ra", "tok_dec")  # fmt: skip
    run = MaskingRun(policy=policy, input_budget=256, output_budget=128)
    valid = np.ones((2000, 116), bool)
    inputs, targets = draw(valid, run, vocabulary=Vocabulary(keys))
    assert targets.sum(1).min() >= 1
    assert targets.sum(1).mean() > 10
    assert inputs.sum(1).mean() > 50


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mask_depends_on_seed_step_and_slot_alone(policy):
    valid = objects(1, present=0.5)
    valid[20] = False
    valid[20, :3] = True  # a small object among large ones
    run = replace(RUN, policy=policy)
    whole = draw(valid, run, seed=3, step=7)
    part = draw(valid[16:24], run, seed=3, step=7, slots=range(16, 24))
    alone = draw(valid[20:21], run, seed=3, step=7, slots=range(20, 21))
    for each in range(2):
        np.testing.assert_array_equal(whole[each][16:24], part[each])
        np.testing.assert_array_equal(whole[each][20:21], alone[each])


@pytest.mark.parametrize("other", [{"seed": 4}, {"step": 8}, {"slots": range(64, 128)}])
@pytest.mark.parametrize("policy", POLICIES)
def test_another_seed_step_or_slot_gives_another_mask(policy, other):
    valid, run = objects(1, present=0.5), replace(RUN, policy=policy)
    same = {"seed": 3, "step": 7, "slots": range(64)}
    first = draw(valid, run, **same)[0]
    assert (first != draw(valid, run, **{**same, **other})[0]).any()


@pytest.mark.parametrize("policy", ["aion", "dirichlet"])
def test_a_whole_object_fills_the_input_budget(policy):
    inputs, _ = draw(objects(1, present=1.0, count=512), replace(WHOLE, policy=policy))
    assert (inputs.sum(1) == 40).mean() > 0.95


def test_capped_takes_a_random_part_of_the_budget():
    run = replace(WHOLE, policy="capped", least_input_share=0.5)
    inputs, _ = draw(objects(1, present=1.0, count=512), run)
    sizes = inputs.sum(1)
    assert sizes.min() >= 20
    assert sizes.mean() == pytest.approx(30, abs=1.5)


def test_dirichlet_fills_both_budgets_whatever_the_concentration():
    for alpha in (0.01, 0.1, 1.0, 10.0):
        run = replace(WHOLE, policy="dirichlet", alphas=(alpha,))
        inputs, targets = draw(objects(1, present=1.0, count=64), run)
        assert (inputs.sum(1) == 40).all()
        assert (targets.sum(1) == 20).all()


def test_a_small_concentration_gives_the_budget_to_one_modality():
    def largest_share(alpha):
        run = replace(WHOLE, policy="dirichlet", alphas=(alpha,))
        inputs, _ = draw(objects(1, present=1.0, count=256), run)
        parts = [inputs[:, IMAGE].sum(1), inputs[:, VOCABULARY.positions["tok_xp_bp"].rows].sum(1)]
        return np.maximum(*parts).mean() / 40

    assert largest_share(0.01) > 0.9
    assert largest_share(10.0) < 0.65


@pytest.mark.parametrize("policy", POLICIES)
def test_every_token_of_a_grid_is_as_likely(policy):
    inputs, targets = draw(objects(1, present=1.0, count=1500), replace(WHOLE, policy=policy))
    for chosen in (inputs, targets):
        rates = chosen[:, IMAGE].mean(0)
        spread = np.sqrt(rates.mean() * (1 - rates.mean()) / 1500)
        assert abs(rates - rates.mean()).max() < 4.5 * spread


@pytest.mark.parametrize("policy", POLICIES)
def test_a_dropped_group_is_a_target_but_no_input(policy):
    run = MaskingRun(policy=policy, drop={"redshift": 1.0}, groups={"redshift": ("tok_z",)})
    inputs, targets = draw(objects(1, present=1.0), run)
    assert not inputs[:, Z].any()
    assert targets[:, Z].mean() > (0.99 if policy != "dirichlet" else 0.2)


def test_an_object_that_would_lose_all_its_inputs_keeps_them():
    valid = np.zeros((8, VOCABULARY.num_positions), bool)
    valid[:, Z] = valid[:, 0] = True
    run = MaskingRun(drop={"all": 1.0}, groups={"all": ("tok_z", "tok_flux_g")})
    inputs, targets = draw(valid, run)
    assert (inputs.sum(1) == 1).all()
    assert (targets.sum(1) == 1).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stamp_keeps_a_central_square_of_the_image(policy):
    run = MaskingRun(policy=policy, input_budget=2000, output_budget=2000, stamp_probability=1.0,
                     target_skew=9.0)  # fmt: skip
    inputs, targets = draw(objects(1, present=1.0), run)
    used = (inputs | targets)[:, IMAGE].reshape(-1, 24, 24)
    assert not used[:, 0].any()
    assert not used[:, :, 23].any()
    assert used[:, 11:13, 11:13].any()


def test_scalars_go_first_where_they_are_preferred():
    whole = objects(1, present=1.0)
    first, _ = draw(whole, replace(WHOLE, scalars_first=1.0))
    assert first[:, :2].mean() > 0.7  # all but where one modality took the whole budget
    uniform, _ = draw(whole, WHOLE)
    assert uniform[:, :2].mean() < 0.5


def test_an_object_with_one_token_is_refused():
    valid = np.zeros((1, VOCABULARY.num_positions), bool)
    valid[0, 0] = True
    with pytest.raises(ValueError, match="fewer than two tokens"):
        draw(valid, RUN)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kinds=st.integers(1, 6), alpha=st.sampled_from([0.01, 0.5, 10.0]))
def test_water_filling_gives_out_everything_within_the_room(data, kinds, alpha):
    room = np.array([data.draw(st.lists(st.integers(0, 600), min_size=kinds, max_size=kinds))])
    total = data.draw(st.integers(0, int(room.sum())))
    uniforms = np.random.default_rng(total).random((1, kinds))
    shares = dirichlet_shares(np.array([alpha]), uniforms, room > 0)
    counts = shared_out(np.array([total]), shares, room)
    assert counts.sum() == total
    assert (counts >= 0).all()
    assert (counts <= room).all()


def test_what_a_modality_cannot_take_goes_to_the_others_by_their_shares():
    counts = shared_out(np.array([100]), np.array([[0.8, 0.1, 0.1]]), np.array([[10, 500, 500]]))
    assert counts.tolist() == [[10, 45, 45]]


def test_dirichlet_shares_have_the_mean_and_spread_of_the_distribution():
    uniforms = np.random.default_rng(0).random((20_000, 4))
    shares = dirichlet_shares(np.full(20_000, 0.5), uniforms, np.ones((20_000, 4), bool))
    shares /= shares.sum(1, keepdims=True)
    assert shares.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.01)
    assert shares.var(0) == pytest.approx(np.full(4, 0.25 * 0.75 / 3), abs=0.004)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_budget": 0}, "budget must be positive"),
        ({"least_input_share": 0.0}, "least_input_share .0.0. must lie"),
        ({"alphas": ()}, "alphas must be positive"),
        ({"alphas": (1.0, 0.0)}, "alphas must be positive"),
        ({"drop": {"x": 0.5}}, "unknown groups or token keys x"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MaskingRun(**wrong)

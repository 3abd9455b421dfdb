"""Distributions over codes: within the table, monotone, and right where the answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skyvec_core.codecs.distributions import expectation, middles, quantile, require_codes

EDGES = torch.tensor([0.0, 1.0, 3.0, 7.0])
masses = arrays("int32", (3, 4), elements=st.integers(0, 1000)).map(
    lambda counts: torch.from_numpy(counts) / 1000
)


def test_a_code_stands_for_the_middle_of_its_interval():
    assert middles(EDGES).tolist() == [0.0, 0.5, 2.0, 5.0]


def test_certainty_about_a_code_expects_its_middle():
    assert expectation(torch.eye(4), middles(EDGES)).tolist() == [0.0, 0.5, 2.0, 5.0]


def test_quantiles_are_linear_inside_an_interval_and_jump_over_empty_ones():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5]])
    shares = (0.0, 0.25, 0.5, 0.500001, 0.75, 1.0)
    found = [quantile(probabilities, EDGES, q).item() for q in shares]
    assert found == pytest.approx([0.0, 0.5, 1.0, 3.0, 5.0, 7.0], abs=1e-4)


def test_the_first_code_is_a_single_value():
    for q in (0.0, 0.3, 1.0):
        assert quantile(torch.tensor([[1.0, 0, 0, 0]]), EDGES, q).item() == 0


@given(probabilities=masses)
def test_quantiles_grow_with_their_share_and_stay_in_the_table(probabilities):
    found = torch.stack([quantile(probabilities, EDGES, q) for q in (0, 0.1, 0.5, 0.9, 1)])
    empty = probabilities.sum(-1) == 0
    assert found[:, empty].isnan().all()
    assert (found[1:, ~empty] >= found[:-1, ~empty]).all()
    assert ((found[:, ~empty] >= 0) & (found[:, ~empty] <= 7)).all()


@given(probabilities=masses, factor=st.floats(0.1, 10))
def test_only_shares_matter_not_the_total(probabilities, factor):
    values = middles(EDGES)
    scaled = probabilities * factor
    torch.testing.assert_close(
        expectation(scaled, values), expectation(probabilities, values), equal_nan=True
    )


@given(probabilities=masses)
def test_an_expectation_lies_between_the_values(probabilities):
    found = expectation(probabilities, middles(EDGES))
    empty = probabilities.sum(-1) == 0
    assert found[empty].isnan().all()
    assert ((found[~empty] >= 0) & (found[~empty] <= 5)).all()


def test_codes_without_a_value_are_left_out():
    edges = torch.tensor([0.0, 2.0, torch.nan, torch.nan])
    probabilities = torch.tensor([[0.0, 0.1, 0.5, 0.4], [0.0, 0.0, 0.5, 0.5]])
    expected = torch.tensor([1.0, torch.nan])
    torch.testing.assert_close(expectation(probabilities, middles(edges)), expected, equal_nan=True)
    torch.testing.assert_close(quantile(probabilities, edges, 0.5), expected, equal_nan=True)


def test_one_object_without_a_prediction_does_not_touch_the_others():
    probabilities = torch.tensor([[torch.nan, 0, 0, 0], [0, 0, 1, 0]])
    assert expectation(probabilities, middles(EDGES)).isnan().tolist() == [True, False]
    assert quantile(probabilities, EDGES, 0.5).isnan().tolist() == [True, False]


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(q):
    with pytest.raises(ValueError, match=r"q in 0\.\.1"):
        quantile(torch.ones(1, 4), EDGES, q)


def test_logits_are_no_probabilities():
    with pytest.raises(ValueError, match="softmax"):
        expectation(torch.tensor([[-1.0, 2, 0, 0]]), middles(EDGES))
    with pytest.raises(TypeError, match=r"float, found torch\.int64"):
        expectation(torch.ones(1, 4, dtype=torch.int64), middles(EDGES))


def test_probabilities_must_match_the_codes():
    with pytest.raises(ValueError, match="probabilities for 5 codes, but the codec has 4"):
        expectation(torch.ones(1, 5), middles(EDGES))


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_id_that_is_no_code_is_refused(wrong):
    with pytest.raises(ValueError, match=r"thing: ids must lie in 0\.\.3"):
        require_codes(torch.tensor([[0], [wrong]]), 4, what="thing")
    with pytest.raises(TypeError, match="thing: ids must be integers"):
        require_codes(torch.tensor([[0.0]]), 4, what="thing")

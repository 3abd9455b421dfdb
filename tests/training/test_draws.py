"""Random numbers and permutations as pure functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from skyvec_training.data.draws import Stream, as_uniforms, rows_of_step, shuffled, uniforms, words
from skyvec_training.data.permutations import permuted


def keys(count, key=7):
    return np.full(count, key, np.uint64)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_hits_every_number_once(size, key):
    images = permuted(np.arange(size), keys(size, key), size=size)
    assert sorted(images) == list(range(size))


def test_any_element_of_a_huge_permutation_is_had_alone():
    size = 10**12 + 39
    places = np.array([0, 1, size - 1, 123_456_789_012])
    together = permuted(places, keys(4), size=size)
    alone = [permuted(places[i : i + 1], keys(1), size=size)[0] for i in range(4)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4
    assert all(0 <= image < size for image in alone)


@pytest.mark.parametrize("size", [2, 3, 5, 20])
def test_small_permutations_are_even(size):
    """Each number comes at each place equally often."""
    rounds = 4000
    places = np.tile(np.arange(size), rounds)
    images = permuted(places, np.repeat(np.arange(rounds, dtype=np.uint64), size), size=size)
    counts = np.bincount(places * size + images, minlength=size * size)
    expected = rounds / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi2.sf(chi_square, (size - 1) ** 2) > 1e-3


def test_successive_places_have_unrelated_images():
    size = 10_000
    images = permuted(np.arange(size), keys(size), size=size).astype(float)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.04
    assert abs(np.corrcoef(images, np.arange(size))[0, 1]) < 0.04


def test_epochs_names_and_seeds_have_their_own_orders():
    places = np.arange(100)
    first = shuffled(places, seed=1, rows=100)
    others = [
        shuffled(places + 100, seed=1, rows=100),
        shuffled(places, seed=2, rows=100),
        shuffled(places, seed=1, rows=100, name="desi"),
    ]
    for other in others:
        assert sorted(other) == list(range(100))
        assert (other == first).mean() < 0.1


def test_an_epoch_sees_every_row_once():
    seen = np.concatenate([rows_of_step(seed=1, step=s, batch=7, rows=21) for s in range(3)])
    assert sorted(seen) == list(range(21))


def test_a_batch_may_span_two_epochs():
    seen = np.concatenate([rows_of_step(seed=1, step=s, batch=4, rows=6) for s in range(3)])
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_the_order_of_old_runs_is_the_order_of_new_ones():
    """A change here would make every resumed run see other objects."""
    rows = rows_of_step(seed=1, step=3, batch=6, rows=1000)
    assert rows.tolist() == [194, 888, 45, 844, 538, 439]


def test_words_of_a_slot_do_not_depend_on_the_others():
    given = {"seed": 3, "stream": Stream.MASKING, "step": 9, "width": 13}
    whole = words(slots=range(32), **given)
    np.testing.assert_array_equal(whole[5:9], words(slots=range(5, 9), **given))
    assert len(np.unique(whole)) == whole.size


def test_uniforms_are_those_of_numpy():
    drawn = uniforms(seed=3, stream=Stream.MASKING, step=9, slots=range(2), width=4)
    generator = np.random.Generator(np.random.Philox(key=[3, int(Stream.MASKING) << 48 | 9]))
    np.testing.assert_array_equal(drawn, generator.random((2, 4)))
    assert as_uniforms(np.array([2**64 - 1], np.uint64))[0] < 1

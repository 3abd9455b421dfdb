"""Which row a slot trains on, from one data set or several."""

import numpy as np
import pytest

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.data.order import PERIOD, Kept, mixture_of


def kept(start, stop, without=()):
    return Kept(start, stop, np.array(without, np.int64))


def rows(mixture, *, seed=0, steps=1, batch=64, start=0):
    return np.concatenate(
        [
            mixture.rows_of_slots(seed=seed, step=step, slots=range(batch), batch=batch)
            for step in range(start, start + steps)
        ]
    )


@pytest.fixture
def mixture():
    return mixture_of({"a": kept(0, 300), "b": kept(300, 400)}, {"a": 1.0, "b": 1.0}, where="x")


def test_kept_rows_skip_those_that_are_left_out():
    some = kept(10, 20, [10, 13, 14, 19])
    assert len(some) == 6
    assert some.at(np.arange(6)).tolist() == [11, 12, 15, 16, 17, 18]
    assert kept(10, 13).at(np.arange(3)).tolist() == [10, 11, 12]


def test_an_epoch_of_one_data_set_sees_every_kept_row_once():
    one = mixture_of({"a": kept(5, 25, [7, 8])}, {}, where="x")
    seen = rows(one, steps=3, batch=6)
    assert sorted(seen) == [row for row in range(5, 25) if row not in {7, 8}]


def test_any_split_of_a_step_gives_the_same_global_batch(mixture):
    whole = rows(mixture, start=17)
    for ranks in (2, 4, 8, 64):
        size = 64 // ranks
        parts = [
            mixture.rows_of_slots(seed=0, step=17, slots=range(r * size, (r + 1) * size), batch=64)
            for r in range(ranks)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_weights_decide_how_often_a_data_set_comes():
    weighted = mixture_of({"a": kept(0, 300), "b": kept(300, 400)}, {"a": 1, "b": 3}, where="x")
    seen = rows(weighted, steps=50)
    assert (seen >= 300).mean() == pytest.approx(0.75, abs=0.01)
    assert weighted.shares == pytest.approx({"a": 0.25, "b": 0.75}, abs=1e-4)


def test_without_weights_each_comes_as_its_size():
    by_size = mixture_of({"a": kept(0, 300, [1, 2]), "b": kept(300, 400)}, {}, where="x")
    assert by_size.shares == pytest.approx({"a": 298 / 398, "b": 100 / 398}, abs=1e-4)
    assert len(by_size) == 398


def test_each_data_set_of_a_mixture_is_seen_in_whole_epochs(mixture):
    seen = rows(mixture, steps=20)
    from_b = seen[seen >= 300]
    assert len(from_b) >= 600
    for epoch in range(6):
        assert sorted(from_b[100 * epoch : 100 * (epoch + 1)]) == list(range(300, 400))


def test_every_step_has_its_share_of_each_data_set(mixture):
    for step in range(30):
        assert (rows(mixture, start=step) >= 300).sum() == 32


def test_epochs_go_on_beyond_the_period():
    uneven = mixture_of({"a": kept(0, 7), "b": kept(7, 1007)}, {"a": 1, "b": 2}, where="x")
    batch = 1 << 14
    seen = rows(uneven, steps=5, batch=batch, start=PERIOD // batch - 2)
    from_a = seen[seen < 7]
    counts = np.bincount(from_a)
    assert counts.max() - counts.min() <= 2  # it begins and ends within an epoch


def test_a_tiny_data_set_still_gets_a_slot():
    mixed = mixture_of({"a": kept(0, 10**9), "b": kept(10**9, 10**9 + 1)}, {}, where="x")
    assert mixed.shares["b"] == 1 / PERIOD


def test_a_new_data_set_leaves_the_order_within_the_others():
    def order(mixture):
        seen = rows(mixture, steps=10)
        return seen[seen < 300][:250].tolist()

    alone = mixture_of({"a": kept(0, 300)}, {}, where="x")
    beside = mixture_of({"a": kept(0, 300), "b": kept(300, 400)}, {}, where="x")
    assert order(alone) == order(beside)


def test_a_weight_of_nothing_leaves_a_data_set_out():
    only_b = mixture_of({"a": kept(0, 300), "b": kept(300, 400)}, {"a": 0, "b": 1}, where="x")
    assert rows(only_b).min() >= 300


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ({"a": 3}, {"b": 1.0}, "data.weights names b; there are a.*Give each data set"),
        ({"a": 3, "b": 3}, {"a": 1.0}, "data.weights names a; there are a, b"),
        ({"a": 3, "b": 0}, {"a": 1.0, "b": 1.0}, "no object to train on in b"),
        ({"a": 0}, {}, "no object to train on in a"),
    ],
)
def test_wrong_weights_and_empty_data_sets_are_refused(sizes, weights, message):
    with pytest.raises(ConfigurationError, match=message):
        mixture_of({name: kept(0, size) for name, size in sizes.items()}, weights, where="x")

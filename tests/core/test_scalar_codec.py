"""Scalar codecs: missing values, ends of the table, middles and edges, predicted distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.codecs.scalar import GridScalarCodec, LogScalarCodec, ScalarCodec

NAN, INF = float("nan"), float("inf")


def fitted(kind):
    codec = kind()
    if kind is GridScalarCodec:
        codec.set_grid(0, 6)
    else:
        codec.fit(torch.logspace(-2, 3, 5000))
    return codec


@pytest.fixture(params=[ScalarCodec, LogScalarCodec, GridScalarCodec])
def codec(request):
    return fitted(request.param)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_was_not_measured_is_not_a_code(codec, value):
    tokens = codec.encode(torch.tensor([value, 0.5]))
    assert tokens.valid_BN[:, 0].tolist() == [False, True]


def test_official_codes_of_what_was_not_measured_are_the_ends(codec):
    values = torch.tensor([NAN, INF, -INF, 0.5])
    tokens = codec.encode(values, compat=True)
    assert tokens.valid_BN.all()
    assert tokens.ids_BN[:3, 0].tolist() == [1023, 1023, 0]
    assert tokens.ids_BN[3] == codec.encode(values).ids_BN[3]


def test_values_outside_the_table_take_its_ends(codec):
    assert codec.encode(torch.tensor([-5.0, 7e7])).ids_BN[:, 0].tolist() == [0, 1023]


def test_a_column_of_values_is_as_good_as_a_vector(codec):
    values = torch.tensor([0.1, 3.0, NAN])
    vector, column = codec.encode(values), codec.encode(values[:, None])
    assert torch.equal(vector.ids_BN, column.ids_BN)
    assert torch.equal(vector.valid_BN, column.valid_BN)
    assert column.ids_BN.shape == (3, 1)


def test_double_precision_is_taken_and_left_alone(codec):
    values = torch.tensor([0.1, NAN, 3.0], dtype=torch.float64)
    before = values.clone()
    assert torch.equal(codec.encode(values).ids_BN, codec.encode(values.float()).ids_BN)
    assert torch.equal(values.isnan(), before.isnan())
    assert torch.equal(values[0], before[0])


@pytest.mark.parametrize("shape", [(), (3, 2), (3, 1, 1)])
def test_other_shapes_are_refused(codec, shape):
    with pytest.raises(ValueError, match=r"takes \(B,\) or \(B, 1\)"):
        codec.encode(torch.zeros(shape))


def test_other_types_are_refused(codec):
    with pytest.raises(TypeError, match=r"NaN where nothing was measured, found torch\.int64"):
        codec.encode(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="takes a tensor"):
        codec.encode([1.0, 2.0])


def test_negative_fluxes_share_the_floor_of_a_logarithmic_codec():
    codec = LogScalarCodec(min_log_value=-3.0)
    codec.fit(torch.logspace(-1, 3, 1000))
    codes = codec.encode(torch.tensor([-10.0, 0.0, 0.01])).ids_BN[:, 0]
    assert codes.unique().numel() == 1


def test_the_floor_is_the_exact_exponential():
    codec = LogScalarCodec(min_log_value=-7.3)
    floor = torch.tensor([math.exp(-7.3)])
    assert torch.equal(codec.compress(torch.tensor([-1.0])), floor.log())


@given(order=st.permutations(range(7)))
def test_a_row_has_the_same_codes_wherever_it_stands(order):
    values = torch.tensor([0.0, 1e-3, 0.3, 2.0, 5.5, 900.0, NAN])
    for codec in (fitted(ScalarCodec), fitted(LogScalarCodec), fitted(GridScalarCodec)):
        straight, turned = codec.encode(values), codec.encode(values[list(order)])
        assert torch.equal(straight.ids_BN[list(order)], turned.ids_BN)
        assert torch.equal(straight.valid_BN[list(order)], turned.valid_BN)


def test_a_code_decodes_to_the_middle_of_its_interval(codec):
    codes = torch.arange(1024)[:, None]
    edges, middles = codec.decode(codes, compat=True), codec.decode(codes)
    assert torch.equal(edges[0], middles[0])
    inner = edges[1:] > edges[:-1]
    assert (middles[1:] > edges[:-1])[inner].all()
    assert (middles[1:] < edges[1:])[inner].all()


def test_every_middle_has_its_own_code():
    for kind in (ScalarCodec, LogScalarCodec, GridScalarCodec):
        codec = fitted(kind)
        codes = torch.arange(1024)
        again = codec.encode(codec.centers()).ids_BN[:, 0]
        # Code 0 has one value; an interval between equal quantiles has none.
        wide = codec.quantizer.values.diff(prepend=torch.tensor([-1e9])) > 0
        assert torch.equal(again[wide], codes[wide])


def test_decoding_takes_less_than_an_interval_away():
    codec = LogScalarCodec()
    codec.fit(torch.logspace(0, 3, 5000))
    values = torch.tensor([1.5, 20.0, 700.0])
    ids = codec.encode(values).ids_BN
    torch.testing.assert_close(codec.decode(ids), values, rtol=0.0035, atol=0)
    upper = codec.decode(ids, compat=True)
    assert ((upper >= values * 0.9999) & (upper < values * 1.0069)).all()


def test_the_middle_of_a_redshift_interval_lies_between_its_edges():
    codec = fitted(GridScalarCodec)
    step = 6 / 1023
    assert codec.centers()[:3].tolist() == pytest.approx([0, step / 2, 1.5 * step])


@pytest.mark.parametrize("wrong", [-1, 1024])
def test_an_id_that_is_no_code_is_refused(codec, wrong):
    with pytest.raises(ValueError, match=r"scalar codec: ids must lie in 0\.\.1023"):
        codec.decode(torch.tensor([[3], [wrong]]))


def test_ids_of_another_shape_are_refused(codec):
    with pytest.raises(ValueError, match=r"decodes ids \(B, 1\), found \(3,\)"):
        codec.decode(torch.tensor([1, 2, 3]))


def test_a_sure_prediction_expects_what_its_code_decodes_to(codec):
    codes = torch.tensor([[0], [7], [1023]])
    sure = torch.nn.functional.one_hot(codes[:, 0], 1024).float()
    torch.testing.assert_close(codec.expectation(sure), codec.decode(codes))
    upper = codec.quantile(sure, 1.0)
    torch.testing.assert_close(upper, codec.decode(codes, compat=True))


@given(seed=st.integers(0, 1000))
def test_quantiles_of_a_prediction_are_ordered_and_within_the_table(seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (torch.randn((4, 1024), generator=generator) * 5).softmax(-1)
    for codec in (fitted(ScalarCodec), fitted(LogScalarCodec), fitted(GridScalarCodec)):
        low, middle, high = (codec.quantile(probabilities, q) for q in (0.1, 0.5, 0.9))
        assert ((low <= middle) & (middle <= high)).all()
        ends = codec.centers().min(), codec.decode(torch.tensor([[1023]]), compat=True)[0]
        for found in (low, high, codec.expectation(probabilities)):
            assert ((found >= ends[0]) & (found <= ends[1])).all()


def test_the_prior_of_a_quantile_table_has_the_medians_of_its_sample():
    codec = fitted(LogScalarCodec)
    even = torch.full((1, 1024), 1 / 1024)
    assert codec.quantile(even, 0.5).item() == pytest.approx(10**0.5, rel=0.01)


def test_the_unused_code_of_the_redshift_vocabulary_is_left_out():
    codec = fitted(GridScalarCodec)
    probabilities = torch.zeros((2, 1025))
    probabilities[0, 512], probabilities[0, 1024] = 0.25, 0.75
    probabilities[1, 1024] = 1
    expected = codec.decode(torch.tensor([[512]]))[0]
    found = codec.expectation(probabilities)
    assert found[0] == expected
    assert found[1].isnan()
    torch.testing.assert_close(codec.quantile(probabilities, 0.5)[0], expected)


def test_only_the_redshift_vocabulary_has_an_unused_code():
    with pytest.raises(ValueError, match="probabilities for 1025 codes, but the codec has 1024"):
        fitted(ScalarCodec).expectation(torch.ones(2, 1025))
    with pytest.raises(ValueError, match="probabilities for 1026 codes, but the codec has 1024"):
        fitted(GridScalarCodec).quantile(torch.ones(2, 1026), 0.5)


def test_a_published_table_that_ends_in_nan_still_predicts():
    codec = fitted(ScalarCodec)
    codec.quantizer.values[1000:] = NAN
    found = codec.expectation(torch.full((1, 1024), 1 / 1024))
    assert found.isfinite().all()
    assert found < codec.quantizer.values[999]


def test_preparing_changes_nothing(codec):
    values = torch.linspace(-1, 9, 50)
    before = codec.encode(values)
    codec.prepare("bfloat16")
    assert torch.equal(codec.encode(values).ids_BN, before.ids_BN)

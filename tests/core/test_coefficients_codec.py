"""Coefficients codec: a table for each coefficient, missing ones, bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.codecs.coefficients import CoefficientsCodec, CoefficientsCodecConfig
from skyvec_core.codecs.scalar import ScalarCodec

NAN, INF = float("nan"), float("inf")


def sample(rows=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, 55), generator=generator) * 10 ** torch.linspace(4, -1, 55)


@pytest.fixture(scope="module")
def codec():
    codec = CoefficientsCodec(CoefficientsCodecConfig())
    codec.fit(sample())
    return codec.eval()


def test_every_coefficient_is_coded_by_its_own_table(codec):
    values = sample(rows=20, seed=1)
    ids = codec.encode(values).ids_BN
    for index in (0, 17, 54):
        alone = ScalarCodec()
        alone.load_state_dict({"_quantizer._index_to_val": codec.tables[index].values}, strict=True)
        expected = alone.encode(values[:, index].asinh().asinh()).ids_BN
        assert torch.equal(ids[:, index : index + 1], expected)


def test_the_tensors_have_their_published_names(codec):
    names = [f"_quantizer.quantizers.{index}._index_to_val" for index in range(55)]
    assert list(codec.state_dict()) == names


def test_coefficients_that_were_not_measured_have_no_token(codec):
    values = sample(rows=3)
    values[0, 32:], values[1, 5] = NAN, INF
    tokens = codec.encode(values)
    assert (~tokens.valid_BN).sum(1).tolist() == [23, 1, 0]
    official = codec.encode(values, compat=True)
    assert official.valid_BN.all()
    assert (official.ids_BN[0, 32:] == 1023).all()
    assert official.ids_BN[1, 5] == 1023
    assert torch.equal(official.ids_BN[tokens.valid_BN], tokens.ids_BN[tokens.valid_BN])


@pytest.mark.parametrize("columns", [32, 56])
def test_another_number_of_coefficients_is_refused(codec, columns):
    with pytest.raises(ValueError, match=r"\(B, 55\), found \(2, \d+\); .* padding with NaN"):
        codec.encode(torch.zeros(2, columns))


def test_other_types_are_refused(codec):
    with pytest.raises(TypeError, match=r"found torch\.int64"):
        codec.encode(torch.zeros((2, 55), dtype=torch.int64))
    with pytest.raises(TypeError, match="takes a tensor"):
        codec.encode(None)


@given(order=st.permutations(range(9)))
def test_a_row_has_the_same_codes_wherever_it_stands(codec, order):
    values = sample(rows=9, seed=2)
    straight, turned = codec.encode(values), codec.encode(values[list(order)])
    assert torch.equal(straight.ids_BN[list(order)], turned.ids_BN)


def test_decoding_comes_back_to_the_same_codes(codec):
    ids = torch.randint(1, 1024, (40, 55), generator=torch.Generator().manual_seed(3))
    again = codec.encode(codec.decode(ids)).ids_BN
    # Intervals narrower than single precision can halve, twice through sinh, may move by one.
    assert ((again - ids).abs() <= 1).all()
    assert (again == ids).float().mean() > 0.98
    assert (codec.decode(ids, compat=True) >= codec.decode(ids)).all()


@pytest.mark.parametrize("wrong", [-1, 1024])
def test_an_id_that_is_no_code_is_refused(codec, wrong):
    ids = torch.zeros((2, 55), dtype=torch.int64)
    ids[1, 3] = wrong
    with pytest.raises(ValueError, match=r"coefficients codec: ids must lie in 0\.\.1023"):
        codec.decode(ids)


def test_predicted_distributions_have_expectations_and_quantiles(codec):
    ids = torch.randint(0, 1024, (2, 55), generator=torch.Generator().manual_seed(4))
    sure = torch.nn.functional.one_hot(ids, 1024).float()
    torch.testing.assert_close(codec.expectation(sure), codec.decode(ids))
    torch.testing.assert_close(codec.quantile(sure, 1.0), codec.decode(ids, compat=True))
    assert codec.centers().shape == (55, 1024)


def test_an_unknown_compression_is_refused():
    with pytest.raises(ValueError, match=r"compression_fns \('log',\)"):
        CoefficientsCodecConfig(compression_fns=("log",), decompression_fns=("exp",))
    with pytest.raises(ValueError, match="undone by sinh"):
        CoefficientsCodecConfig(compression_fns=("arcsinh",))

"""Ids: one text for one object, whatever wrote it, and never one text for two."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.ids import MISSING, canonical_ids

LONG = 2575025233207519232


def _named(spelling):
    """Without the address in memory, which differs between processes."""
    return re.sub(r" object at 0x\w+|\s+", "", repr(spelling))


@pytest.mark.parametrize(
    "spelling",
    [
        np.array([LONG]),
        np.array([LONG], ">i8"),
        np.array([LONG], np.uint64),
        np.array([LONG], object),
        np.array([f"   {LONG}".encode()]),
        np.array([f"{LONG}\n".encode()], "S40"),
        np.array([f"\0\0{LONG}".encode()]),
        np.array([f"{LONG} "]),
        np.array([f"b'   {LONG}'"]),
        np.array([f'b"{LONG}"'], object),
        np.array([f"b'{LONG}\\x00\\x00'"]),
        np.array([f"{LONG}"], np.dtypes.StringDType()),
        np.ma.masked_array([LONG], [False]),
        np.array(f" {LONG}".encode()),
        pd.Series([LONG]),
        pd.Series([LONG], dtype="Int64"),
        pd.Series([f"{LONG}"]),
        pd.Series([f"{LONG}"]).array,
        pa.array([LONG]),
        pa.array([f"{LONG} "], pa.large_string()),
        pa.array([f"{LONG}"], pa.string_view()),
        pa.array([f"{LONG}".encode()]),
        pa.array([f"{LONG}".encode().ljust(22, b"\0")], pa.binary(22)),
        pa.array([f"{LONG}"]).dictionary_encode(),
        pa.chunked_array([pa.array([LONG])]),
    ],
    ids=_named,
)
def test_one_object_has_one_id(spelling):
    assert canonical_ids(spelling).tolist() == [str(LONG)]


@pytest.mark.parametrize(
    "values",
    [
        np.array([None, "7"], object),
        np.array([np.nan, 7], object),
        np.array([pd.NA, 7], object),
        np.array([b"  ", b"7"]),
        np.array(["b'  '", "7"]),
        np.ma.masked_array([6, 7], [True, False]),
        np.ma.masked_array(["6", "7"], [True, False]),
        pd.Series([None, 7], dtype="Int64"),
        pd.Series([None, 7], dtype="int64[pyarrow]"),
        pd.Series([None, "7"]),
        pa.array([None, 7]),
        pa.array([None, "7"]),
        pa.array([None, "7"]).dictionary_encode(),
        pa.chunked_array([pa.array([None, 7]), pa.array([], pa.int64())]),
    ],
    ids=_named,
)
def test_null_is_missing_and_the_others_keep_theirs(values):
    assert canonical_ids(values).tolist() == [MISSING, "7"]


def test_a_null_beside_a_long_number_does_not_round_it():
    assert canonical_ids(pa.array([None, LONG + 1]))[1] == str(LONG + 1)
    assert canonical_ids(pd.Series([None, LONG + 1], dtype="Int64"))[1] == str(LONG + 1)


@pytest.mark.parametrize(
    "text",
    ["0012", "-12", "+12", "0001m002-11", "b'", "b''x", "NGC 3073", "GAIA", "gaia", "1e5", "é"],
)
def test_what_tells_objects_apart_stays(text):
    assert canonical_ids(np.array([text])).tolist() == [text]
    assert canonical_ids(np.array([text], object)).tolist() == [text]


def test_signs_and_the_greatest_numbers_stay():
    assert canonical_ids(np.array([-(2**63), 2**63 - 1])).tolist() == [
        "-9223372036854775808", "9223372036854775807"
    ]  # fmt: skip
    assert canonical_ids(np.array([2**64 - 1], np.uint64)).tolist() == ["18446744073709551615"]


def test_bytes_that_are_no_text_stay_different():
    found = canonical_ids(np.array([b"\xff", b"\xfe", b"ok"]))
    assert len(set(found.tolist())) == 3
    assert found[2] == "ok"
    pa.array(canonical_ids(np.array(["\udcff"], object)))  # what h5py makes of such bytes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([7.0]), "float64, which cannot hold 64-bit ids exactly"),
        (pa.array([7.0, None]), "float64, which cannot hold"),
        (np.array([7.5], object), "id 7.5 is a float"),
        (np.array([True]), "bool, neither whole numbers nor text"),
        (np.array(["2020-01-01"], "datetime64[D]"), "neither whole numbers nor text"),
        (np.array([[b"a", b"b"]]), r"shape \(1, 2\), not one for each"),
        (np.array([{"a": 1}, None]), "is a dict"),
    ],
)
def test_what_is_no_id_is_refused(values, message):
    with pytest.raises(TypeError, match=message):
        canonical_ids(values)


@pytest.mark.parametrize(
    "nobody",
    [np.empty(0), np.empty(0, "S4"), np.empty(0, object), pa.chunked_array([], pa.string())],
)
def test_no_objects_have_no_ids(nobody):
    found = canonical_ids(nobody)
    assert (found.shape, found.dtype.kind) == ((0,), "U")


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_numbers_and_their_texts_are_equal(numbers):
    wanted = [str(number) for number in numbers]
    width = max(map(len, wanted)) + 3
    for spelling in (
        np.array(numbers),
        np.array([text.rjust(width).encode() for text in wanted]),
        np.array([f"b'{text:<{width}}'" for text in wanted]),
        pa.array(numbers),
    ):
        assert canonical_ids(spelling).tolist() == wanted


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"])), min_size=1))
def test_text_without_padding_is_left_alone(texts):
    wanted = [text for text in texts if not text.startswith(("b'", 'b"'))]
    assert canonical_ids(np.array(wanted, object)).tolist() == wanted
    assert canonical_ids(pa.array(wanted, pa.string())).tolist() == wanted

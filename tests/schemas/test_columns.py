"""Columns, flags, provenance and errors as bytes at the border."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyvec_schemas.embedding_columns import EmbeddingColumns
from skyvec_schemas.errors import BandError, ConfigurationError, MissingColumnError, SkyvecError
from skyvec_schemas.provenance import Provenance, pixel_fingerprint
from skyvec_schemas.quality_flags import Flag, Status, reasons, status_of
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct
from skyvec_schemas.token_columns import content_digests, token_array, token_type, token_values
from skyvec_schemas.vectors import tensor_array, tensor_values


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_vectors_come_back_with_nulls_in_any_slice(rows, width, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)).astype(np.float32)
    absent = rng.random(rows) < 0.3
    column = tensor_array(values, absent=absent)
    expected = np.where(absent[:, None], np.nan, values)
    for start in range(rows):
        assert np.array_equal(
            tensor_values(column[start:], missing=np.nan), expected[start:], equal_nan=True
        )
    chunks = pa.chunked_array([column[:1], column[1:]])
    assert np.array_equal(tensor_values(chunks, missing=np.nan), expected, equal_nan=True)


def test_vectors_without_nulls_are_a_view():
    column = tensor_array(np.ones((4, 3), np.float16))
    values = tensor_values(column, missing=np.nan)
    assert not values.flags.owndata
    assert values.dtype == np.float16


def test_a_vector_column_has_no_permutation_that_hats_cannot_open(tmp_path):
    pq.write_table(pa.table({"v": tensor_array(np.ones((2, 3), np.float16))}), tmp_path / "v.pq")
    kind = pq.read_schema(tmp_path / "v.pq").field("v").type
    assert isinstance(kind, pa.FixedShapeTensorType)
    assert kind.permutation is None


@given(st.integers(1, 5), st.sampled_from([1, 4]), st.integers(0, 2**32 - 1))
def test_tokens_come_back_with_what_was_observed(rows, width, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4375, (rows, width))
    valid = rng.random((rows, width)) < 0.7
    column = token_array(codes, valid)
    assert column.type == token_type(width)
    found, observed = token_values(column)
    assert np.array_equal(observed, valid)
    assert np.array_equal(found[valid], codes[valid])
    assert (found[~valid] == 0).all()


def test_failed_rows_are_null_and_the_others_are_not():
    columns = EmbeddingColumns(name="v1", dim=3)
    vector, status, *_ = columns.arrays(
        np.ones((2, 3), np.float32),
        flags=np.array([0, int(Flag.NO_INPUT)], np.int32),
        modality_bits=np.array([1, 0]),
        token_counts=np.array([5, 0], np.int32),
        contents=np.array([7, -7]),
        failed=np.array([False, True]),
    )
    assert vector.is_null().to_pylist() == [False, True]
    assert status.to_pylist() == ["ok", "failed"]
    assert [f.name for f in columns.fields()] == list(columns.names)


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        (Flag(0), Status.OK),
        (Flag.IMAGE_BAD_PIXELS, Status.OK),
        (Flag.IMAGE_PADDED, Status.PARTIAL),
        (Flag.SCALAR_MISSING | Flag.IMAGE_BAD_PIXELS, Status.PARTIAL),
        (Flag.IMAGE_UNUSABLE | Flag.IMAGE_PADDED, Status.FAILED),
    ],
)
def test_the_status_follows_the_gravest_reason(flags, status):
    assert status_of(int(flags)) == status


def test_reasons_are_words():
    assert reasons(int(Flag.IMAGE_PADDED | Flag.SCALAR_MISSING)) == (
        "image padded",
        "scalar missing",
    )


def provenance(**changes):
    facts = {
        "product": "embedding", "model": "m", "model_digest": "d", "precision": "float32",
        "device": "cpu", "numerics_version": 1, "vector_type": "float16", "survey": "s",
        "inputs": ("a=b",), "skyvec_version": "0",
    }  # fmt: skip
    return Provenance(**(facts | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "e"}, {"precision": "bfloat16"}, {"device": "cuda"},
        {"numerics_version": 2}, {"vector_type": "float32"}, {"inputs": ("a=c",)},
        {"product": "tokens"},
    ],
)  # fmt: skip
def test_everything_that_moves_a_number_changes_the_fingerprint(change):
    assert provenance(**change).fingerprint() != provenance().fingerprint()


def test_names_and_releases_do_not_change_the_fingerprint():
    other = provenance(model="another name", skyvec_version="9")
    assert other.fingerprint() == provenance().fingerprint()


def test_provenance_survives_its_json():
    assert Provenance.from_json(provenance().to_json()) == provenance()


def test_a_pixel_fingerprint_follows_its_input():
    assert pixel_fingerprint("r", {"rows": 1}) != pixel_fingerprint("r", {"rows": 2})


def test_an_error_is_one_line_with_place_and_remedy_even_after_pickling():
    error = BandError("wrong bands", where="file", remedy="Rename them")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert str(again) == str(error) == "file: wrong bands. Rename them."
    assert type(again) is BandError


def test_errors_are_also_what_python_calls_them():
    assert isinstance(ConfigurationError("a", where="b", remedy="c"), ValueError)
    missing = MissingColumnError("no column", where="b", remedy="c")
    assert isinstance(missing, KeyError)
    assert str(missing) == "b: no column. c."
    assert isinstance(missing, SkyvecError)


def test_a_survey_never_lists_its_labels_among_its_inputs():
    assert not set(LEGACY_SURVEY.labels) & set(LEGACY_SURVEY.columns)


def test_an_image_struct_has_one_entry_per_band_in_every_field():
    assert all(pa.types.is_list(field.type) for field in image_struct())


def test_rows_have_one_content_where_a_model_sees_the_same():
    codes = {"a": np.array([[1, 2], [1, 2], [1, 3], [1, 2]]), "b": np.array([[5]] * 4)}
    valid = {"a": np.array([[True, True]] * 3 + [[True, False]]), "b": np.array([[True]] * 4)}
    tokens = {key: (codes[key], valid[key]) for key in codes}
    first = content_digests(tokens)
    assert (first[0] == first[1], len(set(first.tolist()))) == (True, 3)
    unseen = {"b": tokens["b"], "a": (np.where(valid["a"], codes["a"], 9), valid["a"])}
    assert np.array_equal(content_digests(unseen), first)
    assert not np.isin(content_digests({"a": tokens["a"], "c": tokens["b"]}), first).any()


def test_stored_contents_never_change():
    tokens = {"tok_image": (np.arange(4)[None], np.array([[True, True, False, True]]))}
    assert content_digests(tokens).tolist() == [-3056832779411924036]

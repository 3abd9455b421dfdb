"""Token extensions, the place where training and the survey stage meet."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_training.data import tokens
from skyvec_training.data.leaves import healpix_of, leaves_of
from skyvec_training.data.tokens import TokenStore, read_tokens
from skyvec_training.recipe.data import DataRun


def test_tokens_come_back_as_they_were_written(token_catalog, vocabulary, store):
    read = read_tokens(token_catalog, vocabulary)
    np.testing.assert_array_equal(read.codes_BA, store.codes_BA)
    np.testing.assert_array_equal(read.ids, store.ids)
    assert read.codes_BA.dtype == np.int16


def test_a_missing_column_is_named_with_its_file_and_the_remedy(token_catalog):
    with pytest.raises(MissingColumnError, match=r"Npix=0.parquet: column tok_ebv.*recipe"):
        read_tokens(token_catalog, Vocabulary(("tok_flux_g", "tok_ebv")))


def test_a_code_outside_its_domain_is_refused(tmp_path, write_tokens, vocabulary, store):
    store.codes_BA[0, 0] = 5000
    folder = write_tokens(tmp_path / "wrong", vocabulary, store)
    with pytest.raises(ContractError, match="tok_flux_g does not hold 1 codes below 1024"):
        read_tokens(folder, vocabulary)


def test_an_object_with_less_than_two_tokens_is_left_out(tmp_path, write_tokens, vocabulary, store):
    codes = store.codes_BA.copy()
    codes[3], codes[4] = -1, -1
    codes[4, 0] = 1
    folder = write_tokens(tmp_path / "few", vocabulary, TokenStore(codes_BA=codes, ids=store.ids))
    assert 3 not in read_tokens(folder, vocabulary).ids
    assert 4 not in read_tokens(folder, vocabulary).ids


def test_leaves_come_in_the_order_of_their_pixels(token_catalog):
    first = leaves_of(token_catalog)[0]
    table = pq.read_table(first, partitioning=None)
    for pixel in (10, 9):
        pq.write_table(table, first.with_name(f"Npix={pixel}.parquet"))
    assert [p.stem for p in leaves_of(token_catalog)] == ["Npix=0", "Npix=9", "Npix=10"]


def test_a_collection_leads_to_its_main_catalog(token_catalog):
    folder = token_catalog.parent
    (folder / "collection.properties").write_text(
        f"a=b\nhats_primary_table_url={token_catalog.name}\n"
    )
    assert leaves_of(folder) == leaves_of(token_catalog)


def test_a_folder_without_leaves_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no Norder"):
        leaves_of(tmp_path)


def test_a_leaf_knows_its_pixel(token_catalog):
    assert healpix_of(leaves_of(token_catalog)[0]) == (0, 0)
    with pytest.raises(ValueError, match="no leaf of a HATS catalog"):
        healpix_of(token_catalog)


def test_more_objects_than_memory_is_meant_for_are_compiled_first(
    token_catalog, vocabulary, monkeypatch
):
    monkeypatch.setattr(tokens, "MOST_ROWS", 19)
    with pytest.raises(ConfigurationError, match=r"20 objects are too many.*compile-tokens"):
        read_tokens(token_catalog, vocabulary)


def test_ids_may_be_text(tmp_path, write_tokens, vocabulary, store):
    folder = write_tokens(tmp_path / "text", vocabulary, store)
    leaf = leaves_of(folder)[0]
    table = pq.read_table(leaf, partitioning=None)
    text = pa.array([f"id {i}" for i in range(20)])
    pq.write_table(table.set_column(0, "object_id", text), leaf)
    read = read_tokens(folder, vocabulary, DataRun(held_out=0.3))
    assert read.ids[3] == "id 3"
    assert len(read.train) + len(read.held_out_rows) == 20


def test_which_objects_are_held_out_goes_by_their_ids(store):
    run = DataRun(held_out=0.3)
    shuffled = np.random.default_rng(0).permutation(20)
    one = TokenStore(codes_BA=store.codes_BA, ids=store.ids, run=run)
    other = TokenStore(codes_BA=store.codes_BA[shuffled], ids=store.ids[shuffled], run=run)
    assert one.ids[one.held_out_rows].tolist() == other.ids[other.held_out_rows].tolist()
    assert 0 < len(one.held_out_rows) < 15


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"held_out": 1.0}, "is a share from 0 to below 1"),
        ({"sky_order": 30}, "must lie in 0..29"),
        ({"weights": {"a": -1.0}}, "must not be negative"),
        ({"weights": {"a": 0.0}}, "one of them must be positive"),
    ],
)
def test_wrong_data_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DataRun(**wrong)

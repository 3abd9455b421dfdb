"""Token extensions, the place where training and the survey stage meet."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_training.data.leaves import leaves_of
from skyvec_training.data.tokens import TokenStore, read_tokens


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

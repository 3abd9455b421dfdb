"""Rows of a pixel: single ones, wherever they lie in its files and row groups."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec.releases.hats.leaf import Leaf, leaf_path
from skyvec.releases.hats.remote import is_remote, located
from skyvec_schemas.errors import ContractError


@pytest.fixture
def files(tmp_path):
    """Rows 0 to 99 in two files, the first of row groups of 16."""
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, numbers in zip(paths, (np.arange(60), np.arange(60, 100)), strict=True):
        pq.write_table(pa.table({"id": numbers}), path, row_group_size=16)
    return paths


@pytest.mark.parametrize("at_once", [1, 5, 16, 1000])
@pytest.mark.parametrize("rows", [[0], [99], [15, 16], [3, 4, 5, 40, 59, 60, 98], [7, 7], []])
def test_single_rows_are_those_that_were_asked_for(files, rows, at_once):
    with Leaf.open(files) as leaf:
        found = list(leaf.single_rows(["id"], rows, at_once=at_once))
    assert [batch.column(0).to_pylist() for batch in found] == [[row] for row in rows]


def test_a_row_that_is_not_there_is_an_error_after_those_that_are(files):
    with Leaf.open(files) as leaf:
        found = leaf.single_rows(["id"], [99, 100], at_once=8)
        assert next(found).column(0).to_pylist() == [99]
        with pytest.raises(ContractError, match="row 100 is not there"):
            next(found)


@pytest.mark.parametrize("root", ["/data/sky", "relative", "memory://bucket/sky"])
@pytest.mark.parametrize("suffix", [".parquet", ".parq", "/"])
@pytest.mark.parametrize("pixel", [HealpixPixel(0, 4), HealpixPixel(9, 3_100_000)])
def test_a_pixel_lies_where_hats_says(root, suffix, pixel):
    ours = leaf_path(located(root), pixel, suffix)
    assert str(ours) == str(located(paths.pixel_catalog_file(root, pixel, npix_suffix=suffix)))
    assert is_remote(ours) == ("://" in root)

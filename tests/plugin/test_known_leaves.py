"""A file that was searched before is opened without reading its footer and its page headers again."""

import os
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyvec.releases.hats import leaf
from skyvec.stage.leaf_writer import LeafWriter
from skyvec.vector_pages import known, pages
from skyvec.vector_pages.known import KnownLeaf
from skyvec_schemas.errors import ContractError

DIM, ROWS = 8, 3000
LONG_AGO = 1_700_000_000


@pytest.fixture(autouse=True)
def _nothing_known():
    known.forget()


def write(path, seed, *, when=LONG_AGO):
    """Vectors of one size, so that two files differ in nothing that a stamp shows but its time."""
    values = np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float16)
    kind = pa.fixed_shape_tensor(pa.float16(), [DIM])
    column = pa.ExtensionArray.from_storage(
        kind, pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), DIM)
    )
    table = pa.table({"object_id": np.arange(ROWS), "v": column})
    plain = "v.list.element"
    with LeafWriter(path, table.schema, plain=plain, unique=frozenset()) as writer:
        writer.write(table)
    os.utime(path, (when, when))
    return values


def read(path):
    """Values of all vectors, and the footer."""
    with closing(KnownLeaf.open(path, "v")) as one:
        vectors = one.vectors()
        values = np.concatenate([block.values for block in vectors.blocks()])
        assert one.file.read(columns=["object_id"]).num_rows == ROWS
        one.finish(vectors)
        return values, one.file.metadata


@pytest.fixture
def headers(monkeypatch):
    """How often page headers were read."""
    usual, counted = pages.find_layout, []

    def watched(*given):
        counted.append(1)
        return usual(*given)

    monkeypatch.setattr(pages, "find_layout", watched)
    return counted


def test_the_second_time_no_page_header_is_read(tmp_path, headers):
    values = write(tmp_path / "a.parquet", 1)
    first, footer = read(tmp_path / "a.parquet")
    second, again = read(tmp_path / "a.parquet")
    assert len(headers) == 1
    assert first.tobytes() == second.tobytes() == values.tobytes()
    assert again.equals(footer)


def test_the_second_time_no_footer_is_read(tmp_path, monkeypatch):
    usual, given = pq.ParquetFile, []

    def watched(*what, metadata=None, **options):
        given.append(metadata)
        return usual(*what, metadata=metadata, **options)

    write(tmp_path / "a.parquet", 1)
    monkeypatch.setattr(leaf.pq, "ParquetFile", watched)
    _, footer = read(tmp_path / "a.parquet")
    read(tmp_path / "a.parquet")
    assert given[0] is None
    assert given[1].equals(footer)


@pytest.mark.parametrize("how", ["renamed", "in place"])
def test_a_file_that_was_written_again_is_another_one(tmp_path, headers, how):
    path, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write(path, 1)
    read(path)
    values = write(other, 2, when=LONG_AGO + (how == "in place"))
    assert other.stat().st_size == path.stat().st_size
    if how == "renamed":
        other.replace(path)
    else:
        inode = path.stat().st_ino
        path.write_bytes(other.read_bytes())
        os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
        assert path.stat().st_ino == inode
    assert read(path)[0].tobytes() == values.tobytes()
    assert len(headers) == 2


def test_a_file_of_this_moment_is_not_remembered(tmp_path, headers):
    """It may be written again at what its disk calls the same time."""
    path = tmp_path / "a.parquet"
    write(path, 1)
    os.utime(path)
    read(path)
    read(path)
    assert len(headers) == 2


def test_what_was_written_to_while_it_was_read_is_not_remembered(tmp_path, headers):
    path = tmp_path / "a.parquet"
    write(path, 1)
    with closing(KnownLeaf.open(path, "v")) as one:
        vectors = one.vectors()
        values = write(path, 2, when=LONG_AGO + 1)
        with pytest.raises(ContractError, match="changed while it was read"):
            one.finish(vectors)
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert read(path)[0].tobytes() == values.tobytes()
    assert len(headers) == 2


def test_all_that_is_read_is_of_the_file_that_was_opened(tmp_path, headers):
    path, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    values = [write(path, 1), write(other, 2)]
    with closing(KnownLeaf.open(path, "v")) as one:
        other.replace(path)
        vectors = one.vectors()
        assert next(iter(vectors.blocks())).values.tobytes() == values[0][:2048].tobytes()
        one.finish(vectors)
    assert read(path)[0].tobytes() == values[1].tobytes()
    assert len(headers) == 2


def test_columns_are_told_apart(tmp_path):
    path = tmp_path / "a.parquet"
    values = np.random.default_rng(1).normal(size=(2, 20, DIM)).astype(np.float32)
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(each.ravel()), DIM) for each in values]
    pq.write_table(
        pa.table({"v": lists[0], "w": lists[1]}), path, compression="none", use_dictionary=False
    )
    os.utime(path, (LONG_AGO, LONG_AGO))
    for _ in range(2):
        for name, wanted in zip("vw", values, strict=True):
            with closing(KnownLeaf.open(path, name)) as one:
                vectors = one.vectors()
                assert next(iter(vectors.blocks())).values.tobytes() == wanted.tobytes()
                one.finish(vectors)


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(known._layouts, "n", 3)
    monkeypatch.setattr(known._footers, "n", 3)
    for number in range(6):
        path = tmp_path / f"{number}.parquet"
        write(path, number)
        groups = read(path)[1].num_row_groups
    assert groups == 2
    assert len(known._layouts) == len(known._footers) == 1

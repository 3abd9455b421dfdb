"""Vectors from mapped pages: what pyarrow reads, or a reason, or one clear error."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyvec.stage.leaf_writer import ROW_GROUP_ROWS, LeafWriter
from skyvec.stage.row_truth import vector_batches
from skyvec.vector_pages.chunks import Chunk, Layout
from skyvec.vector_pages.data_pages import DataPages, Form
from skyvec.vector_pages.decoded import DecodedVectors
from skyvec.vector_pages.levels import OtherLayoutError, decode_levels
from skyvec.vector_pages.opening import open_vectors
from skyvec.vector_pages.pages import NotMappable, VectorPages
from skyvec.vector_pages.reading import Memory, Reader, Window
from skyvec.vector_pages.thrift import read_struct
from skyvec_schemas.errors import ContractError, MissingColumnError
from skyvec_schemas.vectors import tensor_array, tensor_values

PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False}
LENIENT = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def vectors_of(rows: int, dim: int, dtype: str = "float16", nulls: float = 0.0) -> pa.Array:
    rng = np.random.default_rng(rows * dim)
    values = rng.standard_normal((rows, dim)).astype(dtype)
    return tensor_array(values, absent=rng.random(rows) < nulls)


def write(place: Path, vectors: pa.Array, **options: object) -> pa.ChunkedArray:
    """Write a file; returns its vectors as pyarrow reads them."""
    table = pa.table({"id": np.arange(len(vectors)), "v": vectors})
    pq.write_table(table, place, **{**PLAIN, **options})
    with pq.ParquetFile(place) as file:
        return file.read(columns=["v"], use_threads=False).column(0)


def read(vectors, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with zeros in null rows, and the null mask, from blocks that follow each other."""
    values, null = [np.zeros((0, vectors.dim), vectors.dtype)], [np.zeros(0, bool)]
    row = 0
    for block in vectors.blocks(**options):
        assert block.first_row == row
        assert len(block.values) == (~block.null).sum()
        filled = np.zeros((len(block.null), vectors.dim), vectors.dtype)
        filled[~block.null] = block.values
        values.append(filled)
        null.append(block.null)
        row += len(block.null)
    return np.concatenate(values), np.concatenate(null)


def same_as_pyarrow(vectors, column: pa.ChunkedArray, **options: object) -> bool:
    values, null = read(vectors, **options)
    whole = tensor_values(column, missing=0)
    return values.tobytes() == whole.tobytes() and null.tolist() == column.is_null().to_pylist()


@LENIENT
@given(
    rows=st.integers(0, 400),
    dim=st.integers(1, 130),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    nulls=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    block=st.sampled_from([1, 3, 100, 10_000]),
    options=st.fixed_dictionaries(
        {
            "row_group_size": st.integers(1, 500),
            "data_page_size": st.sampled_from([1, 64, 1000, 20_000, 1 << 20]),
            "write_batch_size": st.sampled_from([1, 7, 50, 1024]),
            "data_page_version": st.sampled_from(["1.0", "2.0"]),
            "write_page_index": st.booleans(),
            "write_page_checksum": st.booleans(),
            "write_statistics": st.booleans(),
        }
    ),
)
def test_pages_hold_what_pyarrow_reads(tmp_path, rows, dim, dtype, nulls, block, options):
    place = tmp_path / "v.parquet"
    column = write(place, vectors_of(rows, dim, dtype, nulls), **options)
    pages, decoded = open_vectors(place, "v"), DecodedVectors(place, "v", reason="")
    assert isinstance(pages, VectorPages)
    for vectors in (pages, decoded):
        assert (vectors.dim, vectors.dtype) == (dim, np.dtype(dtype))
        assert same_as_pyarrow(vectors, column, rows=block)
        assert same_as_pyarrow(vectors, column, rows=block, memory=Memory())
        for row in {0, rows // 3, rows - 1} & set(range(rows)):
            found, wanted = vectors.row(row), column[row].as_py()
            assert (found is None) == (wanted is None)
            assert found is None or found.tolist() == wanted
        for row in (-1, rows):
            with pytest.raises(IndexError):
                vectors.row(row)


def page_v1(repetition: list[int], definition: list[int], values: np.ndarray) -> bytes:
    """A data page as other writers make them, each level a run of its own."""
    levels = b""
    for each in (repetition, definition):
        runs = b"".join(bytes([1 << 1, level]) for level in each)
        levels += len(runs).to_bytes(4, "little") + runs
    body = levels + values.tobytes()
    sizes = b"\x15" + varint(2 * len(body))
    inner = b"\x15" + varint(2 * len(repetition)) + b"\x15\x00\x15\x06\x15\x06\x00"
    return b"\x15\x00" + sizes + sizes + b"\x2c" + inner + b"\x00" + body


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def spans_of(place: Path, pages: list[bytes], entries: int, dim: int) -> tuple[BinaryIO, list]:
    content = b"PAR1" + b"".join(pages)
    place.write_bytes(content)
    form = Form(index=0, dim=dim, dtype=np.dtype("<f4"), highest=3, nullable=True)
    chunk = SimpleNamespace(
        compression="UNCOMPRESSED", has_dictionary_page=False, num_values=entries,
        data_page_offset=4, total_compressed_size=len(content) - 4,
    )  # fmt: skip
    file = place.open("rb", buffering=0)
    try:
        return file, Chunk(form, chunk, DataPages(form, Window(file)), 0).spans()
    except (ValueError, OtherLayoutError):
        file.close()
        raise


def test_a_row_that_pages_share_is_put_together(tmp_path, request):
    """The format allows it in pages of version 1; pyarrow ends its pages with a row."""
    values = np.arange(15, dtype="<f4")
    pages = [
        page_v1([0, 1, 1, 0], [3, 3, 3, 3], values[:4]),
        page_v1([1], [3], values[4:5]),
        page_v1([1, 0, 0, 0, 1], [3, 0, 0, 3, 3], values[5:8]),
        page_v1([1, 0, 1, 1], [3, 3, 3, 3], values[8:12]),
        page_v1([0, 1, 1], [3, 3, 3], values[12:]),
    ]
    file, spans = spans_of(tmp_path / "v", pages, entries=17, dim=3)
    request.addfinalizer(file.close)
    assert [len(span.pieces) for span in spans] == [1, 3, 1, 2, 1, 1]
    layout = Layout(groups=(spans,), dim=3, dtype=np.dtype("<f4"))
    vectors = VectorPages(file, layout)
    for memory in (None, Memory()):
        found, null = read(vectors, memory=memory)
        assert null.tolist() == [False, False, True, True, False, False, False]
        assert found[~null].tolist() == values.reshape(5, 3).tolist()
    assert [vectors.row(row) is None for row in range(7)] == null.tolist()
    assert vectors.rows(np.array([0, 1, 4, 6]), Memory()).tolist() == found[[0, 1, 4, 6]].tolist()
    assert vectors.row(4).tolist() == [6, 7, 8]


@pytest.mark.parametrize(
    ("repetition", "definition", "reason"),
    [
        ([[0, 1, 1, 0]], [[3, 3, 3, 3]], "count different values"),
        ([[0, 1, 1, 0], [0, 1]], [[3, 3, 3, 3], [3, 3]], "not 3 wide"),
        ([[0, 1, 1], [1, 1, 1]], [[3, 3, 3], [3, 3, 3]], "not 3 wide"),
        ([[1, 1, 1]], [[3, 3, 3]], "not 3 wide"),
        ([[0, 1, 1, 1]], [[0, 3, 3, 3]], "values in a null row"),
        ([[0, 1, 1, 1]], [[3, 3, 3, 0]], "a null amid a row"),
        ([[0, 1, 1]], [[3, 3, 1]], "nulls within vectors"),
    ],
)
def test_rows_of_another_shape_are_no_rows(tmp_path, repetition, definition, reason):
    pages = [
        page_v1(r, d, np.zeros(d.count(3), "<f4"))
        for r, d in zip(repetition, definition, strict=True)
    ]
    with pytest.raises((ValueError, OtherLayoutError), match=reason):
        spans_of(tmp_path / "v", pages, entries=sum(map(len, repetition)), dim=3)


def test_blocks_are_views_of_the_file_that_nobody_can_write_to(tmp_path):
    write(tmp_path / "v.parquet", vectors_of(3000, 16))
    block = next(iter(VectorPages.open(tmp_path / "v.parquet", "v").blocks(rows=10_000)))
    assert not block.values.flags.owndata
    assert not block.values.flags.writeable
    assert block.values.shape == (3000, 16)


def test_a_scan_reads_whole_row_groups_into_the_same_memory(tmp_path):
    column = write(
        tmp_path / "v.parquet", vectors_of(3000, 16, nulls=0.01), row_group_size=1000,
        data_page_size=2000, write_batch_size=50,
    )  # fmt: skip
    vectors = VectorPages.open(tmp_path / "v.parquet", "v")
    assert sum(map(len, vectors.layout.groups)) > 30
    blocks = list(vectors.blocks(rows=1000, memory=Memory()))
    assert [block.first_row for block in blocks] == [0, 1000, 2000]
    assert len({block.values.ctypes.data for block in blocks}) == 1
    assert all(block.values.flags.aligned for block in blocks)
    last = [vector for vector in column.slice(2000).to_pylist() if vector]
    assert blocks[-1].values.tolist() == last


def test_row_groups_that_follow_each_other_share_a_block(tmp_path):
    column = write(tmp_path / "v.parquet", vectors_of(90, 8, nulls=0.1), row_group_size=20)
    vectors, memory = VectorPages.open(tmp_path / "v.parquet", "v"), Memory()
    rows = [(b.first_row, len(b.null)) for b in vectors.blocks(rows=50, memory=memory)]
    assert rows == [(0, 40), (40, 50)]
    rows = [(b.first_row, len(b.null)) for b in vectors.blocks(groups=[1, 2, 4, 0], memory=memory)]
    assert rows == [(20, 40), (80, 10), (0, 20)]
    found = [values.tolist() for b in vectors.blocks(rows=50, memory=memory) for values in b.values]
    assert found == [vector for vector in column.to_pylist() if vector]


@pytest.mark.parametrize("most", [1, 1000, 1 << 20])
def test_pieces_are_read_in_full_however_much_the_system_hands_out(tmp_path, monkeypatch, most):
    """Piece by piece, over gaps, and back; a call may fill only a part of what it is given."""
    content = np.random.default_rng(0).bytes(600_000)
    (tmp_path / "f").write_bytes(content)
    usual, calls = os.preadv, []

    def partly(descriptor, buffers, place):
        calls.append(len(buffers))
        first = buffers[0][:most] if len(buffers[0]) > most else None
        return usual(descriptor, [first] if first is not None else buffers, place)

    monkeypatch.setattr(os, "preadv", partly)
    few = [(10, 3), (13, 5), (500, 700), (2000, 1), (400_000, 9), (7, 4)]
    many = [(start, 3) for start in range(0, 4000, 4)]
    with (tmp_path / "f").open("rb", buffering=0) as file:
        reader = Reader(file, Memory())
        for pieces in ([], few, many):
            wanted = b"".join(content[place : place + size] for place, size in pieces)
            assert reader.read(pieces).tobytes() == wanted
    assert max(calls) <= 1024
    assert most == 1 or len(calls) < 12


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path):
    write(tmp_path / "v.parquet", vectors_of(3000, 16), row_group_size=1000)
    blocks = VectorPages.open(tmp_path / "v.parquet", "v").blocks(rows=1000, memory=Memory())
    next(blocks)
    os.truncate(tmp_path / "v.parquet", 40_000)
    with pytest.raises(ContractError, match=r"v\.parquet: was cut short while it was read"):
        list(blocks)


def test_row_groups_can_be_chosen(tmp_path):
    column = write(tmp_path / "v.parquet", vectors_of(100, 4), row_group_size=30)
    for vectors in (
        VectorPages.open(tmp_path / "v.parquet", "v"),
        DecodedVectors(tmp_path / "v.parquet", "v", reason=""),
    ):
        first, second = vectors.blocks(groups=[3, 1])
        assert (first.first_row, second.first_row) == (90, 30)
        assert first.values.tolist() == column.slice(90, 10).to_pylist()
        assert second.values.tolist() == column.slice(30, 30).to_pylist()


@pytest.mark.parametrize("nulls", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_stages_own_files_are_mapped(tmp_path, dtype, nulls):
    rows, place = 2 * ROW_GROUP_ROWS + 100, tmp_path / "v.parquet"
    words = pa.array(["ok", "failed"]).take(pa.array(np.arange(rows) % 2))
    table = pa.table({"id": np.arange(rows), "v": vectors_of(rows, 768, dtype, nulls), "s": words})
    with LeafWriter(place, table.schema, plain="v.list.element", unique=frozenset()) as writer:
        for start in range(0, rows, 700):
            writer.write(table.slice(start, 700))
    pages = VectorPages.open(place, "v")
    assert isinstance(pages, VectorPages)
    assert same_as_pyarrow(pages, table.column("v"))
    batches = list(vector_batches(place, ["s", "v", "id"]))
    assert pa.Table.from_batches(batches).equals(table.select(["s", "v", "id"]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression": "zstd"}, "compressed (ZSTD)"),
        ({"use_dictionary": True}, "dictionary"),
        ({"column_encoding": {"v.list.element": "BYTE_STREAM_SPLIT"}}, "not plain"),
        ({"compression": "snappy", "data_page_version": "2.0"}, "compressed"),
    ],
)
def test_other_files_are_decoded_with_the_same_answers(tmp_path, options, reason):
    place = tmp_path / "v.parquet"
    column = write(place, vectors_of(200, 8, "float32", 0.1), row_group_size=64, **options)
    found = VectorPages.open(place, "v")
    assert isinstance(found, NotMappable)
    found = open_vectors(place, "v")
    assert isinstance(found, DecodedVectors)
    assert same_as_pyarrow(found, column, rows=50)
    assert reason in found.reason


def test_lists_of_one_width_are_decoded(tmp_path):
    lists = [[1.0, 2.0], None, [3.0, 4.0]]
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)):
        write(tmp_path / "v.parquet", pa.array(lists, kind))
        values, null = read(open_vectors(tmp_path / "v.parquet", "v"))
        assert values.tolist() == [[1, 2], [0, 0], [3, 4]]
        assert null.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0], [1.0, 2.0]]),
        pa.array([[1.0, 2.0], []]),
        pa.array([["a"]]),
        pa.array([1.0]),
        pa.array([[[1.0]]]),
        pa.array([{"v": [1.0]}]),
        tensor_array(np.ones((2, 2), np.int16)),
    ],
)
def test_what_are_no_vectors_is_refused(tmp_path, column):
    write(tmp_path / "v.parquet", column)
    with pytest.raises(ContractError, match=r"v\.parquet: column 'v' (is|has vectors that)"):
        read(open_vectors(tmp_path / "v.parquet", "v"))


def test_nulls_within_a_vector_are_not_taken_for_values(tmp_path):
    write(tmp_path / "v.parquet", pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float32(), 2)))
    found = VectorPages.open(tmp_path / "v.parquet", "v")
    assert found == NotMappable(reason="has empty vectors or nulls within vectors")
    values, _ = read(open_vectors(tmp_path / "v.parquet", "v"))
    assert np.isnan(values[0, 1])


def test_a_column_that_is_not_there(tmp_path):
    write(tmp_path / "v.parquet", vectors_of(3, 2))
    with pytest.raises(MissingColumnError, match="no column 'w'"):
        open_vectors(tmp_path / "v.parquet", "w")


@LENIENT
@given(data=st.data(), version=st.sampled_from(["1.0", "2.0"]), nulls=st.sampled_from([0.0, 0.3]))
def test_a_damaged_page_never_yields_other_rows(tmp_path, data, version, nulls):
    """Whatever byte changes between the values: an error, a refusal, or what was there."""
    place = tmp_path / "v.parquet"
    column = write(
        place, vectors_of(40, 9, "float32", nulls), data_page_version=version, data_page_size=300,
        write_batch_size=10,
    )  # fmt: skip
    content = bytearray(place.read_bytes())
    pages = VectorPages.open(place, "v")
    chunk = pq.read_metadata(place).row_group(0).column(1)
    start, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    pieces = [piece for group in pages.layout.groups for span in group for piece in span.pieces]
    values = {at for place, count in pieces for at in range(place, place + 4 * count)}
    at = data.draw(st.sampled_from(sorted(set(range(start, stop)) - values)))
    content[at] ^= data.draw(st.integers(1, 255))
    place.write_bytes(content)
    try:
        found = VectorPages.open(place, "v")
    except ContractError as problem:
        assert str(place) in str(problem)  # noqa: PT017 - either outcome is right
        return
    assert isinstance(found, NotMappable) or same_as_pyarrow(found, column)


def test_a_file_that_is_cut_short(tmp_path):
    place = tmp_path / "v.parquet"
    write(place, vectors_of(100, 9))
    content = place.read_bytes()
    place.write_bytes(content[:-1])
    with pytest.raises(ContractError, match=r"v\.parquet: cannot be read"):
        open_vectors(place, "v")
    footer = content[-int.from_bytes(content[-8:-4], "little") - 8 :]
    place.write_bytes(content[:500] + footer)
    with pytest.raises(ContractError, match=r"v\.parquet: pages of column 'v' are damaged"):
        open_vectors(place, "v")


@given(st.binary(max_size=40))
def test_headers_of_noise_end_in_an_error_or_a_struct(content):
    try:
        fields, place = read_struct(content)
    except ValueError:
        return
    assert place <= len(content)
    assert isinstance(fields, dict)


def test_headers_without_end_are_refused():
    for content in (b"\x1c" * 100, b"\x19\xfc" + b"\xff" * 30, b"\x15" + b"\x80" * 20 + b"\x00"):
        with pytest.raises(ValueError, match="header"):
            read_struct(content)


@given(st.binary(max_size=20), st.integers(1, 8), st.integers(0, 50))
def test_levels_of_noise_are_as_many_as_asked_or_an_error(content, width, count):
    try:
        levels = decode_levels(content, width=width, count=count)
    except ValueError:
        return
    assert len(levels) == count


def test_levels_of_either_kind_of_run():
    packed = bytes([0b011, 0b00000101])  # one group of eight
    repeated = bytes([5 << 1, 1])
    assert decode_levels(packed + repeated, width=1, count=13).tolist() == [
        1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1,
    ]  # fmt: skip
    assert decode_levels(packed, width=1, count=3).tolist() == [1, 0, 1]
    two_bits = bytes([0b011, 0b11100100, 0b00000000])
    assert decode_levels(two_bits, width=2, count=5).tolist() == [0, 1, 2, 3, 0]

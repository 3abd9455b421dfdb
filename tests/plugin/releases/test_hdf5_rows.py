import os
from contextlib import contextmanager
from functools import cache

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.mmu import rows as hdf5_rows
from skyvec.releases.mmu.rows import ContiguousRows, SlabRows, open_rows
from skyvec_core.observations import fit_to_grid
from skyvec_schemas.errors import ContractError

SHAPE = (23, 3, 14, 14)
DTYPES = {"<f4": "float", ">f4": "swapped", "<f2": "half", "?": "bool"}
LAYOUTS = {
    "contiguous": {},
    "one object to a chunk": {"chunks": (1, *SHAPE[1:])},
    "mmu": {"chunks": (5, 1, 4, 4), "compression": "lzf"},
    "one chunk": {"chunks": SHAPE, "compression": "gzip", "shuffle": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for place, (layout, options) in enumerate(LAYOUTS.items()):
        for dtype in ("<f4", ">f4", "<f2", "?"):
            with h5py.File(folder / f"{layout} {DTYPES[dtype]}.h5", "w") as file:
                file.create_dataset("x", data=values_of(place, dtype), **options)
    return folder


@cache
def values_of(place, dtype):
    values = np.random.default_rng(place).normal(0, 1, SHAPE)
    return (values > 0) if dtype == "?" else values.astype(dtype)


def made(folder, layout, dtype="<f4"):
    place = list(LAYOUTS).index(layout)
    return folder / f"{layout} {DTYPES[dtype]}.h5", values_of(place, dtype)


@contextmanager
def opened(path, rows, *, window=None, name="x"):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with h5py.File(path) as file:
            yield open_rows(
                file[name], np.array(rows, np.int64), descriptor=descriptor, window=window
            )
    finally:
        os.close(descriptor)


def all_of(rows, count, at_once):
    return np.concatenate([rows.take(at, min(at + at_once, count))
                           for at in range(0, count, at_once)])  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.lists(st.integers(0, SHAPE[0] - 1), min_size=1, max_size=40).map(sorted),
    window=st.sampled_from([None, 6, 14, 20]),
    at_once=st.integers(1, 40),
)
def test_any_rows_of_any_layout_are_what_h5py_reads(files, layout, dtype, rows, window, at_once):
    path, values = made(files, layout, dtype)
    wanted = values[rows]
    if window and window < 14:
        wanted = wanted[..., 4:10, 4:10]
    with opened(path, rows, window=window) as chosen:
        found = all_of(chosen, len(rows), at_once)
        assert chosen.shape == wanted.shape[1:]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("span", [3000, 1 << 20])
def test_stretches_come_in_order_and_are_complete_as_they_come(
    files, layout, dtype, span, monkeypatch
):
    monkeypatch.setattr(hdf5_rows, "SPAN_BYTES", span)
    path, values = made(files, layout, dtype)
    rows = [0, 1, 1, 4, 5, 6, 15, 22]
    wanted = values[rows][..., 4:10, 4:10]
    with opened(path, rows, window=6) as chosen:
        out = np.zeros((6, *chosen.shape), chosen.dtype)
        at = 0
        for some in chosen.fill(out, 2):
            assert some.start == at
            at = some.stop
            np.testing.assert_array_equal(out[some], wanted[2:][some])
        assert at == 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_limits_on_memory_change_nothing(files, layout, monkeypatch):
    monkeypatch.setattr(hdf5_rows, "SLAB_BYTES", 3000)
    monkeypatch.setattr(hdf5_rows, "SPAN_BYTES", 3000)
    monkeypatch.setattr(hdf5_rows, "GAP_BYTES", 0)
    path, values = made(files, layout)
    rows = [0, 1, 2, 5, 6, 7, 11, 12, 22]
    with opened(path, rows, window=6) as chosen:
        np.testing.assert_array_equal(all_of(chosen, 9, 4), values[rows][..., 4:10, 4:10])


@pytest.mark.parametrize("cached", [True, False])
def test_planes_in_the_page_cache_and_rows_from_disk_are_the_same(files, cached, monkeypatch):
    monkeypatch.setattr(hdf5_rows, "MARGIN_BYTES", 1)
    monkeypatch.setattr(ContiguousRows, "_in_memory", lambda _: cached)
    path, values = made(files, "contiguous")
    rows = [0, 3, 4, 4, 22]
    with opened(path, rows, window=6) as chosen:
        assert chosen.planes == (3 if cached else 0)
        np.testing.assert_array_equal(all_of(chosen, 5, 2), values[rows][..., 4:10, 4:10])


def test_a_chunk_is_decoded_once_whatever_the_batch(files, monkeypatch):
    path, _ = made(files, "mmu")
    loads = []
    load = SlabRows._load
    monkeypatch.setattr(hdf5_rows, "_JOINED_BYTES", 1)
    monkeypatch.setattr(SlabRows, "_load", lambda rows, at: (loads.append(at), load(rows, at)))
    with opened(path, range(0, 23, 2)) as chosen:
        all_of(chosen, 12, 2)
    assert len(loads) == 5


@pytest.mark.parametrize("side", [13, 14])
@pytest.mark.parametrize("size", [5, 6, 13, 15])
def test_the_window_is_where_the_codec_crops(tmp_path, side, size):
    import torch

    values = np.arange(2 * side * side, dtype=np.float32).reshape(1, 2, side, side)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = values
    fitted, _ = fit_to_grid(
        torch.from_numpy(values), torch.ones(values.shape, dtype=torch.bool), size=size
    )
    with opened(tmp_path / "x.h5", [0], window=size) as chosen:
        found = chosen.take(0, 1)
    if size <= side:
        np.testing.assert_array_equal(found, fitted.numpy())
    else:
        np.testing.assert_array_equal(found, values)


def test_bytes_of_a_mask_that_are_not_0_or_1_become_true(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=np.array([[True, False, True]]))
        offset = file["x"].id.get_offset()
    with (tmp_path / "x.h5").open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\x02\x00\xff")
    with opened(tmp_path / "x.h5", [0]) as chosen:
        assert chosen.take(0, 1).view(np.uint8).tolist() == [[1, 0, 1]]


def test_text_of_variable_length_and_rows_of_no_bytes(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=["a", "bcd", "e"], dtype=h5py.string_dtype())
        file.create_dataset("none", shape=(3, 0), dtype="f4")
        file.create_dataset("unwritten", shape=(3, 2), dtype="f4", fillvalue=7)
    with opened(tmp_path / "x.h5", [1, 2]) as chosen:
        assert chosen.take(0, 2).tolist() == [b"bcd", b"e"]
    with opened(tmp_path / "x.h5", [1, 2], name="none") as chosen:
        assert chosen.take(0, 2).shape == (2, 0)
    with opened(tmp_path / "x.h5", [1, 2], name="unwritten") as chosen:
        assert chosen.take(0, 2).tolist() == [[7, 7], [7, 7]]


def test_a_file_that_shrinks_while_it_is_read_is_an_error_that_names_the_row(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ones((100, 64, 64), np.float32)
        offset = file["x"].id.get_offset()
    with opened(path, range(100)) as chosen:
        chosen.take(0, 10)
        os.truncate(path, offset + 50 * 64 * 64 * 4 + 9)
        with pytest.raises(ContractError, match=r"x\.h5, dataset 'x': row 50 .* ends before it"):
            chosen.take(40, 60)


def test_a_chunk_that_does_not_decode_is_an_error_that_names_the_row(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.zeros((40, 500)), chunks=(10, 500), compression="gzip")
        chunk = file["x"].id.get_chunk_info_by_coord((20, 0))
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    with opened(path, range(40)) as chosen, pytest.raises(ContractError, match="'x': row"):
        all_of(chosen, 40, 5)

"""One object means one thing in whichever column type it is stored, and views copy no pixel."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.hats.column_map import ColumnMap
from skyvec.releases.hats.columns import observe_row_labels, observe_rows
from skyvec.releases.hats.nested import Stacks
from skyvec_schemas.errors import ContractError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import DESI, GAIA, LEGACY_SURVEY, SDSS

ROWS, SIDE, WINDOW = 5, 12, 8
IMAGES = replace(LEGACY_SURVEY, scalars=(), labels={})
BANDS = list(LEGACY_SURVEY.image.bands)


def nested(values, kind=None, *, large=False):
    """Lists of lists, one level for every axis after the first."""
    array = pa.array(values.reshape(-1), kind)
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        ends = np.arange(count + 1) * values.shape[axis]
        if large:
            array = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), array)
        else:
            array = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), array)
    return array


def fixed(values):
    array = pa.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def tensor(values, permutation=None):
    kind = pa.from_numpy_dtype(values.dtype)
    stored = np.ascontiguousarray(values)
    shape = list(values.shape[1:])
    if permutation:
        inverse = [0, *(1 + permutation.index(axis) for axis in range(len(permutation)))]
        stored = np.ascontiguousarray(values.transpose(inverse))
        shape = list(stored.shape[1:])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(kind, shape, permutation=permutation), storage
    )


def batch_of(**columns):
    count = len(next(iter(columns.values())))
    keys = {"object_id": pa.array(np.arange(count)), "ra": pa.array(np.zeros(count)),
            "dec": pa.array(np.zeros(count))}  # fmt: skip
    return pa.RecordBatch.from_pydict(keys | columns)


def observed(survey, batch, overrides=None, *, size=WINDOW):
    columns = ColumnMap.of(survey, batch.schema, overrides, where="cat")
    return observe_rows(batch, columns, size=size)


@pytest.fixture
def stamps():
    rng = np.random.default_rng(3)
    flux = rng.normal(size=(ROWS, 4, SIDE, SIDE)).astype(np.float32)
    mask = rng.random(flux.shape) > 0.02
    return flux, mask


def names(count=ROWS, bands=BANDS):
    return pa.array([bands] * count)


def as_struct(flux, mask, /, **changes):
    parts = {"band": names(len(flux)), "flux": nested(flux), "mask": nested(mask)} | changes
    return batch_of(image=pa.StructArray.from_arrays(list(parts.values()), list(parts)))


def as_structs(flux, mask):
    plain = [
        [
            {"band": band, "flux": plane, "mask": good}
            for band, plane, good in zip(BANDS, planes, goods, strict=True)
        ]
        for planes, goods in zip(flux.tolist(), mask.tolist(), strict=True)
    ]
    plane = pa.list_(pa.list_(pa.float32()))
    kind = pa.struct(
        [("band", pa.string()), ("flux", plane), ("mask", pa.list_(pa.list_(pa.bool_())))]
    )
    return batch_of(image=pa.array(plain, pa.list_(kind)))


def as_flat(flux, mask):
    return batch_of(image_array=nested(flux.reshape(len(flux), -1)),
                    image_mask=nested(mask.reshape(len(mask), -1)))  # fmt: skip


LAYOUTS = {
    "struct of lists": as_struct,
    "list of structs": as_structs,
    "large lists": lambda f, m: as_struct(f, m, flux=nested(f, large=True)),
    "fixed-size lists": lambda f, m: batch_of(image_flux=fixed(f), image_mask=fixed(m)),
    "tensor": lambda f, m: batch_of(image_flux=tensor(f), image_mask=nested(m)),
    "tensor, channels last": lambda f, m: batch_of(
        image_flux=tensor(f, [2, 0, 1]), image_mask=nested(m)
    ),
    "list of tensors": lambda f, m: batch_of(
        image_flux=pa.ListArray.from_arrays(
            pa.array(np.arange(len(f) + 1, dtype=np.int32) * 4), tensor(f.reshape(-1, SIDE, SIDE))
        ),
        image_mask=nested(m),
    ),
    "one flat list": as_flat,
    "float64": lambda f, m: as_struct(f, m, flux=nested(f.astype(np.float64))),
    "mask as bytes": lambda f, m: as_struct(f, m, mask=nested(m.astype(np.uint8))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_same_cutouts_is_observed_alike(layout, stamps):
    expected, flags = observed(IMAGES, as_struct(*stamps))
    batch = LAYOUTS[layout](*stamps)
    got, other_flags = observed(IMAGES, batch)
    assert torch.equal(got["tok_image"].flux_BCHW, expected["tok_image"].flux_BCHW)
    assert torch.equal(got["tok_image"].good_BCHW, expected["tok_image"].good_BCHW)
    assert np.array_equal(flags, other_flags)
    middle = slice((SIDE - WINDOW) // 2, (SIDE + WINDOW) // 2)
    assert np.array_equal(expected["tok_image"].flux_BCHW, stamps[0][..., middle, middle])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_of_a_batch_are_observed_as_its_rows(layout, stamps):
    batch = LAYOUTS[layout](*stamps)
    whole, flags = observed(IMAGES, batch)
    part, part_flags = observed(IMAGES, batch.slice(2, 2))
    assert torch.equal(part["tok_image"].flux_BCHW, whole["tok_image"].flux_BCHW[2:4])
    assert torch.equal(part["tok_image"].good_BCHW, whole["tok_image"].good_BCHW[2:4])
    assert np.array_equal(part_flags, flags[2:4])


@pytest.mark.parametrize(
    "layout", ["struct of lists", "fixed-size lists", "tensor", "one flat list"]
)
@pytest.mark.parametrize("size", [WINDOW, SIDE])
def test_cutouts_that_are_alike_are_a_view_of_arrows_memory(layout, size, stamps):
    batch = LAYOUTS[layout](*stamps).slice(1)
    got, _ = observed(IMAGES, batch, size=size)
    flux = got["tok_image"].flux_BCHW
    column = batch.column(
        "image"
        if "image" in batch.schema.names
        else "image_flux"
        if "image_flux" in batch.schema.names
        else "image_array"
    )
    within = [
        b.address <= flux.data_ptr() < b.address + b.size for b in column.buffers() if b is not None
    ]  # fmt: skip
    assert any(within)


def test_float16_is_read_as_float32(stamps):
    flux = stamps[0].astype(np.float16)
    got, _ = observed(IMAGES, batch_of(image=tensor(flux)), size=SIDE)
    assert np.array_equal(got["tok_image"].flux_BCHW, flux.astype(np.float32))


def test_one_mask_for_all_bands_counts_for_each(stamps):
    flux, mask = stamps
    batch = as_struct(flux, mask, mask=nested(mask[:, 0]))
    got, _ = observed(IMAGES, batch, size=SIDE)
    assert np.array_equal(got["tok_image"].good_BCHW, np.broadcast_to(mask[:, :1], flux.shape))


def test_bands_in_any_order_and_spelling_go_to_their_places(stamps):
    flux, mask = stamps
    turned = names(bands=["DES-Z", "des-i", "DES-R", "des-g"])
    some = pa.array([["DES-Z", "des-i", "DES-R", "des-g"], *[BANDS] * (ROWS - 1)])
    expected, _ = observed(IMAGES, as_struct(flux, mask))
    for band, rows in ((turned, slice(None)), (some, slice(0, 1))):
        planes, marks = flux.copy(), mask.copy()
        planes[rows], marks[rows] = flux[rows, ::-1], mask[rows, ::-1]
        got, _ = observed(IMAGES, as_struct(planes, marks, band=band))
        assert torch.equal(got["tok_image"].flux_BCHW, expected["tok_image"].flux_BCHW)
        assert torch.equal(got["tok_image"].good_BCHW, expected["tok_image"].good_BCHW)


def test_bands_can_be_declared_where_the_file_has_none(stamps):
    flux, _ = stamps
    batch = batch_of(cutout=nested(flux[:, ::-1].copy()))
    declared = {"image.flux": "cutout", "image.band": "=des-z,des-i,des-r,des-g"}
    got, _ = observed(IMAGES, batch, declared, size=SIDE)
    assert np.array_equal(got["tok_image"].flux_BCHW, flux)


def test_a_declared_shape_is_used_for_flat_lists(stamps):
    flux = stamps[0][:, :, :6]
    batch = batch_of(cutout=nested(flux.reshape(ROWS, -1)))
    got, flags = observed(IMAGES, batch, {"image.flux": "cutout[4,6,12]"}, size=SIDE)
    assert np.array_equal(got["tok_image"].flux_BCHW[:, :, 3:9], flux)
    assert (flags & Flag.IMAGE_PADDED).all()
    _, flags = observed(IMAGES, batch, {"image.flux": "cutout[4,7,12]"})
    assert (flags == Flag.IMAGE_MALFORMED).all()


def test_each_bad_row_has_its_reason_and_touches_no_other(stamps):
    flux, mask = stamps
    rows = as_structs(flux, mask).column("image").to_pylist()
    rows[0] = None
    rows[1] = []
    rows[2][1] |= {"flux": rows[2][1]["flux"][:5]}
    rows[3][0] |= {"band": "hsc-y"}
    batch = batch_of(image=pa.array(rows, as_structs(flux, mask).column("image").type))
    expected, _ = observed(IMAGES, as_struct(flux, mask))
    got, flags = observed(IMAGES, batch)
    assert (flags[:4] == [Flag.IMAGE_MISSING, Flag.IMAGE_MISSING, Flag.IMAGE_MALFORMED,
                          Flag.IMAGE_WRONG_BANDS]).all()  # fmt: skip
    assert not got["tok_image"].good_BCHW[:4].any()
    assert torch.equal(got["tok_image"].flux_BCHW[4], expected["tok_image"].flux_BCHW[4])
    assert torch.equal(got["tok_image"].good_BCHW[4], expected["tok_image"].good_BCHW[4])


def test_a_mask_of_another_shape_makes_the_cutout_malformed_and_no_mask_leaves_it(stamps):
    flux, mask = stamps
    marks = mask.tolist()
    marks[0] = None
    marks[1] = [plane[:-1] for plane in marks[1]]
    batch = as_struct(flux, mask, mask=pa.array(marks))
    got, flags = observed(IMAGES, batch, size=SIDE)
    assert got["tok_image"].good_BCHW[0].all()
    assert flags[0] == 0
    assert flags[1] == Flag.IMAGE_MALFORMED


def test_null_pixels_are_bad_pixels(stamps):
    flux, mask = stamps
    planes, marks = flux.tolist(), mask.tolist()
    planes[0][2][3][4] = None
    marks[1][2][3][4] = None
    batch = as_struct(flux, mask, flux=pa.array(planes, nested(flux).type), mask=pa.array(marks))
    got, _ = observed(IMAGES, batch, size=SIDE)
    assert not got["tok_image"].good_BCHW[0, 2, 3, 4]
    assert not got["tok_image"].good_BCHW[1, 2, 3, 4]


def test_no_rows_are_no_trouble(stamps):
    got, flags = observed(IMAGES, as_struct(*stamps).slice(0, 0))
    assert got["tok_image"].flux_BCHW.shape == (0, 4, WINDOW, WINDOW)
    assert flags.shape == (0,)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 13), st.integers(1, 13)),
                    min_size=1, max_size=6),
    offset=st.integers(0, 3),
)  # fmt: skip
def test_stacks_give_back_every_row_of_any_shape(shapes, offset):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    array = pa.array([row.tolist() for row in rows], pa.list_(pa.list_(pa.list_(pa.float32()))))
    offset = min(offset, len(rows) - 1)
    stack = Stacks(array.slice(offset))
    assert stack.shapes.tolist() == [list(shape) for shape in shapes[offset:]]
    for place, row in enumerate(rows[offset:]):
        (piece,) = stack.take(np.array([place]))
        assert np.array_equal(piece[0], row)


@given(st.lists(st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3), max_size=5))
def test_ragged_axes_are_marked(rows):
    stack = Stacks(pa.array(rows, pa.list_(pa.list_(pa.int32()))))
    for row, (count, length) in zip(rows, stack.shapes.tolist(), strict=True):
        lengths = {len(inner) for inner in row}
        assert count == len(row)
        assert length == (lengths.pop() if len(lengths) == 1 else -1 if lengths else 0)


def spectra(flux, ivar, mask, wave):
    parts = {"flux": flux, "ivar": ivar, "mask": mask, "lambda": wave}
    arrays = [pa.array(part) for part in parts.values()]
    return batch_of(spectrum=pa.StructArray.from_arrays(arrays, list(parts)),
                    Z=pa.array([0.5] * len(flux)))  # fmt: skip


def test_spectra_of_one_length_and_of_many_are_observed_alike():
    rng = np.random.default_rng(1)
    wave = np.linspace(4000, 9000, 40, dtype=np.float32)
    flux = rng.normal(size=(3, 40)).astype(np.float32)
    mask = rng.random((3, 40)) < 0.1
    ivar = np.ones((3, 40), np.float32)
    tables = [part.tolist() for part in (flux, ivar, mask, np.tile(wave, (3, 1)))]
    even, flags = observed(SDSS, spectra(*tables))
    tables = [[row[:30] if i == 1 else row for i, row in enumerate(part)] for part in tables]
    ragged, ragged_flags = observed(SDSS, spectra(*tables))
    for name in ("flux_BL", "ivar_BL", "good_BL", "wavelength_BL"):
        left, right = (getattr(o["tok_spectrum_sdss"], name) for o in (even, ragged))
        assert torch.equal(left[[0, 2]], right[[0, 2]])
        assert torch.equal(left[1, :30], right[1, :30])
    assert not ragged["tok_spectrum_sdss"].good_BL[1, 30:].any()
    assert (ragged["tok_spectrum_sdss"].wavelength_BL[1, 30:] == -1).all()
    assert np.array_equal(flags, ragged_flags)
    assert np.array_equal(even["tok_spectrum_sdss"].good_BL, ~mask)


def test_a_spectrum_with_parts_of_different_length_is_malformed_alone():
    wave = np.linspace(4000, 9000, 5).tolist()
    ones, clean = [1.0] * 5, [False] * 5
    batch = spectra([ones, ones, None], [ones, ones[:4], None], [clean, clean, None],
                    [wave, wave, None])  # fmt: skip
    got, flags = observed(DESI, batch)
    assert flags.tolist() == [0, Flag.SPECTRUM_MALFORMED, Flag.SPECTRUM_MISSING]
    assert got["tok_spectrum_desi"].good_BL.sum(1).tolist() == [5, 0, 0]


def test_no_spectrum_at_all_in_a_batch_is_missing():
    kind = pa.list_(pa.float32())
    nothing = pa.nulls(2, pa.struct([(n, kind) for n in ("flux", "ivar", "lambda", "mask")]))
    _, flags = observed(SDSS, batch_of(spectrum=nothing))
    assert (flags == Flag.SPECTRUM_MISSING).all()


def test_a_null_in_the_mask_of_a_spectrum_is_bad():
    wave = np.linspace(4000, 9000, 3).tolist()
    batch = spectra([[1.0] * 3], [[1.0] * 3], [[False, None, False]], [wave])
    got, _ = observed(SDSS, batch)
    assert got["tok_spectrum_sdss"].good_BL.tolist() == [[True, False, True]]


def gaia(coeff, **changes):
    count = len(coeff)
    columns = {"spectral_coefficients": pa.StructArray.from_arrays([pa.array(coeff)], ["coeff"])}
    numbers = {f"phot_{band}_mean_flux": pa.array([1.0] * count) for band in ("g", "bp", "rp")}
    columns["photometry"] = pa.StructArray.from_arrays(list(numbers.values()), list(numbers))
    columns["parallax"] = pa.array([0.1] * count)
    return batch_of(**(columns | changes))


def test_coefficients_are_cut_and_holes_are_missing():
    values = np.arange(1, 111, dtype=np.float32)
    batch = gaia([values.tolist(), None, [0.0] * 110, values[:55].tolist()])
    got, flags = observed(GAIA, batch)
    assert np.array_equal(got["tok_xp_bp"][0], values[:55])
    assert np.array_equal(got["tok_xp_rp"][0], values[55:])
    missing = (flags & Flag.COEFFICIENTS_MISSING) != 0
    assert missing.tolist() == [False, True, True, True]


def test_coefficients_of_another_width_are_refused():
    with pytest.raises(ContractError, match="110 coefficients are needed"):
        observed(GAIA, gaia([[1.0] * 55] * 2))


def test_scalars_in_structs_keep_nulls_as_not_measured():
    flux = pa.array([{"phot_g_mean_flux": 5.0, "phot_bp_mean_flux": None, "phot_rp_mean_flux": 2.0},
                     None])  # fmt: skip
    got, flags = observed(GAIA, gaia([[1.0] * 110] * 2, photometry=flux))
    assert got["tok_flux_g_gaia"][0] == 5
    assert torch.isnan(got["tok_flux_bp_gaia"]).all()
    assert torch.isnan(got["tok_flux_g_gaia"][1])
    assert ((flags & Flag.SCALAR_MISSING) != 0).all()


def test_labels_are_read_apart_from_inputs():
    batch = spectra([[1.0]], [[1.0]], [[False]], [[5000.0]])
    columns = ColumnMap.of(SDSS, batch.schema, where="cat")
    assert observe_row_labels(batch, columns)["tok_z"].tolist() == [0.5]
    assert "tok_z" not in observe_rows(batch, columns, size=WINDOW)[0]


@pytest.mark.parametrize("layout", ["struct of lists", "list of structs", "fixed-size lists"])
def test_what_parquet_gives_back_is_observed_alike(layout, stamps, tmp_path):
    batch = LAYOUTS[layout](*stamps)
    pq.write_table(pa.Table.from_batches([batch]), tmp_path / "a.parquet", row_group_size=2)
    expected, _ = observed(IMAGES, batch)
    first = 0
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        for part in file.iter_batches(2):
            got, _ = observed(IMAGES, part)
            there = expected["tok_image"].flux_BCHW[first : first + len(part)]
            assert torch.equal(got["tok_image"].flux_BCHW, there)
            first += len(part)
    assert first == ROWS

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cdshealpix import to_ring
from cdshealpix.nested import healpix_to_lonlat
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import radec2pix

from skyvec.releases.mmu.release import MmuRelease
from skyvec.releases.mmu.writer import write_mmu_file, write_mmu_release
from skyvec.releases.observing import observe_images
from skyvec_schemas.errors import (
    BandError,
    ConfigurationError,
    ContractError,
    MissingColumnError,
    SkyvecError,
)
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import DESI, GAIA, HSC, LEGACY_SURVEY, SDSS, ScalarColumn, Survey

REAL = Path(__file__).parents[3].parent / "shared" / "data"
SIDE = 8
PLACE = HealpixPixel(4, 1000)
LS, HSC_SMALL = (replace(survey, scalars=survey.scalars[:2]) for survey in (LEGACY_SURVEY, HSC))


def positions(count, pixel=PLACE, seed=0):
    """Places in a pixel: centres of some of its cells, so none is at its border."""
    cells = np.random.default_rng(seed).choice(4**8, count, replace=False)
    lon, lat = healpix_to_lonlat((pixel.pixel << 16) + cells, pixel.order + 8)
    return lon.deg, lat.deg


def stamps(survey, count, seed=0):
    rng = np.random.default_rng(seed)
    bands = list(survey.image.bands)
    mask = rng.random((count, len(bands), SIDE, SIDE)) > 0.1
    columns = {
        "object_id": np.arange(count) + 2**60,
        "image_array": rng.normal(0, 1, (count, len(bands), SIDE, SIDE)).astype(np.float32),
        "image_mask": mask[:, 0] if survey.name == "legacysurvey" else mask,
        "image_band": np.tile(np.array(bands), (count, 1)),
    }
    columns |= {scalar.name: rng.random(count).astype(">f4") for scalar in survey.scalars}
    if survey.name == "legacysurvey":
        columns["object_id"] = np.array([f"0001m002-{row}" for row in range(count)])
    return columns


def spectra(survey, count, length=20, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.linspace(3600, 9800, length, dtype=np.float32)
    columns = {
        "object_id": np.arange(count) + 2**60,
        "spectrum_flux": rng.normal(0, 1, (count, length)).astype(np.float32),
        "spectrum_ivar": rng.uniform(1, 2, (count, length)).astype(np.float32),
        "spectrum_mask": rng.random((count, length)) > 0.9,
        "spectrum_lambda": np.tile(wave, (count, 1)),
        "Z": rng.random(count).astype(">f4"),
    }
    if survey.name == "sdss":
        columns["object_id"] = np.array([f"{row:>22}" for row in range(count)])
        columns["spectrum_lambda"][:, -3:] = -1
        columns["spectrum_ivar"][:, -3:] = 0
    return columns


def release(root, survey, columns, *, folder="healpix=1000", name="001-of-001.hdf5", **options):
    """A file of one folder, opened as a release."""
    count = len(next(iter(columns.values())))
    ra, dec = positions(count)
    columns = {"ra": ra, "dec": dec, **columns}
    columns = {name: values for name, values in columns.items() if values is not None}
    write_mmu_file(root / folder / name, [columns], rows=count, **options)
    return MmuRelease.open(root, survey, window=SIDE)


def read_all(source, objects, wanted=None, rows=4):
    wanted = np.arange(len(objects)) if wanted is None else np.array(wanted, np.int64)
    return list(source.read(objects, wanted, rows=rows))


def together(readings):
    """Token key -> values in the order of ``wanted``."""
    index = np.concatenate([reading.index for reading in readings])
    order = np.argsort(index)
    assert (index[order] == np.arange(len(index))).all()
    out = {"flags": np.concatenate([reading.flags for reading in readings])[order]}
    for key in readings[0].observations:
        parts = [reading.observations[key] for reading in readings]
        if isinstance(parts[0], torch.Tensor):
            out[key] = torch.cat(parts)[order]
            continue
        for name in parts[0].__dataclass_fields__:
            if name != "bands":
                out[name] = torch.cat([getattr(part, name) for part in parts])[order].numpy()
    for key in readings[0].labels:
        out[key] = torch.cat([reading.labels[key] for reading in readings])[order]
    return out


# ---- what is written comes back


@pytest.mark.parametrize("layout", ["contiguous", "object", "mmu"])
@pytest.mark.parametrize("survey", [LS, HSC_SMALL], ids=lambda survey: survey.name)
def test_images_and_scalars_come_back(tmp_path, survey, layout):
    columns = stamps(survey, 11)
    source = release(tmp_path, survey, columns, layout=layout)
    objects = source.objects(PLACE, margin_arcsec=1)
    assert objects.ids.tolist() == columns["object_id"].astype(str).tolist()
    found = together(read_all(source, objects))
    good = columns["image_mask"]
    good = good if good.ndim == 4 else np.repeat(good[:, None], 4, 1)
    np.testing.assert_array_equal(found["flux_BCHW"], columns["image_array"])
    np.testing.assert_array_equal(found["good_BCHW"], good)
    for scalar in survey.scalars:
        np.testing.assert_array_equal(found[scalar.token_key], columns[scalar.name].astype("<f4"))


@pytest.mark.parametrize("survey", [SDSS, DESI], ids=lambda survey: survey.name)
def test_spectra_come_back_with_true_in_the_mask_as_bad_and_the_redshift_as_label(tmp_path, survey):
    columns = spectra(survey, 9)
    source = release(tmp_path, survey, columns)
    objects = source.objects(PLACE, margin_arcsec=1)
    assert objects.ids.tolist() == [str(i).strip() for i in columns["object_id"].tolist()]
    readings = read_all(source, objects)
    found = together(readings)
    np.testing.assert_array_equal(found["flux_BL"], columns["spectrum_flux"])
    np.testing.assert_array_equal(
        found["good_BL"], ~columns["spectrum_mask"] & (columns["spectrum_lambda"] > 0)
    )
    np.testing.assert_array_equal(found["tok_z"], columns["Z"].astype("<f4"))
    assert "tok_z" not in readings[0].observations


def test_gaia_comes_back_with_motions_and_the_id_of_its_own_name(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "source_id": np.arange(6) + 2**62 + 1,
        "coeff": rng.normal(0, 1, (6, 110)).astype(np.float32),
        "pmra": np.arange(6.0),
        "pmdec": -np.arange(6.0),
        **{scalar.name: rng.random(6) for scalar in GAIA.scalars},
    }
    columns["coeff"][2] = 0
    source = release(tmp_path, GAIA, columns)
    objects = source.objects(PLACE, margin_arcsec=1)
    assert objects.ids[0] == str(2**62 + 1)
    assert objects.pm_ra.tolist() == list(range(6))
    assert objects.pm_dec.tolist() == [-n for n in range(6)]
    found = together(read_all(source, objects))
    np.testing.assert_array_equal(found["tok_xp_bp"][[0, 1]], columns["coeff"][:2, :55])
    np.testing.assert_array_equal(found["tok_xp_rp"][[0, 1]], columns["coeff"][:2, 55:])
    assert found["flags"].tolist() == [0, 0, Flag.COEFFICIENTS_MISSING, 0, 0, 0]


def test_a_release_of_many_pixels_gives_each_object_to_its_pixel(tmp_path):
    count = 300
    rng = np.random.default_rng(1)
    columns = stamps(LS, count)
    columns["ra"] = rng.uniform(10, 25, count)
    columns["dec"] = rng.uniform(-5, 10, count)
    write_mmu_release(tmp_path, LS, [columns])
    source = MmuRelease.open(tmp_path, LS, window=SIDE)
    found = []
    for pixel in np.unique(radec2pix(3, columns["ra"], columns["dec"])).tolist():
        objects = source.objects(HealpixPixel(3, pixel), margin_arcsec=0)
        found += objects.ids.tolist()
        flux = together(read_all(source, objects))["flux_BCHW"]
        rows = [int(name.split("-")[1]) for name in objects.ids]
        np.testing.assert_array_equal(flux, columns["image_array"][rows])
    assert sorted(found) == sorted(columns["object_id"])


def test_objects_beyond_the_border_come_with_the_margin(tmp_path):
    columns = stamps(LS, 2)
    dec = np.arange(0, 20, 0.5 / 3600)
    border = int(np.flatnonzero(np.diff(radec2pix(4, np.full(len(dec), 40.0), dec)))[0])
    columns |= {"ra": np.full(2, 40.0), "dec": dec[border : border + 2]}
    pixels = radec2pix(4, columns["ra"], columns["dec"]).tolist()
    write_mmu_release(tmp_path, LS, [columns])
    source = MmuRelease.open(tmp_path, LS, window=SIDE)
    found = {margin: set(source.objects(HealpixPixel(4, pixels[0]), margin_arcsec=margin).ids)
             for margin in (0, 2)}  # fmt: skip
    assert found == {0: {"0001m002-0"}, 2: {"0001m002-0", "0001m002-1"}}


# ---- which rows


@pytest.mark.parametrize("layout", ["contiguous", "mmu"])
def test_chosen_rows_come_once_each_in_file_order_and_never_more_than_asked(tmp_path, layout):
    columns = stamps(LS, 30)
    for part, name in ((slice(0, 13), "001-of-002.hdf5"), (slice(13, 30), "002-of-002.h5")):
        ra, dec = positions(30)
        some = {name: values[part] for name, values in {**columns, "ra": ra, "dec": dec}.items()}
        count = len(some["ra"])
        path = tmp_path / "healpix=1000" / name
        write_mmu_file(path, [some], rows=count, layout=layout)
    source = MmuRelease.open(tmp_path, LS, window=SIDE)
    objects = source.objects(PLACE, margin_arcsec=0)
    wanted = [29, 3, 3, 12, 17, 0, 13]
    readings = read_all(source, objects, wanted, rows=2)
    assert max(len(reading.index) for reading in readings) == 2
    found = together(readings)
    np.testing.assert_array_equal(found["flux_BCHW"], columns["image_array"][wanted])
    rows = np.array(wanted)[np.concatenate([reading.index for reading in readings])]
    assert (np.diff(rows) >= 0).all()


def test_nothing_wanted_reads_nothing(tmp_path):
    source = release(tmp_path, LS, stamps(LS, 3))
    assert read_all(source, source.objects(PLACE, margin_arcsec=0), []) == []


def test_a_pixel_without_a_folder_has_no_objects(tmp_path):
    source = release(tmp_path, GAIA, {"source_id": np.arange(3)})
    objects = source.objects(HealpixPixel(4, 5), margin_arcsec=1)
    assert (len(objects), objects.quarantined) == (0, ())
    assert source.identity(HealpixPixel(4, 5), margin_arcsec=1) == {}
    assert read_all(source, objects) == []


def test_an_empty_file_has_no_objects(tmp_path):
    source = release(tmp_path, LS, stamps(LS, 0))
    assert len(source.objects(PLACE, margin_arcsec=1)) == 0


@pytest.mark.parametrize("folder", ["healpix=1000", "healpix=01000", "spoc/healpix=1000"])
def test_folders_may_be_padded_and_a_level_down(tmp_path, folder):
    source = release(tmp_path, LS, stamps(LS, 3), folder=folder)
    assert len(source.objects(PLACE, margin_arcsec=0)) == 3


def test_files_that_are_being_written_are_not_seen(tmp_path):
    source = release(tmp_path, LS, stamps(LS, 3))
    (tmp_path / "healpix=1000" / ".001-of-001.hdf5.aside.hdf5").write_bytes(b"half")
    (tmp_path / "healpix=1000" / "notes.txt").write_text("x")
    assert MmuRelease.open(tmp_path, LS).files == source.files


# ---- other ways to say the same


def test_bands_of_any_case_and_order_are_put_into_the_surveys_order(tmp_path):
    columns = stamps(HSC_SMALL, 6)
    straight = columns["image_array"].copy(), columns["image_mask"].copy()
    order = [4, 1, 0, 3, 2]
    for rows in (slice(2, 6),):
        for name in ("image_array", "image_mask", "image_band"):
            columns[name][rows] = columns[name][rows][:, order]
    columns["image_band"] = np.char.upper(columns["image_band"])
    source = release(tmp_path, HSC_SMALL, columns)
    found = together(read_all(source, source.objects(PLACE, margin_arcsec=0)))
    np.testing.assert_array_equal(found["flux_BCHW"], straight[0])
    np.testing.assert_array_equal(found["good_BCHW"], straight[1])


@pytest.mark.parametrize("mask", [None, "one for all bands", "for each band", "numbers"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_observations_are_those_of_the_plain_arrays(tmp_path, dtype, mask):
    rng = np.random.default_rng(len(dtype))
    side, window, count = 160, 96, 7
    columns = stamps(HSC_SMALL, count)
    flux = rng.normal(0, 1, (count, 5, side, side)).astype(np.float32)
    flux[1, 2, 80, 81] = np.nan
    flux[2, :, 40:80, 50:100] = np.inf
    flux[3, 4] = 1e4  # the squares of which are too large for half floats
    flux[4, 0, :20] = np.nan  # outside of the window
    good = rng.random((count, 5, side, side)) > 0.001
    good[:2] = True
    good[5, :, :, 70:] = False
    good = good[:, 0] if mask == "one for all bands" else good
    columns |= {"image_array": flux, "image_mask": good if mask else None}
    release(tmp_path, HSC_SMALL, columns)
    with h5py.File(tmp_path / "healpix=1000" / "001-of-001.hdf5", "r+") as file:
        del file["image_array"]
        file["image_array"] = flux = flux.astype(dtype)
        if mask == "numbers":
            del file["image_mask"]
            file["image_mask"] = good.astype(np.uint8)
    source = MmuRelease.open(tmp_path, HSC_SMALL, window=window)
    objects = source.objects(PLACE, margin_arcsec=0)
    wanted, flags = observe_images(
        flux.astype(np.float32), good if mask else None, HSC.image, size=window
    )
    kept = read_all(source, objects, rows=2)
    dropped = [
        (reading.observations["tok_image_hsc"].flux_BCHW.clone(),
         reading.observations["tok_image_hsc"].good_BCHW.clone(), reading.flags)
        for reading in source.read(objects, np.arange(count), rows=2)
    ]  # fmt: skip
    found = together(kept)
    for flux, good, noted in (
        (found["flux_BCHW"], found["good_BCHW"], found["flags"]),
        (*(torch.cat(parts) for parts in zip(*(d[:2] for d in dropped), strict=True)),
         np.concatenate([d[2] for d in dropped])),
    ):  # fmt: skip
        np.testing.assert_array_equal(flux, wanted.flux_BCHW)
        np.testing.assert_array_equal(good, wanted.good_BCHW)
        np.testing.assert_array_equal(noted, flags)
    assert flags[[1, 2]].all()
    assert not flags[0]


def test_image_flux_variable_ids_upper_case_positions_and_no_mask(tmp_path):
    columns = stamps(LS, 3)
    ra, dec = positions(3)
    path = tmp_path / "healpix=1000" / "a.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.create_dataset("TARGETID", data=["b'  7'", "8 ", "9"], dtype=h5py.string_dtype())
        file["RA"], file["DEC"] = ra, dec
        file["image_flux"] = columns["image_array"].astype(np.float16)
        names = columns["image_band"].tolist()
        file.create_dataset("image_band", data=names, dtype=h5py.string_dtype())
        for scalar in LS.scalars:
            file[scalar.name.lower()] = columns[scalar.name]
    source = MmuRelease.open(tmp_path, LS, window=SIDE)
    objects = source.objects(PLACE, margin_arcsec=0)
    assert objects.ids.tolist() == ["7", "8", "9"]
    found = together(read_all(source, objects))
    np.testing.assert_allclose(found["flux_BCHW"], columns["image_array"], atol=2e-3)
    assert found["good_BCHW"].all()


def test_lower_case_positions_win_over_the_catalogs(tmp_path):
    columns = stamps(LS, 3) | {"RA": np.zeros(3), "DEC": np.zeros(3)}
    source = release(tmp_path, LS, columns)
    np.testing.assert_array_equal(source.objects(PLACE, margin_arcsec=0).ra, positions(3)[0])


@pytest.mark.parametrize("window", [4, 6, None, 12])
def test_the_window_is_the_centre_or_padded(tmp_path, window):
    columns = stamps(LS, 3)
    release(tmp_path, LS, columns)
    source = MmuRelease.open(tmp_path, LS, window=window)
    found = together(read_all(source, source.objects(PLACE, margin_arcsec=0)))
    size = window or SIDE
    assert found["flux_BCHW"].shape == (3, 4, size, size)
    inner, edge = slice(max(0, (size - SIDE) // 2), (size - SIDE) // 2 + SIDE), (SIDE - size) // 2
    own = columns["image_array"]
    if size <= SIDE:
        cut = slice(edge, edge + size)
        np.testing.assert_array_equal(found["flux_BCHW"], own[..., cut, cut])
    else:
        np.testing.assert_array_equal(found["flux_BCHW"][..., inner, inner], own)
        assert (found["flags"] & Flag.IMAGE_PADDED).all()


def test_sentinels_become_missing_and_are_flagged(tmp_path):
    survey = replace(
        DESI, scalars=(ScalarColumn(name="EBV", token_key="tok_ebv", unit="mag", missing=(-99,)),)
    )
    columns = spectra(DESI, 3) | {"EBV": np.array([0.1, -99, np.inf], ">f8")}
    source = release(tmp_path, survey, columns)
    found = together(read_all(source, source.objects(PLACE, margin_arcsec=0)))
    assert torch.isnan(found["tok_ebv"]).tolist() == [False, True, True]
    assert (found["flags"] & Flag.SCALAR_MISSING > 0).tolist() == [False, True, True]


# ---- objects in doubt


def test_rows_without_a_place_or_an_id_are_quarantined_one_by_one(tmp_path):
    columns = stamps(LS, 300)
    ra, dec = positions(300)
    ra[3], dec[4], ra[5] = 400, 123.4, np.nan
    ra[6], dec[6] = (
        positions(1, HealpixPixel(4, 2000))[0][0],
        positions(1, HealpixPixel(4, 2000))[1][0],
    )
    columns["object_id"][7] = "  "
    source = release(tmp_path, LS, columns | {"ra": ra, "dec": dec})
    objects = source.objects(PLACE, margin_arcsec=1)
    assert len(objects) == 295
    said = {q.row: (q.object_id, q.reason) for q in objects.quarantined}
    assert said[3] == ("0001m002-3", "ra is 400")
    assert said[4] == ("0001m002-4", "dec is 123.4")
    assert said[5] == ("0001m002-5", "ra is nan")
    assert "lies in healpix=2000" in said[6][1]
    assert said[7] == ("", "has no id")
    assert {q.file for q in objects.quarantined} == {"healpix=1000/001-of-001.hdf5"}
    found = together(read_all(source, objects))
    np.testing.assert_array_equal(
        found["flux_BCHW"], np.delete(columns["image_array"], [3, 4, 5, 6, 7], axis=0)
    )


def test_a_neighbours_quarantine_is_its_own(tmp_path):
    columns = stamps(LS, 3)
    ra, dec = positions(3)
    ra[1] = np.nan
    source = release(tmp_path, LS, columns | {"ra": ra, "dec": dec})
    beside = source.objects(HealpixPixel(4, 1001), margin_arcsec=5)
    assert beside.quarantined == ()
    assert len(source.objects(PLACE, margin_arcsec=5).quarantined) == 1


def test_ids_that_occur_twice_are_handed_on_for_the_join_to_judge(tmp_path):
    columns = stamps(HSC_SMALL, 4)
    columns["object_id"][:] = [1, 2, 2, 3]
    source = release(tmp_path, HSC_SMALL, columns)
    assert source.objects(PLACE, margin_arcsec=0).ids.tolist() == ["1", "2", "2", "3"]


def test_one_row_of_foreign_bands_is_flagged_and_the_others_are_read(tmp_path):
    columns = stamps(LS, 5)
    columns["image_band"][2] = ["des-g", "des-r", "des-r", "des-z"]
    source = release(tmp_path, LS, columns)
    found = together(read_all(source, source.objects(PLACE, margin_arcsec=0)))
    assert (found["flags"] & Flag.IMAGE_WRONG_BANDS > 0).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert not found["good_BCHW"][2].any()
    assert found["good_BCHW"][3].any()


@pytest.mark.parametrize(
    ("name", "values", "flag"),
    [
        ("spectrum_lambda", np.linspace(9800, 3600, 20), Flag.SPECTRUM_MALFORMED),
        ("spectrum_lambda", np.log10(np.linspace(3600, 9800, 20)), Flag.SPECTRUM_MALFORMED),
        ("spectrum_lambda", np.full(20, -1.0), Flag.SPECTRUM_MISSING),
        ("spectrum_ivar", np.zeros(20), Flag.SPECTRUM_UNUSABLE),
        ("spectrum_flux", np.full(20, np.nan), Flag.SPECTRUM_UNUSABLE),
    ],
)
def test_a_spectrum_in_doubt_is_flagged_alone(tmp_path, name, values, flag):
    columns = spectra(DESI, 3)
    columns["spectrum_mask"][:] = False
    columns[name][1] = values
    source = release(tmp_path, DESI, columns)
    found = together(read_all(source, source.objects(PLACE, margin_arcsec=0)))
    assert found["flags"][1] & flag
    assert found["flags"][[0, 2]].tolist() == [0, 0]


# ---- files that are refused


def swapped(ra, dec):
    return dec, ra


def radians(ra, dec):
    return np.radians(ra), np.radians(dec)


@pytest.mark.parametrize(
    ("change", "said"), [(swapped, "swapped"), (radians, "radians")], ids=["swapped", "radians"]
)
def test_positions_of_another_meaning_are_recognized(tmp_path, change, said):
    ra, dec = change(*positions(100))
    source = release(tmp_path, LS, stamps(LS, 100) | {"ra": ra, "dec": dec})
    with pytest.raises(ContractError, match=rf"001-of-001\.hdf5.*100 of 100 rows .*{said}"):
        source.objects(PLACE, margin_arcsec=0)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (int(to_ring(np.array([1000]), 4)[0]), "RING ordering of NSIDE 16"),
        (1000 >> 2, "numbered at NSIDE 8"),
        (1001, "100 of them in that of healpix=1000"),
    ],
)
def test_folders_of_another_numbering_are_recognized(tmp_path, folder, said):
    source = release(tmp_path, LS, stamps(LS, 100), folder=f"healpix={folder}")
    with pytest.raises(ContractError, match=said):
        source.objects(HealpixPixel(4, folder), margin_arcsec=0)


def html(path):
    path.write_text("<!DOCTYPE html><title>404</title>")


def truncated(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def emptied(path):
    path.write_bytes(b"")


def without(name):
    def change(path):
        with h5py.File(path, "r+") as file:
            del file[name]

    return change


def with_values(name, values):
    def change(path):
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = values

    return change


def external_link(path):
    with h5py.File(path.with_name("other.bin"), "w") as other, h5py.File(path, "r+") as file:
        other["ra"] = file["ra"][:]
        del file["ra"]
        file["ra"] = h5py.ExternalLink("other.bin", "ra")


def soft_link_through_external(path):
    external_link(path)
    with h5py.File(path, "r+") as file:
        file.move("ra", "elsewhere")
        file["ra"] = h5py.SoftLink("/elsewhere")


def virtual(path):
    external_link(path)
    with h5py.File(path, "r+") as file:
        del file["ra"]
        layout = h5py.VirtualLayout((5,), "f8")
        layout[:] = h5py.VirtualSource(path.with_name("other.bin"), "ra", (5,))
        file.create_virtual_dataset("ra", layout)


def raw_bytes_elsewhere(path):
    with h5py.File(path, "r+") as file:
        del file["dec"]
        outside = [(str(path.with_name("raw.bin")), 0, 40)]
        file.create_dataset("dec", (5,), "f8", external=outside)


def unknown_filter(path):
    with h5py.File(path, "r+") as file:
        del file["dec"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((5,))
        properties.set_filter(305, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((5,))
        h5py.h5d.create(file.id, b"dec", h5py.h5t.IEEE_F64LE, space, properties)


def groups(path):
    with h5py.File(path, "w") as file:
        file.create_group("8485-1901")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (html, "not an HDF5 file .a web page, 33 bytes"),
        (emptied, "not an HDF5 file .*0 bytes"),
        (truncated, "cannot be opened, .* bytes .*truncated"),
        (without("object_id"), "none of object_id, source_id, TARGETID"),
        (without("ra"), "no dataset 'ra'"),
        (with_values("ra", np.zeros(4)), "'ra': has 4 rows, the id has 5"),
        (with_values("dec", np.array([b"x"] * 5)), "'dec': is .S1"),
        (with_values("object_id", np.arange(5) * 1.0), "'object_id': ids are float64"),
        (external_link, "'ra': lies outside of this file, in other.bin"),
        (soft_link_through_external, "'ra': lies outside of this file"),
        (virtual, "'ra': lies outside of this file"),
        (raw_bytes_elsewhere, "'dec': lies outside of this file"),
        (unknown_filter, "'dec': is compressed by HDF5 filter 305 .*pip install hdf5plugin"),
        (groups, "holds groups .8485-1901"),
        (Path.unlink, "No such file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_file_that_cannot_be_joined_is_one_error(tmp_path, change, said):
    source = release(tmp_path, HSC_SMALL, stamps(HSC_SMALL, 5))
    change(source.files[0])
    with pytest.raises(ContractError, match=said) as caught:
        source.objects(PLACE, margin_arcsec=0)
    assert str(source.files[0]) in caught.value.where
    assert caught.value.remedy


def bands(*names):
    return with_values("image_band", np.tile(np.array(names, "S"), (5, 1)))


@pytest.mark.parametrize(
    ("survey", "change", "kind", "said"),
    [
        (LS, without("FLUX_G"), MissingColumnError, "no dataset 'FLUX_G' .*--without"),
        (LS, without("image_array"), MissingColumnError, "'image_array' or 'image_flux'"),
        (LS, without("image_band"), MissingColumnError, "'image_band'"),
        (LS, bands("des-g", "des-r", "des-i"), BandError, "3 bands for 4 planes"),
        (LS, bands("sdss-u", "des-r", "des-i", "des-z"), BandError, "row 0: bands sdss-u"),
        (LS, with_values("image_band", np.ones((5, 4))), ContractError, "float64, not text"),
        (LS, with_values("image_array", np.zeros((5, 4, 8, 7))), ContractError, r"\(4, 8, 7\)"),
        (LS, with_values("image_array", np.zeros((5, 8, 8))), ContractError, r"not \(bands"),
        (LS, with_values("image_array", np.zeros((4, 4, 8, 8))), ContractError, "has 4 rows"),
        (
            LS,
            with_values("image_mask", np.ones((5, 6, 6))),
            ContractError,
            r"masks have .*\(6, 6\)",
        ),
        (LS, with_values("image_mask", np.full((5, 8, 8), 3)), ContractError, "row 0: .* 0 and 1"),
        (LS, with_values("FLUX_G", np.ones((5, 2))), ContractError, "where one number is needed"),
        (LS, with_values("FLUX_G", np.array([b"1"] * 5)), ContractError, "not numbers"),
        (DESI, without("spectrum_ivar"), MissingColumnError, "'spectrum_ivar'"),
        (DESI, without("spectrum_lambda"), MissingColumnError, "'spectrum_lambda'"),
        (
            DESI,
            with_values("spectrum_lambda", np.ones((5, 19))),
            ContractError,
            "'spectrum_lambda'",
        ),
        (DESI, with_values("spectrum_mask", np.ones((5, 19))), ContractError, "'spectrum_mask'"),
        (GAIA, with_values("coeff", np.ones((5, 55))), ContractError, "110 coefficients"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(tmp_path, survey, change, kind, said):
    columns = {
        "legacysurvey": lambda: stamps(LS, 5),
        "desi": lambda: spectra(DESI, 5),
        "gaia": lambda: {"source_id": np.arange(5), "coeff": np.ones((5, 110), "f4")},
    }[survey.name]()
    source = release(tmp_path, replace(survey, scalars=survey.scalars[:1]), columns)
    change(source.files[0])
    objects = source.objects(PLACE, margin_arcsec=0)
    with pytest.raises(kind, match=said) as caught:
        read_all(source, objects)
    assert str(source.files[0]) in caught.value.where


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("how", ["touched", "replaced", "shortened", "removed"])
def test_a_file_that_changes_under_the_reader_is_an_error(tmp_path, when, how):
    source = release(tmp_path, LS, stamps(LS, 40))
    objects = source.objects(PLACE, margin_arcsec=0)
    path = source.files[0]
    readings = source.read(objects, np.arange(40), rows=8)
    if when == "during":
        next(readings)
    match how:
        case "touched":
            os.utime(path, ns=(1, 1))
        case "replaced":
            status = path.stat()
            path.with_suffix(".new").write_bytes(path.read_bytes())
            path.with_suffix(".new").replace(path)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "shortened":
            os.truncate(path, path.stat().st_size // 2)
        case "removed":
            path.unlink()
    with pytest.raises(ContractError, match=r"001-of-001\.hdf5"):
        list(readings)


@pytest.mark.parametrize(
    ("made", "kind", "said"),
    [
        (None, ConfigurationError, "no such folder"),
        ("Norder=4", ConfigurationError, "no healpix=P folders"),
        ("healpix=3072", ContractError, "no pixel of NSIDE 16"),
        ("healpix=all", ContractError, "no pixel of NSIDE 16"),
    ],
)
def test_a_folder_that_is_no_release_is_refused(tmp_path, made, kind, said):
    root = tmp_path / "release"
    if made:
        (root / made).mkdir(parents=True)
    with pytest.raises(kind, match=said):
        MmuRelease.open(root, LS)


def test_a_file_that_is_a_link_to_outside_is_refused(tmp_path):
    outside = write_mmu_file(tmp_path / "a.hdf5", [stamps(LS, 1)], rows=1)
    folder = tmp_path / "release" / "healpix=1000"
    folder.mkdir(parents=True)
    (folder / "001-of-001.hdf5").symlink_to(outside)
    with pytest.raises(ContractError, match="outside of the release"):
        MmuRelease.open(tmp_path / "release", LS)


# ---- identity


def test_the_identity_survives_a_copy_and_not_a_change(tmp_path):
    columns = stamps(LS, 5)
    same = [release(tmp_path / name, LS, columns) for name in ("a", "b")]
    columns["image_array"][:] += 1
    other = release(tmp_path / "c", LS, columns)
    identities = [source.identity(PLACE, margin_arcsec=1) for source in (*same, other)]
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["healpix=1000/001-of-001.hdf5"]["rows"] == 5


def test_the_digest_of_a_manifest_goes_before_our_own(tmp_path):
    release(tmp_path, LS, stamps(LS, 5))
    name = "healpix=1000/001-of-001.hdf5"
    source = MmuRelease.open(tmp_path, LS, sha256={name: "abc"})
    assert source.identity(PLACE, margin_arcsec=0)[name]["sha256"] == "abc"


# ---- real files


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"real data are not here: {path}")


@pytest.mark.parametrize(
    ("name", "pixel"), [("example_SN2004dt.hdf5", 1113), ("SN2007bc.hdf5", 1772)]
)
@needs(REAL / "mmu_format")
def test_real_files_of_one_object_are_found_in_their_nested_pixel(tmp_path, name, pixel):
    folder = tmp_path / f"healpix={pixel:04d}"
    folder.mkdir()
    (folder / name).write_bytes((REAL / "mmu_format" / name).read_bytes())
    redshift = ScalarColumn(name="redshift", token_key="tok_z", unit="1")
    source = MmuRelease.open(tmp_path, Survey(name="supernovae", scalars=(redshift,)))
    objects = source.objects(HealpixPixel(4, pixel), margin_arcsec=1)
    assert objects.ids.tolist() == [Path(name).stem.removeprefix("example_")]
    assert len(together(read_all(source, objects))["tok_z"]) == 1


@pytest.mark.parametrize(
    ("survey", "name"),
    [(DESI, "desi/desi_pub.hdf5"), (SDSS, "sdss/boss_pub.hdf5"), (SDSS, "sdss/sdss_misc_pub.hdf5")],
)
@needs(REAL / "desi")
def test_real_spectra_are_read_from_a_release_made_of_them(tmp_path, survey, name):
    with h5py.File(REAL / name) as file:
        columns = {name: file[name][:] for name in file}
    # Unlike in the release, ids here are the names of files or text.
    columns["object_id"] = np.arange(len(columns["ra"]))
    if survey is SDSS:
        columns["object_id"] = columns["object_id"].astype("S22")
    write_mmu_release(tmp_path, survey, [columns])
    source = MmuRelease.open(tmp_path, survey)
    seen = 0
    for pixel in source.folders:
        objects = source.objects(HealpixPixel(4, pixel), margin_arcsec=0)
        found = together(read_all(source, objects))
        rows = objects.ids.astype(int)
        assert not (found["flags"] & Flag.SPECTRUM_MALFORMED).any()
        assert found["good_BL"].any(axis=1).all()
        np.testing.assert_array_equal(
            torch.isnan(found["tok_z"]).numpy(), np.isnan(columns["Z"][rows])
        )
        seen += len(objects)
    assert seen == len(columns["ra"])


@needs(REAL / "legacysurvey")
def test_real_legacy_survey_cutouts_are_read(tmp_path):
    with h5py.File(REAL / "legacysurvey" / "ls10_griz_50_nolabel.hdf5") as file:
        columns = {name: file[name][:] for name in file if not name.startswith("image_psf")}
    survey = replace(LEGACY_SURVEY, scalars=())
    write_mmu_release(tmp_path, survey, [columns])
    source = MmuRelease.open(tmp_path, survey)
    seen = 0
    for pixel in source.folders:
        objects = source.objects(HealpixPixel(4, pixel), margin_arcsec=0)
        found = together(read_all(source, objects))
        assert found["flux_BCHW"].shape[1:] == (4, 96, 96)
        assert (found["flags"] & Flag.IMAGE_PADDED).all()
        seen += len(objects)
    assert seen == 50


def test_every_error_says_where_and_what_to_do(tmp_path):
    with pytest.raises(SkyvecError) as caught:
        MmuRelease.open(tmp_path / "none", LS)
    assert str(caught.value).startswith(str(tmp_path / "none"))

"""Spectra from the pipelines' own files: arms joined rightly, unusable fibres named."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.healpix_shim import radec2pix

from skyvec.releases.fits.desi import GRID
from skyvec.releases.fits.spectra import FitsSpectra
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import DESI, LEGACY_SURVEY, SDSS

REAL = Path(__file__).parents[3].parent / "shared" / "data"
WHOLE_SKY = [HealpixPixel(0, number) for number in range(12)]
ARMS = {"B": slice(0, 2751), "R": slice(2700, 5026), "Z": slice(4900, 7781)}
UNIT = "10**-17 erg/(s cm2 Angstrom)"


def read_all(source, *, rows=100):
    """Everything that a source has: id -> (spectrum parts, flags, label), and the quarantined."""
    key = source.survey.spectrum.token_key
    found, refused = {}, []
    for pixel in WHOLE_SKY:
        objects = source.objects(pixel, margin_arcsec=0)
        refused += objects.quarantined
        seen = []
        for part in source.read(objects, np.arange(len(objects)), rows=rows):
            assert len(part.index) <= rows
            seen += part.index.tolist()
            spectra = part.observations[key]
            for j, i in enumerate(part.index.tolist()):
                real = spectra.wavelength_BL[j].numpy() > 0
                found[str(objects.ids[i])] = {
                    "flux": spectra.flux_BL[j].numpy()[real],
                    "ivar": spectra.ivar_BL[j].numpy()[real],
                    "good": spectra.good_BL[j].numpy()[real],
                    "wavelength": spectra.wavelength_BL[j].numpy()[real],
                    "flags": int(part.flags[j]),
                    "z": float(part.labels["tok_z"][j]),
                    "place": (objects.ra[i], objects.dec[i]),
                }
        assert sorted(seen) == list(range(len(objects)))
    return found, refused


def coadd(path, ids=(11, 12), *, arms=ARMS, ra=None, kind=None, status=None, unit=UNIT, **over):
    """A DESI coadd file; flux is the wavelength, plus a tenth in R, and ivar 1, 3 and 1."""
    n = len(ids)
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=np.array(ids)),
            fits.Column("TARGET_RA", "D", array=np.full(n, 30.0) if ra is None else np.array(ra)),
            fits.Column("TARGET_DEC", "D", array=np.linspace(1, 2, n)),
            fits.Column("OBJTYPE", "3A", array=np.array(kind or ["TGT"] * n)),
            fits.Column("COADD_FIBERSTATUS", "J", array=np.array(status or [0] * n)),
        ],
        name="FIBERMAP",
    )
    hdus = [fits.PrimaryHDU(), table]
    for arm, place in arms.items():
        wave = GRID[place] + over.get("offset", 0)
        shift = np.arange(n)[:, None] * 100 + (0.1 if arm == "R" else 0)
        flux = (wave + shift).astype(np.float32)
        ivar = np.full_like(flux, 3 if arm == "R" else 1)
        mask = np.zeros(flux.shape, np.int32)
        if arm == "B":
            mask[0, [5, 2710]], ivar[0, 6], flux[0, 7] = 8, 0, np.nan
        hdus += [fits.ImageHDU(part, name=f"{arm}_{name}") for name, part in
                 {"WAVELENGTH": wave, "FLUX": flux, "IVAR": ivar, "MASK": mask}.items()]  # fmt: skip
        hdus[-4].header["BUNIT"] = "Angstrom"
        hdus[-3].header["BUNIT"] = unit
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def redrock(path, ids, z, warn):
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("TARGETID", "K", array=np.array(ids)),
            fits.Column("Z", "D", array=np.array(z)),
            fits.Column("ZWARN", "K", array=np.array(warn)),
        ],
        name="REDSHIFTS",
    )
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_arms_become_one_spectrum_weighted_where_they_overlap(tmp_path, suffix):
    coadd(tmp_path / f"coadd-1{suffix}")
    found, refused = read_all(FitsSpectra.open(tmp_path, DESI))
    assert not refused
    first, second = found["11"], found["12"]
    assert len(first["wavelength"]) == 7781
    np.testing.assert_allclose(second["wavelength"], GRID, rtol=1e-7)
    both = np.zeros(7781, bool)
    both[2700:2751] = True
    both[4900:5026] = True
    only_r = np.zeros(7781, bool)
    only_r[2751:4900] = True
    lift = second["flux"] - GRID - 100
    np.testing.assert_allclose(lift[both], 0.075, atol=1e-3)
    np.testing.assert_allclose(lift[only_r], 0.1, atol=1e-3)
    np.testing.assert_allclose(lift[~both & ~only_r], 0, atol=1e-3)
    assert set(second["ivar"][both]) == {4}
    assert second["good"].all()
    assert second["flags"] == 0
    # Masked, without weight and NaN are bad; masked in one arm only is left to the other.
    assert np.flatnonzero(~first["good"]).tolist() == [5, 6, 7]
    assert first["ivar"][2710] == 3
    assert abs(first["flux"][2710] - GRID[2710] - 0.1) < 1e-3
    assert first["flags"] == Flag.SPECTRUM_BAD_SAMPLES


def test_sky_fibres_and_bad_positions_are_quarantined_once_with_a_reason(tmp_path):
    coadd(
        tmp_path / "a" / "coadd-1.fits",
        ids=(1, -2, 3, 4, 5),
        ra=[10, 20, 30, np.nan, 400],
        kind=["TGT", "SKY", "TGT", "TGT", "TGT"],
        status=[0, 0, 520, 0, 0],
    )
    source = FitsSpectra.open(tmp_path, DESI)
    found, refused = read_all(source)
    assert list(found) == ["1"]
    reasons = {item.object_id: item.reason for item in refused}
    assert len(refused) == 4
    assert reasons == {
        "-2": "OBJTYPE is 'SKY', not a target",
        "3": "COADD_FIBERSTATUS is 520",
        "4": "its position is (nan, 1.75)",
        "5": "its position is (400.0, 2.0)",
    }
    assert {item.row for item in refused} == {1, 2, 3, 4}
    assert set(source.quarantined) == set(refused)


def test_redshifts_are_labels_where_the_pipeline_does_not_warn(tmp_path):
    coadd(tmp_path / "coadd-7.fits", ids=(1, 2, 3))
    redrock(tmp_path / "redrock-7.fits", [3, 1], [0.3, 0.1], [4, 0])
    coadd(tmp_path / "coadd-8.fits", ids=(9,))
    found, _ = read_all(FitsSpectra.open(tmp_path, DESI))
    z = [found[name]["z"] for name in ("1", "2", "3", "9")]
    np.testing.assert_array_equal(np.float32(z), np.float32([0.1, np.nan, np.nan, np.nan]))


def test_batches_and_order_do_not_change_what_is_read(tmp_path):
    for number in range(3):
        coadd(tmp_path / f"coadd-{number}.fits", ids=range(number * 40, number * 40 + 30))
    source = FitsSpectra.open(tmp_path, DESI)
    whole, _ = read_all(source)
    few, _ = read_all(source, rows=7)
    assert len(whole) == 90
    for name, spectrum in whole.items():
        np.testing.assert_array_equal(spectrum["flux"], few[name]["flux"])
    pixel = next(p for p in WHOLE_SKY if len(source.objects(p, margin_arcsec=0)) > 20)
    objects = source.objects(pixel, margin_arcsec=0)
    wanted = np.array([20, 3, 17])
    (part,) = source.read(objects, wanted, rows=9)
    spectra = part.observations["tok_spectrum_desi"]
    for j, i in enumerate(part.index):
        name = str(objects.ids[wanted[i]])
        np.testing.assert_array_equal(spectra.flux_BL[j].numpy(), whole[name]["flux"])


@pytest.mark.parametrize("order", [3, 7])
def test_every_object_is_in_one_pixel_of_any_order(tmp_path, order):
    ra, dec = np.linspace(29.99, 30.01, 50) % 360, np.linspace(1, 2, 50)
    coadd(tmp_path / "coadd-1.fits", ids=range(50), ra=ra, status=[0, 1] * 25)
    source = FitsSpectra.open(tmp_path, DESI)
    pixels = [HealpixPixel(order, p) for p in np.unique(radec2pix(order, ra, dec)).tolist()]
    parts = [source.objects(pixel, margin_arcsec=0) for pixel in pixels]
    assert sorted(int(name) for part in parts for name in part.ids) == list(range(0, 50, 2))
    refused = [int(item.object_id) for part in parts for item in part.quarantined]
    assert sorted(refused) == list(range(1, 50, 2))
    # With a margin of a tenth of the pixel's side come those of its neighbours, but no quarantined.
    wide = source.objects(pixels[0], margin_arcsec=360)
    assert set(parts[0].ids) <= set(wide.ids)
    assert len(wide.quarantined) == len(parts[0].quarantined)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"offset": 0.3}, "off the grid of DESI"),
        ({"unit": "erg/(s cm2 Angstrom)"}, "its flux is in"),
        ({"arms": {}}, "no HDU ..._WAVELENGTH"),
        ({"offset": 5000}, "off the grid"),
        ({"offset": -1600}, "off the grid"),
    ],
)
def test_a_file_that_is_not_as_desi_writes_it_is_refused_by_name(tmp_path, change, says):
    path = coadd(tmp_path / "coadd-1.fits", **change)
    with pytest.raises(ContractError, match=says) as refused:
        read_all(FitsSpectra.open(tmp_path, DESI))
    assert refused.value.where == str(path)


@pytest.mark.parametrize("share", [0.6, 0.01, 0])
def test_a_truncated_file_is_one_error_that_names_it(tmp_path, share):
    path = coadd(tmp_path / "coadd-1.fits")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ContractError) as refused:
        read_all(FitsSpectra.open(tmp_path, DESI))
    assert refused.value.where == str(path)


def test_a_missing_column_or_table_is_one_error(tmp_path):
    path = coadd(tmp_path / "coadd-1.fits")
    with fits.open(path, mode="update", memmap=False) as hdus:
        hdus["FIBERMAP"].header["TTYPE1"] = "TARGET"
    with pytest.raises(MissingColumnError, match="no column TARGETID"):
        FitsSpectra.open(tmp_path, DESI)
    with fits.open(path, mode="update", memmap=False) as hdus:
        hdus["FIBERMAP"].header["EXTNAME"] = "FIBRES"
    with pytest.raises(ContractError, match="no HDU FIBERMAP"):
        FitsSpectra.open(tmp_path, DESI)


def test_a_file_that_changes_under_the_reader_is_one_error(tmp_path):
    path = coadd(tmp_path / "coadd-1.fits")
    source = FitsSpectra.open(tmp_path, DESI)
    coadd(path, ids=(11, 12, 13))
    with pytest.raises(ContractError, match="changed since"):
        read_all(source)
    path.unlink()
    with pytest.raises(ContractError, match="gone"):
        read_all(source)


def test_the_identity_of_a_pixel_follows_its_files(tmp_path):
    coadd(tmp_path / "coadd-1.fits", ids=(1,))
    redrock(tmp_path / "redrock-1.fits", [1], [0.1], [0])
    coadd(tmp_path / "coadd-2.fits", ids=(2,), ra=[200.0])
    source = FitsSpectra.open(tmp_path, DESI)
    names = [set(source.identity(pixel, margin_arcsec=1)) for pixel in WHOLE_SKY]
    assert {"coadd-1.fits", "redrock-1.fits"} in names
    assert {"coadd-2.fits"} in names
    assert set() in names


def test_what_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(ContractError, match="no coadd-"):
        FitsSpectra.open(tmp_path, DESI)
    with pytest.raises(ConfigurationError, match="has no spectra"):
        FitsSpectra.open(tmp_path, LEGACY_SURVEY)
    mine = replace(DESI, spectrum=replace(DESI.spectrum, token_key="tok_mine"))
    with pytest.raises(ConfigurationError, match="not known how it stores"):
        FitsSpectra.open(tmp_path, mine)


def spec(path, *, samples=60, ra=150.0, warning=0, spec_id="   1064104649075746816", **over):
    """An SDSS file of one object, by the layout of DR18."""
    primary = fits.PrimaryHDU()
    primary.header.update(RA=99.0, DEC=9.0, BUNIT="1E-17 erg/cm^2/s/Ang", VACUUM=True)
    primary.header.update(over.get("header", {}))
    ivar, mask = np.ones(samples), np.zeros(samples, np.int32)
    ivar[3], mask[4] = 0, 1 << 16
    spectrum = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=np.arange(samples) + 1.0),
            fits.Column("loglam", "E", array=3.6 + 1e-4 * np.arange(samples)),
            fits.Column("ivar", "E", array=ivar),
            fits.Column("and_mask", "J", array=mask),
        ],
        name="COADD",
    )
    columns = [
        fits.Column("PLUG_RA", "D", array=[ra]),
        fits.Column("PLUG_DEC", "D", array=[20.0]),
        fits.Column("Z", "E", array=[0.25]),
        fits.Column("ZWARNING", "J", array=[warning]),
        fits.Column("PLATE", "J", array=[945]),
        fits.Column("MJD", "J", array=[52652]),
        fits.Column("FIBERID", "J", array=[470]),
        fits.Column("RUN2D", "6A", array=[over.get("run2d", "26")]),
        fits.Column("OBJTYPE", "16A", array=[over.get("kind", "GALAXY")]),
    ]
    if spec_id is not None:
        columns.append(fits.Column("SPECOBJID", "22A", array=[spec_id]))
    about = fits.BinTableHDU.from_columns(columns, name=over.get("about", "SPECOBJ"))
    fits.HDUList([primary, spectrum, about]).writeto(path)
    return path


def test_an_sdss_file_gives_the_object_at_its_fibre(tmp_path):
    spec(tmp_path / "spec-0945-52652-0470.fits")
    found, refused = read_all(FitsSpectra.open(tmp_path, SDSS))
    assert not refused
    (name, spectrum) = found.popitem()
    assert name == "1064104649075746816"
    assert spectrum["place"] == (150.0, 20.0)
    np.testing.assert_allclose(
        spectrum["wavelength"], 10 ** (3.6 + 1e-4 * np.arange(60)), rtol=2e-6
    )
    assert np.flatnonzero(~spectrum["good"]).tolist() == [3, 4]
    assert spectrum["z"] == 0.25


@pytest.mark.parametrize(
    ("run2d", "about", "expected"),
    [
        # The first is the SPECOBJID that SDSS gives to this plate, date and fibre.
        ("26", "SPECOBJ", "1064104649075746816"),
        ("v5_7_2", "SPALL", str((945 << 50) | (470 << 38) | (2652 << 24) | (702 << 10))),
    ],
)
def test_an_id_that_is_absent_is_packed_as_sdss_does(tmp_path, run2d, about, expected):
    spec(tmp_path / "spec-1.fits", spec_id=None, run2d=run2d, about=about)
    found, _ = read_all(FitsSpectra.open(tmp_path, SDSS))
    assert list(found) == [expected]


def test_sdss_spectra_of_unequal_length_share_a_batch(tmp_path):
    spec(tmp_path / "spec-1.fits", samples=60, spec_id="1")
    spec(tmp_path / "spec-2.fits", samples=45, spec_id="2", warning=4)
    spec(tmp_path / "spec-3.fits", spec_id="3", warning=1)
    spec(tmp_path / "spec-4.fits", spec_id="4", warning=128)
    spec(tmp_path / "spec-5.fits", spec_id="5", kind="SKY")
    found, refused = read_all(FitsSpectra.open(tmp_path, SDSS))
    assert {name: len(s["flux"]) for name, s in found.items()} == {"1": 60, "2": 45}
    assert np.isnan(found["2"]["z"])
    assert {item.object_id: item.reason for item in refused} == {
        "3": "a sky fibre",
        "4": "its fibre was not plugged in",
        "5": "a sky fibre",
    }


def test_wavelengths_in_air_and_other_units_are_refused(tmp_path):
    path = spec(tmp_path / "spec-1.fits", header={"VACUUM": False})
    with pytest.raises(ContractError, match="in air"):
        read_all(FitsSpectra.open(path, SDSS))
    path.unlink()
    spec(path, header={"BUNIT": "Jy"})
    with pytest.raises(ContractError, match="its flux is in 'Jy'"):
        read_all(FitsSpectra.open(path, SDSS))


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"no real data at {path}")


RAW = REAL / "desi" / "raw_fits"
PUBLIC = REAL / "desi" / "desi_pub.hdf5"


@needs(RAW)
@needs(PUBLIC)
def test_real_coadds_agree_with_the_multimodal_universe():
    found, refused = read_all(FitsSpectra.open(RAW, DESI), rows=2)
    assert len(refused) == 3
    with h5py.File(PUBLIC) as release:
        columns = {name: release[name][:] for name in release}
    ids = columns["object_id"].astype(str).tolist()
    assert set(found) == {"39633345008634465", "39627866878511337", "39627866878514741"}
    for name, spectrum in found.items():
        row, good = ids.index(name), spectrum["good"]
        np.testing.assert_array_equal(good, ~columns["spectrum_mask"][row])
        for part in ("flux", "ivar"):
            theirs = columns[f"spectrum_{part}"][row][good]
            np.testing.assert_allclose(spectrum[part][good], theirs, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(spectrum["wavelength"], columns["spectrum_lambda"][row])
        assert spectrum["place"] == (columns["ra"][row], columns["dec"][row])
    np.testing.assert_allclose(found["39633345008634465"]["z"], 0.36874, atol=1e-5)


@needs(RAW)
def test_real_arms_agree_where_they_overlap():
    with fits.open(RAW / "coadd-4-80613-thru20210324.fits") as hdus:
        arms = {arm: [np.array(hdus[f"{arm}_{part}"].data) for part in ("FLUX", "IVAR")]
                for arm in "BRZ"}  # fmt: skip
    (spectrum,) = (s for name, s in read_all(FitsSpectra.open(RAW, DESI))[0].items()
                   if name == "39633345008634465")  # fmt: skip
    alone = ~np.isin(np.arange(7781), [*range(2700, 2751), *range(4900, 5026)])
    for arm, place in ARMS.items():
        mine = alone[place]
        np.testing.assert_array_equal(spectrum["flux"][place][mine], arms[arm][0][0][mine])
        np.testing.assert_array_equal(spectrum["ivar"][place][mine], arms[arm][1][0][mine])

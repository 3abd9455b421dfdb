"""Stamps from survey images: the right pixels, masked where nothing was observed."""

import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from hats.pixel_math.healpix_pixel import HealpixPixel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyvec.releases.fits.images import FitsImages, boxes
from skyvec.releases.fits.names import IMAGE_FILES, LEGACY_BAD_BITS
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import GAIA, HSC, LEGACY_SURVEY

REAL = Path(__file__).parents[3].parent / "shared" / "data"
W = 16


def survey_of(bands, whole=LEGACY_SURVEY):
    kept = {key: codec for key, codec in whole.image.bands.items() if key[-1] in bands}
    return replace(whole, image=replace(whole.image, bands=MappingProxyType(kept)), scalars=())


GR = survey_of("gr")


def tan(ra=40.0, dec=1.0, *, shape=(60, 80), scale=0.262, angle=0.0, mirrored=False, swapped=False):
    """A tangent plane centred on a position, north up and east left unless told otherwise."""
    step, turn = scale / 3600, np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    cd = rotation @ np.diag([step if mirrored else -step, step])
    header = fits.Header()
    order = (2, 1) if swapped else (1, 2)
    for axis, name, value in zip(order, ("RA---TAN", "DEC--TAN"), (ra, dec), strict=True):
        header[f"CTYPE{axis}"], header[f"CRVAL{axis}"] = name, value
        header[f"CRPIX{axis}"] = shape[1 if axis == 1 else 0] / 2 + 0.5
    for row, axis in enumerate(order):
        for column in (1, 2):
            header[f"CD{axis}_{column}"] = cd[row, column - 1]
    header["RADESYS"] = "ICRS"
    return header


def write(path, pixels, header, *, kind="plain", **cards):
    header = header.copy()
    header.update(cards)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fz":
        hdu = fits.CompImageHDU(
            pixels, header, compression_type="GZIP_1", quantize_level=0, tile_shape=(10, 10)
        )
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(f"{path}.fz")
    else:
        fits.PrimaryHDU(pixels, header).writeto(f"{path}.gz" if kind == "gz" else path)


def brick(
    folder, name="0400p010", *, bands="gr", header=None, shape=(60, 80), kind="plain", **over
):
    """Files of one Legacy Surveys brick; returns image (band, row, column), invvar and maskbits."""
    header = tan(shape=shape) if header is None else header
    rng = np.random.default_rng(sum(map(ord, name)))
    flux = rng.normal(0, 1, (len(bands), *shape)).astype(np.float32)
    invvar = over.get("invvar", np.ones_like(flux))
    bits = over.get("bits", np.zeros(shape, np.int16))
    for i, band in enumerate(bands):
        stem = folder / name[:3] / name / f"legacysurvey-{name}"
        image = stem.with_name(f"{stem.name}-image-{band}.fits")
        write(image, flux[i], header, kind=kind, BUNIT="nanomaggy", MAGZERO=22.5)
        write(stem.with_name(f"{stem.name}-invvar-{band}.fits"), invvar[i], header, kind=kind)
    write(stem.with_name(f"{stem.name}-maskbits.fits"), bits, header, kind=kind)
    return flux


def sky(header, x, y):
    """Position (degrees) of pixels."""
    wcs = WCS(header)
    ra, dec = wcs.all_pix2world(np.atleast_1d(x).astype(float), np.atleast_1d(y), 0,
                                ra_dec_order=True)  # fmt: skip
    return ra % 360, dec


def stamps(source, ra, dec, *, rows=1000):
    """Flux, good and flags in the order of the positions."""
    ra, dec = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    parts = list(source.read_at(ra, dec, rows=rows))
    assert all(len(part.index) <= rows for part in parts)
    index = np.concatenate([part.index for part in parts])
    assert sorted(index) == list(range(len(ra)))
    images = [part.observations[source.survey.image.token_key] for part in parts]
    back = np.argsort(index)
    return (
        np.concatenate([i.flux_BCHW.numpy() for i in images])[back],
        np.concatenate([i.good_BCHW.numpy() for i in images])[back],
        np.concatenate([part.flags for part in parts])[back],
    )


@pytest.mark.parametrize(
    "header",
    [
        tan(),
        tan(359.9999, -30),
        tan(0.0, 89.999),
        tan(123, 45, angle=33),
        tan(200, -60, mirrored=True),
        tan(10, 10, swapped=True, angle=120),
    ],
    ids=["plain", "ra-0", "pole", "rotated", "mirrored", "dec-first"],
)
def test_a_star_lands_in_the_centre_pixel(tmp_path, header):
    brick(tmp_path, header=header)
    (path,) = tmp_path.rglob("*image-r.fits")
    with fits.open(path, mode="update", memmap=False) as hdus:
        hdus[0].data[:] = 0
        hdus[0].data[25, 51] = 7
    ra, dec = sky(header, 51.3, 24.6)
    flux, good, flags = stamps(FitsImages.open(tmp_path, GR, window=W), ra, dec)
    assert flux[0, 1, W // 2, W // 2] == 7
    assert flux[0, 1].sum() == 7
    assert good.all()
    assert flags[0] == 0


@pytest.fixture(scope="module", params=["plain", "fz", "gz"])
def one_brick(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    header = tan(0.001, 62, angle=12)
    invvar = np.ones((2, 60, 80), np.float32)
    invvar[0, 30:40, :30] = 0
    bits = np.zeros((60, 80), np.int16)
    bits[5:9, 60:] = 1 << 11
    bits[20:23, 20:23] = 1 << 12  # GALAXY is no defect
    flux = brick(folder, header=header, kind=request.param, invvar=invvar, bits=bits)
    good = (invvar > 0) & (bits & (1 << 11) == 0)
    return FitsImages.open(folder, GR, window=W), header, flux, good


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(
    st.lists(st.tuples(st.floats(-0.4, 79.4), st.floats(-0.4, 59.4)), min_size=1, max_size=9),
    st.integers(1, 5),
)
def test_stamps_are_those_of_cutout2d_bit_by_bit(one_brick, places, rows):
    source, header, image, observed = one_brick
    x, y = np.array(places).T
    flux, good, flags = stamps(source, *sky(header, x, y), rows=rows)
    found = source.index.locate(*sky(header, x, y))
    for i in range(len(x)):
        # A position within 1e-6 of the border of two pixels may fall to either.
        nearest = (int(np.floor(found.x[i] + 0.5)), int(np.floor(found.y[i] + 0.5)))
        assert np.abs(np.array(nearest) - (x[i], y[i])).max() < 0.5 + 1e-6
        inside = Cutout2D(np.ones(image.shape[1:]), nearest, W, mode="partial", fill_value=0).data
        for band in range(2):
            pixels = Cutout2D(image[band], nearest, W, mode="partial", fill_value=0).data
            clean = Cutout2D(observed[band], nearest, W, mode="partial", fill_value=False).data
            np.testing.assert_array_equal(flux[i, band], pixels)
            if not flags[i] & (Flag.IMAGE_UNUSABLE | Flag.IMAGE_MISSING):
                np.testing.assert_array_equal(good[i, band], clean)
        assert bool(flags[i] & Flag.IMAGE_PADDED) == (not inside.all())
        assert bool(flags[i] & Flag.IMAGE_BAD_PIXELS) == (not good[i].all())


def test_at_the_edge_of_a_tile_the_rest_is_masked(tmp_path):
    header = tan()
    flux = brick(tmp_path)
    found, good, flags = stamps(FitsImages.open(tmp_path, GR, window=W), *sky(header, 2, 30))
    assert flags[0] & Flag.IMAGE_PADDED
    assert not good[0, :, :, :6].any()
    assert good[0, :, :, 6:].all()
    assert (found[0, :, :, :6] == 0).all()
    np.testing.assert_array_equal(found[0, :, :, 6:], flux[:, 22:38, :10])


def test_a_corner_with_less_than_half_of_the_stamp_observed_is_unusable(tmp_path):
    brick(tmp_path)
    _, good, flags = stamps(FitsImages.open(tmp_path, GR, window=W), *sky(tan(), 0, 0))
    assert flags[0] & Flag.IMAGE_UNUSABLE
    assert not good.any()


def test_of_two_tiles_the_one_farther_from_its_edge_is_read(tmp_path):
    left, right = tan(), tan()
    right["CRPIX1"] -= 50  # the same grid, 50 pixels on
    first, second = brick(tmp_path, "a", header=left), brick(tmp_path, "b", header=right)
    source = FitsImages.open(tmp_path, GR, window=W)
    x = np.array([62.0, 68.0])  # 17 pixels and 11 from the first edge, 12 and 18 from the second
    flux, _, flags = stamps(source, *sky(left, x, [30, 30]))
    np.testing.assert_array_equal(flux[0], first[:, 22:38, 54:70])
    np.testing.assert_array_equal(flux[1], second[:, 22:38, 10:26])
    assert not (flags & Flag.IMAGE_PADDED).any()
    assert source.index.locate(*sky(left, x, [30, 30])).tile.tolist() == [0, 1]


def test_off_all_tiles_and_off_the_sky_the_image_is_missing(tmp_path):
    brick(tmp_path)
    source = FitsImages.open(tmp_path, GR, window=W)
    ra, dec = [220.0, 40.0, np.nan, 40.0, 400.0], [-1.0, 1.0, 1.0, 1.1, 1.0]
    flux, good, flags = stamps(source, ra, dec, rows=2)
    missing, invalid = Flag.IMAGE_MISSING, Flag.IMAGE_MISSING | Flag.POSITION_INVALID
    assert flags.tolist() == [missing, 0, invalid, missing, invalid]
    assert good[1].all()
    assert not good[[0, 2, 3, 4]].any()
    assert (flux[[0, 2, 3, 4]] == 0).all()


def test_where_nothing_was_observed_the_image_is_missing(tmp_path):
    invvar = np.ones((2, 60, 80), np.float32)
    invvar[:, :, 40:] = 0
    brick(tmp_path, invvar=invvar)
    _, good, flags = stamps(
        FitsImages.open(tmp_path, GR, window=W), *sky(tan(), [20, 60], [30, 30])
    )
    assert flags.tolist() == [0, Flag.IMAGE_MISSING]
    assert not good[1].any()


def test_nan_and_bad_bits_are_masked_in_their_band_and_in_all(tmp_path):
    bits = np.zeros((60, 80), np.int16)
    bits[30, 40] = 1 << LEGACY_BAD_BITS["SATUR_G"]
    bits[31, 40] = 1  # NPRIMARY: another brick's pixel, as good as any
    brick(tmp_path, bits=bits)
    (path,) = tmp_path.rglob("*image-g.fits")
    with fits.open(path, mode="update", memmap=False) as hdus:
        hdus[0].data[29, 40] = np.nan
    _, good, flags = stamps(FitsImages.open(tmp_path, GR, window=W), *sky(tan(), 40, 30))
    assert np.argwhere(~good[0]).tolist() == [[0, 7, 8], [0, 8, 8], [1, 8, 8]]
    assert flags[0] & Flag.IMAGE_BAD_PIXELS
    assert not flags[0] & (Flag.IMAGE_UNUSABLE | Flag.IMAGE_PADDED)


def hsc_patch(folder, *, band="I", patch="9813-4,5", fluxmag0=10**10.8, sat_bit=1, unit=None):
    header = tan(shape=(60, 80), scale=0.168)
    pixels = np.arange(4800, dtype=np.float32).reshape(60, 80)
    mask, variance = np.zeros((60, 80), np.int32), np.ones((60, 80), np.float32)
    mask[30, 40] = 1 << sat_bit
    variance[30, 41], variance[30, 42] = 0, np.inf
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(pixels, header, "IMAGE"),
            fits.ImageHDU(mask, header, "MASK"), fits.ImageHDU(variance, header, "VARIANCE")]  # fmt: skip
    if fluxmag0:
        hdus[0].header["FLUXMAG0"] = fluxmag0
    if unit:
        hdus[1].header["BUNIT"] = unit
    hdus[2].header["MP_SAT"] = sat_bit
    path = folder / f"calexp-HSC-{band}-{patch}.fits"
    fits.HDUList(hdus).writeto(path)
    return pixels


HSC_I = survey_of("i", HSC)


@pytest.mark.parametrize("sat_bit", [1, 5])
def test_hsc_patches_hold_image_mask_and_variance_in_one_file(tmp_path, sat_bit):
    pixels = hsc_patch(tmp_path, sat_bit=sat_bit)
    source = FitsImages.open(tmp_path, HSC_I, window=W)
    flux, good, _ = stamps(source, *sky(tan(scale=0.168), 40, 30))
    np.testing.assert_array_equal(flux[0, 0], pixels[22:38, 32:48])
    assert np.argwhere(~good[0, 0]).tolist() == [[8, 8], [8, 9], [8, 10]]


@pytest.mark.parametrize(
    ("fluxmag0", "unit", "factor"),
    [(10**10, None, 10**0.8), (None, "nJy", 10**-1.76), (None, None, 1), (10**10.8, "adu", 1)],
    ids=["fluxmag0", "njy", "nothing-said", "counts"],
)
def test_flux_is_brought_to_the_zero_point_of_the_survey(tmp_path, fluxmag0, unit, factor):
    pixels = hsc_patch(tmp_path, fluxmag0=fluxmag0, unit=unit)
    flux, _, _ = stamps(FitsImages.open(tmp_path, HSC_I, window=W), *sky(tan(scale=0.168), 40, 30))
    np.testing.assert_allclose(flux[0, 0], pixels[22:38, 32:48] * factor, rtol=1e-5)


def edit(folder, pattern, **cards):
    (path,) = folder.rglob(pattern)
    with fits.open(path, mode="update", memmap=False) as hdus:
        hdus[0].header.update(cards)
    return path


@pytest.mark.parametrize(
    ("pattern", "cards", "says"),
    [
        ("*image-r*", {"BUNIT": "erg"}, "no unit of flux"),
        ("*image-r*", {"MAGZERO": 25.0}, "means zero point 22.5"),
        ("*image-r*", {"CRPIX1": 41.5}, "1.00 pixels off"),
        ("*image-g*", {"CD1_1": -0.168 / 3600}, "pixels of 0.168 x 0.262"),
        ("*image-g*", {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, "no right ascension"),
        ("*image-g*", {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no right ascension"),
        ("*image-g*", {"RADESYS": "FK4", "EQUINOX": 1950.0}, "no right ascension"),
    ],
)
def test_a_header_that_contradicts_is_refused_by_name(tmp_path, pattern, cards, says):
    brick(tmp_path)
    path = edit(tmp_path, pattern, **cards)
    with pytest.raises(ContractError, match=says) as refused:
        stamps(FitsImages.open(tmp_path, GR, window=W), *sky(tan(), 40, 30))
    assert refused.value.where == str(path)


def test_counts_without_a_zero_point_are_no_nanomaggies(tmp_path):
    brick(tmp_path)
    path = edit(tmp_path, "*image-r*", BUNIT="adu")
    with fits.open(path, mode="update") as hdus:
        del hdus[0].header["MAGZERO"]
    with pytest.raises(ContractError, match="'adu' without a zero point"):
        stamps(FitsImages.open(tmp_path, GR, window=W), *sky(tan(), 40, 30))


def test_a_missing_band_is_one_error_or_leaves_the_tile_out(tmp_path):
    brick(tmp_path, "a")
    brick(tmp_path, "b", header=tan(41))
    (lost,) = tmp_path.rglob("legacysurvey-b-image-r.fits")
    lost.unlink()
    with pytest.raises(ContractError, match=r"no legacysurvey-b-image-r.fits \(image, des-r\)"):
        FitsImages.open(tmp_path, GR, window=W)
    files = replace(IMAGE_FILES["legacysurvey"], skip_incomplete=True)
    source = FitsImages.open(tmp_path, GR, window=W, files=files)
    _, _, flags = stamps(source, [40, 41], [1, 1])
    assert flags.tolist() == [0, Flag.IMAGE_MISSING]


def test_planes_of_another_shape_are_refused_by_name(tmp_path):
    brick(tmp_path)
    (path,) = tmp_path.rglob("*maskbits.fits")
    path.unlink()
    write(path, np.zeros((60, 79), np.int16), tan())
    with pytest.raises(ContractError, match="79 x 60 pixels where") as refused:
        stamps(FitsImages.open(tmp_path, GR, window=W), *sky(tan(), 40, 30))
    assert refused.value.where == str(path)


@pytest.mark.parametrize("kind", ["plain", "fz", "gz"])
@pytest.mark.parametrize("share", [0.5, 0.02, 0])
def test_a_truncated_file_is_one_error_that_names_it(tmp_path, kind, share):
    brick(tmp_path, kind=kind, shape=(200, 80))
    (path,) = tmp_path.rglob("*image-r.fits*")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ContractError) as refused:
        stamps(FitsImages.open(tmp_path, GR, window=W), [40], [1])
    assert refused.value.where == str(path)


def test_a_web_page_saved_as_fits_is_one_error(tmp_path):
    brick(tmp_path)
    (path,) = tmp_path.rglob("*image-g.fits")
    path.write_text("<html>404 Not Found</html>" * 400)
    with pytest.raises(ContractError, match="cannot be read as FITS"):
        FitsImages.open(tmp_path, GR, window=W)


def test_a_tile_that_is_there_twice_is_refused(tmp_path):
    brick(tmp_path / "north")
    brick(tmp_path / "south")
    with pytest.raises(ContractError, match="the same image as"):
        FitsImages.open(tmp_path, GR, window=W)


def test_a_file_that_goes_while_reading_is_one_error(tmp_path):
    brick(tmp_path)
    source = FitsImages.open(tmp_path, GR, window=W)
    (path,) = tmp_path.rglob("*invvar-r.fits")
    path.unlink()
    with pytest.raises(ContractError, match="gone"):
        stamps(source, [40], [1])


def test_what_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(ConfigurationError, match="no such"):
        FitsImages.open(tmp_path / "nowhere", GR)
    with pytest.raises(ContractError, match="no file is named like legacysurvey-"):
        FitsImages.open(tmp_path, GR)
    with pytest.raises(ConfigurationError, match="has no images"):
        FitsImages.open(tmp_path, GAIA)
    with pytest.raises(ConfigurationError, match="not known how mine names"):
        FitsImages.open(tmp_path, replace(GR, name="mine"))


def test_the_identity_of_a_pixel_follows_its_files(tmp_path):
    brick(tmp_path, "a")
    brick(tmp_path, "b", header=tan(220, -1))
    source = FitsImages.open(tmp_path, GR, window=W)
    wide = [source.identity(HealpixPixel(0, p), margin_arcsec=5) for p in range(12)]
    assert sum("legacysurvey-a-image-g.fits" in files for files in wide) >= 1
    assert sum("legacysurvey-b-image-g.fits" in files for files in wide) < 12
    pixel = HealpixPixel(0, next(p for p in range(12) if "legacysurvey-a-maskbits.fits" in wide[p]))
    before = source.identity(pixel, margin_arcsec=5)
    path = edit(tmp_path, "legacysurvey-a-image-r.fits", NCOMBINE=7)
    after = source.identity(pixel, margin_arcsec=5)
    assert {name for name in before if before[name] != after[name]} == {path.name}


@given(
    st.lists(st.tuples(st.integers(-8, 3000), st.integers(-8, 3000)), min_size=1, max_size=60),
    st.integers(1, 10),
)
def test_every_stamp_is_in_one_box_and_no_box_is_too_tall(corners, most):
    top, left = np.array(corners).T
    groups = list(boxes(top, left, window=96, most=most))
    assert sorted(np.concatenate(groups)) == list(range(len(top)))
    assert all(len(group) <= most and np.ptp(top[group]) <= 1024 for group in groups)


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"no real data at {path}")


BRICK = REAL / "legacysurvey" / "legacysurvey-0959p805-image-g.fits.fz"


@needs(BRICK)
def test_a_real_brick_of_the_legacy_surveys():
    files = replace(IMAGE_FILES["legacysurvey"], invvar=None, mask=None)
    source = FitsImages.open(BRICK.parent, survey_of("g"), files=files)
    assert [tile.name for tile in source.index.tiles] == ["0959p805"]
    x, y = np.array([1000.2, 3590, 200, 24.7]), np.array([2.0, 3590, 300, 1500.4])
    with fits.open(BRICK) as hdus:
        image, header = hdus[1].data, hdus[1].header
        ra, dec = sky(header, x, y)
    flux, _, flags = stamps(source, ra, dec)
    for i in range(len(x)):
        place = (round(x[i]), round(y[i]))
        cut = Cutout2D(image, place, 96, mode="partial", fill_value=0).data
        np.testing.assert_array_equal(flux[i, 0], cut)
    assert np.flatnonzero(flags & Flag.IMAGE_PADDED).tolist() == [0, 1, 3]


STARS = REAL / "hsc" / "hyrax_hsc_i_stars"


@needs(STARS)
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_real_stars_of_hsc_are_brightest_in_the_centre():
    files = replace(
        IMAGE_FILES["hsc"],
        image="{tile}-cutout-{band}-8279-pdr2_wide.fits[IMAGE]",
        variance=None,
        mask=None,
    )
    source = FitsImages.open(STARS, HSC_I, window=W, files=files)
    with fits.open(STARS / "star_cat_correct.fits") as hdus:
        ra, dec = (np.array(hdus[1].data[name], float) for name in ("ira", "idec"))
    flux, good, flags = stamps(source, ra, dec, rows=4)
    assert len(source.index.tiles) == len(ra) == 10
    assert not flags.any()
    assert good.all()
    brightest = flux[:, 0].reshape(10, -1).argmax(axis=1)
    assert (np.abs(np.array(divmod(brightest, W)) - W // 2) <= 1).all()


def test_the_code_of_the_page_on_fits_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "fits.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 3
    brick(tmp_path / "bricks", bands="griz", header=tan(shape=(150, 160)), shape=(150, 160))
    table = fits.BinTableHDU.from_columns(
        [fits.Column("TARGETID", "K", array=[7]), fits.Column("OBJTYPE", "3A", array=["SKY"]),
         fits.Column("COADD_FIBERSTATUS", "J", array=[0]),
         fits.Column("TARGET_RA", "D", array=[1.0]), fits.Column("TARGET_DEC", "D", array=[2.0])],
        name="FIBERMAP",
    )  # fmt: skip
    (tmp_path / "coadds").mkdir()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "coadds" / "coadd-1.fits")
    (tmp_path / "page.py").write_text("\n".join(code))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("page.py")
    assert capsys.readouterr().out.splitlines() == [
        "[2] (1, 4, 96, 96) [1]",
        "[1 0] (2, 4, 96, 96) [0 0]",
        "7 OBJTYPE is 'SKY', not a target",
    ]


def test_the_page_names_the_bits_that_are_bad():
    assert sorted(LEGACY_BAD_BITS.values()) == [*range(1, 8), 11, 14, 15]

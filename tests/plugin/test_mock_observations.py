"""What the surveys of the mock sky record agrees with the truth, and with one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skyvec.mock.camera import DECAM
from skyvec.mock.fibres import FAILED_WARNING, desi_batch, sdss_batch
from skyvec.mock.footprints import flaws_of, held_by
from skyvec.mock.gaia import gaia_batch
from skyvec.mock.galaxies import EXTINCTION
from skyvec.mock.hsc import COUNTS, HSC_CAMERA, NO_DATA, hsc_batch
from skyvec.mock.legacy import DEEPER, expose
from skyvec.mock.legacy_release import LISTED, legacy_batch
from skyvec.mock.objects import describe
from skyvec.mock.render import Component, render
from skyvec.mock.sed import band_fluxes
from skyvec.mock.sky import Change, Footprint, Kind, draw_sky

SEED, SIZE, CORE = 3, 96, 64


@pytest.fixture(scope="module")
def sky():
    return draw_sky(40, seed=SEED, footprint=Footprint(), stars=14, quasars=6)


@pytest.fixture(scope="module")
def objects(sky):
    return describe(sky, seed=SEED)


@pytest.fixture(scope="module")
def flaws(sky):
    return flaws_of(sky, seed=SEED)


@pytest.fixture(scope="module")
def unscathed(flaws):
    nothing = {name: np.zeros_like(getattr(flaws, name)) for name in flaws.__dataclass_fields__}
    return replace(flaws, **nothing)


@pytest.fixture(scope="module")
def legacy(objects, unscathed):
    return legacy_batch(objects, unscathed, seed=SEED, size=SIZE, core=CORE, first=10)


@pytest.fixture(scope="module")
def hsc(objects, unscathed):
    return hsc_batch(objects, unscathed, seed=SEED, size=SIZE, core=CORE)


def changed(sky, change):
    return replace(sky, change=np.full(len(sky), change, np.int8))


def matched(image, ivar, *, fwhm, components, camera):
    """Best scale of a noiseless model in an image, and its error."""
    model = render(
        components, psf_fwhm=[fwhm], size=image.shape[-1], pixel_scale=camera.pixel_scale
    )[0]
    norm = (model**2 * ivar).sum()
    return (image * model * ivar).sum() / norm, norm**-0.5


def test_columns_of_the_legacy_survey_are_those_of_the_multimodal_universe(legacy, sky):
    count = len(sky)
    expected = {
        "object_id": ("S16", ()),
        "image_array": ("<f4", (4, SIZE, SIZE)),
        "image_ivar": ("<f4", (4, SIZE, SIZE)),
        "image_mask": ("?", (SIZE, SIZE)),
        "image_band": ("S5", (4,)),
        "image_psf_fwhm": ("<f4", (4,)),
        "image_scale": ("<f4", (4,)),
        "image_rgb": ("u1", (SIZE, SIZE, 3)),
        "blobmodel": ("u1", (SIZE, SIZE, 3)),
        "object_mask": ("u1", (SIZE, SIZE)),
        "catalog_FLUX_G": ("<f4", (LISTED,)),
        "catalog_X": ("<i4", (LISTED,)),
        "gid": ("<i8", ()),
        "RA": (">f8", ()),
        "ra": ("<f8", ()),
        "FLUX_W4": (">f4", ()),
        "EBV": (">f4", ()),
        "SHAPE_E1": (">f4", ()),
        "MASKBITS": (">i2", ()),
    }
    for name, (dtype, shape) in expected.items():
        assert legacy[name].dtype == np.dtype(dtype), name
        assert legacy[name].shape == (count, *shape), name
    assert legacy["gid"].tolist() == list(range(10, 10 + count))
    assert legacy["image_band"][0].tolist() == [b"des-g", b"des-r", b"des-i", b"des-z"]


def test_columns_of_hsc_are_those_of_the_multimodal_universe(hsc, sky):
    assert hsc["object_id"].dtype == np.int64
    assert hsc["image_mask"].shape == (len(sky), 5, SIZE, SIZE)
    assert hsc["image_band"][0].tolist() == [f"hsc-{band}".encode() for band in "grizy"]
    assert (hsc["image_scale"] == np.float32(0.168)).all()
    for band in "grizy":
        for name in (
            f"a_{band}",
            f"{band}_cmodel_mag",
            f"{band}_cmodel_magerr",
            f"{band}_extendedness_value",
            f"{band}_sdssshape_shape12",
            f"{band}_sdssshape_psf_shape11",
        ):
            assert hsc[name].dtype == np.float32, name


def test_the_middle_of_a_large_cutout_is_that_of_the_main_catalog(objects, legacy):
    first = (SIZE - CORE) // 2
    middle = (slice(None), *[slice(first, first + CORE)] * 2)
    for row in range(0, len(objects), 7):
        small = expose(objects, row, seed=SEED, size=CORE, core=CORE).cutout()
        difference = np.abs(legacy["image_array"][row][middle] - small.flux) * np.sqrt(small.ivar)
        # Sources beyond the edge of the small one still shine into it.
        assert np.median(difference) < 0.02
        assert (difference < 0.5).mean() > 0.97
        assert np.array_equal(legacy["image_mask"][row][middle[1:]], small.mask[0])


def test_both_images_hold_the_flux_of_the_truth_at_their_zero_points(objects, legacy, hsc):
    pulls = []
    for row in range(len(objects)):
        for flux, image, ivar, fwhm, camera, bands in (
            (
                objects.legacy,
                legacy["image_array"],
                legacy["image_ivar"],
                legacy["image_psf_fwhm"],
                DECAM,
                4,
            ),
            (
                objects.hsc,
                hsc["image_array"] / COUNTS,
                np.where(hsc["image_mask"], hsc["image_ivar"], 0) * COUNTS**2,
                hsc["image_psf_fwhm"] / 1.13,
                HSC_CAMERA,
                5,
            ),
        ):
            band = 2
            own = [
                replace(c, flux=c.flux[band : band + 1])
                for c in objects.components(row, flux, bands=bands)
            ]
            scale, error = matched(
                image[row, band],
                ivar[row, band],
                fwhm=float(fwhm[row, band]),
                components=own,
                camera=camera,
            )
            pulls.append((scale, error, camera is DECAM))
    pulls = np.array(pulls)
    # The model alone explains the image but for neighbours and, in HSC, 50 mas of astrometry.
    for survey in (True, False):
        scale = pulls[pulls[:, 2] == survey][:, 0]
        assert np.median(scale) == pytest.approx(1, abs=0.02)
    ls, other = pulls[pulls[:, 2] == 1][:, 0], pulls[pulls[:, 2] == 0][:, 0]
    assert np.median(np.abs(ls / other - 1)) < 0.05


def test_the_sum_of_a_compact_lonely_image_is_its_flux(objects):
    row = int(np.flatnonzero(objects.is_point)[0])
    for light, camera, bands in ((objects.legacy, DECAM, 4), (objects.hsc, HSC_CAMERA, 5)):
        image = render(
            objects.components(row, light, bands=bands),
            psf_fwhm=list(camera.psf_fwhm),
            size=SIZE,
            pixel_scale=camera.pixel_scale,
        )
        assert image.sum(axis=(1, 2)) == pytest.approx(light.total[row, :bands], rel=5e-3)


def test_catalog_fluxes_agree_with_the_truth_within_their_errors(objects, legacy, hsc):
    bands = ("G", "R", "I", "Z")
    measured = np.stack([legacy[f"FLUX_{band}"] for band in bands], axis=1)
    ivar = np.stack([legacy[f"FLUX_IVAR_{band}"] for band in bands], axis=1)
    truth = objects.legacy.total[:, :4]
    pull = (measured - truth) / np.sqrt(1 / ivar + (0.01 * truth) ** 2)
    assert pull.std() == pytest.approx(1, abs=0.15)
    assert np.abs(pull.mean()) < 0.2
    mag = np.stack([hsc[f"{band}_cmodel_mag"] for band in "grizy"], axis=1)
    expected = 22.5 - 2.5 * np.log10(objects.hsc.total)
    assert np.median(np.abs(mag - expected)) < 0.03


def test_extinction_of_both_surveys_is_that_of_one_dust(objects, legacy, hsc):
    assert legacy["EBV"] == pytest.approx(objects.ebv, rel=1e-6)
    assert hsc["a_i"] == pytest.approx(1.633 * objects.ebv, rel=1e-5)
    transmission = 10 ** (-0.4 * objects.ebv * EXTINCTION[1])
    assert legacy["MW_TRANSMISSION_R"] == pytest.approx(transmission, rel=1e-6)


def test_wise_gives_no_flux_without_a_detection(legacy):
    gone = {band: np.isnan(legacy[f"FLUX_{band}"]) for band in ("G", "Z", "W1", "W3", "W4")}
    assert not gone["G"].any()
    assert not gone["Z"].any()
    assert gone["W1"].mean() < 0.5 < gone["W4"].mean()
    for band in ("W3", "W4"):
        assert ((legacy[f"FLUX_IVAR_{band}"] == 0) == gone[band]).all()
        seen = legacy[f"FLUX_{band}"][~gone[band]]
        assert (seen * np.sqrt(legacy[f"FLUX_IVAR_{band}"][~gone[band]]) >= 1.99).all()


def test_the_little_catalog_lists_the_object_and_its_neighbours_faintest_first(legacy, objects):
    own = legacy["FLUX_I"].astype(np.float32)
    listed = legacy["catalog_FLUX_I"]
    assert (listed == own[:, None]).any(axis=1).all()
    counts = (legacy["catalog_TYPE"] > 0).sum(axis=1)
    assert counts.min() >= 1
    for row, count in enumerate(counts):
        assert (np.diff(listed[row, :count]) >= 0).all()
        assert (listed[row, count:] == 0).all()
    middle = legacy["object_mask"][:, SIZE // 2, SIZE // 2]
    assert (middle > 0).mean() > 0.9
    points = objects.is_point
    assert set(legacy["TYPE"][points].tolist()) == {b"PSF"}


def test_pictures_are_brightest_where_the_object_is(legacy):
    bright = legacy["FLUX_R"] > 20
    assert bright.any()
    middle = slice(SIZE // 2 - 2, SIZE // 2 + 2)
    inner = legacy["image_rgb"][bright][:, middle, middle].mean()
    assert inner > 2 * legacy["image_rgb"][bright].mean()


def test_a_cut_exposure_leaves_pixels_without_weight(objects, flaws):
    part = replace(
        flaws,
        legacy_cut=np.full(len(objects), 0.25),
        hsc_cut=np.full(len(objects), 0.25),
        hsc_no_band=np.zeros_like(flaws.hsc_no_band),
    )
    few = describe(objects.sky[:2], seed=SEED)
    part = replace(part, **{n: getattr(part, n)[:2] for n in part.__dataclass_fields__})
    legacy = legacy_batch(few, part, seed=SEED, size=SIZE, core=CORE, first=0)
    assert (~legacy["image_mask"]).mean() == pytest.approx(0.25, abs=0.02)
    lost = (legacy["image_ivar"] == 0).all(axis=1)
    assert lost.mean() == pytest.approx(0.25, abs=0.01)
    assert not legacy["image_mask"][lost].any()
    hsc = hsc_batch(few, part, seed=SEED, size=SIZE, core=CORE)
    lost = hsc["image_ivar"] == NO_DATA
    assert lost.mean() == pytest.approx(0.25, abs=0.02)
    assert not hsc["image_mask"][lost].any()
    assert (hsc["image_array"][lost] == 0).all()


def test_a_band_without_exposures_has_no_psf_and_no_magnitude(objects, unscathed):
    missing = np.zeros_like(unscathed.hsc_no_band)
    missing[:, 4] = True
    few = describe(objects.sky[:2], seed=SEED)
    part = replace(unscathed, hsc_no_band=missing)
    part = replace(part, **{n: getattr(part, n)[:2] for n in part.__dataclass_fields__})
    hsc = hsc_batch(few, part, seed=SEED, size=SIZE, core=CORE)
    assert (hsc["image_psf_fwhm"][:, 4] == 0).all()
    assert (hsc["image_psf_fwhm"][:, :4] > 0).all()
    assert np.isinf(hsc["y_cmodel_mag"]).all()
    assert np.isfinite(hsc["z_cmodel_mag"]).all()
    assert not hsc["image_mask"][:, 4].any()
    assert np.isnan(hsc["y_sdssshape_shape11"]).all()


def test_galsim_draws_the_same_hsc_images(objects):
    galsim = pytest.importorskip("galsim", reason="GalSim, the reference renderer, is missing")
    row = int(np.argmax(objects.legacy.bulge_fraction * ~objects.is_point))
    fwhm, size, scale = 0.6, 160, HSC_CAMERA.pixel_scale
    own = objects.components(row, objects.hsc, bands=5)
    found = render(own, psf_fwhm=[fwhm] * 5, size=size, pixel_scale=scale)
    psf = galsim.Moffat(beta=3.5, fwhm=fwhm)
    expected = np.zeros((5, size, size))
    for part in own:
        radius = part.half_light_radius * np.sqrt(part.axis_ratio)
        profile = (
            galsim.Exponential(half_light_radius=radius)
            if part.profile == "exponential"
            else galsim.DeVaucouleurs(
                half_light_radius=radius, trunc=8 * radius, flux_untruncated=True
            ).withFlux(1.0)
        )
        angle = (part.position_angle + np.pi / 2) * galsim.radians
        scene = galsim.Convolve(profile.shear(q=part.axis_ratio, beta=angle), psf)
        image = scene.drawImage(nx=size, ny=size, scale=scale).array
        expected += part.flux[:, None, None] * image
    assert np.abs(found - expected).max(axis=(1, 2)) == pytest.approx(0, abs=0.03 * expected.max())
    assert found.sum(axis=(1, 2)) == pytest.approx(expected.sum(axis=(1, 2)), rel=0.01)


def test_adaptive_moments_are_those_that_galsim_measures(objects, hsc):
    galsim = pytest.importorskip("galsim", reason="GalSim, the reference renderer, is missing")
    ratios = []
    for row in np.flatnonzero(~objects.is_point)[:25]:
        fwhm = float(hsc["image_psf_fwhm"][row, 2]) / 1.13
        image = render(
            objects.components(row, objects.hsc, bands=5)[:2],
            psf_fwhm=[fwhm] * 5,
            size=160,
            pixel_scale=0.168,
        )[2]
        found = galsim.hsm.FindAdaptiveMom(galsim.Image(image.astype(float), scale=1))
        area = np.sqrt(
            hsc["i_sdssshape_shape11"][row] * hsc["i_sdssshape_shape22"][row]
            - hsc["i_sdssshape_shape12"][row] ** 2
        )
        ratios.append(np.sqrt(area) / (found.moments_sigma * 0.168))
    assert np.median(ratios) == pytest.approx(1, abs=0.06)
    assert np.abs(np.log(ratios)).max() < 0.4
    point = render(
        [Component(profile="point", flux=np.ones(1))],
        psf_fwhm=[0.6],
        size=96,
        pixel_scale=0.168,
    )[0]
    sigma = galsim.hsm.FindAdaptiveMom(galsim.Image(point.astype(float), scale=1)).moments_sigma
    assert sigma * 0.168 * 2.3548 == pytest.approx(1.13 * 0.6, rel=0.01)


def test_hsc_moments_lean_as_the_galaxy_does(objects, hsc):
    flat = (objects.disc_axis_ratio < 0.5) & ~objects.is_point & (objects.disc_radius > 0.5)
    xx, yy = hsc["i_sdssshape_shape11"][flat], hsc["i_sdssshape_shape22"][flat]
    xy = hsc["i_sdssshape_shape12"][flat]
    angle = objects.position_angle[flat]
    assert np.corrcoef(yy - xx, np.cos(2 * angle))[0, 1] > 0.5
    assert np.corrcoef(-xy, np.sin(2 * angle))[0, 1] > 0.5


def test_desi_spectra_have_the_flux_of_the_catalog(objects, unscathed):
    columns = desi_batch(objects, unscathed, seed=SEED)
    shares = objects.fibre_fractions("desi")
    wave = columns["spectrum_lambda"][0]
    assert columns["spectrum_flux"].shape == (len(objects), 7781)
    assert wave[[0, -1]] == pytest.approx([3600, 9824])
    inside = (wave > 5800) & (wave < 7100)
    bright = np.flatnonzero(objects.legacy.total[:, 1] * shares > 3)
    assert len(bright) > 5
    for row in bright:
        sed = objects.seds()[row]
        model = np.interp(wave[inside], sed.wavelength, sed.flux) * shares[row]
        good = ~columns["spectrum_mask"][row, inside]
        seen = np.median(columns["spectrum_flux"][row, inside][good])
        assert seen == pytest.approx(np.median(model[good]), rel=0.12)
    assert columns["FLUX_R"] == pytest.approx(objects.legacy.total[:, 1], rel=1e-5)


def test_the_light_of_spectra_is_that_of_the_photometry(objects):
    found = np.array([band_fluxes(sed)[:4] for sed in objects.seds()])
    assert found == pytest.approx(objects.legacy.total[:, :4], rel=0.01)


def test_desi_and_sdss_agree_on_the_redshift_and_differ_in_their_errors(objects, unscathed):
    desi = desi_batch(objects, unscathed, seed=SEED)
    sdss = sdss_batch(objects, unscathed, seed=SEED, length=3883)
    assert sdss["object_id"].dtype == "S22"
    assert sdss["Z"].dtype == ">f4"
    assert desi["Z"] == pytest.approx(objects.redshift, abs=1e-3)
    assert sdss["Z"] == pytest.approx(objects.redshift, abs=1e-3)
    pulls = (desi["Z"] - objects.redshift) / desi["ZERR"]
    assert pulls.std() == pytest.approx(1, abs=0.3)
    assert not np.allclose(desi["Z"], sdss["Z"], atol=1e-9)
    assert (desi["ZWARN"] == 0).all()
    assert sdss["SPECTROFLUX"].shape == (len(objects), 5)


def test_sdss_rows_are_filled_up_as_in_the_multimodal_universe(objects, unscathed):
    columns = sdss_batch(objects, unscathed, seed=SEED, length=3883)
    wave = columns["spectrum_lambda"]
    lengths = (wave > 0).sum(axis=1)
    assert wave.shape == (len(objects), 3883)
    assert len(np.unique(lengths)) > 5
    assert lengths.max() <= 3880
    for row, length in enumerate(lengths):
        assert (np.diff(wave[row, :length]) > 0).all()
        assert (wave[row, length:] == -1).all()
        assert columns["spectrum_mask"][row, length:].all()
        assert (columns["spectrum_ivar"][row, length:] == 0).all()
        last = columns["spectrum_flux"][row, length - 1]
        assert (columns["spectrum_flux"][row, length:] == last).all()


@pytest.mark.parametrize("survey", ["desi", "sdss"])
def test_a_failed_fibre_has_no_weight_and_says_so(objects, unscathed, survey):
    failed = np.arange(len(objects)) == 3
    flaws = replace(unscathed, **{f"{survey}_failed": failed})
    if survey == "desi":
        columns = desi_batch(objects, flaws, seed=SEED)
        warning = columns["ZWARN"]
    else:
        columns = sdss_batch(objects, flaws, seed=SEED, length=3880)
        warning = columns["ZWARNING"]
    assert columns["spectrum_mask"][3].all()
    assert not columns["spectrum_mask"][[2, 4]].all(axis=1).any()
    assert (columns["spectrum_ivar"][3] == 0).all()
    assert warning.tolist() == [FAILED_WARNING if is_bad else 0 for is_bad in failed]


def test_targets_of_other_lists_have_no_photometry(objects, unscathed):
    absent = np.arange(len(objects)) == 1
    columns = desi_batch(objects, replace(unscathed, desi_no_photometry=absent), seed=SEED)
    for name in ("FLUX_G", "FLUX_IVAR_Z", "FIBERFLUX_R"):
        assert ((columns[name] == -99) == absent).all(), name


def test_gaia_lists_its_sources_as_the_truth_has_them(objects, unscathed):
    held = np.flatnonzero(held_by(objects, seed=SEED)["gaia"])
    few = describe(objects.sky[held], seed=SEED)
    flaws = replace(
        unscathed, **{n: getattr(unscathed, n)[held] for n in unscathed.__dataclass_fields__}
    )
    columns = gaia_batch(few, flaws, seed=SEED)
    assert columns["source_id"].dtype == np.int64
    assert columns["coeff"].shape == columns["coeff_error"].shape == (len(held), 110)
    assert columns["phot_g_mean_mag"] == pytest.approx(few.gaia_g, abs=0.05)
    error = columns["parallax_error"]
    assert np.abs((columns["parallax"] - few.parallax) / error).max() < 5
    assert np.abs((columns["pmra"] - few.pm_ra) / error).max() < 5
    assert (columns["coeff_error"] > 0).all()
    alone = replace(flaws, gaia_position_only=np.ones(len(held), dtype=bool))
    lost = gaia_batch(few, alone, seed=SEED)
    assert np.isnan(lost["parallax"]).all()
    assert np.isfinite(lost["ra"]).all()
    stars = few.sky.kind == Kind.STAR
    assert np.isfinite(columns["teff_gspphot"][stars]).all()


def test_a_change_touches_what_it_says_and_nothing_else(objects, unscathed):
    few = objects.sky[:3]
    flaws = replace(
        unscathed, **{n: getattr(unscathed, n)[:3] for n in unscathed.__dataclass_fields__}
    )

    def all_surveys(change):
        found = describe(changed(few, change), seed=SEED)
        images = {"seed": SEED, "size": 64, "core": 64}
        return {
            "legacy": legacy_batch(found, flaws, **images, first=0),
            "hsc": hsc_batch(found, flaws, **images),
            "desi": desi_batch(found, flaws, seed=SEED),
            "sdss": sdss_batch(found, flaws, seed=SEED, length=3880),
        }

    before = all_surveys(Change.NONE)
    differing = {
        change: {
            name
            for survey, columns in all_surveys(change).items()
            for name, values in columns.items()
            if values.tobytes() != before[survey][name].tobytes()
        }
        for change in Change
    }
    assert not differing[Change.NONE]
    assert {"FLUX_R", "i_cmodel_mag"} <= differing[Change.PHOTOMETRY]
    assert not {"image_array", "spectrum_flux"} & differing[Change.PHOTOMETRY]
    assert {"image_array", "image_ivar", "FLUX_R", "i_cmodel_mag"} <= differing[Change.DEPTH]
    assert not {"spectrum_flux", "object_id", "ra"} & differing[Change.DEPTH]
    assert {"spectrum_flux", "spectrum_ivar", "Z"} <= differing[Change.SPECTRUM]
    assert not {"image_array", "FLUX_R", "object_id"} & differing[Change.SPECTRUM]
    deeper = all_surveys(Change.DEPTH)["legacy"]["image_ivar"][:, 1].max(axis=(1, 2))
    shallow = before["legacy"]["image_ivar"][:, 1].max(axis=(1, 2))
    assert deeper / shallow == pytest.approx(10 ** (0.8 * DEEPER), rel=0.02)


def test_cutouts_of_another_parity_than_the_catalog_are_drawn_too(objects):
    for size in (65, 63, 32):
        cutout = expose(objects, 0, seed=SEED, size=size, core=CORE).cutout()
        assert cutout.flux.shape == (4, size, size)

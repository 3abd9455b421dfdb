"""What the linter says about broken releases, and that it is silent about odd but healthy ones."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cdshealpix.nested
import cdshealpix.ring
import h5py
import numpy as np
import pytest
from astropy import units as u
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.lint.lint import CHECKS, lint, lint_release
from skyvec.releases.lint.raw_sample import RawFile, RawRelease
from skyvec_schemas.errors import ContractError
from skyvec_schemas.survey_columns import DESI, GAIA, HSC, LEGACY_SURVEY, SDSS

DATA = Path(__file__).parents[4] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real data in ../shared/data")
DES = np.array(["des-g", "des-r", "des-i", "des-z"])
SCALARS = {s.name: np.linspace(0.05, 0.4, 12) for s in LEGACY_SURVEY.scalars}


def raw(arrays=None, keys=None, *, rows=None, path="release/healpix=1/001-of-001.hdf5", **more):
    arrays, keys = dict(arrays or {}), dict(keys or {})
    counts = [len(v) for v in (*arrays.values(), *keys.values())]
    return RawFile(
        path=path, rows=rows or max(counts, default=0), columns=(),
        keys={k: np.asarray(v) for k, v in keys.items()},
        arrays={k: tuple(v) for k, v in arrays.items()}, **more,
    )  # fmt: skip


@lru_cache
def _stamps(n, size, seed, bands, noise, offset, faint):
    return make_stamps(
        n, size=size, seed=seed, bands=bands, noise=noise, offset=offset, faint=faint
    )


def stamps(n=12, *, size=96, seed=0, bands=4, noise=0.02, offset=(0, 0), faint=1.0):
    flux, total = _stamps(n, size, seed, bands, noise, offset, faint)
    return flux.copy(), total.copy()


def make_stamps(n, *, size, seed, bands, noise, offset, faint):
    """Galaxies of many fluxes, colours and sizes on noise; and the flux of each in each band."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    total = rng.lognormal(3.5, 0.8, (n, 1)) * 10 ** rng.uniform(0, 0.4, (n, bands)).cumsum(1)
    total = total * faint
    size_of = rng.uniform(1.5, 5, (n, 1, 1, 1))
    profile = np.exp(-(np.hypot(x - offset[0], y - offset[1])[None, None] / size_of))
    profile = profile / profile.sum(axis=(2, 3), keepdims=True)
    flux = total[..., None, None] * profile + rng.normal(0, noise, (n, bands, size, size))
    return flux.astype(np.float32), total


def images(flux, *, bands=DES, scale=0.262, mask=None, ivar=None):
    n = len(flux)
    good = np.ones(flux.shape, bool) if mask is None else mask
    ivar = np.full(flux.shape, 2500, np.float32) if ivar is None else ivar
    return {"image.flux": flux, "image.mask": good, "image.ivar": ivar,
            "image.band": [bands] * n, "image.scale": np.full((n, len(bands)), scale)}  # fmt: skip


def survey_file(n=12, *, factor=1.0, keys=None, arrays=None, **options):
    flux, total = stamps(n, **options)
    fluxes = {f"FLUX_{b}": total[:, i] for i, b in enumerate("GRIZ")}
    scalars = {name: np.resize(values, n) for name, values in SCALARS.items()}
    return raw(
        images(flux * factor) | (arrays or {}),
        positions(n) | scalars | fluxes | (keys or {}),
        pixel=PIXEL,
    )


PIXEL = HealpixPixel(4, 1112)
CENTRE = [float(angle.deg[0]) for angle in cdshealpix.nested.healpix_to_lonlat([PIXEL.pixel], 4)]


def positions(n=12, **changes):
    rng = np.random.default_rng(3)
    keys = {"id": 10**15 + np.arange(n), "ra": CENTRE[0] + rng.uniform(-1, 1, n),
            "dec": CENTRE[1] + rng.uniform(-0.5, 0.5, n)}  # fmt: skip
    return keys | changes


def spectra(n=6, *, length=7781, seed=0, level=1.0, ivar=4.0, lines=False):
    rng = np.random.default_rng(seed)
    wave = np.tile(np.linspace(3600, 9824, length, dtype=np.float32), (n, 1))
    weight = np.full(wave.shape, ivar, np.float32)
    weight[:, ::40] = 0
    flux = level + rng.normal(0, ivar**-0.5, wave.shape)
    if lines:
        flux[:, length // 3 : length // 3 + 5] += 1e4
    return {"spectrum.flux": flux.astype(np.float32), "spectrum.ivar": weight,
            "spectrum.mask": weight == 0, "spectrum.lambda": wave}  # fmt: skip


def spectrum_file(changes=None, **options):
    parts = spectra(**options)
    return raw(parts | (changes or {}), positions(len(parts["spectrum.flux"])))


def found(file, survey=LEGACY_SURVEY, **options):
    files = file if isinstance(file, list) else [file]
    return lint("src", survey, files, **options)


def only(findings, topic):
    """The one finding of a topic; no other check may speak louder than a note."""
    loud = [f for f in findings if f.severity != "note" or f.topic == topic]
    assert [f.topic for f in loud] == [topic], [(f.topic, f.what) for f in loud]
    return loud[0]


def silent(findings):
    assert not findings, [(f.severity, f.topic, f.what) for f in findings]


# Healthy releases


def test_nothing_is_said_about_a_healthy_image_release():
    silent(found(survey_file()))


def test_nothing_is_said_about_healthy_spectra():
    silent(found(spectrum_file(), DESI))


@pytest.mark.parametrize(
    "options", [{"level": 0.0}, {"level": 0.001, "ivar": 0.01}, {"lines": True}, {"n": 1},
                {"level": 3000.0, "ivar": 0.01}]
)  # fmt: skip
def test_faint_bright_emission_line_and_lone_spectra_pass(options):
    silent(found(spectrum_file(**options), DESI))


def test_stamps_that_are_nothing_but_noise_pass():
    assert not [f for f in found(survey_file(faint=1e-4)) if f.severity != "note"]


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_bad_stamps_are_no_bad_release(n):
    flux, _ = stamps(n)
    file = survey_file(n, arrays={"image.mask": np.zeros(flux.shape, bool)})
    silent(found(file))


def test_stamps_without_mask_and_ivar_pass():
    file = survey_file()
    kept = {k: v for k, v in file.arrays.items() if k not in {"image.mask", "image.ivar"}}
    silent(found(replace(file, arrays=kept)))


def test_a_mask_without_one_good_pixel_in_some_bands_and_stamps_passes():
    flux, _ = stamps()
    mask = np.ones(flux.shape, bool)
    mask[:3] = False
    mask[:, 3] = False
    silent(found(survey_file(arrays={"image.mask": mask})))


def test_samples_that_fill_rows_up_pass():
    parts = spectra()
    for name, value in (("lambda", -1), ("ivar", 0), ("mask", True)):
        parts[f"spectrum.{name}"][:, 7000:] = value
    silent(found(raw(parts, positions(6)), DESI))


@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 30.0]))
def test_no_noise_makes_the_checks_of_spectra_speak(seed, ivar):
    silent(found(spectrum_file(seed=seed, n=4, length=600, level=0.3, ivar=ivar), SDSS))


@needs_data
@pytest.mark.parametrize(
    ("name", "survey"),
    [("desi/desi_pub.hdf5", DESI), ("sdss/boss_pub.hdf5", SDSS), ("sdss/sdss_misc_pub.hdf5", SDSS)],
)
def test_nothing_is_said_about_real_spectra(name, survey):
    from skyvec.releases.lint.raw_hdf5 import sample_mmu_file

    silent(found(sample_mmu_file(DATA / name, survey, rows=64), survey))


@needs_data
@pytest.mark.parametrize("factor", [1.0, 63.0957, 1e-9, 3631.0])
def test_real_cutouts_agree_with_their_catalog_in_nanomaggies_only(factor):
    from skyvec.releases.lint.raw_hdf5 import sample_mmu_file

    path = DATA / "legacysurvey/ls10_griz_50_nolabel.hdf5"
    file = sample_mmu_file(path, LEGACY_SURVEY, rows=64)
    with h5py.File(path) as stored:
        fluxes = {f"FLUX_{b}": stored[f"DERED_FLUX_{b}"][:] for b in "GRIZ"}
    flux = tuple(array * np.float32(factor) for array in file.arrays["image.flux"])
    changed = replace(
        file, keys={**file.keys, **fluxes}, arrays={**file.arrays, "image.flux": flux}
    )
    said = [f for f in found(changed) if f.topic == "zero point"]
    assert bool(said) == (factor != 1)


# Images


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(10**1.8, "zero point 27"), (1e-9, "maggies"), (3631.0, "nJy"), (10.0, "zero point 25")],
)
def test_another_zero_point_is_seen_and_named(factor, unit):
    finding = only(found(survey_file(20, factor=factor)), "zero point")
    assert finding.severity == "error"
    assert unit in finding.what
    assert finding.evidence["ratio"] == pytest.approx(factor * 0.8, rel=0.3)


def test_hsc_counts_are_checked_against_magnitudes():
    flux, total = stamps(20, bands=5, noise=1)
    bands = np.array([f"hsc-{b}" for b in "grizy"])
    mags = {f"{b}_cmodel_mag": 27 - 2.5 * np.log10(total[:, i]) for i, b in enumerate("grizy")}
    others = {s.name: np.full(20, 0.1) for s in HSC.scalars} | mags
    keys = positions(20) | others
    silent(found(raw(images(flux, bands=bands, scale=0.168), keys), HSC))
    wrong = raw(images(flux / 63.1, bands=bands, scale=0.168), keys)
    assert "nanomaggies" in only(found(wrong, HSC), "zero point").what


def test_without_catalog_fluxes_the_zero_point_is_only_noted():
    file = survey_file(factor=63.1)
    bare = replace(file, keys={k: v for k, v in file.keys.items() if not k.startswith("FLUX")})
    note = next(f for f in found(bare) if f.topic == "zero point")
    assert note.severity == "note"


def test_too_few_or_unrelated_fluxes_say_nothing_about_the_zero_point():
    silent(found(survey_file(5, factor=63.1)))
    rng = np.random.default_rng(1)
    unrelated = {f"FLUX_{b}": rng.lognormal(0, 3, 12) for b in "GRIZ"}
    assert not [f for f in found(survey_file(keys=unrelated)) if f.topic == "zero point"]


def test_galaxies_larger_than_the_aperture_pass():
    y, x = np.mgrid[:160, :160] - 79.5
    profile = np.exp(-np.hypot(x, y) / 45)  # 3 arcsec hold 3% of it
    total = np.random.default_rng(0).lognormal(8, 0.5, (12, 4))
    whole = 2 * np.pi * 45**2
    flux = total[..., None, None] * profile / whole
    flux += np.random.default_rng(1).normal(0, 1e-3, flux.shape)
    fluxes = {f"FLUX_{b}": total[:, i] for i, b in enumerate("GRIZ")}
    large = survey_file(12, keys=fluxes, arrays=images(flux.astype("f4")))
    silent(found(large))
    dim = {name: values * 63.1 for name, values in fluxes.items()}
    assert only(found(survey_file(12, keys=dim, arrays=images(flux))), "zero point")


def test_a_factor_of_microjansky_is_a_warning_only():
    assert only(found(survey_file(20, factor=3.631)), "zero point").severity == "warning"


def test_magnitudes_in_flux_columns_are_told_from_fluxes():
    _, total = stamps(20)
    mags = {f"FLUX_{b}": 22.5 - 2.5 * np.log10(total[:, i]) for i, b in enumerate("GRIZ")}
    said = [f for f in found(survey_file(20, keys=mags)) if f.severity == "error"]
    assert [f.topic for f in said] == ["units"] * 4
    assert all("magnitudes" in f.what for f in said)


def test_planes_in_another_order_than_their_names_are_seen_by_their_colours():
    flux, _ = stamps(20)
    swapped = survey_file(20, arrays={"image.flux": flux[:, [2, 1, 0, 3]]})
    finding = only(found(swapped), "bands")
    assert "carry des-i, des-r, des-g, des-z" in finding.what


def test_a_wrong_band_set_is_an_error_and_another_order_a_note():
    wrong = np.array(["des-u", "des-g", "des-r", "des-z"])
    flux, _ = stamps(12)
    assert found(survey_file(arrays={"image.band": [wrong] * 12}))[0].severity == "error"
    order = [3, 2, 1, 0]
    noted = survey_file(arrays={"image.band": [DES[order]] * 12, "image.flux": flux[:, order]})
    assert [f.severity for f in found(noted)] == ["note"]


def test_bands_in_capitals_are_the_codecs_own_spelling():
    silent(found(survey_file(arrays={"image.band": [np.char.upper(DES)] * 12})))


def test_bands_that_differ_between_rows_are_seen():
    flux, _ = stamps(12)
    flux[6:] = flux[6:, ::-1]
    mixed = survey_file(arrays={"image.band": [DES] * 6 + [DES[::-1]] * 6, "image.flux": flux})
    assert "2 orders" in only(found(mixed), "bands").what


def test_planes_and_bands_must_be_as_many():
    flux, _ = stamps(12)
    finding = found(survey_file(arrays={"image.flux": flux[:, :3]}))[0]
    assert (finding.severity, finding.topic) == ("error", "bands")


@pytest.mark.parametrize("with_dead", [True, False])
def test_inverted_image_masks_are_seen(with_dead):
    flux, _ = stamps()
    dead = np.zeros(flux.shape, bool)
    dead[:, :, :4] = with_dead
    ivar = np.where(dead, 0, 2500)
    good = survey_file(arrays={"image.mask": ~dead, "image.ivar": ivar})
    silent(found(good))
    finding = only(
        found(survey_file(arrays={"image.mask": dead, "image.ivar": ivar})), "mask polarity"
    )
    assert finding.severity == "error"
    assert finding.what.startswith("inverted") == with_dead


def test_one_mask_for_all_bands_counts_for_all():
    flux, _ = stamps()
    silent(found(survey_file(arrays={"image.mask": np.ones((12, 96, 96), bool)})))
    inverted = survey_file(arrays={"image.mask": np.zeros((12, 96, 96), bool)})
    only(found(inverted), "mask polarity")
    assert flux.shape[0] == 12


@pytest.mark.parametrize(("scale", "said"), [(0.262, 0), (0.27, 0), (0.168, 1), (np.nan, 1)])
def test_pixel_scales_beyond_five_percent_are_seen(scale, said):
    file = survey_file(arrays={"image.scale": np.full((12, 4), scale)})
    findings = found(file)
    assert [f.topic for f in findings] == ["pixel scale"] * said


def test_small_oblong_and_ragged_cutouts_are_seen():
    small = only(found(survey_file(size=64)), "cutout size")
    assert "44%" in small.what
    flux, _ = stamps(size=120)
    oblong = survey_file(arrays=images(flux[:, :, :100]))
    assert "not square" in only(found(oblong), "cutout size").what
    ragged = survey_file(arrays={"image.flux": [np.array([None, None], object)] * 12})
    assert found(ragged)[0].severity == "error"
    unlike = survey_file(arrays={"image.mask": np.ones((12, 4, 95, 95), bool)})
    assert only(found(unlike), "cutout size").what.startswith("mask is (4, 95, 95)")


def test_objects_that_are_all_off_the_middle_are_seen_and_neighbours_are_not():
    finding = only(found(survey_file(20, size=120, offset=(31, -12))), "centring")
    assert abs(finding.evidence["dx"] - 31) <= 2
    assert abs(finding.evidence["dy"] + 12) <= 2
    flux, total = stamps(20)
    for row, (dx, dy) in enumerate(np.random.default_rng(5).integers(-35, 35, (20, 2))):
        flux[row] += np.roll(flux[row], (dy, dx), axis=(1, 2)) * 0.7
    silent(
        [f for f in found(survey_file(20, arrays={"image.flux": flux})) if f.topic == "centring"]
    )
    assert total.shape == (20, 4)


def test_empty_stamps_and_empty_bands_are_counted():
    flux, _ = stamps(12)
    flux[:8] = 0
    assert found(survey_file(arrays={"image.flux": flux}))[0].severity == "error"
    flux, _ = stamps(12)
    flux[:3, 1] = np.nan
    assert only(found(survey_file(arrays={"image.flux": flux})), "empty").severity == "warning"


# Spectra


@pytest.mark.parametrize(
    ("change", "unit"),
    [(lambda w: w / 10, "nanometres"), (lambda w: w / 1e4, "micrometres"),
     (np.log10, "log10"), (lambda w: w * 1e-10, "metres")],
)  # fmt: skip
def test_other_units_of_wavelength_are_seen(change, unit):
    parts = spectra()
    finding = only(
        found(spectrum_file({"spectrum.lambda": change(parts["spectrum.lambda"])}), DESI),
        "wavelength",
    )
    assert (finding.severity, unit in finding.what) == ("error", True)


def test_unsorted_and_descending_wavelengths_are_seen():
    parts = spectra()
    back = {name: values[:, ::-1] for name, values in parts.items()}
    assert "descend" in only(found(raw(back, positions(6)), DESI), "wavelength").what
    wave = parts["spectrum.lambda"].copy()
    wave[0, 100] = wave[0, 50]
    finding = only(found(spectrum_file({"spectrum.lambda": wave}), DESI), "wavelength")
    assert finding.severity == "warning"
    assert finding.where.endswith("row 0, lambda")


def test_spectra_beyond_the_codecs_grid_are_seen():
    wave = spectra()["spectrum.lambda"]
    for shift, severity in ((200, None), (5000, "warning"), (8000, "error")):
        said = found(spectrum_file({"spectrum.lambda": wave + shift}), DESI)
        assert [f.severity for f in said] == [severity] * bool(severity)


def test_inverted_spectrum_masks_are_seen():
    mask = ~spectra()["spectrum.mask"]
    finding = only(found(spectrum_file({"spectrum.mask": mask}), DESI), "mask polarity")
    assert finding.what.startswith("inverted (True is to mean bad)")


def test_a_mask_that_marks_everything_bad_is_seen_but_not_in_one_spectrum():
    mask = np.ones_like(spectra()["spectrum.mask"])
    assert (
        "all is bad"
        in only(found(spectrum_file({"spectrum.mask": mask}), DESI), "mask polarity").what
    )
    mask[1:] = False
    silent(found(spectrum_file({"spectrum.mask": mask}), DESI))


def test_integer_masks_are_read_as_bits():
    mask = np.where(spectra()["spectrum.mask"], 64, 0)
    silent(found(spectrum_file({"spectrum.mask": mask}), DESI))


def test_fluxes_with_the_unit_multiplied_in_are_seen():
    parts = spectra()
    scaled = {"spectrum.flux": parts["spectrum.flux"].astype(float) * 1e-17,
              "spectrum.ivar": parts["spectrum.ivar"].astype(float) * 1e34}  # fmt: skip
    finding = only(found(spectrum_file(scaled), DESI), "flux scale")
    assert "1e-17" in finding.what


def test_weights_that_are_variances_or_in_another_unit_are_seen():
    parts = spectra(ivar=400.0)
    variance = np.where(parts["spectrum.ivar"] > 0, 1 / 400, 0)
    said = only(found(spectrum_file({"spectrum.ivar": variance}, ivar=400.0), DESI), "ivar")
    assert (said.severity, "the variance" in said.what) == ("error", True)
    scaled = parts["spectrum.ivar"] * 1e34
    assert (
        only(found(spectrum_file({"spectrum.ivar": scaled}, ivar=400.0), DESI), "ivar").severity
        == "warning"
    )


def test_spectra_without_any_weight_are_seen():
    nothing = {"spectrum.ivar": np.zeros_like(spectra()["spectrum.ivar"])}
    assert only(found(spectrum_file(nothing), DESI), "ivar").severity == "error"


def test_parts_of_another_length_and_absent_parts_are_seen():
    parts = spectra()
    short = only(found(spectrum_file({"spectrum.ivar": parts["spectrum.ivar"][:, 1:]}), DESI),
                 "spectrum length")  # fmt: skip
    assert (short.severity, "7780" in short.what) == ("error", True)
    del parts["spectrum.ivar"]
    assert only(found(raw(parts, positions(6)), DESI), "columns").what == "spectra have no ivar"


# Ids, positions, scalars, coefficients


def objects(n=40, survey=DESI, *, pixel=PIXEL, **changes):
    parts = spectra(3, length=300)
    return found(raw(parts, positions(n, **changes), pixel=pixel), survey)


def test_float_ids_are_an_error_and_64_bit_ids_are_not():
    silent(objects(id=75_000_000_000_000_000 + np.arange(40)))
    finding = only(objects(id=7.5e16 + 64.0 * np.arange(40)), "ids")
    assert (finding.severity, finding.evidence["beyond_2^53"]) == ("error", 40)


def test_repeated_ids_are_seen():
    assert only(objects(id=np.r_[np.arange(39), 0]), "ids").severity == "warning"
    twice = only(objects(id=np.tile(np.arange(20), 2)), "ids")
    assert (twice.severity, "twice" in twice.what) == ("error", True)


def test_padded_and_wrapped_ids_are_noted():
    padded = np.array([f"  {10**9 + i}".encode() for i in range(40)])
    assert "padded" in only(objects(id=padded), "ids").what
    wrapped = np.array([f"b'  {10**9 + i}'" for i in range(40)], object)
    assert "b'...'" in only(objects(id=wrapped), "ids").what


KEYS = positions(40)


@pytest.mark.parametrize(
    ("ra", "dec", "word"),
    [
        (KEYS["dec"], KEYS["ra"], "swapped"),
        (np.radians(KEYS["ra"]), np.radians(KEYS["dec"]), "radians"),
        (KEYS["ra"] / 15, KEYS["dec"], "hours"),
    ],
)
def test_positions_in_another_unit_are_recognized_by_their_pixel(ra, dec, word):
    finding = only(objects(ra=ra, dec=dec), "positions")
    assert finding.severity == "error"
    assert word in finding.what
    assert not [f for f in objects(ra=ra, dec=dec, pixel=None) if "radians" in f.what]


def test_negative_right_ascensions_are_recognized():
    lon, lat = cdshealpix.nested.healpix_to_lonlat([1880], 4)
    ra = lon.deg[0] + np.linspace(-0.3, 0.3, 40)
    assert ra.min() > 180
    finding = only(
        objects(ra=ra - 360, dec=np.full(40, lat.deg[0]), pixel=HealpixPixel(4, 1880)), "positions"
    )
    assert "-180 to 180" in finding.what


def test_ring_folders_and_another_nside_are_recognized():
    ring = int(cdshealpix.ring.lonlat_to_healpix(*([angle] * u.deg for angle in CENTRE), 16)[0])
    near = {"ra": CENTRE[0] + np.linspace(-0.3, 0.3, 40), "dec": np.full(40, CENTRE[1])}
    finding = only(objects(**near, pixel=HealpixPixel(4, ring)), "positions")
    assert "RING of NSIDE 16" in finding.what
    coarser = HealpixPixel(4, PIXEL.pixel >> 2)
    assert "NESTED of NSIDE 8" in only(objects(**near, pixel=coarser), "positions").what


def test_some_objects_outside_of_their_pixel_are_told_and_never_an_error():
    ra = KEYS["ra"].copy()
    ra[0] += 20
    assert only(objects(ra=ra), "positions").severity == "note"
    ra[:15] += 20
    assert only(objects(ra=ra), "positions").severity == "warning"


def test_positions_that_are_no_place_on_the_sky_are_counted():
    dec = KEYS["dec"].copy()
    dec[3] = 123.4
    finding = only(objects(dec=dec), "positions")
    assert (finding.severity, finding.evidence["invalid"]) == ("warning", 1)
    assert "123.4" in finding.what


def test_float32_positions_are_noted():
    ra, dec = (KEYS[k].astype(np.float32) for k in ("ra", "dec"))
    assert only(objects(ra=ra, dec=dec), "positions").severity == "note"


def test_a_spatial_index_that_contradicts_the_position_is_seen():
    index = compute_spatial_index(KEYS["ra"], KEYS["dec"])
    silent(objects(healpix_29=index))
    off = only(
        objects(healpix_29=compute_spatial_index(KEYS["ra"] + 0.01, KEYS["dec"])), "ordering"
    )
    assert (off.severity, 30 < off.evidence["median_arcsec"] < 40) == ("error", True)


def test_the_healpix_column_may_be_ring():
    ring = cdshealpix.ring.lonlat_to_healpix(KEYS["ra"] * u.deg, KEYS["dec"] * u.deg, 16)
    finding = only(objects(healpix=ring.astype(np.int64)), "ordering")
    assert "RING" in finding.what
    silent(objects(healpix=np.full(40, PIXEL.pixel)))


@pytest.mark.parametrize(
    ("column", "values", "topic"),
    [
        ("FLUX_W4", [-99.0, 1, 2, 3], "sentinels"),
        ("FLUX_W4", [1e30, 1, 2, 3], "sentinels"),
        ("SHAPE_R", [-0.5, 1, 2, 3], "units"),
        ("SHAPE_E1", [4.0, 0, 0, 0], "units"),
        ("EBV", [-0.2, 0.1, 0.1, 0.1], "units"),
        ("EBV", [np.nan] * 4, "missing values"),
    ],
)
def test_sentinels_and_impossible_values_are_counted(column, values, topic):
    finding = only(found(survey_file(keys={column: np.resize(values, 12)})), topic)
    assert finding.severity == "warning"
    assert column in finding.where


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("FLUX_W4", [-30.0, 99.0, 0.0, 999.0]),
        ("SHAPE_R", [0.0, 1, 2, 3]),
        ("SHAPE_E1", [-1.0, 1, 0, 0]),
    ],
)
def test_values_that_can_be_pass(column, values):
    silent(found(survey_file(keys={column: np.resize(values, 12)})))


def test_some_missing_values_are_noted_and_declared_sentinels_pass():
    some = np.resize([np.nan, 1.0, np.inf, 2.0], 12)
    assert [f.severity for f in found(survey_file(keys={"FLUX_W4": some}))] == ["note"]
    declared = replace(
        LEGACY_SURVEY,
        scalars=tuple(replace(s, missing=(-99.0,)) if s.name == "FLUX_W4" else s
                      for s in LEGACY_SURVEY.scalars),
    )  # fmt: skip
    file = survey_file(keys={"FLUX_W4": np.resize([-99.0, 1.0], 12)})
    assert not [f for f in found(file, declared) if f.severity != "note"]


def gaia(coefficients):
    n = len(coefficients)
    others = {s.name: np.linspace(1, 9, n) for s in GAIA.scalars}
    return found(raw({"coefficients": coefficients}, positions(n) | others), GAIA)


def test_coefficients_must_be_110_and_holes_are_counted():
    rows = np.random.default_rng(0).normal(0, 30, (8, 110))
    silent(gaia(rows))
    assert only(gaia(rows[:, :55]), "coefficients").severity == "error"
    rows[2] = 0
    assert only(gaia(rows), "coefficients").evidence["empty"] == pytest.approx(1 / 8)


def test_absent_columns_and_unequal_lengths_are_named():
    file = survey_file()
    keys = {k: v for k, v in file.keys.items() if k not in {"EBV", "dec"}}
    said = {f.what: f.severity for f in found(replace(file, keys=keys)) if f.topic == "columns"}
    assert said == {"no column 'dec'": "error", "no column 'EBV'": "warning"}
    uneven = found(replace(file, lengths={"object_id": 12, "ra": 11}))
    assert only(uneven, "columns").what == "'ra' has 11 rows where the id has 12"


# The whole


def test_equal_findings_of_many_files_are_one():
    files = [replace(survey_file(size=64), path=f"release/healpix={i}/a.hdf5") for i in range(3)]
    doubled = [
        replace(f, keys={**f.keys, "id": np.r_[np.arange(11), i]}) for i, f in enumerate(files)
    ]
    assert only([f for f in found(doubled) if f.topic == "ids"], "ids").evidence["files"] == 3


def test_a_check_that_stumbles_is_noted_and_the_others_still_speak():
    broken = survey_file(arrays={"image.mask": [np.array(["x"] * 4)] * 12}, factor=63.1)
    topics = {f.topic for f in found(broken)}
    assert "zero point" in topics
    stumbling = replace(broken, keys={**broken.keys, "id": np.full(12, 1 + 2j)})
    said = found(stumbling)
    assert "linter" in {f.topic for f in said}
    assert "zero point" in {f.topic for f in said}


def test_no_files_and_empty_files_are_silent():
    silent(found([]))
    assert len(CHECKS) > 15
    empty = raw({}, {k: np.empty(0) for k in ("id", "ra", "dec")} | {s.name: np.empty(0)
                for s in LEGACY_SURVEY.scalars})  # fmt: skip
    assert {f.topic for f in found(empty)} <= {"columns"}


@pytest.mark.parametrize(
    ("changes", "topic", "severity"),
    [
        ({"stated_rows": 40, "counted_rows": 80}, "row count", "error"),
        ({"absent_files": ("a/b/Npix=3.parquet",)}, "files", "error"),
        ({"unlisted_files": ("a/b/Npix=9.parquet",)}, "files", "warning"),
        ({"problems": (ContractError("cut off", where="f", remedy="Copy it"),)}, "files", "error"),
    ],
)
def test_files_that_do_not_fit_the_release_are_named(changes, topic, severity):
    whole = {"files": (), "rows": 80, "bytes": 1, "file_count": 2, "exact": True}
    silent(lint_release("src", DESI, RawRelease(**whole, stated_rows=80, counted_rows=80)))
    finding = lint_release("src", DESI, RawRelease(**whole | changes))[0]
    assert (finding.topic, finding.severity) == (topic, severity)

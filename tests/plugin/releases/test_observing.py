"""One object means one thing, whatever file it came from."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from skyvec.releases.observing import (
    observe_coefficients,
    observe_images,
    observe_labels,
    observe_scalars,
    observe_spectra,
    plane_power,
)
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import fit_to_grid
from skyvec_schemas.errors import ContractError
from skyvec_schemas.quality_flags import Flag
from skyvec_schemas.survey_columns import DESI, GAIA, HSC, LEGACY_IMAGE, LEGACY_SURVEY, ScalarColumn

SPECTRUM = DESI.spectrum


def cutouts(rows=2, size=8, bands=4):
    return np.random.default_rng(0).normal(1, 0.1, (rows, bands, size, size)).astype(np.float32)


def spectra(rows=2, length=12):
    rng = np.random.default_rng(1)
    wave = np.tile(np.linspace(3600, 9800, length, dtype=np.float32), (rows, 1))
    flux = rng.normal(1, 0.1, (rows, length)).astype(np.float32)
    return {"flux": flux, "ivar": np.ones_like(flux), "mask": np.zeros(flux.shape, bool),
            "wavelength": wave}  # fmt: skip


def test_true_means_good_in_image_masks_and_bad_in_spectrum_masks():
    marked = np.zeros((2, 4, 8, 8), bool)
    marked[0] = True
    images, _ = observe_images(cutouts(), marked, LEGACY_IMAGE, size=8)
    assert images.good_BCHW[0].all()
    assert not images.good_BCHW[1].any()
    seen, _ = observe_spectra(**spectra() | {"mask": marked[:, 0, 0, :1].repeat(12, 1)},
                              spectrum=SPECTRUM)  # fmt: skip
    assert not seen.good_BL[0].any()
    assert seen.good_BL[1].all()


def test_one_mask_serves_all_bands():
    mask = np.ones((2, 96, 96), bool)
    mask[1, 3, 4] = False
    images, flags = observe_images(cutouts(size=96), mask, LEGACY_IMAGE, size=96)
    assert not images.good_BCHW[1, :, 3, 4].any()
    assert images.good_BCHW.sum() == 2 * 4 * 96 * 96 - 4
    assert list(flags) == [0, Flag.IMAGE_BAD_PIXELS]


def test_the_window_is_the_middle_of_the_stamp():
    flux = cutouts(size=16)
    images, flags = observe_images(flux, None, LEGACY_IMAGE, size=8)
    assert np.array_equal(images.flux_BCHW, flux[:, :, 4:12, 4:12])
    assert not flags.any()


def test_small_stamps_are_padded_and_flagged():
    images, flags = observe_images(cutouts(size=5), None, LEGACY_IMAGE, size=8)
    assert images.good_BCHW.sum() == 2 * 4 * 25
    assert (flags == Flag.IMAGE_PADDED).all()


def test_an_image_of_bad_pixels_gives_nothing():
    flux = cutouts()
    flux[0, :3] = np.nan
    images, flags = observe_images(flux, None, LEGACY_IMAGE, size=8)
    assert flags[0] & Flag.IMAGE_UNUSABLE
    assert not images.good_BCHW[0].any()
    assert not flags[1]


def test_hsc_has_five_bands():
    images, _ = observe_images(cutouts(bands=5), None, HSC.image, size=8)
    assert images.bands == ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")


SPOILT = {
    "NaN": ("flux", np.s_[0, 1, 3], np.nan),
    "inf": ("flux", np.s_[..., 4], np.inf),
    "both inf": ("flux", np.s_[0, 0, :2, 0], [np.inf, -np.inf]),
    "huge": ("flux", np.s_[-1, 2], 3e38),
    "a bad block": ("mask", np.s_[..., :5, :5], False),
    "many bad": ("mask", np.s_[0, ..., 1:], False),
    "all bad": ("mask", np.s_[-1], False),
}


def by_definition(flux, mask, *, size, cell):
    """Images and flags in as many words as the definition has, and as slowly."""
    planes = torch.from_numpy(flux).float()
    own = torch.ones_like(planes, dtype=torch.bool)
    seen = torch.isfinite(planes)
    if mask is not None:
        seen &= torch.from_numpy(mask if mask.ndim == 4 else mask[:, None])
    planes, seen = fit_to_grid(planes, seen, size=size)
    _, own = fit_to_grid(own.float(), own, size=size)
    flags = np.zeros(len(flux), np.int32)
    flags[:] |= Flag.IMAGE_PADDED if min(flux.shape[2:]) < size else 0
    share = (seen.flatten(1).sum(1) / own.flatten(1).sum(1)).numpy()
    flags[share < 1] |= Flag.IMAGE_BAD_PIXELS
    flags[share < 0.5] |= Flag.IMAGE_UNUSABLE
    cells = [avg_pool2d(part.float().mean(1, keepdim=True), cell) for part in (own, seen)]
    dropped = (cells[0] >= 0.5) & (cells[1] < 0.5)
    flags[dropped.flatten(1).any(1).numpy()] |= Flag.IMAGE_TOKENS_DROPPED
    seen[share < 0.5] = False
    return planes.numpy(), seen.numpy(), flags


@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 3),
    image=st.sampled_from([LEGACY_IMAGE, HSC.image]),
    side=st.tuples(st.integers(6, 60), st.integers(6, 60)),
    size=st.sampled_from([24, 48]),
    kind=st.sampled_from([None, "one for all bands", "for each band"]),
    good=st.booleans(),
    dtype=st.sampled_from(["f4", "f2", "f8"]),
    spoilt=st.lists(st.sampled_from(list(SPOILT)), max_size=2),
)
def test_images_and_flags_are_what_is_defined(
    seed, rows, image, side, size, kind, good, dtype, spoilt
):
    rng = np.random.default_rng(seed)
    flux = rng.normal(0, 1, (rows, len(image.bands), *side)).astype(np.float32)
    mask = rng.random(flux.shape if kind == "for each band" else (rows, *side)) > 0.01
    for what in spoilt:
        part, where, value = SPOILT[what]
        {"flux": flux, "mask": mask}[part][where] = value
    with np.errstate(over="ignore"):
        flux = flux.astype(dtype)
    wanted = by_definition(flux, mask if kind else None, size=size,
                           cell=size // MODALITIES[image.token_key].grid[0])  # fmt: skip
    image = replace(image, mask_is_good=good)
    with warnings.catch_warnings(action="error"):
        images, flags = observe_images(
            flux.copy(), (mask if good else ~mask) if kind else None, image, size=size
        )
    np.testing.assert_array_equal(images.flux_BCHW.numpy(), wanted[0])
    np.testing.assert_array_equal(images.good_BCHW.numpy(), wanted[1])
    np.testing.assert_array_equal(flags, wanted[2])


def test_the_power_of_a_plane_is_finite_only_if_its_pixels_are():
    planes = cutouts(rows=4)
    planes[0, 1] = 3e38
    planes[1, 2, 3, 4] = np.nan
    planes[2, 3, 0, :2] = [np.inf, -np.inf]
    with np.errstate(all="ignore"):
        power = plane_power(planes)
    assert np.argwhere(~np.isfinite(power)).tolist() == [[0, 1], [1, 2], [2, 3]]
    np.testing.assert_allclose(power[3], (planes[3] ** 2).sum(axis=(1, 2)), rtol=1e-5)
    assert plane_power(planes[:0]).shape == (0, 4)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_filling_never_changes_the_samples(lengths, seed):
    rng = np.random.default_rng(seed)
    parts = spectra(len(lengths))
    for row, length in enumerate(lengths):
        filled = np.sort(rng.permutation(12)[length:])
        parts["wavelength"][row, filled] = rng.choice([-1, 0, np.nan])
        parts["flux"][row, filled] = 99
    seen, flags = observe_spectra(**parts, spectrum=SPECTRUM)
    for row, length in enumerate(lengths):
        real = parts["wavelength"][row] > 0
        assert np.array_equal(seen.wavelength_BL[row, :length], parts["wavelength"][row, real])
        assert np.array_equal(seen.flux_BL[row, :length], parts["flux"][row, real])
        assert seen.good_BL[row, :length].all()
        assert not seen.good_BL[row, length:].any()
    assert not flags.any()


@pytest.mark.parametrize(
    ("what", "value", "flag"),
    [
        ("wavelength", -1.0, Flag.SPECTRUM_MISSING),
        ("ivar", 0.0, Flag.SPECTRUM_UNUSABLE),
        ("ivar", -2.0, Flag.SPECTRUM_UNUSABLE),
        ("ivar", np.nan, Flag.SPECTRUM_UNUSABLE),
        ("flux", np.inf, Flag.SPECTRUM_UNUSABLE),
        ("mask", True, Flag.SPECTRUM_UNUSABLE),
    ],
)
def test_a_spectrum_without_information_is_flagged(what, value, flag):
    parts = spectra()
    parts[what][0] = value
    seen, flags = observe_spectra(**parts, spectrum=SPECTRUM)
    assert flags[0] & flag
    assert not seen.good_BL[0].any()
    assert not flags[1]
    assert np.isfinite(seen.flux_BL.numpy()).all()


@pytest.mark.parametrize(
    "wavelength",
    [
        np.linspace(9800, 3600, 12),
        np.linspace(360, 980, 12) / 1000,
        np.log10(np.linspace(3600, 9800, 12)),
        np.r_[np.linspace(3600, 5000, 6), np.linspace(4900, 9800, 6)],
    ],
    ids=["descending", "micron", "log10", "overlapping arms"],
)
def test_wavelengths_that_do_not_ascend_in_angstrom_are_malformed(wavelength):
    parts = spectra()
    parts["wavelength"][1] = wavelength
    seen, flags = observe_spectra(**parts, spectrum=SPECTRUM)
    assert list(flags) == [0, Flag.SPECTRUM_MALFORMED]
    assert not seen.good_BL[1].any()


def test_spectra_need_an_inverse_variance_of_their_own_length():
    with pytest.raises(ContractError, match="no inverse variance"):
        observe_spectra(**spectra() | {"ivar": None}, spectrum=SPECTRUM)
    with pytest.raises(ContractError, match=r"ivar has shape \(11,\) where flux has \(12,\)"):
        observe_spectra(**spectra() | {"ivar": np.ones((2, 11))}, spectrum=SPECTRUM)


def test_the_caller_keeps_the_arrays():
    parts = spectra()
    parts["wavelength"][0, 3] = -1
    parts["flux"][1, 2] = np.nan
    before = {name: part.copy() for name, part in parts.items()}
    observe_spectra(**parts, spectrum=SPECTRUM)
    assert all(np.array_equal(parts[n], before[n], equal_nan=True) for n in parts)


def test_coefficients_are_cut_and_zero_rows_are_missing():
    values = np.arange(220, dtype=">f8").reshape(2, 110)
    values[0] = 0
    parts, flags = observe_coefficients(values, GAIA.coefficients)
    assert list(parts) == ["tok_xp_bp", "tok_xp_rp"]
    assert np.array_equal(parts["tok_xp_rp"][1], values[1, 55:])
    assert parts["tok_xp_bp"][0].isnan().all()
    assert list(flags) == [Flag.COEFFICIENTS_MISSING, 0]
    with pytest.raises(ContractError, match="110 coefficients"):
        observe_coefficients(values[:, :55], GAIA.coefficients)


def test_sentinels_of_a_survey_are_missing():
    survey = type(LEGACY_SURVEY)(
        name="s", scalars=(ScalarColumn(name="F", token_key="tok_ebv", unit="1", missing=(-99,)),),
        labels={"Z": "tok_z"},
    )  # fmt: skip
    values = {"F": np.array([1, -99, np.inf], ">f4"), "Z": np.array([1, 2, 3], ">f4")}
    observed, flags = observe_scalars(values, survey)
    assert observed["tok_ebv"].isnan().tolist() == [False, True, True]
    assert list(flags) == [0, Flag.SCALAR_MISSING, Flag.SCALAR_MISSING]
    assert observe_labels(values, survey)["tok_z"].tolist() == [1, 2, 3]

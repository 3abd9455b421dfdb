"""Cutouts from Parquet and HDF5 to arrays."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from skyvec_schemas.errors import BandError, ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import GAIA, HSC, LEGACY_SURVEY, image_struct
from skyvec_training.data.pixels import open_store, unpack

FILE_BANDS = list(LEGACY_SURVEY.image.bands)
SIGMA = np.array([0.006, 0.008, 0.012, 0.02], np.float32)[:, None, None]
GRZ = ("DES-G", "DES-R", "DES-Z")


def cutout(size=96, bands=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0.1, 0.5, (bands, size, size)).astype(np.float32)


def struct(flux, *, bands=FILE_BANDS):
    ivar = np.broadcast_to(SIGMA[: len(flux)] ** -2, flux.shape)
    mask = np.ones(flux.shape, bool)
    return {"band": bands, "flux": flux.tolist(), "ivar": ivar.tolist(), "mask": mask.tolist(),
            "psf_fwhm": [1.0] * len(flux), "scale": [0.262] * len(flux)}  # fmt: skip


def catalog(folder, images, kind=None):
    leaf = folder / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    column = pa.array(images, type=kind or image_struct())
    pq.write_table(pa.table({"object_id": np.arange(len(images)), "image": column}), leaf)
    return folder


def release(folder, *, bands, flux, ivar, mask, ids=None, pixel=7):
    """One file of the Multimodal Universe."""
    place = folder / f"healpix={pixel}" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    with h5py.File(place, "w") as file:
        file["object_id"] = np.arange(len(flux)) if ids is None else ids
        file["image_band"] = np.array([bands] * len(flux), dtype="S5")
        file["image_array"], file["image_ivar"], file["image_mask"] = flux, ivar, mask
    return folder


def test_cutouts_come_back_in_half_precision(tmp_path):
    flux = cutout()
    wrong_order = struct(flux[::-1], bands=FILE_BANDS[::-1])
    small = struct(flux[:, 36:59, 36:59])
    folder = catalog(tmp_path / "survey", [struct(flux), wrong_order, small, None])
    images, sigma = unpack(folder, LEGACY_SURVEY, tmp_path / "store").read(np.arange(4))
    np.testing.assert_allclose(images.flux_BCHW[0], flux, rtol=1e-3, atol=1e-5)
    assert images.bands == ("DES-G", "DES-R", "DES-I", "DES-Z")
    np.testing.assert_array_equal(images.flux_BCHW[1], images.flux_BCHW[0])
    np.testing.assert_array_equal(images.good_BCHW[2].sum((1, 2)), [23 * 23] * 4)
    assert not images.good_BCHW[3].any()
    np.testing.assert_allclose(sigma[0, :, 0, 0], SIGMA[:, 0, 0], rtol=1e-3)


def test_a_bad_pixel_has_no_flux_and_no_noise(tmp_path):
    image = struct(cutout())
    image["mask"][0][5][6] = False
    image["flux"][1][7][8] = float("nan")
    image["ivar"][2][9][10] = 0.0
    folder = catalog(tmp_path / "survey", [image])
    images, _ = unpack(folder, LEGACY_SURVEY, tmp_path / "store").read(np.array([0]))
    assert (~images.good_BCHW[0]).nonzero().tolist() == [[0, 5, 6], [1, 7, 8], [2, 9, 10]]
    assert torch.isfinite(images.flux_BCHW).all()


def test_a_subset_of_bands_needs_no_others(tmp_path):
    flux = cutout(bands=3)
    folder = catalog(tmp_path / "survey", [struct(flux, bands=["des-r", "des-g", "des-z"])])
    store = unpack(folder, LEGACY_SURVEY, tmp_path / "store", bands=GRZ)
    images, _ = store.read(np.array([0]))
    assert store.bands == GRZ
    np.testing.assert_allclose(images.flux_BCHW[0], flux[[1, 0, 2]], rtol=1e-3, atol=1e-5)


def test_band_sets_that_were_not_declared_are_refused(tmp_path):
    images = [struct(cutout()), struct(cutout(bands=3), bands=["des-g", "des-r", "des-z"])]
    folder = catalog(tmp_path / "survey", images)
    with pytest.raises(BandError, match=r"bands des-i are missing.*name the bands of the source"):
        unpack(folder, LEGACY_SURVEY, tmp_path / "store")
    with pytest.raises(BandError, match="it has no band HSC-G"):
        unpack(folder, LEGACY_SURVEY, tmp_path / "store", bands=("HSC-G",))


def test_files_of_the_multimodal_universe_are_read(tmp_path):
    flux = np.stack([cutout(120, 5, seed) for seed in range(3)])
    ivar = np.full(flux.shape, 400, np.float32)
    ivar[1, 2] = np.finfo(np.float32).max  # how HSC files write that there are no data
    mask = np.ones(flux.shape, bool)
    mask[2, :, :, :60] = False
    bands = [f"hsc-{band}" for band in "grizy"]
    release(tmp_path / "hsc", bands=bands, flux=flux, ivar=ivar, mask=mask)
    store = unpack(tmp_path / "hsc", HSC, tmp_path / "store")
    images, sigma = store.read(np.arange(3))
    assert images.bands == tuple(HSC.image.bands.values())
    np.testing.assert_allclose(
        images.flux_BCHW[0], flux[0, :, 12:108, 12:108], rtol=1e-3, atol=1e-5
    )
    assert images.good_BCHW[1].float().mean((1, 2)).tolist() == [1, 1, 0, 1, 1]
    assert not images.good_BCHW[2, :, :, :48].any()
    assert images.good_BCHW[2, :, :, 48:].all()
    np.testing.assert_allclose(sigma[0], 0.05, rtol=1e-3)


def test_one_mask_for_all_bands_and_ids_of_text(tmp_path):
    flux = cutout()[None]
    mask = np.ones((1, 96, 96), bool)
    mask[0, 3, 4] = False
    release(tmp_path / "ls", bands=FILE_BANDS, flux=flux.astype(">f4"), mask=mask,
            ivar=np.ones(flux.shape, np.float32), ids=np.array([b"9010_123"]))  # fmt: skip
    store = unpack(tmp_path / "ls", LEGACY_SURVEY, tmp_path / "store")
    assert store.ids[0] == b"9010_123"
    images, _ = store.read(np.array([0]))
    assert (~images.good_BCHW[0]).nonzero().tolist() == [[c, 3, 4] for c in range(4)]


def test_an_unpacking_that_was_cut_short_is_not_opened(tmp_path):
    flux = cutout()
    folder = catalog(tmp_path / "survey", [struct(flux), struct(flux, bands=["a"] * 4)])
    with pytest.raises(BandError):
        unpack(folder, LEGACY_SURVEY, tmp_path / "store")
    with pytest.raises(ConfigurationError, match="Unpack the catalog again"):
        open_store(tmp_path / "store")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no Norder.*leaves and no .hdf5 files"):
        unpack(tmp_path, LEGACY_SURVEY, tmp_path / "store")
    with pytest.raises(ContractError, match="gaia: it declares no image column"):
        unpack(tmp_path, GAIA, tmp_path / "store")
    kind = image_struct(with_ivar=False)
    image = {k: v for k, v in struct(cutout(8)).items() if k != "ivar"}
    with pytest.raises(ContractError, match="no inverse variance"):
        unpack(catalog(tmp_path / "a", [image], kind), LEGACY_SURVEY, tmp_path / "store")
    place = tmp_path / "b" / "healpix=1" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    with h5py.File(place, "w") as file:
        file["object_id"] = np.arange(2)
    with pytest.raises(MissingColumnError, match="image_array, image_band, image_ivar"):
        unpack(tmp_path / "b", LEGACY_SURVEY, tmp_path / "store")
    place.write_bytes(b"not HDF5")
    with pytest.raises(ContractError, match="cannot be read as HDF5"):
        unpack(tmp_path / "b", LEGACY_SURVEY, tmp_path / "store")

"""Cutouts in, a codec out."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from skyvec_core.observations import Images
from skyvec_schemas.errors import BandError
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct
from skyvec_training.codecs import reconstruction
from skyvec_training.codecs.image import (
    CodecTask,
    as_stamps,
    augment,
    build_codec,
    spread_penalty,
)
from skyvec_training.data.draws import Stream, uniforms
from skyvec_training.data.pixels import unpack
from skyvec_training.loop.optimizer import build_optimizer
from skyvec_training.recipe.codecs import CodecRun, CodecSizes
from skyvec_training.recipe.optimizer import OptimizerRun

FILE_BANDS = list(LEGACY_SURVEY.image.bands)
SIGMA = np.array([0.006, 0.008, 0.012, 0.02], np.float32)[:, None, None]


def galaxy(rng, size):
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis[None, :] / rng.uniform(0.4, 1))
    profile = 10 ** rng.uniform(-1, 0.5) * np.exp(-radius / rng.uniform(2, 5))
    colours = np.array([0.4, 0.8, 1.0, 1.2])[:, None, None]
    return (profile * colours + rng.normal(size=(4, size, size)) * SIGMA).astype(np.float32)


def struct(flux, *, bands=FILE_BANDS):
    ivar = np.broadcast_to(SIGMA**-2, flux.shape)
    mask = np.ones(flux.shape, bool)
    return {"band": bands, "flux": flux.tolist(), "ivar": ivar.tolist(), "mask": mask.tolist(),
            "psf_fwhm": [1.0] * 4, "scale": [0.262] * 4}  # fmt: skip


def catalog(folder, images):
    leaf = folder / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    column = pa.array(images, type=image_struct())
    pq.write_table(pa.table({"object_id": np.arange(len(images)), "image": column}), leaf)
    return folder


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    images = [struct(galaxy(rng, 96)) for _ in range(10)]
    return unpack(catalog(tmp_path / "survey", images), LEGACY_SURVEY, tmp_path / "store")


def test_cutouts_come_back_in_half_precision(tmp_path):
    flux = galaxy(np.random.default_rng(1), 96)
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
    flux = galaxy(np.random.default_rng(1), 96)
    image = struct(flux)
    image["mask"][0][5][6] = False
    image["flux"][1][7][8] = float("nan")
    image["ivar"][2][9][10] = 0.0
    folder = catalog(tmp_path / "survey", [image])
    images, _ = unpack(folder, LEGACY_SURVEY, tmp_path / "store").read(np.array([0]))
    assert (~images.good_BCHW[0]).nonzero().tolist() == [[0, 5, 6], [1, 7, 8], [2, 9, 10]]
    assert torch.isfinite(images.flux_BCHW).all()


def test_a_missing_band_is_refused(tmp_path):
    flux = galaxy(np.random.default_rng(1), 96)
    folder = catalog(
        tmp_path / "survey", [struct(flux, bands=["des-g", "des-r", "des-i", "hsc-y"])]
    )
    with pytest.raises(BandError, match="bands des-z are missing"):
        unpack(folder, LEGACY_SURVEY, tmp_path / "store")


def test_the_codec_learns_eight_galaxies(store):
    run = CodecRun(
        optimizer=OptimizerRun(steps=30, learning_rate=3e-3, warmup_steps=3),
        model=CodecSizes(hidden_dims=32, multisurvey_projection_dims=8),
        batch=8, held_out=2, precision="float32", stamp_probability=0.0, crop=32, crop_share=1.0,
    )  # fmt: skip
    task = CodecTask(build_codec(run, seed=0), store, run, seed=0)
    optimizer = build_optimizer(task.module, run.optimizer)
    losses = []
    for step in range(run.optimizer.steps):
        optimizer.zero_grad()
        loss, _ = task.loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def test_scores_are_physical_and_per_band(store):
    run = CodecRun(optimizer=OptimizerRun(steps=1, learning_rate=0.1, warmup_steps=0),
                   model=CodecSizes(hidden_dims=16, multisurvey_projection_dims=4))  # fmt: skip
    scores = reconstruction.scores(build_codec(run, seed=0).eval(), store, np.arange(4))
    assert set(scores["r2"]) == {"DES-G", "DES-R", "DES-I", "DES-Z"}
    assert max(scores["r2"].values()) < 0.5  # nothing was learnt
    assert 1 <= scores["codes_used"] <= scores["codes"] == 4375


def test_turning_and_mirroring_keep_every_pixel():
    flux = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    images = Images(flux_BCHW=flux, good_BCHW=flux > 0, bands=("DES-G", "DES-R"))
    draws = uniforms(seed=0, stream=Stream.AUGMENTATION, step=0, slots=range(8), width=8)
    turned, sigma = augment(images, flux, draws, crop=8)
    torch.testing.assert_close(turned.flux_BCHW.flatten(2).sort().values,
                               flux.flatten(2).sort().values)  # fmt: skip
    assert torch.equal(turned.flux_BCHW, sigma)
    assert torch.equal(turned.good_BCHW, turned.flux_BCHW > 0)
    assert not torch.equal(turned.flux_BCHW, flux)


def test_a_stamp_is_a_central_square_of_good_pixels():
    flux = torch.zeros(4, 1, 96, 96)
    images = Images(flux_BCHW=flux, good_BCHW=torch.ones_like(flux).bool(), bands=("DES-G",))
    draws = uniforms(seed=0, stream=Stream.AUGMENTATION, step=0, slots=range(4), width=8)
    good = as_stamps(images, draws, probability=1.0).good_BCHW
    assert good[:, 0, 48, 48].all()
    assert not good[:, 0, 0].any()
    assert as_stamps(images, draws, probability=0.0).good_BCHW.all()


@pytest.mark.parametrize("fault", [0.0, 6.0], ids=["bunched", "out of reach"])
def test_latents_that_waste_the_quantizer_are_penalized(fault):
    spread = torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    light = torch.ones(4, 2, 32, 32)
    wasted = torch.full_like(spread, fault)
    assert spread_penalty(wasted, light) > 5 * spread_penalty(spread, light)

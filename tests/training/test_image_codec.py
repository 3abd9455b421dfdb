"""Cutouts in, a codec out."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from skyvec_core.observations import Images
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import LEGACY_SURVEY, image_struct
from skyvec_training.codecs.image import (
    CodecTask,
    as_stamps,
    augment,
    build_codec,
    reconstruction_loss,
    spread_penalty,
)
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.data.draws import Stream, uniforms
from skyvec_training.data.pixels import PixelStore, unpack
from skyvec_training.loop.trainer import train
from skyvec_training.recipe.codecs import CodecRun, CodecSizes, CodecSource
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


def test_the_codec_learns_eight_galaxies(store):
    run = CodecRun(
        optimizer=OptimizerRun(steps=30, learning_rate=3e-3, warmup_steps=3),
        model=CodecSizes(hidden_dims=32, multisurvey_projection_dims=8),
        batch=8, precision="float32", stamp_probability=0.0, crop=32, crop_share=1.0,
    )  # fmt: skip
    source = CodecSource(name="legacysurvey", held_out=2)
    task = CodecTask(build_codec(run, seed=0), [Learnt(source, store)], run, seed=0)
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=3e-3)
    losses = []
    for step in range(run.optimizer.steps):
        optimizer.zero_grad()
        loss, _ = task.loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def in_memory(bands, *, rows=6, scale=1.0, seed=0):
    """Cutouts of 32 pixels with smooth blobs, in units of ``scale`` nanomaggies."""
    rng = np.random.default_rng(seed)
    axis = np.arange(32) - 15.5
    blob = np.exp(-np.hypot(axis[:, None], axis) / 4)
    flux = rng.uniform(0.2, 2, (rows, len(bands), 1, 1)) * blob + rng.normal(
        0, 0.01, (rows, len(bands), 32, 32))  # fmt: skip
    return PixelStore(
        flux_BCHW=(flux * scale).astype(np.float16),
        sigma_BCHW=np.full(flux.shape, 0.01 * scale, np.float16),
        ids=np.arange(rows).astype("S8"),
        bands=bands,
    )


LS, GRZ = ("DES-G", "DES-R", "DES-I", "DES-Z"), ("DES-G", "DES-R", "DES-Z")
HSC = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")


def several(*, steps, **optimizer):
    """A run on three band sets of two surveys, and their data."""
    sources = (
        CodecSource(name="legacysurvey", weight=4.0, held_out=2),
        CodecSource(name="north", survey="legacysurvey", bands=GRZ, weight=2.0, held_out=2),
        CodecSource(name="hsc", weight=2.0, held_out=2),
    )
    run = CodecRun(
        optimizer=OptimizerRun(steps=steps, learning_rate=3e-3, warmup_steps=0, **optimizer),
        model=CodecSizes(hidden_dims=32, multisurvey_projection_dims=8), sources=sources,
        batch=4, precision="float32", stamp_probability=0.0, crop=32,
    )  # fmt: skip
    stores = in_memory(LS), in_memory(GRZ, seed=1), in_memory(HSC, scale=63.0957, seed=2)
    return run, [Learnt(s, store) for s, store in zip(sources, stores, strict=True)]


def test_one_run_learns_three_band_sets_of_two_surveys(tmp_path):
    run, sources = several(steps=50, evaluate_every=50, checkpoint_every=50)
    task = CodecTask(build_codec(run, seed=0), sources, run, seed=0)
    with torch.inference_mode():
        before = task.evaluate()
    assert train(task, run.optimizer, tmp_path, run_digest="a").finished
    with torch.inference_mode():
        after = task.evaluate()
    assert set(after) == {"loss", "loss_legacysurvey", "loss_north", "loss_hsc"}
    for name, loss in after.items():
        assert loss < 0.85 * before[name], name


def test_every_source_gets_its_share_of_the_steps():
    run, sources = several(steps=1)
    mixture = CodecTask(build_codec(run, seed=0), sources, run, seed=0).mixture
    names = [mixture.of_step(step).name for step in range(800)]
    shares = [names.count(s.name) / len(names) for s in sources]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.005)


def test_the_noise_counts_in_the_unit_of_its_survey():
    """The same sky in nanomaggies and in counts at zero point 27 has the same loss."""
    run, _ = several(steps=1)
    codec = build_codec(run, seed=0)
    with torch.no_grad():
        codec.subsample_in.weight.copy_(codec.subsample_in.weight[:, :1].expand(-1, 9))
        codec.subsample_out.weight.copy_(codec.subsample_out.weight[:1].expand(9, -1))
        codec.subsample_out.bias.fill_(0.1)
    losses = []
    for bands, scale in ((("DES-G",), 1.0), (("HSC-G",), 10 ** (4.5 / 2.5))):
        store = in_memory(bands, scale=scale)
        with torch.inference_mode():
            losses.append(float(reconstruction_loss(codec, *store.read(np.arange(4)), run)))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)  # half precision of the store


def test_a_source_without_objects_to_train_on_is_refused():
    run, sources = several(steps=1)
    few = Learnt(CodecSource(name="hsc", held_out=6), sources[2].store)
    with pytest.raises(ConfigurationError, match=r"hsc: held_out \(6\) leaves none of 6 objects"):
        CodecTask(build_codec(run, seed=0), [few], run, seed=0)
    none = Learnt(CodecSource(name="hsc", held_out=0), sources[2].store)
    with pytest.raises(ConfigurationError, match="held_out is 0"):
        CodecTask(build_codec(run, seed=0), [none], run, seed=0)
    with pytest.raises(ConfigurationError, match="there is no source"):
        CodecTask(build_codec(run, seed=0), [], run, seed=0)


def test_a_source_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="sources hsc are named twice"):
        CodecRun(optimizer=OptimizerRun(steps=1, learning_rate=0.1, warmup_steps=0),
                 sources=(CodecSource(name="hsc"), CodecSource(name="hsc")))  # fmt: skip


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    run, sources = several(steps=3)
    codec = build_codec(run, seed=0)
    with torch.no_grad():
        codec.pre_quant_proj.weight[0, 0] = torch.nan
    with pytest.raises(ConfigurationError, match=r"not finite|is nan"):
        train(CodecTask(codec, sources, run, seed=0), run.optimizer, tmp_path, run_digest="a")


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

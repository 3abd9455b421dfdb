"""Spectra in, a codec out."""

import numpy as np
import pytest
import torch

from skyvec_core.codecs.folder import load_codec, save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError
from skyvec_training.codecs.image import build_codec as build_image_codec
from skyvec_training.codecs.map import build_codec as build_map_codec
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.codecs.spectrum import (
    HEADROOM,
    SpectrumTask,
    build_codec,
    code_entropies,
    cropped,
    fit_levels,
    log_levels,
    on_grid,
    spectrum_loss,
)
from skyvec_training.commands.codec_command import RECIPES
from skyvec_training.data.spectra import SpectrumStore
from skyvec_training.loop.trainer import train
from skyvec_training.recipe.codecs import (
    CodecRun,
    CodecSizes,
    CodecSource,
    MapCodecRun,
    MapSizes,
    ScalarRun,
    SpectrumCodecRun,
    SpectrumSizes,
)
from skyvec_training.recipe.optimizer import OptimizerRun
from skyvec_training.recipe.reading import read

SIZES = SpectrumSizes(encoder_depths=(1, 1, 1, 1), encoder_dims=(8, 8, 16, 16),
                      decoder_depths=(1, 1, 1, 1), decoder_dims=(16, 8, 8, 2))  # fmt: skip
AION_SPECTRUM = {"encoder_depths": (3, 3, 27, 3), "encoder_dims": (64, 128, 256, 512),
                 "decoder_depths": (3, 9, 3, 3), "decoder_dims": (256, 128, 64, 2)}  # fmt: skip


def made_store(count=12, *, wave=None, length=0, seed=0, noise=0.05):
    """Spectra with a slope and one line each; every fifth sample of the first third is bad."""
    rng = np.random.default_rng(seed)
    wave = np.arange(3600, 9800, 4.0) if wave is None else wave
    length = max(length, len(wave))
    slope, level = rng.uniform(-0.5, 0.5, (count, 1)), 10 ** rng.uniform(0, 1.5, (count, 1))
    line = np.exp(-(((wave - rng.uniform(4500, 8500, (count, 1))) / 20) ** 2))
    flux = level * (1 + slope * (wave - 6500) / 3000 + 2 * line)
    flux = flux + rng.normal(0, 1, flux.shape) * noise * level
    good = np.ones(flux.shape, bool)
    good[:, : len(wave) // 3 : 5] = False
    pad = ((0, 0), (0, length - len(wave)))
    return SpectrumStore(
        flux_BL=np.pad(flux, pad).astype(np.float32),
        ivar_BL=np.pad(np.broadcast_to((noise * level) ** -2, flux.shape), pad).astype(np.float32),
        good_BL=np.pad(good, pad),
        wavelength_BL=np.pad(np.broadcast_to(wave, flux.shape), pad, constant_values=-1).astype(
            np.float32
        ),
        ids=np.arange(count).astype("S8"),
        left_out=0,
    )


def made_run(steps=1, **changes):
    settings = {
        "optimizer": OptimizerRun(steps=steps, learning_rate=1e-2, warmup_steps=0,
                                  evaluate_every=max(steps, 1), checkpoint_every=max(steps, 1)),
        "sources": (CodecSource(name="desi", held_out=2), CodecSource(name="sdss", held_out=2)),
        "model": SIZES,
        "batch": 4,
    }  # fmt: skip
    return SpectrumCodecRun(**(settings | changes))


def made_task(run):
    stores = made_store(), made_store(wave=10 ** np.arange(3.58, 3.96, 4e-4), length=1200, seed=1)
    sources = [Learnt(s, store) for s, store in zip(run.sources, stores, strict=True)]
    return SpectrumTask(build_codec(run, seed=0), sources, run, seed=0)


def test_a_step_sees_what_encoding_sees():
    """Interpolation, level and compression are those of the codec, filling and bad samples too."""
    task = made_task(made_run())
    for learnt in task.mixture.sources:
        spectra = learnt.store.read(np.arange(6))
        latent_BND = task.module.latents(on_grid(task.module, spectra).inputs_BGC)
        tokens = task.module.encode(spectra)
        same = task.module.quantizer.codes(latent_BND) == tokens.ids_BN[:, 1:]
        assert same.float().mean() > 0.999


def test_the_target_is_relative_flux_with_its_noise():
    run = made_run(levels="grid")
    codec = build_codec(run, seed=0)
    spectra = made_store(count=1, wave=np.arange(3500, 10460, 0.8), noise=0.05).read(np.array([0]))
    grid = on_grid(codec, spectra)
    level = codec.levels(codec.level_codes(spectra.flux_BL, spectra.good_BL,
                                           torch.tensor([spectra.flux_BL.shape[1]])))  # fmt: skip
    inner = slice(4000, 8000)
    torch.testing.assert_close((grid.flux_BG[0, inner] + 1) * level[0], spectra.flux_BL[0, inner],
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    sigma = spectra.ivar_BL[0, inner] ** -0.5
    torch.testing.assert_close(grid.sigma_BG[0, inner] * level[0], sigma, rtol=1e-3, atol=0)


def test_bad_and_uncovered_pixels_do_not_count():
    run = made_run()
    task = made_task(run)
    spectra = task.mixture.sources[1].store.read(np.arange(4))
    before, parts = spectrum_loss(task.module, on_grid(task.module, spectra), run)
    grid = on_grid(task.module, spectra)
    assert grid.bad_BG.any()
    assert not grid.covered_BG.all()
    silent = ~grid.sigma_BG.isfinite()
    grid.flux_BG[silent] = 1e6
    after, again = spectrum_loss(task.module, grid, run)
    assert again["flux"] == parts["flux"]
    assert torch.equal(before, after)


def test_the_gradient_goes_through_the_signs():
    run = made_run(commitment_weight=0.0, entropy_weight=0.0)
    task = made_task(run)
    loss, _ = task.loss(0)
    loss.backward()
    assert task.module.encoder.downsample_layers[0][0].weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in task.module.parameters())


def test_one_run_learns_two_surveys(tmp_path):
    run = made_run(steps=40, crop_share=1.0, crop_tokens=17)
    task = made_task(run)
    with torch.inference_mode():
        before = task.evaluate()
    assert train(task, run.optimizer, tmp_path, run_digest="a").finished
    with torch.inference_mode():
        after = task.evaluate()
    assert set(after) == {"loss", "loss_desi", "loss_sdss"}
    for name, loss in after.items():
        assert loss < 0.95 * before[name], name


def test_entropies_tell_certain_from_bunched():
    codec = build_codec(made_run(), seed=0)
    bits = torch.randint(0, 2, (4000, 10), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    certainty, use = code_entropies(codec, 8 * bits)
    assert certainty < 1e-6
    assert use < 0.2
    bunched = code_entropies(codec, torch.full((4000, 10), 8.0))
    assert bunched[1] == pytest.approx(10 * np.log(2), rel=1e-3)
    undecided, _ = code_entropies(codec, torch.zeros(10, 10))
    assert undecided == pytest.approx(10 * np.log(2), rel=1e-3)


def test_entropies_have_finite_slopes_where_codes_are_certain():
    latent = torch.full((50, 10), 60.0, requires_grad=True)
    certainty, use = code_entropies(build_codec(made_run(), seed=0), latent)
    (certainty + use).backward()
    assert latent.grad.isfinite().all()


def test_the_level_table_is_fitted_and_survives_saving(tmp_path):
    run = made_run()
    codec = build_codec(run, seed=0)
    store = made_store(count=300, wave=np.arange(4000, 5000, 20.0))
    levels = log_levels(store, np.arange(300))
    fit_levels(codec, levels)
    table = codec.normalization_quantizer.values
    assert (table.diff() >= 0).all()
    assert table[-1] == 5.0
    counts = np.bincount(np.searchsorted(table[:-1], levels.astype(np.float32)), minlength=1024)
    assert counts.max() <= 2  # 300 spectra over 992 codes
    assert counts[-HEADROOM:].sum() == 0
    save_codec(codec, tmp_path, MODALITIES["tok_spectrum_desi"], dtype=torch.float16)
    again = load_codec(tmp_path, MODALITIES["tok_spectrum_desi"])
    assert torch.equal(again.normalization_quantizer.values, table)
    spectra = store.read(np.arange(20))
    level_B1 = again.levels(again.encode(spectra).ids_BN[:, 0])
    mean_B = torch.where(spectra.good_BL, spectra.flux_BL, 0).sum(1) / spectra.good_BL.sum(1)
    torch.testing.assert_close(level_B1[:, 0], mean_B, rtol=0.06, atol=0)


def test_a_stretch_begins_with_a_token():
    task = made_task(made_run())
    grid = on_grid(task.module, task.mixture.sources[0].store.read(np.arange(3)))
    part = cropped(grid, np.array([0.0, 0.5, 0.999]), cell=32, pixels=320)
    assert torch.equal(part.flux_BG[0], grid.flux_BG[0, :320])
    assert torch.equal(part.inputs_BGC[2], grid.inputs_BGC[2, -320:])
    start = int(0.5 * (272 - 10 + 1)) * 32
    assert torch.equal(part.sigma_BG[1], grid.sigma_BG[1, start : start + 320])


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    run = made_run(steps=3)
    task = made_task(run)
    with torch.no_grad():
        task.module.quant_conv.weight[0, 0] = torch.nan
    with pytest.raises(ConfigurationError, match=r"not finite|is nan"):
        train(task, run.optimizer, tmp_path, run_digest="a")


def test_a_run_needs_a_survey_and_more_spectra_than_it_holds_out():
    with pytest.raises(ValueError, match="name at least one survey"):
        made_run(sources=())
    run = made_run(sources=(CodecSource(name="desi", held_out=12),))
    with pytest.raises(ConfigurationError, match=r"desi: held_out .12. leaves none of 12 objects"):
        SpectrumTask(build_codec(run, seed=0), [Learnt(run.sources[0], made_store())], run, seed=0)


@pytest.mark.parametrize(
    ("name", "kind", "build"),
    [
        ("image_codec_aion", CodecRun, build_image_codec),
        ("map_codec_aion", MapCodecRun, build_map_codec),
        ("map_codec_tiny", MapCodecRun, build_map_codec),
        ("scalar_codecs", ScalarRun, None),
        ("spectrum_codec_aion", SpectrumCodecRun, build_codec),
        ("spectrum_codec_tiny", SpectrumCodecRun, build_codec),
    ],
)
def test_shipped_recipes_build_codecs_of_the_size_they_state(name, kind, build):
    run = read(kind, RECIPES / f"{name}.toml")
    if build is None:
        assert [s.name for s in run.all_sources] == ["legacysurvey", "hsc", "gaia"]
    elif name.endswith("tiny"):
        assert 2 * sum(p.numel() for p in build(run, seed=0).parameters()) < 2e6
    else:
        published = {"image_codec_aion": CodecSizes(hidden_dims=512, num_consecutive=4,
                                                    multisurvey_projection_dims=54),
                     "map_codec_aion": MapSizes(encoder_output_dim=512, res_hidden_dims=64),
                     "spectrum_codec_aion": SpectrumSizes(**AION_SPECTRUM)}  # fmt: skip
        assert run.model == published[name]

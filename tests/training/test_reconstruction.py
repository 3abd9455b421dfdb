"""Scores of image and spectrum codecs, on codecs whose scores are known."""

import json

import numpy as np
import pytest
import torch

from skyvec_core.codecs.image import ImageCodec, ImageCodecConfig
from skyvec_core.codecs.spectrum import DecodedSpectra, SpectrumCodec, SpectrumCodecConfig
from skyvec_core.observations import Tokens
from skyvec_training.codecs import reconstruction, spectrum_scores
from skyvec_training.codecs.codebook import Usage
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.data.pixels import PixelStore
from skyvec_training.data.spectra import SpectrumStore
from skyvec_training.recipe.codecs import CodecSource

BANDS = ("DES-G", "DES-R", "DES-I", "DES-Z")
SIGMA = 0.02


class ScaledImages(ImageCodec):
    """Gives back the cutouts it saw last, times a factor."""

    def __init__(self, factor):
        super().__init__(ImageCodecConfig(hidden_dims=16, multisurvey_projection_dims=4,
                                          num_consecutive=1))  # fmt: skip
        self.factor = factor

    def encode(self, observed, *, compat=False):
        self.seen = observed.flux_BCHW
        return super().encode(observed, compat=compat)

    def decode(self, ids_BN, *, bands):  # noqa: ARG002
        return self.seen * self.factor


class ScaledSpectra(SpectrumCodec):
    """Gives back the spectra it saw last, their shape times a factor, moved by some samples."""

    def __init__(self, *, factor=1.0, shift=0):
        sizes = {"encoder_depths": (1,) * 4, "encoder_dims": (4, 4, 4, 8),
                 "decoder_depths": (1,) * 4, "decoder_dims": (8, 4, 4, 2)}  # fmt: skip
        super().__init__(SpectrumCodecConfig(**sizes, latent_channels=8))
        self.factor, self.shift = factor, shift

    def encode(self, observed, *, compat=False):
        self.seen = observed
        return super().encode(observed, compat=compat)

    def decode(self, ids_BN, wavelength_BL=None):  # noqa: ARG002
        flux_BL = self.seen.flux_BL.roll(self.shift, 1) * self.factor
        return DecodedSpectra(
            wavelength_BL=self.seen.wavelength_BL,
            flux_BL=flux_BL,
            bad_probability_BL=(~self.seen.good_BL).float(),
        )


def images(count=4, *, bands=BANDS):
    rng = np.random.default_rng(0)
    axis = np.arange(96) - 47.5
    blob = np.exp(-np.hypot(axis[:, None], axis) / 4)
    flux = 5 * blob + rng.normal(0, SIGMA, (count, len(bands), 96, 96))
    return PixelStore(
        flux_BCHW=flux.astype(np.float16),
        sigma_BCHW=np.full(flux.shape, SIGMA, np.float16),
        ids=np.arange(count).astype("S8"),
        bands=bands,
    )


def spectra(count=4):
    wave = np.arange(3600, 9800, 2.0)
    rng = np.random.default_rng(0)
    center = rng.uniform(5000, 8000, (count, 1))
    flux = 10 + 40 * np.exp(-(((wave - center) / 3) ** 2)) + rng.normal(0, 0.5, (count, len(wave)))
    good = np.ones(flux.shape, bool)
    good[:, 100:120] = False
    return SpectrumStore(
        flux_BL=flux.astype(np.float32),
        ivar_BL=np.full(flux.shape, 4.0, np.float32),
        good_BL=good,
        wavelength_BL=np.broadcast_to(wave, flux.shape).astype(np.float32),
        ids=np.arange(count).astype("S8"),
        left_out=3,
    )


def test_magnitudes_of_a_codec_that_loses_a_tenth_of_the_light():
    scores = reconstruction.scores(ScaledImages(0.9).eval(), images(), np.arange(4))
    lost = -2.5 * np.log10(0.9)
    for band in BANDS:
        assert scores["aperture_error"][band] == pytest.approx(0.1, abs=1e-3)
        assert scores["aperture_mag_error"][band] == pytest.approx(lost, abs=1e-3)
        assert scores["aperture_mag_bias"][band] == pytest.approx(lost, abs=1e-3)
        assert scores["r2"][band] == pytest.approx(0.99, abs=0.003)


def test_a_codec_without_error_scores_one():
    scores = reconstruction.scores(ScaledImages(1.0).eval(), images(), np.arange(4))
    assert set(scores["r2"].values()) == {1.0}
    assert set(scores["chi2"].values()) == {0.0}
    assert 1 <= scores["codes_used"] <= scores["codes"] == 4375


def test_nothing_bright_has_no_magnitudes():
    store = images()
    faint = PixelStore(flux_BCHW=store.flux_BCHW * 0, sigma_BCHW=store.sigma_BCHW, ids=store.ids,
                       bands=store.bands)  # fmt: skip
    scores = reconstruction.scores(ScaledImages(1.0).eval(), faint, np.arange(4))
    assert set(scores["aperture_mag_error"].values()) == {None}
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_scores_of_several_surveys_stand_beside_each_other(tmp_path):
    hsc = tuple(f"HSC-{band}" for band in "GRIZY")
    sources = [Learnt(CodecSource(name="legacysurvey", held_out=2), images()),
               Learnt(CodecSource(name="hsc", held_out=2), images(bands=hsc))]  # fmt: skip
    codec = ScaledImages(1.0).eval()
    scores = reconstruction.all_scores(codec, sources)
    assert set(scores["sources"]["hsc"]["r2"]) == set(hsc)
    assert scores["r2"] == scores["sources"]["legacysurvey"]["r2"]
    reconstruction.draw(codec, sources, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_spectrum_codec_without_error_keeps_the_lines():
    used = Usage(1024)
    scores = spectrum_scores.scores(ScaledSpectra().eval(), spectra(), np.arange(4), used)
    assert (scores["r2"], scores["chi2"], scores["mask_auc"]) == (1, 0, 1)
    assert (scores["lines"], scores["left_out"]) == (4, 3)
    assert scores["line_width_error"] == 0
    assert scores["line_shift"] < 30
    assert used.scores()["codes_used"] >= 1


def test_a_shift_of_a_line_is_told_in_kilometres_per_second():
    scores = spectrum_scores.scores(
        ScaledSpectra(shift=1).eval(), spectra(), np.arange(4), Usage(1024)
    )
    assert scores["line_shift"] == pytest.approx(299_792 * 2 / 6500, rel=0.4)  # a sample is 2 A
    assert scores["line_width_error"] < 0.1


def test_flux_that_is_wrong_by_a_fifth_is_seen():
    scores = spectrum_scores.scores(
        ScaledSpectra(factor=0.8).eval(), spectra(), np.arange(4), Usage(1024)
    )
    assert scores["chi2"] == pytest.approx(4 * 2.0**2, rel=0.2)
    assert scores["line_width_error"] < 0.01  # an equivalent width does not know the level


def test_the_strongest_line_is_found_where_it_was_put():
    wave = np.arange(4000, 7000, 1.0)
    flux = 5 + 20 * np.exp(-(((wave - 5007) / 2) ** 2)) + 8 * np.exp(-(((wave - 6300) / 2) ** 2))
    line = spectrum_scores.strongest_line(wave, flux, np.full(wave.shape, 4.0))
    assert line.wavelength == pytest.approx(5007, abs=0.2)
    assert line.width == pytest.approx(20 * 2 * np.pi**0.5 / 5, rel=0.02)
    assert spectrum_scores.strongest_line(wave[:50], flux[:50], flux[:50]) is None


def test_usage_counts_valid_tokens_only():
    valid = torch.tensor([[True, True, False]])
    used = Usage(8)
    used.add(Tokens(ids_BN=torch.tensor([[0, 1, 5]]), valid_BN=valid))
    assert used.scores() == {"codes_used": 2, "codes": 8, "perplexity": pytest.approx(2)}

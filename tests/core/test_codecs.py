"""Images and quantizers: codes in range, the caller's data untouched, odd sizes handled."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.codecs.image import CHANNELS, ImageCodec, ImageCodecConfig, channels_of
from skyvec_core.codecs.quantizers import FiniteScalarQuantizer, QuantileTable
from skyvec_core.observations import Images, fit_to_grid

DES = ("DES-G", "DES-R", "DES-I", "DES-Z")


def stamps(rows=3, size=96, bands=DES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flux = torch.randn((rows, len(bands), size, size), generator=generator)
    return Images(flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=bands)


@pytest.fixture(scope="module")
def codec():
    codec = ImageCodec(
        ImageCodecConfig(hidden_dims=16, multisurvey_projection_dims=4, num_consecutive=1)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return codec.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("levels", [(7, 5, 5, 5, 5), (8, 5, 5, 5)])
def test_every_code_survives_the_way_to_a_latent_and_back(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.num_codes)
    latents = quantizer.latents(codes)
    # Undo the squashing, so that codes() sees the middle of each level.
    half = (quantizer.levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(quantizer.levels % 2 == 0, 0.5, 0.0)
    rounded = latents * (quantizer.levels // 2)
    before = torch.atanh((rounded + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(quantizer.codes(before), codes)
    assert torch.allclose(quantizer(before), latents)


def test_the_first_dimension_of_a_code_counts_fastest():
    quantizer = FiniteScalarQuantizer((7, 5, 5, 5, 5))
    assert quantizer.basis.tolist() == [1, 7, 35, 175, 875]
    assert int(quantizer.codes(torch.full((5,), -20.0))) == 0
    assert int(quantizer.codes(torch.full((5,), 20.0))) == 4374


def test_the_official_image_codec_has_the_published_size():
    with torch.device("meta"):
        codec = ImageCodec(ImageCodecConfig())
    assert sum(p.numel() for p in codec.parameters()) == 70_058_592
    assert len(codec.state_dict()) == 287


def test_encoding_leaves_the_callers_image_untouched(codec):
    images = stamps(size=120)
    before = images.flux_BCHW.clone()
    first, second = codec.encode(images), codec.encode(images)
    assert torch.equal(images.flux_BCHW, before)
    assert torch.equal(first.ids_BN, second.ids_BN)


def test_the_order_of_bands_does_not_change_tokens(codec):
    images = stamps()
    turned = Images(flux_BCHW=images.flux_BCHW.flip(1), good_BCHW=images.good_BCHW, bands=DES[::-1])
    assert (codec.encode(images).ids_BN == codec.encode(turned).ids_BN).float().mean() > 0.999


def test_one_bad_pixel_reads_as_sky_and_nothing_else(codec):
    images = stamps()
    flux = images.flux_BCHW.clone()
    flux[0, :, 40, 40] = float("nan")
    good = images.good_BCHW.clone()
    good[0, :, 40, 40] = False
    zeroed = images.flux_BCHW.clone()
    zeroed[0, :, 40, 40] = 0
    spotted = codec.encode(Images(flux_BCHW=flux, good_BCHW=good, bands=DES))
    expected = codec.encode(Images(flux_BCHW=zeroed, good_BCHW=good, bands=DES))
    assert torch.equal(spotted.ids_BN, expected.ids_BN)
    assert spotted.valid_BN.all()


def test_a_small_cutout_is_centred_and_its_padding_is_not_valid(codec):
    tokens = codec.encode(stamps(size=23))
    assert tokens.ids_BN.shape == (3, 576)
    valid = tokens.valid_BN[0].view(24, 24)
    assert valid.sum() == 36
    assert valid[9:15, 9:15].all()


@given(height=st.integers(1, 140), width=st.integers(1, 140))
def test_fitting_keeps_the_middle_and_never_resamples(height, width):
    flux = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width)
    fitted, good = fit_to_grid(flux, torch.ones_like(flux, dtype=torch.bool), size=96)
    assert fitted.shape == good.shape == (1, 1, 96, 96)
    assert int(good.sum()) == min(height, 96) * min(width, 96)
    assert set(fitted[good].tolist()) <= set(flux.flatten().tolist())
    assert len(set(fitted[good].tolist())) == int(good.sum())
    assert (fitted[~good] == 0).all()


def test_a_96_pixel_crop_starts_where_the_official_one_does():
    flux = torch.arange(160.0).expand(1, 1, 160, 160)
    fitted, _ = fit_to_grid(flux, torch.ones_like(flux, dtype=torch.bool), size=96)
    assert fitted[0, 0, 0, 0] == 32


def test_decoding_gives_flux_in_the_asked_bands(codec):
    codes = codec.encode(stamps()).ids_BN
    assert codec.decode(codes, bands=DES[:2]).shape == (3, 2, 96, 96)
    assert codec.decode(codes, bands=CHANNELS[:5]).shape == (3, 5, 96, 96)


def test_hsc_comes_back_in_its_own_zero_point(codec):
    compressed = torch.linspace(-1, 1, 9).view(1, 1, 3, 3)
    hsc, des = codec.expand(compressed, ("HSC-G",)), codec.expand(compressed, ("DES-G",))
    assert torch.allclose(hsc, des * 63.0957, rtol=1e-5)


def test_an_unknown_band_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown bands \['SDSS-U'\]; .* HSC-G"):
        channels_of(["DES-G", "SDSS-U"])


def test_compression_and_expansion_are_inverse_below_the_clamp(codec):
    flux = stamps().flux_BCHW
    good = torch.ones_like(flux, dtype=torch.bool)
    back = codec.expand(codec.compress(flux, good, DES), DES)
    assert torch.allclose(back, flux, rtol=1e-4, atol=1e-5)


def test_quantiles_of_a_sample_split_it_evenly():
    table = QuantileTable(1024)
    sample = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) ** 3
    table.fit(sample)
    counts = torch.bincount(table.codes(sample), minlength=1024)[1:]
    assert counts.float().std() / counts.float().mean() < 0.05

"""Spectrum codec: tokens that depend on what was observed and on nothing else."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyvec_core.codecs.convnext import ConvNeXtEncoder
from skyvec_core.codecs.fast_convnext import FastConvNeXtEncoder
from skyvec_core.codecs.quantizers import LookupFreeQuantizer
from skyvec_core.codecs.spectrum import SpectrumCodec, SpectrumCodecConfig
from skyvec_core.observations import Images, Spectra

SMALL = SpectrumCodecConfig(
    encoder_depths=(1, 1, 2, 1),
    encoder_dims=(8, 8, 16, 16),
    decoder_depths=(1, 1, 1, 1),
    decoder_dims=(16, 8, 8, 2),
    latent_channels=16,
)
DESI = 3600 + 0.8 * torch.arange(7781)
SDSS = torch.logspace(3.58, 3.96, 4600)


def random_weights(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
        torch.nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
        if parameter.dim() == 1 and name.endswith("weight"):  # of a norm
            parameter.data += 1
    return module.eval().requires_grad_(requires_grad=False)


def new_codec():
    codec = random_weights(SpectrumCodec(SMALL))
    # Latents centred on zero, so that many codes occur.
    noise = torch.randn((2, 8704, 2), generator=torch.Generator().manual_seed(1))
    codec.quant_conv.bias -= codec.latents(0.2 * noise).flatten(0, 1).median(0).values
    return codec


@pytest.fixture(scope="module")
def codec():
    return new_codec()


@pytest.fixture(scope="module")
def fast_codec():
    codec = new_codec()
    codec.prepare("float32")
    return codec


def spectra(rows=3, wavelength=DESI, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    wavelength_BL = wavelength.expand(rows, -1).clone()
    brightness = 10 ** (4 * torch.rand((rows, 1), generator=generator) - 1)
    lines = torch.sin(wavelength_BL / (30 + 200 * torch.rand((rows, 1), generator=generator)))
    noise = torch.randn(wavelength_BL.shape, generator=generator)
    parts = {
        "flux_BL": brightness * (1 + lines + 0.3 * noise),
        "ivar_BL": (0.3 * brightness).expand_as(noise) ** -2,
        "good_BL": torch.rand(wavelength_BL.shape, generator=generator) > 0.01,
        "wavelength_BL": wavelength_BL,
    }
    return Spectra(**parts | changes)


def changed(observed, **changes):
    names = ("flux_BL", "ivar_BL", "good_BL", "wavelength_BL")
    return Spectra(**{name: getattr(observed, name) for name in names} | changes)


def chosen(observed, rows):
    names = ("flux_BL", "ivar_BL", "good_BL", "wavelength_BL")
    return Spectra(**{name: getattr(observed, name)[rows] for name in names})


def filled_up(observed, extra, *, wavelength, value):
    def longer(part, fill):
        return torch.cat([part, torch.full((len(part), extra), fill, dtype=part.dtype)], 1)

    return Spectra(
        flux_BL=longer(observed.flux_BL, value),
        ivar_BL=longer(observed.ivar_BL, value),
        good_BL=longer(observed.good_BL, False),  # noqa: FBT003
        wavelength_BL=longer(observed.wavelength_BL, wavelength),
    )


def same(tokens, others):
    return torch.equal(tokens.ids_BN, others.ids_BN) and torch.equal(
        tokens.valid_BN, others.valid_BN
    )


def test_every_code_survives_the_way_to_a_latent_and_back():
    quantizer = LookupFreeQuantizer(10)
    codes = torch.arange(1024)
    latents = quantizer.latents(codes)
    assert set(latents.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(quantizer.codes(latents * 0.01), codes)
    assert torch.equal(quantizer(latents * 0.01), latents)


def test_the_first_dimension_of_a_code_is_its_most_significant_bit():
    quantizer = LookupFreeQuantizer(10)
    assert int(quantizer.codes(torch.tensor([1.0] + [-1.0] * 9))) == 512
    assert int(quantizer.codes(torch.zeros(10))) == 0  # zero is not above zero


def test_the_official_spectrum_codec_has_the_published_size_and_tensors():
    codec = SpectrumCodec(SpectrumCodecConfig())
    tensors = codec.state_dict()
    assert sum(p.numel() for p in codec.parameters()) == 24_751_734
    assert len(tensors) == 586
    assert tensors["encoder.stages.2.26.grn.gamma"].shape == (1, 1, 1024)
    assert tensors["decoder.upsample_layers.3.1.weight"].shape == (64, 2, 4)
    assert {
        "_quantizer._quantizer.mask",
        "normalization_quantizer.buckets",
        "latent_grid._wavelength",
        "latent_grid.length",
    } <= tensors.keys()


@pytest.mark.parametrize("wavelength", [DESI, SDSS])
def test_a_spectrum_becomes_its_level_and_one_code_for_each_32_pixels(codec, wavelength):
    tokens = codec.encode(spectra(wavelength=wavelength))
    assert tokens.ids_BN.shape == tokens.valid_BN.shape == (3, 273)
    assert tokens.ids_BN.dtype == torch.int64
    assert tokens.ids_BN.min() >= 0
    assert tokens.ids_BN.max() < 1024
    assert tokens.ids_BN[:, 1:].unique().numel() > 50


def test_the_first_code_is_the_mean_flux_of_good_samples_on_a_logarithmic_grid(codec):
    observed = spectra(rows=1)
    flux_BL = torch.where(observed.good_BL, 99.0, 1e6)
    code = codec.encode(changed(observed, flux_BL=flux_BL)).ids_BN[0, 0]
    # The count is one too large on purpose, as in AION-1, so the mean is a little below 99.
    assert 98.0 < 10 ** codec.normalization_quantizer.values[code] - 1 < 100.5


def test_bad_samples_are_left_out_of_the_mean_and_good_ones_are_not(codec):
    observed = spectra(rows=1)
    bright = observed.flux_BL.clone()
    bright[0, 1000:1100] = 1e4
    bad = observed.good_BL.clone()
    bad[0, 1000:1100] = False
    level = codec.encode(changed(observed, good_BL=bad)).ids_BN[0, 0]
    assert codec.encode(changed(observed, flux_BL=bright, good_BL=bad)).ids_BN[0, 0] == level
    assert codec.encode(changed(observed, flux_BL=bright, good_BL=~bad)).ids_BN[0, 0] > level


@pytest.mark.parametrize("wavelength", [float("nan"), -1.0, 0.0, float("inf")])
@pytest.mark.parametrize("value", [0.0, float("nan"), 7.0])
def test_filling_a_row_up_changes_nothing(codec, wavelength, value):
    observed = spectra(wavelength=SDSS)
    longer = filled_up(observed, 123, wavelength=wavelength, value=value)
    assert same(codec.encode(longer), codec.encode(observed))


def test_rows_of_different_length_encode_as_each_does_alone(codec):
    long, short = spectra(rows=1, wavelength=DESI), spectra(rows=1, wavelength=SDSS, seed=1)
    longer = filled_up(short, 7781 - 4600, wavelength=float("nan"), value=0.0)
    names = ("flux_BL", "ivar_BL", "good_BL", "wavelength_BL")
    both = Spectra(**{n: torch.cat([getattr(long, n), getattr(longer, n)]) for n in names})
    tokens = codec.encode(both)
    for row, alone in enumerate([long, short]):
        twice = codec.encode(chosen(alone, [0, 0]))  # bits may depend on the shape of the batch
        assert torch.equal(tokens.ids_BN[row], twice.ids_BN[row])


def test_in_compat_filling_is_taken_at_its_word_and_every_token_is_valid(codec):
    observed = spectra()
    plain = codec.encode(observed, compat=True)
    assert torch.equal(plain.ids_BN, codec.encode(observed).ids_BN)
    assert plain.valid_BN.all()
    longer = filled_up(observed, 123, wavelength=-1.0, value=0.0)
    # The last wavelength being -1, AION-1 finds nothing inside the observed range.
    blank = changed(observed, wavelength_BL=observed.wavelength_BL + 1e5)
    tokens = codec.encode(longer, compat=True)
    assert torch.equal(tokens.ids_BN[:, 1:], codec.encode(blank, compat=True).ids_BN[:, 1:])
    assert tokens.valid_BN.all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_flux_that_is_not_finite_is_a_bad_zero_without_information(codec, value):
    observed = spectra()
    broken, zero = observed.flux_BL.clone(), observed.flux_BL.clone()
    broken[0, 100:150], zero[0, 100:150] = value, 0.0
    good, no_ivar = observed.good_BL.clone(), observed.ivar_BL.clone()
    good[0, 100:150], no_ivar[0, 100:150] = False, 0.0
    tokens = codec.encode(changed(observed, flux_BL=broken))
    expected = codec.encode(changed(observed, flux_BL=zero, good_BL=good, ivar_BL=no_ivar))
    assert same(tokens, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -5.0])
def test_an_inverse_variance_that_makes_no_sense_is_no_information(codec, value):
    observed = spectra()
    broken, zero = observed.ivar_BL.clone(), observed.ivar_BL.clone()
    broken[0, 100:150], zero[0, 100:150] = value, 0.0
    tokens = codec.encode(changed(observed, ivar_BL=broken))
    assert same(tokens, codec.encode(changed(observed, ivar_BL=zero)))


def test_double_precision_gives_the_same_tokens(codec):
    observed = spectra()
    double = changed(
        observed,
        flux_BL=observed.flux_BL.double(),
        ivar_BL=observed.ivar_BL.double(),
        wavelength_BL=observed.wavelength_BL.double(),
    )
    assert same(codec.encode(double), codec.encode(observed))


@pytest.mark.parametrize("compat", [False, True])
def test_encoding_leaves_the_callers_spectra_untouched(codec, compat):
    observed = spectra()
    observed.flux_BL[0, 5] = float("nan")
    observed.ivar_BL[0, 6] = 1e6
    before = [part.clone() for part in (observed.flux_BL, observed.ivar_BL)]
    codec.encode(observed, compat=compat)
    for part, old in zip((observed.flux_BL, observed.ivar_BL), before, strict=True):
        assert torch.equal(part.nan_to_num(-1), old.nan_to_num(-1))


def test_a_token_is_valid_where_the_spectrum_covers_half_of_its_pixels(codec):
    # Token 1 + n covers grid pixels 32 n to 32 n + 31.
    first, last = 32 * 10 + 16, 32 * 20 + 15
    wavelength = 3500 + 0.8 * torch.arange(first, last + 1)
    valid = codec.encode(spectra(wavelength=wavelength)).valid_BN[0, 1:]
    assert valid.nonzero().flatten().tolist() == list(range(10, 21))
    narrower = codec.encode(spectra(wavelength=wavelength[1:-1])).valid_BN[0, 1:]
    assert narrower.nonzero().flatten().tolist() == list(range(11, 20))


def test_bad_samples_make_a_token_not_valid_only_where_all_are_bad(codec):
    wavelength = 3500 + 0.8 * torch.arange(8704)
    good = torch.ones((1, 8704), dtype=torch.bool)
    good[0, 320:352] = False
    good[0, 640:671] = False
    valid = codec.encode(spectra(rows=1, wavelength=wavelength, good_BL=good)).valid_BN[0]
    assert (~valid).nonzero().flatten().tolist() == [11]


def test_a_coarse_spectrum_is_valid_between_its_samples(codec):
    wavelength = torch.arange(3500.0, 10500.0, 100.0)
    good = torch.ones((1, 70), dtype=torch.bool)
    valid = codec.encode(spectra(rows=1, wavelength=wavelength, good_BL=good)).valid_BN
    assert (~valid).nonzero()[:, 1].tolist() == [271, 272]  # behind the last sample, at 10400
    good[0, 30] = False  # at 6500, so 6450 to 6550 rests on a bad sample
    lost = valid & ~codec.encode(spectra(rows=1, wavelength=wavelength, good_BL=good)).valid_BN
    assert lost.nonzero()[:, 1].tolist() == [117, 118, 119]


def test_a_spectrum_without_a_good_sample_has_no_valid_token(codec):
    observed = spectra()
    good = observed.good_BL.clone()
    good[1] = False
    flux = observed.flux_BL.clone()
    flux[2] = float("nan")
    valid = codec.encode(changed(observed, good_BL=good, flux_BL=flux)).valid_BN
    assert valid.any(1).tolist() == [True, False, False]


def test_an_empty_row_is_legal_and_not_valid(codec):
    observed = spectra()
    parts = [observed.flux_BL, observed.ivar_BL, observed.good_BL, observed.wavelength_BL]
    for part in parts:
        part[1] = 0
    tokens = codec.encode(observed)
    assert tokens.valid_BN.any(1).tolist() == [True, False, True]
    assert torch.equal(tokens.ids_BN[[0, 2]], codec.encode(spectra()).ids_BN[[0, 2]])


def test_a_spectrum_beyond_the_grid_has_a_level_and_no_shape(codec):
    tokens = codec.encode(spectra(wavelength=torch.linspace(11_000, 20_000, 500)))
    assert tokens.valid_BN[:, 0].all()
    assert not tokens.valid_BN[:, 1:].any()


@pytest.mark.parametrize("prepared", [False, True])
def test_a_row_does_not_depend_on_its_place_or_on_other_rows(codec, fast_codec, prepared):
    used = fast_codec if prepared else codec
    observed = spectra(rows=8)
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    tokens = used.encode(observed)
    moved = used.encode(chosen(observed, order))
    assert torch.equal(moved.ids_BN, tokens.ids_BN[order])
    others = changed(observed, flux_BL=observed.flux_BL.clone())
    others.flux_BL[1:] = float("nan")
    assert torch.equal(used.encode(others).ids_BN[0], tokens.ids_BN[0])


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_prepared_codec_gives_the_tokens_of_a_plain_one(codec, fast_codec, rows):
    for wavelength in (DESI, SDSS):
        observed = spectra(rows=rows, wavelength=wavelength)
        plain, fast = codec.encode(observed), fast_codec.encode(observed)
        assert torch.equal(fast.valid_BN, plain.valid_BN)
        # A latent within rounding of zero may fall to either side.
        assert (fast.ids_BN != plain.ids_BN).float().mean() < 1e-3


def test_a_prepared_encoder_gives_the_latents_of_a_plain_one():
    encoder = random_weights(ConvNeXtEncoder(2, depths=(1, 2, 1), widths=(8, 16, 32)))
    x_BLC = torch.randn((5, 256, 2), generator=torch.Generator().manual_seed(0))
    before = x_BLC.clone()
    plain = encoder(x_BLC)
    fast = FastConvNeXtEncoder(encoder, precision=torch.float32)(x_BLC)
    assert torch.equal(x_BLC, before)
    assert torch.allclose(fast, plain, rtol=1e-4, atol=1e-5)
    narrow = FastConvNeXtEncoder(encoder, precision=torch.bfloat16)(x_BLC)
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - plain).abs().max() < 0.1 * plain.std()


def test_a_prepared_encoder_works_where_torch_lacks_the_packed_kernel(monkeypatch):
    encoder = random_weights(ConvNeXtEncoder(2, depths=(1, 1), widths=(8, 16)))
    x_BLC = torch.randn((2, 64, 2), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fast = FastConvNeXtEncoder(encoder, precision=torch.float32)(x_BLC)
    assert torch.allclose(fast, encoder(x_BLC), rtol=1e-4, atol=1e-5)


def test_preparing_leaves_the_published_tensors_as_they_were(codec, fast_codec):
    plain, prepared = codec.state_dict(), fast_codec.state_dict()
    assert plain.keys() == prepared.keys()
    assert all(torch.equal(plain[name], prepared[name]) for name in plain)


def test_a_prepared_codec_can_be_copied_and_sent(fast_codec):
    tokens = fast_codec.encode(spectra())
    assert same(copy.deepcopy(fast_codec).encode(spectra()), tokens)
    sent = pickle.loads(pickle.dumps(fast_codec))  # noqa: S301 - our own bytes
    assert same(sent.encode(spectra()), tokens)


def test_half_precision_keeps_most_tokens(codec):
    narrow = new_codec()
    narrow.prepare("bfloat16")
    observed = spectra(rows=4)
    equal = narrow.encode(observed).ids_BN == codec.encode(observed).ids_BN
    assert equal[:, 0].all()
    assert 0.5 < equal.float().mean() < 1


def test_an_unknown_precision_is_an_error(codec):
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, found 'half'"):
        codec.prepare("half")


def test_decoding_gives_flux_in_the_unit_of_the_level(codec):
    ids = codec.encode(spectra()).ids_BN
    ids[:, 1:] = ids[0, 1:]
    ids[:, 0] = torch.tensor([300, 600, 900])
    decoded = codec.decode(ids)
    assert decoded.flux_BL.shape == decoded.bad_probability_BL.shape == (3, 8704)
    assert decoded.wavelength_BL[0, [0, -1]].tolist() == pytest.approx([3500, 10462.4])
    level = 10 ** codec.normalization_quantizer.values[ids[:, 0]] - 1
    assert torch.allclose(decoded.flux_BL / level[:, None], decoded.flux_BL[:1] / level[0])
    assert ((decoded.bad_probability_BL > 0) & (decoded.bad_probability_BL < 1)).all()


def test_the_floor_of_the_level_also_holds_in_decoding(codec):
    ids = torch.zeros((1, 273), dtype=torch.int64)
    assert codec.levels(ids[:, 0]).item() == pytest.approx(0.1)


def test_decoding_interpolates_to_the_asked_wavelengths(codec):
    ids = codec.encode(spectra()).ids_BN
    grid = codec.decode(ids)
    asked = torch.tensor([9000.0, 3500.0, 3504.2, 2000.0, 12_000.0])
    decoded = codec.decode(ids, asked)
    assert torch.equal(decoded.wavelength_BL, asked.expand(3, -1))
    assert torch.allclose(decoded.flux_BL[:, 1], grid.flux_BL[:, 0])
    left, right = grid.wavelength_BL[0, 5:7]
    weight = (asked[2] - left) / (right - left)
    assert 0.24 < weight < 0.26
    between = torch.lerp(grid.flux_BL[:, 5], grid.flux_BL[:, 6], weight)
    assert torch.allclose(decoded.flux_BL[:, 2], between, rtol=1e-4)
    assert torch.allclose(decoded.flux_BL[:, 3:], codec.levels(ids[:, 0]).expand(-1, 2))
    assert (decoded.bad_probability_BL[:, 3:] == 0.5).all()


@given(
    start=st.floats(3000, 9000), step=st.floats(0.3, 40), count=st.integers(2, 300), seed=st.just(0)
)
def test_any_ascending_spectrum_gives_codes_in_range(start, step, count, seed):
    codec = new_codec()
    wavelength = start + step * torch.arange(count)
    tokens = codec.encode(spectra(rows=1, wavelength=wavelength, seed=seed))
    assert ((tokens.ids_BN >= 0) & (tokens.ids_BN < 1024)).all()


@pytest.mark.parametrize("unsorted", ["descending", "equal", "swapped"])
def test_wavelengths_that_do_not_ascend_are_an_error_that_names_the_row(codec, unsorted):
    observed = spectra()
    wavelength = observed.wavelength_BL.clone()
    if unsorted == "descending":
        wavelength[1] = wavelength[1].flip(0)
    elif unsorted == "equal":
        wavelength[1, 50] = wavelength[1, 51]
    else:
        wavelength[1, [50, 51]] = wavelength[1, [51, 50]]
    with pytest.raises(ValueError, match="spectrum 1 of the batch has wavelengths that do not asc"):
        codec.encode(changed(observed, wavelength_BL=wavelength))


@pytest.mark.parametrize("fill", [float("nan"), -1.0])
@pytest.mark.parametrize("place", [0, 77])
def test_filling_before_the_end_of_a_row_is_an_error(codec, fill, place):
    observed = spectra()
    wavelength = observed.wavelength_BL.clone()
    wavelength[2, place] = fill
    with pytest.raises(ValueError, match="spectrum 2 of the batch has filling between its samples"):
        codec.encode(changed(observed, wavelength_BL=wavelength))


def test_flux_beyond_a_clip_of_the_config_reads_as_the_clip():
    codec = random_weights(SpectrumCodec(replace(SMALL, clip_flux=50.0)))
    observed = spectra()
    clipped = changed(observed, flux_BL=observed.flux_BL.clamp(-50, 50))
    assert (observed.flux_BL != clipped.flux_BL).any()
    assert same(codec.encode(observed), codec.encode(clipped))


def test_no_spectra_give_no_tokens(codec, fast_codec):
    none = chosen(spectra(), slice(0))
    assert codec.encode(none).ids_BN.shape == fast_codec.encode(none).ids_BN.shape == (0, 273)


@pytest.mark.parametrize("shape", [(273,), (2, 272)])
def test_decoding_too_few_codes_is_an_error(codec, shape):
    with pytest.raises(ValueError, match=r"must be \(B, 273\), found"):
        codec.decode(torch.zeros(shape, dtype=torch.int64))


def test_something_else_than_spectra_is_refused(codec):
    image = torch.zeros((1, 1, 96, 96))
    images = Images(flux_BCHW=image, good_BCHW=image == 0, bands=("DES-G",))
    with pytest.raises(TypeError, match="the spectrum codec encodes Spectra, found Images"):
        codec.encode(images)


@pytest.mark.parametrize("shape", [(7781,), (3, 1), (1, 3, 50)])
def test_spectra_of_a_wrong_shape_are_refused(codec, shape):
    part = torch.ones(shape)
    observed = Spectra(flux_BL=part, ivar_BL=part, good_BL=part > 0, wavelength_BL=part)
    with pytest.raises(ValueError, match=r"must be \(B, L\) with L at least 2, found"):
        codec.encode(observed)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embedding_dim": 9}, "number of bits of codebook_size"),
        ({"codebook_size": 1000}, "number of bits of codebook_size"),
        ({"latent_channels": 256}, "must end in latent_channels"),
        ({"decoder_dims": (256, 128, 64, 1)}, "in 2"),
        ({"num_pixels": 8700}, "multiple of 32"),
        ({"encoder_depths": (3, 3)}, "must be equally many"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        SpectrumCodecConfig(**sizes)

"""The image codec at work: the prepared form against the plain one, bands, bad pixels, compat."""

import copy

import pytest
import torch

from skyvec_core.codecs.image import NOT_A_CODE, ImageCodec, ImageCodecConfig, channels_of
from skyvec_core.observations import Images

DES = ("DES-G", "DES-R", "DES-I", "DES-Z")
HSC = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")
SMALL = ImageCodecConfig(hidden_dims=16, multisurvey_projection_dims=4, num_consecutive=1)
PRECISIONS = ("float32", "bfloat16")


def cutouts(rows=4, bands=DES, *, size=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flux = torch.randn((rows, len(bands), size, size), generator=generator)
    flux *= torch.exp(2 * torch.randn((rows, 1, size, size), generator=generator))
    return Images(flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=bands)


def chosen(images, rows):
    return Images(
        flux_BCHW=images.flux_BCHW[rows], good_BCHW=images.good_BCHW[rows], bands=images.bands
    )


def spoilt(images, value=float("nan")):
    """The first cutout with one pixel that is bad and holds ``value``."""
    flux, good = images.flux_BCHW.clone(), images.good_BCHW.clone()
    flux[0, 1, 50, 60] = value
    good[0, 1, 50, 60] = False
    return Images(flux_BCHW=flux, good_BCHW=good, bands=images.bands)


def compressed(codec, images):
    return codec.compress(images.flux_BCHW, images.good_BCHW, images.bands)


def new_codec(precision=None):
    """A codec whose latents use many codes, plain or prepared."""
    codec = ImageCodec(SMALL).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    images = cutouts(seed=1)
    latent_BDhw = codec.latents(compressed(codec, images), channels_of(images.bands))
    spread = latent_BDhw.std((0, 2, 3))
    codec.pre_quant_proj.weight /= spread[:, None, None, None]
    codec.pre_quant_proj.bias -= latent_BDhw.mean((0, 2, 3))
    codec.pre_quant_proj.bias /= spread
    if precision is not None:
        codec.prepare(precision)
    return codec


@pytest.fixture(scope="module")
def plain():
    return new_codec()


@pytest.fixture(scope="module")
def prepared():
    return {precision: new_codec(precision) for precision in PRECISIONS}


@pytest.mark.parametrize("bands", [DES, HSC, ("DES-G", "DES-R", "DES-Z"), ("HSC-I",)])
def test_the_prepared_form_gives_the_same_codes(plain, prepared, bands):
    images = cutouts(bands=bands)
    expected = plain.encode(images)
    found = prepared["float32"].encode(images)
    assert torch.equal(found.ids_BN, expected.ids_BN)
    assert expected.ids_BN.unique().numel() > 100


@pytest.mark.parametrize("bands", [DES, HSC, ("DES-G", "DES-R", "DES-Z"), ("HSC-I",)])
def test_the_prepared_form_rounds_about_as_the_plain_one(plain, prepared, bands):
    channels, images = channels_of(bands), cutouts(bands=bands)
    planes = compressed(plain, images)
    exact = copy.deepcopy(plain).double().latents(planes.double(), channels)
    error, usual_error = (
        (latent - exact).square().mean().sqrt()
        for latent in (prepared["float32"]._fast(planes, channels), plain.latents(planes, channels))
    )
    assert error < 6 * usual_error


def test_bfloat16_changes_few_codes_and_no_latent_much(plain, prepared):
    images = cutouts()
    equal = prepared["bfloat16"].encode(images).ids_BN == plain.encode(images).ids_BN
    assert 0.85 < equal.float().mean() < 1
    latent = prepared["bfloat16"]._fast(compressed(plain, images), channels_of(DES))
    expected = plain.latents(compressed(plain, images), channels_of(DES))
    assert latent.dtype == torch.float32
    assert (latent - expected).square().mean().sqrt() < 0.03


def test_surveys_may_take_turns(prepared):
    codec = prepared["float32"]
    first = codec.encode(cutouts())
    codec.encode(cutouts(bands=HSC))
    assert torch.equal(codec.encode(cutouts()).ids_BN, first.ids_BN)


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_the_order_of_bands_does_not_change_a_bit(plain, prepared, precision):
    codec = plain if precision is None else prepared[precision]
    images = cutouts(2)
    turned = Images(
        flux_BCHW=images.flux_BCHW.flip(1), good_BCHW=images.good_BCHW.flip(1), bands=DES[::-1]
    )
    assert torch.equal(codec.encode(images).ids_BN, codec.encode(turned).ids_BN)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_latents_of_a_row_do_not_depend_on_other_rows_nor_on_its_place(prepared, precision):
    images = cutouts(ImageCodec.rows)
    encoder = prepared[precision]._fast
    latent = encoder(compressed(prepared[precision], images), channels_of(DES))
    order = torch.randperm(ImageCodec.rows, generator=torch.Generator().manual_seed(2))
    turned = chosen(images, order)
    found = encoder(compressed(prepared[precision], turned), channels_of(DES))
    assert torch.equal(found, latent[order])
    turned.flux_BCHW[1:] = float("nan")
    alone = encoder(compressed(prepared[precision], turned), channels_of(DES))
    assert torch.equal(alone[0], latent[order[0]])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_call_with_more_rows_gives_the_same_bits(prepared, precision):
    planes = compressed(prepared[precision], cutouts(2 * ImageCodec.rows))
    encoder, channels = prepared[precision]._fast, channels_of(DES)
    halves = [encoder(half, channels) for half in planes.split(ImageCodec.rows)]
    assert torch.equal(encoder(planes, channels), torch.cat(halves))


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_encoding_leaves_the_callers_tensors_untouched(plain, prepared, precision):
    codec = plain if precision is None else prepared[precision]
    images = cutouts(1, HSC)
    flux, good = images.flux_BCHW.clone(), images.good_BCHW.clone()
    codec.encode(images)
    codec.encode(images, compat=True)
    assert torch.equal(images.flux_BCHW, flux)
    assert torch.equal(images.good_BCHW, good)


def test_preparing_does_not_change_what_is_saved():
    codec = new_codec()
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    codec.prepare("float32")
    codec.encode(cutouts(1))
    codec.prepare("bfloat16")
    codec.encode(cutouts(1))
    after = codec.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_preparing_again_takes_up_changed_weights():
    codec = new_codec("float32")
    before = codec.encode(cutouts(1)).ids_BN
    codec.model.conv_in.conv.weight *= 1.5
    codec.subsample_in.bias += 1
    changed = new_codec()
    changed.load_state_dict(codec.state_dict())
    codec.prepare("float32")
    after = codec.encode(cutouts(1)).ids_BN
    assert not torch.equal(after, before)
    assert torch.equal(after, changed.encode(cutouts(1)).ids_BN)


def test_an_unknown_precision_is_refused(plain):
    with pytest.raises(ValueError, match="unknown precision 'float16'; choose from float32, bfl"):
        plain.prepare("float16")


@pytest.mark.parametrize("precision", [None, "float32"])
def test_official_codes_read_bad_pixels_and_call_all_tokens_valid(plain, prepared, precision):
    codec = plain if precision is None else prepared[precision]
    images = spoilt(cutouts(2), value=500.0)
    good = Images(
        flux_BCHW=images.flux_BCHW, good_BCHW=torch.ones_like(images.good_BCHW), bands=DES
    )
    official = codec.encode(images, compat=True)
    assert torch.equal(official.ids_BN, codec.encode(good).ids_BN)
    assert not torch.equal(official.ids_BN, codec.encode(images).ids_BN)
    nothing = Images(
        flux_BCHW=images.flux_BCHW, good_BCHW=torch.zeros_like(images.good_BCHW), bands=DES
    )
    assert codec.encode(nothing, compat=True).valid_BN.all()
    assert not codec.encode(nothing).valid_BN.any()


@pytest.mark.parametrize("precision", [None, "float32"])
def test_nan_poisons_official_codes_of_its_cutout_only(plain, prepared, precision):
    codec = plain if precision is None else prepared[precision]
    whole, images = cutouts(2), spoilt(cutouts(2))
    official = codec.encode(images, compat=True).ids_BN
    assert (official[0] == NOT_A_CODE).all()
    assert torch.equal(official[1], codec.encode(whole, compat=True).ids_BN[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite_is_bad_whatever_the_mask_says(plain, value):
    images = spoilt(cutouts(2), value)
    trusted = Images(
        flux_BCHW=images.flux_BCHW, good_BCHW=torch.ones_like(images.good_BCHW), bands=DES
    )
    assert torch.equal(plain.encode(trusted).ids_BN, plain.encode(images).ids_BN)
    assert plain.encode(trusted).ids_BN.min() >= 0


@pytest.mark.parametrize("size", [95, 64])
def test_small_cutouts_have_no_official_codes(plain, size):
    with pytest.raises(ValueError, match=f"{size} x {size} pixels have no official codes"):
        plain.encode(cutouts(1, size=size), compat=True)
    assert plain.encode(cutouts(1, size=size)).ids_BN.shape == (1, 576)


def test_what_is_not_images_is_refused(plain):
    with pytest.raises(TypeError, match="takes Images, found Tensor"):
        plain.encode(torch.zeros(1, 4, 96, 96))
    flux = torch.zeros(1, 4, 96, 96)
    with pytest.raises(TypeError, match=r"good_BCHW must be bool, found torch\.float32"):
        plain.encode(Images(flux_BCHW=flux, good_BCHW=flux, bands=DES))


def test_a_missing_axis_is_refused(plain):
    flux = torch.zeros(96, 4, 96)
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\), found \(96, 4, 96\)"):
        plain.encode(Images(flux_BCHW=flux, good_BCHW=flux.bool(), bands=DES))


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (("DES-G", "HSC-R"), "not of one survey"),
        (("DES-G", "DES-G"), "give each band once"),
        (("DES-G", "DES-Y"), r"unknown bands \['DES-Y'\]"),
    ],
)
def test_bands_that_make_no_image_are_refused(plain, bands, message):
    with pytest.raises(ValueError, match=message):
        plain.encode(cutouts(1, bands))

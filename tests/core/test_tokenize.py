"""The door for observations: shapes that codecs see, kinds that they take, devices, compat."""

import pytest
import torch

from skyvec_core.codecs.image import ImageCodec, ImageCodecConfig
from skyvec_core.codecs.scalar import GridScalarCodec
from skyvec_core.codecs.spectrum import SpectrumCodec, SpectrumCodecConfig
from skyvec_core.embedder import Model
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import CutoutCatalogs, Images, Spectra, count_of, pieces

DOMAINS = ("tok_image", "tok_image_hsc", "tok_spectrum_desi", "tok_z")
BANDS = ("DES-G", "DES-R")


@pytest.fixture(scope="module")
def codecs():
    generator = torch.Generator().manual_seed(0)
    image = ImageCodec(
        ImageCodecConfig(hidden_dims=16, multisurvey_projection_dims=4, num_consecutive=1)
    )
    spectrum = SpectrumCodec(
        SpectrumCodecConfig(
            encoder_depths=(1, 1, 1, 1), encoder_dims=(8, 8, 8, 16), decoder_depths=(1, 1, 1, 1),
            decoder_dims=(8, 8, 8, 2), latent_channels=16,
        )
    )  # fmt: skip
    for codec in (image, spectrum):
        for parameter in codec.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    redshift = GridScalarCodec()
    redshift.set_grid(0, 6)
    return {
        "tok_image": image,
        "tok_image_hsc": image,
        "tok_spectrum_desi": spectrum,
        "tok_z": redshift,
    }


@pytest.fixture(scope="module")
def model(codecs):
    return Model(transformer(), codecs, name="test")


def transformer():
    made = EncoderDecoder(
        TransformerConfig(dim=32, num_heads=2, encoder_depth=1, decoder_depth=1,
                          domains_in=DOMAINS, domains_out=DOMAINS)
    )  # fmt: skip
    made.initialize(torch.Generator().manual_seed(0))
    return made


def observations(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    flux = torch.randn((rows, 2, 100, 96), generator=generator)
    wavelength = (3600 + 2 * torch.arange(2000.0)).expand(rows, -1).contiguous()
    spectra = torch.rand(wavelength.shape, generator=generator)
    good = torch.ones_like(spectra, dtype=torch.bool)
    z = torch.rand(rows, generator=generator)
    z[0] = torch.nan
    return {
        "tok_image": Images(
            flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=BANDS
        ),
        "tok_spectrum_desi": Spectra(
            flux_BL=spectra, ivar_BL=spectra, good_BL=good, wavelength_BL=wavelength
        ),
        "tok_z": z,
    }


@pytest.mark.parametrize("rows", [1, 9, 33])
def test_tokens_of_a_row_have_the_same_bits_in_any_number_of_rows(model, rows):
    whole = model.tokenize(observations(40))
    part = {}
    for key, observed in observations(40).items():
        part[key] = next(iter(pieces(observed, rows)))[0]
    for key, coded in model.tokenize(part).items():
        assert torch.equal(coded.ids_BN, whole[key].ids_BN[:rows])
        assert torch.equal(coded.valid_BN, whole[key].valid_BN[:rows])


def test_observations_are_not_changed(model):
    given, untouched = observations(3), observations(3)
    given["tok_image"].flux_BCHW[0, 0, 5, 5] = torch.nan
    untouched["tok_image"].flux_BCHW[0, 0, 5, 5] = torch.nan
    model.tokenize(given)
    for key in ("tok_image", "tok_spectrum_desi"):
        for name in given[key].__slots__:
            part = getattr(given[key], name)
            if isinstance(part, torch.Tensor):
                assert torch.equal(part.nan_to_num(), getattr(untouched[key], name).nan_to_num())
    assert torch.equal(given["tok_z"].nan_to_num(-1), untouched["tok_z"].nan_to_num(-1))


def test_pieces_cover_every_row_once_and_fill_up_with_zeros():
    spectra = observations(5)["tok_spectrum_desi"]
    found = list(pieces(spectra, 2))
    assert [real for _, real in found] == [2, 2, 1]
    assert all(count_of(piece) == 2 for piece, _ in found)
    last = found[-1][0]
    assert torch.equal(last.flux_BL[0], spectra.flux_BL[4])
    assert not last.good_BL[1].any()
    assert next(iter(pieces(torch.arange(3.0), 8)))[0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("key", "wrong", "error"),
    [
        ("tok_image", torch.zeros(3), TypeError),
        ("tok_spectrum_desi", torch.zeros(3, 100), TypeError),
        ("tok_z", "images", TypeError),
        ("tok_z", torch.zeros(3, 2), ValueError),
        ("tok_ebv", torch.zeros(3), ValueError),
    ],
)
def test_the_wrong_kind_of_observation_is_named(model, key, wrong, error):
    wrong = observations(3)["tok_image"] if isinstance(wrong, str) else wrong
    with pytest.raises(error):
        model.tokenize({key: wrong})


def test_bands_of_another_survey_are_refused(model):
    image = observations(2)["tok_image"]
    with pytest.raises(ValueError, match=r"tok_image_hsc takes bands HSC-..., found DES-G, DES-R"):
        model.tokenize({"tok_image_hsc": image})


def test_a_message_names_the_modality_the_rows_and_the_shape(model):
    spectra = observations(12)["tok_spectrum_desi"]
    spectra.wavelength_BL[10] = spectra.wavelength_BL[10].flip(0)
    with pytest.raises(ValueError, match="tok_spectrum_desi, rows 8 to 11: spectrum 2"):
        model.tokenize({"tok_spectrum_desi": spectra})
    with pytest.raises(ValueError, match=r"tok_z takes \(B,\) or \(B, 1\), found \(4, 3\)"):
        model.tokenize({"tok_z": torch.zeros(4, 3)})


def test_numpy_arrays_are_told_what_to_become(model):
    array = torch.zeros(3).numpy()
    with pytest.raises(TypeError, match=r"tok_z takes Tensor, found ndarray; use torch.from_numpy"):
        model.tokenize({"tok_z": array})
    with pytest.raises(TypeError, match="flux_BL must be a torch tensor, found ndarray"):
        Spectra(flux_BL=array, ivar_BL=array, good_BL=array, wavelength_BL=array)


def test_no_objects_give_no_tokens_and_no_vectors(model):
    """A cone may leave a partition without rows."""
    image = Images(
        flux_BCHW=torch.zeros(0, 2, 96, 96),
        good_BCHW=torch.zeros((0, 2, 96, 96), dtype=torch.bool),
        bands=BANDS,
    )
    tokens = model.tokenize({"tok_image": image, "tok_z": torch.zeros(0)})
    assert tokens["tok_image"].ids_BN.shape == (0, 576)
    assert tokens["tok_z"].valid_BN.shape == (0, 1)
    assert model.embed(tokens).shape == (0, model.dim)
    assert model.embed(tokens, pooling="mean_of_modalities").shape == (0, model.dim)


def test_vectors_can_be_learnt_from(model):
    tokens = model.tokenize({"tok_z": torch.tensor([0.1, 0.2])})
    layer = torch.nn.Linear(model.dim, 1)
    layer(model.embed(tokens)).sum().backward()
    assert layer.weight.grad is not None


def test_tokens_of_different_numbers_of_objects_are_refused(model):
    tokens = model.tokenize({"tok_z": torch.tensor([0.1, 0.2])})
    other = model.tokenize({"tok_image": observations(3)["tok_image"]})
    with pytest.raises(ValueError, match="tokens must be of one number of objects, found"):
        model.embed(tokens | other)
    with pytest.raises(ValueError, match="tokens must be of one number of objects, found none"):
        model.embed({})


def test_parts_of_different_shapes_are_refused():
    good = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="the parts of Spectra differ in shape"):
        Spectra(
            flux_BL=torch.zeros(2, 5), ivar_BL=torch.zeros(2, 4), good_BL=good,
            wavelength_BL=torch.zeros(2, 5),
        )  # fmt: skip
    zeros = torch.zeros(2, 5)
    with pytest.raises(TypeError, match="good_BL must be bool"):
        Spectra(flux_BL=zeros, ivar_BL=zeros, good_BL=zeros, wavelength_BL=zeros)
    with pytest.raises(ValueError, match="the parts of CutoutCatalogs differ in shape"):
        CutoutCatalogs(
            x_BO=zeros, y_BO=zeros, e1_BO=zeros, e2_BO=zeros, radius_BO=zeros[:1], present_BO=good
        )


def test_compat_reaches_the_codecs(codecs):
    official = Model(transformer(), codecs, name="test", compat=True)
    tokens = official.tokenize({"tok_z": torch.tensor([torch.nan, 0.5])})["tok_z"]
    assert tokens.ids_BN[0].item() == 1023
    assert tokens.valid_BN.all()


def test_the_digest_does_not_follow_precision_or_preparation(codecs):
    digests = {
        Model(transformer(), codecs, name="test", precision=p).digest
        for p in ("float32", "bfloat16")
    }
    assert len(digests) == 1

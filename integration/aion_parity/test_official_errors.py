"""Where the official package is wrong: shown against it, and right in ours.

In every case the official answer to a dirty input differs from its own answer to the clean one, and
ours to the dirty input is the clean one. Where ours can be asked for the official answer, that is
the dirty one.
"""

from dataclasses import dataclass

import pytest
import torch

from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import CutoutCatalogs, Images, Spectra, fit_to_grid
from skyvec_core.prediction import predict_logits

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DES = ("DES-G", "DES-R", "DES-I", "DES-Z")
HSC = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")


@dataclass(frozen=True)
class Outcome:
    """Codes, vectors or logits."""

    clean: torch.Tensor
    """Official answer to the clean input."""
    dirty: torch.Tensor
    """Official answer to the dirty input."""
    ours: torch.Tensor
    """Our answer to the dirty input."""
    compat: torch.Tensor | None = None
    """Our answer to the dirty input where the official one is asked for."""


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_ids(key, rows=2, seed=0):
    one = MODALITIES[key]
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, one.vocabulary, (rows, one.num_tokens), generator=generator)


def nothing_hidden(ids):
    return {key: torch.zeros_like(one, dtype=torch.bool) for key, one in ids.items()}


def vectors_of(pair, ids, hide=None, *, compat=False, **arguments):
    """Our pooled vectors of official ids."""
    hide = hide or nothing_hidden(ids)
    tokens = pair.tokens(ids, hide)
    model = Model(pair.model.transformer, {}, name="tiny", compat=compat)
    return model.embed(tokens, **arguments)


def official_mean(pair, ids, hide=None, **arguments):
    """Official vectors as users get them."""
    context = pair.official("encode", ids, hide or {}, **arguments)["context"]
    return context.mean(1)


def an_hsc_image_is_divided_in_place(codecs, _tiny):
    pair, flux = codecs("tok_image_hsc", "small"), 5 * noise(2, 5, 96, 96)
    images = Images(flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=HSC)
    pair.ours.encode(images)
    return Outcome(
        clean=pair.official_ids(HSC, flux=flux),
        dirty=pair.official_ids(HSC, flux=flux, times=2),
        ours=pair.ours.encode(images).ids_BN,
    )


def one_nan_pixel_changes_every_token(codecs, _tiny):
    pair, flux = codecs("tok_image", "small"), noise(2, 4, 96, 96)
    flux[:, :, 50, 50] = 0  # what a pixel without a value reads as
    spoilt = flux.clone()
    spoilt[:, 1, 50, 50] = torch.nan
    images = Images(flux_BCHW=spoilt, good_BCHW=~spoilt.isnan(), bands=DES)
    return Outcome(
        clean=pair.official_ids(DES, flux=flux),
        dirty=pair.official_ids(DES, flux=spoilt),
        ours=pair.ours.encode(images).ids_BN,
        compat=pair.ours.encode(images, compat=True).ids_BN,
    )


def a_small_cutout_is_cropped_wrongly(codecs, _tiny):
    pair, flux = codecs("tok_image", "small"), noise(2, 4, 64, 64)
    good = torch.ones_like(flux, dtype=torch.bool)
    padded, _ = fit_to_grid(flux, good, size=96)
    return Outcome(
        clean=pair.official_ids(DES, flux=padded),
        dirty=pair.official_ids(DES, flux=flux),
        ours=pair.ours.encode(Images(flux_BCHW=flux, good_BCHW=good, bands=DES)).ids_BN,
    )


def spectra(rows=2, length=5000):
    wavelength = (3700 + torch.arange(float(length))).expand(rows, -1)
    flux = 3 + torch.sin(wavelength / 400) + 0.1 * noise(rows, length)
    observed = {"flux": flux, "ivar": torch.ones_like(flux), "wavelength": wavelength.contiguous()}
    return observed | {"mask": torch.zeros_like(flux, dtype=torch.bool)}


def wavelengths_of_minus_one_fill_a_row(codecs, _tiny):
    pair, observed = codecs("tok_spectrum_sdss", "small"), spectra()
    filling = {"flux": 0.0, "ivar": 0.0, "wavelength": -1.0, "mask": True}
    filled = {
        name: torch.cat([tensor, torch.full((2, 300), filling[name])], dim=1)
        for name, tensor in observed.items()
    }
    ours = Spectra(
        flux_BL=filled["flux"],
        ivar_BL=filled["ivar"],
        good_BL=~filled["mask"],
        wavelength_BL=filled["wavelength"],
    )
    return Outcome(
        clean=pair.official_ids(**observed),
        dirty=pair.official_ids(**filled),
        ours=pair.ours.encode(ours).ids_BN,
        compat=pair.ours.encode(ours, compat=True).ids_BN,
    )


def tokens_after_the_256th_are_dropped(_codecs, tiny):
    ids = {key: random_ids(key) for key in ("tok_spectrum_desi", "tok_flux_g", "tok_z")}
    return Outcome(
        clean=official_mean(tiny, ids),
        dirty=official_mean(tiny, ids, limit="default"),
        ours=vectors_of(tiny, ids),
        compat=vectors_of(tiny, ids, compat=True),
    )


def hidden_tokens_count_in_the_mean(_codecs, tiny):
    ids = {key: random_ids(key) for key in ("tok_xp_bp", "tok_xp_rp")}
    hide = nothing_hidden(ids)
    hide["tok_xp_rp"][:] = True
    return Outcome(
        clean=official_mean(tiny, {"tok_xp_bp": ids["tok_xp_bp"]}),
        dirty=official_mean(tiny, ids, hide),
        ours=vectors_of(tiny, ids, hide),
        compat=vectors_of(tiny, ids, hide, compat=True),
    )


def a_missing_flux_is_the_brightest_one(codecs, tiny):
    pair, unmeasured = codecs("tok_flux_r"), torch.full((2,), torch.nan)
    ids = {"tok_xp_bp": random_ids("tok_xp_bp")}
    invented = pair.official_ids(value=unmeasured)
    assert (invented == 1023).all()
    coded, asked = pair.ours.encode(unmeasured), pair.ours.encode(unmeasured, compat=True)
    hide = nothing_hidden(ids) | {"tok_flux_r": ~coded.valid_BN}
    return Outcome(
        clean=official_mean(tiny, ids),
        dirty=official_mean(tiny, ids | {"tok_flux_r": invented}),
        ours=vectors_of(tiny, ids | {"tok_flux_r": coded.ids_BN}, hide),
        compat=vectors_of(tiny, ids | {"tok_flux_r": asked.ids_BN}, compat=True),
    )


def a_prediction_depends_on_what_else_is_asked(_codecs, tiny):
    ids = {"tok_xp_bp": random_ids("tok_xp_bp")}
    tokens = tiny.tokens(ids, nothing_hidden(ids))
    asked = ["tok_z", "tok_spectrum_desi"]
    weights = tiny.model.transformer
    return Outcome(
        clean=tiny.official("forward", ids, {}, targets=["tok_z"])["tok_z"],
        dirty=tiny.official("forward", ids, {}, targets=asked)["tok_z"],
        ours=predict_logits(weights, tokens, asked)["tok_z"],
        compat=predict_logits(weights, tokens, asked, attention="compat")["tok_z"],
    )


def codes_of_catalogs_are_those_of_special_tokens(codecs, _tiny):
    pair = codecs("catalog")
    fields = {"X": torch.tensor([[3, 95]]), "Y": torch.tensor([[0, 40]])}
    fields |= {name: noise(1, 2, seed=1).abs() for name in ("SHAPE_E1", "SHAPE_E2", "SHAPE_R")}
    raw = pair.official_ids(**fields)
    catalog = CutoutCatalogs(
        x_BO=fields["X"].float(),
        y_BO=fields["Y"].float(),
        e1_BO=fields["SHAPE_E1"],
        e2_BO=fields["SHAPE_E2"],
        radius_BO=fields["SHAPE_R"],
        present_BO=torch.ones((1, 2), dtype=torch.bool),
    )
    coded = pair.ours.encode(catalog)
    # The package declares 204 special codes before those of the codec, and leaves them out.
    return Outcome(
        clean=raw + 204,
        dirty=raw,
        ours=coded.ids_BN[coded.valid_BN][None],
        compat=pair.ours.encode(catalog, compat=True).ids_BN,
    )


CASES = [
    an_hsc_image_is_divided_in_place,
    one_nan_pixel_changes_every_token,
    a_small_cutout_is_cropped_wrongly,
    wavelengths_of_minus_one_fill_a_row,
    tokens_after_the_256th_are_dropped,
    hidden_tokens_count_in_the_mean,
    a_missing_flux_is_the_brightest_one,
    a_prediction_depends_on_what_else_is_asked,
    codes_of_catalogs_are_those_of_special_tokens,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_ours_gives_the_clean_answer_where_the_official_package_does_not(codecs, tiny, case):
    outcome = case(codecs, tiny)
    if outcome.clean.shape == outcome.dirty.shape:
        assert (outcome.clean - outcome.dirty).abs().max() > 1e-2
    assert outcome.ours.shape == outcome.clean.shape
    assert (outcome.ours - outcome.clean).abs().max() <= 1e-5
    if outcome.compat is not None:
        assert (outcome.compat - outcome.dirty).abs().max() <= 1e-5


def test_the_official_package_cannot_decode_hsc_images(codecs):
    pair = codecs("tok_image_hsc", "small")
    ids = torch.zeros((1, 576), dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"AttributeError.*_reverse_zeropoint"):
        pair.official_fields(ids, bands=list(HSC))
    assert pair.ours.decode(ids, bands=HSC).isfinite().all()


def test_the_official_package_leaves_a_loaded_model_in_training_mode(tiny):
    tiny.oracle("training_after_load", folder=tiny.folder)
    assert tiny.oracle.values == {"training": True}
    assert not tiny.model.transformer.training


def test_the_official_package_cannot_load_codecs_from_a_folder(codecs):
    pair = codecs("tok_flux_r")
    with pytest.raises(RuntimeError, match=r"TypeError.*missing 3 required"):
        pair.oracle("load_by_the_package", folder=pair.folder, key=pair.key)

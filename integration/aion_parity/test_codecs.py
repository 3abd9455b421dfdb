"""Codes and decoded values of every codec agree with the official package."""

import copy

import pytest
import torch

from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import CutoutCatalogs, Images, Spectra

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DES = ("DES-G", "DES-R", "DES-I", "DES-Z")
HSC = ("HSC-G", "HSC-R", "HSC-I", "HSC-Z", "HSC-Y")
SCALARS = [k for k, m in MODALITIES.items() if m.kind == "scalar"]
FILLING = 9999
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ON_THE_EDGE = 1e-4
"""Distance of a latent to the next code, of standard deviation 1, that rounding may bridge."""


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def cutouts(rows, bands, height, width=None, *, scale, seed=0):
    """Noise with bright pixels, some beyond the saturation of their band."""
    shape, generator = (rows, len(bands), height, width or height), generator_of(seed)
    bright = torch.exp(2 * torch.randn((rows, 1, *shape[2:]), generator=generator))
    return torch.randn(shape, generator=generator) * bright * scale


def images(flux, bands):
    return Images(flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=bands)


def assert_same_codes(ours, official, *, distinct):
    """All valid, all equal, and enough different ones to mean something."""
    assert ours.valid_BN.all()
    assert official.unique().numel() >= distinct
    assert torch.equal(ours.ids_BN, official)


def decided(pair, official):
    """Codes (b, n) of a network that rounding does not change: no latent is next to another code."""
    latents_bnd = official["latents"].movedim(1, -1)
    if MODALITIES[pair.key].kind == "spectrum":
        edge_bn = latents_bnd.abs().amin(-1)
        edge_bn = torch.cat([torch.ones((len(edge_bn), 1)), edge_bn], dim=1)  # the level's code
    else:
        edge_bn = (pair.ours.quantizer.bound(latents_bnd) % 1 - 0.5).abs().amin(-1)
    sure_bn = edge_bn > ON_THE_EDGE
    assert sure_bn.float().mean() > 0.99
    return sure_bn


def assert_same_codes_of_latents(pair, ours, official, *, distinct):
    """All valid, all equal but for those that rounding decides, and enough different ones."""
    assert ours.valid_BN.all()
    assert official["ids"].unique().numel() >= distinct
    sure_bn = decided(pair, official)
    differ = int((ours.ids_BN != official["ids"])[sure_bn].sum())
    assert differ == 0, f"{differ} of {int(sure_bn.sum())} codes differ"


IMAGES = {
    "LS-96": ("tok_image", DES, (96,), 0.3),
    "LS-160": ("tok_image", DES, (160,), 3.0),
    "LS-161": ("tok_image", DES, (161,), 0.3),
    "LS-97x130": ("tok_image", DES, (97, 130), 0.3),
    "LS-grz": ("tok_image", ("DES-G", "DES-R", "DES-Z"), (160,), 0.3),
    "LS-zgr": ("tok_image", ("DES-Z", "DES-G", "DES-R"), (96,), 0.3),
    "LS-r": ("tok_image", ("DES-R",), (96,), 0.3),
    "HSC-96": ("tok_image_hsc", HSC, (96,), 5.0),
    "HSC-160": ("tok_image_hsc", HSC, (160,), 60.0),
    "HSC-yig": ("tok_image_hsc", ("HSC-Y", "HSC-I", "HSC-G"), (160,), 5.0),
}


@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize("case", IMAGES)
def test_codes_of_images(codecs, case, prepared):
    key, bands, size, scale = IMAGES[case]
    pair = codecs(key, "small")
    flux = cutouts(3, bands, *size, scale=scale, seed=len(case))
    official = pair.official_codes(bands, flux=flux)
    if prepared:
        pair.ours.prepare("float32")
    before = flux.clone()
    for compat in (False, True):
        ours = pair.ours.encode(images(flux, bands), compat=compat)
        assert_same_codes_of_latents(pair, ours, official, distinct=100)
    assert torch.equal(flux, before)


@pytest.mark.parametrize("case", ["LS-96", "LS-grz", "HSC-96"])
def test_decoded_images(codecs, case):
    key, bands, _, _ = IMAGES[case]
    pair = codecs(key, "small")
    ids = torch.randint(0, 800, (2, 576), generator=generator_of(1))
    official = pair.official_fields(ids, bands=list(bands), mend_hsc=case.startswith("HSC"))
    torch.testing.assert_close(pair.ours.decode(ids, bands=bands), official["flux"], **CLOSE)


@pytest.mark.parametrize("case", ["LS-160", "HSC-96"])
def test_the_image_codec_at_its_published_size(codecs, case):
    key, bands, size, scale = IMAGES[case]
    pair = codecs(key)
    flux = cutouts(1, bands, *size, scale=scale)
    official = pair.official_codes(bands, flux=flux)
    ours = pair.ours.encode(images(flux, bands))
    assert_same_codes_of_latents(pair, ours, official, distinct=100)
    pair.ours.prepare("float32")
    ours = pair.ours.encode(images(flux, bands))
    assert_same_codes_of_latents(pair, ours, official, distinct=100)
    ids = official["ids"]
    decoded = pair.official_fields(ids, bands=list(bands), mend_hsc=case.startswith("HSC"))
    torch.testing.assert_close(pair.ours.decode(ids, bands=bands), decoded["flux"], **CLOSE)


def desi_like(rows, seed=0):
    """Flux, ivar, mask (True = bad) and wavelength on DESI's linear grid."""
    wavelength = (3600 + 0.8 * torch.arange(7781.0)).expand(rows, -1).contiguous()
    return spectra_on(wavelength, seed)


def sdss_like(rows, seed=0):
    """The same on logarithmic grids that begin and end elsewhere in each row."""
    start = 3.55 + 0.02 * torch.rand((rows, 1), generator=generator_of(seed))
    return spectra_on(10 ** (start + 1e-4 * torch.arange(4200.0)), seed)


def spectra_on(wavelength, seed):
    """Continua of all levels with lines and noise; some samples are bad, NaN or without ivar."""
    generator = generator_of(seed)
    rows = len(wavelength)
    level = 10 ** torch.linspace(-1, 2.5, rows)[:, None]
    noise = torch.randn(wavelength.shape, generator=generator)
    lines = torch.exp(-(((wavelength % 700) - 300) ** 2) / 50)
    flux = level * (1 + lines + torch.sin(wavelength / 900)) + 0.3 * noise
    flux[-1] = -flux[-1]
    ivar = 20 * torch.rand(wavelength.shape, generator=generator) ** 4 * 10
    mask = torch.rand(wavelength.shape, generator=generator) < 0.03
    flux[0, 1000:1020], ivar[0, 2000:2010] = torch.nan, torch.nan
    mask[0, 1000:1020] = True
    return {"flux": flux, "ivar": ivar, "mask": mask, "wavelength": wavelength}


def ours_of(observed):
    return Spectra(
        flux_BL=observed["flux"],
        ivar_BL=observed["ivar"],
        good_BL=~observed["mask"],
        wavelength_BL=observed["wavelength"],
    )


SPECTRA = {"tok_spectrum_desi": desi_like, "tok_spectrum_sdss": sdss_like}


@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize("key", SPECTRA)
def test_codes_of_spectra(codecs, key, prepared):
    pair, observed = codecs(key, "small"), SPECTRA[key](6)
    official = pair.official_codes(**observed)
    if prepared:
        pair.ours.prepare("float32")
    before = {name: tensor.clone() for name, tensor in observed.items()}
    ours = pair.ours.encode(ours_of(observed), compat=True)
    assert_same_codes_of_latents(pair, ours, official, distinct=100)
    for name, tensor in observed.items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


@pytest.mark.parametrize("key", SPECTRA)
def test_a_clean_spectrum_has_the_official_codes_without_asking_for_them(codecs, key):
    pair, observed = codecs(key, "small"), SPECTRA[key](3, seed=1)
    observed["flux"].nan_to_num_(0.5)
    observed["ivar"].nan_to_num_(0.5)
    observed["mask"].fill_(value=False)
    official = pair.official_codes(**observed)
    ours = pair.ours.encode(ours_of(observed))
    sure_bn = decided(pair, official) & ours.valid_BN
    assert torch.equal(ours.ids_BN[sure_bn], official["ids"][sure_bn])
    assert ours.valid_BN.float().mean() > 0.6


@pytest.mark.parametrize("key", SPECTRA)
def test_the_spectrum_codec_at_its_published_size(codecs, key):
    pair, observed = codecs(key), SPECTRA[key](3)
    official = pair.official_codes(**observed)
    ours = pair.ours.encode(ours_of(observed), compat=True)
    assert_same_codes_of_latents(pair, ours, official, distinct=100)
    pair.ours.prepare("float32")
    ours = pair.ours.encode(ours_of(observed), compat=True)
    assert_same_codes_of_latents(pair, ours, official, distinct=100)


@pytest.mark.parametrize("size", ["small", "published"])
def test_decoded_spectra(codecs, size):
    """The last stage normalizes two channels: where they are close, float32 is off by per cents."""
    pair = codecs("tok_spectrum_desi", size)
    ids = torch.randint(0, 1024, (2, 273), generator=generator_of(5))
    ids[:, 0] = torch.tensor([200, 500])  # levels of 0.5 and 85; the highest are 1e5
    beyond = torch.linspace(3300, 10800, 3000).expand(2, -1).contiguous()
    for more in ({}, {"wavelength": beyond}):
        official, ours = pair.official_fields(ids, **more), pair.ours.decode(ids, *more.values())
        assert torch.equal(ours.wavelength_BL, official["wavelength"])
        close = torch.isclose(ours.flux_BL, official["flux"], **CLOSE)
        assert close.float().mean() > 0.99
        decided = (ours.bad_probability_BL - 0.5).abs() > 1e-3
        assert decided.float().mean() > 0.9
        assert torch.equal((ours.bad_probability_BL > 0.5)[decided], official["mask"][decided])
    exact = pair.official_fields(ids, double=True)
    double = copy.deepcopy(pair.ours).double()
    network = double.reconstruct(double.quantizer.latents(ids[:, 1:]).double())
    flux = (network[..., 0] + 1) * double.levels(ids[:, 0])
    torch.testing.assert_close(flux, exact["flux"], rtol=1e-9, atol=1e-9)
    assert torch.equal(network[..., 1] > 0, exact["mask"])


@pytest.mark.parametrize("size", ["small", "published"])
def test_codes_of_maps(codecs, size):
    pair = codecs("tok_segmap", size)
    rows = 4 if size == "small" else 2
    field = torch.rand((rows, 110, 121), generator=generator_of(2)) ** 3
    official = pair.official_codes(field=field)
    for compat in (False, True):
        ours = pair.ours.encode(field, compat=compat)
        assert_same_codes_of_latents(pair, ours, official, distinct=50)
    pair.ours.prepare("float32")
    assert_same_codes_of_latents(pair, pair.ours.encode(field), official, distinct=50)
    ids = torch.randint(0, 1000, (rows, 144), generator=generator_of(3))
    torch.testing.assert_close(pair.ours.decode(ids), pair.official_fields(ids)["field"], **CLOSE)


def around(table):
    """Values on every edge of a table, next to it on both sides, and far outside."""
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    extremes = torch.tensor([-3e38, -1e9, -1.0, -1e-9, -0.0, 0.0, 1e-30, 7.0, 1e9, 3e38])
    return torch.cat([table, table.nextafter(up), table.nextafter(down), extremes])


UNMEASURED = torch.tensor([torch.nan, torch.inf, -torch.inf])


@pytest.mark.parametrize("key", SCALARS)
def test_codes_and_values_of_scalars(codecs, key):
    pair = codecs(key)
    logarithmic = MODALITIES[key].quantizer == "log_scalar"
    (table,) = (t for name, t in pair.tensors.items() if name.endswith(("to_val", "buckets")))
    values = around(table.exp() if logarithmic else table)
    ours = pair.ours.encode(values)
    assert_same_codes(ours, pair.official_ids(value=values), distinct=800)
    every = torch.cat([values, UNMEASURED])
    official = pair.official_ids(value=every)
    assert_same_codes(pair.ours.encode(every, compat=True), official, distinct=800)
    codes = torch.arange(1024)
    edges = pair.official_fields(codes)["value"]
    torch.testing.assert_close(pair.ours.decode(codes[:, None], compat=True), edges, **CLOSE)


@pytest.mark.parametrize("key", ["tok_xp_bp", "tok_xp_rp"])
@pytest.mark.parametrize("size", ["small", "published"])
def test_codes_and_values_of_coefficients(codecs, key, size):
    pair = codecs(key, size)
    tables = [pair.tensors[f"_quantizer.quantizers.{i}._index_to_val"] for i in range(55)]
    values = torch.stack([around(table.sinh().sinh()) for table in tables], dim=1)
    official = pair.official_ids(value=values)
    assert_same_codes(pair.ours.encode(values), official, distinct=1024)
    every = torch.cat([values, UNMEASURED[:, None].expand(-1, 55)])
    official = pair.official_ids(value=every)
    assert_same_codes(pair.ours.encode(every, compat=True), official, distinct=1024)
    codes = torch.arange(1024)[:, None].expand(-1, 55).contiguous()
    edges = pair.official_fields(codes)["value"]
    torch.testing.assert_close(pair.ours.decode(codes, compat=True), edges, **CLOSE)


def catalogs(rows, objects, seed=0):
    """The official fields of catalogs with different numbers of objects."""
    generator = generator_of(seed)
    shape = (rows, objects)
    fields = {
        "X": torch.randint(0, 96, shape, generator=generator),
        "Y": torch.randint(0, 96, shape, generator=generator),
        "SHAPE_E1": 1.5 * torch.randn(shape, generator=generator),
        "SHAPE_E2": torch.randn(shape, generator=generator),
        "SHAPE_R": 5 * torch.randn(shape, generator=generator) ** 2,
    }
    absent = torch.arange(objects) >= torch.randint(1, objects + 1, (rows, 1), generator=generator)
    return {name: values.masked_fill(absent, FILLING) for name, values in fields.items()}, absent


def test_raw_codes_and_values_of_catalogs(codecs):
    pair = codecs("catalog")
    fields, absent = catalogs(300, 20)
    official = pair.official_ids(**fields)
    observed = CutoutCatalogs(
        x_BO=fields["X"].float(),
        y_BO=fields["Y"].float(),
        e1_BO=fields["SHAPE_E1"],
        e2_BO=fields["SHAPE_E2"],
        radius_BO=fields["SHAPE_R"],
        present_BO=~absent,
    )
    assert_same_codes(pair.ours.encode(observed, compat=True), official, distinct=2000)
    decoded, ours = pair.official_fields(official), pair.ours.decode(official, compat=True)
    for name, values in {
        "X": ours.x_BO, "Y": ours.y_BO, "SHAPE_E1": ours.e1_BO, "SHAPE_E2": ours.e2_BO,
        "SHAPE_R": ours.radius_BO,
    }.items():  # fmt: skip
        torch.testing.assert_close(values, decoded[name].float(), **CLOSE)

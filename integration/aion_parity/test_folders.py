"""Folders that one side writes are read by the other, strictly and with the same numbers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from skyvec_core.codecs.folder import save_codec
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Images, Tokens
from skyvec_core.weights import load_transformer, published_tensors, save_transformer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

INPUTS = ("tok_xp_bp", "tok_flux_g", "tok_segmap")
TARGETS = ("tok_z", "tok_image")


def inputs(keys, rows=2):
    """Random ids, nothing hidden."""
    generator = torch.Generator().manual_seed(0)
    ids = {
        key: torch.randint(
            0, MODALITIES[key].vocabulary, (rows, MODALITIES[key].num_tokens), generator=generator
        )
        for key in keys
    }
    return ids, {key: torch.zeros_like(one, dtype=torch.bool) for key, one in ids.items()}


def official_answers(oracle, folder, keys=INPUTS, targets=TARGETS):
    """Context and logits of the official package for a folder."""
    ids, _ = inputs(keys)
    tensors = {f"ids.{key}": one for key, one in ids.items()}
    context = oracle("encode", tensors, folder=folder, order=list(keys))
    logits = oracle("forward", tensors, folder=folder, order=list(keys), targets=list(targets))
    return context | logits


def test_a_transformer_that_we_save_is_the_published_file(tiny, tmp_path):
    save_transformer(tiny.model.transformer, tmp_path)
    published = load_file(tiny.folder / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {k: (t.shape, t.dtype) for k, t in saved.items()} == {
        k: (t.shape, t.dtype) for k, t in published.items()
    }
    before = official_answers(tiny.oracle, tiny.folder)
    after = official_answers(tiny.oracle, tmp_path)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize(
    ("domains_in", "domains_out"),
    [
        (tuple(MODALITIES), tuple(MODALITIES)),
        (("tok_z", "tok_image", "tok_flux_g"), ("tok_image", "tok_ebv")),
    ],
    ids=["all", "other-domains-out-than-in"],
)
def test_a_transformer_that_we_made_is_read_by_the_official_package(
    oracle, tmp_path, domains_in, domains_out
):
    config = TransformerConfig(
        dim=128, num_heads=2, encoder_depth=2, decoder_depth=1,
        domains_in=domains_in, domains_out=domains_out,
    )  # fmt: skip
    ours = EncoderDecoder(config).eval()
    ours.initialize(torch.Generator().manual_seed(1))
    save_transformer(ours, tmp_path)
    keys = ["tok_flux_g", "tok_image"]
    ids, hide = inputs(keys)
    official = official_answers(oracle, tmp_path, keys, ["tok_ebv"])
    tokens = {key: Tokens(ids_BN=ids[key], valid_BN=~hide[key]) for key in keys}
    context = official["context"].mean(1)
    vectors = Model(ours, {}, name="ours").embed(tokens)
    torch.testing.assert_close(vectors, context, rtol=0, atol=1e-5)


def sample_of(key):
    """Official observations of any modality but images, whose bands come apart."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    match MODALITIES[key].kind:
        case "image":
            return {"flux": noise(1, 4, 96, 96)}
        case "spectrum":
            wavelength = (3600 + 0.8 * torch.arange(7781.0))[None]
            flux = 3 + noise(1, 7781)
            mask = torch.zeros_like(flux, dtype=torch.bool)
            return {"flux": flux, "ivar": flux.abs(), "mask": mask, "wavelength": wavelength}
        case "map":
            return {"field": noise(1, 96, 96).sigmoid()}
        case "coefficients":
            return {"value": 10 * noise(50, 55)}
        case "catalog":
            shapes = {name: noise(20, 10) for name in ("SHAPE_E1", "SHAPE_E2", "SHAPE_R")}
            pixel = torch.arange(10).expand(20, -1)
            return {"X": pixel, "Y": pixel + 40} | shapes
    return {"value": 30 * torch.linspace(-1, 1, 500) ** 3}


FOLDERS = {modality.codec: key for key, modality in MODALITIES.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_codec_that_we_save_is_read_by_the_official_package(codecs, tmp_path, name):
    pair = codecs(FOLDERS[name], "small")
    save_codec(pair.ours, tmp_path, MODALITIES[pair.key])
    saved = json.loads((tmp_path / "codecs" / name / "config.json").read_text())
    used = pair.config.keys() - {"reservoir_size", "ema_model_weights"}
    for option in used & saved.keys():
        assert saved[option] == pair.config[option], option
    bands = ["DES-G", "DES-R", "DES-I", "DES-Z"] if name == "image" else None
    sample = sample_of(pair.key)
    before = pair.official_ids(bands, **sample)
    after = pair.official_ids(bands, folder=tmp_path, **sample)
    assert torch.equal(after, before)
    assert before.unique().numel() > 20


def test_names_of_an_earlier_release_are_read(codecs, tmp_path):
    pair = codecs("tok_ebv")
    place = tmp_path / "codecs" / "EBV"
    place.mkdir(parents=True)
    shutil.copy(pair.place / "config.json", place)
    tensors = {name.removeprefix("_"): tensor for name, tensor in pair.tensors.items()}
    assert all(name.startswith("quantizer.") for name in tensors)
    save_file(tensors, place / "model.safetensors")
    old = type(pair)(pair.oracle, tmp_path, pair.key, pair.ours)
    sample = sample_of(pair.key)
    assert torch.equal(old.official_ids(**sample), pair.official_ids(**sample))


def changed(pair, folder, change):
    """The pair's model folder with other tensors."""
    shutil.copy(pair.folder / "config.json", folder)
    tensors = load_file(pair.folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_published_file_holds_the_shared_embeddings_once(tiny, base):
    for pair in (tiny, base):
        tensors = load_file(pair.folder / "model.safetensors")
        shared = [name for name in tensors if name.endswith(".mod_emb")]
        assert len(shared) == len(MODALITIES)
        assert all(name.startswith("decoder_embeddings.") for name in shared)
    assert len(tensors) == 691


def drop(name):
    return lambda tensors: tensors.pop(name)


def add(name):
    return lambda tensors: tensors.update({name: torch.zeros(3)})


def shorten(name):
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


LAYER, TABLE = "encoder.0.attn.qkv.weight", "encoder_embeddings.tok_z.token_emb.weight"
SHARED, HEAD = "decoder_embeddings.tok_z.mod_emb", "decoder_embeddings.tok_image.to_logits.weight"
POSITIONS = "encoder_embeddings.tok_image.pos_emb"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *((drop(name), f"lacks {name}") for name in (LAYER, TABLE, SHARED, HEAD, "mask_token")),
        (add("encoder.1.attn.qkv.weight"), "encoder.1.attn.qkv.weight"),
        (add("register_tokens"), "register_tokens"),
        *((shorten(name), name) for name in (LAYER, TABLE, HEAD, POSITIONS)),
    ],
)
def test_a_file_with_other_tensors_is_refused_and_they_are_named(tiny, tmp_path, change, named):
    folder = changed(tiny, tmp_path, change)
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        load_transformer(folder)


def test_a_file_in_bfloat16_loads_as_the_official_package_loads_it(tiny, tmp_path):
    def narrow(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    folder = changed(tiny, tmp_path, narrow)
    narrowed = type(tiny)(tiny.oracle, folder, Model.load(folder))
    stored = load_file(folder / "model.safetensors")
    for name, tensor in published_tensors(narrowed.model.transformer).items():
        assert torch.equal(tensor, stored[name].float()), name
    ids, hide = inputs(INPUTS)
    official, ours = narrowed.official_context(ids, hide), narrowed.our_context(ids, hide)
    for key in INPUTS:  # the package keeps the rounded position encodings, we do not
        torch.testing.assert_close(ours[key], official[key], rtol=0, atol=1e-2)


def test_from_observations_to_vectors(tiny, codecs, tmp_path):
    """The whole way, with measurements that are missing in some rows."""
    keys = ("tok_image", "tok_flux_g", "tok_z")
    pairs = {key: codecs(key, "small") for key in keys}
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny.folder / name, tmp_path)
    for pair in pairs.values():
        shutil.copytree(pair.place, tmp_path / "codecs" / pair.place.name)
    generator = torch.Generator().manual_seed(7)
    flux = torch.randn((5, 4, 160, 160), generator=generator)
    values = {
        "tok_flux_g": torch.tensor([3.0, -2.0, torch.nan, 50.0, 0.01]),
        "tok_z": torch.tensor([0.1, torch.nan, torch.nan, 0.7, 5.5]),
    }
    bands = ("DES-G", "DES-R", "DES-I", "DES-Z")
    images = Images(flux_BCHW=flux, good_BCHW=torch.ones_like(flux, dtype=torch.bool), bands=bands)
    model = Model.load(tmp_path)
    vectors = model.embed(model.tokenize({"tok_image": images, **values}))

    ids = {"tok_image": pairs["tok_image"].official_ids(bands, flux=flux)}
    ids |= {key: pairs[key].official_ids(value=value) for key, value in values.items()}
    hide = {key: value.isnan()[:, None] for key, value in values.items()}
    hide["tok_image"] = torch.zeros_like(ids["tok_image"], dtype=torch.bool)
    context = torch.cat(list(tiny.official_context(ids, hide).values()), dim=1)
    torch.testing.assert_close(vectors, context.nanmean(1), rtol=0, atol=1e-5)

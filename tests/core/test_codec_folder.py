"""Codec folders: every kind comes back bit for bit; published names, types and extras are taken."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from skyvec_core.codecs.catalog import CatalogCodec
from skyvec_core.codecs.coefficients import CoefficientsCodec
from skyvec_core.codecs.folder import build_codec, codec_config, load_codec, load_codecs, save_codec
from skyvec_core.codecs.scalar import GridScalarCodec, LogScalarCodec, ScalarCodec
from skyvec_core.modalities import MODALITIES

SMALL = {
    "tok_image": {"hidden_dims": 16, "multisurvey_projection_dims": 4, "num_consecutive": 1},
    "tok_spectrum_sdss": {
        "encoder_depths": [1, 1], "encoder_dims": [8, 16], "decoder_depths": [1, 1],
        "decoder_dims": [8, 2], "latent_channels": 16, "num_pixels": 512,
    },
    "tok_segmap": {"encoder_output_dim": 16, "res_hidden_dims": 8, "num_res_layers": 1},
}  # fmt: skip
KEYS = (
    "tok_image",
    "tok_spectrum_sdss",
    "tok_segmap",
    "tok_xp_bp",
    "catalog",
    "tok_ebv",
    "tok_flux_g",
    "tok_z",
)
KEYWORDS = {
    "tok_ebv": {"modality", "codebook_size", "reservoir_size"},
    "tok_flux_g": {"modality", "codebook_size", "reservoir_size", "min_log_value"},
    "tok_z": {"modality", "codebook_size"},
    "tok_xp_bp": {"modality", "codebook_size", "reservoir_size", "num_quantizers",
                  "compression_fns", "decompression_fns"},
    "catalog": {"mask_value"},
}  # fmt: skip
"""Arguments without a default of the official constructors, and no others than they know."""


def random_codec(key, seed=0):
    codec = build_codec(MODALITIES[key], SMALL.get(key, {})).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in codec.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point():
            tensor.copy_((torch.randn(tensor.shape, generator=generator) * 0.3).sort().values)
    return codec


def files(folder, key):
    place = folder / "codecs" / MODALITIES[key].codec
    return place / "config.json", place / "model.safetensors"


def rewrite(folder, key, change):
    _, weights = files(folder, key)
    save_file(change(load_file(weights)), weights)


@pytest.mark.parametrize("key", KEYS)
def test_a_codec_comes_back_bit_for_bit(key, tmp_path):
    codec = random_codec(key)
    save_codec(codec, tmp_path, MODALITIES[key])
    loaded = load_codec(tmp_path, MODALITIES[key])
    assert type(loaded) is type(codec)
    assert not loaded.training
    before, after = codec.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    modality = MODALITIES[key]
    assert codec_config(loaded, modality) == codec_config(codec, modality)


@pytest.mark.parametrize("key", KEYWORDS)
def test_a_saved_config_has_the_official_keywords(key, tmp_path):
    save_codec(random_codec(key), tmp_path, MODALITIES[key])
    config = json.loads(files(tmp_path, key)[0].read_text())
    assert set(config) == KEYWORDS[key]
    assert config.get("modality", MODALITIES[key].codec) == MODALITIES[key].codec


@pytest.mark.parametrize(("key", "count"), [("tok_ebv", 1), ("tok_xp_rp", 55), ("catalog", 3)])
def test_a_saved_reservoir_has_the_quantiles_of_its_table(key, count, tmp_path):
    save_codec(random_codec(key), tmp_path, MODALITIES[key])
    config, weights = files(tmp_path, key)
    tensors = load_file(weights)
    reservoirs = [name for name in tensors if name.endswith("._reservoir")]
    assert len(reservoirs) == count
    for name in reservoirs:
        table = tensors[name.replace("_reservoir", "_index_to_val")]
        size = json.loads(config.read_text()).get("reservoir_size", 100_000)
        assert tensors[name].shape == (size,)
        shares = torch.linspace(0, 1, len(table))
        torch.testing.assert_close(tensors[name].quantile(shares), table, rtol=1e-3, atol=1e-3)


def test_the_tensors_of_a_grid_need_no_reservoir(tmp_path):
    save_codec(random_codec("tok_z"), tmp_path, MODALITIES["tok_z"])
    assert list(load_file(files(tmp_path, "tok_z")[1])) == ["_quantizer.buckets"]


def test_a_redshift_grid_comes_from_the_file_and_not_from_a_default(tmp_path):
    codec = GridScalarCodec()
    codec.set_grid(0, 6)
    save_codec(codec, tmp_path, MODALITIES["tok_z"])
    loaded = load_codec(tmp_path, MODALITIES["tok_z"])
    assert loaded.quantizer.values[-1] == 6
    assert int(loaded.encode(torch.tensor([3.0])).ids_BN) == 512


@pytest.mark.parametrize("key", ["tok_flux_g", "tok_xp_bp", "tok_z"])
def test_the_older_published_names_are_known(key, tmp_path):
    codec = random_codec(key)
    save_codec(codec, tmp_path, MODALITIES[key])
    rewrite(tmp_path, key, lambda tensors: {k.removeprefix("_"): v for k, v in tensors.items()})
    loaded = load_codec(tmp_path, MODALITIES[key]).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in codec.state_dict().items())


@pytest.mark.parametrize("key", ["tok_ebv", "tok_xp_bp", "catalog"])
def test_a_folder_without_reservoirs_loads(key, tmp_path):
    save_codec(random_codec(key), tmp_path, MODALITIES[key])
    rewrite(tmp_path, key, lambda t: {k: v for k, v in t.items() if not k.endswith("_reservoir")})
    load_codec(tmp_path, MODALITIES[key])


def test_a_folder_with_few_keys_takes_the_sizes_of_aion(tmp_path):
    save_codec(random_codec("tok_flux_g"), tmp_path, MODALITIES["tok_flux_g"])
    files(tmp_path, "tok_flux_g")[0].write_text('{"codebook_size": 1024, "min_log_value": -5.0}')
    loaded = load_codec(tmp_path, MODALITIES["tok_flux_g"])
    assert isinstance(loaded, LogScalarCodec)
    assert loaded.min_log_value == -5


def test_averaged_copies_of_weights_are_not_read(tmp_path):
    codec = random_codec("tok_segmap")
    save_codec(codec, tmp_path, MODALITIES["tok_segmap"])
    rewrite(
        tmp_path, "tok_segmap",
        lambda t: {**t, **{f"ema.module.{k}": torch.zeros_like(v) for k, v in t.items()}},
    )  # fmt: skip
    config = files(tmp_path, "tok_segmap")[0]
    extra = {"ema_model_weights": True, "lr": 1e-3, "variational": False, "decoder_input_dim": None}
    config.write_text(json.dumps({**json.loads(config.read_text()), **extra}))
    loaded = load_codec(tmp_path, MODALITIES["tok_segmap"]).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in codec.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", ["tok_segmap", "tok_image"])
def test_half_precision_is_for_weights_and_ends_at_the_file(key, dtype, tmp_path):
    codec = random_codec(key)
    save_codec(codec, tmp_path, MODALITIES[key], dtype=dtype)
    stored = load_file(files(tmp_path, key)[1])
    weights = {name for name, _ in codec.named_parameters()}
    assert {stored[name].dtype for name in weights} == {dtype}
    assert all(
        stored[n].dtype == t.dtype for n, t in codec.state_dict().items() if n not in weights
    )
    loaded = load_codec(tmp_path, MODALITIES[key]).state_dict()
    assert {t.dtype for t in loaded.values() if t.is_floating_point()} == {torch.float32}


def test_tables_stored_in_half_precision_become_single(tmp_path):
    save_codec(random_codec("tok_ebv"), tmp_path, MODALITIES["tok_ebv"])
    rewrite(tmp_path, "tok_ebv", lambda t: {k: v.half() for k, v in t.items()})
    loaded = load_codec(tmp_path, MODALITIES["tok_ebv"])
    assert loaded.quantizer.values.dtype == torch.float32
    loaded.encode(torch.tensor([0.1]))


@pytest.mark.parametrize(
    ("key", "missing"),
    [
        ("tok_image", "lacks model.conv_in.conv.weight"),
        ("tok_segmap", "lacks encoder.net.7.net.0.net.2.running_mean"),
        ("tok_xp_bp", r"lacks _quantizer.quantizers.7._index_to_val"),
        ("catalog", "lacks _quantizer.quantizers.SHAPE_R._index_to_val"),
        ("tok_ebv", "lacks _quantizer._index_to_val"),
    ],
)
def test_missing_and_unknown_tensors_are_named(key, missing, tmp_path):
    save_codec(random_codec(key), tmp_path, MODALITIES[key])
    name = missing.removeprefix("lacks ")

    def renamed(tensors):
        return {("odd" if k == name else k): v for k, v in tensors.items()}

    rewrite(tmp_path, key, renamed)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {missing}; has unknown odd"):
        load_codec(tmp_path, MODALITIES[key])


def test_sizes_that_do_not_fit_the_tensors_are_named(tmp_path):
    save_codec(random_codec("tok_image"), tmp_path, MODALITIES["tok_image"])
    files(tmp_path, "tok_image")[0].write_text('{"hidden_dims": 32}')
    with pytest.raises(ValueError, match=r"model\.safetensors: lacks model\.decoder_layers"):
        load_codec(tmp_path, MODALITIES["tok_image"])


def test_a_scale_that_is_not_known_is_refused(tmp_path):
    save_codec(random_codec("tok_xp_bp"), tmp_path, MODALITIES["tok_xp_bp"])
    files(tmp_path, "tok_xp_bp")[0].write_text(
        '{"compression_fns": ["log"], "decompression_fns": ["exp"]}'
    )
    with pytest.raises(ValueError, match="compression_fns"):
        load_codec(tmp_path, MODALITIES["tok_xp_bp"])


def test_a_folder_that_is_not_there_is_an_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"codecs/EBV/config\.json"):
        load_codec(tmp_path, MODALITIES["tok_ebv"])


def test_loading_draws_no_random_numbers(tmp_path):
    save_codec(random_codec("tok_segmap"), tmp_path, MODALITIES["tok_segmap"])
    before = torch.get_rng_state()
    load_codec(tmp_path, MODALITIES["tok_segmap"])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_codecs_that_a_folder_holds_are_listed_and_shared(tmp_path):
    for key in ("tok_image", "tok_spectrum_sdss", "tok_xp_rp", "catalog", "tok_ebv"):
        save_codec(random_codec(key), tmp_path, MODALITIES[key])
    codecs = load_codecs(tmp_path, tuple(MODALITIES))
    spectra = {"tok_spectrum_desi", "tok_spectrum_sdss"}
    single = {"tok_xp_rp", "catalog", "tok_ebv"}
    assert set(codecs) == {"tok_image", "tok_image_hsc", *spectra, *single}
    assert codecs["tok_image"] is codecs["tok_image_hsc"]
    assert codecs["tok_spectrum_desi"] is codecs["tok_spectrum_sdss"]
    assert isinstance(codecs["tok_xp_rp"], CoefficientsCodec)
    assert isinstance(codecs["catalog"], CatalogCodec)
    assert type(codecs["tok_ebv"]) is ScalarCodec
    assert set(load_codecs(tmp_path, ("tok_ebv", "tok_z"))) == {"tok_ebv"}

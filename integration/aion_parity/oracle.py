"""The official package (polymathic-aion) as an oracle; runs only in that package's environment.

``python -I oracle.py`` reads one JSON request a line from stdin and writes one JSON answer a line
to stdout. Tensors travel as safetensors files that requests and answers name. A request is
``{"command": name, "arguments": {...}, "tensors": path or null, "answer": path}``, an answer
``{"values": {...}}`` or ``{"error": "Type: message"}``. Everything random comes from a seed in the
request; folders are only written by the ``make_...`` commands; results are as the package gives
them, except where an argument named ``mend...`` asks for a repair.
"""

import copy
import json
import os
import random
import sys
import types
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from unittest import mock

import torch
from aion.codecs.config import MODALITY_CODEC_MAPPING
from aion.fourm.modality_info import MODALITY_INFO
from aion.model import AION
from safetensors.torch import load_file, save_file

CLASSES = {cls.token_key: cls for cls in MODALITY_CODEC_MAPPING if cls.token_key}
"""Token key -> the package's class of the modality."""

# Sizes of the released codecs, as their config.json files have them (the map's are not known).
PUBLISHED = {
    "image": {
        "quantizer_levels": [7, 5, 5, 5, 5], "embedding_dim": 5, "hidden_dims": 512,
        "multisurvey_projection_dims": 54, "n_compressions": 2, "num_consecutive": 4,
        "range_compression_factor": 0.01, "mult_factor": 10.0,
    },
    "spectrum": {
        "encoder_depths": [3, 3, 27, 3], "encoder_dims": [64, 128, 256, 512],
        "decoder_depths": [3, 9, 3, 3], "decoder_dims": [256, 128, 64, 2],
        "latent_channels": 512, "embedding_dim": 10, "dim": 10, "codebook_size": 1024,
        "clip_ivar": 100, "clip_flux": None, "input_scaling": 0.2, "lambda_min": 3500.0,
        "resolution": 0.8, "num_pixels": 8704, "normalization_range": [-1, 5],
    },
    "segmentation_map": {
        "encoder_output_dim": 512, "embedding_dim": 4, "res_hidden_dims": 512,
        "num_res_layers": 2, "num_downsamples": 3, "levels": [8, 5, 5, 5],
    },
}  # fmt: skip
# Small ones, every size another, so that a size that is not read from config.json shows.
SMALL = {
    "image": {
        "quantizer_levels": [8, 5, 5, 4], "embedding_dim": 4, "hidden_dims": 64,
        "multisurvey_projection_dims": 18, "n_compressions": 2, "num_consecutive": 2,
        "range_compression_factor": 0.02, "mult_factor": 5.0,
    },
    "spectrum": {
        "encoder_depths": [1, 2, 3, 1], "encoder_dims": [16, 24, 32, 48],
        "decoder_depths": [2, 1, 1, 2], "decoder_dims": [40, 24, 16, 2],
        "latent_channels": 48, "embedding_dim": 10, "dim": 10, "codebook_size": 1024,
        "clip_ivar": 50, "clip_flux": 40.0, "input_scaling": 0.3, "lambda_min": 3500.0,
        "resolution": 0.8, "num_pixels": 8704, "normalization_range": [-1, 4],
    },
    "segmentation_map": {
        "encoder_output_dim": 64, "embedding_dim": 4, "res_hidden_dims": 24,
        "num_res_layers": 3, "num_downsamples": 3, "levels": [8, 5, 5, 5],
        "ema_model_weights": True,
    },
}  # fmt: skip
RESERVOIR = {"published": 100_000, "small": 3_000}


# Random models ------------------------------------------------------------------------------


def redraw(module, generator):
    """Draw every parameter and running statistic anew, so that none is a trivial 0 or 1."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_var" or (leaf == "weight" and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif leaf == "running_mean" or (leaf == "bias" and isinstance(tensor, torch.nn.Parameter)):
            tensor.normal_(0, 0.1, generator=generator)
        elif leaf in {"gamma", "beta", "mod_emb", "mask_token"}:
            tensor.normal_(0, 0.3, generator=generator)
        elif "token_emb" in name:
            tensor.normal_(0, 0.5, generator=generator)
        elif leaf == "weight":
            bound = (3 / tensor[0].numel()) ** 0.5  # unit gain
            tensor.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def make_transformer(_tensors, *, folder, dim, heads, encoder_depth, decoder_depth, seed):
    """Write a random model over all domains as the package writes one."""
    domains = sorted(MODALITY_INFO)
    config = {
        "act_layer": "SiLU", "gated_mlp": True, "qk_norm": True, "qkv_bias": False,
        "proj_bias": False, "mlp_bias": False, "norm_bias": False, "mlp_ratio": 4,
        "dim": dim, "num_heads": heads, "encoder_depth": encoder_depth,
        "decoder_depth": decoder_depth, "domains_in": domains, "domains_out": domains,
    }  # fmt: skip
    model = AION(config)
    redraw(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder, config=config)
    return {}, {"tensors": len(load_file(Path(folder, "model.safetensors")))}


@torch.no_grad()
def make_codec(_tensors, *, folder, name, size, seed):
    """Write ``codecs/<name>``, random and of ``published`` or ``small`` size.

    The layer before the quantizer is rescaled, so that latents of made-up data spread over the
    codes. Reservoirs are samples of made-up distributions in the quantity's range.
    """
    generator = torch.Generator().manual_seed(seed)
    cls = next(c for c in CLASSES.values() if c.name == name)
    config = codec_config(cls, size)
    codec = MODALITY_CODEC_MAPPING[cls](**config).eval()
    if name in PUBLISHED:
        redraw(codec, generator)
        spread(codec, cls, generator)
    else:
        fill_reservoirs(codec, cls, generator)
    place = Path(folder, "codecs", name)
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config))
    state = {key: tensor.contiguous() for key, tensor in codec.state_dict().items()}
    save_file(state, place / "model.safetensors")
    return {}, {}


def codec_config(cls, size):
    """The config.json of a modality's codec."""
    fixed = PUBLISHED if size == "published" else SMALL
    if cls.name in fixed:
        return fixed[cls.name]
    kind = MODALITY_CODEC_MAPPING[cls].__name__
    if kind == "CatalogCodec":
        return {"mask_value": 9999}
    config = {"modality": cls.name, "codebook_size": 1024}
    if kind == "GridScalarCodec":
        return config
    config["reservoir_size"] = RESERVOIR[size]
    if kind == "LogScalarCodec" and size == "published":
        config["min_log_value"] = -3.0
    if kind == "MultiScalarCodec":
        config |= {
            "compression_fns": ["arcsinh", "arcsinh"],
            "decompression_fns": ["sinh", "sinh"],
            "num_quantizers": cls.num_tokens,
        }
    return config


def spread(codec, cls, generator):
    """Center and scale the latents of made-up data to one standard deviation."""
    if cls.name == "image":
        bands = ["DES-G", "DES-R", "DES-I", "DES-Z"]
        flux = torch.randn((2, 4, 96, 96), generator=generator)
        latents = codec._encode(cls(flux=flux, bands=bands))  # noqa: SLF001
        layer = codec.pre_quant_proj
    elif cls.name == "spectrum":
        wavelength = (3600 + 0.8 * torch.arange(7781.0)).expand(8, -1).contiguous()
        level = 10 ** torch.linspace(-1, 2.5, 8)[:, None]
        lines = torch.exp(-(((wavelength % 700) - 300) ** 2) / 50)
        flux = level * (1 + lines + torch.sin(wavelength / 900))
        flux = flux + 0.3 * torch.randn(wavelength.shape, generator=generator)
        ivar = 200 * torch.rand(wavelength.shape, generator=generator) ** 4
        mask = torch.zeros(wavelength.shape, dtype=torch.bool)
        observed = cls(flux=flux, ivar=ivar, mask=mask, wavelength=wavelength)
        latents, _ = codec._encode(observed)  # noqa: SLF001
        layer = codec.quant_conv
    else:
        latents = codec._encode(cls(field=torch.rand((4, 96, 96), generator=generator)))  # noqa: SLF001
        layer = codec.encode_proj
    width = latents.std((0, 2))
    layer.bias.sub_(latents.mean((0, 2))).div_(width)
    layer.weight.div_(width.view(-1, *[1] * (layer.weight.dim() - 1)))


# Ranges of made-up values, by the beginning of the token key.
RANGES = {
    "tok_ra": (0, 360), "tok_dec": (-90, 90), "tok_a_": (0, 0.6), "tok_ebv": (0, 0.4),
    "tok_mag_": (15, 28), "tok_shape_e": (-0.9, 0.9), "tok_shape1": (-3, 9),
    "tok_shape2": (0, 9), "catalogSHAPE_E": (-0.9, 0.9), "catalogSHAPE_R": (0, 12),
}  # fmt: skip


def fill_reservoirs(codec, cls, generator):
    """Fill every quantile table from a skewed sample; redshifts get the grid 0 to 6."""

    def fill(quantizer, sample):
        quantizer._reservoir.copy_(sample)  # noqa: SLF001
        quantizer._generate_index_to_val()  # noqa: SLF001

    def draw(quantizer, key):
        low, high = next(pair for start, pair in RANGES.items() if key.startswith(start))
        uniform = torch.rand(quantizer._reservoir.shape, generator=generator)  # noqa: SLF001
        fill(quantizer, low + (high - low) * uniform**1.5)

    quantizer, kind = codec.quantizer, type(codec).__name__
    if kind == "GridScalarCodec":
        quantizer.buckets.copy_(torch.linspace(0, 6, 1024))
    elif kind == "LogScalarCodec":
        normal = torch.randn(quantizer._reservoir.shape, generator=generator)  # noqa: SLF001
        flux = torch.exp(2 * normal + 1) - 0.3  # some are negative and meet the floor
        fill(quantizer, quantizer._log_and_apply_min(flux))  # noqa: SLF001
    elif kind == "MultiScalarCodec":
        for order, one in enumerate(quantizer.quantizers):
            normal = torch.randn(one._reservoir.shape, generator=generator)  # noqa: SLF001
            fill(one, one.compress(torch.sinh(3 * normal) * 100 / (1 + order)))
    elif kind == "CatalogCodec":
        for key in ("SHAPE_E1", "SHAPE_E2", "SHAPE_R"):
            draw(quantizer.quantizers[key], "catalog" + key)
    else:
        draw(quantizer, cls.token_key)


# Loading ------------------------------------------------------------------------------------


@lru_cache(maxsize=3)
def transformer(folder):
    """A model folder, strictly, in eval mode (the package leaves it in training mode)."""
    return AION.from_pretrained(folder, strict=True).eval()


@lru_cache(maxsize=8)
def codec_of(folder, key):
    """A codec folder, strictly; the package's own way cannot read local folders."""
    cls = CLASSES[key]
    place = Path(folder, "codecs", cls.name)
    codec = MODALITY_CODEC_MAPPING[cls](**json.loads((place / "config.json").read_text()))
    codec.load_state_dict(load_file(place / "model.safetensors"), strict=True)
    return codec.eval()


def load_by_the_package(_tensors, *, folder, key):
    """Load a codec from a local folder as the package's documentation does."""
    cls = CLASSES[key]
    MODALITY_CODEC_MAPPING[cls].from_pretrained(folder, modality=cls)
    return {}, {}


def training_after_load(_tensors, *, folder):
    """Whether the package leaves a model in training mode."""
    return {}, {"training": AION.from_pretrained(folder).training}


# Running ------------------------------------------------------------------------------------


def inputs_of(tensors, order):
    """The ids and the hide masks (True = hidden) of a request, in the wanted dict order."""
    ids = {key: tensors[f"ids.{key}"] for key in order}
    hide = {key: tensors[f"hide.{key}"] for key in order if f"hide.{key}" in tensors}
    return ids, hide


@torch.no_grad()
def encode(tensors, *, folder, order, limit="all"):
    """Context vectors (B, N, D) of all tokens, of so many, or of the package's ``default``."""
    ids, hide = inputs_of(tensors, order)
    more = {} if limit == "default" else {"num_encoder_tokens": limit}
    if limit == "all":
        more = {"num_encoder_tokens": sum(one.shape[1] for one in ids.values())}
    return {"context": transformer(folder).encode(ids, input_mask=hide, **more)}, {}


@torch.no_grad()
def forward(tensors, *, folder, order, targets):
    """Logits (B, N, V) of each target."""
    ids, hide = inputs_of(tensors, order)
    # The decoder's domains are shuffled by Python's own generator.
    random.seed(0)
    # The map's class lacks its number of tokens; a stand-in has what the call reads.
    asked = [
        CLASSES[key] if hasattr(CLASSES[key], "num_tokens")
        else types.SimpleNamespace(token_key=key, num_tokens=144)
        for key in targets
    ]  # fmt: skip
    return dict(transformer(folder)(ids, asked, input_mask=hide)), {}


@torch.no_grad()
def codec_encode(tensors, *, folder, key, bands=None, times=1):
    """Codes (B, N) of observations, and the latents (B, D, N) that a network gave for them.

    Both are of the last call where the same tensors are encoded several times.
    """
    codec = codec_of(folder, key)
    more = {"bands": bands} if bands else {}
    quantize, latents = codec.quantizer.encode, []

    def watch(latent):
        latents.append(latent)
        return quantize(latent)

    with mock.patch.object(codec.quantizer, "encode", watch):
        for _ in range(times):
            ids = codec.encode(CLASSES[key](**tensors, **more))
    found = {"ids": ids.reshape(len(ids), -1).long()}
    if torch.is_tensor(latents[-1]) and latents[-1].dim() == 3:
        found["latents"] = latents[-1]
    return found, {}


@torch.no_grad()
def codec_decode(tensors, *, folder, key, bands=None, mend_hsc=False, double=False):
    """Decoded observations, one tensor for each field of the modality; in float64 if ``double``.

    The package cannot decode HSC images: it calls a method that it lacks. With ``mend_hsc`` that
    method does what was meant, to bring nanomaggies back to zero point 27.
    """
    codec = codec_of(folder, key)
    if double:
        codec = copy.deepcopy(codec).double()
    more = {"bands": bands} if bands else {}
    if "wavelength" in tensors:
        more["wavelength"] = tensors["wavelength"]
    mend = nullcontext()
    if mend_hsc:
        mend = mock.patch.object(codec.rescaler, "backward", to_zero_point_27)
    with mend:
        decoded = codec.decode(tensors["ids"], **more)
    fields = {name: value for name, value in vars(decoded).items() if torch.is_tensor(value)}
    return fields, {}


def to_zero_point_27(image, _survey):
    """Nanomaggies to the HSC zero point."""
    return image * 10 ** ((27 - 22.5) / 2.5)


COMMANDS = {
    function.__name__: function
    for function in (
        make_transformer, make_codec, load_by_the_package, training_after_load,
        encode, forward, codec_encode, codec_decode,
    )
}  # fmt: skip


def answer(request):
    """Carry out one request and write its tensors."""
    tensors = load_file(request["tensors"]) if request["tensors"] else {}
    found, values = COMMANDS[request["command"]](tensors, **request["arguments"])
    save_file({key: tensor.contiguous().clone() for key, tensor in found.items()},
              request["answer"])  # fmt: skip
    return {"values": values}


def serve():
    """Answer until stdin ends."""
    # What the package prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as problem:  # noqa: BLE001 - an error of the package is an answer too
            reply = {"error": f"{type(problem).__name__}: {problem}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()

"""Small real things that several rooms test with: a model, a catalog."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hats.catalog import CollectionProperties
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from hypothesis import settings

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec_core.codecs.coefficients import CoefficientsCodec, CoefficientsCodecConfig
from skyvec_core.codecs.folder import save_codec
from skyvec_core.codecs.image import ImageCodec, ImageCodecConfig
from skyvec_core.codecs.scalar import GridScalarCodec, LogScalarCodec, ScalarCodec
from skyvec_core.codecs.spectrum import SpectrumCodec, SpectrumCodecConfig
from skyvec_core.modalities import MODALITIES
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.weights import save_transformer
from skyvec_schemas.survey_columns import LEGACY_SURVEY, SURVEYS, image_struct

settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
torch.set_num_threads(1)

DOMAINS = ("tok_image", *(s.token_key for s in LEGACY_SURVEY.scalars), "tok_z")
BANDS = ("des-g", "des-r", "des-i", "des-z")


def tiny_codecs(seed: int = 0):
    """A codec of every kind that the Legacy Survey needs, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ImageCodecConfig(hidden_dims=16, multisurvey_projection_dims=4, num_consecutive=1)
    codecs = {"tok_image": ImageCodec(sizes), "tok_z": GridScalarCodec()}
    for parameter in codecs["tok_image"].parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    codecs["tok_z"].set_grid(0, 6)
    for scalar in LEGACY_SURVEY.scalars:
        logarithmic = MODALITIES[scalar.token_key].quantizer == "log_scalar"
        codec = LogScalarCodec() if logarithmic else ScalarCodec()
        codec.fit(torch.rand(500, generator=generator) * 40 - 0.5)
        codecs[scalar.token_key] = codec
    return codecs


def save_model(folder: Path, *, seed: int = 0) -> Path:
    """A model folder with random weights, 32 values wide."""
    config = TransformerConfig(
        dim=32, num_heads=2, encoder_depth=2, decoder_depth=1,
        domains_in=DOMAINS, domains_out=DOMAINS,
    )  # fmt: skip
    transformer = EncoderDecoder(config)
    transformer.initialize(torch.Generator().manual_seed(seed))
    save_transformer(transformer, folder)
    for key, codec in tiny_codecs(seed).items():
        save_codec(codec, folder, MODALITIES[key])
    return folder


def save_model_of_all_surveys(folder: Path, *, seed: int = 0) -> Path:
    """A model folder that takes every input of every known survey; random weights, 32 wide."""
    generator = torch.Generator().manual_seed(seed)
    inputs = dict.fromkeys(key for survey in SURVEYS.values() for _, key in survey.inputs)
    domains = (*inputs, "tok_z")
    config = TransformerConfig(
        dim=32, num_heads=2, encoder_depth=2, decoder_depth=1,
        domains_in=domains, domains_out=domains,
    )  # fmt: skip
    transformer = EncoderDecoder(config)
    transformer.initialize(torch.Generator().manual_seed(seed))
    save_transformer(transformer, folder)
    codecs = tiny_codecs(seed)
    spectrum = SpectrumCodec(
        SpectrumCodecConfig(
            encoder_depths=(1, 1, 1, 1), encoder_dims=(8, 8, 8, 16), latent_channels=16,
            decoder_depths=(1, 1, 1, 1), decoder_dims=(8, 8, 8, 2),
        )
    )  # fmt: skip
    for parameter in spectrum.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    for key in domains:
        kind = MODALITIES[key].kind
        if kind == "spectrum":
            codecs[key] = spectrum
        elif kind == "coefficients":
            codecs[key] = CoefficientsCodec(CoefficientsCodecConfig())
            codecs[key].fit(torch.randn(500, 55, generator=generator) * 30)
        elif key not in codecs and kind == "scalar":
            logarithmic = MODALITIES[key].quantizer == "log_scalar"
            codecs[key] = LogScalarCodec() if logarithmic else ScalarCodec()
            codecs[key].fit(torch.rand(500, generator=generator) * 40 - 0.5)
    for key, codec in codecs.items():
        save_codec(codec, folder, MODALITIES[key])
    return folder


@pytest.fixture(scope="session")
def every_survey_model(tmp_path_factory):
    return save_model_of_all_surveys(tmp_path_factory.mktemp("models") / "every")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "other", seed=1)


def cutout(seed: int = 0, *, size: int = 96, bands=BANDS, **changes):
    """One image struct as a dict; ``changes`` replace fields."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    profile = np.exp(-np.hypot(x, y) / (2 + seed % 5)) * rng.uniform(0.5, 3)
    flux = profile * rng.uniform(0.5, 1.5, (len(bands), 1, 1)) + rng.normal(
        0, 0.01, (len(bands), size, size)
    )
    image = {
        "band": list(bands),
        "flux": flux.astype(np.float32),
        "mask": np.ones(flux.shape, bool),
        "psf_fwhm": [1.2] * len(bands),
        "scale": [0.262] * len(bands),
    }
    return image | changes


def images(cutouts) -> pa.Array:
    """Image column of dicts made by `cutout`; None is a missing cutout."""
    plain = [
        image and {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in image.items()}
        for image in cutouts
    ]
    return pa.array(plain, image_struct(with_ivar=False))


def survey_table(rows: int = 12, *, seed: int = 0, cutouts=None, **columns) -> pa.Table:
    """A table of the Legacy Survey's columns over two HEALPix pixels of order 1."""
    rng = np.random.default_rng(seed)
    half = rows // 2
    table = {
        "object_id": pa.array(10**12 + rng.permutation(rows).astype(np.int64)),
        "ra": pa.array(np.r_[rng.uniform(10, 30, half), rng.uniform(190, 210, rows - half)]),
        "dec": pa.array(rng.uniform(-5, 5, rows)),
    }
    usual = [cutout(i) for i in range(rows)]
    table["image"] = images(usual if cutouts is None else cutouts)
    for scalar in LEGACY_SURVEY.scalars:
        table[scalar.name] = pa.array(rng.lognormal(1, 1, rows).astype(np.float32))
    for name in ("SHAPE_E1", "SHAPE_E2"):
        table[name] = pa.array(rng.uniform(-0.5, 0.5, rows).astype(np.float32))
    for plane, band in enumerate("GRIZ"):
        sums = [image["flux"][plane].sum() for image in usual]
        table[f"FLUX_{band}"] = pa.array(np.array(sums, np.float32))
    table["Z"] = pa.array(rng.uniform(0, 1, rows).astype(np.float32))
    return pa.table(table | columns)


def write_collection(table: pa.Table, collection: Path, *, order: int = 1) -> Path:
    """A HATS collection with one catalog ``cat`` holding the rows of a table."""
    catalog = collection / "cat"
    ra, dec = (table.column(c).to_numpy() for c in ("ra", "dec"))
    index = compute_spatial_index(ra, dec)
    table = table.add_column(0, "_healpix_29", pa.array(index, pa.int64()))
    table = table.take(pa.array(np.argsort(index, kind="stable")))
    pixel_of_row = spatial_index_to_healpix(np.sort(index), order)
    rows = {}
    for pixel in np.unique(pixel_of_row):
        place = HealpixPixel(order, int(pixel))
        leaf = Path(str(paths.pixel_catalog_file(str(catalog), place)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        part = table.filter(pa.array(pixel_of_row == pixel))
        pq.write_table(part, leaf, row_group_size=4)
        rows[place] = len(part)
    finish_catalog(
        catalog, name="cat", rows=rows,
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()),
        ra_column="ra", dec_column="dec", builder="tests", properties={},
    )  # fmt: skip
    CollectionProperties(name="sky", hats_primary_table_url="cat").to_properties_file(collection)
    return collection


@pytest.fixture
def make_collection(tmp_path):
    """Write a collection from a table, or from keyword changes to `survey_table`."""

    def make(table: pa.Table | None = None, *, name: str = "sky", **changes) -> Path:
        table = survey_table(**changes) if table is None else table
        return write_collection(table, tmp_path / name)

    return make


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, model_folder):
    """A collection of 60 objects with the published extension ``small_v1``; do not change it."""
    from skyvec.stage.run import run

    collection = write_collection(survey_table(60), tmp_path_factory.mktemp("embedded") / "sky")
    run(collection, model=model_folder, workers=0)
    return collection


@pytest.fixture(scope="session")
def factory():
    """The builders of this file, for tests that need odd rows."""

    class Factory:
        BANDS = BANDS
        cutout = staticmethod(cutout)
        images = staticmethod(images)
        survey_table = staticmethod(survey_table)
        write_collection = staticmethod(write_collection)
        save_model = staticmethod(save_model)
        tiny_codecs = staticmethod(tiny_codecs)

    return Factory

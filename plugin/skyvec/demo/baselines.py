"""What the vectors are compared with: an untrained encoder, and photometry alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import lsdb
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from skyvec.demo.facts import ScoreRow
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.models import model_folder
from skyvec.probes.folds import sky_blocks
from skyvec.probes.in_memory import cross_validate, labelled_vectors
from skyvec.stage.run import run
from skyvec.stage.run_record import RunRecord
from skyvec_core.golden import GOLDEN_FILE
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.weights import load_transformer, save_transformer

if TYPE_CHECKING:
    from distributed import Client

FLUXES = tuple(f"FLUX_{band}" for band in ("G", "R", "I", "Z", "W1", "W2", "W3", "W4"))
OTHERS = ("SHAPE_R", "SHAPE_E1", "SHAPE_E2", "EBV")
SOFTENING = 0.1
"""Flux in nanomaggies at which an asinh magnitude turns linear, about the survey's noise."""


def embed_at_random(
    catalog: Path, out: Path, model: str, *, client: Client | None, seed: int = 0
) -> VectorCatalog:
    """Embed with the model's codecs and token tables, but blocks that never learnt anything.

    The tables stay, since they alone carry much of the photometry: with fresh ones the baseline
    would be near zero and flatter the encoder.
    """
    folder = out / "untrained-blocks"
    if not folder.exists():
        staged = out / "untrained-blocks.partial"
        shutil.copytree(model_folder(model), staged, dirs_exist_ok=True)
        trained = load_transformer(model_folder(model))
        untrained = EncoderDecoder(trained.config)
        untrained.initialize(torch.Generator().manual_seed(seed))
        for table in ("token_table", "domain_table"):
            untrained.get_submodule(table).load_state_dict(
                trained.get_submodule(table).state_dict()
            )
        save_transformer(untrained, staged)
        (staged / GOLDEN_FILE).unlink(missing_ok=True)  # of the trained weights
        staged.rename(folder)
    record = run(catalog, model=folder, name="untrained_blocks", out=out, client=client)
    return VectorCatalog.open(record.properties or out / "untrained_blocks.properties")


def redshift_scores(
    record: RunRecord, random_vectors: VectorCatalog, *, target: str
) -> tuple[list[ScoreRow], NDArray[np.float64], NDArray[np.float64]]:
    """Score rows, truth and out-of-fold predictions of the vectors; equal folds for all."""
    trained = labelled_vectors(VectorCatalog.open(record.source, record.name), target)
    untrained = labelled_vectors(random_vectors, target)
    predicted, ours = cross_validate(trained.features, trained.labels, trained.blocks)
    _, floor = cross_validate(untrained.features, untrained.labels, untrained.blocks)
    fluxes, everything, labels, blocks = _photometry(record.source, target)
    _, linear = cross_validate(fluxes, labels, blocks)
    with threadpool_limits(1):  # OpenMP threads that wait for a busy core cost minutes
        _, trees = cross_validate(everything, labels, blocks, model=_boosted_trees())
    rows = [
        ScoreRow(name=f"{record.provenance.model} vectors, linear", score=ours, ours=True,
                 note="image and catalog columns, one mean vector"),
        ScoreRow(name="untrained blocks, linear", score=floor,
                 note="same tokens and token tables, random encoder blocks"),
        ScoreRow(name="photometry alone, linear", score=linear, note="8 asinh magnitudes"),
        ScoreRow(name="catalog columns, boosted trees", score=trees,
                 note="8 asinh magnitudes, shape, E(B-V); not linear"),
    ]  # fmt: skip
    return rows, np.asarray(trained.labels, np.float64), np.asarray(predicted, np.float64)


def _photometry(
    catalog: Path, target: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    columns = ["ra", "dec", target, *FLUXES, *OTHERS]
    frame = lsdb.open_catalog(catalog, columns=columns).compute(progress_bar=False)
    values = {name: frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in columns}
    keep = np.isfinite(values[target])
    magnitudes = np.stack([asinh_magnitude(values[name]) for name in FLUXES], axis=1)
    others = np.stack([values[name] for name in OTHERS], axis=1)
    blocks = sky_blocks(np.stack([values["ra"], values["dec"]], axis=1))
    everything = np.concatenate([magnitudes, others], axis=1)
    return magnitudes[keep], everything[keep], values[target][keep], blocks[keep]


def asinh_magnitude(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitude (AB) of a flux in nanomaggies that stays finite at zero; Lupton et al. 1999."""
    softened = np.arcsinh(flux / (2 * SOFTENING)) + np.log(SOFTENING)
    return np.asarray(22.5 - 2.5 / np.log(10) * softened)


def _boosted_trees() -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(random_state=0)

"""Small recipes, stores and tasks; no network, no cluster, no survey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from skyvec_core.model.vocabulary import Vocabulary
from skyvec_schemas.token_columns import token_array
from skyvec_training.data.tokens import TokenStore
from skyvec_training.recipe.data import DataRun
from skyvec_training.recipe.masking import MaskingRun
from skyvec_training.recipe.optimizer import OptimizerRun
from skyvec_training.recipe.transformer import TransformerRun, TransformerSizes

DOMAINS = ("tok_flux_g", "tok_flux_r", "tok_image", "tok_z")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def vocabulary():
    return Vocabulary(DOMAINS)


@pytest.fixture
def optimizer_run():
    return OptimizerRun(steps=6, learning_rate=1e-3, warmup_steps=2, log_every=1,
                        evaluate_every=3, checkpoint_every=3)  # fmt: skip


@pytest.fixture
def transformer_run(optimizer_run):
    masking = MaskingRun(
        input_budget=24,
        output_budget=16,
        drop={"image": 0.3, "redshift": 0.5},
        groups={"image": ("tok_image",), "redshift": ("tok_z",)},
    )
    sizes = TransformerSizes(dim=16, num_heads=2, encoder_depth=1, decoder_depth=1, domains=DOMAINS)
    return TransformerRun(optimizer=optimizer_run, model=sizes, masking=masking, batch=4,
                          pooled_share=0.5, ordinal_smoothing=2.0)  # fmt: skip


@pytest.fixture
def store(vocabulary):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1000, (20, vocabulary.num_positions)).astype(np.int16)
    codes[rng.random(codes.shape) < 0.2] = -1
    return TokenStore(codes_BA=codes, ids=np.arange(20), run=DataRun(held_out=0.3))


@pytest.fixture
def token_catalog(tmp_path, write_tokens, vocabulary, store):
    return write_tokens(tmp_path / "tokens", vocabulary, store)


@pytest.fixture(scope="session")
def write_tokens():
    return _write_tokens


@pytest.fixture(scope="session")
def line_task():
    return LineTask


def _write_tokens(folder: Path, vocabulary: Vocabulary, store: TokenStore) -> Path:
    table = {"object_id": pa.array(store.ids)}
    for modality in vocabulary.modalities:
        codes = store.codes_BA[:, vocabulary.positions[modality.token_key].rows].astype(np.int64)
        table[modality.token_key] = token_array(codes, codes >= 0)
    leaf = folder / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    pq.write_table(pa.table(table), leaf)
    return folder


class LineTask:
    """A line through points; at ``nan_step`` the loss is not a number."""

    def __init__(self, *, nan_step: int | None = None) -> None:
        self.module = nn.Linear(3, 1)
        self.nan_step = nan_step
        with torch.no_grad():
            self.module.weight.fill_(0.5)
            self.module.bias.zero_()

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        scale = float("nan") if step == self.nan_step else 1.0
        return ((self.module(x) - x.sum(1, keepdim=True)) ** 2).mean() * scale, {}

    def evaluate(self) -> dict[str, float]:
        return {"loss": float(self.loss(1000)[0])}

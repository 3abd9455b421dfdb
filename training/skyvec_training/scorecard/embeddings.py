"""Vectors of a sample for one input set, kept on disk: computed once for each model and input.

Contexts are float16, 150 kB an object of ``skyvec-tiny`` with an image.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyvec_core.embedder import Model
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.model.pooling import domain_means, masked_mean
from skyvec_core.prediction import rows_of
from skyvec_training.scorecard.sample import Sample

# Shape letters: B object, T token, K domain, D width, N tokens of all objects together.

CHUNK = 256
"""Objects whose contexts are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Vectors of a sample for one input set; rows are those of the sample."""

    domains: tuple[str, ...]
    mean_BD: NDArray[np.float32]
    """Mean over tokens; NaN without any."""
    by_modality_BKD: NDArray[np.float32]
    """Mean over the tokens of each domain; NaN where an object lacks it."""
    contexts_ND: NDArray[np.float16]
    """Context vectors of all tokens, memory-mapped."""
    positions_N: NDArray[np.int32]
    """Joint position of each token, see `skyvec_core.model.vocabulary`."""
    starts_B: NDArray[np.int64]
    """(B + 1,) first token of each object."""

    def __len__(self) -> int:
        return len(self.mean_BD)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.mean_BD.shape[1]

    def contexts(self, row: int) -> NDArray[np.float16]:
        """Context vectors (T, D) of one object."""
        return self.contexts_ND[self.starts_B[row] : self.starts_B[row + 1]]

    def padded(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Contexts (B, T, D), float32, and validity (B, T) of some objects."""
        counts = np.diff(self.starts_B)[rows]
        length = max(1, int(counts.max(initial=0)))
        context_BTD = torch.zeros(len(rows), length, self.dim)
        for place, row in enumerate(rows.tolist()):
            context_BTD[place, : counts[place]] = torch.from_numpy(np.array(self.contexts(row)))
        return context_BTD, torch.arange(length) < torch.from_numpy(counts)[:, None]


def random_model(model: Model, *, seed: int) -> Model:
    """The same architecture with weights that never learnt anything; it shares the codecs."""
    fresh = EncoderDecoder(model.config)
    fresh.initialize(torch.Generator().manual_seed(seed))
    return Model(fresh, model.codecs, name=f"random weights, seed {seed}")


def embed_sample(
    model: Model,
    sample: Sample,
    domains: Sequence[str],
    work: Path,
    *,
    observe: Callable[[int], None] | None = None,
) -> Embedded:
    """Vectors from the tokens of these domains; read back if ``work`` holds them already.

    Parameters
    ----------
    work
        Folder of everything that is kept between runs; its name within tells model and input.
    observe
        Called with the number of objects done.
    """
    facts = {"model": model.digest, "sample": sample.digest, "domains": list(domains)}
    folder = work / "vectors" / f"{model.digest[:12]}-{_short(facts)}"
    if not (folder / "facts.json").is_file():
        aside = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _compute(model, sample, domains, aside, observe)
        (aside / "facts.json").write_text(json.dumps(facts))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    stored = {name: np.load(folder / f"{name}.npy") for name in ("mean", "modalities", "starts",
                                                                "positions")}  # fmt: skip
    return Embedded(
        domains=tuple(domains),
        mean_BD=stored["mean"],
        by_modality_BKD=stored["modalities"],
        positions_N=stored["positions"],
        starts_B=stored["starts"],
        contexts_ND=_mapped(folder / "contexts.f16", model.dim),
    )


def _compute(
    model: Model,
    sample: Sample,
    domains: Sequence[str],
    folder: Path,
    observe: Callable[[int], None] | None,
) -> None:
    counts, positions, means, modalities = [], [], [], []
    keys = [m.token_key for m in model.vocabulary.modalities]
    chosen = [keys.index(key) for key in domains]
    domain_of_position = model.vocabulary.domain_of_position()
    with (folder / "contexts.f16").open("wb") as file:
        for start in range(0, len(sample), CHUNK):
            rows = torch.arange(start, min(start + CHUNK, len(sample)))
            tokens = rows_of({key: sample.tokens[key] for key in domains}, rows)
            found: list[tuple[Tensor, Tensor]] = [
                (torch.zeros(0, model.dim), torch.zeros(0, dtype=torch.int64)) for _ in rows
            ]
            mean_BD = torch.full((len(rows), model.dim), torch.nan)
            modality_BKD = torch.full((len(rows), len(domains), model.dim), torch.nan)
            for batch, context_BTD in model.contexts(tokens, domains=domains):
                at = batch.rows
                of_BT = domain_of_position[batch.positions_BT]
                mean_BD[at] = masked_mean(context_BTD, batch.valid_BT)[: len(at)]
                all_BKD = domain_means(context_BTD, batch.valid_BT, of_BT, count=len(keys))
                modality_BKD[at] = all_BKD[: len(at), chosen]
                for place, row in enumerate(at.tolist()):
                    kept = batch.valid_BT[place]
                    found[row] = (context_BTD[place, kept], batch.positions_BT[place, kept])
            for context_TD, position_T in found:
                file.write(context_TD.half().numpy().tobytes())
                counts.append(len(context_TD))
                positions.append(position_T.numpy().astype(np.int32))
            means.append(mean_BD.numpy())
            modalities.append(modality_BKD.numpy())
            if observe:
                observe(len(counts))
    np.save(folder / "mean.npy", np.concatenate(means))
    np.save(folder / "modalities.npy", np.concatenate(modalities))
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(counts)]))
    np.save(folder / "positions.npy", np.concatenate(positions))


def _mapped(path: Path, dim: int) -> NDArray[np.float16]:
    if path.stat().st_size == 0:  # cannot be mapped
        return np.zeros((0, dim), np.float16)
    return np.memmap(path, np.float16, "r").reshape(-1, dim)


def _short(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

"""Fits a bridge on the objects that have vectors by both models, and measures what it loses.

Everything streams, partition by partition: only sums are kept (two matrices of the vectors' width),
and a sample of held-out objects for the search of neighbours. Whole blocks of the sky are held out,
since neighbours share seeing and calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyvec.bridge import MAX_LOSS, Bridge, End, Floats, Quality
from skyvec.bridging.moments import Moments, error_products, ridge_maps
from skyvec.bridging.overlap import pairs
from skyvec.bridging.quality import (
    common_neighbours,
    kernel_alignment,
    mean_cosine,
    measure,
    r2_of_dimensions,
    r2_of_procrustes,
)
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.probe import Probe
from skyvec_schemas.errors import ConfigurationError

HELD_OUT, TUNING = 0.2, 0.2
"""Shares of the sky blocks that measure the bridge, and that choose its ridge."""
SAMPLE = 20_000
"""Held-out objects among which neighbours are searched."""
LEAST_ROWS, LEAST_BLOCKS = 30, 5


def fit_bridge(
    catalog: str | Path,
    *,
    new: str,
    old: str,
    max_loss: float = MAX_LOSS,
    probes: Sequence[Probe] = (),
    seed: int = 0,
) -> Bridge:
    """Fit a linear map from the vectors of extension ``new`` to those of ``old``.

    Parameters
    ----------
    catalog
        Collection with both; an extension of another one is named by its ``.properties`` file.
        Objects are the same where their ids are, within overlapping HEALPix pixels.
    max_loss
        R2 that a probe may lose on the bridge; it is refused beyond.
    probes
        Fitted on ``old``; what each loses is measured against its column of the older catalog.
    seed
        Of the choice of held-out blocks.

    Raises
    ------
    ConfigurationError
        Too few objects have both vectors, both are by one model, or a probe is of neither.
    """
    if not max_loss >= 0:
        raise ConfigurationError(
            "must not be negative", where=f"max_loss = {max_loss}", remedy="0.02 is a usual loss"
        )
    probes = [one for probe in probes for one in probe.singles()]
    ours, theirs = VectorCatalog.open(catalog, new), VectorCatalog.open(catalog, old)
    source, target = _end(ours), _end(theirs)
    if source.fingerprint == target.fingerprint:
        raise ConfigurationError(
            f"both hold the vectors {source.fingerprint[:8]} of one model",
            where=f"{new} and {old}",
            remedy="Nothing is to be bridged: a probe for one runs on the other",
        )
    for probe in probes:
        if probe.fingerprint != target.fingerprint:
            raise ConfigurationError(
                f"learnt on vectors {probe.fingerprint[:8]}, {old} holds {target.fingerprint[:8]}",
                where=f"probe for {probe.target}",
                remedy="Give probes that were fitted on the older extension",
            )
    shares = _split(ours, theirs, seed)
    fitted, tuned, held = _moments(ours, theirs, shares, source.dim + target.dim)
    ridge, weights, intercept = _fit(fitted, tuned, source.dim)
    seen = measure(ours, theirs, shares.held_out, weights, intercept, probes,
                    share=min(1.0, SAMPLE / held.count), seed=seed)  # fmt: skip
    spread = held.about(held.mean)[source.dim :, source.dim :]
    residual = seen.errors / held.count
    quality = Quality(
        rows=held.count, blocks=len(shares.held_out), fitted_rows=(fitted + tuned).count,
        ridge=ridge, r2=1 - float(np.trace(residual) / np.trace(spread)),
        r2_dimensions=r2_of_dimensions(residual, spread),
        r2_procrustes=r2_of_procrustes(fitted + tuned, held, source.dim),
        cosine=mean_cosine(seen, held.mean[source.dim :]),
        neighbours=common_neighbours(seen, held.mean[source.dim :], seed=seed),
        cka=kernel_alignment(held.about(held.mean), source.dim),
    )  # fmt: skip
    return Bridge(
        source=source, target=target, weights=weights, intercept=intercept, residual=residual,
        spread=spread, quality=quality, max_loss=max_loss, probes=seen.probe_losses(probes),
    )  # fmt: skip


def _end(vectors: VectorCatalog) -> End:
    made = vectors.provenance
    return End(extension=vectors.name, model=made.model, fingerprint=made.fingerprint(),
               dim=vectors.dim)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shares:
    """Sky blocks by what they are for; those of neither fit the map."""

    tuning: NDArray[np.int64]
    held_out: NDArray[np.int64]


def _split(ours: VectorCatalog, theirs: VectorCatalog, seed: int) -> _Shares:
    counts: dict[int, int] = {}
    for part in pairs(ours, theirs):
        blocks, rows = np.unique(part.blocks, return_counts=True)
        for block, number in zip(blocks.tolist(), rows.tolist(), strict=True):
            counts[block] = counts.get(block, 0) + number
    if sum(counts.values()) < LEAST_ROWS or len(counts) < LEAST_BLOCKS:
        raise ConfigurationError(
            f"only {sum(counts.values())} objects in {len(counts)} sky blocks have both vectors",
            where=f"{ours.name} and {theirs.name}",
            remedy=f"At least {LEAST_ROWS} in {LEAST_BLOCKS} blocks of 3.7 degrees are needed; "
            "embed objects that both releases have",
        )
    order = np.random.default_rng(seed).permutation(np.array(sorted(counts)))
    held, tuned = (max(1, round(share * len(order))) for share in (HELD_OUT, TUNING))
    return _Shares(held_out=order[:held], tuning=order[held : held + tuned])


def _moments(
    ours: VectorCatalog, theirs: VectorCatalog, shares: _Shares, width: int
) -> tuple[Moments, Moments, Moments]:
    """Of the blocks that fit, that tune and that are held out."""
    sums: tuple[Moments, Moments, Moments] | None = None
    for part in pairs(ours, theirs):
        both = np.concatenate([part.new, part.old], axis=1)
        if sums is None:
            centre = both.mean(0, dtype=np.float64) if len(both) else np.zeros(width)
            sums = (Moments(centre), Moments(centre), Moments(centre))
        tuned, held = (np.isin(part.blocks, blocks) for blocks in (shares.tuning, shares.held_out))
        for moments, rows in zip(sums, (~tuned & ~held, tuned, held), strict=True):
            moments.add(both[rows])
    assert sums is not None  # noqa: S101 - there are pairs, they were counted
    return sums


def _fit(fitted: Moments, tuned: Moments, width: int) -> tuple[float, Floats, Floats]:
    """Ridge strength, weights and intercept; the strength is chosen where nothing was fitted."""
    maps = ridge_maps(fitted, width)
    spread = tuned.about(fitted.mean)
    losses = {
        ridge: float(np.trace(error_products(weights, spread))) for ridge, weights in maps.items()
    }
    best = min(losses, key=losses.__getitem__)
    every = fitted + tuned
    weights = ridge_maps(every, width, (best,))[best]
    return best, weights, every.mean[width:] - every.mean[:width] @ weights

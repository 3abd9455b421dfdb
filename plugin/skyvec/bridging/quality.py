"""What a bridge loses, on objects of sky blocks that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from skyvec.bridge import Floats, ProbeLoss, digest_of_probe
from skyvec.bridging.moments import Moments, error_products
from skyvec.bridging.overlap import pairs
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.probe import Probe
from skyvec.releases.hats.catalog import HatsRelease
from skyvec_schemas.errors import MissingColumnError

QUERIES, NEIGHBOURS = 1000, 10
"""Held-out objects that ask for neighbours, and how many they want."""


@dataclass(kw_only=True)
class HeldOut:
    """Held-out objects."""

    errors: Floats
    """Summed products."""
    real: list[Floats] = field(default_factory=list)
    """Sample of real vectors, and of bridged ones."""
    bridged: list[Floats] = field(default_factory=list)
    labelled: dict[str, list[Floats]] = field(default_factory=dict)
    """Digest of a probe -> label, prediction, prediction through the bridge (rows, 3)."""

    def probe_losses(self, probes: Sequence[Probe]) -> dict[str, ProbeLoss]:
        """What each probe with labels loses."""
        losses = {}
        for probe in probes:
            digest = digest_of_probe(probe)
            label, before, after = np.concatenate(self.labelled[digest]).T
            total = float(np.sum((label - label.mean()) ** 2)) if len(label) else 0.0
            if total > 0:
                r2 = [1 - float(np.sum((label - p) ** 2)) / total for p in (before, after)]
                losses[digest] = ProbeLoss(
                    target=probe.targets[0], rows=len(label), r2=r2[0], r2_bridged=r2[1]
                )
        return losses


def measure(
    ours: VectorCatalog,
    theirs: VectorCatalog,
    blocks: NDArray[np.int64],
    weights: Floats,
    intercept: Floats,
    probes: Sequence[Probe],
    *,
    share: float,
    seed: int,
) -> HeldOut:
    """Pass over the held-out objects once.

    Parameters
    ----------
    blocks
        Of the sky, held out.
    share
        Of the objects that are kept for the search of neighbours.
    """
    rng = np.random.default_rng(seed)
    labels = _labels(theirs, [probe.targets[0] for probe in probes]) if probes else {}
    seen = HeldOut(errors=np.zeros((len(intercept), len(intercept))))
    seen.labelled = {digest_of_probe(probe): [np.zeros((0, 3))] for probe in probes}
    for part in pairs(ours, theirs):
        held = part.where(np.isin(part.blocks, blocks))
        bridged = held.new.astype(np.float64) @ weights + intercept
        real = held.old.astype(np.float64)
        seen.errors += (real - bridged).T @ (real - bridged)
        chosen = rng.random(len(real)) < share
        seen.real.append(real[chosen])
        seen.bridged.append(bridged[chosen])
        for probe in probes:
            known = labels[probe.targets[0]].reindex(held.ids.to_pylist()).to_numpy()
            rows = np.isfinite(known)
            said = [known[rows], probe.predict(real[rows]), probe.predict(bridged[rows])]
            seen.labelled[digest_of_probe(probe)].append(np.stack(said, axis=1))
    return seen


def _labels(theirs: VectorCatalog, targets: Sequence[str]) -> Mapping[str, pd.Series]:
    """Columns of the older catalog by id, one number an object."""
    primary = HatsRelease.open(theirs.primary)
    missing = sorted(set(targets) - set(primary.schema.names))
    if missing:
        raise MissingColumnError(
            f"no column {', '.join(missing)}, which probes predict",
            where=str(primary.path),
            remedy="Fit the bridge without these probes: they are then held to what they predict",
        )
    columns = [theirs.id_column, *dict.fromkeys(targets)]
    tables = [leaf.read(columns=columns) for leaf in map(primary.open_leaf, primary.pixels)]
    table = pa.concat_tables(tables)
    index = pd.Index(table.column(theirs.id_column).to_pylist())
    return {
        target: pd.Series(table.column(target).cast(pa.float64()).to_numpy(), index=index)
        for target in targets
    }


def r2_of_dimensions(residual: Floats, spread: Floats) -> dict[str, float]:
    """Spread of the R2 of single dimensions; those that never vary are left out."""
    varies = np.diag(spread) > 0
    r2 = 1 - np.diag(residual)[varies] / np.diag(spread)[varies]
    names = {"least": 0, "tenth": 10, "median": 50, "most": 100}
    return {name: float(np.percentile(r2, place)) for name, place in names.items()}


def r2_of_procrustes(fitted: Moments, held: Moments, width: int) -> float:
    """R2 on held-out objects of the best rotation with one scale (orthogonal Procrustes)."""
    spread = fitted.about(fitted.mean)
    left, strength, right = np.linalg.svd(spread[:width, width:], full_matrices=False)
    scale = strength.sum() / np.trace(spread[:width, :width])
    errors = error_products(scale * left @ right, held.about(fitted.mean))
    return 1 - float(np.trace(errors) / np.trace(held.about(held.mean)[width:, width:]))


def kernel_alignment(spread: Floats, width: int) -> float:
    """Linear CKA of the first ``width`` dimensions and the others, from their covariance."""
    across, ours, theirs = (
        float(np.linalg.norm(block))
        for block in (spread[:width, width:], spread[:width, :width], spread[width:, width:])
    )
    return across**2 / (ours * theirs)


def mean_cosine(seen: HeldOut, mean: Floats) -> float:
    """Mean cosine of real and bridged vectors about the mean real one."""
    return float(np.mean(np.sum(_unit(seen.real, mean) * _unit(seen.bridged, mean), axis=1)))


def common_neighbours(seen: HeldOut, mean: Floats, *, seed: int) -> float:
    """Share of nearest neighbours that real and bridged queries have in common.

    Both ask among the same real vectors, by cosine, as a search in an old index would.
    """
    real, bridged = _unit(seen.real, mean), _unit(seen.bridged, mean)
    rows = np.random.default_rng(seed).permutation(len(real))[:QUERIES]
    k = min(NEIGHBOURS, len(real) - 1)
    if k < 1:
        return float("nan")
    found = []
    for queries in (real, bridged):
        alike = queries[rows] @ real.T
        alike[np.arange(len(rows)), rows] = -np.inf
        found.append(np.argpartition(-alike, k - 1, axis=1)[:, :k])
    common = [len(np.intersect1d(*both)) for both in zip(*found, strict=True)]
    return float(np.mean(common)) / k


def _unit(parts: Sequence[Floats], mean: Floats) -> Floats:
    centred = np.concatenate(list(parts)) - mean
    unit: Floats = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(min=1e-300)
    return unit

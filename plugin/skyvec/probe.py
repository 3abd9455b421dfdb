"""Linear models on the vectors of an extension, bound to the model that made them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skyvec.bridge import Bridge
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec_schemas.errors import ConfigurationError, MissingColumnError, WeightsError

Floats = NDArray[np.floating]

FOLDS = 5
BLOCK_ORDER = 4
"""Objects of one HEALPix pixel of this order (3.7 degrees) share a fold, so that neighbours on the
sky, which share seeing and calibration, never stand on both sides of a split."""
ALPHAS = tuple(10.0**power for power in range(-2, 6))
BOOTSTRAPS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Out-of-fold quality with a 95% interval from resampled sky blocks."""

    r2: float
    r2_low: float
    r2_high: float
    rmse: float
    nmad: float
    """1.4826 x median absolute deviation of the residuals about their median."""
    rows: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Rows that have both a vector and a finite label."""

    ids: pa.Array
    positions: NDArray[np.float64]
    features: Floats
    labels: Floats

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Sky block of each row."""
        return sky_blocks(self.positions)


class Probe:
    """A ridge regression from vectors to one column of the catalog.

    Parameters
    ----------
    target
        Column of the primary catalog, e.g. ``Z``.
    kind
        Only ``ridge`` so far.
    """

    def __init__(self, target: str, kind: Literal["ridge"] = "ridge") -> None:
        if kind != "ridge":
            raise ConfigurationError("unknown kind of probe", where=kind, remedy="Use ridge")
        self.target, self.kind = target, kind
        self.fingerprint = self.extension = ""
        self.weights: Floats = np.zeros(0)
        self.intercept = 0.0
        self.score: Score | None = None

    def fit(self, catalog: str | Path, *, extension: str | None = None) -> Probe:
        """Fit on every row with a vector and a label; scored on sky blocks left out in turn.

        Raises
        ------
        MissingColumnError
            If the catalog has no such column.
        ConfigurationError
            Too few labels or sky blocks, or a constant label.
        """
        vectors = VectorCatalog.open(catalog, extension)
        data = labelled_vectors(vectors, self.target)
        _refuse_unusable(data, self.target, vectors.primary)
        _, self.score = cross_validate(data.features, data.labels, data.blocks)
        model = ridge().fit(data.features, data.labels)
        scaler, regression = model[0], model[1]
        self.weights = regression.coef_ / scaler.scale_
        self.intercept = float(regression.intercept_ - self.weights @ scaler.mean_)
        self.fingerprint = vectors.provenance.fingerprint()
        self.extension = vectors.name
        return self

    def predict(self, vectors: Floats) -> Floats:
        """Predictions (rows,) for vectors (rows, dim)."""
        if not self.fingerprint:
            raise ConfigurationError("not fitted", where="probe", remedy="Call fit or load first")
        return np.asarray(vectors, np.float64) @ self.weights + self.intercept

    def apply(
        self,
        catalog: str | Path,
        *,
        extension: str | None = None,
        bridge: Bridge | str | Path | None = None,
    ) -> pa.Table:
        """Id, position and prediction of every row with a vector.

        Parameters
        ----------
        bridge
            From these vectors to those that the probe learnt on, or its folder.

        Raises
        ------
        ConfigurationError
            If the vectors were made by another model or setting than those the probe learnt on,
            and no bridge leads there, or the probe loses more on it than it allows.
        """
        if isinstance(bridge, str | Path):
            bridge = Bridge.load(bridge)
        own = bridge.source.extension if bridge else self.extension
        vectors = VectorCatalog.open(catalog, extension or own)
        found = vectors.provenance.fingerprint()
        if bridge:
            bridge.admit(self, fingerprint=found, model=vectors.provenance.model)
        elif found != self.fingerprint:
            raise ConfigurationError(
                f"learnt on vectors {self.fingerprint[:8]}, these are {found[:8]} "
                f"by {vectors.provenance.model}",
                where=f"probe for {self.target}",
                remedy="Fit it again on this extension, or give a bridge to the old vectors; "
                "numbers from other vectors mean nothing",
            )
        over = bridge.apply if bridge else np.asarray
        return pa.concat_tables(
            pa.table(
                {
                    vectors.id_column: part.ids,
                    "ra": part.positions[:, 0],
                    "dec": part.positions[:, 1],
                    f"{self.target}_predicted": self.predict(over(part.vectors)),
                }
            )
            for part in vectors.parts()
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``probe.json`` and ``probe.safetensors`` (never pickle)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "target": self.target, "kind": self.kind, "extension": self.extension,
            "fingerprint": self.fingerprint, "intercept": self.intercept,
            "score": asdict(self.score) if self.score else None,
        }  # fmt: skip
        (folder / "probe.json").write_text(json.dumps(facts, indent=2, sort_keys=True))
        save_file({"weights": np.asarray(self.weights)}, folder / "probe.safetensors")
        (folder / "probe.safetensors").chmod(0o644)  # safetensors writes 0600
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read `save`."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "probe.json").read_text())
            weights = load_file(folder / "probe.safetensors")["weights"]
        except (OSError, ValueError, KeyError) as problem:
            raise WeightsError(
                f"not a probe ({type(problem).__name__})",
                where=str(folder),
                remedy="Give the folder that Probe.save or `skyvec probe fit --out` wrote",
            ) from problem
        probe = cls(facts["target"], facts["kind"])
        probe.extension, probe.fingerprint = facts["extension"], facts["fingerprint"]
        probe.weights, probe.intercept = weights, float(facts["intercept"])
        probe.score = Score(**facts["score"]) if facts["score"] else None
        return probe


def labelled_vectors(vectors: VectorCatalog, target: str) -> Labelled:
    """Join the vectors with a column of the primary catalog, partition by partition, by id."""
    primary = HatsRelease.open(vectors.primary)
    if target == vectors.id_column:
        raise ConfigurationError(
            "is the id of the rows", where=f"target {target!r}", remedy="Choose a measured column"
        )
    if target not in _numeric_columns(primary.schema):
        there = target in primary.schema.names
        raise MissingColumnError(
            f"column {target!r} is not numeric" if there else f"no column {target!r}",
            where=str(primary.path),
            remedy=f"Choose one of: {', '.join(_numeric_columns(primary.schema))}",
        )
    parts = list(_labelled_parts(vectors, primary, target))
    return Labelled(
        ids=pa.concat_arrays([part.ids for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )


def _labelled_parts(
    vectors: VectorCatalog, primary: HatsRelease, target: str
) -> Iterator[Labelled]:
    for pixel, part in zip(vectors.release.pixels, vectors.parts(), strict=True):
        with pq.ParquetFile(primary.leaf(pixel)) as leaf:
            table = leaf.read(columns=[vectors.id_column, target])
        column = pd.Series(
            table.column(target).cast(pa.float64()).to_numpy(),
            index=pd.Index(table.column(vectors.id_column).to_pylist()),
        )
        labels = column.reindex(part.ids.to_pylist()).to_numpy()
        keep = np.isfinite(labels)
        yield Labelled(
            ids=part.ids.filter(pa.array(keep)),
            positions=part.positions[keep],
            features=part.vectors[keep].astype(np.float64),
            labels=labels[keep],
        )


def ridge() -> Pipeline:
    """Standardized features, ridge regression, its strength chosen by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))


def sky_blocks(positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """HEALPix pixel of order `BLOCK_ORDER` of each right ascension and declination, degrees."""
    index = compute_spatial_index(positions[:, 0], positions[:, 1])
    blocks: NDArray[np.int64] = spatial_index_to_healpix(index, BLOCK_ORDER)
    return blocks


def cross_validate(
    features: Floats,
    labels: Floats,
    blocks: NDArray[np.int64],
    *,
    model: Pipeline | None = None,
    seed: int = 0,
) -> tuple[Floats, Score]:
    """Out-of-fold predictions (rows,) and their score; folds are made of whole sky blocks."""
    folds = GroupKFold(n_splits=min(FOLDS, len(np.unique(blocks))))
    predicted = cross_val_predict(model or ridge(), features, labels, groups=blocks, cv=folds)
    residuals = predicted - labels
    low, high = _interval(labels, predicted, blocks, np.random.default_rng(seed))
    return predicted, Score(
        r2=r_squared(labels, predicted), r2_low=low, r2_high=high,
        rmse=float(np.sqrt(np.mean(residuals**2))),
        nmad=float(1.4826 * np.median(np.abs(residuals - np.median(residuals)))),
        rows=len(labels), blocks=len(np.unique(blocks)),
    )  # fmt: skip


def r_squared(labels: Floats, predicted: Floats) -> float:
    """Share of the labels' variance that the predictions explain; negative if worse than a mean."""
    return float(1 - np.sum((labels - predicted) ** 2) / np.sum((labels - labels.mean()) ** 2))


def _interval(
    labels: Floats, predicted: Floats, blocks: NDArray[np.int64], rng: np.random.Generator
) -> tuple[float, float]:
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    scores = []
    for _ in range(BOOTSTRAPS):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        scores.append(r_squared(labels[rows], predicted[rows]))
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def _refuse_unusable(data: Labelled, target: str, primary: Path) -> None:
    where = f"{primary}, column {target!r}"
    blocks = len(np.unique(data.blocks)) if len(data.labels) else 0
    if len(data.labels) < 2 * FOLDS or blocks < 2:
        raise ConfigurationError(
            f"only {len(data.labels)} rows in {blocks} sky blocks have a vector and a finite label",
            where=where,
            remedy=f"At least {2 * FOLDS} rows in 2 blocks of 3.7 degrees are needed",
        )
    if float(np.ptp(data.labels)) == 0:
        raise ConfigurationError(
            "is constant", where=where, remedy="There is nothing to learn; choose another target"
        )


def _numeric_columns(schema: pa.Schema) -> list[str]:
    return [f.name for f in schema
            if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]  # fmt: skip


__all__: Sequence[str] = ("Probe", "Score", "cross_validate", "labelled_vectors", "ridge")

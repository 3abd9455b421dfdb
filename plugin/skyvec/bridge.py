"""Bridges: linear maps from the vectors of one model to those of another, with what they lose.

A bridge lets a probe that was fitted on an older model run on the vectors of a newer one, as far as
the bridge is good enough for it. How good it is was measured on blocks of the sky that the map has
not seen (`skyvec.bridging.fitting`), and travels with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from skyvec_schemas.errors import ConfigurationError, WeightsError

if TYPE_CHECKING:
    from skyvec.probes.probe import Probe

Floats = NDArray[np.floating]

MAX_LOSS = 0.02
"""R2 that a probe may lose by default."""
FACTS_FILE, TENSORS_FILE = "bridge.json", "bridge.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The vectors on one side."""

    extension: str
    model: str
    fingerprint: str
    dim: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How well bridged vectors stand in for the real ones, on held-out blocks of the sky."""

    rows: int
    blocks: int
    fitted_rows: int
    ridge: float
    """Strength, over the mean variance of a dimension; chosen on blocks of its own."""
    r2: float
    """Share of the variance of the real vectors, over all dimensions."""
    r2_dimensions: Mapping[str, float]
    """``least``, ``tenth`` (percentile), ``median`` and ``most`` of the R2 of single dimensions."""
    r2_procrustes: float
    """Of a rotation with one scale, for comparison."""
    cosine: float
    """Mean between real and bridged, both less the mean real vector."""
    neighbours: float
    """Share of the ten nearest real vectors that a bridged query finds, too."""
    cka: float
    """Linear centred kernel alignment of both sides (arXiv 1905.00414): 1 if one is a rotation and
    scaling of the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeLoss:
    """What one probe loses, against labels of objects that the bridge has not seen.

    If the probe learnt on these objects, its ``r2`` flatters it, and the loss is overstated.
    """

    target: str
    rows: int
    r2: float
    """On the real vectors."""
    r2_bridged: float

    @property
    def loss(self) -> float:
        """R2 lost; negative if the bridge does better."""
        return self.r2 - self.r2_bridged


@dataclass(kw_only=True)
class Bridge:
    """``vectors @ weights + intercept`` leads from ``source`` to ``target``."""

    source: End
    target: End
    weights: Floats
    """(dim of source, dim of target)"""
    intercept: Floats
    residual: Floats
    """Mean product of the errors of each two dimensions on held-out objects."""
    spread: Floats
    """Covariance of the real vectors of the same objects."""
    quality: Quality
    max_loss: float = MAX_LOSS
    """R2 that a probe may lose on the way."""
    probes: dict[str, ProbeLoss] = field(default_factory=dict)
    """Probes that were measured against labels, by their digest."""

    def apply(self, vectors: Floats) -> Floats:
        """Vectors (rows, dim of target) that stand in for those of the older model."""
        bridged: Floats = np.asarray(vectors, np.float64) @ self.weights + self.intercept
        return bridged

    def loss_of(self, probe: Probe) -> tuple[float, str]:
        """R2 that a probe loses, and how that was measured.

        Against labels where the bridge was fitted with this probe; else against the probe's own
        predictions from the real vectors, which needs no labels and holds for every linear probe:
        the share of their variance that bridged vectors miss.
        """
        if measured := self.probes.get(digest_of_probe(probe)):
            return measured.loss, f"against the labels of {measured.rows:,} held-out objects"
        variance = float(probe.weights @ self.spread @ probe.weights)
        missed = float(probe.weights @ self.residual @ probe.weights)
        loss = missed / variance if variance > 0 else float(missed > 0)
        return loss, f"against its own predictions for {self.quality.rows:,} held-out objects"

    def admit(self, probe: Probe, *, fingerprint: str, model: str) -> None:
        """Refuse a probe or vectors that the bridge does not connect well enough.

        Parameters
        ----------
        fingerprint, model
            Of the vectors that the probe is asked to run on.

        Raises
        ------
        ConfigurationError
            Other vectors than the bridge begins or ends at, or too great a loss.
        """
        where = f"bridge {self.source.model} to {self.target.model}"
        if (fingerprint, probe.fingerprint) == (self.target.fingerprint, self.source.fingerprint):
            raise ConfigurationError(
                "it leads the other way",
                where=where,
                remedy="Fit one with --from and --to exchanged; its inverse is another map",
            )
        if fingerprint != self.source.fingerprint:
            raise ConfigurationError(
                f"begins at vectors {self.source.fingerprint[:8]}, these are {fingerprint[:8]} by "
                f"{model}",
                where=where,
                remedy="Fit a bridge from these vectors",
            )
        if probe.fingerprint != self.target.fingerprint:
            raise ConfigurationError(
                f"ends at vectors {self.target.fingerprint[:8]}, the probe for {probe.target} "
                f"learnt on {probe.fingerprint[:8]}",
                where=where,
                remedy="Fit a bridge to the vectors that the probe learnt on",
            )
        loss, measured = self.loss_of(probe)
        if not loss <= self.max_loss:
            raise ConfigurationError(
                f"the probe for {probe.target} loses {loss:.4f} of R2 on it ({measured}); at most "
                f"{self.max_loss:g} is allowed",
                where=where,
                remedy="Fit the probe again on the new vectors, or the bridge with another "
                "--max-loss",
            )

    def save(self, folder: str | Path) -> Path:
        """Write ``bridge.json`` and ``bridge.safetensors`` (never pickle)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: np.ascontiguousarray(getattr(self, name), np.float64) for name in _TENSORS}
        save_file(tensors, folder / TENSORS_FILE)
        (folder / TENSORS_FILE).chmod(0o644)  # safetensors writes 0600
        facts = {
            "source": asdict(self.source), "target": asdict(self.target),
            "quality": asdict(self.quality), "max_loss": self.max_loss,
            "probes": {digest: asdict(loss) for digest, loss in sorted(self.probes.items())},
            "tensors": _sha256((folder / TENSORS_FILE).read_bytes()),
        }  # fmt: skip
        facts["digest"] = _digest_of_facts(facts)
        (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Bridge:
        """Read `save`.

        Raises
        ------
        WeightsError
            If it is no bridge, or one of its files was changed.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / FACTS_FILE).read_text())
            digest, written = facts.pop("digest"), _sha256((folder / TENSORS_FILE).read_bytes())
            changed = [
                name for name, same in (
                    (FACTS_FILE, digest == _digest_of_facts(facts)),
                    (TENSORS_FILE, facts["tensors"] == written),
                ) if not same
            ]  # fmt: skip
            tensors = load_file(folder / TENSORS_FILE) if not changed else {}
            if not changed:
                return cls(
                    source=End(**facts["source"]), target=End(**facts["target"]),
                    quality=Quality(**facts["quality"]), max_loss=float(facts["max_loss"]),
                    probes={d: ProbeLoss(**loss) for d, loss in facts["probes"].items()},
                    **{name: tensors[name] for name in _TENSORS},
                )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise WeightsError(
                f"not a bridge ({type(problem).__name__})",
                where=str(folder),
                remedy="Give the folder that `skyvec bridge --out` wrote",
            ) from problem
        raise WeightsError(
            f"{' and '.join(changed)} changed after it was written",
            where=str(folder),
            remedy="Get the folder again, or fit the bridge again",
        )


_TENSORS = ("weights", "intercept", "residual", "spread")


def digest_of_probe(probe: Probe) -> str:
    """Identity of a fitted probe."""
    return _sha256(
        f"{probe.target}|{probe.fingerprint}|{probe.intercept!r}|".encode()
        + np.ascontiguousarray(probe.weights, np.float64).tobytes()
    )


def _digest_of_facts(facts: Mapping[str, object]) -> str:
    return _sha256(json.dumps(facts, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""What a kind of probe reads of each row of an extension: its vector, or contexts of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.bridge import Bridge
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.fitted import Fitted, Settings
from skyvec.probes.fitting import fit_rows
from skyvec.probes.labels import Labels
from skyvec.probes.rows import CatalogRows, wanted_vectors
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.vectors import tensor_values

if TYPE_CHECKING:
    from distributed import Client
    from nested_pandas import NestedFrame

    from skyvec.probes.probe import Probe

Floats = NDArray[np.floating]


class Inputs(Protocol):
    """Rows of an extension, as a probe learns from them and predicts for them."""

    @property
    def catalog(self) -> VectorCatalog:
        """The extension."""

    @property
    def model(self) -> dict[str, str]:
        """For the record: ``model``, its ``model_digest``, and how to find it again."""

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal where the same rows hold the same."""

    def admit(self, probe: Probe) -> None:
        """Refuse a probe that learnt on something else.

        Raises
        ------
        ConfigurationError
            If it did, and no bridge leads there, or that loses too much.
        """

    def fit(
        self, labels: Labels, settings: Settings, *, workers: int, client: Client | None
    ) -> Fitted:
        """Learn from the rows with labels."""

    def none(self) -> Any:  # noqa: ANN401
        """What `read` gives, of no rows."""

    def read(
        self, pixel: HealpixPixel, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], Any]]:
        """Wanted rows of one partition that can be predicted for, some at a time."""

    def of_frame(self, frame: NestedFrame) -> tuple[NDArray[np.bool_], Any] | None:
        """Which rows of a frame hold what is needed, and that; None if they have to be read."""


@dataclass(frozen=True, kw_only=True)
class VectorInputs:
    """Vectors of an embedding extension.

    Raises
    ------
    ConfigurationError
        If the extension holds tokens.
    """

    catalog: VectorCatalog
    bridge: Bridge | None = None
    """Leads from these vectors to those that a probe learnt on."""

    def __post_init__(self) -> None:
        if self.catalog.provenance.product == "tokens":
            raise ConfigurationError(
                "holds tokens, this kind of probe learns from vectors",
                where=str(self.catalog.release.root),
                remedy="Use kind='attentive' (--kind attentive), or name an embedding extension; "
                "`skyvec embed --tokens` makes one of tokens",
            )

    @property
    def model(self) -> dict[str, str]:
        """See `Inputs.model`."""
        made = self.catalog.provenance
        return {"model": made.model, "model_digest": made.model_digest}

    @property
    def identity(self) -> tuple[str, ...]:
        """See `Inputs.identity`."""
        return str(self.catalog.release.root), str(self.bridge and self.bridge.source)

    def admit(self, probe: Probe) -> None:
        """See `Inputs.admit`."""
        made = self.catalog.provenance
        found = made.fingerprint()
        if self.bridge:
            for one in probe.singles():
                self.bridge.admit(one, fingerprint=found, model=made.model)
        elif found != probe.fingerprint:
            raise ConfigurationError(
                f"learnt on vectors {probe.fingerprint[:8]}, these are {found[:8]} by {made.model}",
                where=f"probe for {', '.join(probe.targets)}",
                remedy="Fit it again on this extension, or give a bridge to the old vectors; "
                "numbers from other vectors mean nothing",
            )

    def fit(
        self, labels: Labels, settings: Settings, *, workers: int, client: Client | None
    ) -> Fitted:
        """See `Inputs.fit`."""
        rows = CatalogRows(catalog=self.catalog, source=labels, block_order=settings.block_order)
        return fit_rows(rows, settings, workers=workers, client=client)

    def none(self) -> Floats:
        """See `Inputs.none`."""
        return self._led(np.zeros((0, self.catalog.dim), np.float32))

    def read(
        self, pixel: HealpixPixel, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """See `Inputs.read`."""
        leaf = self.catalog.release.leaf(pixel)
        for rows, vectors in wanted_vectors(leaf, self.catalog.name, wanted):
            good = np.isfinite(vectors).all(1)
            yield rows[good], self._led(vectors[good])

    def of_frame(self, frame: NestedFrame) -> tuple[NDArray[np.bool_], Floats] | None:
        """See `Inputs.of_frame`; null vectors are left out."""
        if self.catalog.name not in frame.columns:
            return None
        array = frame[self.catalog.name].array.__arrow_array__()
        vectors = tensor_values(array, missing=np.nan)
        good = np.isfinite(vectors).all(1)
        return good, self._led(vectors[good])

    def _led(self, vectors: Floats) -> Floats:
        return self.bridge.apply(vectors) if self.bridge else vectors


def product_read(kind: str) -> str:
    """What a kind of probe reads, an ``embedding`` extension or ``tokens``."""
    return "tokens" if kind == "attentive" else "embedding"


def inputs_of(
    kind: str, catalog: VectorCatalog, *, model: str | Path | None, bridge: Bridge | None = None
) -> Inputs:
    """What a kind of probe reads of an extension.

    Parameters
    ----------
    model
        Whose encoder reads tokens; of vectors it is known.

    Raises
    ------
    ConfigurationError
        If the extension is not what this kind reads, or takes no such option.
    WeightsError
        If there is no such model.
    """
    if product_read(kind) == "tokens":
        from skyvec.probes.token_inputs import TokenInputs

        if bridge:
            raise ConfigurationError(
                "leads from vectors to vectors, an attentive probe reads tokens",
                where=f"bridge from {bridge.source.extension} to {bridge.target.extension}",
                remedy="Leave it out; for another model fit the probe again",
            )
        return TokenInputs.open(catalog, model)
    if model is not None:
        raise ConfigurationError(
            f"is not asked for: a {kind} probe learns from vectors, which are made already",
            where=f"model {model}",
            remedy="Leave it out, or use kind='attentive' on a token extension",
        )
    return VectorInputs(catalog=catalog, bridge=bridge)

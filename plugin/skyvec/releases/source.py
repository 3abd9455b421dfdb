"""What the stage asks of a place where pixels, spectra or measurements lie, whatever its format.

A source is asked twice for each HATS pixel: first who is there (`Source.objects`, cheap: ids and
positions only), then, once the join has chosen, for the observations of the chosen ones
(`Source.read`), in whatever order its files are read fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec_core.observations import Observed
from skyvec_schemas.survey_columns import Survey


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """An object of a source that cannot be used, and why."""

    file: str
    row: int
    object_id: str
    reason: str
    """One clause, for people: ``dec is 123.4``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceObjects:
    """Who a source has in and around a pixel; n entries each, in file order."""

    ids: NDArray[np.str_]
    """Ids as text, cleaned by `skyvec.releases.ids.canonical_ids`."""
    ra: NDArray[np.float64]
    """Degrees, 0 <= ra < 360."""
    dec: NDArray[np.float64]
    """Degrees."""
    file: NDArray[np.int32]
    """Which file of the source, an index into its own list."""
    row: NDArray[np.int64]
    """Row within that file."""
    pm_ra: NDArray[np.float64] | None = None
    """Proper motion times cos(dec), mas/yr; NaN where unknown."""
    pm_dec: NDArray[np.float64] | None = None
    """Proper motion, mas/yr; NaN where unknown."""
    quarantined: tuple[Quarantined, ...] = ()
    """Objects left out of the arrays above, each with its reason."""

    def __len__(self) -> int:
        """Count the usable objects."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Observations of k of the wanted objects."""

    index: NDArray[np.int64]
    """Which of the wanted objects, as places in ``wanted``; each place comes exactly once."""
    observations: Mapping[str, Observed]
    """Token key -> observations of these k objects."""
    flags: NDArray[np.int32]
    """Bits of `skyvec_schemas.quality_flags.Flag`, one word for each of the k."""
    labels: Mapping[str, Observed] = field(default_factory=dict)
    """Token key -> values that training may predict; never a model input."""


class Source(Protocol):
    """Observations of one survey."""

    @property
    def survey(self) -> Survey:
        """What the columns are called and mean."""

    def objects(self, pixel: HealpixPixel, *, margin_arcsec: float) -> SourceObjects:
        """Ids and positions in a pixel and at least this far around it; more does no harm."""

    def read(
        self, objects: SourceObjects, wanted: NDArray[np.int64], *, rows: int
    ) -> Iterator[Reading]:
        """Observations of ``wanted`` (places in ``objects``), at most ``rows`` in memory at a time.

        Raises
        ------
        ContractError
            If a file cannot be read or changed since `objects`; it names the file and the remedy.
        """

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """What the objects of this pixel come from, cheaply: names, sizes, digests of footers."""


@runtime_checkable
class PositionSource(Protocol):
    """Images of the sky, without objects of their own: asked by position."""

    @property
    def survey(self) -> Survey:
        """What the columns are called and mean."""

    def read_at(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64], *, rows: int
    ) -> Iterator[Reading]:
        """Observations at valid positions (degrees); ``index`` says which, each exactly once."""

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """What is read for positions in this pixel, cheaply: names, sizes, digests."""


AnySource = Source | PositionSource

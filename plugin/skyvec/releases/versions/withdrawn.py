"""A release's files, less the objects that the release has withdrawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from hats.pixel_math.healpix_pixel import HealpixPixel
from numpy.typing import NDArray

from skyvec.releases.source import Quarantined, Reading, Source, SourceObjects
from skyvec_schemas.survey_columns import Survey


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutWithdrawn:
    """A `Source` that does not show some ids; they are listed as quarantined."""

    source: Source
    withdrawn: frozenset[str]

    @property
    def survey(self) -> Survey:
        """What the columns are called and mean."""
        return self.source.survey

    def objects(self, pixel: HealpixPixel, *, margin_arcsec: float) -> SourceObjects:
        """Ids and positions in and around a pixel, without the withdrawn ones."""
        found = self.source.objects(pixel, margin_arcsec=margin_arcsec)
        gone = np.isin(found.ids, list(self.withdrawn)) if self.withdrawn else np.zeros(0, np.bool_)
        if not gone.any():
            return found
        withdrawn = tuple(
            Quarantined(
                file=str(found.file[place]),
                row=int(found.row[place]),
                object_id=str(found.ids[place]),
                reason="withdrawn from the release",
            )
            for place in np.flatnonzero(gone)
        )
        return replace(
            found,
            ids=found.ids[~gone],
            ra=found.ra[~gone],
            dec=found.dec[~gone],
            file=found.file[~gone],
            row=found.row[~gone],
            pm_ra=None if found.pm_ra is None else found.pm_ra[~gone],
            pm_dec=None if found.pm_dec is None else found.pm_dec[~gone],
            quarantined=(*found.quarantined, *withdrawn),
        )

    def read(
        self, objects: SourceObjects, wanted: NDArray[np.int64], *, rows: int
    ) -> Iterator[Reading]:
        """Observations of the wanted ones."""
        return self.source.read(objects, wanted, rows=rows)

    def identity(self, pixel: HealpixPixel, *, margin_arcsec: float) -> Mapping[str, object]:
        """That of the files, and which of their objects are withdrawn."""
        files = dict(self.source.identity(pixel, margin_arcsec=margin_arcsec))
        found = self.source.objects(pixel, margin_arcsec=margin_arcsec)
        gone = sorted(self.withdrawn.intersection(found.ids.tolist()))
        if gone:
            files["withdrawn"] = hashlib.sha256("\n".join(gone).encode()).hexdigest()
        return files

"""What an object looks like: its cutout or its spectrum, read for a few objects by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skyvec.answers.rows import Found, find_rows, unique_objects
from skyvec.answers.vectors import opened_extension
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.columns import observe_rows
from skyvec.releases.hats.leaf import Leaf
from skyvec_core.observations import Images, Spectra
from skyvec_schemas.errors import ContractError, MissingColumnError, SkyvecError
from skyvec_schemas.provenance import Provenance
from skyvec_schemas.survey_columns import SURVEYS, Survey

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer

LARGEST = 160
"""Pixels along a side of a cutout that are shown."""
_BYTES = 1 << 25
"""Decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A cutout, a spectrum, or why there is neither."""

    flux: NDArray[np.float32] | None = None
    """(band, height, width), blue to red, NaN where bad."""
    wide: float = 0.0
    """Arcseconds along the width of the cutout."""
    wavelength: NDArray[np.float32] | None = None
    """Angstrom, of good samples."""
    density: NDArray[np.float32] | None = None
    """Flux density at these."""
    unit: str = ""
    """Of the flux density."""
    why: str = ""
    """What there is instead of pixels, for people."""


def looks_of(answer: Answer, *, shown: int) -> list[Look]:
    """Looks of the first rows of an answer; see `looks_at`."""
    return looks_at(answer, answer.table.slice(0, shown))


def looks_at(answer: Answer, table: pa.Table) -> list[Look]:
    """Looks of objects by id, ``ra`` and ``dec``; no other object's pixels are decoded for long.

    What cannot be read is said in the looks, since a table without pictures is still an answer.

    Parameters
    ----------
    answer
        Whose catalog and extension they belong to.
    """
    try:
        extension = opened_extension(answer)
        release = HatsRelease.open(answer.catalog)
        survey = pictured(extension.provenance, release.schema)
        if survey is None:
            return [Look(why="the catalog holds no pixels of its own")] * len(table)
        objects, which = unique_objects(table, answer.id_column)
        seen: dict[int, Look] = {}
        for found in find_rows(release, objects, answer.id_column):
            seen |= _read(release, survey, found)
    except SkyvecError as problem:
        return [Look(why=f"not readable: {problem.what}")] * len(table)
    lost = Look(why="not found in the catalog at this position")
    return [seen.get(int(place), lost) for place in which]


def pictured(made: Provenance, schema: pa.Schema) -> Survey | None:
    """The pixels and spectra of a survey that a catalog has, under the names it was embedded by."""
    survey = SURVEYS.get(made.survey)
    if survey is None:
        return None
    names = {key: column for column, _, key in (line.partition("=") for line in made.inputs)}
    image = survey.image and replace(
        survey.image, name=names.get(survey.image.token_key, survey.image.name)
    )
    spectrum = survey.spectrum and replace(
        survey.spectrum, name=names.get(survey.spectrum.token_key, survey.spectrum.name)
    )
    image = image if image and image.name in schema.names else None
    spectrum = spectrum if spectrum and spectrum.name in schema.names else None
    if image is None and spectrum is None:
        return None
    return replace(survey, image=image, spectrum=spectrum, coefficients=None, scalars=())


def _read(release: HatsRelease, survey: Survey, found: Found) -> dict[int, Look]:
    """Looks of the objects of one pixel, by their places."""
    columns = release.columns(survey)
    place_of = dict(zip(found.rows.tolist(), found.places.tolist(), strict=True))
    looks: dict[int, Look] = {}
    with Leaf.open(release.files(found.pixel)) as leaf:
        paths = columns.paths(columns.inputs)
        rows = leaf.rows_of(paths, _BYTES)
        for first, batch in leaf.batches(paths, rows=rows, wanted=found.rows):
            own = found.rows[(found.rows >= first) & (found.rows < first + len(batch))]
            if not len(own):
                continue
            chosen = batch.take(pa.array(own - first))
            try:
                observed, _ = observe_rows(chosen, columns, size=LARGEST)
            except (ContractError, MissingColumnError) as problem:
                looks |= {place_of[row]: Look(why=problem.what) for row in own.tolist()}
                continue
            for place, row in enumerate(own.tolist()):
                looks[place_of[row]] = _look(survey, observed, place)
    return looks


def _look(survey: Survey, observed: Mapping[str, object], row: int) -> Look:
    image = observed.get(survey.image.token_key) if survey.image else None
    if survey.image and isinstance(image, Images):
        good = image.good_BCHW[row].numpy()
        flux = np.where(good, image.flux_BCHW[row].numpy(), np.nan)
        if good.any():
            flux = _trimmed(flux)
            return Look(flux=flux, wide=flux.shape[-1] * survey.image.pixel_scale)
    spectrum = observed.get(survey.spectrum.token_key) if survey.spectrum else None
    if survey.spectrum and isinstance(spectrum, Spectra):
        good = spectrum.good_BL[row].numpy()
        if good.any():
            return Look(
                wavelength=spectrum.wavelength_BL[row].numpy()[good],
                density=spectrum.flux_BL[row].numpy()[good],
                unit=survey.spectrum.unit,
            )
    missing = [part.name for part in (survey.image, survey.spectrum) if part]
    return Look(why=f"no usable {' or '.join(missing)}")


def _trimmed(flux: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the empty frame that makes a small cutout as large as the window."""
    seen = np.asarray(np.any(np.isfinite(flux), axis=0))
    height, width = seen.shape
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    top = min(rows[0], height - 1 - rows[-1])
    left = min(columns[0], width - 1 - columns[-1])
    return flux[:, top : height - top, left : width - left]

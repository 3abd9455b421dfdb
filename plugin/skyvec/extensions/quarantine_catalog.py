"""The lists of all pixels -> ``<name>_quarantine``, a HATS catalog beside the extension."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import TableProperties
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_ORDER, spatial_index_to_healpix

from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.leaf import leaf_path
from skyvec.stage.output import HOME, STAGING, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.quarantine import lists_anything, quarantine_path, read_quarantine
from skyvec_schemas.errors import OutputExistsError, RowTruthError
from skyvec_schemas.provenance import Provenance
from skyvec_schemas.survey_columns import Survey

_WHOSE = "skyvec_quarantine_of"
"""Property that says which extension a quarantine catalog belongs to."""
_PROPERTIES = {"hats.properties", "properties"}
_HALF_DONE = HOME / "quarantine.half-done"
"""Mark on an object store, which renames nothing, while a quarantine catalog comes or goes."""


def publish_quarantine(
    output: Output,
    records: Sequence[QuantumRecord],
    *,
    release: HatsRelease,
    survey: Survey,
    provenance: Provenance,
    retry: str,
) -> Path | None:
    """Write the quarantine catalog of a complete product; returns its folder.

    Where nothing was left out and nothing looks wrong there is no folder, and an older one is
    removed. An object that several pixels met is listed once, by the first of them.

    Parameters
    ----------
    output
        Where the extension lies.
    records
        Of every pixel.
    release, survey
        What was embedded, and what its key columns are called.
    retry
        What to do after mending, with the command; one line.

    Raises
    ------
    RowTruthError
        If a list does not hold what the record of its pixel counts.
    OutputExistsError
        If something that skyvec did not make is in the way.
    """
    place, name = quarantine_folder(output), output.root.name
    order = release.catalog.catalog_info.healpix_order
    order = SPATIAL_INDEX_ORDER if order is None else order
    with _workshop(output) as made:
        rows: dict[HealpixPixel, int] = {}
        skymap: Counter[int] = Counter()
        for pixel, table in _once_each(output, records):
            leaf = leaf_path(made, pixel)
            leaf.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, leaf, compression="zstd")
            rows[pixel] = len(table)
            skymap.update(_cells(table.column(release.healpix_column), order))
        if not rows:
            remove_quarantine(output)
            return None
        finish_catalog(
            made,
            name=place.name,
            rows=rows,
            skymap=skymap,
            ra_column=survey.ra_column,
            dec_column=survey.dec_column,
            healpix_column=release.healpix_column,
            healpix_order=order,
            builder=f"skyvec v{provenance.skyvec_version}",
            properties={
                "prov_progenitor": release.catalog.catalog_info.catalog_name,
                "addendum_description": f"rows of {release.name} with bad data, and objects of "
                f"sources that cannot be used, as {name} found them",
                _WHOSE: name,
                "skyvec_retry": retry,
                **provenance.properties(),
            },
        )
        _exchange(output, made, place)
    return place


def quarantine_folder(output: Output) -> Path:
    """Where the quarantine catalog of an extension lies, or would.

    Raises
    ------
    OutputExistsError
        If something that skyvec did not make is there.
    """
    name = output.root.name
    place = output.root.parent / f"{name}_quarantine"
    if place.exists() and not (_is_ours(place, name) or (output.root / _HALF_DONE).exists()):
        raise OutputExistsError(
            "exists and is not the quarantine catalog of this extension",
            where=str(place),
            remedy="Choose another --name or --out, or move this folder away",
        )
    return place


def quarantine_is_published(output: Output, records: Iterable[QuantumRecord]) -> bool:
    """Whether there is a quarantine catalog where there should be one, and none where not."""
    return quarantine_folder(output).exists() == any(map(lists_anything, records))


def remove_quarantine(output: Output) -> None:
    """Remove the quarantine catalog of an extension, if it has one; see `quarantine_folder`."""
    place = quarantine_folder(output)
    if not place.exists():
        return
    if output.remote:
        output.put_text("", output.root / _HALF_DONE)
        place.fs.rm(place.path, recursive=True)  # type: ignore[attr-defined]
        (output.root / _HALF_DONE).unlink()
        return
    with _workshop(output) as made:
        place.rename(made)


def _is_ours(place: Path, name: str) -> bool:
    try:
        found = TableProperties.read_from_dir(place).extra_dict()
    except (OSError, ValueError):
        return False
    return bool(found.get(_WHOSE) == name)


@contextmanager
def _workshop(output: Output) -> Iterator[Path]:
    """A name for a folder to be made, on the output's own disk if it has one; gone afterwards."""
    staging = None if output.remote else output.root / STAGING
    if staging:
        staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging, prefix="quarantine-") as folder:
        yield Path(folder) / "made"


def _exchange(output: Output, made: Path, place: Path) -> None:
    """Put a finished catalog in the place of an older one."""
    if not output.remote:
        if place.exists():
            place.rename(made.with_name("older"))
        made.rename(place)
        return
    remove_quarantine(output)
    output.put_text("", output.root / _HALF_DONE)
    files = [file for file in made.rglob("*") if file.is_file()]
    # What a reader opens first comes last.
    for file in sorted(files, key=lambda file: file.name in _PROPERTIES):
        output.put(file, place.joinpath(*file.relative_to(made).parts))
    (output.root / _HALF_DONE).unlink()


def _once_each(
    output: Output, records: Iterable[QuantumRecord]
) -> Iterator[tuple[HealpixPixel, pa.Table]]:
    """Lines of each pixel that has any, without objects that an earlier one listed."""
    seen: set[tuple[str, str, int]] = set()
    for record in sorted(records, key=lambda record: record.key):
        if not lists_anything(record):
            continue
        pixel, table = HealpixPixel(*record.key), read_quarantine(output, record)
        if table is None:
            raise RowTruthError(
                f"does not hold the {record.quarantined} quarantined rows and objects of its pixel",
                where=str(quarantine_path(output, pixel)),
                remedy="Run the same command again, which does this pixel anew",
            )
        names = (table.column(n).to_pylist() for n in ("source", "source_file", "source_row"))
        keep = np.ones(len(table), np.bool_)
        for line, found in enumerate(zip(*names, strict=True)):
            if found[0] is not None:
                keep[line] = found not in seen
                seen.add(found)
        if keep.any():
            yield pixel, table.filter(pa.array(keep))


def _cells(index: pa.ChunkedArray, order: int) -> dict[int, int]:
    """Rows by HEALPix pixel of the sky map's order."""
    cells = spatial_index_to_healpix(index.to_numpy(), SKYMAP_ORDER, order)
    found, counts = np.unique(cells, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))

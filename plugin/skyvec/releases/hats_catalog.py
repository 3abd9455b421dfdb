"""A HATS catalog as input of the stage: pixels, columns, contract, row batches in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import hats
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import Catalog, CatalogCollection
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel

from skyvec_schemas.errors import BandError, ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import ImageColumn, Survey

IMAGE_FIELDS = ("band", "flux", "mask")
"""Fields of an image struct that an embedding reads; ivar and psf stay on disk."""


@dataclass(frozen=True)
class HatsRelease:
    """A catalog, with the collection that it belongs to if it has one."""

    path: Path
    """As given by the user."""
    catalog: Catalog
    collection: CatalogCollection | None

    @classmethod
    def open(cls, path: str | Path) -> HatsRelease:
        """Open a collection or a catalog; anything else is one clear error."""
        path = Path(path)
        remedy = "Give the folder of a HATS collection or catalog (it holds *.properties files)"
        if not path.exists():
            raise ConfigurationError("there is no such folder", where=str(path), remedy=remedy)
        try:
            opened = hats.read_hats(path)
        except (FileNotFoundError, ValueError, TypeError) as problem:
            raise ConfigurationError(
                f"not a HATS catalog ({_first_line(problem)})", where=str(path), remedy=remedy
            ) from problem
        if isinstance(opened, CatalogCollection):
            return cls(path=path, catalog=opened.main_catalog, collection=opened)
        if not isinstance(opened, Catalog):
            raise ConfigurationError(
                f"a {type(opened).__name__}, not an object catalog", where=str(path), remedy=remedy
            )
        return cls(path=path, catalog=opened, collection=None)

    @property
    def name(self) -> str:
        """Name of the main catalog."""
        return str(self.catalog.catalog_info.catalog_name)

    @property
    def root(self) -> Path:
        """Folder of the main catalog."""
        return Path(str(self.catalog.catalog_path))

    @cached_property
    def pixels(self) -> list[HealpixPixel]:
        """HEALPix pixels, in the catalog's order."""
        return list(self.catalog.get_healpix_pixels())

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the catalog."""
        return self.catalog.schema

    @property
    def healpix_column(self) -> str:
        """Spatial index of each row."""
        return str(self.catalog.catalog_info.healpix_column or "_healpix_29")

    def leaf(self, pixel: HealpixPixel) -> Path:
        """Parquet file of one pixel."""
        suffix = self.catalog.catalog_info.npix_suffix or ".parquet"
        return Path(str(paths.pixel_catalog_file(self.root, pixel, npix_suffix=suffix)))

    def check(self, survey: Survey) -> None:
        """Compare the catalog with what the survey declares; every difference in one error.

        Raises
        ------
        MissingColumnError
            Names each absent column, its nearest neighbour, and the option that leaves it out.
        BandError
            If the first cutouts do not carry the survey's bands.
        """
        found = set(self.schema.names)
        absent = [column for column in survey.columns if column not in found]
        if absent:
            raise MissingColumnError(
                "no column " + ", ".join(_with_neighbour(c, sorted(found)) for c in absent),
                where=str(self.path),
                remedy=_column_remedy(absent, survey),
            )
        if survey.image:
            self._check_image(survey.image)

    def _check_image(self, image: ImageColumn) -> None:
        kind = self.schema.field(image.name).type
        fields = [f.name for f in kind.fields] if pa.types.is_struct(kind) else []
        lacking = [name for name in ("band", "flux") if name not in fields]
        if lacking:
            raise ContractError(
                f"column {image.name!r} is {str(kind)[:60]}, not struct<band, flux, mask, ...>",
                where=str(self.path),
                remedy="Import the cutouts in the Multimodal Universe layout (docs/formats.md)",
            )
        for bands in self._first_bands(image):
            if band_order(bands, image) is None:
                raise BandError(
                    f"cutouts have bands {', '.join(map(str, bands))} where the survey has "
                    f"{', '.join(image.bands)}",
                    where=f"{self.path}, column {image.name!r}",
                    remedy="Rename the bands on import, or choose the right --survey",
                )
            return

    def _first_bands(self, image: ImageColumn) -> Iterator[list[str]]:
        """Bands of the first cutout that has any; one wrong object later is not the catalog's."""
        for pixel in self.pixels:
            with pq.ParquetFile(self.leaf(pixel)) as leaf:
                for batch in leaf.iter_batches(64, columns=[f"{image.name}.band"]):
                    bands = batch.column(0)
                    yield from (row["band"] for row in bands.to_pylist() if row and row["band"])

    def batches(
        self, pixel: HealpixPixel, survey: Survey, *, rows: int, with_labels: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Row batches of one pixel with the columns of the survey and the spatial index."""
        labels = tuple(survey.labels) if with_labels else ()
        columns = [*self._leaf_columns(survey), *labels]
        try:
            with pq.ParquetFile(self.leaf(pixel)) as leaf:
                yield from leaf.iter_batches(rows, columns=columns)
        except pa.ArrowInvalid as problem:
            raise ContractError(
                f"cannot be decoded ({_first_line(problem)})",
                where=str(self.leaf(pixel)),
                remedy="Import or copy this pixel again",
            ) from problem

    def _leaf_columns(self, survey: Survey) -> list[str]:
        columns = [self.healpix_column, *survey.columns]
        if survey.image:
            columns.remove(survey.image.name)
            fields = {f.name for f in self.schema.field(survey.image.name).type.fields}
            columns += [f"{survey.image.name}.{f}" for f in IMAGE_FIELDS if f in fields]
        return columns

    def identity(self, pixel: HealpixPixel) -> Mapping[str, object]:
        """Size, row count and footer digest of one leaf: what it holds, without reading it all."""
        path = self.leaf(pixel)
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 8))
            tail = file.read(8)
            length = int.from_bytes(tail[:4], "little")
            if tail[4:] != b"PAR1" or length + 8 > size:
                raise ContractError(
                    "not a complete Parquet file",
                    where=str(path),
                    remedy="Import or copy this pixel again",
                )
            file.seek(size - 8 - length)
            footer = file.read(length)
        with pq.ParquetFile(path) as leaf:
            rows = leaf.metadata.num_rows
        return {"bytes": size, "rows": rows, "footer": hashlib.sha256(footer).hexdigest()}


def band_order(found: list[str], image: ImageColumn) -> list[int] | None:
    """For each band of the survey its place in ``found``; None where the sets differ.

    Both spellings count, the file's (``des-g``) and the codec's (``DES-G``).
    """
    places = {str(name).lower(): place for place, name in enumerate(found)}
    wanted = [ours.lower() if ours.lower() in places else codec.lower()
              for ours, codec in image.bands.items()]  # fmt: skip
    if len(found) != len(wanted) or any(name not in places for name in wanted):
        return None
    return [places[name] for name in wanted]


def _with_neighbour(column: str, known: list[str]) -> str:
    near = get_close_matches(column, known, n=1)
    return f"{column!r} (nearest: {near[0]!r})" if near else f"{column!r}"


def _column_remedy(absent: list[str], survey: Survey) -> str:
    remedies = []
    if survey.id_column in absent:
        remedies.append("name the id with --id-column")
    if survey.image and survey.image.name in absent:
        remedies.append("name the cutouts with --image-column")
    scalars = [scalar.name for scalar in survey.scalars if scalar.name in absent]
    if scalars:
        remedies.append(f"embed without them by --without {','.join(scalars)}")
    text = ", or ".join(remedies) or "add the columns on import"
    return text[0].upper() + text[1:]


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__

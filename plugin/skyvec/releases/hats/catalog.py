"""A HATS catalog as input of the stage: pixels, columns, contract, row batches in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import hats
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import Catalog, CatalogCollection
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from upath import UPath

from skyvec.releases.hats.arrow_types import array_at
from skyvec.releases.hats.column_map import ColumnMap, Target, band_order
from skyvec.releases.hats.leaf import Leaf, footer, leaf_path
from skyvec.releases.hats.remote import (
    first_line,
    is_remote,
    is_there,
    located,
    open_parquet,
    patiently,
)
from skyvec_schemas.errors import BandError, ConfigurationError, ContractError
from skyvec_schemas.survey_columns import Survey

__all__ = ("HatsRelease", "band_order")

ROW_BYTES = 1 << 23
"""Decoded at a time on the way to a single row."""
_REMEDY = "Give the folder of a HATS collection or catalog (it holds *.properties files)"
_PROPERTIES = ("hats.properties", "collection.properties", "properties")


@dataclass(frozen=True)
class HatsRelease:
    """A catalog, with the collection that it belongs to if it has one."""

    path: Path
    """As given by the user; a UPath where that is remote."""
    catalog: Catalog
    collection: CatalogCollection | None

    @classmethod
    def open(cls, path: str | Path | UPath) -> HatsRelease:
        """Open a collection or a catalog by folder or URI; anything else is one clear error.

        Raises
        ------
        ConfigurationError
            If there is none, or it may not be read.
        InfrastructureError
            If a remote place does not answer.
        """
        path = located(path)
        opened = _read_remote(path) if is_remote(path) else _read_local(path)
        collection = opened if isinstance(opened, CatalogCollection) else None
        catalog = collection.main_catalog if collection else opened
        if not isinstance(catalog, Catalog):
            raise ConfigurationError(
                f"a {type(opened).__name__}, not an object catalog", where=str(path), remedy=_REMEDY
            )
        if catalog.schema is None:
            raise ConfigurationError(
                "has neither _common_metadata nor _metadata",
                where=str(path),
                remedy="Write them with hats.io.write_parquet_metadata",
            )
        return cls(path=path, catalog=catalog, collection=collection)

    @property
    def name(self) -> str:
        """Name of the main catalog."""
        return str(self.catalog.catalog_info.catalog_name)

    @cached_property
    def root(self) -> Path:
        """Folder of the main catalog; a UPath where that is remote."""
        return located(self.catalog.catalog_path)

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
        """Parquet file of one pixel, or the folder of its files where the catalog has such."""
        return leaf_path(self.root, pixel, self.catalog.catalog_info.npix_suffix or ".parquet")

    def files(self, pixel: HealpixPixel) -> tuple[Path, ...]:
        """Every Parquet file of one pixel, in the order in which their rows count."""
        if self.catalog.catalog_info.npix_suffix != "/":
            return (self.leaf(pixel),)
        return tuple(sorted(self.leaf(pixel).glob("*.parquet"), key=str))

    def open_leaf(self, pixel: HealpixPixel) -> pq.ParquetFile:
        """The Parquet file of one pixel, local or remote."""
        return open_parquet(self.leaf(pixel))

    def columns(self, survey: Survey, overrides: Mapping[str, str] | None = None) -> ColumnMap:
        """Where this catalog holds what a survey declares; see `ColumnMap.of`."""
        info = self.catalog.catalog_info
        return ColumnMap.of(
            survey,
            self.schema,
            overrides,
            where=str(self.path),
            position=(str(info.ra_column), str(info.dec_column)),
        )

    def check(self, survey: Survey) -> None:
        """Compare the catalog with what the survey declares; every difference in one error.

        Raises
        ------
        MissingColumnError
            Names each absent column, its nearest neighbour, and the option that leaves it out.
        ContractError
            If a column is of a type that cannot hold what it should.
        BandError
            If the first cutouts do not carry the survey's bands.
        """
        self.check_bands(self._own_columns(survey))

    def check_bands(self, columns: ColumnMap) -> None:
        """Compare the bands of the first cutouts that have any with the survey's.

        Raises
        ------
        BandError
            If they differ.
        """
        image = columns.survey.image
        target = columns.targets.get(f"{image.name}.band") if image else None
        if image is None or target is None:
            return
        for bands in [target.constant] if target.constant else self._first_bands(target):
            if band_order(bands, image) is None:
                raise BandError(
                    f"cutouts have bands {', '.join(map(str, bands))} where the survey has "
                    f"{', '.join(image.bands)}",
                    where=f"{self.path}, column {target.text or image.name!r}",
                    remedy="Rename the bands on import, or choose the right --survey",
                )
            return

    def _first_bands(self, target: Target) -> Iterator[list[str]]:
        """Bands of the first cutout that has any; one wrong object later is not the catalog's."""
        for pixel in self.pixels:
            with Leaf.open(self.files(pixel)) as leaf:
                for _, batch in leaf.batches([target.text], rows=64):
                    yield from (row for row in array_at(batch, target.path).to_pylist() if row)

    @cached_property
    def _found(self) -> dict[str, ColumnMap]:
        return {}

    def _own_columns(self, survey: Survey) -> ColumnMap:
        """Columns of a catalog whose rows are embedded: keys under the names that the output has."""
        known = self._found.get(survey.name)
        if known is None or known.survey != survey:  # looked for once, not with every pixel
            names = (survey.id_column, survey.ra_column, survey.dec_column)
            known = self._found[survey.name] = ColumnMap.of(
                survey, self.schema, {name: name for name in names}, where=str(self.path)
            )
        return known

    def batches(
        self, pixel: HealpixPixel, survey: Survey, *, rows: int, with_labels: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Row batches of one pixel with the columns of the survey and the spatial index.

        Raises
        ------
        ContractError
            If a leaf cannot be decoded.
        """
        columns = self._own_columns(survey)
        labels = columns.labels if with_labels else ()
        names = (*columns.keys, *columns.inputs, *labels)
        with Leaf.open(self.files(pixel)) as leaf:
            chosen = [self.healpix_column, *columns.paths(names)]
            yield from (batch for _, batch in leaf.batches(chosen, rows=rows))

    def rows(self, pixels: Iterable[HealpixPixel]) -> int:
        """Rows of some pixels, by the footers of their files; none where these cannot be read."""
        total = 0
        for pixel in pixels:
            # What is wrong with a file, its own pixel reports.
            with suppress(ContractError), Leaf.open(self.files(pixel)) as leaf:
                total += leaf.rows
        return total

    def single_rows(
        self, pixel: HealpixPixel, survey: Survey, rows: Sequence[int]
    ) -> Iterator[pa.RecordBatch]:
        """Some rows in ascending order as `batches` gives them, each on its own.

        Raises
        ------
        ContractError
            If the leaf has no such row any more.
        """
        columns = self._own_columns(survey)
        chosen = [self.healpix_column, *columns.paths((*columns.keys, *columns.inputs))]
        with Leaf.open(self.files(pixel)) as leaf:
            yield from leaf.single_rows(chosen, rows, at_once=leaf.rows_of(chosen, ROW_BYTES))

    def identity(self, pixel: HealpixPixel) -> Mapping[str, object]:
        """Size, row count and footer digest of one leaf: what it holds, without reading it all."""
        files = {place.name: footer(place) for place in self.files(pixel)}
        return next(iter(files.values())) if len(files) == 1 else files


def _read_local(path: Path) -> object:
    if not path.exists():
        raise ConfigurationError("there is no such folder", where=str(path), remedy=_REMEDY)
    try:
        return hats.read_hats(path, read_moc=False)
    except (FileNotFoundError, ValueError, TypeError) as problem:
        raise ConfigurationError(
            f"not a HATS catalog ({first_line(problem)})", where=str(path), remedy=_REMEDY
        ) from problem


def _read_remote(path: Path) -> object:
    """Read the few files that describe a catalog; a server that lists no folders will do."""
    if path.suffix != ".properties" and not any(
        is_there(path / name, kind=ConfigurationError) for name in _PROPERTIES
    ):
        raise ConfigurationError(
            f"not a HATS catalog (it has none of {', '.join(_PROPERTIES)})",
            where=str(path),
            remedy=_REMEDY,
        )

    def once() -> object:
        opened = hats.read_hats(path, read_moc=False)
        catalog = opened.main_catalog if isinstance(opened, CatalogCollection) else opened
        schemas = (paths.get_common_metadata_pointer, paths.get_parquet_metadata_pointer)
        if getattr(catalog, "schema", None) is None and any(
            is_there(place(catalog.catalog_path)) for place in schemas
        ):
            # hats takes a file that did not come for one that is not there.
            raise ConnectionError("the schema did not come")
        return opened

    return patiently(once, where=str(path), kind=ConfigurationError)

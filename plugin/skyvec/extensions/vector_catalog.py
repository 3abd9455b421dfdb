"""An embedding extension on disk: where it lies, what made it, its rows partition by partition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from hats.catalog import ExtensionProperties
from numpy.typing import NDArray

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import open_parquet
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.vectors import tensor_values


@dataclass(frozen=True)
class Part:
    """Rows of one partition that have a vector."""

    ids: pa.Array
    positions: NDArray[np.float64]
    """Right ascension and declination in degrees, (rows, 2)."""
    vectors: NDArray[np.floating]
    """(rows, dim), as stored."""


@dataclass(frozen=True)
class VectorCatalog:
    """The vectors of one extension, read straight from its Parquet files."""

    name: str
    release: HatsRelease
    primary: Path
    """Collection (or catalog) whose rows the vectors belong to."""
    id_column: str

    @classmethod
    def open(
        cls, catalog: str | Path, name: str | None = None, *, product: str = "embedding"
    ) -> VectorCatalog:
        """Open extension ``name`` of a collection, or an ``<extension>.properties`` file.

        Without a name it is the only one of that ``product`` (``embedding`` or ``tokens``).

        Raises
        ------
        ConfigurationError
            If there is no such extension; the message lists those that exist.
        """
        path = Path(name) if name and name.endswith(".properties") else Path(catalog)
        if not path.exists():
            raise ConfigurationError(
                "there is no such folder", where=str(path), remedy="Give the collection's folder"
            )
        if path.suffix != ".properties":
            path = path / f"{name or _only_extension(path, product)}.properties"
        if not path.is_file():
            known = ", ".join(extension_names(path.parent)) or "none"
            raise ConfigurationError(
                f"no extension {path.stem!r} (there are: {known})",
                where=str(path.parent),
                remedy="Run `skyvec embed` first, or name one of these with --extension",
            )
        properties = ExtensionProperties.read_from_file(path)
        primary = Path(properties.primary_catalog)
        return cls(
            name=properties.name,
            release=HatsRelease.open(_data_folder(path, properties)),
            primary=primary if primary.is_absolute() else path.parent,
            id_column=properties.join_column,
        )

    @cached_property
    def provenance(self) -> Provenance:
        """What made the vectors."""
        with open_parquet(self.release.leaf(self.release.pixels[0])) as first:
            metadata = first.schema_arrow.metadata or {}
        text = metadata.get(FOOTER_KEY.encode())
        if text is None:
            raise ConfigurationError(
                "carries no skyvec provenance",
                where=str(self.release.root),
                remedy="Only extensions written by `skyvec embed` can be searched or probed",
            )
        return Provenance.from_json(text)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.release.schema.field(self.name).type.shape[0])

    @property
    def rows(self) -> int:
        """Rows of the extension, failed ones included."""
        return int(self.release.catalog.catalog_info.total_rows or 0)

    def parts(self) -> Iterator[Part]:
        """Every partition once; rows without a vector are left out."""
        info = self.release.catalog.catalog_info
        columns = [self.id_column, info.ra_column, info.dec_column, self.name]
        for pixel in self.release.pixels:
            with open_parquet(self.release.leaf(pixel)) as leaf:
                table = leaf.read(columns=columns)
            table = table.filter(table.column(self.name).is_valid())
            yield Part(
                ids=table.column(self.id_column).combine_chunks(),
                positions=np.stack([table.column(c).to_numpy() for c in columns[1:3]], axis=1),
                vectors=tensor_values(table.column(self.name), missing=np.nan),
            )


def extension_folder(collection: Path, named: str) -> Path:
    """Folder of an extension's catalog, published or not.

    Parameters
    ----------
    named
        Its name in the collection, the path of its properties file, or its folder.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    path = Path(named)
    if path.suffix == ".properties" and path.is_file():
        return _data_folder(path, ExtensionProperties.read_from_file(path))
    for folder in (path, collection / named):
        if (folder / "skyvec").is_dir():
            return folder
    known = ", ".join(extension_names(collection)) or "none"
    raise ConfigurationError(
        f"no extension {named!r} (there are: {known})",
        where=str(collection),
        remedy="Name one of these, a properties file, or the folder of one",
    )


def _data_folder(path: Path, properties: ExtensionProperties) -> Path:
    """Where the data of a properties file lie, which is beside it: a path out of there is a trap."""
    named = str(properties.join_catalog)
    if Path(named).name != named or named in {"", ".", ".."}:
        raise ConfigurationError(
            f"its data are said to lie in {named!r}, outside of its folder",
            where=str(path),
            remedy="Only extensions that skyvec wrote can be read: their data lie beside this file",
        )
    return path.parent / named


def extension_names(collection: Path) -> list[str]:
    """Extensions described by ``<name>.properties`` files in a folder."""
    named = sorted(collection.glob("*.properties"))
    return [p.stem for p in named if "dataproduct_type=extension" in p.read_text()]


def _product_of(properties: Path) -> str:
    """``embedding``, ``tokens``, or the ``predictions`` of a probe."""
    return str(ExtensionProperties.read_from_file(properties).extension_product_type)


def _only_extension(collection: Path, product: str) -> str:
    names = [n for n in extension_names(collection)
             if _product_of(collection / f"{n}.properties") == product]  # fmt: skip
    if len(names) == 1:
        return names[0]
    command = "skyvec tokenize" if product == "tokens" else "skyvec embed"
    called = "token" if product == "tokens" else product
    raise ConfigurationError(
        f"holds {len(names)} {called} extensions ({', '.join(names) or 'none'})",
        where=str(collection),
        remedy="Name one with --extension" if names else f"Run `{command}` first",
    )


__all__: Sequence[str] = ("Part", "VectorCatalog", "extension_names")

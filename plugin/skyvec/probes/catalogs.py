"""What a user may call a catalog, and where its labels are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.labels import ColumnLabels, Labels, TableLabels, as_table
from skyvec.releases.hats.catalog import HatsRelease
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from lsdb import Catalog

TableOf = Callable[[Sequence[str]], pa.Table]


def opened(
    catalog: str | Path | Catalog, extension: str | None, *, product: str = "embedding"
) -> tuple[VectorCatalog, TableOf | None]:
    """The vectors of a path or LSDB catalog; for the latter also how to get at its rows.

    Without a name it is the only extension of that ``product`` (``embedding`` or ``tokens``).

    Raises
    ------
    ConfigurationError
        If it is neither, or has no such extension.
    """
    if isinstance(catalog, str | Path):
        return VectorCatalog.open(catalog, extension, product=product), None
    if not hasattr(catalog, "hc_structure"):
        raise ConfigurationError(
            f"is a {type(catalog).__name__}",
            where="catalog",
            remedy="Give the folder of a collection, an LSDB catalog, or vectors with labels",
        )
    collection = catalog.hc_collection
    folder = collection.collection_path if collection else catalog.hc_structure.catalog_path
    if product == "embedding":
        extension = extension or _loaded(catalog)
    vectors = VectorCatalog.open(Path(str(folder)), extension, product=product)

    def table_of(targets: Sequence[str]) -> pa.Table:
        asked = [vectors.id_column, *targets]
        if missing := [name for name in asked if name not in catalog.columns]:
            raise ConfigurationError(
                f"has no column {', '.join(missing)}",
                where="LSDB catalog",
                remedy="Open it with these columns, or give labels=...",
            )
        frame = catalog[asked].compute(progress_bar=False)
        return pa.Table.from_pandas(pd.DataFrame(frame), preserve_index=False)

    return vectors, table_of


def label_source(
    vectors: VectorCatalog,
    labels: pd.DataFrame | pa.Table | str | Path | None,
    targets: Sequence[str],
    *,
    kind: str,
    on: str | None,
    radius_arcsec: float,
    where: str | None,
) -> Labels:
    """Labels of a table, or columns of the primary catalog if there is none."""
    table = None if labels is None else as_table(labels)
    schema = HatsRelease.open(vectors.primary).schema if table is None else table.schema
    either = kind in {"knn", "attentive"}
    classes = kind == "logistic" or (either and _are_words(schema, targets))
    if table is None:
        return ColumnLabels(vectors, targets, where=where, classes=classes)
    name = str(labels) if isinstance(labels, str | Path) else "the table of labels"
    return TableLabels(
        table, targets, name=name, id_column=vectors.id_column, on=on,
        radius_arcsec=radius_arcsec, where=where, classes=classes,
    )  # fmt: skip


def _loaded(catalog: Catalog) -> str | None:
    """The one extension whose vectors an LSDB catalog holds."""
    names = [str(name) for name in catalog.extensions if name in catalog.columns]
    return names[0] if len(names) == 1 else None


def _are_words(schema: pa.Schema, targets: Sequence[str]) -> bool:
    """Whether the only target holds classes rather than numbers."""
    if len(targets) != 1 or targets[0] not in schema.names:
        return False
    kind = schema.field(targets[0]).type
    return not (pa.types.is_floating(kind) or pa.types.is_integer(kind))

"""What is evaluated: rows of a release with their tokens, labels, columns and sky blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Tokens
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_schemas.token_columns import token_values
from skyvec_training.data.leaves import catalog_folder, leaves_of, require_columns

SPATIAL_COLUMN = "_healpix_29"
Values = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Objects that have tokens and are in the catalog, each once."""

    ids: Values
    spatial_index: NDArray[np.int64]
    tokens: Mapping[str, Tokens]
    columns: Mapping[str, Values]
    """Numbers, text, or lists of lists; numbers are float64, NaN where null."""
    labels_in_tokens: tuple[str, ...]
    """Token keys that the stage stored for training to predict; never inputs."""
    codecs: Mapping[str, str]
    """Token key -> digest of the codec that made the tokens, as far as they say."""
    fingerprint: str
    """Of the token extension."""
    repeated: int
    """Rows left out since their id came before."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids_digest(self) -> str:
        """SHA-256 of the ids in their order."""
        return hashlib.sha256("\n".join(map(str, self.ids.tolist())).encode()).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of ids and tokens: equal where the same objects are evaluated."""
        digest = hashlib.sha256(self.ids_digest.encode())
        for key in sorted(self.tokens):
            coded = self.tokens[key]
            digest.update(key.encode())
            digest.update(
                torch.where(coded.valid_BN, coded.ids_BN, -1).numpy().astype("<i2").tobytes()
            )
        return digest.hexdigest()

    def numbers(self, column: str) -> NDArray[np.float64] | None:
        """A numeric column; None if there is none."""
        values = self.columns.get(column)
        if values is None or values.dtype != np.float64:
            return None
        return values.astype(np.float64, copy=False)


def read_sample(
    catalog: Path,
    tokens: Path,
    *,
    survey: str,
    domains: Sequence[str],
    columns: Sequence[str],
    labels: Sequence[Path] = (),
    most: int = 0,
) -> Sample:
    """Join a catalog, a token extension and files of labels by the object's id.

    Parameters
    ----------
    survey
        Names the id column of the catalog.
    domains
        Token keys that the model knows.
    columns
        Wanted columns; those that are nowhere are left out.
    labels
        Parquet files with the id column and further columns; ids they lack get NaN or null.
    most
        Objects to keep, chosen by a hash of their ids; 0 for all.

    Raises
    ------
    ContractError
        If catalog and tokens share no object, or the tokens hold none of the domains.
    """
    id_column = SURVEYS[survey].id_column
    token_table, made = _read_tokens(tokens, id_column, domains)
    main = _read_catalog(catalog, id_column, columns)
    rows_of = _first_rows(main.column(id_column).to_numpy())
    token_ids = token_table.column(id_column).to_numpy()
    first = _first_rows(token_ids)
    kept = np.array([row for key, row in first.items() if key in rows_of], np.int64)
    if not len(kept):
        raise ContractError(
            "no object of the catalog has tokens", where=str(tokens),
            remedy="Give the token extension of this catalog",
        )  # fmt: skip
    kept = kept[_chosen(token_ids[kept], most)]
    ids = token_ids[kept]
    table = main.take(pa.array([rows_of[key] for key in ids.tolist()]))
    found = _columns(table, columns)
    for path in labels:
        found |= _label_file(path, id_column, ids, [c for c in columns if c not in found])
    return Sample(
        ids=ids,
        spatial_index=_spatial_index(table, survey, catalog),
        tokens={key: _tokens(token_table.column(key), kept)
                for key in token_table.column_names if key != id_column},
        columns=found,
        labels_in_tokens=made.labels if made else tuple(SURVEYS[survey].labels.values()),
        codecs=dict(line.split("=", 1) for line in made.codecs) if made else {},
        fingerprint=made.fingerprint() if made else "",
        repeated=len(token_ids) - len(first),
    )  # fmt: skip


def tokens_folder(catalog: Path, tokens: str) -> Path:
    """Folder of a token extension, given as a path or as its name within the collection."""
    found = [path for path in (Path(tokens), catalog / tokens, catalog.parent / tokens)
             if (path / "dataset").is_dir()]  # fmt: skip
    if not found:
        raise ConfigurationError(
            f"there is no token extension {tokens}", where=str(catalog),
            remedy="Make it: `skyvec tokenize CATALOG --model MODEL`, and name it with --tokens",
        )  # fmt: skip
    return found[0]


def _read_tokens(
    path: Path, id_column: str, domains: Sequence[str]
) -> tuple[pa.Table, Provenance | None]:
    leaves = leaves_of(path)
    schema = pq.read_schema(leaves[0])
    keys = [key for key in domains if key in schema.names]
    if not keys:
        raise ContractError(
            "it holds none of the model's domains", where=str(path),
            remedy=f"Tokenize with this model; it reads {', '.join(domains)}",
        )  # fmt: skip
    for leaf in leaves:
        require_columns(leaf, [id_column, *keys], remedy="Tokenize again")
    table = pa.concat_tables(
        pq.read_table(leaf, columns=[id_column, *keys], partitioning=None).replace_schema_metadata()
        for leaf in leaves
    )
    footer = (schema.metadata or {}).get(FOOTER_KEY.encode())
    return table, Provenance.from_json(footer) if footer else None


def _read_catalog(catalog: Path, id_column: str, columns: Sequence[str]) -> pa.Table:
    leaves = leaves_of(catalog)
    known = pq.read_schema(leaves[0]).names
    wanted = [name for name in (SPATIAL_COLUMN, "ra", "dec", *columns) if name in known]
    chosen = list(dict.fromkeys([id_column, *wanted]))
    for leaf in leaves:
        require_columns(leaf, chosen, remedy="Every leaf of a release must have the same columns")
    return pa.concat_tables(
        pq.read_table(leaf, columns=chosen, partitioning=None).replace_schema_metadata()
        for leaf in leaves
    )


def _tokens(column: pa.ChunkedArray, kept: NDArray[np.int64]) -> Tokens:
    codes_BN, valid_BN = token_values(column.combine_chunks())
    return Tokens(
        ids_BN=torch.from_numpy(codes_BN[kept]), valid_BN=torch.from_numpy(valid_BN[kept])
    )


def _columns(table: pa.Table, columns: Sequence[str]) -> dict[str, Values]:
    return {
        name: _values(table.column(name)) for name in dict.fromkeys(columns)
        if name in table.column_names
    }  # fmt: skip


def _values(column: pa.ChunkedArray) -> Values:
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]


def _label_file(
    path: Path, id_column: str, ids: Values, columns: Sequence[str]
) -> dict[str, Values]:
    if not path.is_file():
        raise ConfigurationError("there is no such file", where=str(path),
                                 remedy="Give a Parquet file of labels")  # fmt: skip
    require_columns(path, [id_column], remedy="Labels are joined by the id of the catalog")
    names = pq.read_schema(path).names
    wanted = [name for name in columns if name in names]
    table = pq.read_table(path, columns=[id_column, *wanted], partitioning=None)
    rows_of = _first_rows(table.column(id_column).to_numpy())
    rows = pa.array([rows_of.get(key) for key in ids.tolist()], pa.int64())
    return _columns(table.take(rows), wanted)


def _chosen(ids: Values, most: int) -> NDArray[np.int64]:
    """Places of at most ``most`` ids, the same ones in any order; in ascending order."""
    if not 0 < most < len(ids):
        return np.arange(len(ids))
    hashed = [hashlib.sha256(str(key).encode()).digest() for key in ids.tolist()]
    return np.sort(np.array(sorted(range(len(ids)), key=hashed.__getitem__)[:most], np.int64))


def _first_rows(ids: Values) -> dict[int | str, int]:
    """Id -> the first row that carries it, in the order of the rows."""
    found: dict[int | str, int] = {}
    for row, key in enumerate(ids.tolist()):
        found.setdefault(key, row)
    return found


def _spatial_index(table: pa.Table, survey: str, catalog: Path) -> NDArray[np.int64]:
    if SPATIAL_COLUMN in table.column_names:
        return np.asarray(table.column(SPATIAL_COLUMN).to_numpy(), np.int64)
    names = [SURVEYS[survey].ra_column, SURVEYS[survey].dec_column]
    if not set(names) <= set(table.column_names):
        raise ContractError(
            f"it has neither {SPATIAL_COLUMN} nor {' and '.join(names)}",
            where=str(catalog_folder(catalog)), remedy="Positions are needed to split by sky",
        )  # fmt: skip
    from astropy import units
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix.nested import lonlat_to_healpix

    ra, dec = (table.column(name).to_numpy() for name in names)
    pixels = lonlat_to_healpix(Longitude(ra, units.deg), Latitude(dec, units.deg), depth=29)
    return np.asarray(pixels).astype(np.int64)


def input_domains(
    patterns: Sequence[str], sample_keys: Sequence[str], excluded: Sequence[str]
) -> tuple[str, ...]:
    """Token keys that some pattern matches, in registry order, without those excluded."""
    from fnmatch import fnmatchcase

    return tuple(
        key for key in MODALITIES
        if key in sample_keys and key not in excluded
        and any(fnmatchcase(key, pattern) for pattern in patterns)
    )  # fmt: skip

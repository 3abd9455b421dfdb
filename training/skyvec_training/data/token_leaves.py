"""Token extensions: HATS leaves with ids and one column for each token key.

Training and the survey stage meet only here, in the columns of
`skyvec_schemas.token_columns.token_array` and the record of `skyvec_schemas.provenance`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.survey_columns import SURVEYS
from skyvec_schemas.token_columns import INVALID, token_values

# Shape letters: B object, N token of one domain.

ID_COLUMNS = tuple(dict.fromkeys(survey.id_column for survey in SURVEYS.values()))
SPATIAL_INDEX = "_healpix_29"
ROWS_PER_READ = 4096
UNKNOWN = "unknown"
"""Codec of tokens without a record of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLeaf:
    """One Parquet leaf of a token extension."""

    path: Path
    rows: int
    footer: str
    """SHA-256 of the Parquet footer, which has sizes and statistics of all columns."""
    keys: tuple[str, ...]
    """Token keys that it has columns of, in registry order."""
    id_column: str
    has_places: bool
    """Whether it has the HEALPix pixel of each object."""
    fingerprint: str | None
    codecs: Mapping[str, str]
    """Token key -> digest of its codec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRows:
    """Some objects of a leaf."""

    ids: pa.Array
    healpix_B: NDArray[np.int64]
    """HEALPix pixel at order 29; -1 where the leaf does not say."""
    codes: Sequence[NDArray[np.int16]]
    """Codes (B, N) of each key; -1 where nothing was observed."""


def open_leaf(path: Path) -> TokenLeaf:
    """What a leaf says about itself.

    Raises
    ------
    ConfigurationError
        If it holds another product than tokens.
    MissingColumnError
        If it has no ids or no tokens.
    """
    file = pq.ParquetFile(path)
    schema, names = file.schema_arrow, set(file.schema_arrow.names)
    raw = (schema.metadata or {}).get(FOOTER_KEY.encode())
    made = Provenance.from_json(raw) if raw else None
    if made and made.product != "tokens":
        raise ConfigurationError(
            f"it holds {made.product}, not tokens",
            where=str(path),
            remedy="Give an extension written by `skyvec tokenize`",
        )
    keys = tuple(key for key in MODALITIES if key in names)
    ids = [name for name in ID_COLUMNS if name in names]
    if not (keys and ids):
        raise MissingColumnError(
            f"there is no {'column of tokens' if ids else ' or '.join(ID_COLUMNS)}",
            where=str(path),
            remedy="Give an extension written by `skyvec tokenize`",
        )
    return TokenLeaf(
        path=path,
        rows=file.metadata.num_rows,
        footer=_footer_digest(path),
        keys=keys,
        id_column=ids[0],
        has_places=SPATIAL_INDEX in names,
        fingerprint=made.fingerprint() if made else None,
        codecs=_codecs(made, keys),
    )


def require_one_codec(leaves: Iterable[TokenLeaf]) -> Mapping[str, str]:
    """The codec of each domain, in registry order; two for one domain are refused."""
    first: dict[str, tuple[str, Path]] = {}
    for leaf in leaves:
        for key, codec in leaf.codecs.items():
            other, where = first.setdefault(key, (codec, leaf.path))
            if other != codec:
                raise ConfigurationError(
                    f"its {key} was made by codec {codec[:18]}, that of {where} by codec "
                    f"{other[:18]}",
                    where=str(leaf.path),
                    remedy="Equal codes would mean different things: tokenize both with one model",
                )
    return {key: first[key][0] for key in MODALITIES if key in first}


def read_leaf(
    leaf: TokenLeaf, keys: Sequence[str], *, rows: int = ROWS_PER_READ
) -> Iterator[TokenRows]:
    """The leaf's objects in order, ``rows`` at a time.

    Raises
    ------
    ContractError
        If a code is outside its domain.
    """
    columns = [leaf.id_column, *keys, *([SPATIAL_INDEX] if leaf.has_places else [])]
    for batch in pq.ParquetFile(leaf.path).iter_batches(rows, columns=columns):
        healpix = np.full(len(batch), -1, np.int64)
        if leaf.has_places:
            healpix = batch[SPATIAL_INDEX].to_numpy(zero_copy_only=False).astype(np.int64)
        yield TokenRows(
            ids=batch[leaf.id_column],
            healpix_B=healpix,
            codes=[_codes(batch[key], key, leaf.path) for key in keys],
        )


def _codes(column: pa.Array, key: str, leaf: Path) -> NDArray[np.int16]:
    modality = MODALITIES[key]
    codes_BN, valid_BN = token_values(column)
    if codes_BN.shape[1] != modality.num_tokens or codes_BN.max(initial=0) >= modality.vocabulary:
        raise ContractError(
            f"{key} does not hold {modality.num_tokens} codes below {modality.vocabulary}",
            where=str(leaf),
            remedy="Tokenize again with the codecs of this model",
        )
    return np.where(valid_BN, codes_BN, INVALID).astype(np.int16)


def _codecs(made: Provenance | None, keys: Sequence[str]) -> dict[str, str]:
    if made is None:
        return dict.fromkeys(keys, UNKNOWN)
    recorded = dict(line.split("=", 1) for line in made.codecs)
    # Before codecs had a digest each, the model's told them.
    return {key: recorded.get(key, f"model {made.model_digest}") for key in keys}


def _footer_digest(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-8, 2)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, 2)
        return hashlib.sha256(file.read(size)).hexdigest()

"""Sentences about objects, from a column of the catalog or from its properties.

Templated captions say what the catalog knows, in the words of the recipe: enough to search by
these words, no substitute for descriptions by eye.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_training.data.leaves import leaves_of, require_columns
from skyvec_training.heads.identities import id_column_of, identities
from skyvec_training.recipe.heads import CaptionRun, PhraseRun

NO_CAPTION = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """One caption for each object; each distinct text is kept once."""

    ids: NDArray[np.int64]
    """Ascending."""
    places: NDArray[np.int64]
    """Which of ``texts`` each object has."""
    texts: tuple[str, ...]

    def of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each object's text; -1 for an object without one."""
        found = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[found] == ids, self.places[found], NO_CAPTION)


def read_captions(catalog: Path, run: CaptionRun) -> Captions:
    """Captions of every object of a HATS catalog that has one.

    Raises
    ------
    MissingColumnError
        If a leaf lacks a column of the recipe.
    ContractError
        If no object has a caption, or two have one id.
    """
    columns = sorted({c for phrase in run.phrases.values() for c in phrase.columns})
    columns = [run.column] if run.column else columns
    texts: dict[str, int] = {}
    ids, places = [], []
    for leaf in leaves_of(catalog):
        id_column = id_column_of(leaf)
        require_columns(leaf, columns, remedy="Correct the captions of the recipe")
        table = pq.ParquetFile(leaf).read(columns=[id_column, *columns])
        own = identities(table.column(id_column))
        for key, text in zip(own, captions_of(table, run, ids=own), strict=True):
            if text:
                ids.append(int(key))
                places.append(texts.setdefault(text, len(texts)))
    if not ids:
        raise ContractError(
            "no object has a caption",
            where=str(catalog),
            remedy="Name a column with text, or phrases with words, in the recipe",
        )
    order = np.argsort(ids, kind="stable")
    sorted_ids = np.array(ids, np.int64)[order]
    if (np.diff(sorted_ids) == 0).any():
        twice = sorted_ids[1:][np.diff(sorted_ids) == 0][0]
        raise ContractError(
            f"object {twice} has two captions",
            where=str(catalog),
            remedy="Give a catalog whose ids are unique",
        )
    return Captions(ids=sorted_ids, places=np.array(places)[order], texts=tuple(texts))


def captions_of(table: pa.Table, run: CaptionRun, *, ids: NDArray[np.int64]) -> list[str]:
    """A caption for each row; empty where there is nothing to say."""
    if run.column:
        column = table.column(run.column)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ConfigurationError(
                f"is {column.type}, not text",
                where=f"column {run.column!r}",
                remedy="Name a column with captions, or phrases for a column with values",
            )
        return [(text or "").strip() for text in column.to_pylist()]
    words = {name: words_of(table, phrase) for name, phrase in run.phrases.items()}
    captions = []
    for row, key in enumerate(ids):
        said = {name: column[row] for name, column in words.items()}
        # Ids of a survey often end alike; a multiplication spreads them over the templates.
        template = run.templates[(int(key) * 2654435761 >> 16) % len(run.templates)]
        captions.append(_tidy(template.format_map(said)) if any(said.values()) else "")
    return captions


def words_of(table: pa.Table, phrase: PhraseRun) -> list[str]:
    """The phrase's word for each row; empty where its value is unknown."""
    values = [table.column(c).cast(pa.float64()).to_numpy() for c in phrase.columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        match phrase.measure:
            case "colour":
                value = -2.5 * np.log10(values[0] / values[1])
            case "length":
                value = np.sqrt(np.sum(np.square(values), axis=0))
            case _:
                value = values[0]
    known = np.isfinite(value)
    places = np.searchsorted(np.array(phrase.edges), np.where(known, value, 0.0), side="right")
    return [phrase.words[p] if k else "" for p, k in zip(places, known, strict=True)]


def _tidy(text: str) -> str:
    """Without what an empty word leaves behind: double spaces, commas at the wrong place."""
    text = re.sub(r"\s+([,.])", r"\1", re.sub(r"\s+", " ", text))
    return re.sub(r"([,.])(?:\s*[,.])+", r"\1", text).strip(" ,")

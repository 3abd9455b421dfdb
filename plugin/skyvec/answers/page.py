"""An answer as HTML that loads nothing from elsewhere: a page, or a part of a notebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from skyvec.answers import figures
from skyvec.answers.footprint import footprint
from skyvec.answers.formats import model_of
from skyvec.answers.looks import looks_at
from skyvec.answers.vectors import opened_extension
from skyvec.answers.wording import NO_PROBABILITY, scores_in_words
from skyvec.version import __version__
from skyvec_schemas.errors import SkyvecError

if TYPE_CHECKING:
    import pyarrow as pa
    from mocpy import MOC

    from skyvec.answers.answer import Answer

ROWS = 200
"""Rows of the table on a page; more are in the saved file."""
ROWS_IN_NOTEBOOK = 10
EXAMPLES = 12
"""Objects that were asked with, as thumbnails."""
_DIGITS = {"ra": 5, "dec": 5, "similarity": 5, "distance": 5}
"""Behind the point; other numbers have five that count."""


def page(answer: Answer, *, shown: int) -> str:
    """A whole page."""
    return _rendered(answer, shown=shown, rows=ROWS, whole=True)


def fragment(answer: Answer, *, shown: int) -> str:
    """The same without head and body, smaller, for a notebook."""
    return _rendered(answer, shown=shown, rows=ROWS_IN_NOTEBOOK, whole=False)


def written(text: str, path: Path) -> Path:
    """Write a page to a file, which appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def _rendered(answer: Answer, *, shown: int, rows: int, whole: bool) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    source = resources.files("skyvec.answers").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        whole=whole,
        title=title(answer),
        answer=answer,
        model=model_of(answer),
        version=__version__,
        examples=_examples(answer),
        stamps=_stamps(answer, shown=shown),
        shown=min(shown, len(answer)),
        sky=_sky(answer),
        scores=_scores(answer),
        precision=answer.precision,
        no_probability=NO_PROBABILITY,
        score_words=scores_in_words(answer),
        told=[] if answer.score_column else _predictions(answer),
        names=answer.table.column_names,
        numeric=_numeric(answer),
        rows=[
            {name: text(name, value) for name, value in row.items()}
            for row in answer.table.slice(0, rows).to_pylist()
        ],
    )


def title(answer: Answer) -> str:
    """What was asked, by the question's first line."""
    for name, asked in answer.question.items():
        return f"{name[:1].upper()}{name[1:]}: {asked}"
    return f"{len(answer):,} objects of {answer.catalog.name}"


def text(name: str, value: object) -> str:
    """A value of the table for people."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash is what a table shows
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.{_DIGITS[name]}f}" if name in _DIGITS else f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(text(name, item) for item in value)
    return str(value)


def _numeric(answer: Answer) -> set[str]:
    frame = answer.table.slice(0, 0).to_pandas()
    return set(frame.select_dtypes("number").columns) - {answer.id_column}


def _stamps(answer: Answer, *, shown: int) -> list[dict[str, object]]:
    column = answer.score_column
    told = [] if column else _predictions(answer)

    def caption(row: Mapping[str, Any]) -> str:
        if column:
            return "" if row[column] is None else f"{row[column]:.4f}"
        return " ".join(text(name, row[name]) for name in told)

    return _tiles(answer, answer.table.slice(0, shown), caption)


def _examples(answer: Answer) -> list[dict[str, object]]:
    """What was asked with, so that the eye can compare."""
    if answer.examples is None:
        return []
    return _tiles(answer, answer.examples.slice(0, EXAMPLES), lambda row: str(row["role"]))


def _tiles(
    answer: Answer, table: pa.Table, caption: Callable[[Mapping[str, Any]], str]
) -> list[dict[str, object]]:
    tiles: list[dict[str, object]] = []
    for row, look in zip(table.to_pylist(), looks_at(answer, table), strict=True):
        key = str(row[answer.id_column])
        tiles.append({
            "picture": figures.thumbnail(look, alt=key),
            "spectrum": look.flux is None,
            "wide": f"{look.wide:.0f}″" if look.wide else "",
            "why": look.why,
            "id": key,
            "caption": caption(row),
            "place": f"{row['ra']:.4f} {row['dec']:+.4f}",
        })  # fmt: skip
    return tiles


def _predictions(answer: Answer) -> list[str]:
    """The first two columns that say something of an object besides who and where it is."""
    known = {answer.id_column, "ra", "dec", "query"}
    return [name for name in answer.table.column_names if name not in known][:2]


def _sky(answer: Answer) -> figures.Picture | None:
    places = _places(answer.table)
    if not len(places):
        return None
    area: MOC | None
    try:
        area = footprint(opened_extension(answer).release)
    except SkyvecError:  # an extension that is not here: the objects are drawn without it
        area = None
    asked = np.empty((0, 2)) if answer.examples is None else _places(answer.examples)
    return figures.sky_map(places, area, asked=asked)


def _places(table: pa.Table) -> NDArray[np.float64]:
    """Right ascension and declination of the rows that have both, (rows, 2)."""
    found = np.stack([table.column(c).to_numpy().astype(np.float64) for c in ("ra", "dec")], axis=1)
    return found[np.isfinite(found).all(axis=1)]


def _scores(answer: Answer) -> figures.Picture | None:
    column, sample = answer.score_column, answer.scores
    if column is None or sample is None or not len(sample.values) or not len(answer):
        return None
    own = answer.table.column(column).to_numpy().astype(np.float64)
    own = own[np.isfinite(own)]
    return figures.score_figure(own, sample, label=column) if len(own) else None

"""A table of objects that answers a question, and what it takes to know what it means."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from skyvec.answers.precision import Precision
from skyvec.answers.scores import ScoreSample
from skyvec_schemas.errors import SkyvecError

if TYPE_CHECKING:
    from astropy.table import Table
    from lsdb import Catalog
    from rich.console import RenderableType

SHOWN = 48
"""Objects with a thumbnail on a page."""
SHOWN_IN_NOTEBOOK = 12
SHOWN_IN_TERMINAL = 20
_SCORES = ("similarity", "distance")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Objects that a search or a probe found, bound to the vectors it looked at."""

    table: pa.Table
    """Id, ``ra`` and ``dec`` in degrees, and what was found: ``similarity``, predictions, ..."""
    id_column: str
    catalog: Path
    """Collection that the ids belong to."""
    extension: str
    fingerprint: str
    """Of the vectors' model and settings (`Provenance.fingerprint`)."""
    question: Mapping[str, str] = field(default_factory=dict)
    """What was asked, as lines for people: metric, filters, examples, prevalence."""
    model: str = ""
    """Name of the model, for people; the extension knows it while it is there."""
    scores: ScoreSample | None = None
    """Scores of all objects that were looked at, beside which those of the answer mean something."""
    examples: pa.Table | None = None
    """Id, ``ra``, ``dec`` and ``role`` (``like``, ``unlike``) of objects of the catalog asked with."""
    precision: Precision | None = None
    """How much of the answer is what was wanted, where labels say so; see `judged`."""

    def __len__(self) -> int:
        return self.table.num_rows

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame."""
        return self.table.to_pandas()

    @property
    def score_column(self) -> str | None:
        """The column that the answer is ranked by, ``similarity`` or ``distance``, if there is one."""
        return next((name for name in _SCORES if name in self.table.column_names), None)

    # ---- to be seen

    def _repr_html_(self) -> str:
        """What a notebook shows: thumbnails, sky map, table."""
        from skyvec.answers.page import fragment

        try:
            return fragment(self, shown=SHOWN_IN_NOTEBOOK)
        except SkyvecError as problem:  # a page that cannot be drawn must not hide the table
            return f"<p>{html.escape(str(problem))}</p>{self.to_pandas().to_html(max_rows=20)}"

    def __repr__(self) -> str:
        return f"Answer({len(self)} rows: {', '.join(self.table.column_names)}; {self.extension})"

    def __rich__(self) -> RenderableType:
        """What a terminal shows: the question, the first rows, what is known of the scores."""
        from skyvec.answers.terminal import renderable

        return renderable(self, shown=SHOWN_IN_TERMINAL)

    @overload
    def gallery(self, path: None = None, *, shown: int = SHOWN) -> str: ...
    @overload
    def gallery(self, path: str | Path, *, shown: int = SHOWN) -> Path: ...
    def gallery(self, path: str | Path | None = None, *, shown: int = SHOWN) -> str | Path:
        """One HTML page with thumbnails, sky map and table that loads nothing from elsewhere.

        Parameters
        ----------
        path
            File to write, which is returned; the page itself is returned without one.
        shown
            Objects with a thumbnail; their pixels alone are read.
        """
        from skyvec.answers.page import page, written

        text = page(self, shown=shown)
        return text if path is None else written(text, Path(path))

    # ---- what it is worth

    def judged(
        self,
        labels: str | pa.Table | pd.DataFrame,
        *,
        wanted: str | None = None,
        among: pa.Array | None = None,
    ) -> Answer:
        """The answer with precision at its length, beside the prevalence in what was searched.

        Parameters
        ----------
        labels
            An expression over columns of the catalog that is true for what was wanted, such as
            ``"TYPE == 'SER'"``; or a table with the id column and a column ``wanted``.
        wanted
            Column of such a table, boolean; its only other column by default.
        among
            Ids that were searched, where a filter left some out; by default all with a vector.

        Raises
        ------
        ConfigurationError
            A column that is not there, or labels that say nothing of what was searched.
        """
        from skyvec.answers.judging import judge

        return replace(self, precision=judge(self, labels, wanted=wanted, among=among))

    # ---- to be used elsewhere

    def vectors(self) -> NDArray[np.float32]:
        """Vectors (rows, dim) of these objects as stored, in their order; NaN where there is none.

        Raises
        ------
        ConfigurationError
            If the extension is gone, or was made anew by another model.
        """
        from skyvec.answers.vectors import vectors_of

        return vectors_of(self)

    def save(self, path: str | Path) -> Path:
        """Write the table: ``.parquet``, ``.vot`` (VOTable), ``.fits`` or ``.csv`` (ECSV).

        Each carries model, fingerprint, extension and question, units and UCDs.
        """
        from skyvec.answers.formats import save

        return save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Answer:
        """Read `save`.

        Raises
        ------
        ContractError
            If the file is not an answer.
        """
        from skyvec.answers.formats import load

        return load(Path(path))

    def to_astropy(self) -> Table:
        """The table with units and UCDs; what the vectors are is in ``meta``."""
        from skyvec.answers.formats import astropy_table

        return astropy_table(self)

    def to_lsdb(self) -> Catalog:
        """The rows as an LSDB catalog, to be crossmatched and queried further."""
        from skyvec.answers.lsdb_catalog import lsdb_catalog

        return lsdb_catalog(self)

    def to_atlas(
        self, path: str | Path, *, projection: bool = True, thumbnails: bool = True
    ) -> Path:
        """Write plain Parquet with vectors for ``embedding-atlas`` and other tools like it.

        Parameters
        ----------
        projection
            Add ``projection_x`` and ``projection_y``: the first two principal components.
        thumbnails
            Add ``image``, a struct with PNG ``bytes``, null for objects without pixels.
        """
        from skyvec.answers.atlas import write_atlas

        return write_atlas(self, Path(path), projection=projection, thumbnails=thumbnails)

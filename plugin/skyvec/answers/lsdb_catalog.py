"""An answer as an LSDB catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lsdb

from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer


def lsdb_catalog(answer: Answer) -> lsdb.Catalog:
    """The rows as a catalog of their own, without margin.

    Raises
    ------
    ConfigurationError
        If the answer is empty, which LSDB cannot hold.
    """
    if not len(answer):
        raise ConfigurationError(
            "no object in it", where="answer", remedy="Ask for more before making a catalog of it"
        )
    return lsdb.from_dataframe(
        answer.to_pandas(), catalog_name=f"{answer.extension}_answer",
        ra_column="ra", dec_column="dec", margin_threshold=None,
    )  # fmt: skip

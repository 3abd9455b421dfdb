"""The vectors of an answer's objects, read by row from the extension's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skyvec.answers.rows import find_rows, unique_objects
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.vector_pages.opening import open_vectors
from skyvec_schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from skyvec.answers.answer import Answer


def vectors_of(answer: Answer) -> NDArray[np.float32]:
    """Vectors (rows, dim) in the answer's order, NaN where there is none; see `Answer.vectors`."""
    extension = opened_extension(answer)
    objects, which = unique_objects(answer.table, answer.id_column)
    found = np.full((len(objects), extension.dim), np.nan, np.float32)
    for part in find_rows(extension.release, objects, answer.id_column):
        stored = open_vectors(extension.release.leaf(part.pixel), extension.name)
        for row, place in zip(part.rows.tolist(), part.places.tolist(), strict=True):
            if (vector := stored.row(row)) is not None:
                found[place] = vector
    return found[which]


def opened_extension(answer: Answer) -> VectorCatalog:
    """The extension that an answer came from.

    Raises
    ------
    ConfigurationError
        If it is gone, or holds other vectors by now.
    """
    extension = VectorCatalog.open(answer.catalog, answer.extension)
    now = extension.provenance.fingerprint()
    if now != answer.fingerprint:
        raise ConfigurationError(
            f"holds vectors {now[:12]} by {extension.provenance.model}, the answer is about "
            f"{answer.fingerprint[:12]}",
            where=f"{answer.catalog}, extension {answer.extension}",
            remedy="Ask again, or name the extension that was asked",
        )
    return extension

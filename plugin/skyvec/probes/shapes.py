"""Whether vectors that are predicted for are as wide as those that were learnt from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyvec_schemas.errors import ConfigurationError


def of_width(vectors: Any, width: int) -> NDArray[Any]:  # noqa: ANN401 - what the caller gave
    """The vectors as an array (rows, width).

    Raises
    ------
    ConfigurationError
        If they have another shape.
    """
    found = np.asarray(vectors)
    if found.ndim != 2 or found.shape[1] != width:
        raise ConfigurationError(
            f"has shape {found.shape}, the probe learnt on {width} values a row",
            where="vectors",
            remedy="Give (rows, dim) of the same model",
        )
    return found

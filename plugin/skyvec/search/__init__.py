"""Objects like these: exact nearest neighbours among the vectors of an extension.

``skyvec.search`` is both this package and, called, its function `search`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from skyvec.search.ask import search
from skyvec.search.encoding import encode
from skyvec.search.examples import mean_vector
from skyvec.search.filters import Filters
from skyvec.search.lsdb_search import SimilarTo
from skyvec.search.metrics import Metric
from skyvec.search.query import Query, example, find_vector, find_vectors

__all__ = [
    "Filters",
    "Metric",
    "Query",
    "SimilarTo",
    "encode",
    "example",
    "find_vector",
    "find_vectors",
    "mean_vector",
    "search",
]


class _Callable(ModuleType):
    """Importing a package binds its name in the parent: the function must answer to it, too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

"""An observation that is in no catalog -> a query, by the very model that made the vectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.models import load_model
from skyvec.search.query import Query
from skyvec.search.uploads import read_upload
from skyvec.stage.partition import stored_as
from skyvec.surveys import named_survey
from skyvec_core.embedder import Model, Precision
from skyvec_core.observations import Observations
from skyvec_schemas.errors import ConfigurationError, WeightsError
from skyvec_schemas.survey_columns import SURVEYS, Survey


def encode(
    catalog: str | Path | VectorCatalog,
    observed: str | Path | Observations,
    *,
    model: str | Path | Model | None = None,
    survey: str | Survey | None = None,
    extension: str | None = None,
) -> Query:
    """Embed an image or a spectrum as the vectors of an extension were, to search with it.

    Parameters
    ----------
    observed
        A file, see `skyvec.search.uploads`, or observations by token key.
    model
        The extension's, which is found by its name if it comes with the package; another is
        refused by its digest.
    survey
        Whose bands and units the file has; that of the extension by default.

    Raises
    ------
    ConfigurationError
        If the model is another one or cannot be found, or takes no such observations.
    ContractError
        If the file holds nothing that can be used.
    """
    vectors = (
        catalog if isinstance(catalog, VectorCatalog) else VectorCatalog.open(catalog, extension)
    )
    made = vectors.provenance
    embedder = _model(vectors, model)
    name = "observations"
    if not isinstance(observed, Mapping):
        name = Path(observed).name
        observed = read_upload(Path(observed), _survey(vectors, survey))
    seen = _seen(vectors)
    observed = {key: each for key, each in observed.items() if seen is None or key in seen}
    if not observed:
        raise ConfigurationError(
            f"holds nothing of what the vectors were made from ({', '.join(sorted(seen or ()))})",
            where=name,
            remedy="Give such an observation, or search across modalities through an aligned head",
        )
    try:
        tokens = embedder.tokenize(observed)
        rows = embedder.embed(tokens).numpy()
    except (ValueError, TypeError) as problem:
        raise ConfigurationError(
            f"cannot be embedded ({problem})", where=name, remedy="Give what the model takes"
        ) from problem
    if not np.isfinite(rows).all():
        raise ConfigurationError(
            "holds nothing that the model sees", where=name, remedy="Give a better observation"
        )
    stored = stored_as(rows, "float32" if made.vector_type == "float32" else "float16")
    return Query(
        vectors=stored.astype(np.float64),
        provenance=made,
        asked={"like": name, "made from": _inputs(vectors, list(tokens))},
    )


def _model(vectors: VectorCatalog, given: str | Path | Model | None) -> Model:
    made = vectors.provenance
    if isinstance(given, Model):
        model = given
    else:
        try:
            model = load_model(given or made.model, precision=cast("Precision", made.precision))
        except WeightsError as problem:
            if given is not None:
                raise
            raise ConfigurationError(
                f"was made by {made.model} ({made.model_digest[:12]}), which is not in the package",
                where=f"extension {vectors.name}",
                remedy="Give its folder with --model",
            ) from problem
    if model.digest != made.model_digest:
        raise ConfigurationError(
            f"is {model.digest[:12]}, the vectors were made by {made.model} "
            f"({made.model_digest[:12]})",
            where=f"model {model.name}",
            remedy="Give the model that made them: other vectors mean nothing here",
        )
    return model


def _survey(vectors: VectorCatalog, given: str | Survey | None) -> Survey:
    if given is not None:
        return named_survey(given)
    name = vectors.provenance.survey
    survey = SURVEYS.get(name)
    if survey is None or not (survey.image or survey.spectrum):
        raise ConfigurationError(
            f"its survey is {name!r}, which has no images or spectra of its own"
            if survey
            else f"its survey {name!r} is not a known one",
            where=f"extension {vectors.name}",
            remedy=f"Say whose bands and units the file has, with survey=: {', '.join(SURVEYS)}",
        )
    return survey


def _seen(vectors: VectorCatalog) -> set[str] | None:
    """Token keys that the vectors were made from; None where sources added some."""
    made = vectors.provenance
    return None if made.sources else {line.partition("=")[2] for line in made.inputs}


def _inputs(vectors: VectorCatalog, keys: list[str]) -> str:
    lacking = sorted((_seen(vectors) or set()) - set(keys))
    said = ", ".join(keys)
    if vectors.provenance.sources:
        return f"{said}; the vectors also from {'; '.join(vectors.provenance.sources)}"
    return f"{said}; the vectors also from {', '.join(lacking)}" if lacking else said

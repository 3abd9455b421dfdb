"""Labels that the model has read: a probe for them measures a copy, not knowledge."""

from __future__ import annotations

from collections.abc import Sequence

from skyvec.probes.scores import is_redshift
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import Provenance
from skyvec_schemas.survey_columns import SURVEYS


def refuse_leaks(made: Provenance, targets: Sequence[str], *, allowed: bool) -> list[str]:
    """What the record of a probe has to say of its targets and the model's inputs.

    A target leaks if the model read its column, another survey's column of the same quantity, or,
    for redshifts, a redshift by any name. A spectrum among the inputs is told but no leak.

    Raises
    ------
    ConfigurationError
        If a target leaks and that was not allowed.
    """
    read = [(column, key) for column, _, key in (line.partition("=") for line in made.inputs)]
    notes, leaks = [], []
    for target in targets:
        found = [column for column, key in read if target in _columns_of(column, key)]
        if is_redshift(target):
            found += [column for column, key in read if key == "tok_z" and column not in found]
            spectra = [column for column, key in read if key.startswith("tok_spectrum")]
            if spectra:
                notes.append(
                    f"{target} is a redshift, and the model read spectra ({', '.join(spectra)}): "
                    "this is no photometric redshift"
                )
        if found:
            leaks.append(f"{target} (the model read {', '.join(found)})")
    if leaks and not allowed:
        tokens = made.product == "tokens"
        product, make = ("tokens", "tokenize") if tokens else ("vectors", "embed")
        raise ConfigurationError(
            f"is an input of the model that made the {product}: {'; '.join(leaks)}",
            where=f"target of a probe on {product} by {made.model}",
            remedy=f"Choose another target, {make} without this input, or pass allow_leaks=True "
            "(--allow-leaks) to measure how well it is remembered",
        )
    return [*(f"leak: {leak}" for leak in leaks), *notes]


def _columns_of(column: str, key: str) -> set[str]:
    """Names that surveys have for one quantity, and the token key itself."""
    others = {
        scalar.name
        for survey in SURVEYS.values()
        for scalar in survey.scalars
        if scalar.token_key == key
    }
    return {column, key, *others}

"""Which survey, and which of its columns: what the user chose -> one `Survey`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import SURVEYS, Survey


def named_survey(survey: str | Survey) -> Survey:
    """Survey by name, or as given."""
    if isinstance(survey, Survey):
        return survey
    if survey not in SURVEYS:
        raise ConfigurationError(
            "no such survey", where=survey, remedy=f"Known surveys: {', '.join(SURVEYS)}"
        )
    return SURVEYS[survey]


def chosen_survey(
    name: str, *, id_column: str | None, image_column: str | None, without: str
) -> Survey:
    """A survey by name, with other column names or without some columns.

    Raises
    ------
    ConfigurationError
        For a survey or column that does not exist; lists those that do.
    """
    survey = leave_out(named_survey(name), without.split(","), where="--without")
    if survey.image and image_column:
        survey = replace(survey, image=replace(survey.image, name=image_column))
    return replace(survey, id_column=id_column or survey.id_column)


def leave_out(survey: Survey, columns: Iterable[str], *, where: str) -> Survey:
    """The survey without some of its inputs.

    Raises
    ------
    ConfigurationError
        For a column that it does not have; lists those that it has.
    """
    left_out = {column.strip() for column in columns if column.strip()}
    known = {column for column, _ in survey.inputs}
    if unknown := left_out - known:
        raise ConfigurationError(
            f"the survey has no column {', '.join(sorted(unknown))}",
            where=where,
            remedy=f"It has {', '.join(sorted(known))}"
            if known
            else 'It has none; columns of a source are left out by without = ["..."] in a sources file',
        )
    image, spectrum, coefficients = survey.image, survey.spectrum, survey.coefficients
    return replace(
        survey,
        image=None if image and image.name in left_out else image,
        spectrum=None if spectrum and spectrum.name in left_out else spectrum,
        coefficients=None if coefficients and coefficients.name in left_out else coefficients,
        scalars=tuple(scalar for scalar in survey.scalars if scalar.name not in left_out),
    )

"""Which survey, and which of its columns: what the user chose -> one `Survey`."""

from __future__ import annotations

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
    survey = named_survey(name)
    left_out = {column.strip() for column in without.split(",") if column.strip()}
    known = {scalar.name for scalar in survey.scalars} | (
        {survey.image.name} if survey.image else set()
    )
    if unknown := left_out - known:
        raise ConfigurationError(
            f"the survey has no column {', '.join(sorted(unknown))}",
            where="--without",
            remedy=f"It has {', '.join(sorted(known))}",
        )
    image = None if survey.image and survey.image.name in left_out else survey.image
    if image and image_column:
        image = replace(image, name=image_column)
    return replace(
        survey,
        id_column=id_column or survey.id_column,
        image=image,
        scalars=tuple(s for s in survey.scalars if s.name not in left_out),
    )

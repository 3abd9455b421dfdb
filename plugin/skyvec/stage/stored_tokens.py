"""A token extension as input: what it holds, and whether a model may read it."""

from __future__ import annotations

from pathlib import Path

from hats.catalog import ExtensionProperties

from skyvec.extensions.vector_catalog import extension_folder
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.job import StoredTokens
from skyvec.stage.output import Output
from skyvec_core.embedder import Model, Precision
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import LAYOUT, Provenance
from skyvec_schemas.survey_columns import Survey
from skyvec_schemas.token_columns import FLAGS


def stored_tokens(
    release: HatsRelease, tokens: str | Path
) -> tuple[StoredTokens, Survey, Provenance]:
    """Tokens of a catalog, the survey that names its keys, and what made them.

    Parameters
    ----------
    tokens
        Name of a token extension of the collection, its properties file, or its folder.

    Raises
    ------
    ConfigurationError
        If it is none, is not complete, or is too old to say what status its rows have.
    """
    folder = extension_folder(release.path, str(tokens))
    where = str(folder)
    output = Output(folder)
    made = output.earlier()
    if made is None or made.product != "tokens":
        raise ConfigurationError(
            "is no token extension", where=where, remedy="Run `skyvec tokenize` first"
        )
    stored = HatsRelease.open(folder)
    if made.layout != LAYOUT or FLAGS not in stored.schema.names:
        raise ConfigurationError(
            "is of an older layout, without the reasons of its rows",
            where=where,
            remedy="Run `skyvec tokenize` again under another --name",
        )
    names = [name for name in stored.schema.names if name in MODALITIES]
    inputs = tuple(name for name in names if name not in made.labels)
    matched = tuple(
        name.removesuffix("_arcsec") for name in stored.schema.names if name.endswith("_arcsec")
    )
    info = stored.catalog.catalog_info
    survey = Survey(
        name=made.survey,
        id_column=_id_column(folder, stored),
        ra_column=str(info.ra_column),
        dec_column=str(info.dec_column),
    )
    return StoredTokens(folder=where, keys=inputs, matched=matched), survey, made


def refuse_other_codecs(
    model: Model, made: Provenance, *, where: str, precision: Precision
) -> None:
    """Compare the codecs that made stored tokens with those of a model.

    Raises
    ------
    ConfigurationError
        If one differs: its codes would mean something else.
    """
    theirs = dict(line.split("=", 1) for line in made.codecs)
    differing = sorted(
        key for key, digest in theirs.items()
        if key not in made.labels and model.codec_digests.get(key) != digest
    )  # fmt: skip
    if differing:
        raise ConfigurationError(
            f"tokens of {', '.join(differing)} were made by other codecs than those of model "
            f"{model.name}",
            where=where,
            remedy="Tokenize again with this model, or take a model with the same codecs",
        )
    if made.precision != precision:
        raise ConfigurationError(
            f"tokens were made in {made.precision}, vectors are asked for in {precision}",
            where=where,
            remedy=f"Use --precision {made.precision}, or tokenize again",
        )


def _id_column(folder: Path, stored: HatsRelease) -> str:
    properties = folder.parent / f"{folder.name}.properties"
    if properties.is_file():
        return str(ExtensionProperties.read_from_file(properties).join_column)
    return str(stored.schema.names[1])  # the second key, as the stage writes them

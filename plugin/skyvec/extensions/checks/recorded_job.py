"""The job of an extension, rebuilt from what it recorded, so that its rows can be made anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from skyvec.extensions.checks.subject import KEYS, Subject
from skyvec.models import model_folder, packaged_models
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.joining.join import JoinRule
from skyvec.sources import SourceSpec
from skyvec.stage.job import Job, StoredTokens
from skyvec.stage.stored_tokens import stored_tokens
from skyvec.stage.worker import ModelReference, model_on_worker
from skyvec_core import NUMERICS_VERSION
from skyvec_core.embedder import Model, Precision
from skyvec_schemas.errors import SkyvecError, WeightsError
from skyvec_schemas.survey_columns import SURVEYS, Survey


class NotRecordedError(Exception):
    """Why rows cannot be made anew; one clause for people."""


def recorded_job(subject: Subject, release: HatsRelease) -> Job:
    """What rows were made of and how; its model is yet to be found, by `recorded_model`.

    Raises
    ------
    NotRecordedError
        If too little was recorded, or what it names is not there.
    """
    made = subject.provenance
    tokens: StoredTokens | None = None
    sources: tuple[SourceSpec, ...] = ()
    if subject.job.get("tokens"):
        try:
            tokens, survey, _ = stored_tokens(release, subject.job["tokens"])
        except SkyvecError as problem:
            raise NotRecordedError(f"the stored tokens are not to be had: {problem}") from problem
    else:
        survey = recorded_survey(made.survey, made.inputs)
        sources = _recorded_sources(subject)
    if len(subject.keys) < KEYS:
        raise NotRecordedError("its columns cannot be read")
    _, id_column, ra_column, dec_column = subject.keys
    return Job(
        source=str(release.root),
        output=str(subject.folder),
        survey=replace(survey, id_column=id_column, ra_column=ra_column, dec_column=dec_column),
        model=ModelReference(
            folder="",
            name=made.model,
            digest=made.model_digest,
            precision=_precision(made.precision),
            device=_device(made.device),
        ),
        provenance=made,
        columns=subject.columns,
        batch_rows=128,
        sources=sources,
        tokens=tokens,
    )


def recorded_survey(name: str, inputs: Sequence[str]) -> Survey:
    """The survey whose columns are listed as ``column=token_key``, without labels.

    Raises
    ------
    NotRecordedError
        If no survey that skyvec knows has these inputs.
    """
    base = SURVEYS.get(name)
    if base is None:
        raise NotRecordedError(f"survey {name!r} is not one that skyvec knows")
    pairs = [tuple(told.rpartition("=")[::2]) for told in inputs]
    column_of = {key: column for column, key in pairs}
    image, spectrum, coefficients = base.image, base.spectrum, base.coefficients
    survey = replace(
        base,
        image=replace(image, name=column_of[image.token_key])
        if image and image.token_key in column_of
        else None,
        spectrum=replace(spectrum, name=column_of[spectrum.token_key])
        if spectrum and spectrum.token_key in column_of
        else None,
        coefficients=replace(coefficients, name=column_of[coefficients.token_keys[0]])
        if coefficients and coefficients.token_keys[0] in column_of
        else None,
        scalars=tuple(s for s in base.scalars if s.token_key in column_of),
        labels={},
    )
    if list(survey.inputs) != pairs:
        raise NotRecordedError(f"its inputs are not those of survey {name!r}")
    return survey


def recorded_model(subject: Subject, job: Job, model: str | None) -> tuple[Job, Model]:
    """The job with its model, which is loaded and has the recorded digest.

    Parameters
    ----------
    model
        Where it lies now; by default where it lay, or the package.

    Raises
    ------
    NotRecordedError
        If it is not there, or the numbers of this version of skyvec are others.
    WeightsError
        If ``model`` was named and is another one.
    """
    made = subject.provenance
    if made.numerics_version != NUMERICS_VERSION:
        raise NotRecordedError(
            f"numbers of skyvec {made.skyvec_version} differ from those of this one; verify with "
            "that version"
        )
    places = [subject.job.get("model"), packaged_models().get(made.model)]
    if model is not None:
        places = [model_folder(model).resolve()]
    for place in filter(None, places):
        reference = replace(job.model, folder=str(place))
        try:
            return replace(job, model=reference), model_on_worker(reference)
        except (WeightsError, OSError, ValueError):
            continue
    if model is not None:
        raise WeightsError(
            f"is not the model of the extension, whose digest is {made.model_digest[:12]}",
            where=model,
            remedy=f"Name the folder of {made.model}",
        )
    raise NotRecordedError(
        f"model {made.model} ({made.model_digest[:12]}) is not here; name its folder with --model"
    )


def _recorded_sources(subject: Subject) -> tuple[SourceSpec, ...]:
    told = subject.job.get("sources") or []
    try:
        sources = tuple(_source(each) for each in told)
    except (KeyError, TypeError, ValueError) as problem:
        raise NotRecordedError("how its sources are opened is not recorded") from problem
    if tuple(source.describe() for source in sources) != subject.provenance.sources:
        raise NotRecordedError("how its sources are opened is not recorded")
    return sources


def _source(told: Mapping[str, Any]) -> SourceSpec:
    return SourceSpec(
        name=told["name"],
        path=told["path"],
        survey=recorded_survey(told["survey"], told["inputs"]),
        format=told["format"],
        rule=JoinRule(**told["rule"]),
        columns=tuple(told["columns"].items()),
        files=told["files"],
    )


def _precision(told: str) -> Precision:
    return "bfloat16" if told == "bfloat16" else "float32"


def _device(kind: str) -> str:
    import torch

    return "cuda" if kind == "cuda" and torch.cuda.is_available() else "cpu"

"""What a run will do: catalog, sources, model and output checked against each other beforehand."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skyvec.extensions.quarantine_catalog import quarantine_folder
from skyvec.extensions.vector_catalog import extension_folder
from skyvec.models import DEFAULT, load_model, require_pin
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import is_remote, located, resolved
from skyvec.sources import SourceSpec, settled
from skyvec.stage.earlier import EarlierExtension
from skyvec.stage.job import Job
from skyvec.stage.output import READERS, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.quarantine import finished_and_whole
from skyvec.stage.selection import Selection
from skyvec.stage.stored_tokens import refuse_other_codecs, stored_tokens
from skyvec.stage.worker import model_reference
from skyvec.surveys import named_survey
from skyvec.version import __version__
from skyvec_core import NUMERICS_VERSION
from skyvec_core.embedder import Model, Precision
from skyvec_schemas.embedding_columns import EmbeddingColumns, VectorType
from skyvec_schemas.errors import ConfigurationError, OutputExistsError
from skyvec_schemas.provenance import LAYOUT, Provenance, pixel_fingerprint
from skyvec_schemas.survey_columns import LEGACY_SURVEY, SURVEYS, Survey

if TYPE_CHECKING:
    from hats.pixel_math.healpix_pixel import HealpixPixel

Product = Literal["embedding", "tokens"]
EVERYTHING = Selection()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided and checked before any worker starts."""

    job: Job
    release: HatsRelease
    name: str
    pixels: tuple[HealpixPixel, ...]
    """Those chosen, in the catalog's order."""
    todo: tuple[HealpixPixel, ...]
    done: tuple[QuantumRecord, ...]
    """Pixels that an earlier run finished with the same fingerprint."""
    selection: Selection = EVERYTHING

    @property
    def rows(self) -> int:
        """Rows of the chosen pixels."""
        if self.selection.everything:
            return int(self.release.catalog.catalog_info.total_rows or 0)
        return self.release.rows(self.pixels)


def plan(
    catalog: str | Path,
    *,
    name: str | None = None,
    model: str | Path = DEFAULT,
    survey: str | Survey = LEGACY_SURVEY,
    out: str | Path | None = None,
    product: Product = "embedding",
    dtype: VectorType = "float16",
    precision: Precision = "float32",
    device: str = "cpu",
    batch_rows: int = 128,
    sources: Sequence[SourceSpec] = (),
    tokens: str | Path | None = None,
    reuse: str | Path | None = None,
    selection: Selection = EVERYTHING,
) -> Plan:
    """Check catalog, sources, model and output against each other; computes nothing.

    For the parameters see `skyvec.stage.run.run`.
    """
    release = HatsRelease.open(catalog)
    if tokens is not None:
        if named_survey(survey) != LEGACY_SURVEY:
            raise ConfigurationError(
                "another survey, other columns or fewer of them do not go with tokens, which were "
                "made of inputs of their own",
                where=f"--tokens {tokens}",
                remedy="Leave out --survey, --without and names of columns, or leave out --tokens",
            )
        return _plan_from_tokens(
            release, tokens, name=name, model=model, out=out, product=product, dtype=dtype,
            precision=precision, device=device, batch_rows=batch_rows, sources=sources,
            reuse=reuse, selection=selection,
        )  # fmt: skip
    survey = placed(named_survey(survey), release)
    release.check(survey)
    labels = {c: key for c, key in survey.labels.items() if c in release.schema.names}
    survey = replace(survey, labels=labels if product == "tokens" else {})
    loaded = load_model(model, device=device, precision=precision)
    require_pin(model, loaded)
    sources = tuple(settled(spec, release, survey) for spec in sources)
    _refuse_unknown_inputs(loaded, survey, sources)
    name = name or default_name(loaded.name, product)
    output = _output_folder(release, out, name)
    job = Job(
        source=str(release.root),
        output=str(output),
        survey=survey,
        model=model_reference(loaded, model_path(model)),
        provenance=_provenance(loaded, survey, sources, product=product, dtype=dtype),
        columns=EmbeddingColumns(name=name, dim=loaded.dim, dtype=dtype)
        if product == "embedding"
        else None,
        batch_rows=batch_rows,
        sources=sources,
        earlier=_earlier(release, reuse),
        run_id=uuid.uuid4().hex[:12],
    )
    return _planned(job, release, name, selection)


def _plan_from_tokens(
    release: HatsRelease,
    tokens: str | Path,
    *,
    name: str | None,
    model: str | Path,
    out: str | Path | None,
    product: Product,
    dtype: VectorType,
    precision: Precision,
    device: str,
    batch_rows: int,
    sources: Sequence[SourceSpec],
    reuse: str | Path | None,
    selection: Selection,
) -> Plan:
    if product == "tokens" or sources:
        raise ConfigurationError(
            "tokens are read instead of pixels, spectra and sources",
            where=f"--tokens {tokens}",
            remedy="Leave out --source, or leave out --tokens",
        )
    stored, survey, made = stored_tokens(release, tokens)
    loaded = load_model(model, device=device, precision=precision)
    require_pin(model, loaded)
    refuse_other_codecs(loaded, made, where=stored.folder, precision=precision)
    name = name or default_name(loaded.name, product)
    provenance = replace(
        _provenance(loaded, survey, (), product=product, dtype=dtype),
        survey=made.survey,
        inputs=made.inputs,
        sources=(*made.sources, f"tokens {Path(stored.folder).name} {made.fingerprint()}"),
        codecs=tuple(line for line in made.codecs if line.partition("=")[0] in stored.keys),
    )
    job = Job(
        source=str(release.root),
        output=str(_output_folder(release, out, name)),
        survey=survey,
        model=model_reference(loaded, model_path(model)),
        provenance=provenance,
        columns=EmbeddingColumns(name=name, dim=loaded.dim, dtype=dtype),
        batch_rows=batch_rows,
        tokens=stored,
        earlier=_earlier(release, reuse),
        run_id=uuid.uuid4().hex[:12],
    )
    return _planned(job, release, name, selection)


def _planned(job: Job, release: HatsRelease, name: str, selection: Selection) -> Plan:
    pixels = selection.choose(release)
    todo, done = _compare_with_earlier(job, release, pixels)
    return Plan(
        job=job, release=release, name=name, pixels=tuple(pixels), todo=todo, done=done,
        selection=selection,
    )  # fmt: skip


def _earlier(release: HatsRelease, reuse: str | Path | None) -> str:
    """Folder of the catalog of an extension, by its name in the collection, properties or folder."""
    if reuse is None:
        return ""
    folder = extension_folder(release.path, str(reuse))
    return EarlierExtension(str(folder)).output.root.as_posix()


def placed(survey: Survey, release: HatsRelease) -> Survey:
    """The survey with the position columns that the catalog declares, where its own are absent."""
    info, found = release.catalog.catalog_info, set(release.schema.names)
    if {survey.ra_column, survey.dec_column} <= found or not {
        info.ra_column, info.dec_column
    } <= found:  # fmt: skip
        return survey
    return replace(survey, ra_column=str(info.ra_column), dec_column=str(info.dec_column))


def model_path(model: str | Path) -> Path:
    """Folder that the workers load; resolved, since their working directory may differ."""
    from skyvec.models import model_folder

    return model_folder(model).resolve()


def default_name(model: str, product: Product) -> str:
    """``skyvec_tiny_v1`` or ``skyvec_tiny_tokens``: usable as a column name."""
    base = "".join(c if c.isalnum() else "_" for c in model)
    return f"{base}_v1" if product == "embedding" else f"{base}_tokens"


def _provenance(
    model: Model,
    survey: Survey,
    sources: Sequence[SourceSpec],
    *,
    product: Product,
    dtype: VectorType,
) -> Provenance:
    return Provenance(
        product=product,
        model=model.name,
        model_digest=model.digest,
        precision=model.precision,
        device=model.device.type,
        numerics_version=NUMERICS_VERSION,
        vector_type=dtype if product == "embedding" else "int16",
        survey=survey_identity(survey),
        inputs=tuple(f"{c}={key}" for c, key in survey.inputs),
        labels=_label_keys(survey, sources) if product == "tokens" else (),
        sources=tuple(spec.describe() for spec in sources),
        codecs=_codec_lines(model, survey, sources),
        layout=LAYOUT,
        skyvec_version=__version__,
    )


def survey_identity(survey: Survey) -> str:
    """A survey's name; with a digest where bands, scale, zero point or masks are not the known ones."""
    known = SURVEYS.get(survey.name)
    arrays = [(survey.image, survey.spectrum, survey.coefficients)]
    arrays += [(known.image, known.spectrum, known.coefficients)] if known else []
    ours, *theirs = [[part for part in parts if part] for parts in arrays]
    # What is left out, or called otherwise, the inputs say.
    same = theirs and all(
        any(
            replace(part, name=other.name) == other
            for other in theirs[0]
            if type(other) is type(part)
        )
        for part in ours
    )
    if same or not ours:
        return survey.name
    digest = hashlib.sha256(repr([replace(part, name="") for part in ours]).encode()).hexdigest()
    return f"{survey.name}#{digest[:12]}"


def _label_keys(survey: Survey, sources: Sequence[SourceSpec]) -> tuple[str, ...]:
    every = (survey, *(spec.survey for spec in sources))
    return tuple(dict.fromkeys(key for each in every for key in each.labels.values()))


def _codec_lines(model: Model, survey: Survey, sources: Sequence[SourceSpec]) -> tuple[str, ...]:
    every = (survey, *(spec.survey for spec in sources))
    keys = {key for each in every for _, key in each.inputs} | set(_label_keys(survey, sources))
    digests = model.codec_digests
    return tuple(f"{key}={digests[key]}" for key in sorted(keys) if key in digests)


def _refuse_unknown_inputs(model: Model, survey: Survey, sources: Sequence[SourceSpec]) -> None:
    pairs = (*survey.inputs, *survey.labels.items())
    unknown = [column for column, key in pairs if key not in model.codecs]
    if unknown:
        raise ConfigurationError(
            f"has no codec for {', '.join(unknown)}",
            where=f"model {model.name}",
            remedy=f"Embed without them by --without {','.join(unknown)}, or take another model",
        )
    fed_by = {key: "the catalog" for _, key in survey.inputs}
    for spec in sources:
        unknown = [column for column, key in spec.survey.inputs if key not in model.codecs]
        if unknown:
            raise ConfigurationError(
                f"has no codec for {', '.join(unknown)} of source {spec.name}",
                where=f"model {model.name}",
                remedy=f"Write without = {unknown} for this source in a sources file, or take "
                "another model",
            )
        for column, key in spec.survey.inputs:
            if key in fed_by:
                raise ConfigurationError(
                    f"{column!r} feeds {key}, which {fed_by[key]} feeds already",
                    where=f"source {spec.name}",
                    remedy="Leave the column out of one of them (--without, or without = [...])",
                )
            fed_by[key] = f"source {spec.name}"
    if not fed_by:
        raise ConfigurationError(
            "no input is left",
            where=f"survey {survey.name}",
            remedy="Leave out fewer columns, or add a --source",
        )


def _output_folder(release: HatsRelease, out: str | Path | None, name: str) -> Path:
    if not name.isidentifier() or name in {"collection", "hats", "properties"}:
        raise ConfigurationError(
            "not usable as a column name", where=f"--name {name}", remedy="Use letters, digits, _"
        )
    if out is None and release.collection is None:
        raise ConfigurationError(
            "a catalog without a collection cannot hold an extension",
            where=str(release.path),
            remedy="Give --out FOLDER, or the folder of the collection",
        )
    if out is None and is_remote(release.path):
        raise ConfigurationError(
            "a remote collection is only read", where=str(release.path), remedy="Give --out FOLDER"
        )
    if out is not None and "://" in str(out) and set("*?[") & set(str(out)):
        raise ConfigurationError(
            "object stores take *, ? and [ for patterns",
            where=f"--out {out}",
            remedy="Choose a prefix without them",
        )
    home = located(out) if out is not None else release.path
    output = Output(home / name)
    folder = resolved(output.root)
    if str(folder) == str(resolved(release.root)) or output.is_foreign():
        raise OutputExistsError(
            "exists and was not made by skyvec",
            where=str(folder),
            remedy="Choose another --name or --out",
        )
    quarantine_folder(Output(folder))
    return folder


def _compare_with_earlier(
    job: Job, release: HatsRelease, pixels: Sequence[HealpixPixel]
) -> tuple[tuple[HealpixPixel, ...], tuple[QuantumRecord, ...]]:
    """Split the pixels into those to do and those done with the same fingerprint."""
    output = Output(job.output).listed()
    run_fingerprint = job.provenance.fingerprint()
    _refuse_another_run(job, output)
    records = output.records()

    def finished(pixel: HealpixPixel) -> QuantumRecord | None:
        earlier = records.get((pixel.order, pixel.pixel))
        if earlier is None or not earlier.finished:
            return None
        if earlier.fingerprint != pixel_fingerprint(run_fingerprint, job.identity(release, pixel)):
            raise OutputExistsError(
                f"pixel Norder={pixel.order} Npix={pixel.pixel} was made from other input data",
                where=job.output,
                remedy="One extension never mixes two inputs: choose another --name (with --reuse "
                f"{Path(job.output).name} only changed rows are computed), or `skyvec drop` this one",
            )
        return earlier if finished_and_whole(output, earlier) else None

    # Three files are opened for each finished pixel, and on a shared file system each waits.
    with ThreadPoolExecutor(1 if job.sources else READERS) as readers:
        found = list(readers.map(finished, pixels))
    todo = tuple(pixel for pixel, record in zip(pixels, found, strict=True) if record is None)
    return todo, tuple(record for record in found if record is not None)


def _refuse_another_run(job: Job, output: Output) -> None:
    earlier = output.earlier()
    if earlier is None or earlier.fingerprint() == job.provenance.fingerprint():
        return
    raise OutputExistsError(
        f"holds {earlier.product} of {earlier.model}, made otherwise: "
        + ", ".join(earlier.differences(job.provenance)),
        where=job.output,
        remedy="One extension never mixes two models or settings: choose another --name, or "
        "`skyvec drop` this one",
    )

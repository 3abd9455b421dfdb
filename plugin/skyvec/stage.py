"""The stage: a HATS catalog in, an extension out, one quantum of work per HATS pixel on Dask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skyvec.cluster import dask_client
from skyvec.extension import publish
from skyvec.models import DEFAULT, load_model
from skyvec.quantum import Job, QuantumRecord, output_is_whole, record_path, run_quantum
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import is_remote, resolved
from skyvec.run_record import RUN_FILE, RunRecord
from skyvec.sources import SourceSpec, settled
from skyvec.surveys import named_survey
from skyvec.version import __version__
from skyvec.worker import ModelReference
from skyvec_core import NUMERICS_VERSION
from skyvec_core.embedder import Model, Precision
from skyvec_schemas.embedding_columns import EmbeddingColumns, VectorType
from skyvec_schemas.errors import ConfigurationError, OutputExistsError
from skyvec_schemas.provenance import Provenance, pixel_fingerprint
from skyvec_schemas.survey_columns import LEGACY_SURVEY, Survey

if TYPE_CHECKING:
    from distributed import Client
    from hats.pixel_math.healpix_pixel import HealpixPixel

Product = Literal["embedding", "tokens"]
Progress = Callable[[QuantumRecord], None]

RETRIES = 2
"""A pixel whose worker died or whose disk failed is tried this often again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided and checked before any worker starts."""

    job: Job
    release: HatsRelease
    name: str
    todo: tuple[HealpixPixel, ...]
    done: tuple[QuantumRecord, ...]
    """Pixels that an earlier run finished with the same fingerprint."""

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return int(self.release.catalog.catalog_info.total_rows or 0)


def run(
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
    client: Client | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Embed a catalog and publish the vectors as a HATS extension.

    Parameters
    ----------
    catalog
        Folder of a HATS collection, or of a catalog (then ``out`` is needed).
    name
        Of the extension and its vector column; ``<model>_v1`` by default.
    model
        ``skyvec-tiny``, a model folder, or ``hf://owner/name@revision``.
    survey
        Which columns feed which modality.
    out
        Folder that receives the extension; the collection itself by default.
    product
        ``embedding``, or ``tokens`` for a token extension.
    dtype
        Type of the stored vectors.
    precision
        Arithmetic of the encoder.
    device
        Torch device of every worker.
    batch_rows
        Rows in memory at a time.
    sources
        Where more pixels, spectra and measurements lie, to be joined by id or position; see
        `skyvec.sources.declared_sources`.
    client
        Any Dask client; by default a cluster on this machine.
    workers
        Processes of that cluster; 0 runs in this process.
    progress
        Called with the record of each pixel that ends.

    Raises
    ------
    ConfigurationError, MissingColumnError, BandError, OutputExistsError
        Before any work starts.
    """
    return run_plan(
        plan(
            catalog, name=name, model=model, survey=survey, out=out, product=product, dtype=dtype,
            precision=precision, device=device, batch_rows=batch_rows, sources=sources,
        ),
        client=client, workers=workers, progress=progress,
    )  # fmt: skip


def run_plan(
    prepared: Plan,
    *,
    client: Client | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Do what a plan says; see `run`."""
    started = time.monotonic()
    _claim(prepared.job)
    fresh = list(_execute(prepared, client=client, workers=workers, progress=progress))
    order = {(p.order, p.pixel): i for i, p in enumerate(prepared.release.pixels)}
    quanta = tuple(sorted([*prepared.done, *fresh], key=lambda record: order[record.key]))
    problems = tuple(
        f"Norder={q.order} Npix={q.pixel}: {q.error}"
        for q in quanta
        if q.outcome not in {"done", "empty"}
    )
    job = prepared.job
    properties: Path | None = Path(job.output).parent / f"{prepared.name}.properties"
    if problems:
        properties = None
    elif fresh or not Path(str(properties)).is_file():
        properties = publish(job, prepared.release, quanta, name=prepared.name)
    record = RunRecord(
        name=prepared.name, source=prepared.release.path, output=Path(job.output), properties=properties,
        provenance=job.provenance, quanta=quanta, skipped=len(prepared.done),
        seconds=time.monotonic() - started, problems=problems,
    )  # fmt: skip
    record.save()
    return record


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
) -> Plan:
    """Check catalog, sources, model and output against each other; computes nothing."""
    release = HatsRelease.open(catalog)
    survey = placed(named_survey(survey), release)
    release.check(survey)
    labels = {c: key for c, key in survey.labels.items() if c in release.schema.names}
    survey = replace(survey, labels=labels if product == "tokens" else {})
    loaded = load_model(model, device=device, precision=precision)
    sources = tuple(settled(spec, release, survey) for spec in sources)
    _refuse_unknown_inputs(loaded, survey, sources)
    name = name or default_name(loaded.name, product)
    output = _output_folder(release, out, name)
    job = Job(
        source=str(release.root),
        output=str(output),
        survey=survey,
        model=ModelReference(
            folder=str(model_path(model)), name=loaded.name, digest=loaded.digest,
            precision=precision, device=device,
        ),
        provenance=_provenance(loaded, survey, sources, product=product, dtype=dtype),
        columns=EmbeddingColumns(name=name, dim=loaded.dim, dtype=dtype)
        if product == "embedding"
        else None,
        batch_rows=batch_rows,
        sources=sources,
    )  # fmt: skip
    todo, done = _compare_with_earlier(job, release)
    return Plan(job=job, release=release, name=name, todo=todo, done=done)


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
        survey=survey.name,
        inputs=tuple(f"{c}={key}" for c, key in (*survey.inputs, *survey.labels.items())),
        sources=tuple(spec.describe() for spec in sources),
        skyvec_version=__version__,
    )


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
    if not name.isidentifier():
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
    home = Path(out) if out is not None else release.path
    output = home / name
    if output.resolve() == resolved(release.root) or (
        output.exists() and not (output / "skyvec").is_dir()
    ):
        raise OutputExistsError(
            "exists and was not made by skyvec",
            where=str(output),
            remedy="Choose another --name or --out",
        )
    return output.resolve()


def _compare_with_earlier(
    job: Job, release: HatsRelease
) -> tuple[tuple[HealpixPixel, ...], tuple[QuantumRecord, ...]]:
    """Split the pixels into those to do and those done with the same fingerprint."""
    todo, done = [], []
    run_fingerprint = job.provenance.fingerprint()
    _refuse_another_run(job)
    for pixel in release.pixels:
        place = record_path(Path(job.output), pixel.order, pixel.pixel)
        earlier = QuantumRecord.load(place) if place.is_file() else None
        if earlier is None or earlier.outcome not in {"done", "empty"}:
            todo.append(pixel)
        elif earlier.fingerprint != pixel_fingerprint(
            run_fingerprint, job.identity(release, pixel)
        ):
            raise OutputExistsError(
                f"pixel Norder={pixel.order} Npix={pixel.pixel} was made from other input data",
                where=job.output,
                remedy="One extension never mixes two inputs: choose another --name, or delete this "
                "folder",
            )
        elif not output_is_whole(Path(job.output), earlier):
            todo.append(pixel)
        else:
            done.append(earlier)
    return tuple(todo), tuple(done)


def _refuse_another_run(job: Job) -> None:
    place = Path(job.output) / RUN_FILE
    if not place.is_file():
        return
    earlier = Provenance.from_json(place.read_text())
    if earlier.fingerprint() != job.provenance.fingerprint():
        raise OutputExistsError(
            f"holds {earlier.product} of {earlier.model}, made with another "
            + ", ".join(earlier.differences(job.provenance)),
            where=job.output,
            remedy="One extension never mixes two models or settings: choose another --name, or "
            "delete this folder",
        )


def _claim(job: Job) -> None:
    """Say whose output this is before the first pixel is written, so that no two runs mix."""
    place = Path(job.output) / RUN_FILE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(job.provenance.to_json())


def _execute(
    prepared: Plan, *, client: Client | None, workers: int | None, progress: Progress | None
) -> Iterator[QuantumRecord]:
    if not prepared.todo:
        return
    if client is None and workers == 0:
        records = _in_this_process(prepared)
    else:
        records = _on_dask(prepared, client, workers)
    for record in records:
        if progress:
            progress(record)
        yield record


def _in_this_process(prepared: Plan) -> Iterator[QuantumRecord]:
    for pixel in prepared.todo:
        try:
            yield run_quantum(prepared.job, pixel.order, pixel.pixel)
        except Exception as problem:  # noqa: BLE001 - one pixel never stops a run; it is reported
            yield _lost(pixel, problem, tries=1)


def _on_dask(prepared: Plan, client: Client | None, workers: int | None) -> Iterator[QuantumRecord]:
    from distributed import as_completed

    with dask_client(client, workers) as connected:
        futures = {
            connected.submit(
                run_quantum, prepared.job, pixel.order, pixel.pixel, pure=False, retries=RETRIES
            ): pixel
            for pixel in prepared.todo
        }
        for future in as_completed(list(futures)):
            if future.status == "finished":
                yield future.result()
            else:
                yield _lost(futures[future], future.exception(), tries=RETRIES + 1)


def _lost(pixel: HealpixPixel, problem: BaseException, *, tries: int) -> QuantumRecord:
    what = str(problem).strip().splitlines()
    return QuantumRecord(
        order=pixel.order,
        pixel=pixel.pixel,
        outcome="lost",
        error=f"{type(problem).__name__}: {what[0] if what else ''} "
        f"(tried {tries} times; run the same command again)",
    )


__all__: Sequence[str] = ("Plan", "plan", "run", "run_plan")

"""``skyvec.run``: a HATS catalog in, a verified extension out, unattended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from skyvec.extensions.publish import is_published, properties_file, publish
from skyvec.extensions.quarantine_catalog import publish_quarantine, quarantine_is_published
from skyvec.models import DEFAULT
from skyvec.sources import SourceSpec
from skyvec.stage.cluster import dask_client
from skyvec.stage.driver import Patience, drive
from skyvec.stage.monitor import Monitor, RunFacts
from skyvec.stage.output import Output
from skyvec.stage.plan import Plan, Product, plan
from skyvec.stage.pools import InThisProcess, OnDask, Pool
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.run_record import INTERRUPTED, RunRecord
from skyvec.stage.selection import Selection
from skyvec_core.embedder import Precision
from skyvec_schemas.embedding_columns import VectorType
from skyvec_schemas.errors import SkyvecError
from skyvec_schemas.survey_columns import LEGACY_SURVEY, Survey

if TYPE_CHECKING:
    from distributed import Client

MAX_BAD = 0.1
"""Share of bad rows above which an extension is not published: not some objects, the data are bad."""


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
    tokens: str | Path | None = None,
    reuse: str | Path | None = None,
    selection: Selection | None = None,
    client: Client | None = None,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    max_bad: float = MAX_BAD,
    strict: bool = False,
    patience: Patience | None = None,
    monitor: Monitor | None = None,
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
        Folder or URI that receives the extension; the collection itself by default.
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
    tokens
        A token extension of this catalog (name, properties or folder) to embed from; neither
        pixels nor spectra are read.
    reuse
        An earlier extension (name, properties or folder), e.g. of the release before: pixels with
        the same input are taken over, and vectors of rows with the same id and tokens.
    selection
        Which HATS pixels; all by default.
    client
        Any Dask client; by default a cluster on this machine.
    workers
        Processes of that cluster, by default one for each core, or for each pixel if these are
        fewer; 0 runs in this process.
    resources
        What a task needs of a Dask worker, e.g. ``{"GPU": 1}``.
    max_bad
        Largest share of rows with bad data for which the extension is still published.
    strict
        End with 10 instead of 0 where any object was quarantined.
    patience
        How often and after which pauses a pixel is tried again.
    monitor
        Hears how the run goes.

    Raises
    ------
    ConfigurationError, MissingColumnError, BandError, OutputExistsError
        Before any work starts.
    InfrastructureError
        If the cluster or the disk fails for good; what is done stays.
    """
    prepared = plan(
        catalog, name=name, model=model, survey=survey, out=out, product=product, dtype=dtype,
        precision=precision, device=device, batch_rows=batch_rows, sources=sources, tokens=tokens,
        reuse=reuse, selection=selection or Selection(),
    )  # fmt: skip
    return run_plan(
        prepared, client=client, workers=workers, resources=resources, max_bad=max_bad,
        strict=strict, patience=patience, monitor=monitor,
    )  # fmt: skip


def run_plan(
    prepared: Plan,
    *,
    client: Client | None = None,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    max_bad: float = MAX_BAD,
    strict: bool = False,
    patience: Patience | None = None,
    monitor: Monitor | None = None,
) -> RunRecord:
    """Do what a plan says; see `run`.

    However it ends, by Ctrl-C, SIGTERM or an error too, a manifest says what is done and what not.
    """
    started = time.monotonic()
    monitor = monitor or Monitor()
    output = Output(prepared.job.output)
    output.claim(prepared.job.provenance, prepared.job.describe())
    if prepared.todo:
        output.reopen()
    monitor.begin(_facts(prepared))
    fresh: list[QuantumRecord] = []
    stopped = INTERRUPTED
    try:
        with _terminated_as_interrupted():
            for record in _work(prepared, client, workers, resources, patience, monitor):
                fresh.append(record)  # noqa: PERF402 - what came before an interrupt counts
        stopped = ""
    except SkyvecError as problem:
        stopped = str(problem)
        raise
    finally:
        outcome = _settle(
            prepared,
            output,
            fresh,
            stopped=stopped,
            started=started,
            max_bad=max_bad,
            strict=strict,
        )
        monitor.end(outcome)
    return outcome


def _facts(prepared: Plan) -> RunFacts:
    job = prepared.job
    return RunFacts(
        run_id=job.run_id, name=prepared.name, output=job.output, rows=prepared.rows,
        pixels=len(prepared.pixels), rows_done=sum(r.rows for r in prepared.done),
        pixels_done=len(prepared.done), device=job.model.device,
    )  # fmt: skip


def _work(
    prepared: Plan,
    client: Client | None,
    workers: int | None,
    resources: Mapping[str, float] | None,
    patience: Patience | None,
    monitor: Monitor,
) -> Iterator[QuantumRecord]:
    if not prepared.todo:
        return
    here = client is None and workers == 0
    tasks = len(prepared.todo)
    with nullcontext() if here else dask_client(client, workers, tasks=tasks) as connected:
        pool: Pool
        if connected is None:
            pool = InThisProcess(prepared.job, prepared.release)
        else:
            pool = OnDask(prepared.job, connected, resources)
        try:
            yield from drive(prepared, pool, monitor, patience or Patience())
        except KeyboardInterrupt:
            monitor.stopping()  # a cluster takes seconds to close
            raise
        finally:
            pool.close()


def _settle(
    prepared: Plan,
    output: Output,
    fresh: Sequence[QuantumRecord],
    *,
    stopped: str,
    started: float,
    max_bad: float,
    strict: bool,
) -> RunRecord:
    """Write down how it stands, and publish what is complete."""
    with output.alone():
        job, release, name = prepared.job, prepared.release, prepared.name
        known = output.records(fresh)
        chosen = dict.fromkeys((pixel.order, pixel.pixel) for pixel in prepared.pixels)
        record = RunRecord(
            name=name, source=release.path, output=output.root, properties=None,
            provenance=job.provenance, quanta=tuple(known[key] for key in chosen if key in known),
            others=tuple(known[key] for key in sorted(known) if key not in chosen),
            pixels=len(chosen), input_rows=prepared.rows, selection=prepared.selection.describe(),
            skipped=len(prepared.done), max_bad=max_bad, strict=strict, stopped=stopped,
            seconds=time.monotonic() - started,
        )  # fmt: skip
        output.gather(known.values())
        # What an earlier, other selection finished belongs to the extension as well.
        every = [known[key] for key in sorted(known) if known[key].finished]
        if record.publishable:
            output.clear_staging()
            if is_published(job, release, every, name=name) and quarantine_is_published(
                output, every
            ):
                record = record.published(properties_file(output, name))
        record.save(output)
        if record.properties or (stopped and not record.publishable):
            return record
        # Where too much is bad to publish, the list is needed most.
        publish_quarantine(
            output, every, release=release, survey=job.survey, provenance=job.provenance,
            retry=_retry(prepared),
        )  # fmt: skip
        if record.publishable:
            record = record.published(publish(job, release, every, name=name))
            record.save(output)
        return record


def _retry(prepared: Plan) -> str:
    """What to do about quarantined objects, in one line."""
    command = "embed" if prepared.job.columns else "tokenize"
    return (
        f"mend them in their files, then run `skyvec {command} {prepared.release.path} "
        f"--name NEW_NAME --reuse {prepared.name}`, which computes only what changed"
    )


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__: Sequence[str] = ("MAX_BAD", "run", "run_plan")

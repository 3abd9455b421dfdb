"""Looking at the result as a user would: through LSDB, with cutouts and neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skyvec.demo.facts import CatalogFacts, Check, Cutout
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.column_map import IMAGE_PARTS, ColumnMap
from skyvec.releases.hats.columns import read_images
from skyvec.search import example, search
from skyvec.stage.quantum_record import OVERLAPPED, STEPS
from skyvec.stage.run_record import RunRecord
from skyvec_schemas.quality_flags import Status
from skyvec_schemas.survey_columns import LEGACY_IMAGE, LEGACY_SURVEY

GALLERY = 12
ID = LEGACY_SURVEY.id_column
PICTURED = replace(LEGACY_SURVEY, scalars=())
"""What of a survey is shown: its cutouts."""


def catalog_facts(record: RunRecord, *, kind: str, description: str) -> CatalogFacts:
    """Open the extension with LSDB, compare it with the catalog, and pick some objects to show."""
    columns = [ID, "ra", "dec"]
    before = lsdb.open_catalog(record.source, columns=columns)
    before_frame = before.compute(progress_bar=False)
    with warnings.catch_warnings():
        # A join on ids of the same partitions needs no margin.
        warnings.filterwarnings("ignore", message="Right catalog does not have a margin cache")
        after = lsdb.open_catalog(record.source, columns=columns).load_extension(record.name)
    after_frame = after.compute(progress_bar=False)
    release = HatsRelease.open(record.source)
    chosen = _spread(before_frame[ID].to_list(), GALLERY)
    return CatalogFacts(
        name=release.name, kind=kind, description=description, extension=record.name,
        rows=record.rows, failed_rows=record.failed_rows, partial_rows=record.partial_rows,
        flags=record.flags, pixels=[(p.order, p.pixel) for p in release.pixels],
        ra=before_frame["ra"].to_numpy(dtype=np.float64),
        dec=before_frame["dec"].to_numpy(dtype=np.float64),
        checks=_checks(before_frame, after_frame, record),
        seconds=_work_seconds(record),
        step_seconds={s: _spent(record, s) for s in STEPS if s != OVERLAPPED},
        gallery=cutouts(release, chosen),
        open_command=f'lsdb.open_catalog("{record.source.name}")'
        f'.load_extension("{record.name}")',
    )  # fmt: skip


def _spent(record: RunRecord, step: str) -> float:
    return sum(quantum.seconds.get(step, 0.0) for quantum in record.quanta)


def _work_seconds(record: RunRecord) -> float:
    """Wall time of the run; of the earlier one, by its records, where this one only skipped."""
    if record.skipped < len(record.quanta):
        return record.seconds
    hosts = max(1, len({quantum.host for quantum in record.quanta}))
    return sum(_spent(record, step) for step in STEPS if step != OVERLAPPED) / hosts


def _checks(before: pd.DataFrame, after: pd.DataFrame, record: RunRecord) -> list[Check]:
    name = record.name
    failed = after[f"{name}_status"] == str(Status.FAILED)
    dtype = after[ID].dtype
    return [
        Check(what="row count equals the catalog's", passed=len(before) == len(after),
              detail=f"{len(before):,} in, {len(after):,} out"),
        Check(what="ids equal, in the same order",
              passed=before[ID].to_list() == after[ID].to_list(),
              detail=f"{after[ID].nunique():,} distinct ids compared one by one"),
        Check(what="id type unchanged", passed=before[ID].dtype == dtype, detail=str(dtype)),
        Check(what="spatial index equal, in the same order",
              passed=before.index.equals(after.index), detail=str(after.index.name)),
        Check(what="a vector exactly where the status says so",
              passed=bool((after[name].isna() == failed).all()),
              detail=f"{int(after[name].isna().sum())} null vectors, {int(failed.sum())} failed"),
        Check(what="every pixel verified before it was published",
              passed=all(q.outcome in {"done", "empty"} for q in record.quanta),
              detail=f"{len(record.quanta)} pixels"),
    ]  # fmt: skip


def query_cutout(record: RunRecord) -> Cutout:
    """A bright, extended real galaxy with a redshift: one that the eye can judge."""
    columns = [ID, "FLUX_R", "Z", "TYPE"]
    frame = lsdb.open_catalog(record.source, columns=columns).compute(progress_bar=False)
    extended = frame[(frame["TYPE"] != "PSF") & frame["Z"].notna()]
    magnitude = 22.5 - 2.5 * np.log10(extended["FLUX_R"].to_numpy(dtype=np.float64))
    typical = extended.iloc[int(np.argmin(np.abs(magnitude - 17.0)))]
    return cutouts(HatsRelease.open(record.source), [typical[ID]])[0]


def neighbours(among: RunRecord, of: RunRecord, object_id: str, *, k: int) -> list[Cutout]:
    """The ``k`` objects of one catalog nearest to an object of the same or another catalog."""
    if among is of:
        found = search(among.source, like=object_id, k=k, extension=among.name)
    else:
        query = example(of.source, object_id, extension=of.name)
        found = search(among.source, vector=query, k=k, extension=among.name)
    distances = dict(
        zip(*(found.table.column(c).to_pylist() for c in (ID, "distance")), strict=True)
    )
    shown = cutouts(HatsRelease.open(among.source), list(distances))
    return [replace(cutout, distance=float(d))
            for cutout, d in zip(shown, distances.values(), strict=True)]  # fmt: skip


def cutouts(release: HatsRelease, ids: Sequence[object]) -> list[Cutout]:
    """Cutouts of these objects, in this order, in their own size."""
    found: dict[object, Cutout] = {}
    wanted = pa.array(list(ids))
    for pixel in release.pixels:
        with pq.ParquetFile(release.leaf(pixel)) as leaf:
            keys = leaf.read(columns=[ID]).column(ID)
            if not pc.any(pc.is_in(keys, wanted.cast(keys.type))).as_py():
                continue
            images = [f"image.{part}" for part in IMAGE_PARTS]
            table = leaf.read(columns=[ID, "ra", "dec", *images, "FLUX_R", "Z"])
        found.update(_cutouts(table.filter(pc.is_in(table.column(ID), wanted.cast(keys.type)))))
    return [found[key] for key in ids]


def _cutouts(table: pa.Table) -> dict[object, Cutout]:
    shown: dict[object, Cutout] = {}
    for batch in table.to_batches():
        sides = pc.list_value_length(pc.list_flatten(pc.struct_field(batch["image"], "flux")))
        size = int(pc.max(sides).as_py())
        columns = ColumnMap.of(PICTURED, batch.schema, where="the catalog")
        images, _ = read_images(batch, columns, LEGACY_IMAGE, size=size)
        flux = np.where(images.good_BCHW.numpy(), images.flux_BCHW.numpy(), np.nan)
        for row, facts in enumerate(batch.select([ID, "FLUX_R", "Z"]).to_pylist()):
            shown[facts[ID]] = Cutout(
                flux=flux[row], caption=_caption(facts["FLUX_R"], facts["Z"]),
                object_id=str(facts[ID]),
            )  # fmt: skip
    return shown


def _caption(flux: float, redshift: float | None) -> str:
    magnitude = f"r = {22.5 - 2.5 * np.log10(flux):.1f}" if flux > 0 else "r not measured"
    known = redshift is not None and np.isfinite(redshift)
    return f"{magnitude}, z = {redshift:.2f}" if known else magnitude


def _spread(ids: list[object], count: int) -> list[object]:
    return [ids[int(i)] for i in np.linspace(0, len(ids) - 1, min(count, len(ids)))]


__all__: Sequence[str] = ("catalog_facts", "cutouts", "neighbours", "query_cutout")

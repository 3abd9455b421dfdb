"""Whoever is left out of an extension, or looks wrong in it, is on one list, and nobody else."""

import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.catalog import TableProperties
from hats.io.validation import is_valid_catalog
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index

from skyvec.extensions.quarantine_catalog import (
    publish_quarantine,
    quarantine_folder,
    quarantine_is_published,
    remove_quarantine,
)
from skyvec.models import load_model
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.source import Quarantined
from skyvec.stage.output import Output
from skyvec.stage.partition import tokenize_rows
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.quarantine import (
    BAD_DATA,
    REMEDIES,
    QuarantineLog,
    is_bad,
    quarantine_is_whole,
    quarantine_path,
    take_quarantine,
)
from skyvec_schemas.errors import OutputExistsError, RowTruthError
from skyvec_schemas.provenance import Provenance
from skyvec_schemas.quality_flags import FATAL, Flag
from skyvec_schemas.survey_columns import LEGACY_SURVEY, OBJECTS

ROWS = 40
PROVENANCE = Provenance(
    product="embedding", model="small", model_digest="0" * 64, precision="float32", device="cpu",
    numerics_version=1, vector_type="float16", survey="objects", inputs=(), skyvec_version="9.9",
)  # fmt: skip
RETRY = "mend the rows, then run `skyvec embed sky --name small_v2`"
KEYS = [
    pa.field("_healpix_29", pa.int64(), nullable=False),
    pa.field("object_id", pa.int64(), nullable=False),
    pa.field("ra", pa.float64()),
    pa.field("dec", pa.float64()),
]
PIXEL = HealpixPixel(1, 17)
REFUSED = Quarantined(file="desi.h5", row=np.int64(3), object_id="77", reason="dec is 123.4")


@pytest.fixture
def sky(tmp_path, factory):
    """Ids and positions over two far patches and several pixels."""

    def make(ids: pa.Array | None = None) -> HatsRelease:
        rng = np.random.default_rng(5)
        table = pa.table(
            {
                "object_id": pa.array(np.arange(ROWS) + 10**15) if ids is None else ids,
                "ra": np.r_[rng.uniform(10, 60, 20), rng.uniform(190, 240, 20)],
                "dec": rng.uniform(-30, 30, ROWS),
            }
        )
        return HatsRelease.open(factory.write_collection(table, tmp_path / uuid.uuid4().hex))

    return make


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path / "out" / "small_v1")


def log_of():
    return QuarantineLog(PIXEL, KEYS, leaf="Npix=17.parquet")


def batch_of(count):
    columns = [
        np.arange(count) + 10**17,
        np.arange(count) + 1,
        np.full(count, 1.0),
        np.zeros(count),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns], schema=pa.schema(KEYS))


def words(*flags):
    return np.array([int(flag) for flag in flags], np.int32)


def lines_of(output):
    with pq.ParquetFile(quarantine_path(output, PIXEL)) as file:
        return file.read().to_pylist()


def quarantine_sky(release, output, flags_of, *, objects=(), rows=3):
    """What the quanta of a release do, by a function from ids to flags; returns their records."""
    records = []
    for pixel in release.pixels:
        log = QuarantineLog.of(release, pixel, OBJECTS)
        start, seen = 0, []
        for batch in release.batches(pixel, OBJECTS, rows=rows):
            flags = flags_of(batch.column("object_id").to_pylist())
            log.add_rows(batch, flags, start=start)
            start += len(batch)
            seen += flags.tolist()
        log.add_objects("desi", objects)
        log.write(output)
        counts = {flag.name.lower(): sum(bool(word & flag) for word in seen) for flag in Flag}
        records.append(
            QuantumRecord(
                order=pixel.order, pixel=pixel.pixel, outcome="done", rows=start, flags=counts,
                quarantined=log.failed, sources={"desi": {"counts": {"quarantined": len(objects)}}},
            )
        )  # fmt: skip
    return records


def publish(release, output, records, **changes):
    choices = {"survey": OBJECTS, "provenance": PROVENANCE, "retry": RETRY} | changes
    return publish_quarantine(output, records, release=release, **choices)


def published(place: Path):
    """Every line, as LSDB reads it; null where nothing is known."""
    assert is_valid_catalog(place, strict=True)
    frame = lsdb.open_catalog(place).compute()
    assert frame.index.name == "_healpix_29"
    return frame


def every_third(ids):
    return np.array([Flag.IMAGE_UNUSABLE if key % 3 == 0 else 0 for key in ids], np.int32)


# ---- who is listed


@pytest.mark.parametrize(
    "flags",
    [
        0,
        Flag.NO_INPUT,
        Flag.NO_INPUT | Flag.IMAGE_MISSING | Flag.SPECTRUM_MISSING | Flag.SCALAR_MISSING,
        Flag.NO_INPUT | Flag.SPECTRUM_MISSING | Flag.MATCH_AMBIGUOUS,
        Flag.COEFFICIENTS_MISSING | Flag.SCALAR_MISSING,
        Flag.IMAGE_PADDED | Flag.IMAGE_BAD_PIXELS | Flag.IMAGE_TOKENS_DROPPED,
        Flag.SPECTRUM_BAD_SAMPLES | Flag.MATCH_AMBIGUOUS,
    ],
)
def test_absent_data_and_usual_blemishes_are_not_listed(flags):
    assert not is_bad(words(flags)).any()


@pytest.mark.parametrize("flag", list(REMEDIES))
def test_bad_data_are_listed_with_or_without_a_vector(flag):
    assert is_bad(words(flag, flag | Flag.NO_INPUT, flag | Flag.IMAGE_MISSING)).all()


def test_what_was_observed_and_left_nothing_usable_is_listed():
    assert is_bad(words(Flag.NO_INPUT | Flag.IMAGE_TOKENS_DROPPED | Flag.SCALAR_MISSING)).all()


def test_every_fatal_reason_but_absence_is_bad_data():
    assert FATAL & ~BAD_DATA == Flag.NO_INPUT


def test_real_rows_are_listed_if_something_is_wrong_with_them(factory, model_folder, output):
    odd = {
        0: None,
        1: factory.cutout(1, flux=np.full((4, 96, 96), np.nan, np.float32)),
        2: factory.cutout(2, band=["des-g", "des-r", "des-i", "sdss-z"]),
        3: factory.cutout(3, flux=np.zeros((4, 96, 95), np.float32)),
        4: factory.cutout(4, size=64),
        5: None,
    }
    cutouts = [odd.get(row, factory.cutout(row)) for row in range(8)]
    table = factory.survey_table(8, cutouts=cutouts)
    lost = np.arange(8) == 5
    for scalar in LEGACY_SURVEY.scalars:
        place = table.schema.get_field_index(scalar.name)
        values = np.where(lost, np.nan, table.column(place).to_numpy()).astype(np.float32)
        table = table.set_column(place, scalar.name, pa.array(values))
    batch = table.append_column("_healpix_29", pa.array(np.arange(8))).to_batches()[0]
    rows = tokenize_rows(batch, LEGACY_SURVEY, load_model(model_folder))
    assert np.flatnonzero(rows.failed).tolist() == [1, 2, 3, 5], "one of them has no data at all"
    log = log_of()
    log.add_rows(batch, rows.flags, start=0)
    log.write(output)
    assert [line["source_row"] for line in lines_of(output)] == [1, 2, 3]


# ---- one pixel


def test_a_list_says_who_where_why_and_what_to_do(output):
    log = log_of()
    good, spoilt = 0, Flag.IMAGE_MALFORMED | Flag.SPECTRUM_UNUSABLE
    matched = {"desi": pa.array([None] * 8 + ["41"]), "hsc": pa.array([None] * 8 + ["9"])}
    log.add_rows(batch_of(4), words(*[good] * 4), start=0, matched=matched)
    log.add_rows(batch_of(5), words(good, good, good, good, spoilt), start=4, matched=matched)
    assert (log.failed_rows, log.embedded_rows, log.objects, log.failed) == (1, 0, 0, 1)
    assert log.write(output) == 1
    assert lines_of(output) == [
        {
            "_healpix_29": 10**17 + 4, "object_id": 5, "ra": 1.0, "dec": 0.0, "flags": int(spoilt),
            "reasons": "image malformed, spectrum unusable",
            "remedy": f"{REMEDIES[Flag.IMAGE_MALFORMED]}; {REMEDIES[Flag.SPECTRUM_UNUSABLE]}",
            "source": None, "source_object_id": None, "source_file": "Npix=17.parquet",
            "source_row": 8, "detail": "joined with desi 41, hsc 9", "embedded": False,
        }
    ]  # fmt: skip


def test_rows_with_a_vector_are_listed_and_not_counted_as_failed(output):
    log = log_of()
    log.add_rows(batch_of(2), words(Flag.SPECTRUM_UNUSABLE, Flag.ID_MISSING), start=0)
    log.write(output)
    assert (log.failed, log.embedded_rows) == (1, 1)
    assert [line["embedded"] for line in lines_of(output)] == [True, False]


def test_objects_of_sources_are_all_listed_without_a_made_up_position(output):
    log = log_of()
    many = [replace(REFUSED, row=row) for row in range(50)]
    log.add_objects("desi", [*many, replace(REFUSED, object_id="", row=50)])
    assert log.failed == log.write(output) == 51
    lines = lines_of(output)
    assert [line["source_row"] for line in lines] == list(range(51))
    assert lines[-1]["source_object_id"] is None
    first = lines[0]
    assert (first["object_id"], first["ra"], first["dec"]) == (None, None, None)
    assert (first["source"], first["source_object_id"]) == ("desi", "77")
    assert (first["source_file"], first["reasons"]) == ("desi.h5", "dec is 123.4")
    assert first["_healpix_29"] == 17 << 56, "the first cell of pixel 17 of order 1"


def test_a_list_does_not_depend_on_the_batches(output):
    flags, whole = words(*[Flag.ID_MISSING, 0, Flag.SOURCE_DUPLICATE] * 7), batch_of(21)
    contents = []
    for size in (21, 5, 1):
        log = log_of()
        for start in range(0, 21, size):
            part = whole.slice(start, size)
            log.add_rows(part, flags[start : start + size], start=start)
        log.write(output)
        contents.append(quarantine_path(output, log.pixel).read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_an_empty_list_is_no_file_and_removes_an_older_one(output):
    log = log_of()
    log.add_objects("desi", [REFUSED])
    log.write(output)
    place = quarantine_path(output, log.pixel)
    assert [file.name for file in place.parent.iterdir()] == [place.name], "nothing is left aside"
    empty = log_of()
    empty.add_rows(batch_of(3), words(0, Flag.NO_INPUT, Flag.IMAGE_MISSING), start=0)
    empty.add_objects("desi", [])
    assert empty.write(output) == 0
    assert not place.exists()
    assert empty.write(output) == 0, "nor is it missed"


# ---- all pixels


def test_the_catalog_holds_exactly_the_bad_rows(sky, output):
    release = sky()
    records = quarantine_sky(release, output, every_third)
    place = publish(release, output, records)
    assert place == output.root.with_name("small_v1_quarantine")
    frame = published(place)
    assert sorted(frame["object_id"]) == [
        key + 10**15 for key in range(ROWS) if (key + 10**15) % 3 == 0
    ]
    assert str(frame["object_id"].dtype) == "int64[pyarrow]"
    assert (
        frame.index == compute_spatial_index(frame["ra"].to_numpy(), frame["dec"].to_numpy())
    ).all()
    assert set(frame["reasons"]) == {"image unusable"}
    opened = lsdb.open_catalog(place)
    assert len(opened.get_healpix_pixels()) > 2
    assert set(opened.get_healpix_pixels()) <= set(release.pixels)
    assert sum(record.quarantined for record in records) == len(frame)


def test_pixels_without_a_line_have_no_leaf(sky, output):
    release = sky()
    only = 10**15 + 7
    records = quarantine_sky(
        release,
        output,
        lambda ids: np.array([Flag.ID_MISSING * (i == only) for i in ids], np.int32),
    )
    place = publish(release, output, records)
    assert len(list(place.rglob("Npix=*.parquet"))) == 1
    assert published(place)["object_id"].tolist() == [only]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([f"J{n:04}" for n in range(ROWS)]),
        pa.array([f"J{n:04}" for n in range(ROWS)], pa.large_string()),
        pa.array([None if n % 4 == 0 else n for n in range(ROWS)], pa.int64()),
        pa.array(np.arange(ROWS) + 2**62, pa.uint64()),
    ],
    ids=["text", "large text", "null", "unsigned"],
)
def test_ids_keep_their_own_type(sky, output, ids):
    release = sky(ids)

    def flags_of(found):
        return np.array(
            [Flag.ID_MISSING if i is None else Flag.IMAGE_UNUSABLE for i in found], np.int32
        )

    place = publish(release, output, quarantine_sky(release, output, flags_of))
    frame = published(place)
    assert lsdb.open_catalog(place).hc_structure.schema.field("object_id").type == ids.type
    assert sorted(frame["object_id"].dropna()) == sorted(ids.drop_null().to_pylist())
    assert frame["object_id"].isna().sum() == ids.null_count


def test_an_object_that_several_pixels_met_is_listed_once(sky, output):
    release = sky()
    objects = [REFUSED, replace(REFUSED, row=4)]
    records = quarantine_sky(release, output, every_third, objects=objects)
    frame = published(publish(release, output, records))
    refused = frame[frame["source"] == "desi"]
    assert sorted(refused["source_row"]) == [3, 4]
    assert refused["ra"].isna().all()
    assert len(frame) == len(refused) + sum(key % 3 == 0 for key in range(10**15, 10**15 + ROWS))


def test_a_catalog_of_objects_alone_is_one_too(sky, output):
    release = sky()
    nothing = lambda ids: np.zeros(len(ids), np.int32)  # noqa: E731
    place = publish(release, output, quarantine_sky(release, output, nothing, objects=[REFUSED]))
    assert published(place)["source_object_id"].tolist() == ["77"]


def test_rows_can_be_asked_for_by_place_and_crossmatched(sky, output):
    release = sky()
    records = quarantine_sky(release, output, every_third, objects=[REFUSED])
    opened = lsdb.open_catalog(publish(release, output, records))
    frame = opened.compute().dropna(subset=["ra"])
    one = frame.iloc[0]
    near = opened.cone_search(ra=one["ra"], dec=one["dec"], radius_arcsec=1).compute()
    assert near["object_id"].tolist() == [one["object_id"]]
    rows = opened.query("source.isna()")
    with pytest.warns(RuntimeWarning, match="margin"):
        crossed = rows.crossmatch(
            lsdb.open_catalog(release.path),
            radius_arcsec=1,
            suffixes=("", "_of"),
            suffix_method="overlapping_columns",
        )
    matched = crossed.compute()
    assert len(matched) == len(frame)
    assert (matched["object_id"] == matched["object_id_of"]).all()


def test_the_properties_say_what_it_is_and_how_to_try_again(sky, output):
    release = sky()
    place = publish(release, output, quarantine_sky(release, output, every_third))
    found = TableProperties.read_from_dir(place)
    assert found.catalog_name == "small_v1_quarantine"
    assert found.ra_column == "ra"
    extra = found.extra_dict()
    assert extra["skyvec_quarantine_of"] == "small_v1"
    assert extra["skyvec_retry"] == RETRY
    assert extra["skyvec_fingerprint"] == PROVENANCE.fingerprint()
    assert "bad data" in found.extra_dict()["addendum_description"]


# ---- again, gone, in the way


def test_publishing_again_replaces_and_nothing_to_list_removes(sky, output):
    release = sky()
    records = quarantine_sky(release, output, every_third)
    place = publish(release, output, records)
    assert quarantine_is_published(output, records)
    records = quarantine_sky(
        release,
        output,
        lambda ids: np.array([Flag.ID_MISSING * (i % 5 == 0) for i in ids], np.int32),
    )
    publish(release, output, records)
    assert set(published(place)["reasons"]) == {"id missing"}
    records = quarantine_sky(release, output, lambda ids: np.zeros(len(ids), np.int32))
    assert not quarantine_is_published(output, records)
    assert publish(release, output, records) is None
    assert not place.exists()
    assert quarantine_is_published(output, records)
    assert [file.name for file in place.parent.iterdir()] == ["small_v1"], "nothing is left aside"


def test_an_older_catalog_stays_if_a_new_one_cannot_be_made(sky, output):
    release = sky()
    records = quarantine_sky(release, output, every_third)
    place = publish(release, output, records)
    before = published(place)
    listed = next(record for record in records if record.quarantined)
    quarantine_path(output, HealpixPixel(*listed.key)).write_bytes(b"torn")
    with pytest.raises(RowTruthError, match="does not hold the"):
        publish(release, output, records)
    assert published(place).equals(before)


@pytest.mark.parametrize("damage", ["gone", "torn", "another count"])
def test_a_list_that_is_not_what_its_record_counts_is_found(sky, output, damage):
    release = sky()
    records = quarantine_sky(release, output, every_third)
    assert all(quarantine_is_whole(output, record) for record in records)
    record = next(record for record in records if record.quarantined)
    place = quarantine_path(output, HealpixPixel(*record.key))
    if damage == "gone":
        place.unlink()
    elif damage == "torn":
        place.write_bytes(place.read_bytes()[:-5])
    else:
        record = replace(record, quarantined=record.quarantined + 1)
    assert not quarantine_is_whole(output, record)


def test_a_lost_list_of_rows_that_all_have_a_vector_is_found(sky, output):
    release = sky()
    records = quarantine_sky(
        release, output, lambda ids: np.full(len(ids), Flag.SPECTRUM_UNUSABLE, np.int32)
    )
    assert {record.quarantined for record in records} == {0}
    quarantine_path(output, release.pixels[0]).unlink()
    assert not quarantine_is_whole(output, records[0])
    assert quarantine_is_whole(output, records[1])


@pytest.mark.parametrize("what", ["a thesis", "a catalog"])
def test_a_folder_of_somebody_else_is_never_touched(sky, output, what):
    release = sky()
    records = quarantine_sky(release, output, every_third)
    theirs = output.root.with_name("small_v1_quarantine")
    if what == "a catalog":
        shutil.copytree(release.root, theirs)
    theirs.mkdir(parents=True, exist_ok=True)
    (theirs / "thesis.txt").write_text("years of work")
    for attempt in (
        lambda: publish(release, output, records),
        lambda: quarantine_folder(output),
        lambda: remove_quarantine(output),
        lambda: publish(release, output, []),
    ):
        with pytest.raises(OutputExistsError, match="not the quarantine catalog of this extension"):
            attempt()
    assert (theirs / "thesis.txt").is_file()


def test_removing_is_complete_and_may_be_repeated(sky, output):
    release = sky()
    place = publish(release, output, quarantine_sky(release, output, every_third))
    remove_quarantine(output)
    assert not place.exists()
    remove_quarantine(output)


def test_an_object_store_will_do(sky):
    release = sky()
    output = Output(f"memory://bucket-{uuid.uuid4().hex}/small_v1")
    records = quarantine_sky(release, output, every_third)
    place = publish(release, output, records)
    frame = lsdb.open_catalog(place).compute()
    assert len(frame) == sum(record.quarantined for record in records)
    publish(release, output, records)
    assert quarantine_is_published(output, records)
    records = quarantine_sky(release, output, lambda ids: np.zeros(len(ids), np.int32))
    assert publish(release, output, records) is None
    assert not place.exists()


def test_a_list_goes_with_a_leaf_that_is_taken_over(sky, output, tmp_path):
    release = sky()
    earlier, pixels = Output(tmp_path / "before" / "small_v1"), release.pixels
    records = quarantine_sky(release, earlier, every_third)
    quarantine_sky(release, output, every_third, objects=[REFUSED])
    assert all(take_quarantine(earlier, output, record) for record in records)
    for record, pixel in zip(records, pixels, strict=True):
        assert quarantine_is_whole(output, record)
        before, after = (quarantine_path(place, pixel) for place in (earlier, output))
        assert before.exists() == after.exists()
    listed = next(record for record in records if record.quarantined)
    quarantine_path(earlier, HealpixPixel(*listed.key)).write_bytes(b"torn")
    assert not take_quarantine(earlier, output, listed)
    assert quarantine_is_whole(output, listed), "what is there stays until there is better"

"""Records as a table: nothing is lost, and a worker finds those near its pixel without the rest."""

import pyarrow.parquet as pq
import pytest
from hats.pixel_math.healpix_pixel import HealpixPixel
from hypothesis import given
from hypothesis import strategies as st

from skyvec.stage.output import Output, fingerprints
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.record_table import GROUP_RECORDS, from_row, overlap, quanta_rows, quanta_table


def record(order, pixel, **facts):
    return QuantumRecord(
        order=order, pixel=pixel, outcome="done", fingerprint=f"{order}/{pixel}", rows=3,
        flags={"image_masked": 2}, skymap={pixel: 3}, seconds={"read": 0.5},
        sources={"desi": {"counts": {"rows": 3}, "refused": []}}, worker="gpu0", **facts,
    )  # fmt: skip


def written(folder, records, *, groups=GROUP_RECORDS):
    pq.write_table(quanta_table(records), folder / "quanta.parquet", row_group_size=groups)
    return pq.ParquetFile(folder / "quanta.parquet")


def test_records_come_back_as_they_were_sorted_by_pixel(tmp_path):
    records = [record(5, 9), record(3, 40, bytes=2**40), record(5, 2, error="x: y. Mend it.")]
    back = [from_row(row) for row in quanta_rows(written(tmp_path, records))]
    assert back == sorted(records, key=lambda each: each.key)


@pytest.mark.parametrize("near", [(5, 1029), (4, 257), (3, 64), (7, 16465), (5, 4), (0, 0)])
def test_near_a_pixel_are_those_that_overlap_with_it_and_few_groups_are_read(tmp_path, near):
    records = [record(3, n) for n in range(64, 80)] + [record(5, n) for n in range(1024, 1200)]
    file = written(tmp_path, records, groups=16)
    read = []
    real = file.read_row_group
    file.read_row_group = lambda group, **choice: read.append(group) or real(group, **choice)
    place = HealpixPixel(*near)
    found = {(row["order"], row["pixel"]) for row in quanta_rows(file, near=place)}
    assert found == {each.key for each in records if overlap(each.key, place)}
    assert near == (0, 0) or len(read) <= 3


@given(st.integers(0, 6), st.integers(0, 6), st.data())
def test_overlap_is_having_a_common_pixel_of_a_fine_order(order, other, data):
    pixel = data.draw(st.integers(0, 12 * 4**order - 1))
    # Half of the time inside, above or below; else anywhere.
    related = pixel << 2 * (other - order) if other >= order else pixel >> 2 * (order - other)
    number = data.draw(st.one_of(st.just(related), st.integers(0, 12 * 4**other - 1)))

    def cells(order, pixel):
        shift = 2 * (6 - order)
        return range(pixel << shift, (pixel + 1) << shift)

    one, two = cells(order, pixel), cells(other, number)
    common = max(one.start, two.start) < min(one.stop, two.stop)
    assert overlap((order, pixel), HealpixPixel(other, number)) is common


def test_fingerprints_are_those_of_the_table_and_of_what_came_since(tmp_path):
    output = Output(tmp_path / "out")
    output.gather([record(5, 1), record(5, 2)])
    output.save(record(5, 3))
    expected = {(5, 1): "5/1", (5, 2): "5/2", (5, 3): "5/3"}
    assert output.fingerprints() == fingerprints(str(output.root), "run") == expected


def test_gathered_records_near_a_pixel_come_from_the_table_alone(tmp_path):
    output = Output(tmp_path / "out")
    output.gather([record(5, 16), record(5, 17), record(5, 90)])
    assert set(output.gathered(HealpixPixel(4, 4))) == {(5, 16), (5, 17)}
    assert set(output.gathered()) == {(5, 16), (5, 17), (5, 90)}
    assert Output(tmp_path / "none").gathered(HealpixPixel(4, 4)) == {}


def test_records_in_hand_count_and_are_not_read_again(tmp_path, monkeypatch):
    output = Output(tmp_path)
    output.gather([record(3, 1)])
    stored = [record(3, n) for n in range(2, 40)]
    for each in stored:
        output.save(each)
    read = []
    real = type(tmp_path).read_text
    monkeypatch.setattr(
        type(tmp_path), "read_text", lambda place: read.append(place.name) or real(place)
    )
    newer = [record(3, n, attempts=2) for n in range(2, 30)]
    known = output.records(newer)
    assert list(known.values()) == [record(3, 1), *stored[28:], *newer]
    assert sorted(read) == sorted(f"Norder=3_Npix={n}.json" for n in range(30, 40))


def test_gathering_leaves_a_record_that_somebody_else_made_meanwhile(tmp_path):
    output = Output(tmp_path)
    ours = [record(3, n) for n in range(40)]
    for each in ours:
        output.save(each)
    output.save(record(3, 7, attempts=2))
    output.gather(ours)
    assert list(output.fresh()) == [record(3, 7, attempts=2)]
    assert output.gathered() == {each.key: each for each in ours}


def test_single_records_stay_where_the_table_reads_back_otherwise(tmp_path, monkeypatch):
    output = Output(tmp_path / "out")
    made = [record(5, 1), record(5, 2)]
    for each in made:
        output.save(each)
    real = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, *a, **k: real(table.slice(1), *a, **k))
    output.gather(made)
    assert set(output.gathered()) == {(5, 2)}
    assert {each.key for each in output.fresh()} == {(5, 1), (5, 2)}
    monkeypatch.undo()
    output.gather(made)
    assert set(output.gathered()) == {(5, 1), (5, 2)}
    assert not list(output.fresh())

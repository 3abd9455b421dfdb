"""What operators' programs read of a run is whole, true and in the formats that they know."""

import json
import math
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from skyvec.stage.monitor import Beat, RunFacts, monitors
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.run_record import RunRecord
from skyvec.stage.telemetry import METRICS, JsonLines, Prometheus
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.provenance import Provenance

ROOT = Path(__file__).parents[2]
FACTS = RunFacts(
    run_id="run-1", name="tiny_v1", output="/data/sky/tiny_v1", rows=1000, pixels=10, rows_done=200,
    pixels_done=2, device="cpu",
)  # fmt: skip
DONE = QuantumRecord(
    order=1, pixel=3, outcome="done", rows=100, failed_rows=4, quarantined=5,
    skymap={7: 100}, seconds={"encode": 30.0, "read": 2.0}, attempts=2,
    flags={"image_missing": 4}, sources={"hsc": {"counts": {"rows": 100}, "radius": math.nan}},
)  # fmt: skip
LOST = QuantumRecord(order=1, pixel=4, outcome="lost", error="a.parquet: cut off\nat the end")


def run_record(*quanta):
    done = all(each.finished for each in quanta)
    return RunRecord(
        name="tiny_v1", source=Path("/data/sky"), output=Path("/data/sky/tiny_v1"),
        properties=Path("/data/sky/tiny_v1.properties") if done else None,
        provenance=Provenance(
            product="embedding", model="tiny", model_digest="0", precision="float32", device="cpu",
            numerics_version=1, vector_type="float16", survey="legacysurvey", inputs=(),
            skyvec_version="0",
        ),
        quanta=quanta, pixels=len(quanta), skipped=2, seconds=12.5,
    )  # fmt: skip


def beat(pixel, rows, *, bad=0, **seconds):
    return Beat(order=1, pixel=pixel, rows=rows, failed_rows=bad, worker="w", seconds=seconds)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def noon():
    return datetime(2026, 11, 22, 12, tzinfo=UTC)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tell_a_run(monitor, clock):
    monitor.begin(FACTS)
    monitor.workers(4)
    clock.now += 40
    monitor.beat(beat(3, 80, bad=1, encode=20.0, write=20.0))
    monitor.beat(beat(4, 8))
    monitor.retry(1, 4, why="KilledWorker", attempt=1, wait=5.0)
    clock.now += 10
    monitor.pixel(DONE)
    monitor.pixel(LOST)


def test_each_event_is_one_line_that_says_of_which_run(tmp_path, clock):
    place = tmp_path / "events.jsonl"
    log = JsonLines(place, utc=noon, clock=clock)
    tell_a_run(log, clock)
    log.end(run_record(DONE, LOST))
    lines = lines_of(place)
    assert [line["event"] for line in lines] == [
        "begin", "workers", "progress", "retry", "pixel", "pixel", "end",
    ]  # fmt: skip
    for line in lines:
        assert list(line)[:4] == ["time", "run_id", "extension", "event"]
        assert (line["time"], line["run_id"]) == ("2026-11-22T12:00:00.000+00:00", "run-1")
        assert line["extension"] == "tiny_v1"
    begin, workers, progress, retry, done, lost, end = lines
    assert (begin["rows"], begin["rows_done"], begin["device"]) == (1000, 200, "cpu")
    assert workers["count"] == 4
    assert (progress["rows_done"], progress["failed_rows"], progress["workers"]) == (280, 1, 4)
    assert progress["rows_per_second"] == pytest.approx(2)
    assert progress["device_busy"] == pytest.approx(20 / 160)
    assert progress["seconds_left"] == 360
    assert (retry["pixel"], retry["why"], retry["attempt"], retry["wait"]) == (
        4, "KilledWorker", 1, 5,
    )  # fmt: skip
    assert (done["order"], done["pixel"], done["outcome"], done["attempts"]) == (1, 3, "done", 2)
    assert done["seconds"] == {"encode": 30.0, "read": 2.0}
    assert "skymap" not in done
    assert lost["error"] == "a.parquet: cut off\nat the end"
    assert (end["complete"], end["exit_code"], end["problems"], end["retries"]) == (
        False, 20, 1, 1,
    )  # fmt: skip
    assert end["pixels"] == {"done": 1, "lost": 1, "earlier": 2}
    assert (end["rows"], end["quarantined"], end["published"]) == (100, 5, None)


def test_a_pixel_keeps_all_of_its_record_but_the_sky_map(tmp_path):
    place = tmp_path / "events.jsonl"
    JsonLines(place).pixel(DONE)
    known = set(lines_of(place)[0]) - {"time", "run_id", "extension", "event"}
    assert known == set(DONE.__dataclass_fields__) - {"skymap"}


def test_what_is_not_a_number_is_null_as_json_has_it(tmp_path):
    place = tmp_path / "events.jsonl"
    JsonLines(place).pixel(DONE)

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads(place.read_text(), parse_constant=refuse)
    assert line["sources"]["hsc"] == {"counts": {"rows": 100}, "radius": None}


def test_beats_are_summed_up(tmp_path, clock):
    place = tmp_path / "events.jsonl"
    log = JsonLines(place, every=30, clock=clock)
    log.begin(FACTS)
    for _ in range(90):
        clock.now += 1
        log.beat(beat(3, 1))
        log.workers(2)
    lines = lines_of(place)
    assert [line["event"] for line in lines] == ["begin", "workers", *["progress"] * 3]
    assert [line["rows_done"] for line in lines[2:]] == [230, 260, 290]


def test_runs_follow_each_other_in_one_file(tmp_path):
    place = tmp_path / "events.jsonl"
    for _ in range(2):
        log = JsonLines(place)
        log.begin(FACTS)
        log.end(run_record(DONE))
    assert [line["event"] for line in lines_of(place)] == ["begin", "end"] * 2
    assert lines_of(place)[-1]["complete"] is True
    assert lines_of(place)[-1]["published"] == "/data/sky/tiny_v1.properties"


@pytest.mark.parametrize("torn", ['{"time": "2026-11-22T', "{", '{"time": '])
def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path, torn):
    place = tmp_path / "events.jsonl"
    JsonLines(place).begin(FACTS)
    with place.open("a") as file:
        file.write(torn)
    JsonLines(place).end(run_record(DONE))
    assert [line["event"] for line in lines_of(place)] == ["begin", "end"]
    place.write_text(torn)
    JsonLines(place).begin(FACTS)
    assert [line["event"] for line in lines_of(place)] == ["begin"]


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    place = tmp_path / "events.jsonl"
    place.write_text("object_id,ra\n1,2")
    with pytest.raises(ConfigurationError, match=r"events\.jsonl: holds something else"):
        JsonLines(place)
    assert place.read_text() == "object_id,ra\n1,2"


@pytest.mark.parametrize("name", ["absent/events.jsonl", "."])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(tmp_path, name):
    with pytest.raises(ConfigurationError, match="cannot be written"):
        JsonLines(tmp_path / name)


def test_a_full_disk_switches_the_log_off_and_not_the_run(tmp_path, capsys, monkeypatch):
    log = JsonLines(tmp_path / "events.jsonl")
    both = monitors([log])
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    both.begin(FACTS)
    both.end(run_record(DONE))
    assert capsys.readouterr().err.count("JsonLines is switched off") == 1


def test_a_killed_run_leaves_whole_lines(tmp_path):
    place = tmp_path / "events.jsonl"
    code = f"""
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.telemetry import JsonLines
log = JsonLines({str(place)!r})
for pixel in range(10**9):
    log.pixel(QuantumRecord(order=9, pixel=pixel, outcome="data", error="x" * 3000))
    if pixel == 200:
        print("many", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert place.read_bytes().endswith(b"}\n")
    pixels = [line["pixel"] for line in lines_of(place)]
    assert pixels == list(range(len(pixels)))
    assert len(pixels) > 200


def test_a_run_that_begins_cuts_off_no_line_of_another(tmp_path, monkeypatch):
    place = tmp_path / "events.jsonl"
    other = JsonLines(place)
    other.begin(FACTS)
    look = mmap.mmap

    def look_and_be_overtaken(*args, **options):
        seen = look(*args, **options)
        other.end(run_record(DONE))
        return seen

    monkeypatch.setattr(mmap, "mmap", look_and_be_overtaken)
    JsonLines(place)
    assert [line["event"] for line in lines_of(place)] == ["begin", "end"]


def test_a_line_that_another_run_is_writing_is_no_torn_line(tmp_path, monkeypatch):
    place = tmp_path / "events.jsonl"
    JsonLines(place).begin(FACTS)
    whole = place.read_bytes()
    place.write_bytes(whole + whole[:50])
    monkeypatch.setattr(time, "sleep", lambda _: place.write_bytes(whole + whole))
    JsonLines(place)
    assert place.read_bytes() == whole + whole


def test_two_runs_at_once_do_not_mix_their_lines(tmp_path):
    place = tmp_path / "events.jsonl"
    code = f"""
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.telemetry import JsonLines
log = JsonLines({str(place)!r})
for pixel in range(300):
    log.pixel(QuantumRecord(order=9, pixel=pixel, outcome="data", error="x" * 3000))
"""
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert sorted(line["pixel"] for line in lines_of(place)) == sorted([*range(300), *range(300)])


def samples_of(path):
    """Name -> labels -> value, and name -> type, read by the library's own parser."""
    parser = pytest.importorskip("prometheus_client.parser", reason=NEEDS)
    values, kinds = {}, {}
    for family in parser.text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            assert sample.labels["extension"] == "tiny_v1"
            rest = tuple(v for k, v in sample.labels.items() if k != "extension")
            values.setdefault(sample.name, {})[rest] = sample.value
            kinds[sample.name] = family.type
            assert family.documentation
    return values, kinds


NEEDS = "metrics need prometheus_client, an optional package (skyvec[operators])"


@pytest.fixture
def prom(tmp_path, clock):
    pytest.importorskip("prometheus_client", reason=NEEDS)
    return Prometheus(tmp_path / "skyvec.prom", clock=clock, wall=lambda: 1.7e9)


def test_metrics_say_what_became_of_the_run(prom, clock):
    tell_a_run(prom, clock)
    clock.now += 20
    prom.beat(beat(5, 30, encode=5.0))
    values, kinds = samples_of(prom.path)
    assert set(values) == set(METRICS)
    for name, kind in kinds.items():
        assert kind == ("counter" if name.endswith("_total") else "gauge"), name
    single = {name: found[()] for name, found in values.items() if () in found}
    assert single == {
        "skyvec_rows_total": 100,
        "skyvec_rows_failed_total": 4,
        "skyvec_rows_quarantined_total": 5,
        "skyvec_retries_total": 1,
        "skyvec_rows_planned": 1000,
        "skyvec_rows_earlier": 200,
        "skyvec_rows_running": 30,
        "skyvec_rows_per_second": pytest.approx((80 + 8 + 20 + 30) / 70),
        "skyvec_device_busy_ratio": pytest.approx(35 / (4 * 70)),
        "skyvec_workers": 4,
        "skyvec_run_complete": 0,
        "skyvec_run_start_timestamp_seconds": 1.7e9,
        "skyvec_run_end_timestamp_seconds": 0,
    }
    assert values["skyvec_pixels"] == {
        ("done",): 1, ("empty",): 0, ("data",): 0, ("lost",): 1, ("earlier",): 2, ("open",): 6,
    }  # fmt: skip
    assert sum(values["skyvec_pixels"].values()) == FACTS.pixels
    assert values["skyvec_step_seconds_total"][("encode",)] == pytest.approx(35)
    assert values["skyvec_step_seconds_total"][("verify",)] == 0


@pytest.mark.parametrize("complete", [True, False])
def test_the_end_says_whether_the_extension_is_complete(prom, complete):
    prom.begin(FACTS)
    prom.workers(4)
    prom.end(run_record(DONE) if complete else run_record(DONE, LOST))
    values, _ = samples_of(prom.path)
    assert values["skyvec_run_complete"][()] == complete
    assert values["skyvec_run_end_timestamp_seconds"][()] == 1.7e9
    assert values["skyvec_workers"][()] == 0


def test_counters_never_fall(prom, clock):
    prom.begin(FACTS)
    seen = []
    for what in ["beat", "retry", "beat", "pixel", "beat", "lost"]:
        clock.now += 20
        if what == "beat":
            prom.beat(beat(3, 50, bad=3, encode=9.0))
        elif what == "retry":
            prom.retry(1, 3, why="w", attempt=1, wait=0.1)
        else:
            prom.pixel(DONE if what == "pixel" else LOST)
        values, _ = samples_of(prom.path)
        seen.append(
            {
                (name, labels): value
                for name, found in values.items()
                if name.endswith("_total")
                for labels, value in found.items()
            }
        )
    for before, after in pairwise(seen):
        assert all(after[key] >= before[key] for key in before)


def test_the_file_is_written_now_and_then_and_always_whole(prom, clock, monkeypatch):
    written = []
    rename = os.rename
    monkeypatch.setattr(
        os, "rename", lambda aside, place: written.append(place) or rename(aside, place)
    )
    prom.begin(FACTS)
    for _ in range(60):
        clock.now += 1
        prom.beat(beat(3, 1))
    assert written == [str(prom.path)] * (1 + 60 // 15)
    assert [place.name for place in prom.path.parent.iterdir()] == ["skyvec.prom"]
    assert prom.path.read_text().endswith("\n")


def test_a_name_with_quotes_stays_one_label(prom):
    strange = 'a"b\\c\nd'
    prom.begin(RunFacts(**{f: getattr(FACTS, f) for f in FACTS.__slots__} | {"name": strange}))
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(prom.path.read_text())
    assert {s.labels["extension"] for family in families for s in family.samples} == {strange}


def test_metrics_refuse_a_file_that_nobody_would_read(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ends in \.prom"):
        Prometheus(tmp_path / "skyvec.txt")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Prometheus(tmp_path / "absent" / "skyvec.prom")


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("skyvec.stage.telemetry.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError) as caught:
        Prometheus(tmp_path / "skyvec.prom")
    assert "pip install 'skyvec[operators]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_telling_programs_costs_no_port_and_no_import_of_the_library(tmp_path):
    code = f"""
import sys
from skyvec.stage.telemetry import JsonLines
JsonLines({str(tmp_path / "events.jsonl")!r})
assert "prometheus_client" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_for_operators_names_every_metric_and_no_other():
    page = (ROOT / "docs/operating.md").read_text()
    named = re.findall(r"^\| `(skyvec_\w+)", page, re.MULTILINE)
    assert sorted(named) == sorted(METRICS)

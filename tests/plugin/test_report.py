"""A report says what the records say, of every kind of run, and asks nothing of the network."""

import json
import os
import re
from datetime import datetime
from html.parser import HTMLParser

import pytest

from skyvec.report.commands import same_command
from skyvec.report.facts import gather
from skyvec.report.kept_run import open_run
from skyvec.report.page import render, write_page
from skyvec.report.sky import CELLS
from skyvec.stage.output import HOME, MANIFEST, RUN_FILE, Output
from skyvec.stage.quantum_record import QuantumRecord
from skyvec.stage.run import run
from skyvec.stage.selection import Selection
from skyvec_schemas.errors import ConfigurationError, ContractError
from skyvec_schemas.provenance import Provenance
from skyvec_schemas.survey_columns import LEGACY_SURVEY

NAME = "vectors"
PROVENANCE = Provenance(
    product="embedding", model="small", model_digest="0" * 64, precision="float32", device="cpu",
    numerics_version=1, vector_type="float16", survey="legacysurvey",
    inputs=tuple(f"{column}={key}" for column, key in LEGACY_SURVEY.inputs), skyvec_version="9.9",
)  # fmt: skip
JOB = {"source": "nowhere/cat", "survey": "legacysurvey", "id_column": "object_id", "model": "m"}
BEGAN = 1_760_000_000
"""October 2025, before every record below."""
NASTY = '<script>alert("1")</script> & \N{BULLET}'


def record(pixel, outcome="done", *, order=3, **changes):
    facts = {
        "rows": 10,
        "seconds": {"tokenize": 1.0, "encode": 2.0},
        "wall_seconds": 4.0,
        "host": "node1",
        "device": "cpu",
        "started": f"2026-01-01T00:{pixel % 60:02d}:00+00:00",
    }
    return QuantumRecord(order=order, pixel=pixel, outcome=outcome, **(facts | changes))


@pytest.fixture
def kept(tmp_path):
    """Write the records of a run that never was; the collection's folder."""

    def write(*records, job=JOB, provenance=PROVENANCE):
        output = Output(tmp_path / "sky" / NAME)
        output.claim(provenance, job)
        for each in records:
            output.save(each)
        os.utime(output.root / RUN_FILE, (BEGAN, BEGAN))
        return tmp_path / "sky"

    return write


class _Seen(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.loads, self.tags = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in {"href", "xlink:href"}:
                (self.links if tag == "a" else self.loads).append(value)
            elif name in {"src", "srcset", "data", "action"}:
                self.loads.append(value)


def seen(html):
    return _Seen(html)


def assert_self_contained(html):
    found = seen(html)
    assert "script" not in found.tags
    assert not [each for each in found.loads if not each.startswith(("data:", "#"))]
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_a_clean_run_is_told_as_it_was(embedded):
    facts = gather(embedded)
    html = render(facts)
    assert_self_contained(html)
    told = facts.to_dict()
    assert (told["complete"], told["exit_code"], told["rows"]["all"]) == (True, 0, 60)
    assert told["pixels"] == {"done": 2} or set(told["pixels"]) == {"done"}
    assert told["vectors"]["all_rows"]
    assert sum(each["rows"] for each in told["vectors"]["modalities"]) == told["rows"]["all"]
    assert "60 of 60 objects got a vector" in html
    assert 'id="failures"' not in html
    assert f"load_extension({facts.name!r})" in told["commands"]["join"]
    json.dumps(told, allow_nan=False)


def test_a_failed_pixel_is_two_clicks_from_the_map_with_reason_and_command(
    make_collection, model_folder
):
    collection = make_collection()
    leaf = sorted(collection.glob("cat/dataset/**/Npix=*.parquet"))[-1]
    leaf.write_bytes(leaf.read_bytes()[:500])
    done = run(collection, name=NAME, model=model_folder, workers=0)
    assert done.exit_code == 30
    facts = gather(collection)
    html = render(facts)
    assert_self_contained(html)
    bad = facts.failed[0]
    anchor = f"p-{bad.order}-{bad.pixel}"
    assert f"#{anchor}" in seen(html).links
    entry = html[html.index(f'id="{anchor}"') :]
    entry = entry[: entry.index("</article>")]
    assert "Import or copy this pixel again" in entry
    assert f"--pixels {bad.order}/{bad.pixel}" in entry
    assert f"--model {model_folder}" in entry
    assert facts.exit_code == 30
    assert "--pixels" not in facts.again


def test_the_retry_command_has_the_fingerprint_of_the_run(make_collection, model_folder, factory):
    import shlex

    from skyvec.stage.plan import plan
    from skyvec.surveys import chosen_survey

    table = factory.survey_table().drop_columns(["EBV"]).rename_columns({"object_id": "name"})
    collection = make_collection(table)
    survey = chosen_survey("legacysurvey", id_column="name", image_column=None, without="EBV")
    run(collection, name=NAME, model=model_folder, survey=survey, dtype="float32", workers=0)
    command, lacking = same_command(open_run(collection))
    words = shlex.split(command)
    assert lacking == ""
    assert words[:3] == ["skyvec", "embed", str(collection)]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    again = plan(
        collection,
        name=options["--name"],
        model=options["--model"],
        dtype=options["--dtype"],
        survey=chosen_survey(
            "legacysurvey",
            id_column=options["--id-column"],
            image_column=None,
            without=options["--without"],
        ),
    )
    assert not again.todo


def test_a_killed_run_is_told_without_its_manifest(kept):
    facts = gather(kept(record(1), record(2, "lost", rows=0, error="worker died")))
    assert facts.run.manifest is None
    html = render(facts)
    assert_self_contained(html)
    assert "it still goes on, or it was killed" in html
    assert facts.pixel_counts == {"lost": 1, "done": 1}
    assert "worker died" in html


def test_a_run_that_ended_before_its_first_pixel_has_a_page(kept):
    facts = gather(kept())
    assert facts.to_dict()["pixels"] == {}
    assert "No object was finished yet" in render(facts)


def test_pixels_that_were_never_tried_are_open(make_collection):
    collection = make_collection()
    output = Output(collection / NAME)
    output.claim(PROVENANCE, JOB | {"source": str(collection / "cat")})
    facts = gather(collection)
    assert set(facts.pixel_counts) == {"open"}
    assert "that are not done" in render(facts)


def test_what_was_done_before_the_last_run_is_earlier(kept):
    folder = kept(record(1), record(2, started="2026-06-01T00:00:00+00:00"))
    between = 1_772_000_000  # 2026-02-25
    os.utime(folder / NAME / RUN_FILE, (between, between))
    assert gather(folder).pixel_counts == {"done": 1, "earlier": 1}


def test_a_pause_between_two_commands_is_no_part_of_the_pace(kept):
    folder = kept(
        record(1, started="2026-07-01T12:00:00+00:00"),
        record(2, started="2026-07-01T12:05:00+00:00"),
    )
    began = datetime.fromisoformat("2026-07-01T12:04:50+00:00").timestamp()
    os.utime(folder / NAME / RUN_FILE, (began, began))
    assert [each.pixels for each in gather(folder).pace.stretches] == [1, 1]


def test_what_was_published_before_is_said_to_be_there(make_collection, model_folder):
    collection = make_collection()
    run(collection, name=NAME, model=model_folder, workers=0, selection=Selection(limit=1))
    leaf = sorted(collection.glob("cat/dataset/**/Npix=*.parquet"))[-1]
    leaf.write_bytes(leaf.read_bytes()[:500])
    assert run(collection, name=NAME, model=model_folder, workers=0).exit_code == 30
    html = render(gather(collection))
    assert "readers still find the 6 published before" in html
    assert "nothing is published" not in html


def test_text_of_catalogs_and_errors_is_escaped(kept):
    folder = kept(record(1, "data", rows=0, error=NASTY, host=NASTY), job=JOB | {"run_id": NASTY})
    html = render(gather(folder))
    assert "<script" not in html
    assert_self_contained(html)
    assert "&lt;script&gt;" in html


def test_ten_thousand_pixels_stay_below_five_megabytes_and_no_failure_is_hidden(kept, tmp_path):
    kept()
    output = Output(tmp_path / "sky" / NAME)
    bad = {17, 40_000}
    output.gather(
        record(p, "data" if p in bad else "done", order=6, error="torn" if p in bad else "")
        for p in range(0, 49_152, 4)
    )
    (output.root / "skyvec" / "records").mkdir(exist_ok=True)
    output.save(record(17, "data", order=6, rows=0, error="torn"))
    facts = gather(tmp_path / "sky")
    assert len(facts.states) == 12_289
    html = render(facts)
    assert len(html.encode()) < 5e6
    assert_self_contained(html)
    assert "too many to draw" in html
    drawn = set(re.findall(r'id="(cell\d+)-', html))
    assert 100 < len(drawn) <= CELLS
    assert {"#p-6-17", "#p-6-40000"} <= set(seen(html).links)


def test_retries_and_their_reasons_come_from_the_events(kept, tmp_path):
    folder = kept(record(1, attempts=3))
    events = tmp_path / "run.jsonl"
    lines = [
        {"time": "t", "extension": NAME, "event": "retry", "order": 3, "pixel": 1, "why": "disk"},
        {"time": "t", "extension": "other", "event": "retry", "order": 3, "pixel": 1, "why": "no"},
    ]
    events.write_text("\n".join(map(json.dumps, lines)) + '\n{"time": "torn')
    facts = gather(folder, events=events)
    assert facts.to_dict()["retries"] == {"count": 2, "reasons": {"disk": 1}}
    assert "disk" in render(facts)
    events.write_text("")
    with pytest.raises(ConfigurationError, match="holds no event of extension 'vectors'"):
        gather(folder, events=events)


def test_pace_adds_up_to_the_rows(kept):
    folder = kept(*(record(p) for p in range(20)), record(30, started="2026-01-03T00:00:00+00:00"))
    pace = gather(folder).pace
    assert [each.pixels for each in pace.stretches] == [20, 1]
    width = pace.seconds[1] - pace.seconds[0]
    assert pace.rows_per_second.sum() * width == pytest.approx(10)
    assert pace.busy[0] == pytest.approx(0.75)


def test_missing_and_unreadable_records_are_one_clear_error(kept, tmp_path):
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        gather(tmp_path / "nothing")
    folder = kept(record(1))
    with pytest.raises(ConfigurationError, match=f"no run of 'x'. Name one .*{NAME}"):
        gather(folder, "x")
    (folder / NAME / MANIFEST).write_text("{torn")
    with pytest.raises(ContractError, match="the records of this run cannot be read"):
        gather(folder)


def test_an_extension_without_records_is_named_as_such(embedded, tmp_path):
    import shutil

    folder = shutil.copytree(embedded, tmp_path / "copy")
    shutil.rmtree(folder / "small_v1" / HOME)
    with pytest.raises(ConfigurationError, match="extension 'small_v1' has no records of a run"):
        gather(folder)


def test_a_page_that_cannot_be_written_is_one_clear_error(kept, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="the report cannot be written"):
        write_page(gather(kept(record(1))), tmp_path / "file" / "run.html")

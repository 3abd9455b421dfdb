"""What `skyvec plan` tells before any compute: sizes, matches, findings, cost."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from skyvec import sources
from skyvec.preview.preview import preview
from skyvec.preview.probe import Probed
from skyvec.preview.report import duration, preview_tables, size
from skyvec.releases.mmu.writer import write_mmu_release
from skyvec.sources import declared_sources
from skyvec.stage.plan import plan
from skyvec_schemas.survey_columns import DESI, SDSS

KEYS = ["object_id", "ra", "dec"]


def write_desi(folder, table, *, rows, wavelength=1.0, offset=0.0, ids=None, survey=DESI):
    """Spectra of the first rows of a catalog."""
    rng = np.random.default_rng(0)
    wave = np.tile(np.linspace(3600, 9824, 500, dtype=np.float32), (rows, 1))
    flux = rng.normal(1, 0.5, wave.shape).astype(np.float32)
    ids = table["object_id"].to_numpy()[:rows] if ids is None else ids
    columns = {
        "object_id": ids, "ra": table["ra"].to_numpy()[:rows] + offset,
        "dec": table["dec"].to_numpy()[:rows], "spectrum_flux": flux,
        "spectrum_ivar": np.full(wave.shape, 4, np.float32), "spectrum_lambda": wave * wavelength,
        "spectrum_mask": np.zeros(wave.shape, bool), "Z": np.ones(rows),
    }  # fmt: skip
    write_mmu_release(folder, survey, [columns])
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory, factory):
    """A catalog of 24 objects and its table."""
    table = factory.survey_table(24, cutouts=[None] * 24).select(KEYS)
    return factory.write_collection(table, tmp_path_factory.mktemp("objects") / "sky"), table


@pytest.fixture
def planned(objects, tmp_path, every_survey_model):
    sky, table = objects

    def make(*, rows=12, **changes):
        folder = write_desi(tmp_path / "desi", table, rows=rows, **changes)
        declared = declared_sources([f"desi={folder}"])
        return plan(sky, model=every_survey_model, survey="objects", sources=declared), folder

    return make


def text(seen):
    console = Console(width=100, record=True, file=None, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        for table in preview_tables(seen):
            console.print(table)
    return capture.get()


def test_sizes_matches_and_costs_of_a_healthy_source(planned):
    ready, folder = planned()
    seen = preview(ready, sample_rows=8, workers=2)
    (desi,) = seen.sources
    assert (seen.catalog.rows, desi.rows, desi.format) == (24, 12, "mmu-hdf5")
    assert desi.bytes == sum(p.stat().st_size for p in folder.rglob("*.hdf5"))
    assert desi.matched.fraction == 0.5
    assert desi.matched.rows == 24
    assert not desi.missing
    assert not seen.errors
    cost = seen.cost
    assert cost.rows == 24
    assert 0 < cost.sampled["desi"] <= 8
    assert 0 < cost.tokens["tok_spectrum_desi"] <= 0.5 * 273
    assert cost.seconds["read"] > 0
    assert cost.seconds["encode"] > 0
    assert cost.wall_seconds == pytest.approx(sum(cost.seconds.values()) / 2, abs=0.005)
    assert cost.vector_bytes == 24 * 32 * 2
    assert cost.spool_bytes == 12 * 2 * 273
    assert cost.read_bytes == pytest.approx(seen.catalog.bytes + desi.bytes, rel=0.01)


def test_traps_of_a_source_are_errors_that_name_it(planned):
    ready, _ = planned(wavelength=0.1)
    seen = preview(ready, sample_rows=8)
    assert [(f.source, f.topic) for f in seen.errors] == [("desi", "wavelength")]
    assert "nanometres" in text(seen)


def test_a_preview_is_plain_json_and_fits_a_terminal(planned):
    ready, _ = planned(wavelength=0.1)
    seen = preview(ready, sample_rows=4)
    told = json.loads(json.dumps(seen.to_dict()))
    assert told["sources"][0]["matched"]["fraction"] == 0.5
    assert told["findings"][0]["severity"] == "error"
    assert told["cost"]["rows"] == 24
    lines = text(seen).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("50.0%" in line for line in lines)
    assert any("extrapolated from" in line for line in lines)


def test_a_source_elsewhere_on_the_sky_matches_nothing_and_says_so(planned):
    ready, _ = planned(offset=30.0, ids=10 + np.arange(12))
    seen = preview(ready, sample_rows=4)
    assert seen.sources[0].matched.fraction == 0
    assert "match" in {f.topic for f in seen.findings}
    assert seen.cost is None


def test_a_file_that_breaks_after_the_plan_is_a_finding(planned):
    ready, folder = planned()
    for file in folder.rglob("*.hdf5"):
        file.write_bytes(b"broken")
    seen = preview(ready, sample_rows=4)
    assert {f.source for f in seen.errors} == {"desi"}
    assert seen.sources[0].rows == 0


def test_a_source_that_stumbles_is_a_finding(planned, monkeypatch):
    ready, _ = planned()
    source = Mock(spec=["objects"])
    source.objects.side_effect = ValueError("odd")
    monkeypatch.setitem(sources._OPENERS, "mmu-hdf5", Mock(return_value=source))
    seen = preview(ready, sample_rows=4)
    assert [f.what for f in seen.errors] == ["ValueError: odd"]
    assert seen.sources[0].matched is None
    assert seen.sources[0].rows == 12


@pytest.mark.parametrize(("pace", "counts"), [(0.0, [64, 64]), (0.03, [8, 8]), (0.2, [8, 8])])
def test_a_timed_sample_keeps_to_its_budget_from_the_second_pixel_on(monkeypatch, pace, counts):
    clock, asked = [0.0], []

    def work(count):
        clock[0] += pace * count
        asked.append(count)
        return count

    monkeypatch.setattr("skyvec.preview.probe.time.perf_counter", lambda: clock[0])
    probed = Probed(budget=0.4)
    for wanted in counts:
        count, seconds, result = probed.sample("s", "read", work, most=64, first=8)
        assert (count, result) == (wanted, wanted)
        assert seconds == pytest.approx(pace * wanted)
    assert asked[:2] == [8, 8]


def test_ids_of_another_kind_cannot_be_joined_by_id(objects, tmp_path, every_survey_model):
    sky, table = objects
    words = np.array([f"b{i}" for i in range(12)])
    write_desi(tmp_path / "sdss", table, rows=12, ids=words, survey=SDSS)
    file = tmp_path / "sources.toml"
    file.write_text(f'[sdss]\npath = "{tmp_path / "sdss"}"\njoin = "id"\n')
    declared = declared_sources(file=file)
    ready = plan(sky, model=every_survey_model, survey="objects", sources=declared)
    finding = next(f for f in preview(ready, sample_rows=4).errors if f.topic == "ids")
    assert finding.what.startswith("ids are text")


def test_a_catalog_without_sources_is_checked_and_timed(make_collection, model_folder):
    sky = make_collection(rows=6)
    seen = preview(plan(sky, model=model_folder), sample_rows=4)
    assert not seen.errors
    assert seen.sources == ()
    assert seen.cost.tokens["tok_image"] == 576
    tokens = preview(plan(sky, model=model_folder, product="tokens"), sample_rows=2)
    assert tokens.cost.seconds["encode"] == 0
    assert tokens.cost.vector_bytes == 6 * 2 * (576 + 12 + 1)


def test_bytes_and_seconds_are_written_for_people():
    assert [size(n) for n in (12, 3400, 61.1e12)] == ["12 B", "3.4 kB", "61.1 TB"]
    assert [duration(s) for s in (1.23, 120, 36000)] == ["1.2 s", "2.0 min", "10.0 h"]

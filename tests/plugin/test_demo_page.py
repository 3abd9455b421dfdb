"""The demo's page: one file, true to the facts, and hard to break."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from skyvec.demo.facts import CatalogFacts, Check, Cutout, DemoFacts, ScoreRow
from skyvec.demo.figures import loss_curves, visible_cells
from skyvec.demo.page import write_page
from skyvec.demo.wording import duration, neighbour_sentence, summary, taught, verdict
from skyvec.drawing import cutout_rgb
from skyvec.probes.scores import Score

EXTERNAL = re.compile(r"""(?:src|href|srcset|action|data)\s*=\s*["']?\s*(?:https?:)?//"""
                      r"""|url\(\s*["']?\s*(?:https?:)?//|@import|<script|<link""", re.IGNORECASE)  # fmt: skip
COLOURS = (0.45, 1.0, 1.5, 1.9)


def galaxy(rng, size, *, flux=40.0):
    """(4, size, size) griz: an exponential disc on noise."""
    angle, ratio = rng.uniform(0, np.pi), rng.uniform(0.35, 1)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    disc = np.exp(-np.hypot(along, across / ratio) / rng.uniform(2, 5))
    planes = [flux * c * disc / disc.sum() + rng.normal(0, 0.006, disc.shape) for c in COLOURS]
    return np.array(planes, np.float32)


def cutout(rng, size, name, *, distance=None):
    return Cutout(
        flux=galaxy(rng, size, flux=rng.uniform(5, 90)),
        caption=f"r = {rng.uniform(16, 20):.1f}, z = {rng.uniform(0.02, 0.6):.2f}",
        object_id=name, distance=distance,
    )  # fmt: skip


def catalog(rng, *, kind, rows, size, centre, spread, pixels):
    return CatalogFacts(
        name=f"{kind}_galaxies", kind=kind, description=f"{rows} {kind} galaxies for a test.",
        extension="skyvec_tiny_embedding", rows=rows, failed_rows=1, partial_rows=rows // 2,
        flags={"image_padded": rows // 2, "image_bad_pixels": 3, "image_unusable": 1},
        pixels=pixels, ra=np.mod(centre[0] + rng.uniform(-1, 1, rows) * spread[0], 360),
        dec=centre[1] + rng.uniform(-1, 1, rows) * spread[1],
        checks=[Check(what="row count equals the catalog's", passed=True, detail=f"{rows:,} in"),
                Check(what="ids equal, in the same order", passed=True, detail="one by one")],
        seconds=rows / 50,
        step_seconds={"read": 1.2, "tokenize": 9.0, "encode": 6.5, "write": 0.8, "verify": 0.4},
        gallery=[cutout(rng, size, f"{kind}-{i}") for i in range(3)],
        open_command=f'lsdb.open_catalog("{kind}").load_extension("skyvec_tiny_embedding")',
    )  # fmt: skip


def score_row(name, r2, *, half=0.04, ours=False):
    return ScoreRow(name=name, ours=ours, note="a note", score=Score(
        r2=r2, r2_low=r2 - half, r2_high=r2 + half, rmse=0.0612, nmad=0.0345, rows=1500, blocks=24,
    ))  # fmt: skip


def curve(start, points=60):
    steps = np.linspace(10, 3000, points)
    return {"step": steps.tolist(), "loss": (start * (0.2 + np.exp(-steps / 500))).tolist()}


def card():
    run = {"steps": 3400, "hours": 0.61, "held_out": {"step": 3400.0, "loss": 1.234},
           "curves": {"train": curve(3.0), "held_out": curve(3.2, 9)}}  # fmt: skip
    bands = dict(zip(("DES-G", "DES-R", "DES-I", "DES-Z"), (0.93, 0.96, 0.97, 0.965), strict=True))
    return {
        "name": "skyvec-tiny", "licence": "BSD-3-Clause", "seed": 7, "parameters": 1_934_567,
        "data": "40,000 mock galaxies", "commands": ["python -m skyvec_training all"],
        "domains": ["tok_image", "tok_flux_g", "tok_flux_r", "tok_ebv", "tok_z"],
        "recipe": {"transformer": {"model": {"dim": 128}}},
        "runs": {"image_codec": run, "transformer": run},
        "reconstruction": {"objects": 512, "r2": bands, "chi2": bands, "codes_used": 3211,
                           "codes": 4375},
    }  # fmt: skip


@pytest.fixture(scope="module")
def facts():
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.02, 0.6, 1500)
    real = catalog(rng, kind="real", rows=100, size=23, centre=(2.4, -17.0), spread=(2.5, 17.0),
                   pixels=[(3, 256), (3, 257), (2, 67), (4, 1128), (4, 1130)])  # fmt: skip
    mock = catalog(rng, kind="mock", rows=1500, size=96, centre=(160.0, 2.5), spread=(10.0, 7.5),
                   pixels=[(2, 104), (2, 106), (3, 420), (3, 430), (1, 27)])  # fmt: skip
    near = [[cutout(rng, size, f"{kind} near {i}", distance=start + 0.004 * i) for i in range(6)]
            for kind, size, start in (("real", 23, 0.011), ("mock", 96, 0.043))]  # fmt: skip
    return DemoFacts(
        skyvec_version="0.1.0", date="2026-11-22", model="skyvec-tiny", model_digest="ab12cd" * 10,
        dim=128, fingerprint="16b8e9a9" * 8, model_card=card(), catalogs=[real, mock],
        probe_target="Z", probe_truth=truth, probe_predicted=truth + rng.normal(0, 0.06, 1500),
        scores=[score_row("skyvec-tiny vectors, linear", 0.812, ours=True),
                score_row("untrained encoder, linear", 0.431),
                score_row("photometry alone, linear", 0.702)],
        query=cutout(rng, 23, "LS10-query-id"), neighbours_real=near[0], neighbours_mock=near[1],
        timings=[("Embedding the mock galaxies", 31.4), ("Linear model", 4.2)],
        commands=["skyvec plan sky", "skyvec embed sky"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(facts, tmp_path_factory):
    return write_page(facts, tmp_path_factory.mktemp("page") / "new" / "index.html")


@pytest.fixture(scope="module")
def html(page):
    return page.read_text(encoding="utf-8")


def small(facts):
    """The same facts, quick to draw."""
    catalogs = [replace(c, gallery=c.gallery[:1]) for c in facts.catalogs]
    return replace(facts, catalogs=catalogs, neighbours_real=[], neighbours_mock=[],
                   model_card={}, timings=[], commands=[])  # fmt: skip


def render(facts, tmp_path):
    return write_page(facts, tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_elsewhere(html):
    assert not EXTERNAL.search(html)


def test_every_picture_has_a_text(html):
    pictures = re.findall(r"<img\b[^>]*>", html)
    assert len(pictures) > 20
    assert all(re.search(r'alt="[^"]{8,}"', picture) for picture in pictures)


def test_the_page_is_small_enough_to_send(page):
    assert page.stat().st_size < 6_000_000


@pytest.mark.parametrize("said", [
    "1,600 galaxies", "100 real ones", "1,500 synthetic", "1,600 = 1,600", "4 of 4", "ab12cdab12cd",
    "128 × float16", "0.812", "0.702", "0.0345", "16b8e9a9", "distance 0.011", "1,934,567",
    "3,211 of 4,375", "skyvec embed sky", "36 of 576", "skyvec_tiny_embedding_status", "31 s",
])  # fmt: skip
def test_the_page_says_what_the_facts_say(html, said):
    assert said in html


def test_hostile_names_are_only_text(facts, tmp_path):
    evil = '<script>alert("1")</script>" onerror="x'
    query = replace(facts.query, object_id=evil, caption=evil)
    html = render(replace(small(facts), query=query, neighbours_mock=[query], model=evil), tmp_path)
    assert "<script" not in html
    assert '" onerror="' not in html
    assert "&lt;script&gt;" in html


def test_a_page_without_card_neighbours_scores_or_predictions(facts, tmp_path):
    nothing = np.array([np.nan])
    bare = replace(small(facts), scores=[], probe_truth=nothing, probe_predicted=nothing)
    html = render(bare, tmp_path)
    assert "No score was computed" in html
    assert "None was found" in html
    assert "Loss while training" not in html


def test_a_page_of_single_rows_and_bad_pixels(facts, tmp_path):
    holes = facts.query.flux.copy()
    holes[:, :5] = np.nan
    gallery = [replace(facts.query, flux=f) for f in (holes, np.full_like(holes, np.nan))]
    one = replace(facts.catalogs[0], rows=1, ra=np.array([359.9]), dec=np.array([-12.0]), flags={},
                  seconds=0.0, step_seconds={}, gallery=gallery, pixels=[(0, 8)])  # fmt: skip
    html = render(replace(small(facts), catalogs=[one]), tmp_path)
    assert "No row has a reason to be doubted" in html


def test_catalogs_all_over_the_sky_are_drawn_too(facts, tmp_path):
    rng = np.random.default_rng(0)
    wide = replace(facts.catalogs[0], rows=300, ra=rng.uniform(0, 360, 300), gallery=[],
                   dec=rng.uniform(-88, 88, 300), pixels=[(0, pixel) for pixel in range(12)])  # fmt: skip
    assert "12 HEALPix partitions" in render(replace(small(facts), catalogs=[wide]), tmp_path)


def test_a_failed_check_is_said_aloud(facts, tmp_path):
    failed = Check(what="ids equal", passed=False, detail="3 differ")
    catalogs = [replace(facts.catalogs[0], checks=[failed], gallery=[])]
    html = render(replace(small(facts), catalogs=catalogs), tmp_path)
    assert "Only 0 of 1 checks" in html
    assert "FAILED" in html
    assert "100 = 100" not in html


def test_the_summary_says_when_photometry_beats_the_vectors(facts):
    ours = facts.scores[0]
    assert "ahead of all else" in summary(facts)
    beaten = replace(facts, scores=[ours, score_row("photometry alone, linear", 0.93)])
    assert "“photometry alone, linear” does better without them (R² = 0.93)" in summary(beaten)
    assert "Plainly: “photometry alone, linear”" in " ".join(verdict(beaten))


@pytest.mark.parametrize(("other", "said"), [
    (0.60, "worse than the vectors; the intervals do not overlap"),
    (0.79, "worse than the vectors, but the intervals overlap"),
    (0.83, "better than the vectors, but the intervals overlap"),
    (0.95, "better than the vectors; the intervals do not overlap"),
])  # fmt: skip
def test_the_verdict_compares_intervals(facts, other, said):
    rows = [facts.scores[0], score_row("photometry", other)]
    assert said in verdict(replace(facts, scores=rows))[1]


def test_vectors_no_better_than_the_mean_are_called_that(facts):
    rows = [score_row("vectors", 0.01, ours=True)]
    assert verdict(replace(facts, scores=rows))[0].startswith("No:")


def test_a_target_that_the_model_was_taught_is_owned_up_to(facts):
    assert "it was taught what is asked here" in taught(facts)
    assert not taught(replace(facts, model_card={**facts.model_card, "domains": ["tok_image"]}))


def test_the_nearer_kind_is_computed(facts):
    assert "so the real ones are nearer" in neighbour_sentence(facts)
    swapped = replace(
        facts, neighbours_real=facts.neighbours_mock, neighbours_mock=facts.neighbours_real
    )
    assert "so the mock ones are nearer" in neighbour_sentence(swapped)


def test_curves_are_read_from_runs_or_from_the_top_and_skipped_if_broken():
    top = {"curves": {"codec": {"step": [1, 2], "value": [3.0, float("nan")]}, "empty": {}}}
    assert loss_curves(top) == {"training": {"codec": ([1.0], [3.0])}}
    assert set(loss_curves(card())["image codec"]) == {"train", "held_out"}
    assert loss_curves({"runs": None, "curves": {"a": {"step": [], "loss": []}}}) == {}


@pytest.mark.parametrize(("size", "tokens"), [(23, 36), (96, 576), (120, 576)])
def test_tokens_are_counted_as_the_codec_does(size, tokens):
    assert visible_cells(np.ones((4, size, size), np.float32)).sum() == tokens


def test_cutouts_use_the_whole_range_and_show_bad_pixels_grey():
    flux = galaxy(np.random.default_rng(1), 23)
    flux[:, 0, 0] = np.nan
    colours = cutout_rgb(flux)
    assert colours.shape == (23, 23, 3)
    assert colours.max() > 180
    assert np.median(colours) < 80
    assert np.ptp(colours[0, 0].astype(int)) < 20


@pytest.mark.parametrize(("seconds", "words"), [
    (0.44, "0.44 s"), (4.44, "4.4 s"), (38.2, "38 s"), (245, "4 min 5 s"), (3725, "1 h 2 min"),
])  # fmt: skip
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words

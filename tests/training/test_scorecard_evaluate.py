"""A whole scorecard of a very small model on a made-up release, its page, and promotion by it."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from skyvec_core.embedder import Model
from skyvec_core.heads.alignment import AlignmentHead
from skyvec_core.heads.tower import TowerConfig
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_schemas.errors import ConfigurationError, ContractError, WeightsError
from skyvec_schemas.token_columns import token_array
from skyvec_training.recipe.evaluation import (
    ClassificationTask,
    Evaluation,
    HeadRun,
    LowDataRun,
    Photometry,
    RegressionTask,
    SearchTask,
    SegmentationTask,
    TransferTask,
)
from skyvec_training.scorecard.card import read_card
from skyvec_training.scorecard.evaluate import evaluate
from skyvec_training.scorecard.page import write_page
from skyvec_training.scorecard.promotion import promote
from skyvec_training.scorecard.sample import read_sample, tokens_folder

DOMAINS = ("tok_flux_g", "tok_flux_r", "tok_image", "tok_z")
ROWS = 160
RUN = Evaluation(
    name="small",
    inputs={"photometry": ("tok_flux_*",), "image": ("tok_image",),
            "photometry+image": ("tok_flux_*", "tok_image"), "spectrum": ("tok_spectrum_*",)},
    regression=(RegressionTask(name="redshift", column="Z", redshift=True, excluded=("tok_z",),
                               oracle=("TRUE_BT",)),
                RegressionTask(name="age", column="AGE")),
    classification=(ClassificationTask(name="morphology", column="TRUE_BT", edges=(0.5,),
                                       classes=("disc", "bulge")),),
    transfer=(TransferTask(name="to itself", labels="morphology", taught_on="image",
                           asked_on="photometry+image"),),
    segmentation=(SegmentationTask(name="centre", column="map"),),
    search=(SearchTask(name="alike", query="image", among="image", labels="morphology", queries=20),
            SearchTask(name="spectra", query="image", among="spectrum"),
            SearchTask(name="words", query="text", among="image", labels="morphology")),
    heads=HeadRun(names=("ridge_mean", "ridge_modalities", "attentive"), epochs=2),
    low_data=LowDataRun(labels=(10, 30, 1000), inputs=("photometry",)),
    photometry=Photometry(iterations=25), folds=4, resamples=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_model(0)


def small_model(seed):
    sizes = TransformerConfig(dim=16, num_heads=2, encoder_depth=1, decoder_depth=1,
                              domains_in=DOMAINS, domains_out=DOMAINS)  # fmt: skip
    transformer = EncoderDecoder(sizes)
    transformer.initialize(torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(transformer.token_table.weight, std=1.0,
                          generator=torch.Generator().manual_seed(seed))  # fmt: skip
    return Model(transformer, {}, name=f"small-{seed}")


def write_release(folder, *, rows=ROWS, repeated=0):
    """Redshift follows from the fluxes, the bulge from the middle of the image."""
    rng = np.random.default_rng(0)
    g, r = rng.integers(0, 6, (2, rows))
    bulge = rng.integers(0, 2, rows)
    image = np.full((rows, 576), -1)
    side = np.arange(24)
    centre = (np.hypot(*(np.meshgrid(side, side) - np.array(11.5))) < 3).ravel()
    image[:, centre] = 100 + 50 * bulge[:, None]
    image[:, :40] = rng.integers(0, 4, (rows, 40))
    maps = np.zeros((rows, 96, 96), bool)
    maps[:] = centre.reshape(24, 24).repeat(4, 0).repeat(4, 1)
    spatial = (np.arange(rows) * 8 // rows).astype(np.int64) << 2 * (29 - 4)
    catalog = pa.table({
        "_healpix_29": spatial, "object_id": np.arange(rows),
        "Z": (0.1 * g + 0.05 * r).astype(np.float32), "TRUE_BT": 0.2 + 0.6 * bulge,
        "FLUX_G": 1.0 + g, "FLUX_R": 2.0 + r + 0.1 * rng.random(rows),
        "map": [m.tolist() for m in maps.astype(np.int8)],
    })  # fmt: skip
    order = np.concatenate([np.arange(rows), np.arange(repeated)])
    codes = {"tok_flux_g": g[:, None], "tok_flux_r": r[:, None], "tok_image": image,
             "tok_z": g[:, None]}  # fmt: skip
    tokens = {
        key: token_array(c[order].astype(np.int64), c[order] >= 0) for key, c in codes.items()
    }
    for name, table in (("sky", catalog), ("tokens", pa.table({"object_id": order, **tokens}))):
        leaf = folder / name / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
        leaf.parent.mkdir(parents=True)
        pq.write_table(table, leaf)
    return folder / "sky", folder / "tokens"


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("scorecard")
    sky, tokens = write_release(folder, repeated=3)
    return evaluate(model, sky, tokens, RUN, folder / "out"), folder


def test_what_can_be_known_is_found_and_what_cannot_is_skipped_with_its_reason(scored):
    card, _ = scored
    redshift = card.task("redshift")
    found = {s.method: s for s in redshift.scores if s.role != "head"}
    assert found["embeddings, photometry"].metrics["r2"].low > 0.8
    assert found["embeddings, image"].metrics["r2"].value < 0.3
    assert found["boosting_photometry"].metrics["r2"].value > 0.8
    assert {"sigma_nmad", "outliers_0.15", "outliers_rail", "bias"} <= set(
        found["boosting_photometry"].metrics
    )
    assert redshift.excluded == ("tok_z",)
    assert any("has seen such labels" in note for note in redshift.notes)
    assert "no column AGE" in card.task("age").skipped
    assert "tok_spectrum_*" in card.task("spectra").skipped
    assert "text" in card.task("words").skipped
    assert card.release["repeated_ids_left_out"] == 3
    assert card.low_data.skipped == ("1,000 labels: a fold leaves at most 120",)


def test_controls_score_chance_and_a_limit_stands_apart(scored):
    card, _ = scored
    for name in ("redshift", "morphology"):
        task = card.task(name)
        assert "shuffled labels score chance, as they must" in task.notes
        shuffled = next(s for s in task.scores if s.method == "shuffled labels")
        assert shuffled.metrics[task.metric].low <= {"r2": 0.0, "auroc": 0.5}[task.metric]
    assert {s.role for s in card.task("redshift").scores} == {
        "embeddings", "head", "baseline", "control", "limit"}  # fmt: skip


def test_images_are_told_apart_by_class_search_and_map(scored):
    card, _ = scored
    best = {s.method: s.metrics for s in card.task("morphology").scores if s.role != "head"}
    assert best["embeddings, image"]["auroc"].value > 0.95
    assert best["boosting_photometry"]["auroc"].value < 0.7
    pair = next(c for c in card.task("morphology").comparisons
                if (c.ours, c.theirs) == ("embeddings, image", "boosting_photometry"))  # fmt: skip
    assert pair.verdict == "better"
    alike = {s.method: s.metrics["ndcg@10"].value for s in card.task("alike").scores}
    assert alike["embeddings, image"] > 0.9
    assert alike["photometry"] < 0.7
    assert next(iter(card.task("centre").scores)).metrics["iou"].value > 0.9
    assert card.task("to itself").scores[0].method == "taught on image"


def test_low_data_curves_hold_every_number_of_labels_with_its_draws(scored):
    card, _ = scored
    points = [p for p in card.low_data.points if p.task == "redshift"]
    assert {p.labels for p in points} == {10, 30}
    assert card.low_data.seeds >= RUN.low_data.seeds
    assert all(len(p.by_seed) == card.low_data.seeds for p in points)
    line = {p.labels: p.score.value for p in points if p.method == "embeddings, photometry"}
    assert line[30] > line[10]


def test_the_card_reads_back_and_says_what_it_is_of(scored, model):
    card, folder = scored
    facts = json.loads((folder / "out/scorecard.json").read_text())
    assert facts["schema"] == "skyvec.scorecard/1"
    assert facts["model"]["digest"] == model.digest
    assert facts["release"]["rows"] == ROWS
    assert facts["tasks"][0]["comparisons"][0]["verdict"] in {"better", "worse", "undecided"}
    again = read_card(folder / "out")
    assert [t.name for t in again.tasks] == [t.name for t in card.tasks]
    assert again.task("redshift").scores == card.task("redshift").scores


def test_a_second_run_computes_no_vector_and_no_head_again(scored, model, monkeypatch):
    card, folder = scored
    monkeypatch.setattr(Model, "contexts", None)
    monkeypatch.setattr("skyvec_training.scorecard.heads.RidgeHead.predict", None)
    monkeypatch.setattr("skyvec_training.scorecard.tasks.transfer._asked",
                        lambda *given: np.zeros_like(given[2].values_BK))  # fmt: skip
    again = evaluate(model, folder / "sky", folder / "tokens", RUN, folder / "out")
    assert again.task("redshift") == card.task("redshift")
    assert again.low_data == card.low_data


class Loads(HTMLParser):
    """Everything that a browser would fetch, and all ids."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"} and not value.startswith("#"):
                self.fetched.append(value)
            if name == "id":
                self.ids.append(value)
        assert tag not in {"script", "link", "iframe", "img"}


def test_the_page_loads_nothing_and_names_every_task(scored):
    card, folder = scored
    text = write_page(card, folder / "out").read_text()
    page = Loads()
    page.feed(text)
    assert page.fetched == []
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in text
    assert "url(http" not in text
    for task in card.tasks:
        assert task.name.lower() in text.lower()
        assert not task.skipped or task.skipped in text.replace("&#39;", "'")
    assert "prefers-color-scheme: dark" in text


def test_a_model_is_promoted_over_itself_and_not_if_a_metric_falls(scored, tmp_path):
    _, folder = scored
    changes = promote(folder / "out", folder / "out", tmp_path)
    assert changes
    assert all(c.difference.value == c.difference.low == c.difference.high == 0 for c in changes
               if c.paired)  # fmt: skip
    assert json.loads((tmp_path / "promoted.json").read_text())["promoted"]["name"] == "small-0"
    worse = tmp_path / "worse"
    worse.mkdir()
    facts = json.loads((folder / "out/scorecard.json").read_text())
    for score in facts["tasks"][0]["scores"]:
        score["metrics"]["r2"]["value"] -= 0.3
    (worse / "scorecard.json").write_text(json.dumps(facts))
    with pytest.raises(ContractError, match=r"redshift, embeddings, photometry: R² falls") as e:
        promote(worse, folder / "out", tmp_path / "no")
    assert e.value.exit_code == 30
    assert not (tmp_path / "no").exists()


def test_rows_decide_where_they_are_kept(scored, tmp_path):
    _, folder = scored
    shutil.copytree(folder / "out", tmp_path / "other", ignore=shutil.ignore_patterns("work"))
    path = tmp_path / "other/predictions.safetensors"
    values = {name: np.array(v) for name, v in load_file(path).items()}
    values["redshift/embeddings, photometry"] = values["redshift/embeddings, photometry"][::-1]
    ids = "a digest"
    for place in (path, folder / "out/predictions.safetensors"):
        kept = values if place == path else load_file(place)
        save_file({n: np.ascontiguousarray(v) for n, v in kept.items()}, place, {"ids": ids})
    with pytest.raises(ContractError, match="R² falls, "):
        promote(tmp_path / "other", folder / "out", tmp_path)


def test_cards_of_other_objects_or_questions_are_not_compared(scored, tmp_path):
    _, folder = scored
    facts = json.loads((folder / "out/scorecard.json").read_text())
    facts["settings"]["digest"] = "other"
    (tmp_path / "scorecard.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigurationError, match="one release by one recipe"):
        promote(tmp_path, folder / "out", tmp_path)
    (tmp_path / "scorecard.json").write_text(json.dumps({"schema": "skyvec.scorecard/0"}))
    with pytest.raises(ConfigurationError, match="scorecard/0"):
        read_card(tmp_path)
    with pytest.raises(ConfigurationError, match="not a scorecard"):
        read_card(tmp_path / "none")


def test_a_task_that_is_gone_stops_a_promotion(scored, tmp_path):
    _, folder = scored
    facts = json.loads((folder / "out/scorecard.json").read_text())
    facts["tasks"] = [t for t in facts["tasks"] if t["name"] != "morphology"]
    (tmp_path / "scorecard.json").write_text(json.dumps(facts))
    with pytest.raises(ContractError, match=r"morphology, .*no such score"):
        promote(tmp_path, folder / "out", tmp_path / "no")


def test_labels_may_lie_in_a_file_of_their_own(tmp_path):
    sky, tokens = write_release(tmp_path, rows=40)
    pq.write_table(pa.table({"object_id": [5, 3, 99], "AGE": [1.0, 2.0, 3.0]}), tmp_path / "a.pq")
    sample = read_sample(sky, tokens, survey="legacysurvey", domains=DOMAINS,
                         columns=["Z", "AGE"], labels=[tmp_path / "a.pq"])  # fmt: skip
    ages = sample.numbers("AGE")
    assert (ages[5], ages[3], np.isfinite(ages).sum()) == (1.0, 2.0, 2)
    assert np.isfinite(sample.numbers("Z")).all()
    few = read_sample(sky, tokens, survey="legacysurvey", domains=DOMAINS, columns=[], most=10)
    assert (len(few), few.ids_digest) == (10, few.ids_digest)


def test_bad_input_is_one_clear_error(tmp_path, model):
    sky, tokens = write_release(tmp_path)
    with pytest.raises(ConfigurationError, match="skyvec tokenize"):
        tokens_folder(sky, "nowhere")
    assert tokens_folder(tmp_path, "tokens") == tokens
    with pytest.raises(ContractError, match="none of the model's domains"):
        read_sample(sky, tokens, survey="legacysurvey", domains=("tok_ebv",), columns=[])
    with pytest.raises(ConfigurationError, match="no such file"):
        read_sample(sky, tokens, survey="legacysurvey", domains=DOMAINS, columns=[],
                    labels=[tmp_path / "labels.parquet"])  # fmt: skip
    head = AlignmentHead(
        {"image": TowerConfig(width=16, dim=8, hidden=8, domains=("tok_image",)),
         "spectrum": TowerConfig(width=16, dim=8, hidden=8, domains=("tok_spectrum_desi",))},
        model_digest="of another model",
    )  # fmt: skip
    with pytest.raises(WeightsError, match="trained on model of another"):
        evaluate(model, sky, tokens, RUN, tmp_path / "out", alignments=[head])

"""From run folders to a model folder with a card."""

import json

import numpy as np
import pytest
import torch

from skyvec_core.codecs.folder import save_codec
from skyvec_core.embedder import Model
from skyvec_core.golden import GOLDEN_FILE, GoldenVectors
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import WeightsError
from skyvec_schemas.survey_columns import LEGACY_SURVEY
from skyvec_training.codecs.scalars import columns_of, fit_scalars
from skyvec_training.loop import curves
from skyvec_training.loop.trainer import train
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.transformer import build_task, build_transformer
from skyvec_training.publish import export, model_card
from skyvec_training.recipe.codecs import CodecRun, ScalarRun
from skyvec_training.recipe.recipe import Recipe


@pytest.fixture
def runs(tmp_path, transformer_run, store, vocabulary):
    batches = MaskedBatches(store, vocabulary, transformer_run, seed=0)
    task = build_task(batches, transformer_run, seed=0)
    train(task, transformer_run.optimizer, tmp_path / "transformer", run_digest="a")
    values = {name: np.exp(np.linspace(0, 1, 50)) for name in columns_of(LEGACY_SURVEY)}
    for key, codec in fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=0)).items():
        save_codec(codec, tmp_path / "scalars", MODALITIES[key])
    return tmp_path


def exported(runs, run, name="tiny-test", **options):
    return export.export_model(
        build_transformer(run, seed=5), export.newest_of(runs / "transformer"),
        [runs / "scalars"], runs / "model", name=name, **options,
    )  # fmt: skip


def test_an_exported_folder_loads_and_embeds(runs, transformer_run):
    model = exported(runs, transformer_run)
    again = Model.load(runs / "model", name="tiny-test")
    assert again.digest == model.digest
    tokens = again.tokenize({"tok_flux_g": torch.tensor([1.5, 2.0, float("nan")])})
    vectors = again.embed(tokens)
    assert torch.isfinite(vectors[:2]).all()
    assert torch.isnan(vectors[2]).all()


def test_an_exported_folder_carries_golden_vectors(runs, transformer_run):
    model = exported(runs, transformer_run)
    kept = GoldenVectors.load(runs / "model" / GOLDEN_FILE)
    assert GoldenVectors.of(model).compare(kept).ok


def test_exporting_twice_gives_the_same_model(runs, transformer_run):
    assert exported(runs, transformer_run).digest == exported(runs, transformer_run).digest


def test_without_constants_the_folder_is_smaller_and_the_model_the_same(runs, transformer_run):
    def size_and_digest(**options):
        digest = exported(runs, transformer_run, **options).digest
        return (runs / "model" / "model.safetensors").stat().st_size, digest

    whole, small = size_and_digest(), size_and_digest(constants=False)
    assert small[0] < whole[0]
    assert small[1] == whole[1]


def test_codecs_alone_make_a_folder_that_tokenizes(runs, transformer_run):
    model = export.export_model(
        build_transformer(transformer_run, seed=0), None, [runs / "scalars"], runs / "codecs-only",
        name="codecs-only",
    )  # fmt: skip
    codes = model.tokenize({"tok_flux_g": torch.tensor([1.5])})["tok_flux_g"]
    assert codes.valid_BN.all()


def test_a_run_without_checkpoint_cannot_be_exported(tmp_path):
    with pytest.raises(WeightsError, match=r"no complete checkpoint\. Train the transformer"):
        export.newest_of(tmp_path)


def test_the_card_tells_how_the_model_was_made(runs, transformer_run):
    model = exported(runs, transformer_run)
    recipe = Recipe(name="tiny-test", image_codec=CodecRun(optimizer=transformer_run.optimizer),
                    scalars=ScalarRun(), transformer=transformer_run)  # fmt: skip
    card = model_card.model_card(
        model, recipe, seed=7, data="20 made-up objects", codec_run=runs / "codec",
        transformer_run=runs / "transformer", commands=["make it"],
    )  # fmt: skip
    written = json.loads(model_card.write_card(runs / "model", card).read_text())
    assert written["digest"] == model.digest
    assert (written["seed"], written["licence"]) == (7, "BSD-3-Clause")
    assert written["runs"]["transformer"]["steps"] == 6
    assert written["runs"]["transformer"]["from"] == ""
    assert len(written["runs"]["transformer"]["curves"]["train"]["loss"]) == 6


def test_the_loss_curve_is_drawn(runs):
    pytest.importorskip("matplotlib")
    curves.draw_curve(runs / "transformer", runs / "loss.png")
    assert (runs / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_log_is_averaged_down():
    records = [{"kind": "train", "step": float(s), "loss": float(s)} for s in range(1, 1001)]
    points = curves.curve(records, kind="train", points=100)
    assert len(points["loss"]) == 100
    assert (points["step"][0], points["loss"][0]) == (10, 5.5)

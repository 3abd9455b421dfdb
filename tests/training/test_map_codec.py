"""Segmentation maps in, a codec out."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from skyvec_core.codecs.folder import load_codec, save_codec
from skyvec_core.modalities import MODALITIES
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import LEGACY_SURVEY
from skyvec_training.codecs import map_scores
from skyvec_training.codecs.map import MapTask, build_codec, map_loss
from skyvec_training.codecs.mixture import Learnt
from skyvec_training.data.maps import MapStore, unpack
from skyvec_training.loop.trainer import train
from skyvec_training.recipe.codecs import CodecSource, MapCodecRun, MapSizes
from skyvec_training.recipe.optimizer import OptimizerRun


def discs(count, *, size=96, seed=0):
    rng = np.random.default_rng(seed)
    axis = np.arange(size)
    x, y, r = rng.uniform(20, 76, (count, 1, 1)), rng.uniform(20, 76, (count, 1, 1)), rng.uniform(
        8, 20, (count, 1, 1))  # fmt: skip
    return (np.hypot(axis[:, None] - y, axis - x) < r).astype(np.float16)


def made_task(*, steps=1, decay=0.9, loss="bce"):
    source = CodecSource(name="legacysurvey", held_out=8)
    run = MapCodecRun(
        optimizer=OptimizerRun(steps=steps, learning_rate=5e-3, warmup_steps=0,
                               evaluate_every=steps, checkpoint_every=steps),
        source=source, model=MapSizes(encoder_output_dim=32, res_hidden_dims=16), batch=8,
        average_decay=decay, loss=loss,
    )  # fmt: skip
    store = MapStore(map_BHW=discs(40), ids=np.arange(40).astype("S8"))
    return MapTask(build_codec(run, seed=0), [Learnt(source, store)], run, seed=0)


def test_the_codec_learns_discs(tmp_path):
    task = made_task(steps=60)
    learnt = task.mixture.sources[0]
    before = map_scores.scores(build_codec(task.run, seed=0).eval(), learnt.store, np.arange(8))
    assert train(task, task.run.optimizer, tmp_path, run_digest="a").finished
    task.module.follow()
    after = map_scores.scores(task.module.averaged.eval(), learnt.store, learnt.held_out(8))
    assert after["mse"] < 0.5 * min(before["mse"], after["mse_of_mean"])
    save_codec(task.module.averaged, tmp_path, MODALITIES["tok_segmap"])
    again = load_codec(tmp_path, MODALITIES["tok_segmap"])
    assert map_scores.scores(again, learnt.store, learnt.held_out(8)) == after


def test_a_perfect_codec_has_perfect_scores():
    class Copy(torch.nn.Module):
        def __init__(self, codec):
            super().__init__()
            self.quantizer, self.codec = codec.quantizer, codec

        def encode(self, maps):
            self.maps = maps
            return self.codec.encode(maps)

        def decode(self, _):
            return self.maps.nan_to_num(1.0)

    maps = discs(4)
    maps[0, :10] = np.nan
    store = MapStore(map_BHW=maps, ids=np.arange(4).astype("S8"))
    scores = map_scores.scores(Copy(build_codec(made_task().run, seed=0)), store, np.arange(4))
    assert scores["mse"] == scores["area_error"] == 0
    assert scores["iou"] == scores["iou_median"] == 1


def test_the_average_follows_and_is_not_trained():
    task = made_task(decay=0.5)
    module = task.module
    assert all(not p.requires_grad for p in module.average.parameters())
    module.follow()
    first = module.codec.encode_proj.weight.detach().clone()
    torch.testing.assert_close(module.averaged.encode_proj.weight, first)
    with torch.no_grad():
        module.codec.encode_proj.weight.add_(1.0)
    module.follow()  # after one step it keeps 2 / 11
    torch.testing.assert_close(module.averaged.encode_proj.weight, first + 9 / 11)
    assert torch.equal(module.averaged.quantizer.levels, module.codec.quantizer.levels)


def test_a_resumed_run_has_the_same_average(tmp_path):
    whole, first, second = made_task(steps=4), made_task(steps=4), made_task(steps=4)
    run = whole.run.optimizer
    train(whole, run, tmp_path / "whole", run_digest="a")
    train(first, run, tmp_path / "parts", run_digest="a", minutes=0)
    train(second, run, tmp_path / "parts", run_digest="a")
    for one, other in zip(whole.module.state_dict().values(), second.module.state_dict().values(),
                          strict=True):  # fmt: skip
        assert torch.equal(one, other)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_pixels_that_were_not_measured_do_not_count(loss):
    task = made_task(loss=loss)
    codec = task.module.codec.eval()
    torch.nn.init.constant_(codec.decoder["net"][-1].bias, 2.0)  # says "object" everywhere
    maps = torch.ones(3, 96, 96)
    maps[:, :48] = torch.nan
    value = map_loss(codec, maps, task.run)
    assert value < 0.2
    assert map_loss(codec, maps.nan_to_num(0.0), task.run) > 2 * value


def test_maps_of_both_kinds_of_file_are_read(tmp_path):
    labels = (discs(3, size=120) * 4).astype(np.uint8)
    place = tmp_path / "ls" / "healpix=1" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    with h5py.File(place, "w") as file:
        file["object_id"], file["object_mask"] = np.arange(3), labels
    store = unpack(tmp_path / "ls", LEGACY_SURVEY, "object_mask", tmp_path / "a")
    np.testing.assert_array_equal(store.read(np.arange(3)), labels[:, 12:108, 12:108] > 0)
    leaf = tmp_path / "hats" / "dataset" / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    leaf.parent.mkdir(parents=True)
    column = pa.array([np.full((50, 50), 0.25).tolist(), None])
    pq.write_table(pa.table({"object_id": [1, 2], "probability": column}), leaf)
    store = unpack(tmp_path / "hats", LEGACY_SURVEY, "probability", tmp_path / "b")
    maps = store.read(np.arange(2))
    assert maps[0].isfinite().sum() == 50 * 50
    assert maps[0].nanmean() == 0.25
    assert maps[1].isnan().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.full((1, 8, 8), 2.5), r"values lie in 2.5..2.5, not in 0..1"),
     (np.zeros((1, 8)), "a map has 1 axes")],
)  # fmt: skip
def test_what_is_no_map_is_refused(tmp_path, values, message):
    place = tmp_path / "ls" / "healpix=1" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    with h5py.File(place, "w") as file:
        file["object_id"], file["object_mask"] = np.arange(1), values
    with pytest.raises(ContractError, match=message):
        unpack(tmp_path / "ls", LEGACY_SURVEY, "object_mask", tmp_path / "a")
    with pytest.raises(MissingColumnError, match="column segmap is missing"):
        unpack(tmp_path / "ls", LEGACY_SURVEY, "segmap", tmp_path / "a")


def test_an_average_that_never_moves_is_refused():
    with pytest.raises(ValueError, match="average_decay"):
        made_task(decay=1.0)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    task = made_task(steps=2)
    torch.nn.init.constant_(task.module.codec.encode_proj.weight, torch.nan)
    with pytest.raises(ConfigurationError, match=r"not finite|is nan"):
        train(task, task.run.optimizer, tmp_path, run_digest="a")

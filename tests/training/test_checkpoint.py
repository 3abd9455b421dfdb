"""Whole or absent, and what was read is what was written."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from skyvec_schemas.errors import ConfigurationError, InfrastructureError, WeightsError
from skyvec_training.loop import checkpoint, restoring
from skyvec_training.loop.checkpoint import Facts, Retention

SHARD = "shard-00001-model-00001-of-00001.safetensors"
TWO = Retention(newest=2)


def tensors(fill=1.0):
    return {"module.w": torch.full((3, 2), fill), "optimizer.w.step": torch.tensor(fill)}


def save(folder, *, step, retention=TWO, trunk=False, fill=None):
    facts = Facts(step=step, seconds=1.5, run_digest="a", data_digest="d", trunk=trunk)
    written = tensors(float(step) if fill is None else fill)
    return checkpoint.save(folder, written, facts, retention=retention)


def load(folder, into=None):
    wanted = tensors(-1.0) if into is None else into
    restoring.load(restoring.newest_sound(folder), wanted)
    return wanted


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_was_written_is_read(tmp_path):
    save(tmp_path, step=3)
    found = checkpoint.newest(tmp_path)
    assert (found.step, found.seconds, found.facts.data_digest) == (3, 1.5, "d")
    assert all(torch.equal(load(tmp_path)[k], v) for k, v in tensors(3.0).items())


def test_shards_are_plain_safetensors_that_a_group_may_read(tmp_path):
    place = save(tmp_path, step=3)
    assert sorted(p.name for p in place.iterdir()) == [checkpoint.COMMIT, SHARD]
    assert stat.S_IMODE((place / SHARD).stat().st_mode) == 0o644
    with safe_open(place / SHARD, framework="pt") as stored:
        assert set(stored.keys()) == set(tensors())
    commit = json.loads((place / checkpoint.COMMIT).read_text())
    assert commit["shards"][SHARD]["bytes"] == (place / SHARD).stat().st_size


def test_a_save_killed_before_its_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, step=3)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, step=6)
    assert checkpoint.newest(tmp_path).step == 3
    save(tmp_path, step=6)
    assert checkpoint.newest(tmp_path).step == 6
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncate", "uncommit", "no commit", "half a commit"])
def test_an_incomplete_checkpoint_does_not_count(tmp_path, damage):
    save(tmp_path, step=3)
    last = save(tmp_path, step=6)
    if damage == "truncate":
        os.truncate(last / SHARD, 10)
    elif damage == "uncommit":
        (last / checkpoint.COMMIT).write_text("{}")
    elif damage == "half a commit":
        os.truncate(last / checkpoint.COMMIT, 20)
    else:
        (last / checkpoint.COMMIT).unlink()
    assert checkpoint.newest(tmp_path).step == 3


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(tmp_path):
    save(tmp_path, step=3)
    last = save(tmp_path, step=6)
    flip_a_bit(last / SHARD)
    told = []
    assert restoring.newest_sound(tmp_path, tell=told.append).step == 3
    assert len(told) == 1
    assert str(last / SHARD) in told[0]


def test_if_all_are_damaged_a_run_does_not_start_anew(tmp_path):
    for step in (3, 6):
        flip_a_bit(save(tmp_path, step=step) / SHARD)
    with pytest.raises(WeightsError, match=r"no checkpoint is sound.*step-00000006.*step-00000003"):
        restoring.newest_sound(tmp_path)


def test_a_full_disk_is_one_clear_error_and_the_old_checkpoint_is_intact(tmp_path, monkeypatch):
    save(tmp_path, step=3)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(
            InfrastructureError, match=r"step 6 .*No space left.*older ones are"
        ) as e:
            save(tmp_path, step=6)
    assert e.value.exit_code == 50
    assert not list(tmp_path.glob("*.tmp"))
    assert load(tmp_path)["module.w"][0, 0] == 3


def test_another_shape_is_refused_by_name(tmp_path):
    save(tmp_path, step=3)
    wanted = {"module.w": torch.zeros(4, 2), "module.v": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"module.w is \(3, 2\) there and \(4, 2\) here; "
                                           r"module.v is absent there"):  # fmt: skip
        load(tmp_path, wanted)
    assert wanted["module.w"].sum() == 0


@pytest.mark.parametrize(
    ("run", "data", "words"), [("b", "d", "another recipe or seed"), ("a", "e", "other data")]
)
def test_other_settings_and_other_data_are_refused(tmp_path, run, data, words):
    save(tmp_path, step=3)
    with pytest.raises(ConfigurationError, match=words):
        restoring.require_same_run(checkpoint.newest(tmp_path), run_digest=run, data_digest=data)


def test_the_newest_the_regular_and_the_plateau_are_kept(tmp_path):
    for step in range(1, 10):
        save(tmp_path, step=step, trunk=step == 3, retention=Retention(newest=2, every=4))
    assert [c.step for c in checkpoint.checkpoints(tmp_path)] == [3, 4, 8, 9]


def test_another_run_starts_from_the_plateau_or_else_the_newest(tmp_path):
    save(tmp_path, step=1)
    save(tmp_path, step=2)
    assert restoring.start_of(tmp_path).step == 2
    save(tmp_path, step=3, trunk=True)
    save(tmp_path, step=4)
    assert restoring.start_of(tmp_path).step == 3
    flip_a_bit(tmp_path / "step-00000003" / SHARD)
    with pytest.raises(WeightsError, match=r"step-00000003.*changed after it was written"):
        restoring.start_of(tmp_path)


def test_a_folder_without_checkpoints_is_no_start(tmp_path):
    with pytest.raises(WeightsError, match="no complete checkpoint"):
        restoring.start_of(tmp_path / "nowhere")


def test_a_parameter_is_filled_in_place(tmp_path):
    save(tmp_path, step=3)
    line = nn.Linear(2, 3, bias=False)
    load(tmp_path, {"module.w": line.weight.detach()})
    assert (line.weight == 3).all()

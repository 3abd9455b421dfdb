"""Whole or absent, and a resumed run is the run."""

import dataclasses
import functools
import os
from pathlib import Path

import pytest
import torch

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.loop import checkpoint
from skyvec_training.loop.curves import read_log
from skyvec_training.loop.optimizer import build_optimizer
from skyvec_training.loop.trainer import train
from skyvec_training.masked.transformer import TransformerTask, build_transformer


@pytest.fixture
def save(line_task):
    return functools.partial(_save, line_task())


def _save(task, folder, *, step, run, keep=2):
    return checkpoint.save(folder, task.module, build_optimizer(task.module, run), step=step,
                           seconds=1.0, run_digest="a", keep=keep)  # fmt: skip


def test_a_save_killed_before_its_rename_leaves_the_old_checkpoint(
    tmp_path, save, optimizer_run, monkeypatch
):
    save(tmp_path, step=3, run=optimizer_run)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, step=6, run=optimizer_run)
    assert checkpoint.newest(tmp_path).step == 3
    save(tmp_path, step=6, run=optimizer_run)
    assert checkpoint.newest(tmp_path).step == 6


@pytest.mark.parametrize("damage", ["truncate", "uncommit"])
def test_an_incomplete_checkpoint_does_not_count(tmp_path, save, optimizer_run, damage):
    save(tmp_path, step=3, run=optimizer_run)
    last = save(tmp_path, step=6, run=optimizer_run)
    if damage == "truncate":
        os.truncate(last / checkpoint.MODULE, 10)
    else:
        (last / checkpoint.COMMIT).unlink()
    assert checkpoint.newest(tmp_path).step == 3


def test_only_the_newest_are_kept(tmp_path, save, optimizer_run):
    for step in (1, 2, 3):
        save(tmp_path, step=step, run=optimizer_run)
    assert [c.step for c in checkpoint.checkpoints(tmp_path)] == [2, 3]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, save, line_task, optimizer_run):
    save(tmp_path, step=3, run=optimizer_run)
    with pytest.raises(ConfigurationError, match="another recipe or seed"):
        train(line_task(), optimizer_run, tmp_path, run_digest="b")


def test_six_steps_are_bit_equal_to_three_and_three(tmp_path, transformer_run, store):
    run = transformer_run.optimizer

    def task():
        return TransformerTask(build_transformer(transformer_run, seed=1), store, transformer_run,
                               seed=1)  # fmt: skip

    straight = task()
    train(straight, run, tmp_path / "straight", run_digest="a")
    first = task()
    with pytest.raises(StopIteration):
        train(first, run, tmp_path / "parts", run_digest="a", observe=_stop_after(4))
    second = task()
    train(second, run, tmp_path / "parts", run_digest="a")
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    assert read_log(tmp_path / "straight") == read_log(tmp_path / "parts")


def test_a_finished_run_has_nothing_left_to_do(tmp_path, line_task, optimizer_run):
    train(line_task(), optimizer_run, tmp_path, run_digest="a")
    again = train(line_task(), optimizer_run, tmp_path, run_digest="a")
    assert again.finished
    assert [r["step"] for r in read_log(tmp_path) if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_the_clock_stops_a_run_that_can_go_on(tmp_path, line_task, optimizer_run):
    stopped = train(line_task(), optimizer_run, tmp_path, run_digest="a", minutes=0)
    assert (stopped.step, stopped.finished) == (0, False)
    assert train(line_task(), optimizer_run, tmp_path, run_digest="a").finished


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(
    tmp_path, line_task, optimizer_run
):
    run = dataclasses.replace(optimizer_run, checkpoint_every=2)
    with pytest.raises(ConfigurationError, match=r"nan .* step 4; kept step-00000004"):
        train(line_task(nan_step=4), run, tmp_path, run_digest="a")
    assert checkpoint.newest(tmp_path).step == 4
    assert torch.isfinite(torch.tensor([r["loss"] for r in read_log(tmp_path)])).all()


def _stop_after(step):
    def observe(record):
        if record["step"] == step:
            raise StopIteration

    return observe

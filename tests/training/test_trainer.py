"""A resumed run is the run; it stops when asked, and never on bad numbers unnoticed."""

import dataclasses
import os
import signal

import pytest
import torch

from skyvec_schemas.errors import ConfigurationError, InfrastructureError, WeightsError
from skyvec_training.loop import checkpoint, restoring
from skyvec_training.loop.curves import LossLog, read_log
from skyvec_training.loop.shares import pieces_of
from skyvec_training.loop.trainer import Origin, train
from skyvec_training.masked.batches import MaskedBatches
from skyvec_training.masked.transformer import build_task
from skyvec_training.parallel.mesh import World
from skyvec_training.parallel.signals import StopRequests
from skyvec_training.recipe.parallel import ParallelRun


@pytest.fixture
def batches(vocabulary, store, transformer_run):
    return MaskedBatches(store, vocabulary, transformer_run, seed=1)


@pytest.fixture
def made(batches, transformer_run):
    return lambda run=transformer_run: build_task(batches, run, seed=1)


def weights(task):
    return {name: tensor.clone() for name, tensor in task.module.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def stop_after(step):
    def observe(record):
        if record["step"] == step:
            raise StopIteration

    return observe


def test_six_steps_are_bit_equal_to_three_and_three(tmp_path, made, transformer_run):
    run = transformer_run.optimizer
    straight, first, second = made(), made(), made()
    train(straight, run, tmp_path / "straight", run_digest="a")
    with pytest.raises(StopIteration):
        train(first, run, tmp_path / "parts", run_digest="a", observe=stop_after(4))
    train(second, run, tmp_path / "parts", run_digest="a")
    assert_equal(weights(straight), weights(second))
    assert read_log(tmp_path / "straight") == read_log(tmp_path / "parts")


@pytest.mark.parametrize("microbatch", [1, 2, 3])
def test_microbatches_do_not_change_the_run(tmp_path, made, transformer_run, microbatch):
    whole, split = made(), made()
    for task, name, size in ((whole, "whole", 0), (split, "split", microbatch)):
        train(task, transformer_run.optimizer, tmp_path / name, run_digest="a",
              parallel=ParallelRun(microbatch=size))  # fmt: skip
    for one, other in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "split"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
    # Adam turns rounding of tiny gradients into whole steps, so weights are compared loosely.
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_changes_neither_numbers_nor_names(
    tmp_path, made, transformer_run
):
    thrifty = dataclasses.replace(
        transformer_run, parallel=ParallelRun(activation_checkpointing=True)
    )
    plain, again = made(), made(thrifty)
    for task, name in ((plain, "plain"), (again, "again")):
        train(task, transformer_run.optimizer, tmp_path / name, run_digest="a")
    assert read_log(tmp_path / "plain") == read_log(tmp_path / "again")
    resumed = made()
    train(resumed, transformer_run.optimizer, tmp_path / "again", run_digest="a")
    assert_equal(weights(resumed), weights(plain))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, line_task, optimizer_run):
    train(line_task(), optimizer_run, tmp_path, run_digest="a")
    with pytest.raises(ConfigurationError, match="another recipe or seed"):
        train(line_task(), optimizer_run, tmp_path, run_digest="b")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path, line_task, optimizer_run
):
    straight = line_task()
    train(straight, optimizer_run, tmp_path, run_digest="a")
    shard = next((tmp_path / "step-00000006").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    again, told = line_task(), []
    train(again, optimizer_run, tmp_path, run_digest="a", tell=told.append)
    assert str(shard) in told[0]
    assert_equal(weights(again), weights(straight))
    assert not restoring.damage(checkpoint.newest(tmp_path))


def test_a_finished_run_has_nothing_left_to_do(tmp_path, line_task, optimizer_run):
    train(line_task(), optimizer_run, tmp_path, run_digest="a")
    again = train(line_task(), optimizer_run, tmp_path, run_digest="a")
    assert again.finished
    assert [r["step"] for r in read_log(tmp_path) if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_the_clock_stops_a_run_that_can_go_on(tmp_path, line_task, optimizer_run):
    stopped = train(line_task(), optimizer_run, tmp_path, run_digest="a", minutes=0)
    assert (stopped.step, stopped.reason, stopped.finished) == (0, "clock", False)
    assert train(line_task(), optimizer_run, tmp_path, run_digest="a").finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_a_run_at_the_next_step_with_a_checkpoint(
    tmp_path, line_task, optimizer_run, number
):
    def send(record):
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    straight, again = line_task(), line_task()
    train(straight, optimizer_run, tmp_path / "straight", run_digest="a")
    with StopRequests(tmp_path / "run") as requests:
        outcome = train(line_task(), optimizer_run, tmp_path / "run", run_digest="a",
                        requests=requests, observe=send)  # fmt: skip
    assert signal.getsignal(number) == before
    assert (outcome.step, outcome.reason) == (2, "asked")
    assert checkpoint.newest(tmp_path / "run").step == 2
    assert train(again, optimizer_run, tmp_path / "run", run_digest="a").finished
    assert_equal(weights(again), weights(straight))


def test_a_file_stops_a_run_once(tmp_path, line_task, optimizer_run):
    run = dataclasses.replace(optimizer_run, log_every=2)
    requests = StopRequests(tmp_path)
    requests.path.touch()
    first = train(line_task(), run, tmp_path, run_digest="a", requests=requests)
    assert (first.step, first.reason) == (0, "asked")
    assert train(line_task(), run, tmp_path, run_digest="a", requests=requests).finished


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(
    tmp_path, line_task, optimizer_run
):
    run = dataclasses.replace(optimizer_run, checkpoint_every=2)
    with pytest.raises(ConfigurationError, match=r"not finite in step 4; kept step-00000004"):
        train(line_task(nan_step=4), run, tmp_path, run_digest="a")
    assert checkpoint.newest(tmp_path).step == 4
    assert torch.isfinite(torch.tensor([r["loss"] for r in read_log(tmp_path)])).all()


def test_a_bad_step_between_two_looks_is_named_and_nothing_after_it_is_kept(
    tmp_path, line_task, optimizer_run
):
    run = dataclasses.replace(optimizer_run, log_every=6, checkpoint_every=2, evaluate_every=6)
    with pytest.raises(ConfigurationError, match=r"in step 2; kept step-00000002"):
        train(line_task(nan_step=2), run, tmp_path, run_digest="a")
    restoring.load(checkpoint.newest(tmp_path), {"module.weight": (kept := torch.zeros(1, 3))})
    assert kept.isfinite().all()


@pytest.mark.parametrize("microbatch", [0, 1, 3])
def test_the_object_that_spoils_a_batch_is_named(tmp_path, made, transformer_run, microbatch):
    task = made()
    inputs = task.batches.at(0, range(4))
    spoilt = inputs.codes_BT[2][inputs.valid_BT[2]]
    others = torch.cat([inputs.codes_BT[row][inputs.valid_BT[row]] for row in (0, 1, 3)])
    code = next(c for c in spoilt.tolist() if c not in others.tolist())
    with torch.no_grad():
        task.module.token_table.weight[code] = float("nan")
    with pytest.raises(ConfigurationError, match="not finite in slots 2 of step 0; kept no check"):
        train(task, transformer_run.optimizer, tmp_path, run_digest="a",
              parallel=ParallelRun(microbatch=microbatch))  # fmt: skip


def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path, line_task, optimizer_run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    first, second, straight = line_task(), line_task(), line_task()
    train(straight, optimizer_run, tmp_path / "straight", run_digest="a")
    run = dataclasses.replace(optimizer_run, checkpoint_every=2)
    with pytest.raises(InfrastructureError, match="No space left"):
        train(first, run, tmp_path / "run", run_digest="a",
              observe=lambda r: monkeypatch.setattr(checkpoint, "save_file", full)
              if r["step"] == 3 else None)  # fmt: skip
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path / "run").step == 2
    train(second, run, tmp_path / "run", run_digest="a")
    assert_equal(weights(second), weights(straight))


def test_a_run_with_a_plateau_keeps_it_and_another_starts_from_it(
    tmp_path, line_task, optimizer_run
):
    run = dataclasses.replace(optimizer_run, steps=10, schedule="wsd", decay_share=0.4, keep=1,
                              checkpoint_every=4)  # fmt: skip
    train(line_task(), run, tmp_path / "trunk", run_digest="a")
    assert [c.step for c in checkpoint.checkpoints(tmp_path / "trunk")] == [6, 10]
    plateau = restoring.start_of(tmp_path / "trunk")
    assert plateau.facts.trunk
    held = {"module.weight": torch.zeros(1, 3), "optimizer.weight.step": torch.zeros(())}
    for with_optimizer, count in ((False, 1), (True, 7)):
        out = tmp_path / f"branch-{with_optimizer}"
        one = dataclasses.replace(optimizer_run, steps=1, warmup_steps=0, learning_rate=1e-30)
        branch = line_task()
        train(branch, one, out, run_digest="b",
              origin=Origin(folder=tmp_path / "trunk", with_optimizer=with_optimizer))  # fmt: skip
        restoring.load(plateau, held)
        torch.testing.assert_close(branch.module.weight.detach(), held["module.weight"])
        last = checkpoint.newest(out)
        assert last.facts.origin == "a step 6"
        restoring.load(last, held)
        assert float(held["optimizer.weight.step"]) == count


def test_a_start_of_another_shape_is_refused(tmp_path, line_task, made, transformer_run):
    run = transformer_run.optimizer
    train(line_task(), run, tmp_path / "line", run_digest="a")
    with pytest.raises(WeightsError, match=r"another model: module\.\S+ is absent there.*more"):
        train(made(), run, tmp_path / "b", run_digest="b", origin=Origin(folder=tmp_path / "line"))


def test_a_task_that_cannot_be_split_wants_one_process(tmp_path, line_task, optimizer_run):
    with pytest.raises(ConfigurationError, match="trained by one process"):
        train(line_task(), optimizer_run, tmp_path, run_digest="a", world=World(rank=1, size=2))


@pytest.mark.parametrize(("total", "size", "microbatch"), [(8192, 288, 28), (7, 3, 1), (5, 5, 0)])
def test_ranks_share_all_slots_in_equally_many_pieces(total, size, microbatch):
    shares = [
        pieces_of(total, World(rank=r, size=size), microbatch=microbatch) for r in range(size)
    ]
    assert len({len(pieces) for pieces in shares}) == 1
    done = [slot for pieces in shares for p in pieces if p.counts for slot in p.slots]
    assert done == list(range(total))
    assert all(1 <= len(p.slots) <= (microbatch or total) for pieces in shares for p in pieces)


def test_more_processes_than_objects_are_refused():
    with pytest.raises(ConfigurationError, match="3 objects cannot be shared by 4 processes"):
        pieces_of(3, World(rank=0, size=4), microbatch=0)


def test_a_log_that_is_taken_up_again_is_never_half_written(tmp_path, monkeypatch):
    log = LossLog(tmp_path)
    for step in (1.0, 2.0):
        log.append({"kind": "train", "step": step, "loss": 1.0})
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LossLog(tmp_path, from_step=1)
    assert len(read_log(tmp_path)) == 2

"""One model per worker, proved by digest and golden vectors before it makes a row."""

import pickle
import shutil
import socket
from dataclasses import replace

import pytest
import torch

from skyvec.stage import worker
from skyvec.stage.worker import golden_on_worker, model_on_worker, model_reference
from skyvec_core.embedder import Model
from skyvec_core.golden import GOLDEN_FILE, GoldenVectors, write_golden
from skyvec_schemas.errors import InfrastructureError, WeightsError


@pytest.fixture(autouse=True)
def fresh_worker():
    for cached in (worker._load, worker._computed, worker._expected):
        cached.cache_clear()


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def planned(folder):
    return model_reference(Model.load(folder), folder)


@pytest.fixture
def wrong_machine(monkeypatch):
    """A worker whose linear layers are a little off."""

    def spoil(size):
        right = worker.GoldenVectors.of

        def of(model, **options):
            computed = right(model, **options)
            return replace(computed, vectors=computed.vectors * (1 + size))

        monkeypatch.setattr(worker.GoldenVectors, "of", of)

    return spoil


def test_the_driver_and_its_worker_compute_the_same_bits(planned, folder):
    assert planned.golden == GoldenVectors.of(Model.load(folder), threads=1).bits
    assert golden_on_worker(planned) == planned.golden
    assert model_on_worker(planned).digest == planned.digest


def test_a_reference_travels_light_and_shows_no_bytes(planned, folder):
    assert len(pickle.dumps(planned)) < 8_000
    assert pickle.loads(pickle.dumps(planned)) == planned  # noqa: S301 - our own bytes
    assert "expected" not in repr(planned)
    write_golden(folder)
    lighter = model_reference(Model.load(folder), folder)
    assert lighter.golden == planned.golden
    assert lighter.expected == b""
    assert golden_on_worker(lighter) == planned.golden


@pytest.mark.parametrize("kept", [False, True])
def test_a_worker_that_computes_other_numbers_is_refused_by_name(
    folder, planned, wrong_machine, kept
):
    if kept:
        write_golden(folder)
        planned = replace(planned, expected=b"")
    wrong_machine(1e-3)
    for ask in (model_on_worker, golden_on_worker):
        with pytest.raises(InfrastructureError) as refused:
            ask(planned)
        assert socket.gethostname() in str(refused.value)
        assert "other numbers than the driver: vectors differ by 1.0e-03" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_wrong_worker_computes_its_proof_only_once(planned, monkeypatch, wrong_machine):
    wrong_machine(1e-3)
    calls = []
    of = worker.GoldenVectors.of
    monkeypatch.setattr(worker.GoldenVectors, "of", lambda *a, **k: calls.append(1) or of(*a, **k))
    for _ in range(3):
        with pytest.raises(InfrastructureError):
            model_on_worker(planned)
    assert len(calls) == 1


def test_rounding_is_allowed_and_told(planned, wrong_machine):
    wrong_machine(1e-6)
    assert golden_on_worker(planned) not in {planned.golden, ""}
    assert model_on_worker(planned).digest == planned.digest


def test_a_driver_that_computes_other_numbers_plans_nothing(folder, wrong_machine):
    write_golden(folder)
    wrong_machine(1e-3)
    with pytest.raises(InfrastructureError, match=r"than the model's golden vectors: vectors diff"):
        model_reference(Model.load(folder), folder)


def test_golden_vectors_of_other_weights_are_refused(folder, other_model_folder):
    write_golden(folder)
    shutil.copy(other_model_folder / "model.safetensors", folder)
    with pytest.raises(WeightsError, match=r"belong to model .* `skyvec models verify .*` names"):
        model_reference(Model.load(folder), folder)


def test_weights_changed_after_planning_are_refused(planned, folder, other_model_folder):
    shutil.copy(other_model_folder / "model.safetensors", folder)
    with pytest.raises(WeightsError, match="the run was planned with"):
        golden_on_worker(planned)


def test_a_torn_golden_file_is_refused(folder):
    (folder / GOLDEN_FILE).write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="no golden vectors"):
        model_reference(Model.load(folder), folder)


def test_golden_vectors_of_another_version_count_as_none(folder, planned):
    old = replace(write_golden(folder), numerics_version=-1)
    old.save(folder / GOLDEN_FILE)
    assert model_reference(Model.load(folder), folder) == planned


def test_a_golden_file_that_vanishes_is_no_silent_pass(folder, wrong_machine):
    write_golden(folder)
    reference = model_reference(Model.load(folder), folder)
    (folder / GOLDEN_FILE).unlink()
    wrong_machine(1e-6)
    with pytest.raises(InfrastructureError, match="is gone"):
        golden_on_worker(reference)


def test_a_model_of_nan_is_no_plan(folder):
    model = Model.load(folder)
    model.encoder.norm.fill_(torch.nan)
    with pytest.raises(WeightsError, match="not finite"):
        model_reference(model, folder)


def test_a_reference_without_golden_vectors_asks_for_no_proof(planned, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(worker.GoldenVectors, "of", never)
    bare = replace(planned, golden="", expected=b"")
    assert golden_on_worker(bare) == ""
    assert model_on_worker(bare) is model_on_worker(bare)


def test_a_run_and_its_later_proof_share_one_model(planned):
    bare = replace(planned, golden="", expected=b"")
    assert model_on_worker(planned) is model_on_worker(bare)

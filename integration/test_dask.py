"""Dask for real: the recipes of docs/dask.md, resources, late and adaptive workers, what tasks weigh."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import cloudpickle
import psutil
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, WorkerPlugin
from distributed.protocol.pickle import dumps

import skyvec
from skyvec.mock.survey import write_mock_survey
from skyvec.stage.monitor import Monitor
from skyvec.stage.plan import plan
from skyvec.stage.pools import OnDask, Task

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]

PAGE = Path(__file__).parents[1] / "docs/dask.md"
ROWS = 40
TASK_BYTES = 20_000
LOOPBACK = {"127.0.0.1", "::1"}

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """A mock survey of a few HATS pixels."""
    collection = tmp_path_factory.mktemp("dask") / "sky"
    return write_mock_survey(collection, rows=ROWS, seed=5, workers=1)


def recipe(heading: str, needle: str, **changes: str) -> str:
    """A Python block of the page, changed where a machine differs; every change must fit."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if needle in c)
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    return code


def workers_of(record):
    return {quantum.worker for quantum in record.quanta}


# ---- where tasks go


def nanny(**options):
    options = {"nthreads": 1, "host": "127.0.0.1", "dashboard": False} | options
    return {"cls": Nanny, "options": options}


def test_tasks_go_to_workers_with_the_resource_and_to_no_others(sky, tmp_path):
    workers = {"gpu0": nanny(resources={"GPU": 1}), "plain": nanny()}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        record = skyvec.run(sky, out=tmp_path, client=client, resources={"GPU": 1})
        assert record.exit_code == 0
        assert workers_of(record) == {"gpu0"}
        loaded = client.run(_loaded)
        assert sorted(loaded.values()) == [0, 1]  # once, whatever the number of pixels
        both = skyvec.run(sky, name="both", out=tmp_path, client=client)
        assert workers_of(both) == {"gpu0", "plain"}
        assert set(client.run(_loaded).values()) == {1}


def _loaded():
    worker = sys.modules.get("skyvec.stage.worker")
    return worker._load.cache_info().misses if worker else 0  # noqa: SLF001


class TwoAtOnce(WorkerPlugin):
    """No pixel is begun before two workers have one: with a single worker, nothing ever ends."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self, worker):  # noqa: ARG002
        from skyvec.stage import quantum

        real = quantum.run_quantum

        def wait_for_another(*arguments, **keywords):
            (self.folder / keywords["worker"]).touch()
            deadline = time.monotonic() + 200
            while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            return real(*arguments, **keywords)

        quantum.run_quantum = wait_for_another


@pytest.fixture
def two_at_once(tmp_path):
    (tmp_path / "seen").mkdir()
    return TwoAtOnce(tmp_path / "seen")


def test_a_worker_that_joins_late_gets_work(sky, tmp_path, two_at_once):
    counts = []

    class Joins(Monitor):
        def workers(self, count):
            counts.append(count)
            cluster.scale(2)

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(two_at_once)
        record = skyvec.run(sky, out=tmp_path, client=client, monitor=Joins())
    assert record.exit_code == 0
    assert workers_of(record) == {"0", "1"}
    assert counts[0] == 1


def test_an_adaptive_cluster_grows_from_nothing_and_shrinks_again(sky, tmp_path, two_at_once):
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(two_at_once)
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2, target_duration="1s")
        record = skyvec.run(sky, out=tmp_path, client=client)
        assert record.exit_code == 0
        assert len(workers_of(record)) == 2
        deadline = time.monotonic() + 60
        while client.nthreads() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert client.nthreads() == {}


# ---- what a task weighs


class Recorder:
    """As much of a client as a pool needs to submit."""

    status = "running"

    def submit(self, function, *arguments, **keywords):
        self.task = function, arguments, keywords
        return self

    key = "key"

    def add_done_callback(self, _):
        pass

    def subscribe_topic(self, *_):
        pass


def weight(job, pixel):
    recorder = Recorder()
    task = Task(pixel=pixel, attempt=1, batch_rows=128)
    OnDask(job, recorder, {"GPU": 1}).submit(task)
    return len(dumps(recorder.task))


def test_a_task_is_small_and_holds_no_weights(sky, tmp_path):
    ready = plan(sky, out=tmp_path)
    weights = sum(file.stat().st_size for file in Path(ready.job.model.folder).rglob("*"))
    assert weights > 100 * TASK_BYTES
    assert weight(ready.job, ready.todo[0]) < TASK_BYTES


def test_a_task_that_reads_stored_tokens_does_not_grow_with_their_pixels(sky, tmp_path):
    tokens = skyvec.run(sky, product="tokens", name="codes", out=tmp_path, workers=0)
    assert tokens.pixels > 2
    ready = plan(sky, out=tmp_path, tokens=tmp_path / "codes.properties")
    assert weight(ready.job, ready.todo[0]) < TASK_BYTES
    carried = [getattr(ready.job.tokens, field.name) for field in fields(ready.job.tokens)]
    fingerprints = {quantum.fingerprint for quantum in tokens.quanta}
    assert not any(print_ in repr(carried) for print_ in fingerprints)


# ---- processes and ports


def listening(process):
    """Addresses on which a process and its children listen now."""
    found = set()
    for each in (process, *process.children(recursive=True)):
        try:
            connections = each.net_connections("inet")
        except psutil.Error:
            continue  # it has just ended
        found |= {c.laddr for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def test_a_local_run_listens_on_the_loopback_only_and_with_dasks_ports_only(sky, tmp_path):
    command = [sys.executable, "-m", "skyvec", "embed", sky, "--out", tmp_path, "--workers", "2"]
    started = psutil.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    seen = set()
    while started.poll() is None:
        seen |= listening(started)
        time.sleep(0.5)
    assert started.returncode == 0
    assert {address.ip for address in seen} <= LOOPBACK
    # Scheduler and two workers, each with its HTTP server (/health); two nannies.
    assert 0 < len({address.port for address in seen}) <= 8


def test_a_scheduler_of_its_own_needs_neither_torch_nor_a_worker_to_begin_with(sky, tmp_path):
    address_file = tmp_path / "scheduler.json"
    cli = [sys.executable, "-m", "distributed.cli"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [cli[0], "-m", f"{cli[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
         "--no-dashboard", "--scheduler-file", address_file],
        **quiet,
    )  # fmt: skip
    worker = run = None
    try:
        deadline = time.monotonic() + 60
        while not address_file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        address = re.search(r"tcp://[\d.:]+", address_file.read_text())[0]
        run = subprocess.Popen(
            [sys.executable, "-m", "skyvec", "embed", str(sky), "--out", str(tmp_path),
             "--scheduler", address, "--resources", "GPU=1"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with Client(address) as client:
            while not client.run_on_scheduler(_tasks) and time.monotonic() < deadline:
                time.sleep(0.1)
            worker = subprocess.Popen(
                [cli[0], "-m", f"{cli[2]}.dask_worker", address, "--nthreads", "1", "--name", "late",
                 "--host", "127.0.0.1", "--resources", "GPU=1"],
                **quiet,
            )  # fmt: skip
            told, _ = run.communicate(timeout=300)
            assert run.returncode == 0, told
            assert client.run_on_scheduler(_imported) == []
    finally:
        for process in (run, worker, scheduler):
            if process:
                process.terminate()
                process.wait(timeout=60)


def _tasks(dask_scheduler):
    return len(dask_scheduler.tasks)


def _imported():
    return [name for name in ("torch", "hats", "pyarrow") if name in sys.modules]


# ---- recipes


def needs(package: str):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


SBATCH = """#!/bin/sh
cp "$1" "{jobs}/$$.sh"
setsid sh "{jobs}/$$.sh" > "{jobs}/$$.log" 2>&1 &
echo $! > "{jobs}/$$.pid"
echo "Submitted batch job $$"
"""
SCANCEL = """#!/bin/sh
kill -TERM -- "-$(cat "{jobs}/$1.pid")"
"""


@pytest.fixture
def slurm(tmp_path):
    """SLURM's two commands; jobs run on this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        command = tmp_path / "bin" / name
        command.write_text(script.format(jobs=tmp_path / "jobs"))
        command.chmod(0o755)
    yield tmp_path / "jobs"
    for file in (tmp_path / "jobs").glob("*.pid"):
        group = int(file.read_text())
        if psutil.pid_exists(group):
            os.killpg(group, 9)


@needs("dask_jobqueue")
def test_the_recipe_for_slurm_runs_with_the_jobs_that_it_asks_for(sky, slurm, tmp_path):
    changes = {
        "/data/sky": str(sky),
        'client=client, resources={"GPU": 1}, device="cuda"': 'client=client, resources={"GPU": 1}, '
        f'out="{tmp_path}", name="queued"',
        '"ib0"': '"lo"',
        '"32GB"': '"4GB"',
        "maximum_jobs=100": "maximum_jobs=2",
    }
    script = tmp_path / "recipe.py"
    script.write_text(recipe("SLURM", "SLURMCluster", **changes))
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PATH": path}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status = skyvec.run(sky, name="queued", out=tmp_path, workers=0)
    assert status.skipped == status.pixels
    assert all(worker.startswith("SLURMCluster-") for worker in workers_of(status))
    jobs = [file.read_text() for file in slurm.glob("*.sh")]
    assert jobs
    for job in jobs:
        assert "#SBATCH --gres=gpu:1" in job
        assert "--nthreads 1" in job
        assert "export MALLOC_TRIM_THRESHOLD_=268435456" in job
    deadline = time.monotonic() + 30
    pids = [int(file.read_text()) for file in slurm.glob("*.pid")]
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, pids))  # every job was given back


def test_the_recipe_for_the_gpus_of_a_machine_runs(sky, tmp_path):
    changes = {
        "/data/sky": str(sky),
        'resources={"GPU": 1}, device="cuda"': f'resources={{"GPU": 1}}, out="{tmp_path}", name="gpus"',
    }
    script = tmp_path / "recipe.py"
    script.write_text(recipe("GPUs of one machine", "SpecCluster", **changes))
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status = skyvec.run(sky, name="gpus", out=tmp_path, workers=0)
    assert workers_of(status) <= {"gpu0", "gpu1"}


@needs("dask_kubernetes")
def test_the_recipe_for_kubernetes_makes_what_the_operator_accepts(monkeypatch):
    """It never ran on a cluster: the operator's schema, Kubernetes' own types, what workers get."""
    import dask_kubernetes.operator
    import yaml
    from jsonschema import Draft7Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT7

    class AskedError(Exception):
        pass

    def cluster(*, custom_cluster_spec):
        raise AskedError(custom_cluster_spec)

    monkeypatch.setattr(dask_kubernetes.operator, "KubeCluster", cluster)
    code = compile(recipe("Kubernetes", "KubeCluster"), "docs/dask.md", "exec")
    with pytest.raises(AskedError) as asked:
        exec(code, {"__name__": "__main__"})  # noqa: S102 - our own page
    spec = _without_nulls(asked.value.args[0])
    folder = Path(dask_kubernetes.operator.__file__).parent / "customresources"
    schema = yaml.safe_load((folder / "daskcluster.yaml").read_text())["spec"]
    (version,) = schema["versions"]
    assert spec["apiVersion"] == f"{schema['group']}/{version['name']}"

    def retrieve(uri):
        ours = uri.endswith("customresources/templates.yaml")
        types = ("PodSpec", "ServiceSpec")  # compared with Kubernetes' own types below
        other = {"definitions": {f"io.k8s.api.core.v1.{name}": {} for name in types}}
        content = yaml.safe_load((folder / "templates.yaml").read_text()) if ours else other
        return Resource.from_contents(content, default_specification=DRAFT7)

    validator = Draft7Validator(
        version["schema"]["openAPIV3Schema"], registry=Registry(retrieve=retrieve)
    )
    assert [problem.message for problem in validator.iter_errors(spec)] == []
    for pod in (spec["spec"]["worker"]["spec"], spec["spec"]["scheduler"]["spec"]):
        assert _as_kubernetes_knows_it(pod, "V1PodSpec") == pod
    (worker,) = spec["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["args"][:2] == ["dask", "worker"]
    assert {"--nthreads", "--resources", "GPU=1"} <= set(worker["args"])
    (scheduler,) = spec["spec"]["scheduler"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in scheduler["resources"]["limits"]


def _as_kubernetes_knows_it(facts, kind):
    """Facts without what the official client does not know; a wrong type is an error."""
    from kubernetes.client import ApiClient

    client = ApiClient()
    typed = client.deserialize(json.dumps(facts), kind, "application/json")
    return client.sanitize_for_serialization(typed)


def _without_nulls(value):
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value

"""Worker processes of this machine: forked from one that has what they need, as its parent sees it."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import beside


def look():
    import sys
    return {
        "had": [name for name in ("torch", "hats", "skyvec.stage.quantum") if name in sys.modules],
        "threads": os.environ["OMP_NUM_THREADS"],
        "beside": beside.WHERE,
        "pid": os.getpid(),
        "hash": hash("skyvec"),
    }


def end():
    os._exit(9)


if __name__ == "__main__":
    from skyvec.stage.cluster import dask_client

    before = dict(os.environ)
    with dask_client(workers=2) as client:
        first = client.run(look)
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            assert os.environ.get(name) == before.get(name)
        dead = list(first)[0]
        client.run(end, workers=[dead], on_error="ignore")
        while len(now := client.run(look, on_error="ignore")) < 2 or dead in now:
            pass
    os.environ["SET_LATER"] = "seen"
    with dask_client(workers=1) as client:
        assert list(client.run(os.environ.get, "SET_LATER").values()) == ["seen"]
    print(json.dumps([list(first.values()), list(now.values())]))
"""


def started(tmp_path, **environment):
    """What the workers of a script say of themselves: two, and the two after one has died."""
    folder, modules = tmp_path / "here", tmp_path / "modules"
    folder.mkdir()
    modules.mkdir()
    (modules / "beside.py").write_text("WHERE = 'in the search path of the script'\n")
    # A file of the working directory is no module of the workers.
    for name in ("hats.py", "torch.py", "beside.py"):
        (folder / name).write_text("raise SystemExit('imported from the working directory')\n")
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    told = subprocess.run(
        [sys.executable, str(script), str(modules)],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    first, replaced = json.loads(told.stdout.splitlines()[-1])
    assert len(first) == len(replaced) == 2
    for each in (*first, *replaced):
        assert each["threads"] == "1"
        assert each["beside"] == "in the search path of the script"
    assert len({each["pid"] for each in (*first, *replaced)}) == 3
    assert len({each["hash"] for each in (*first, *replaced)}) == 1
    return [*first, *replaced]


def test_workers_have_what_they_need_when_they_start_and_when_they_are_replaced(tmp_path):
    for each in started(tmp_path):
        assert each["had"] == ["torch", "hats", "skyvec.stage.quantum"]


def test_where_no_socket_can_be_made_workers_start_as_ever(tmp_path):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    for each in started(tmp_path, TMPDIR=str(long)):
        assert each["had"] == []

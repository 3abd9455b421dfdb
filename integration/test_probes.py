"""Probes on the vectors of a real model, on Dask workers, and in flat memory."""

import json
import subprocess
import sys

import lsdb
import numpy as np
import pytest
from distributed import Client, LocalCluster

from skyvec import Probe
from skyvec.mock.survey import write_mock_survey
from skyvec.probes.scores import r_squared
from skyvec.stage.run import run
from skyvec.surveys import leave_out
from skyvec_schemas.survey_columns import LEGACY_SURVEY

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    collection = write_mock_survey(folder / "sky", rows=300, seed=1, workers=1)
    run(collection, survey=leave_out(LEGACY_SURVEY, ["image"], where="test"), workers=0)
    return collection


def test_a_photoz_from_an_lsdb_session(sky, tmp_path):
    """Fit, save, predicate, publish: the whole way, without touching a pixel."""
    probe = Probe("Z", name="photoz").fit(sky)
    assert probe.metrics["Z"]["r2"] > 0.4
    assert probe.metrics["Z"]["r2_shuffled"] < 0.05
    assert probe.metrics["Z"]["photoz"]["outliers"] < 0.5
    probe = Probe.load(probe.save(tmp_path / "photoz"))
    catalog = lsdb.open_catalog(sky, columns=["object_id", "ra", "dec", "Z"])
    near = probe.apply(catalog).query("photoz < 0.4 and photoz_width < 1")
    found = near.compute(progress_bar=False)
    assert 0 < len(found) < 300
    assert r_squared(found["Z"].to_numpy(float), found["photoz"].to_numpy()) > 0
    probe.publish(sky, "photoz_v1")
    again = lsdb.open_catalog(sky, columns=["object_id", "ra", "dec", "Z"])  # it knows of it now
    joined = again.load_extension("photoz_v1").compute(progress_bar=False)
    by_id = joined.set_index("object_id")["photoz"]
    assert np.array_equal(by_id.reindex(found["object_id"]).to_numpy(), found["photoz"].to_numpy())


def test_dask_workers_find_what_threads_find(sky):
    here = Probe(("Z", "TRUE_LOGMASS")).fit(sky, extension="skyvec_tiny_v1", workers=1)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        there = Probe(("Z", "TRUE_LOGMASS")).fit(sky, extension="skyvec_tiny_v1", client=client)
        predicted = here.apply(lsdb.open_catalog(sky, columns=["object_id", "ra", "dec"]))
        lazy = predicted.compute(progress_bar=False)
    for target in here.targets:
        one, other = (probe.metrics[target]["r2"] for probe in (here, there))
        assert one == pytest.approx(other, abs=1e-3)
    assert here.record["used"] == there.record["used"]
    table = here.apply(sky, extension="skyvec_tiny_v1").table.to_pandas().set_index("object_id")
    assert np.allclose(
        lazy["Z_predicted"], table["Z_predicted"].reindex(lazy["object_id"]), equal_nan=True
    )


MEMORY = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {bench!r})
from search.catalogs import make
from skyvec import Probe
collection = make(Path({folder!r}), {rows}, dim=256)
Probe("Z", max_rows=2000).fit(make(Path({folder!r}), 25_000, dim=256), workers=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
probe = Probe("Z", max_rows=2000).fit(collection, workers=1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before / 1024, after / 1024, probe.record["used"], probe.metrics["Z"]["r2"]]))
"""


def test_memory_does_not_grow_with_rows(tmp_path, request):
    """Eight times the rows of a fit that went before it: 100 MB of vectors, and a tenth of that."""
    bench = str(request.config.rootpath / "integration" / "bench")
    code = MEMORY.format(bench=bench, folder=str(tmp_path), rows=200_000)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=800
    )
    before, after, used, r2 = json.loads(done.stdout.splitlines()[-1])
    assert used == 200_000
    assert r2 > 0.9
    assert after - before < 12, f"{before:.0f} MB, then {after:.0f} MB"

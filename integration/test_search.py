"""Search on a Dask cluster, by LSDB on one, and memory that does not grow with the catalog."""

import subprocess
import sys

import lsdb
import numpy as np
import pytest

from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.search import SimilarTo, search
from skyvec.stage.cluster import dask_client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

sys.path.insert(0, "integration/bench")


@pytest.fixture(scope="module")
def catalogs():
    """The maker of catalogs of any size."""
    from search import catalogs

    return catalogs


@pytest.fixture(scope="module")
def sky(catalogs, tmp_path_factory):
    """60,000 vectors of 64 values in three files."""
    return catalogs.make(tmp_path_factory.mktemp("sky"), 60_000, dim=64)


@pytest.fixture(scope="module")
def client():
    with dask_client(workers=2) as client:
        yield client


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_a_cluster_gives_the_answers_of_threads(sky, client, metric):
    queries = np.random.default_rng(0).normal(size=(7, 64))
    options = {"vector": queries, "k": 50, "metric": metric}
    here = search(sky, **options)
    there = search(sky, client=client, **options)
    assert there.table.equals(here.table)
    assert there.question == here.question


def test_filters_travel_to_the_cluster(sky, client):
    from mocpy import MOC

    vectors = VectorCatalog.open(sky)
    pixel = vectors.release.pixels[1]
    moc = MOC.from_healpix_cells(np.array([4 * pixel.pixel]), np.array([pixel.order + 1]), 12)
    options = {"vector": np.ones(64), "k": 20, "moc": moc, "where": "Z > 0"}
    there = search(sky, client=client, **options)
    assert len(there) == 20
    assert there.table.equals(search(sky, **options).table)


def test_lsdb_searches_on_the_cluster(sky, client):
    best = search(sky, vector=np.ones(64), k=30)
    alike = SimilarTo(sky, vector=np.ones(64), k=30, client=client)
    catalog = lsdb.open_catalog(sky, columns=["object_id", "ra", "dec"]).search(alike)
    found = catalog.compute(progress_bar=False)
    assert {*found["object_id"]} == {*best.table.column("object_id").to_pylist()}
    limit = float(best.table.column("similarity")[-1].as_py())
    alike = SimilarTo(sky, vector=np.ones(64), at_least=limit)
    found = lsdb.open_catalog(sky / "bench_v1").search(alike).compute(progress_bar=False)
    assert {*found["object_id"]} == {*best.table.column("object_id").to_pylist()}


def test_memory_does_not_grow_with_the_catalog(catalogs, tmp_path):
    peaks = []
    for rows in (50_000, 400_000):
        collection = catalogs.make(tmp_path, rows, dim=96)
        words = [sys.executable, "integration/bench/bench_search.py", "--peak-of", str(collection)]
        words += ["--dim", "96", "--threads", "2"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    # Eight times the files and bytes (77 MB); buffers of a block and what the allocator keeps.
    assert peaks[1] < 1.2 * peaks[0] + 12

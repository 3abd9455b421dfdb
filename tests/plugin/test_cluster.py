"""A cluster of this machine has no more workers than there is work for."""

from contextlib import nullcontext

import pytest

from skyvec.stage import cluster


class Started(Exception):  # noqa: N818 - it only ends the test
    pass


@pytest.mark.parametrize(
    ("workers", "tasks", "expected"), [(None, None, 8), (None, 3, 3), (None, 99, 8), (5, 3, 5)]
)
def test_no_more_workers_are_started_than_there_are_tasks(monkeypatch, workers, tasks, expected):
    def started(count, *, dashboard):
        del dashboard
        raise Started(count)

    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(cluster, "_worker_settings", nullcontext)
    monkeypatch.setattr(cluster, "_local_cluster", started)
    with (
        pytest.raises(Started, match=f"^{expected}$"),
        cluster.dask_client(None, workers, tasks=tasks),
    ):
        pass

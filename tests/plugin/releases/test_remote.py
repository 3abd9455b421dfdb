"""Catalogs by URI: the same rows as from disk, by ranges, and one clear error when they fail."""

import importlib.util
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hats.pixel_math.healpix_pixel import HealpixPixel
from upath import UPath

from skyvec.releases.hats import remote
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.hats.remote import RangeReader, is_remote, located, open_parquet
from skyvec.releases.hats.source import HatsSource
from skyvec_schemas.errors import ConfigurationError, ContractError, InfrastructureError
from skyvec_schemas.survey_columns import LEGACY_SURVEY

pytestmark = pytest.mark.filterwarnings("ignore:Computing partitions from catalog parquet files")


@dataclass
class Behaviour:
    """What a server does with requests, and what it was asked."""

    folder: Path
    failures: list[int] = field(default_factory=list)
    """Statuses of the next answers, before it works."""
    only: str = ""
    """Failures and harm apply to paths with this."""
    short: bool = False
    """Send half of what was asked for and close."""
    quiet_short: bool = False
    """Send half of what was asked for as if that were all."""
    ignore_ranges: bool = False
    silent: float = 0
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path, bytes sent."""


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, behaviour, *arguments):
        self.behaviour = behaviour
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        behaviour = self.behaviour
        path = behaviour.folder / self.path.lstrip("/").replace("%3D", "=")
        concerned = behaviour.only in self.path
        if concerned and behaviour.silent:
            sleep(behaviour.silent)
        if concerned and behaviour.failures:
            return self.refuse(behaviour.failures.pop(0))
        if not path.is_file():  # folders are not listed
            return self.refuse(404)
        body, status = path.read_bytes(), 200
        wanted = self.headers.get("Range")
        whole = len(body)
        start = 0
        if wanted and not behaviour.ignore_ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, whole) if last else whole
            if start >= whole:
                return self.refuse(416)
            body, status = body[start:stop], 206
        if concerned and behaviour.quiet_short and with_body:
            body = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{whole}")
        self.end_headers()
        if with_body and concerned and behaviour.short:
            body = body[: len(body) // 2]
            self.close_connection = True
        behaviour.asked.append((self.command, self.path, len(body) if with_body else 0))
        if with_body:
            self.wfile.write(body)
        return None

    def refuse(self, status):
        self.behaviour.asked.append((self.command, self.path, 0))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)


def small_table(factory):
    return factory.survey_table(16, cutouts=[factory.cutout(i, size=24) for i in range(16)])


@pytest.fixture(scope="module")
def collection(tmp_path_factory, factory):
    folder = tmp_path_factory.mktemp("served") / "sky"
    return factory.write_collection(small_table(factory), folder)


@pytest.fixture(scope="module")
def expected(collection):
    return everything(collection)


@pytest.fixture
def served(collection):
    behaviour = Behaviour(folder=collection.parent)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, behaviour))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    behaviour.uri = f"http://127.0.0.1:{server.server_port}/sky"
    yield behaviour
    server.shutdown()
    server.server_close()
    thread.join()


def everything(uri):
    """id -> scalar, flux, of all objects of a catalog as a source."""
    source = HatsSource.open(uri, LEGACY_SURVEY)
    found = {}
    for pixel in (HealpixPixel(0, p) for p in range(12)):
        objects = source.objects(pixel, margin_arcsec=0)
        for reading in source.read(objects, np.arange(len(objects)), rows=5):
            for i, place in enumerate(reading.index):
                found[objects.ids[place]] = (
                    float(reading.observations["tok_flux_g"][i]),
                    reading.observations["tok_image"].flux_BCHW[i].numpy().tobytes(),
                )
    return found


def test_a_catalog_over_http_is_the_catalog_on_disk(served, expected):
    assert everything(served.uri) == expected
    assert len(expected) == 16


def test_only_ranges_of_leaves_are_fetched(served, collection):
    release = HatsRelease.open(served.uri)
    served.asked.clear()
    list(release.batches(release.pixels[0], LEGACY_SURVEY, rows=2))
    leaf = HatsRelease.open(collection).leaf(release.pixels[0])
    gets = [sent for method, _, sent in served.asked if method == "GET"]
    metadata = pq.read_metadata(leaf)
    assert sum(gets) <= leaf.stat().st_size + remote.TAIL_BYTES  # footer and chunks, once
    assert len(gets) <= 1 + metadata.num_row_groups * 2
    served.asked.clear()
    release.identity(release.pixels[0])
    assert sum(sent for *_, sent in served.asked) == remote.TAIL_BYTES


def test_large_row_groups_are_fetched_piece_by_piece(served, tmp_path, factory, monkeypatch):
    served.folder = tmp_path
    collection = factory.write_collection(factory.survey_table(12), tmp_path / "sky")
    for leaf in collection.rglob("Npix*.parquet"):
        whole = pq.read_table(leaf, partitioning=None)
        pq.write_table(
            whole, leaf, data_page_size=1 << 16, write_batch_size=1, use_dictionary=False
        )
    monkeypatch.setattr("skyvec.releases.hats.leaf.PREFETCH_BYTES", 0)
    monkeypatch.setattr("skyvec.releases.hats.leaf.BUFFER_BYTES", 1 << 18)
    assert everything(served.uri) == everything(collection)
    largest = max(sent for _, path, sent in served.asked if "Npix" in path)
    assert largest <= 1 << 18 < leaf.stat().st_size / 3


@pytest.mark.parametrize(
    ("where", "status"),
    [("properties", 500), ("partition_info", 503), ("_common_metadata", 502), ("Npix", 429)],
)
def test_a_server_that_fails_twice_and_then_answers_is_waited_for(served, expected, where, status):
    served.only, served.failures = where, [status, status]
    assert everything(served.uri) == expected
    assert len(served.failures) < 2  # hats can do without _common_metadata


@pytest.mark.parametrize("where", ["properties", "Npix"])
def test_a_server_that_keeps_failing_is_one_error_that_may_be_tried_again(served, where):
    served.only, served.failures = where, [503] * 500
    with pytest.raises(
        InfrastructureError, match=rf"{where}.*after 4 attempts \(HTTP 503\).*run the same command"
    ):
        everything(served.uri)
    assert len(served.failures) > 480


def test_a_dead_server_is_named():
    with pytest.raises(InfrastructureError, match=r"http://127.0.0.1:9/sky.*after 4 attempts"):
        HatsRelease.open("http://127.0.0.1:9/sky")


def test_a_silent_server_is_given_up(served, monkeypatch):
    monkeypatch.setattr(remote, "READ_SECONDS", 0.05)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    served.silent = 0.3
    with pytest.raises(InfrastructureError, match="no answer in time"):
        HatsRelease.open(served.uri)


def test_what_is_not_there_is_a_configuration_error(served):
    with pytest.raises(ConfigurationError, match=r"/sky/nowhere: not a HATS catalog \(it has none"):
        HatsRelease.open(f"{served.uri}/nowhere")


@pytest.mark.parametrize("status", [401, 403])
def test_what_may_not_be_read_is_said_at_once(served, status):
    served.failures = [status] * 100
    with pytest.raises(ConfigurationError, match=rf"access is refused \(HTTP {status}\).*Log in"):
        HatsRelease.open(served.uri)
    assert len(served.failures) >= 97


def test_a_leaf_that_is_not_there_is_named(served):
    release = HatsRelease.open(served.uri)
    served.only, served.failures = "Npix", [404] * 9
    with pytest.raises(ContractError, match=r"Npix=\d+.parquet: is not there"):
        list(release.batches(release.pixels[0], LEGACY_SURVEY, rows=5))


@pytest.mark.parametrize("harm", ["short", "quiet_short"])
def test_a_server_that_truncates_is_named(served, harm):
    release = HatsRelease.open(served.uri)
    served.only = "Npix"
    setattr(served, harm, True)
    with pytest.raises(InfrastructureError, match=r"Npix=\d+.parquet: cannot be fetched after 4"):
        list(release.batches(release.pixels[0], LEGACY_SURVEY, rows=5))


def test_a_server_without_ranges_is_said_to_have_none(served):
    release = HatsRelease.open(served.uri)
    served.ignore_ranges = True
    with pytest.raises(ContractError, match=r"ignores byte ranges.*copy the catalog"):
        list(release.batches(release.pixels[0], LEGACY_SURVEY, rows=5))


def test_a_remote_file_written_again_after_its_objects_were_listed_is_refused(
    tmp_path, factory, served
):
    served.folder = tmp_path
    factory.write_collection(small_table(factory), tmp_path / "sky")
    source = HatsSource.open(served.uri, LEGACY_SURVEY)
    leaf = HatsRelease.open(tmp_path / "sky").leaf(source.release.pixels[0])
    objects = source.objects(source.release.pixels[0], margin_arcsec=0)
    pq.write_table(pq.read_table(leaf, partitioning=None).slice(1), leaf)
    with pytest.raises(ContractError, match=r"Npix=\d+.parquet: changed while it was read"):
        list(source.read(objects, np.arange(3), rows=5))


def test_a_catalog_in_memory_is_the_catalog_on_disk(collection, expected):
    memory = fsspec.filesystem("memory")
    memory.put(str(collection), "/served/sky", recursive=True)
    try:
        assert everything("memory://served/sky") == expected
        assert everything(UPath("memory://served/sky")) == expected
    finally:
        memory.rm("/served", recursive=True)


def test_file_uris_and_folders_are_local(collection, expected):
    assert everything(f"file://{collection}") == expected
    assert type(located(f"file://{collection}")) is type(collection)
    assert located(UPath(collection)) == collection
    assert not is_remote(located(str(collection)))


@pytest.mark.parametrize(
    ("uri", "module", "remedy"),
    [
        ("hf://datasets/UniverseTBD/mmu_gaia_gaia", "huggingface_hub", r"skyvec\[hub\]"),
        ("s3://bucket/cat", "s3fs", "s3fs"),
    ],
)
def test_a_protocol_whose_package_is_not_installed_says_which(monkeypatch, uri, module, remedy):
    real = importlib.util.find_spec
    monkeypatch.setattr(remote, "find_spec", lambda name: None if name == module else real(name))
    with pytest.raises(ConfigurationError, match=rf"{module}, which is not.*install '{remedy}'"):
        HatsRelease.open(uri)


def test_an_unknown_protocol_lists_those_that_are_known():
    with pytest.raises(ConfigurationError, match=r"nosuch://x: .*hf://, s3://"):
        HatsRelease.open("nosuch://x")


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="no hub package")
def test_hub_addresses_go_through_the_hub_package():
    path = located("hf://datasets/UniverseTBD/mmu_gaia_gaia@main/mmu_gaia_gaia")
    assert is_remote(path)
    assert type(path.fs).__name__ == "HfFileSystem"


def test_a_range_reader_reads_what_a_file_does(served, collection):
    leaf = HatsRelease.open(collection).leaf(HatsRelease.open(collection).pixels[0])
    name = leaf.relative_to(collection)
    rng = np.random.default_rng(0)
    with leaf.open("rb") as local, RangeReader(located(f"{served.uri}/{name}")) as far:
        assert far.size() == leaf.stat().st_size
        for start in [0, far.size() - 5, far.size(), *rng.integers(0, far.size(), 20).tolist()]:
            for reader in (local, far):
                reader.seek(start)
            assert far.read(1000) == local.read(1000)
            assert far.tell() == local.tell()
        far.seek(-8, 2)
        assert far.read() == leaf.read_bytes()[-8:]
    assert open_parquet(located(f"{served.uri}/{name}")).metadata.num_rows == 8

"""A model from the Hugging Face hub: the real client against a server on this machine."""

import json
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import skyvec
from skyvec.models import DEFAULT, model_folder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/a-model"


@pytest.fixture
def hub():
    """The packaged model under the addresses that the hub has: listings and files."""
    folder = model_folder(DEFAULT)
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, *, with_body):
            asked.append(self.path)
            resolve = f"/{REPO}/resolve/{COMMIT}/"
            if self.path.startswith(f"/api/models/{REPO}/revision/{COMMIT}"):
                listing = {"id": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                           "siblings": [{"rfilename": name} for name in files]}  # fmt: skip
                body, extra = json.dumps(listing).encode(), {}
            elif self.path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
                listing = [
                    {"type": "file", "path": name, "size": path.stat().st_size,
                     "oid": sha256(path.read_bytes()).hexdigest()[:40]}
                    for name, path in files.items()
                ]  # fmt: skip
                body, extra = json.dumps(listing).encode(), {}
            elif self.path.startswith(resolve) and self.path.removeprefix(resolve) in files:
                body = files[self.path.removeprefix(resolve)].read_bytes()
                extra = {"ETag": f'"{sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            for name, value in {"Content-Length": len(body), **extra}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = asked
    yield server
    server.shutdown()
    server.server_close()


def load_from(hub, tmp_path, name):
    """Run in a process of its own, since the client reads its settings when it is imported."""
    code = f"import skyvec; print(skyvec.load_model({name!r}).digest)"
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True,
        env={
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path),
            "no_proxy": "127.0.0.1",
        },
    )  # fmt: skip


def test_a_pinned_model_is_downloaded_once_and_is_the_model(hub, tmp_path):
    name = f"hf://{REPO}@{COMMIT}"
    first = load_from(hub, tmp_path, name)
    assert first.stdout.strip() == skyvec.load_model().digest, first.stderr
    assert any(path.endswith("codecs/image/model.safetensors") for path in hub.asked)
    fetched = len([path for path in hub.asked if path.endswith(".safetensors")])
    assert load_from(hub, tmp_path, name).stdout == first.stdout
    assert len([path for path in hub.asked if path.endswith(".safetensors")]) == fetched


def test_a_model_that_is_not_there_is_one_line(hub, tmp_path):
    done = load_from(hub, tmp_path, f"hf://someone/else@{COMMIT}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"hf://someone/else@{COMMIT}" in last
    assert "Check the name, the revision and the network" in last

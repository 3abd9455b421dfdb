"""The oracle's client, models and codecs that it made, and the same inputs for both sides."""

import json
import os
import shutil
import subprocess
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from skyvec_core.codecs.folder import load_codec
from skyvec_core.embedder import Model
from skyvec_core.modalities import MODALITIES
from skyvec_core.observations import Tokens

PYTHON = os.environ.get("SKYVEC_AION_PYTHON", "")
torch.set_num_threads(1)

# Shape letters: b object, n tokens of one modality, t tokens of all, d width.


class OracleError(RuntimeError):
    """The official package raised; the message is ``Type: message``."""


@dataclass
class Oracle:
    """Requests to `oracle.py`, which runs in the official package's environment."""

    process: subprocess.Popen
    folder: Path
    """For the tensors of requests and answers."""
    log: Path
    values: dict = field(default_factory=dict)
    """Plain values of the last answer."""

    def __call__(self, command, tensors=None, **arguments):
        """Tensors that a command answers with."""
        asked, answered = self.folder / "request.safetensors", self.folder / "answer.safetensors"
        if tensors:
            save_file({k: t.contiguous().clone() for k, t in tensors.items()}, asked)
        request = {
            "command": command,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
            "tensors": str(asked) if tensors else None,
            "answer": str(answered),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the oracle ended:\n{self.log.read_text()[-2000:]}")
        reply = json.loads(line)
        if "error" in reply:
            raise OracleError(reply["error"])
        self.values = reply["values"]
        tensors = load_file(answered)
        answered.unlink()  # the next answer is another file, whatever these tensors are mapped to
        return tensors


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    """The official package, started once."""
    if not PYTHON:
        pytest.skip("SKYVEC_AION_PYTHON names no Python with polymathic-aion; run `make parity`")
    folder = tmp_path_factory.mktemp("oracle")
    log = folder / "stderr.txt"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [PYTHON, "-I", str(Path(__file__).with_name("oracle.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        ) as process,
    ):  # fmt: skip
        yield Oracle(process, folder, log)
        process.stdin.close()


@dataclass(frozen=True)
class Pair:
    """One folder on both sides: the official model and ours, loaded from it."""

    oracle: Oracle
    folder: Path
    model: Model

    def official(self, command, ids, hide, **arguments):
        """Tensors that the official package answers a command on tokens with."""
        tensors = {f"ids.{key}": one for key, one in ids.items()}
        tensors |= {f"hide.{key}": one for key, one in hide.items()}
        return self.oracle(command, tensors, folder=self.folder, order=list(ids), **arguments)

    def official_context(self, ids, hide):
        """Official context vectors, token key -> (b, n, d), NaN where hidden."""
        context_btd = self.official("encode", ids, hide)["context"]
        # The package sorts the tokens of a row: those not hidden first, else in dict order.
        hidden_bt = torch.cat([hide[key] for key in ids], 1)
        place_bt = hidden_bt.to(torch.int8).argsort(dim=1, stable=True).argsort(dim=1)
        ordered_btd = context_btd.take_along_dim(place_bt[..., None], 1)
        ordered_btd[hidden_bt] = torch.nan
        parts = ordered_btd.split([t.shape[1] for t in ids.values()], dim=1)
        return dict(zip(ids, parts, strict=True))

    def our_context(self, ids, hide):
        """Our context vectors, token key -> (b, n, d), NaN where hidden."""
        return our_context(self.model, self.tokens(ids, hide))

    @staticmethod
    def tokens(ids, hide):
        """Official ids and hide masks (True = hidden) as ours."""
        return {key: Tokens(ids_BN=ids[key], valid_BN=~hide[key]) for key in ids}


def our_context(model, tokens):
    """Context vectors of a `TokenSet`, token key -> (b, n, d), NaN where not valid."""
    keys = [key for key in MODALITIES if key in tokens]
    valid_bt = torch.cat([tokens[key].valid_BN for key in keys], dim=1)
    context_btd = torch.full((*valid_bt.shape, model.dim), torch.nan)
    with torch.inference_mode():
        for batch, found_btd in model.contexts(tokens):
            for row, found_td, kept_t in zip(batch.rows, found_btd, batch.valid_BT, strict=False):
                context_btd[row, valid_bt[row]] = found_td[kept_t]
    parts = context_btd.split([tokens[key].ids_BN.shape[1] for key in keys], dim=1)
    return dict(zip(keys, parts, strict=True))


@pytest.fixture(autouse=True)
def _emptied(tmp_path):
    """Remove what a test wrote: models are large, and pytest keeps three sessions."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def pair_of(oracle, tmp_path_factory):
    """Call with sizes to get a random official model over all domains, and ours from its folder."""
    folders = []

    def make(**sizes):
        folders.append(tmp_path_factory.mktemp("model"))
        oracle("make_transformer", folder=folders[-1], seed=0, **sizes)
        return Pair(oracle, folders[-1], Model.load(folders[-1]))

    yield make
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny(pair_of):
    """One block each way and little width."""
    return pair_of(dim=64, heads=1, encoder_depth=1, decoder_depth=1)


@pytest.fixture(scope="session")
def shallow(pair_of):
    """2 + 2 blocks at the width of AION-1-B."""
    return pair_of(dim=768, heads=12, encoder_depth=2, decoder_depth=2)


@pytest.fixture(scope="session")
def base(pair_of):
    """All of AION-1-B: 12 + 12 blocks."""
    return pair_of(dim=768, heads=12, encoder_depth=12, decoder_depth=12)


@dataclass(frozen=True)
class CodecPair:
    """One codec folder on both sides."""

    oracle: Oracle
    folder: Path
    key: str
    """Token key of the modality."""
    ours: object

    def official_codes(self, bands=None, *, times=1, folder=None, **tensors):
        """Official codes (b, n) as ``ids``, and of networks the ``latents`` (b, d, n) below."""
        more = {"bands": list(bands) if bands else None, "times": times}
        folder = folder or self.folder
        return self.oracle("codec_encode", tensors, folder=folder, key=self.key, **more)

    def official_ids(self, bands=None, **arguments):
        """Official codes alone."""
        return self.official_codes(bands, **arguments)["ids"]

    def official_fields(self, ids, **arguments):
        """Official decoded fields by name."""
        tensors = {"ids": ids}
        if "wavelength" in arguments:
            tensors["wavelength"] = arguments.pop("wavelength")
        return self.oracle("codec_decode", tensors, folder=self.folder, key=self.key, **arguments)

    @property
    def config(self):
        """What config.json of the codec holds."""
        return json.loads((self.place / "config.json").read_text())

    @property
    def tensors(self):
        """What model.safetensors of the codec holds."""
        return load_file(self.place / "model.safetensors")

    @property
    def place(self):
        """Folder of the codec."""
        return self.folder / "codecs" / MODALITIES[self.key].codec


@pytest.fixture(scope="session")
def codecs(oracle, tmp_path_factory):
    """Call with a token key (and a size) to get that codec on both sides."""
    folders = {size: tmp_path_factory.mktemp(f"codecs-{size}") for size in ("published", "small")}

    def get(key, size="published"):
        folder, name = folders[size], MODALITIES[key].codec
        if not (folder / "codecs" / name).exists():
            seed = zlib.crc32(name.encode())
            oracle("make_codec", folder=folder, name=name, size=size, seed=seed)
        return CodecPair(oracle, folder, key, load_codec(folder, MODALITIES[key]))

    yield get
    for folder in folders.values():
        shutil.rmtree(folder)

"""Nothing that is read can make us execute code, leave its folder, or take other weights."""

import pickle
import shutil
from pathlib import Path

import pytest

from skyvec import models
from skyvec.extensions.vector_catalog import VectorCatalog, extension_folder
from skyvec.models import load_model
from skyvec.stage.plan import plan
from skyvec_schemas.errors import ConfigurationError, WeightsError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Exploit:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def hub(model_folder, monkeypatch):
    monkeypatch.setattr(models, "_from_hub", lambda _: model_folder)
    return f"hf://someone/else@{COMMIT}"


def test_a_run_names_a_remote_model_by_revision_and_digest(hub, make_collection, model_folder):
    digest = load_model(model_folder).digest
    collection = make_collection()
    with pytest.raises(WeightsError, match=rf"needs its digest .*write {hub}#{digest[:16]}"):
        plan(collection, model=hub, name="v")
    assert plan(collection, model=f"{hub}#{digest[:16]}", name="v").job.model.digest == digest


def test_other_weights_than_those_named_are_refused(hub, model_folder):
    for name in (hub, model_folder):
        with pytest.raises(WeightsError, match=r"digest is .*, not 000000000000"):
            load_model(f"{name}#000000000000")


def test_pickles_in_a_model_folder_are_never_read(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for name in ("pytorch_model.bin", "model.pt", "codecs/image/model.pkl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Exploit(tmp_path / "mark")))
    assert load_model(folder).digest == load_model(model_folder).digest
    (folder / "model.safetensors").write_bytes(pickle.dumps(Exploit(tmp_path / "mark")))
    with pytest.raises(WeightsError):
        load_model(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("trap", ["../elsewhere", "/etc", "..", "a/b"])
def test_an_extension_whose_properties_lead_elsewhere_is_not_read(embedded, tmp_path, trap):
    file = shutil.copy(embedded / "small_v1.properties", tmp_path)
    text = Path(file).read_text().replace(
        "hats_assn_join_table_url=small_v1", f"hats_assn_join_table_url={trap}"
    )  # fmt: skip
    Path(file).write_text(text)
    assert trap in text
    for opened in (VectorCatalog.open, lambda f: extension_folder(tmp_path, str(f))):
        with pytest.raises(ConfigurationError, match="outside of its folder"):
            opened(file)

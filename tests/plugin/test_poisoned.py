"""One object in a hundred is poison: the run ends well, they are null and listed, no other row moves."""

import lsdb
import numpy as np
import pytest

from skyvec.releases.hats.catalog import HatsRelease
from skyvec.stage.run import run
from skyvec_schemas.vectors import tensor_values

ROWS, POISONED = 200, (17, 154)
NAME = "vectors"

pytestmark = pytest.mark.filterwarnings("ignore:Right catalog does not have a margin")


def stored(collection):
    """id -> the columns beside its vector, and the bytes of that."""
    release = HatsRelease.open(collection / NAME)
    found = {}
    for pixel in release.pixels:
        with release.open_leaf(pixel) as leaf:
            table = leaf.read()
        vectors = tensor_values(table.column(NAME), missing=np.nan)
        others = table.drop_columns([NAME, "_healpix_29", "ra", "dec"]).to_pylist()
        for vector, row in zip(vectors, others, strict=True):
            found[row.pop("object_id")] = row | {"vector": vector.tobytes()}
    return found


def test_one_percent_of_poison_costs_one_percent(make_collection, model_folder, factory):
    cutouts = [factory.cutout(i, size=32) for i in range(ROWS)]
    clean = factory.survey_table(ROWS, cutouts=cutouts)
    ragged = factory.cutout(154, size=32)
    ragged["flux"] = [plane.tolist() for plane in ragged["flux"]]
    ragged["flux"][2] = ragged["flux"][2][:5]
    poison = {17: factory.cutout(17, size=32, flux=np.full((4, 32, 32), np.inf)), 154: ragged}
    poisoned = factory.survey_table(ROWS, cutouts=[poison.get(i, c) for i, c in enumerate(cutouts)])
    ids = np.array(clean.column("object_id"))
    bad = set(ids[list(POISONED)].tolist())

    healthy = make_collection(clean, name="healthy")
    run(healthy, name=NAME, model=model_folder, workers=0)
    sick = make_collection(poisoned, name="sick")
    record = run(sick, name=NAME, model=model_folder, workers=0)

    assert (record.exit_code, record.rows, record.bad_rows, record.quarantined) == (0, ROWS, 2, 2)
    expected, found = stored(healthy), stored(sick)
    assert found.keys() == expected.keys()
    assert {key for key in found if found[key] != expected[key]} == bad
    assert {key for key, row in found.items() if row[f"{NAME}_status"] == "failed"} == bad
    listed = lsdb.open_catalog(sick / f"{NAME}_quarantine").compute(progress_bar=False)
    assert set(listed["object_id"]) == bad
    reasons = dict(zip(listed["object_id"], listed["reasons"], strict=True))
    assert "image unusable" in reasons[ids[17]]
    assert "image malformed" in reasons[ids[154]]

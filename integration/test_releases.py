"""Releases end to end: a mock sky in the field's formats, sources on Dask workers, two versions."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import lsdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import skyvec
from skyvec.mock.survey import write_mock_survey
from skyvec.releases.hats.catalog import HatsRelease
from skyvec.releases.joining.catalog_keys import read_catalog_keys
from skyvec.releases.joining.join import match
from skyvec.releases.versions.diff import diff_releases
from skyvec.releases.versions.making import make_release
from skyvec.sources import reach, settled
from skyvec_core.observations import Images
from skyvec_schemas.survey_columns import LEGACY_SURVEY, OBJECTS

IN_TURN = Path(__file__).with_name("in_turn.py")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]
SURVEYS = ("legacysurvey", "hsc", "sdss", "desi", "gaia")
ROWS = 60


@pytest.fixture(scope="module")
def skies(tmp_path_factory) -> dict[int, Path]:
    """Release 1 and 2 of one small sky, stamps of 112 pixels."""
    folder = tmp_path_factory.mktemp("skies")
    return {
        release: write_mock_survey(
            folder / f"sky{release}", rows=ROWS, seed=5, surveys=SURVEYS, stamp=112, release=release,
            workers=1,
        )
        for release in (1, 2)
    }  # fmt: skip


def sources(sky: Path, *names: str):
    return skyvec.declared_sources([f"{name}={sky / 'mmu' / name}" for name in names])


def test_vectors_of_a_cluster_are_those_of_the_bytes_in_the_files(skies):
    """Every object's vector, straight from h5py, our codec and our encoder, one by one."""
    spec = sources(skies[1], "legacysurvey")
    record = skyvec.run(
        skies[1], name="stamps", survey=OBJECTS, dtype="float32", sources=spec, workers=2
    )
    assert record.exit_code == 0
    frame = lsdb.open_catalog(skies[1]).load_extension("stamps").compute(progress_bar=False)
    frame = frame[frame["stamps_legacysurvey_id"].notna()].set_index("stamps_legacysurvey_id")
    model = skyvec.load_model("skyvec-tiny")
    seen = 0
    for file in (skies[1] / "mmu/legacysurvey").rglob("*.hdf5"):
        with h5py.File(file) as opened:
            for row, object_id in enumerate(opened["object_id"][:]):
                observations = observed(opened, row)
                vector = model.embed(model.tokenize(observations)).numpy()[0]
                assert np.array_equal(vector, frame.loc[object_id.decode().strip(), "stamps"])
                seen += 1
    assert seen == len(frame) == record.sources["legacysurvey"]["matched"] == ROWS


def observed(file: h5py.File, row: int):
    """The observations of one row, without a line of our readers."""
    edge = (file["image_array"].shape[-1] - 96) // 2
    window = (..., slice(edge, edge + 96), slice(edge, edge + 96))
    flux = file["image_array"][row][window].astype(np.float32)
    good = np.isfinite(flux) & file["image_mask"][row][window]
    scalars = {
        scalar.token_key: torch.tensor([float(file[scalar.name][row])])
        for scalar in LEGACY_SURVEY.scalars
    }
    image = Images(
        flux_BCHW=torch.from_numpy(flux)[None],
        good_BCHW=torch.from_numpy(good)[None],
        bands=("DES-G", "DES-R", "DES-I", "DES-Z"),
    )
    return {"tok_image": image, **scalars}


def truth_of(sky: Path):
    return pq.read_table(sky / "truth/objects.parquet").to_pandas().set_index("object_id")


@pytest.mark.parametrize("name", SURVEYS)
def test_every_source_finds_the_objects_that_the_truth_names(skies, name):
    truth = truth_of(skies[1])[f"{name}_id"]
    release = HatsRelease.open(skies[1])
    (declared,) = sources(skies[1], name)
    spec = settled(declared, release, OBJECTS)
    margin = reach(spec, release, OBJECTS)
    rows = 0
    for pixel in release.pixels:
        keys = read_catalog_keys(release, pixel, OBJECTS, margin_arcsec=margin)
        objects = spec.open().objects(pixel, margin_arcsec=margin)
        index = match(keys, objects, spec.rule, survey=spec.survey).index
        for object_id, place in zip(keys.ids.tolist(), index.tolist(), strict=False):
            expected = truth[int(object_id)]
            assert (str(objects.ids[place]) if place >= 0 else None) == (
                None if pd.isna(expected) else str(expected).strip()
            )
            rows += 1
    assert rows == len(truth)


def test_the_difference_of_two_releases_is_what_the_truth_says(skies, tmp_path):
    older, newer = (
        make_release(sky / "mmu/legacysurvey", store=tmp_path, name=f"dr{number}",
                     survey="legacysurvey")
        for number, sky in skies.items()
    )  # fmt: skip
    found = diff_releases(older, newer).objects.to_pandas()
    before, after = (truth_of(skies[number]) for number in (1, 2))
    has = after["legacysurvey_id"].notna()
    reprocessed = (after["fate"] == "changed") & (after["change"] != "spectrum") & has
    withdrawn = after.index[after["fate"] == "withdrawn"]
    expected = {
        "added": set(after.loc[(after["fate"] == "added") & has, "legacysurvey_id"]),
        "changed": set(after.loc[reprocessed, "legacysurvey_id"]),
        "vanished": set(before.loc[before.index.isin(withdrawn), "legacysurvey_id"].dropna()),
    }
    assert all(expected.values())
    for kind, ids in expected.items():
        assert set(found.loc[found["change"] == kind, "object_id"]) == ids


def test_the_commands_of_the_page_on_releases_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs/releases.md").read_text()
    commands = re.findall(r"^\$ (skyvec .*)$", page, re.MULTILINE)
    assert len(commands) >= 8
    some = [command.replace("--rows 60", "--rows 24") for command in commands]
    subprocess.run([sys.executable, IN_TURN, *some], check=True)

"""Mock releases on disk: layout, joins, truth, what a second release keeps byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from hats.io.validation import is_valid_collection
from hats.pixel_math.healpix_shim import radec2pix

from skyvec.mock.footprints import SURVEYS
from skyvec.mock.inventory import inventory
from skyvec.mock.releases import FOLDERS, chosen_surveys
from skyvec.mock.survey import plan_mock_survey, write_mock_survey
from skyvec_schemas.errors import ConfigurationError
from skyvec_schemas.survey_columns import SURVEYS as REGISTRY

ROWS, STARS, QUASARS, SEED, SIZE, STAMP = 70, 24, 8, 4, 32, 48
OBJECTS = ROWS + STARS + QUASARS


def write(out, **choices):
    asked = {
        "rows": ROWS,
        "stars": STARS,
        "quasars": QUASARS,
        "seed": SEED,
        "size": SIZE,
        "stamp": STAMP,
        "surveys": SURVEYS,
        "workers": 1,
    }
    return write_mock_survey(out, **(asked | choices))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mock") / "first")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mock") / "second", release=2)


@pytest.fixture(scope="module")
def truth(first):
    return pq.read_table(first / "truth" / "objects.parquet").to_pandas()


@pytest.fixture(scope="module")
def later(second):
    return pq.read_table(second / "truth" / "objects.parquet").to_pandas()


def files_of(folder):
    """Digest by path of every file that holds objects."""
    paths = [*folder.rglob("Npix=*.parquet"), *folder.rglob("*.hdf5")]
    return {
        str(path.relative_to(folder)).replace("mock_dr2", "mock_dr1"): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in paths
    }


def read(folder, survey, *names):
    """Columns of a survey over all its files, in the order of their paths."""
    parts = {name: [] for name in names}
    for path in sorted((folder / "mmu" / FOLDERS[survey]).glob("healpix=*/*.hdf5")):
        with h5py.File(path) as file:
            for name in names:
                parts[name].append(file[name][:])
    return [np.concatenate(parts[name]) for name in names]


def texts(ids):
    return [
        value.decode().strip() if isinstance(value, bytes) else str(value) for value in ids.tolist()
    ]


def known(frame, survey):
    return frame[f"{survey}_id"].dropna().tolist()


def catalog(folder):
    leaves = sorted(folder.rglob("Npix=*.parquet"))
    return pa.concat_tables([pq.ParquetFile(leaf).read() for leaf in leaves])


def test_the_collection_with_releases_beside_it_is_valid_and_opens(first):
    assert is_valid_collection(first, strict=True)
    frame = lsdb.open_catalog(first)[["object_id", "Z", "FLUX_R"]].compute()
    assert len(frame) == OBJECTS


def test_the_galaxies_of_the_collection_are_those_without_stars_and_releases(first, tmp_path):
    plain = write(tmp_path / "plain", surveys=(), stars=0, quasars=0)
    assert not (plain / "mmu").exists()
    assert not (plain / "truth").exists()
    alone = catalog(plain).sort_by("object_id")
    with_others = catalog(first).sort_by("object_id")
    kept = np.isin(with_others["object_id"].to_numpy(), alone["object_id"].to_numpy())
    assert with_others.filter(pa.array(kept)).to_pylist() == alone.to_pylist()


def test_points_in_the_collection_have_a_flux_and_no_shape(first, truth):
    table = catalog(first).to_pandas()
    table = table.merge(truth[["object_id", "kind", "flux_r"]], on="object_id")
    stars = table[table.kind == "star"]
    assert len(stars) == STARS
    assert (stars["SHAPE_R"] == 0).all()
    assert (stars["FLUX_R"] / stars["flux_r"]).median() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("survey", SURVEYS)
def test_files_lie_in_the_pixel_of_their_positions(first, survey):
    paths = sorted((first / "mmu" / FOLDERS[survey]).glob("healpix=*/001-of-001.hdf5"))
    assert paths
    for path in paths:
        pixel = int(path.parent.name.removeprefix("healpix="))
        with h5py.File(path) as file:
            assert (file["healpix"][:] == pixel).all()
            assert (radec2pix(4, file["ra"][:], file["dec"][:]) == pixel).all()
            assert {len(column) for column in file.values()} == {len(file["ra"])}


@pytest.mark.parametrize("survey", SURVEYS)
def test_every_column_that_skyvec_reads_of_a_survey_is_there(first, survey):
    path = next((first / "mmu" / FOLDERS[survey]).glob("healpix=*/*.hdf5"))
    declared = REGISTRY[survey]
    with h5py.File(path) as file:
        names = set(file)
    assert {declared.id_column, declared.ra_column, declared.dec_column, "healpix"} <= names
    assert {scalar.name for scalar in declared.scalars} <= names
    assert set(declared.labels) - {"Z"} <= names
    if declared.image:
        assert {f"image_{part}" for part in ("array", "ivar", "mask", "band")} <= names
    if declared.spectrum:
        parts = ("flux", "ivar", "mask", "lambda", "lsf_sigma")
        assert {f"spectrum_{part}" for part in parts} <= names
        assert "Z" in names
    if declared.coefficients:
        assert {"coeff", "coeff_error", "pmra", "pmdec"} <= names


@pytest.mark.parametrize("survey", SURVEYS)
def test_the_truth_knows_every_object_of_a_survey_by_its_id(first, truth, survey):
    (ids,) = read(first, survey, REGISTRY[survey].id_column)
    assert len(ids)
    assert sorted(texts(ids)) == sorted(known(truth, survey))


@pytest.mark.parametrize(
    ("survey", "radius"), [("legacysurvey", 0.001), ("hsc", 0.3), ("sdss", 0.6), ("desi", 0.06)]
)
def test_galaxies_are_found_by_position_within_the_scatter(first, truth, survey, radius):
    ids, ra, dec = read(first, survey, REGISTRY[survey].id_column, "ra", "dec")
    galaxies = truth[(truth.kind == "galaxy") & truth[f"{survey}_id"].notna()]
    here = SkyCoord(galaxies.ra, galaxies.dec, unit="deg")
    place, distance, _ = here.match_to_catalog_sky(SkyCoord(ra, dec, unit="deg"))
    assert distance.arcsec.max() < radius
    expected = known(galaxies, survey)
    assert [texts(ids)[i] for i in place] == expected


def test_the_redshift_of_a_spectrum_is_that_of_the_truth(first, truth):
    ids, redshift, warning = read(first, "desi", "object_id", "Z", "ZWARN")
    found = dict(zip(texts(ids), zip(redshift, warning, strict=True), strict=True))
    held = truth[truth.desi_id.notna()]
    for row, name in zip(held.itertuples(), known(held, "desi"), strict=True):
        measured, bad = found[name]
        assert bool(bad) == row.desi_failed
        assert bad or measured == pytest.approx(row.redshift, abs=5e-4)


def test_the_second_release_says_what_happened_to_each_object(truth, later):
    counts = later.fate.value_counts().to_dict()
    assert counts == {
        "unchanged": OBJECTS - 3 - 1,
        "added": 7 + 2 + 1,
        "changed": 3,
        "withdrawn": 1,
    }
    assert set(truth.object_id) == set(later[later.fate != "added"].object_id)
    assert (later[later.fate == "added"].first_release == 2).all()
    assert ((later.change != "none") == (later.fate == "changed")).all()


def test_the_second_release_holds_the_objects_that_its_truth_holds(second, later):
    held = catalog(second)["object_id"].to_pylist()
    assert sorted(held) == sorted(later[later.fate != "withdrawn"].object_id)
    for survey in SURVEYS:
        (ids,) = read(second, survey, REGISTRY[survey].id_column)
        assert sorted(texts(ids)) == sorted(known(later, survey)), survey
    assert is_valid_collection(second, strict=True)


def test_files_without_a_change_are_equal_byte_for_byte(first, second, later):
    before, after = files_of(first), files_of(second)
    touched = later[later.fate.isin(["changed", "withdrawn"])]
    same = [path for path in after if after[path] == before.get(path)]
    assert len(same) > 0.7 * len(before)
    for survey in SURVEYS:
        folder = first / "mmu" / FOLDERS[survey]
        for path in sorted(folder.glob("healpix=*/*.hdf5")):
            name = str(path.relative_to(first))
            with h5py.File(path) as file:
                ids = set(texts(file[REGISTRY[survey].id_column][:]))
            old = touched_ids(touched, first, survey)
            if not ids & old and not has_new(second / name, later, survey):
                assert after[name] == before[name], name


def touched_ids(touched, first, survey):
    """Ids that changed or withdrawn objects have in a survey of the first release."""
    truth = pq.read_table(first / "truth" / "objects.parquet").to_pandas()
    rows = truth[truth.object_id.isin(touched.object_id) & truth[f"{survey}_id"].notna()]
    return set(known(rows, survey))


def has_new(path, later, survey):
    added = later[(later.fate == "added") & later[f"{survey}_id"].notna()]
    with h5py.File(path) as file:
        ids = set(texts(file[REGISTRY[survey].id_column][:]))
    return bool(ids & set(known(added, survey)))


def test_unchanged_rows_of_the_catalog_are_bit_identical(first, second, later):
    unchanged = pa.array(later[later.fate == "unchanged"].object_id)
    rows = []
    for folder in (first, second):
        table = catalog(folder).sort_by("object_id")
        kept = np.isin(table["object_id"].to_numpy(), unchanged.to_numpy())
        # As text, in which NaN equals NaN.
        rows.append(repr(table.filter(pa.array(kept)).to_pylist()))
    assert rows[0] == rows[1]


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    few = {"rows": 10, "stars": 6, "quasars": 2, "size": 16, "stamp": 16}
    folders = [write(tmp_path / str(workers), workers=workers, **few) for workers in (1, 2)]
    alone, together = map(files_of, folders)
    assert alone == together
    truths = [(folder / "truth/objects.parquet").read_bytes() for folder in folders]
    assert truths[0] == truths[1]


def test_one_survey_alone_holds_what_it_holds_among_others(first, tmp_path):
    alone = write(tmp_path / "alone", surveys=("desi",))
    found, everything = files_of(alone / "mmu"), files_of(first / "mmu")
    assert found == {path: digest for path, digest in everything.items() if path in found}
    assert all(path.startswith("desi/") for path in found)
    truth = pq.read_table(alone / "truth/objects.parquet")
    assert truth["hsc_id"].null_count == len(truth)


def test_the_inventory_counts_what_is_on_disk(first, truth):
    found = {one.what: one for one in inventory(first)}
    assert set(found) == {"collection", *SURVEYS, "truth"}
    assert found["collection"].objects == OBJECTS
    assert found["truth"].objects == OBJECTS
    for survey in SURVEYS:
        assert found[survey].objects == truth[f"{survey}_id"].notna().sum()
        assert found[survey].size > 0
    line = found["hsc"].line(first)
    assert line.startswith(f"{found['hsc'].objects} objects, ")
    assert line.endswith(" in mmu/hsc/pdr3_dud_22.5")


def test_the_plan_announces_as_many_observations_as_are_reported(tmp_path):
    plan = plan_mock_survey(
        rows=12, seed=1, size=16, stamp=16, surveys=("hsc", "desi"), stars=6, quasars=2
    )
    reported = []
    plan.write(tmp_path / "sky", workers=1, progress=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == plan.observations
    assert sum(one.objects for one in inventory(tmp_path / "sky")[:-1]) == plan.observations


def test_a_survey_that_holds_nobody_is_left_out(tmp_path):
    out = write(tmp_path / "sky", rows=3, stars=0, quasars=0, surveys=("gaia",))
    assert [one.what for one in inventory(out)] == ["collection", "truth"]


def test_a_second_release_of_the_collection_alone_has_its_truth(tmp_path):
    out = write(tmp_path / "sky", rows=40, stars=0, quasars=0, surveys=(), release=2)
    truth = pq.read_table(out / "truth/objects.parquet").to_pandas()
    assert truth.fate.value_counts().to_dict() == {"unchanged": 39, "added": 4, "changed": 1}
    assert set(truth[truth.fate == "changed"].change) <= {"photometry", "depth"}
    assert not (out / "mmu").exists()


@pytest.mark.parametrize(
    ("names", "found"),
    [("", ()), ("all", SURVEYS), ("desi, hsc", ("hsc", "desi")), ("gaia", ("gaia",))],
)
def test_surveys_are_read_from_a_list(names, found):
    assert chosen_surveys(names) == found


@pytest.mark.parametrize("names", ["lsst", "hsc,hsc", "all,hsc", "HSC"])
def test_a_list_of_other_surveys_is_refused(names):
    with pytest.raises(ConfigurationError, match=r"is not known|comes twice"):
        chosen_surveys(names)


def test_a_failure_leaves_nothing_behind(tmp_path):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "sky", rows=20, progress=stop)
    assert not list(Path(tmp_path).iterdir())

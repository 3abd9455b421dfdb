"""Making, verifying and withdrawing releases; row digests that only values can change."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import given
from hypothesis import strategies as st

from skyvec.releases.versions.making import make_release, withdraw
from skyvec.releases.versions.manifest import Release, publish, verify_release
from skyvec.releases.versions.shard_rows import read_shard
from skyvec_schemas.errors import (
    ConfigurationError,
    ContractError,
    DuplicateIdsError,
    MissingColumnError,
    OutputExistsError,
)
from skyvec_schemas.survey_columns import LEGACY_SURVEY, SDSS, Survey

SHARED = Path(__file__).parents[4] / "shared" / "data"


def columns(rows=5, *, seed=0, first=0):
    """Columns of a Legacy Survey file, small stamps, around one place."""
    rng = np.random.default_rng(seed)
    return {
        "object_id": np.array([f"b{first + i}" for i in range(rows)], "S16"),
        "ra": 10 + rng.random(rows),
        "dec": 1 + rng.random(rows),
        "healpix": np.zeros(rows, np.int64),
        "gid": np.arange(rows),
        "image_array": rng.normal(size=(rows, 4, 6, 6)).astype(np.float32),
        "image_band": np.array([["des-g", "des-r"]] * rows, "S5"),
        "image_mask": rng.random((rows, 6, 6)) > 0.2,
        "FLUX_G": rng.random(rows).astype(">f4"),
        "EBV": rng.random(rows),
        "TYPE": np.array(["EXP", "DEV"] * rows, "S3")[:rows],
    }


def write(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            layout = options if values.ndim > 1 and values.dtype.kind != "S" else {}
            file.create_dataset(name, data=values, **layout)
    return path


def pixel_of(table):
    return int(compute_spatial_index(table["ra"][:1], table["dec"][:1])[0] >> 50)


def folder(root, *tables):
    """An MMU folder with a file for each table, in the pixel of its first row."""
    for table in tables:
        write(root / f"healpix={pixel_of(table)}" / "001-of-001.hdf5", table)
    return root


@pytest.fixture
def two_pixels():
    left, right = columns(), columns(4, seed=1, first=50)
    right["ra"] = right["ra"] + 90
    return left, right


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make(data, store, name="dr1", **options):
    return make_release(data, store=store, name=name, survey="legacysurvey", **options)


def digests(path, survey=LEGACY_SURVEY):
    rows = read_shard(path, survey)
    return dict(zip(rows.ids.tolist(), map(bytes, rows.digests), strict=True))


# ---- digests of rows


def test_layout_does_not_touch_a_row_digest(tmp_path):
    table = columns(7)
    plain = digests(write(tmp_path / "a.hdf5", table))
    assert len(set(plain.values())) == 7
    shuffled = np.random.default_rng(3).permutation(7)
    other = {name: table[name][shuffled] for name in reversed(table)}
    other["image_array"] = other["image_array"].astype(">f4")
    other["FLUX_G"] = other["FLUX_G"].astype("<f4")
    other["object_id"] = other["object_id"].astype("S20")
    other["TYPE"] = other["TYPE"].astype("S8")
    other["healpix"] = other["healpix"] + 9
    other["gid"] = other["gid"][::-1] + 3
    again = digests(write(tmp_path / "b.hdf5", other, chunks=True, compression="lzf"))
    assert again == plain


@pytest.mark.parametrize(
    "name", ["image_array", "image_mask", "image_band", "FLUX_G", "EBV", "TYPE"]
)
def test_any_value_changes_the_digest_of_its_row_alone(tmp_path, name):
    table = columns(6)
    before = digests(write(tmp_path / "a.hdf5", table))
    values = table[name] = table[name].copy()
    place = (2, *(0,) * (values.ndim - 1))
    values[place] = b"x" if values.dtype.kind == "S" else not values[place]
    after = digests(write(tmp_path / "b.hdf5", table))
    assert [one for one in before if before[one] != after[one]] == ["b2"]


def test_slabs_do_not_touch_a_row_digest(tmp_path, monkeypatch):
    path = write(tmp_path / "a.hdf5", columns(9), chunks=True)
    whole = digests(path)
    monkeypatch.setattr("skyvec.releases.versions.shard_rows.SLAB_BYTES", 1)
    assert digests(path) == whole


def test_the_filling_of_a_spectrum_is_not_part_of_it(tmp_path):
    rng = np.random.default_rng(0)
    short = {
        "object_id": np.array([b"  11", b"  12"]),
        "ra": np.full(2, 10.0),
        "dec": np.full(2, 1.0),
        "spectrum_flux": rng.random((2, 8)),
        "spectrum_lambda": np.tile(np.arange(1.0, 9), (2, 1)),
        "Z": np.ones(2, ">f4"),
    }
    filled = dict(short)
    filled["spectrum_flux"] = np.pad(short["spectrum_flux"], ((0, 0), (0, 3)), mode="edge")
    filled["spectrum_lambda"] = np.pad(
        short["spectrum_lambda"], ((0, 0), (0, 3)), constant_values=-1
    )
    ours = read_shard(write(tmp_path / "a.hdf5", short), SDSS)
    theirs = read_shard(write(tmp_path / "b.hdf5", filled), SDSS)
    assert ours.ids.tolist() == ["11", "12"]
    np.testing.assert_array_equal(ours.digests, theirs.digests)
    assert ours.schema == theirs.schema
    filled["spectrum_flux"] = filled["spectrum_flux"] + 1
    changed = read_shard(write(tmp_path / "c.hdf5", filled), SDSS)
    assert (changed.digests != ours.digests).any()


nested = st.lists(
    st.none()
    | st.fixed_dictionaries(
        {
            "band": st.none() | st.lists(st.none() | st.text(max_size=3), max_size=3),
            "flux": st.lists(
                st.lists(st.none() | st.floats(width=32, allow_nan=False), max_size=3), max_size=3
            ),
            "scale": st.none() | st.integers(0, 5),
        }
    ),
    min_size=1,
    max_size=8,
)
NESTED = pa.struct(
    [("band", pa.list_(pa.string())), ("flux", pa.list_(pa.list_(pa.float32()))),
     ("scale", pa.int16())]
)  # fmt: skip


@given(values=nested, data=st.data())
def test_row_groups_and_list_types_do_not_touch_a_row_digest(tmp_path_factory, values, data):
    place = tmp_path_factory.mktemp("leaf")
    rows = len(values)
    table = pa.table(
        {
            "object_id": pa.array(range(rows)),
            "ra": pa.array([1.0] * rows),
            "dec": pa.array([1.0] * rows),
            "word": pa.array(["a", None][i % 2] for i in range(rows)),
            "image": pa.array(values, NESTED),
        }
    )
    pq.write_table(table, place / "a.parquet")
    order = data.draw(st.permutations(range(rows)))
    wide = pa.struct(
        [("band", pa.large_list(pa.large_string())),
         ("flux", pa.large_list(pa.large_list(pa.float32()))), ("scale", pa.int16())]
    )  # fmt: skip
    other = table.take(pa.array(order))
    other = other.set_column(4, "image", other.column("image").cast(wide))
    other = other.select(["image", "word", "dec", "ra", "object_id"])
    size = data.draw(st.integers(1, rows))
    pq.write_table(other, place / "b.parquet", row_group_size=size, compression="zstd")
    ours, theirs = digests(place / "a.parquet"), digests(place / "b.parquet")
    assert ours == theirs
    alike = {repr((value, i % 2)): [] for i, value in enumerate(values)}
    for i, value in enumerate(values):
        alike[repr((value, i % 2))].append(ours[str(i)])
    assert all(len(set(found)) == 1 for found in alike.values())


def test_a_null_is_not_a_zero_nor_an_empty_list(tmp_path):
    values = [{"flux": [[0.0]]}, {"flux": [[None]]}, {"flux": [[]]}, {"flux": []}, {"flux": None}]
    rows = len(values)
    table = pa.table(
        {"object_id": [str(i) for i in range(rows)], "ra": [1.0] * rows, "dec": [1.0] * rows,
         "image": pa.array(values, pa.struct([("flux", pa.list_(pa.list_(pa.float32())))]))}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(set(digests(tmp_path / "a.parquet").values())) == rows


# ---- making


def test_a_release_says_what_is_in_it(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    (data / "legacysurvey.py").write_text("# the loader")
    made = make(data, store, upstream="DR10 South")
    manifest = made.manifest
    assert (manifest.survey, manifest.upstream, manifest.layout) == (
        "legacysurvey", "DR10 South", "mmu-hdf5"
    )  # fmt: skip
    assert manifest.counts == {
        "files": 3, "shards": 2, "reused_shards": 0, "bytes": sum(f.bytes for f in made.files),
        "objects": 9, "duplicates": 0, "without_position": 0, "outside_pixel": 0, "withdrawn": 0,
    }  # fmt: skip
    shards = [file for file in made.files if file.is_shard]
    assert {(s.order, s.npix, s.rows) for s in shards} == {
        (4, pixel_of(two_pixels[0]), 5), (4, pixel_of(two_pixels[1]), 4)
    }  # fmt: skip
    objects = made.objects()
    np.testing.assert_array_equal(
        objects.column("_healpix_29").to_numpy(),
        compute_spatial_index(objects.column("ra").to_numpy(), objects.column("dec").to_numpy()),
    )
    for shard, file in enumerate(made.files):
        rows = objects.filter(pa.array(objects.column("shard").to_numpy() == shard))
        if not file.is_shard:
            assert len(rows) == 0
            continue
        assert rows.column("_healpix_29").to_numpy().min() == file.healpix_min
        with h5py.File(made.path_of(file)) as stored:
            found = stored["object_id"][:].astype("U16")
        assert rows.column("object_id").to_pylist() == found.tolist()
        assert rows.column("row").to_pylist() == list(range(file.rows))
    assert Release.open(store).name == "dr1"
    assert verify_release(made).ok


def test_a_release_is_never_rewritten(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    before = make(data, store).manifest.digest()
    with pytest.raises(OutputExistsError, match="never rewritten"):
        make(data, store)
    assert Release.open(store / "dr1").manifest.digest() == before


def test_equal_files_are_reused_and_not_digested_again(tmp_path, store, two_pixels, monkeypatch):
    left, right = two_pixels
    make(folder(tmp_path / "one", left, right), store)
    right["FLUX_G"] = right["FLUX_G"] * 2
    seen = []
    monkeypatch.setattr(
        "skyvec.releases.versions.tables.read_shard",
        lambda path, survey: (seen.append(path), read_shard(path, survey))[1],
    )
    second = make(folder(tmp_path / "two", left, right), store, "dr2", parent="dr1")
    assert [path.parent.name for path in seen] == [f"healpix={pixel_of(right)}"]
    assert sorted(str(file.reused_from) for file in second.files) == ["None", "dr1"]
    assert second.manifest.parent_digest == Release.open(store / "dr1").manifest.digest()
    alone = make_release(
        tmp_path / "two", store=tmp_path / "else", name="x", survey="legacysurvey"
    ).objects()
    order = [("object_id", "ascending")]
    keep = ["object_id", "_healpix_29", "ra", "dec", "row", "digest"]
    assert second.objects(keep).sort_by(order) == alone.select(keep).sort_by(order)


def test_linked_releases_outlive_their_source_and_share_bytes(tmp_path, store, two_pixels):
    left, right = two_pixels
    first = make(folder(tmp_path / "one", left, right), store, link=True)
    shutil.rmtree(tmp_path / "one")
    assert verify_release(first).ok
    right["EBV"] = right["EBV"] + 1
    second = make(
        folder(tmp_path / "two", right), store, "dr2", parent="dr1", link=True, carry=True
    )
    shutil.rmtree(tmp_path / "two")
    assert verify_release(second).ok
    assert second.manifest.counts["objects"] == 9
    path = f"data/healpix={pixel_of(left)}/001-of-001.hdf5"
    assert (store / "dr1" / path).stat().st_ino == (store / "dr2" / path).stat().st_ino


def test_a_folder_of_changed_pixels_carries_the_others(tmp_path, store, two_pixels):
    left, right = two_pixels
    make(folder(tmp_path / "one", left, right), store)
    right["EBV"] = right["EBV"] + 1
    second = make(folder(tmp_path / "two", right), store, "dr2", parent="dr1", carry=True)
    third = make(folder(tmp_path / "three", right), store, "dr3", parent="dr2", carry=True)
    for release in (second, third):
        held = {file.npix: file.held_by for file in release.files}
        assert held == {pixel_of(right): None, pixel_of(left): "dr1"}
        assert sorted(release.objects(["object_id"]).column(0).to_pylist()) == sorted(
            [*(f"b{i}" for i in range(5)), *(f"b{i}" for i in range(50, 54))]
        )
        assert verify_release(release).ok


def test_duplicate_ids_are_named_with_their_places(tmp_path, store, two_pixels):
    left, _ = two_pixels
    twice = {name: np.concatenate([values, values[1:3]]) for name, values in left.items()}
    data = folder(tmp_path / "data", twice)
    with pytest.raises(DuplicateIdsError) as found:
        make(data, store)
    assert "2 ids occur more than once, 2 of them with equal rows" in str(found.value)
    assert "'b1' in" in str(found.value)
    assert "row 1 and" in str(found.value)
    assert "build run twice?" in str(found.value)
    assert not list(store.glob("*"))
    assert make(data, store, allow_duplicates=True).manifest.counts["duplicates"] == 2


def test_objects_without_a_place_on_the_sky_are_counted_and_kept(tmp_path, store):
    table = columns(4)
    table["dec"][1], table["ra"][2] = 123.4, np.nan
    made = make(folder(tmp_path / "data", table), store)
    assert made.manifest.counts["without_position"] == 2
    assert made.objects().column("_healpix_29").to_pylist()[1:3] == [-1, -1]


def test_rows_outside_the_pixel_of_their_folder_are_counted(tmp_path, store):
    table = columns(4)
    table["ra"][2] = 200
    made = make(folder(tmp_path / "data", table), store)
    assert made.manifest.counts["outside_pixel"] == 1


@pytest.mark.parametrize("relative", [False, True])
def test_a_collection_is_a_release_too(make_collection, store, monkeypatch, relative):
    collection = make_collection()
    monkeypatch.chdir(collection.parent)
    made = make(collection.name if relative else collection, store)
    assert made.manifest.layout == "hats"
    assert made.manifest.counts["shards"] == 2
    assert made.manifest.counts["objects"] == 12
    assert made.manifest.counts["outside_pixel"] == 0
    assert verify_release(made).ok


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda t: t.pop("object_id"), MissingColumnError, "no column for id"),
        (lambda t: t.pop("dec"), MissingColumnError, "no column for declination"),
        (lambda t: t.update(EBV=np.ones(3)), ContractError, "'EBV' has 3 rows, 'object_id' has 5"),
        (lambda t: t.update(EBV=np.array(1.0)), ContractError, "'EBV' has no rows"),
        (lambda t: t.update(object_id=np.arange(5.0)), ContractError, "cannot hold 64-bit ids"),
    ],
)
def test_a_file_that_breaks_the_contract_is_named(tmp_path, store, spoil, error, message):
    table = columns()
    pixel = pixel_of(table)
    spoil(table)
    path = write(tmp_path / "data" / f"healpix={pixel}" / "001.hdf5", table)
    with pytest.raises(error) as found:
        make(tmp_path / "data", store)
    assert message in str(found.value)
    assert str(path) in str(found.value)
    assert not list(store.glob("*"))


def test_damaged_and_misplaced_files_are_named(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    path = next(data.rglob("*.hdf5"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ContractError, match=r"cannot be read .*bytes"):
        make(data, store)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ContractError, match=r"001-of-001.hdf5: cannot be read"):
        make(data, store)
    path.rename(data / "stray.hdf5")
    with pytest.raises(ContractError, match=r"stray\.hdf5: lies in no folder healpix=P"):
        make(data, store)


def test_links_and_groups_inside_a_file_are_refused(tmp_path, store):
    path = folder(tmp_path / "data", columns())
    with h5py.File(next(path.rglob("*.hdf5")), "a") as file:
        file["far"] = h5py.ExternalLink("/etc/other.hdf5", "x")
    with pytest.raises(ContractError, match="'far' is a link"):
        make(tmp_path / "data", store)


def test_files_with_one_object_each_are_released(tmp_path, store):
    if not SHARED.is_dir():
        pytest.skip("the real supernovae of ../shared/data are not here")
    for pixel, name in ((1113, "example_SN2004dt.hdf5"), (1772, "SN2007bc.hdf5")):
        file = SHARED / "mmu_format" / name
        place = tmp_path / "data" / f"healpix={pixel}" / file.name
        place.parent.mkdir(parents=True)
        shutil.copy(file, place)
    made = make_release(tmp_path / "data", store=store, name="v1", survey=Survey(name="csp"))
    assert sorted(made.objects().column("object_id").to_pylist()) == ["SN2004dt", "SN2007bc"]
    assert made.manifest.counts["outside_pixel"] == 0


def test_neither_layout_is_refused(tmp_path, store):
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigurationError, match="neither healpix=P"):
        make(tmp_path / "data", store)
    with pytest.raises(ConfigurationError, match="no such folder"):
        make(tmp_path / "nowhere", store)
    with pytest.raises(ConfigurationError, match="cannot name a release"):
        make(tmp_path / "data", store, "../x")


# ---- verifying, publishing, withdrawing


def test_verify_names_every_file_that_is_not_what_it_was(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    (data / "README").write_text("old")
    made = make(data, store)
    left = f"healpix={pixel_of(two_pixels[0])}/001-of-001.hdf5"
    right = f"healpix={pixel_of(two_pixels[1])}/001-of-001.hdf5"
    content = bytearray((data / left).read_bytes())
    content[-1] ^= 1
    (data / left).write_bytes(content)
    (data / right).unlink()
    (data / "healpix=1").mkdir()
    (data / "healpix=1/new.hdf5").write_text("")
    found = verify_release(made)
    assert (found.missing, found.changed, found.extra) == (
        (right,), (left,), ("healpix=1/new.hdf5",)
    )  # fmt: skip
    assert not found.ok
    assert verify_release(made, sample=0).changed == ()
    assert verify_release(made, sample=0.5, seed=0).checked == 2


def test_a_table_that_was_touched_is_refused(tmp_path, store, two_pixels):
    made = make(folder(tmp_path / "data", *two_pixels), store)
    place = store / "dr1" / "objects.parquet"
    pq.write_table(made.objects().slice(1), place)
    from skyvec.releases.versions import manifest

    manifest._CHECKED.clear()
    with pytest.raises(ContractError, match="not the file that the manifest vouches for"):
        Release.open(store).objects()
    assert verify_release(Release.open(store)).changed == ("objects.parquet",)


def test_the_pointer_moves_last_and_only_when_asked(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    make(data, store)
    second = make(data, store, "dr2", parent="dr1", current=False)
    assert Release.open(store).name == "dr1"
    publish(second)
    assert Release.open(store).name == "dr2"
    assert not list(store.glob(".*"))
    (store / "current.json").write_text(json.dumps({"release": "../out"}))
    with pytest.raises(ConfigurationError, match="cannot name a release"):
        Release.open(store)


def test_a_withdrawn_object_stays_withdrawn_until_it_is_readmitted(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    first = make(data, store)
    second = withdraw(first, name="dr1.1", withdrawn={"b1": "satellite trail"})
    assert "b1" not in second.objects().column("object_id").to_pylist()
    assert second.manifest.counts["objects"] == 8
    assert second.withdrawn.to_pylist() == [
        {"object_id": "b1", "reason": "satellite trail", "since": "dr1.1"}
    ]
    assert verify_release(second).ok
    third = make(data, store, "dr2", parent="dr1.1")
    assert "b1" not in third.objects().column("object_id").to_pylist()
    fourth = make(data, store, "dr3", parent="dr2", readmit=["b1"])
    assert "b1" in fourth.objects().column("object_id").to_pylist()
    assert fourth.manifest.counts["reused_shards"] == 2
    with pytest.raises(ConfigurationError, match=r"1 of the ids are not part of it, e\.g\. 'zz'"):
        withdraw(first, name="no", withdrawn={"zz": "?"})


def test_the_parent_must_be_of_the_same_survey(tmp_path, store, two_pixels):
    data = folder(tmp_path / "data", *two_pixels)
    make(data, store)
    with pytest.raises(ConfigurationError, match="release of legacysurvey, not of hsc"):
        make_release(data, store=store, name="x", survey="hsc", parent="dr1")
    with pytest.raises(ConfigurationError, match="no parent to carry"):
        make(data, store, "y", carry=True)

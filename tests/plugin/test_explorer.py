"""What the explorer shows: every object once, at its place, in its colour, with its neighbours."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.catalog import ExtensionProperties
from hats.io.parquet_metadata import write_parquet_metadata

from skyvec.explorer import kept_map
from skyvec.explorer.colours import Classes, Columns, Numbers
from skyvec.explorer.kept_map import object_map
from skyvec.explorer.needs import require_extra
from skyvec.explorer.neighbours import neighbours_of
from skyvec.explorer.objects import Objects, read_objects, unit_vectors
from skyvec.explorer.sky_plane import SkyPlane
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.probe import Probe
from skyvec.search import search
from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.vectors import tensor_array, tensor_values


def quiet(_line):
    """Say nothing."""


@pytest.fixture
def sky(embedded, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(embedded, tmp_path / "sky")


@pytest.fixture
def vectors(sky):
    return VectorCatalog.open(sky)


def change_vectors(vectors, change):
    """Rewrite every leaf of an extension; ``change(values, null)`` works in place."""
    for pixel in vectors.release.pixels:
        path = vectors.release.leaf(pixel)
        table = pq.read_table(path, partitioning=None)
        values = tensor_values(table.column(vectors.name), missing=0).copy()
        null = np.zeros(len(values), bool)
        change(values, null)
        column = tensor_array(values, absent=null)
        place = table.schema.get_field_index(vectors.name)
        pq.write_table(table.set_column(place, pa.field(vectors.name, column.type), column), path)


def test_every_object_with_a_vector_is_there_once(vectors):
    objects = read_objects(vectors)
    parts = list(vectors.parts())
    assert objects.ids.to_pylist() == [i for part in parts for i in part.ids.to_pylist()]
    assert np.array_equal(np.stack([objects.ra, objects.dec], 1),
                          np.concatenate([part.positions for part in parts]))  # fmt: skip
    assert objects.absent == 0


def test_rows_without_a_vector_are_counted_not_shown(vectors):
    def lose_the_second(_values, null):
        null[1] = True

    before = read_objects(vectors)
    change_vectors(vectors, lose_the_second)
    objects = read_objects(vectors)
    pixels = len(vectors.release.pixels)
    assert (len(objects), objects.absent) == (len(before) - pixels, pixels)
    assert objects.row[:2].tolist() == [0, 2]
    assert objects.ids[1] == before.ids[2]


def test_unit_vectors_are_those_of_the_objects(vectors):
    which = np.array([3, 17, 40, 59])
    stored = np.concatenate([part.vectors for part in vectors.parts()]).astype(np.float64)[which]
    wanted = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    assert np.allclose(unit_vectors(vectors, which), wanted, atol=1e-6)


def test_a_vector_that_holds_no_number_is_refused(vectors):
    def poison(values, _null):
        values[0, 0] = np.nan

    change_vectors(vectors, poison)
    with pytest.raises(ContractError, match="NaN or infinity"):
        object_map(vectors, say=quiet)


def test_an_extension_in_which_nothing_has_a_vector_is_refused(vectors):
    def lose_all(_values, null):
        null[:] = True

    change_vectors(vectors, lose_all)
    with pytest.raises(ConfigurationError, match="none of its 60 rows has a vector"):
        object_map(vectors, say=quiet)


def some_objects(ids):
    count = len(ids)
    return Objects(ids=ids, ra=np.zeros(count), dec=np.zeros(count),
                   place=np.repeat([0, 2], [2, count - 2]).astype(np.int32),
                   row=np.arange(count), absent=0)  # fmt: skip


def test_objects_are_found_by_ids_that_no_double_can_hold():
    objects = some_objects(pa.array([2**53, 2**53 + 1, 2**62 + 1]))
    assert objects.find_one(str(2**53 + 1)) == 1
    assert objects.name(2) == "4611686018427387905"
    assert objects.find_one("9007199254740993", place=2) is None
    assert objects.find_one(str(2**62 + 1), place=2) == 2
    assert objects.find_one("../../etc/passwd") is None
    assert objects.find(pa.array([2**62 + 1, 7])).tolist() == [2, -1]
    assert some_objects(pa.array(["a", "b", "ü/1"])).find_one("ü/1") == 2


def test_a_map_is_made_once_and_kept_beside_the_extension(sky, vectors, monkeypatch):
    files = sorted(p for p in vectors.release.root.rglob("*"))
    made = object_map(vectors, say=quiet)
    assert (sky / f"{vectors.name}_explorer" / "map.parquet").is_file()
    assert sorted(p for p in vectors.release.root.rglob("*")) == files
    monkeypatch.setattr(kept_map, "plane_of", None)
    again = object_map(VectorCatalog.open(sky), say=quiet)
    assert np.array_equal(again.xy, made.xy)
    assert again.objects.ids == made.objects.ids
    assert again.method == made.method


def test_a_map_of_other_vectors_is_made_anew(sky, vectors):
    made = object_map(vectors, say=quiet)

    def turn(values, _null):
        values[:] = -values[::-1]

    change_vectors(vectors, turn)
    again = object_map(VectorCatalog.open(sky), say=quiet)
    assert not np.allclose(np.abs(again.xy), np.abs(made.xy))
    kept = sky / f"{vectors.name}_explorer" / "map.parquet"
    kept.write_bytes(kept.read_bytes()[:1000])
    assert np.array_equal(object_map(VectorCatalog.open(sky), say=quiet).xy, again.xy)


def test_another_seed_or_sample_is_another_map(vectors):
    said = []
    for options in ({}, {}, {"seed": 1}, {"sample": 30}):
        object_map(vectors, say=said.append, **options)
    assert sum("kept in" in line for line in said) == 3


def test_a_map_is_never_kept_inside_a_published_extension(vectors):
    with pytest.raises(ConfigurationError, match="inside a published extension"):
        object_map(vectors, vectors.release.root / "cache", say=quiet)


def test_a_folder_that_cannot_be_written_is_refused_at_once(vectors, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kept_map, "read_objects", None)
    with pytest.raises(ConfigurationError, match="--cache"):
        object_map(vectors, tmp_path / "file" / "cache", say=quiet)


def test_colours_are_joined_by_id_whatever_the_order_of_rows(sky, vectors):
    objects = read_objects(vectors)
    tables = []
    for path in sorted((sky / "cat" / "dataset").glob("Norder*/*/*.parquet")):
        table = pq.read_table(path, partitioning=None)
        tables.append(table)
        pq.write_table(table.take(pa.array(np.random.default_rng(0).permutation(len(table)))), path)
    truth = {i: z for t in tables
             for i, z in zip(t["object_id"].to_pylist(), t["Z"].to_pylist(), strict=True)}  # fmt: skip
    colour = Columns(vectors, objects).read("Z")
    assert isinstance(colour, Numbers)
    assert colour.values.tolist() == [truth[i] for i in objects.ids.to_pylist()]
    assert colour.missing == 0


def test_objects_that_the_catalog_lost_have_no_colour(sky, vectors):
    path = min((sky / "cat" / "dataset").glob("Norder*/*/*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).slice(2), path)
    assert Columns(vectors, read_objects(vectors)).read("Z").missing == 2


def test_columns_of_the_extension_and_of_predictions_are_colours(sky, vectors):
    Probe("Z", name="guess").fit(sky, workers=1).publish(sky, "photoz", workers=1)
    columns = Columns(vectors, read_objects(vectors))
    assert {"Z", "FLUX_R", f"{vectors.name}_flags", "photoz.guess"} <= set(columns.names)
    assert not {"image", "object_id", "_healpix_29", vectors.name} & set(columns.names)
    predicted = columns.read("photoz.guess")
    assert np.isfinite(predicted.values).all()
    assert predicted.values.std() > 0


def test_few_values_and_words_are_classes_and_the_rare_ones_share_a_colour(
    make_collection, factory
):
    words = pa.array([f"type {min(i, 11)}" for i in range(20)])
    flags = pa.array([None, *([True, False] * 9), True])
    sky = make_collection(factory.survey_table(20, TYPE=words, GOOD=flags))
    vectors = as_if_embedded(sky)
    columns = Columns(vectors, read_objects(vectors))
    kinds = columns.read("TYPE")
    assert isinstance(kinds, Classes)
    assert (kinds.labels[0], kinds.labels[-1], len(kinds.labels)) == ("type 11", "other", 9)
    assert np.bincount(kinds.codes).sum() == 20
    good = columns.read("GOOD")
    assert (set(good.labels), good.missing) == ({"True", "False"}, 1)
    assert {good.text(i) for i in range(20)} == {"True", "False", "none"}


def as_if_embedded(sky):
    """The least that a map needs of an extension: ids, positions, vectors; the catalog's own rows."""
    shutil.copytree(sky / "cat", sky / "made_up")
    for path in (sky / "made_up" / "dataset").glob("Norder*/*/*.parquet"):
        table = pq.read_table(path, columns=["_healpix_29", "object_id", "ra", "dec"],
                              partitioning=None)  # fmt: skip
        values = np.random.default_rng(0).normal(size=(len(table), 8)).astype(np.float32)
        pq.write_table(table.append_column("made_up", tensor_array(values)), path)
    write_parquet_metadata(sky / "made_up")
    ExtensionProperties(
        name="made_up", primary_catalog=sky.name, primary_column="object_id",
        join_catalog="made_up", join_column="object_id", extension_columns=["made_up"],
        extension_join_style="left", shares_primary_coordinates=True,
        extension_product_type="embedding",
    ).to_properties_file(sky)  # fmt: skip
    return VectorCatalog.open(sky, "made_up")


def test_a_column_that_there_is_not_is_refused_with_its_like(vectors):
    columns = Columns(vectors, read_objects(vectors))
    with pytest.raises(MissingColumnError, match="is it FLUX_R"):
        columns.read("FLUXR")
    with pytest.raises(MissingColumnError, match="no column 'image' of numbers or text"):
        columns.read("image")


def test_outliers_do_not_take_all_colours():
    values = np.r_[np.linspace(0, 1, 1000), 1e9, np.nan]
    low, high = Numbers(name="x", values=values).span
    assert -0.1 < low < high < 1.1
    assert Numbers(name="x", values=np.full(5, 3.0)).span == (2.5, 3.5)
    assert Numbers(name="x", values=np.full(5, np.nan)).span == (0.0, 1.0)


def test_neighbours_are_those_of_the_search(sky, vectors):
    objects = read_objects(vectors)
    found = neighbours_of(vectors, objects, 7, k=5)
    wanted = search(sky, like=objects.ids[7].as_py(), k=5).table
    assert objects.ids.take(pa.array(found.which)).to_pylist() == wanted["object_id"].to_pylist()
    assert np.allclose(found.similarity, wanted["similarity"].to_numpy())
    assert np.allclose(found.distance, 1 - found.similarity)


def test_a_part_of_the_sky_is_drawn_with_east_to_the_left_across_0_h():
    ra, dec = np.array([359.0, 1.0, 0.0]), np.array([10.0, 10.0, 12.0])
    plane = SkyPlane.of(ra, dec)
    xy = plane.project(ra, dec)
    assert not plane.whole
    assert xy[0, 0] > xy[1, 0]
    assert xy[2, 1] > xy[0, 1]
    assert np.hypot(*(xy[0] - xy[1])) == pytest.approx(2 * np.cos(np.deg2rad(10)), rel=1e-3)
    assert {line.text for line in plane.grid()} >= {"0°", "+10°"}


def test_objects_far_apart_are_drawn_on_the_whole_sky():
    plane = SkyPlane.of(np.array([10.0, 200.0]), np.array([-80.0, 60.0]))
    xy = plane.project(np.array([10.0, 200.0, 0.0]), np.array([-80.0, 60.0, 90.0]))
    assert plane.whole
    assert np.isfinite(xy).all()
    assert all(np.isfinite(line.xy).all() for line in plane.grid())


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr("skyvec.explorer.needs.find_spec", lambda name: name != "umap" or None)
    with pytest.raises(ConfigurationError, match=r"umap-learn.*pip install 'skyvec\[explore\]'"):
        require_extra()

"""What differs between two releases, and in which pixels."""

import json

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from skyvec.releases.versions.diff import diff_releases
from skyvec.releases.versions.making import make_release, withdraw
from skyvec.releases.versions.manifest import Release
from skyvec_schemas.errors import ConfigurationError


def write_folder(root, objects):
    """MMU files of objects: id -> (ra, dec, flux)."""
    pixels = {}
    for one, (ra, dec, flux) in objects.items():
        cell = int(compute_spatial_index(np.array([ra]), np.array([dec]))[0] >> 50)
        pixels.setdefault(cell, []).append((one, ra, dec, flux))
    root.mkdir(parents=True)
    for cell, rows in pixels.items():
        path = root / f"healpix={cell}" / "001-of-001.hdf5"
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            file["object_id"] = np.array([row[0] for row in rows], "S8")
            for place, name in enumerate(("ra", "dec", "FLUX_G"), 1):
                file[name] = np.array([row[place] for row in rows])
    if not pixels:
        raise AssertionError("a release has objects")
    return root


@pytest.fixture
def released(tmp_path):
    """Write and release objects under a name."""

    def make(name, objects, **options):
        return make_release(
            write_folder(tmp_path / f"data-{name}", objects),
            store=tmp_path / "store", name=name, survey="legacysurvey", **options,
        )  # fmt: skip

    return make


FIRST = {"a": (10, 1, 5.0), "b": (10.01, 1, 6.0), "c": (100, -20, 7.0), "d": (200, 40, 8.0)}


def changes(diff):
    return dict(
        zip(*(diff.objects.column(c).to_pylist() for c in ("object_id", "change")), strict=True)
    )


def pixel(ra, dec, order=4):
    cell = int(compute_spatial_index(np.array([ra]), np.array([dec]))[0])
    return HealpixPixel(order, cell >> 2 * (29 - order))


def test_every_kind_of_difference_is_told_apart(released):
    older = released("dr1", FIRST)
    second = {
        "a": (10, 1, 5.5),
        "b": (10.01 + 1 / 3600, 1, 6.0),
        "e": (300, 60, 1.0),
    }
    newer = released("dr2", second, parent="dr1", withdrawn={"c": "artefact"})
    diff = diff_releases(older, newer)
    assert changes(diff) == {
        "a": "changed", "b": "moved", "c": "withdrawn", "d": "vanished", "e": "added"
    }  # fmt: skip
    assert diff.counts == dict.fromkeys(("added", "changed", "moved", "withdrawn", "vanished"), 1)
    rows = {row["object_id"]: row for row in diff.objects.to_pylist()}
    assert rows["b"]["moved_arcsec"] == pytest.approx(np.cos(np.radians(1)), rel=1e-6)
    assert rows["c"]["reason"] == "artefact"
    assert rows["d"]["reason"] is None
    assert (rows["d"]["ra"], rows["e"]["ra_before"]) == (200, None)
    places = [(10, 1), (100, -20), (200, 40), (300, 60)]
    assert diff.changed_pixels == tuple(sorted({pixel(*place) for place in places}))
    states = {row["npix"]: row["pixel"] for row in diff.pixel_table().to_pylist()}
    assert states == {
        pixel(10, 1).pixel: "changed", pixel(100, -20).pixel: "withdrawn",
        pixel(200, 40).pixel: "withdrawn", pixel(300, 60).pixel: "added",
    }  # fmt: skip


def test_equal_releases_do_not_differ(released):
    older = released("dr1", FIRST)
    newer = released("dr2", dict(reversed(FIRST.items())), parent="dr1")
    diff = diff_releases(older, newer)
    assert len(diff.objects) == 0
    assert diff.unchanged == 4
    assert diff.changed_pixels == ()
    assert diff.same_schema


def test_a_move_across_a_border_changes_both_pixels(released):
    older = released("dr1", FIRST)
    newer = released("dr2", FIRST | {"a": (50, 1, 5.0)})
    assert set(diff_releases(older, newer).changed_pixels) == {pixel(10, 1), pixel(50, 1)}


def test_a_change_near_a_border_reaches_the_pixel_beyond(released):
    edge, lat = pixel(10, 1), 1.0
    along = np.linspace(10, 15, 200001)
    cells = compute_spatial_index(along, np.full(len(along), lat)) >> 50
    last = along[cells == edge.pixel][-1]
    older = released("dr1", FIRST)
    newer = released("dr2", FIRST | {"n": (last, lat, 1.0)})
    diff = diff_releases(older, newer)
    assert diff.pixels(4) == (edge,)
    assert pixel(last + 1 / 3600, lat) in diff.pixels(4, margin_arcsec=2)
    assert len(diff.pixels(4, margin_arcsec=2)) < 9
    assert diff.pixels(6) == (pixel(last, lat, 6),)


def test_withdrawing_alone_changes_only_what_was_withdrawn(released):
    older = released("dr1", FIRST)
    newer = withdraw(older, name="dr1.1", withdrawn={"b": "bad sky"})
    diff = diff_releases(older, newer)
    assert changes(diff) == {"b": "withdrawn"}
    assert diff.unchanged == 3
    back = diff_releases(newer, older)
    assert changes(back) == {"b": "added"}


def test_duplicated_ids_are_one_object_whatever_their_order(tmp_path, released):
    def double(root, flux):
        write_folder(root, FIRST)
        path = root / f"healpix={pixel(200, 40).pixel}" / "002-of-002.hdf5"
        with h5py.File(path, "w") as file:
            file["object_id"], file["FLUX_G"] = np.array([b"d"]), np.array([flux])
            file["ra"], file["dec"] = np.array([200.0]), np.array([40.0])
        return root

    def make(name, flux):
        return make_release(
            double(tmp_path / name, flux), store=tmp_path / "store", name=name,
            survey="legacysurvey", allow_duplicates=True,
        )  # fmt: skip

    first, same, other = make("one", 9.0), make("two", 9.0), make("three", 9.5)
    assert diff_releases(first, same).unchanged == 4
    assert len(diff_releases(first, same).objects) == 0
    assert changes(diff_releases(first, other)) == {"d": "changed"}
    assert changes(diff_releases(first, released("four", FIRST))) == {"d": "changed"}


objects = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(
        st.sampled_from([10.0, 10.5, 99.0, 250.0]), st.sampled_from([1.0, -30.0]),
        st.sampled_from([1.0, 2.0]),
    ),
    min_size=1,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=objects, after=objects, withdrawn=st.sets(st.sampled_from("abcdefgh")))
def test_the_difference_is_that_of_the_objects_themselves(
    tmp_path_factory, before, after, withdrawn
):
    place = tmp_path_factory.mktemp("diff")

    def make(name, rows, **options):
        data = write_folder(place / name, rows)
        return make_release(
            data, store=place / "store", name=name, survey="legacysurvey", **options
        )

    older = make("one", before)
    newer = make("two", after, parent="one", withdrawn=dict.fromkeys(withdrawn, "x"))
    expected = {}
    for one in before.keys() | after.keys():
        old, new = before.get(one), None if one in withdrawn else after.get(one)
        if old and not new:
            expected[one] = "withdrawn" if one in withdrawn else "vanished"
        elif new and not old:
            expected[one] = "added"
        elif old and new and old[2] != new[2]:
            expected[one] = "changed"
        elif old and new and old != new:
            expected[one] = "moved"
    diff = diff_releases(older, newer)
    assert changes(diff) == expected
    remaining = {one for one in after if one not in withdrawn}
    assert diff.unchanged == len(remaining - expected.keys())


def test_only_the_files_that_differ_are_read(released, monkeypatch):
    older = released("dr1", FIRST)
    newer = released("dr2", FIRST | {"a": (10, 1, 9.0)}, parent="dr1")
    asked = []
    whole = Release.objects

    def watched(self, columns=None, **options):
        asked.append(options["shards"])
        return whole(self, columns, **options)

    monkeypatch.setattr(Release, "objects", watched)
    assert changes(diff_releases(older, newer)) == {"a": "changed"}
    assert [len(shards) for shards in asked] == [1, 1]


def test_a_difference_can_be_kept(released, tmp_path):
    diff = diff_releases(released("dr1", FIRST), released("dr2", FIRST | {"a": (10, 1, 9.0)}))
    diff.save(tmp_path / "d.parquet")
    assert pq.read_table(tmp_path / "d.parquet").equals(diff.objects)
    assert b"skyvec_release_diff" in pq.read_schema(tmp_path / "d.parquet").metadata
    diff.save(tmp_path / "d.json")
    kept = json.loads((tmp_path / "d.json").read_text())
    assert kept["changed"] == 1
    assert [row["object_id"] for row in kept["objects"]] == ["a"]
    with pytest.raises(ConfigurationError, match=r"ends in \.parquet or \.json"):
        diff.save(tmp_path / "d.txt")
    console = Console(width=100)
    with console.capture() as printed:
        console.print(diff.table())
    assert f"Npix={pixel(10, 1).pixel}" in printed.get()


def test_only_releases_of_a_kind_can_be_compared(released, make_collection, tmp_path):
    older = released("dr1", FIRST)
    other = make_release(
        make_collection(), store=tmp_path / "store", name="hats", survey="legacysurvey"
    )
    with pytest.raises(ConfigurationError, match="layout is hats, that of dr1 is mmu-hdf5"):
        diff_releases(older, other)

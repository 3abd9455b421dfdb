"""Probes on catalogs: labels from anywhere, predictions as tables, lazy columns and extensions."""

import json
import re
from collections import Counter
from pathlib import Path

import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.catalog import ExtensionProperties
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix
from typer.testing import CliRunner

from skyvec.commands.probe import probe_app
from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes import rows as probe_rows
from skyvec.probes.leaks import refuse_leaks
from skyvec.probes.probe import Probe
from skyvec.probes.scores import r_squared
from skyvec_schemas.errors import (
    ConfigurationError,
    DuplicateIdsError,
    MissingColumnError,
    OutputExistsError,
    WeightsError,
)
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.vectors import tensor_array

ROWS, DIM, GROUP = 600, 16, 64
NULL, BROKEN = slice(7, 19), slice(30, 33)
"""Rows of the table without a vector, and with NaN in it."""
IDS = ["object_id", "ra", "dec"]


def write_vectors(collection, table, vectors, *, name="vec", model="small", inputs=()):
    """An extension as the stage leaves it; row groups of `GROUP` rows."""
    absent = np.zeros(len(table), np.bool_)
    absent[NULL] = True
    made = Provenance(
        product="embedding", model=model, model_digest=model, precision="float32", device="cpu",
        numerics_version=1, vector_type="float16", survey="legacysurvey", inputs=inputs,
        skyvec_version="0",
    )  # fmt: skip
    ra, dec = (table.column(c).to_numpy() for c in ("ra", "dec"))
    index = compute_spatial_index(ra, dec)
    whole = pa.table(
        {"_healpix_29": index, **{c: table.column(c) for c in IDS},
         name: tensor_array(vectors.astype(np.float16), absent=absent)}
    ).replace_schema_metadata({FOOTER_KEY: made.to_json()})  # fmt: skip
    order = pa.array(np.argsort(index, kind="stable"))
    whole, pixels, rows = whole.take(order), spatial_index_to_healpix(np.sort(index), 1), {}
    for pixel in np.unique(pixels):
        place = HealpixPixel(1, int(pixel))
        leaf = Path(str(paths.pixel_catalog_file(str(collection / name), place)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        part = whole.filter(pa.array(pixels == pixel))
        pq.write_table(part, leaf, row_group_size=GROUP, compression="none", use_dictionary=False)
        rows[place] = len(part)
    finish_catalog(
        collection / name, name=name, rows=rows, ra_column="ra", dec_column="dec",
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()), builder="tests",
        default_columns=[*IDS, name], properties={},
    )  # fmt: skip
    ExtensionProperties(
        name=name, primary_catalog=collection.name, primary_column="object_id", join_catalog=name,
        join_column="object_id", extension_columns=[name], extension_join_style="left",
        shares_primary_coordinates=True, extension_product_type="embedding",
    ).to_properties_file_path(collection / f"{name}.properties")  # fmt: skip


def sky_table():
    rng = np.random.default_rng(0)
    half = ROWS // 2
    vectors = rng.normal(size=(ROWS, DIM)) + 3
    vectors[BROKEN, 2] = np.nan
    clean = np.nan_to_num(vectors)
    truth = clean @ np.linspace(-1, 1, DIM) + 0.3 * rng.normal(size=ROWS)
    table = pa.table(
        {
            "object_id": 10**12 + rng.permutation(ROWS),
            "ra": np.r_[rng.uniform(10, 30, half), rng.uniform(190, 210, ROWS - half)],
            "dec": rng.uniform(-5, 5, ROWS), "TRUTH": truth, "OTHER": 1 - 3 * truth,
            "Z": 0.5 + 0.02 * truth, "FLAT": np.ones(ROWS),
            "KIND": np.where(truth > truth.mean(), "SER", "DEV"),
            "FEW": np.where(np.arange(ROWS) < 3, truth, np.nan),
            "FLUX_R": truth,
        }
    )  # fmt: skip
    return table, vectors


@pytest.fixture(scope="module")
def sky(tmp_path_factory, factory):
    table, vectors = sky_table()
    folder = tmp_path_factory.mktemp("probes") / "sky"
    collection = factory.write_collection(table, folder)
    write_vectors(collection, table, vectors)
    return collection


@pytest.fixture(scope="module")
def probe(sky):
    return Probe("TRUTH", name="guess").fit(sky, workers=1)


def truth_of(ids):
    table, _ = sky_table()
    known = dict(zip(*(table.column(c).to_pylist() for c in ("object_id", "TRUTH")), strict=True))
    return np.array([known[i] for i in ids])


def test_a_linear_truth_is_found_saved_and_applied(sky, probe, tmp_path):
    assert probe.metrics["TRUTH"]["r2"] > 0.95
    loaded = Probe.load(probe.save(tmp_path / "p"))
    found = loaded.apply(sky)
    assert found.table.equals(probe.apply(sky).table)
    assert found.table.column_names == [*IDS, "guess", "guess_low", "guess_high", "guess_width"]
    assert found.fingerprint == probe.fingerprint
    truth = truth_of(found.table.column("object_id").to_pylist())
    assert r_squared(truth, found.table.column("guess").to_numpy()) > 0.95
    low, high = (found.table.column(f"guess_{end}").to_numpy() for end in ("low", "high"))
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.9, abs=0.06)
    assert loaded.get_params() == probe.get_params()
    assert loaded.intervals == probe.intervals
    assert {"labels", "folds", "used", "metrics", "model", "seed"} <= set(loaded.record)


def test_rows_without_a_usable_vector_are_counted_and_told(sky, probe):
    record = probe.record
    assert (record["rows"], record["labelled"]) == (ROWS, ROWS)
    assert (record["null_vectors"], record["vectors_not_finite"]) == (12, 3)
    assert record["used"] == ROWS - 15
    assert "12 labelled rows have no vector, 3 one with NaN" in record["notes"][0]
    found = probe.apply(sky)
    assert len(found) == ROWS - 15
    assert found.question["rows without a vector, left out"] == "15"
    assert np.isfinite(found.table.column("guess").to_numpy()).all()


def test_it_is_what_the_same_rows_in_memory_give(probe):
    table, vectors = sky_table()
    keep = np.isfinite(vectors).all(1)
    keep[NULL] = False
    positions = np.stack([table.column(c).to_numpy() for c in ("ra", "dec")], axis=1)
    same = Probe("TRUTH").fit(
        vectors.astype(np.float16)[keep], table.column("TRUTH").to_numpy()[keep], workers=1,
        groups=probe_rows.sky_blocks(positions)[keep],
    )  # fmt: skip
    assert np.allclose(same.weights, probe.weights, rtol=1e-3, atol=1e-4)


def test_threads_change_nothing_that_counts(sky, probe):
    threads = Probe("TRUTH", name="guess").fit(sky, workers=3)
    assert np.allclose(threads.weights, probe.weights, atol=1e-6)
    assert threads.metrics["TRUTH"]["r2"] == pytest.approx(probe.metrics["TRUTH"]["r2"], abs=1e-6)
    assert threads.record["sample"] == probe.record["sample"]


def test_vectors_are_read_once(sky, monkeypatch):
    reads = Counter()
    usual = probe_rows.open_vectors

    def counted(path, column, **options):
        reads[path.name] += 1
        return usual(path, column, **options)

    monkeypatch.setattr(probe_rows, "open_vectors", counted)
    Probe(("TRUTH", "OTHER")).fit(sky, workers=1)
    first = VectorCatalog.open(sky).release.leaf(VectorCatalog.open(sky).release.pixels[0]).name
    # Once each, and the first block of the first file for a centre.
    reads[first] -= 1
    assert set(reads.values()) == {1}
    assert len(reads) == len(VectorCatalog.open(sky).release.pixels)


def test_labels_come_from_another_table_by_id(sky, tmp_path):
    table, _ = sky_table()
    some = table.select(["object_id", "TRUTH"]).slice(0, 200)
    renamed = some.rename_columns(["TARGETID", "z_hat"])
    pq.write_table(renamed, tmp_path / "labels.parquet")
    other = Probe("z_hat").fit(sky, labels=tmp_path / "labels.parquet", on="TARGETID", workers=1)
    assert other.record["labelled"] == 200
    assert "200 rows joined by TARGETID" in other.record["labels"]
    words = some.set_column(0, "object_id", some.column("object_id").cast(pa.string()))
    assert np.array_equal(Probe("TRUTH").fit(sky, labels=words, workers=1).weights, other.weights)
    with pytest.raises(DuplicateIdsError, match="holds ids more than once"):
        Probe("TRUTH").fit(sky, labels=pa.concat_tables([some, some]), workers=1)


def test_labels_come_by_position_within_a_radius(sky):
    table, _ = sky_table()
    near = pd.DataFrame(table.select(["ra", "dec", "TRUTH"]).slice(50, 300).to_pandas())
    near["dec"] += 0.5 / 3600
    far = near.iloc[:100].assign(dec=lambda f: f["dec"] + 5 / 3600, TRUTH=99.0)
    found = Probe("TRUTH").fit(sky, labels=pd.concat([near, far]), workers=1)
    assert found.record["labelled"] == 300
    assert found.metrics["TRUTH"]["r2"] > 0.9
    with pytest.raises(ConfigurationError, match="only 0 rows"):
        Probe("TRUTH").fit(sky, labels=near, radius_arcsec=0.4, workers=1)
    with pytest.raises(MissingColumnError, match="neither a column 'object_id' nor positions"):
        Probe("TRUTH").fit(sky, labels=near[["TRUTH"]], workers=1)


def test_of_two_objects_beside_one_label_the_nearer_is_meant():
    from skyvec.probes.labels import TableLabels

    labels = TableLabels(
        pa.table({"ra": [10.0], "dec": [0.0], "y": [7.0]}), ["y"], name="t", id_column="id",
        radius_arcsec=2,
    )  # fmt: skip
    places = np.array([[10.0, 1.5 / 3600], [10.0, 0.5 / 3600], [10.0, 5 / 3600]])
    found = labels.of(HealpixPixel(1, 0), pa.array([1, 2, 3]), places)
    assert np.array_equal(found[:, 0], [np.nan, 7, np.nan], equal_nan=True)


def test_where_chooses_the_rows_it_learns_from(sky):
    found = Probe("TRUTH").fit(sky, where="KIND == 'SER' and Z > 0", workers=1)
    assert found.record["labelled"] == (np.array(sky_table()[0].column("KIND")) == "SER").sum()
    assert found.record["labels"].endswith("where KIND == 'SER' and Z > 0")
    for wrong in ("Z >", "Z + 1", "NOPE > 1"):
        with pytest.raises(ConfigurationError, match="not understood"):
            Probe("TRUTH").fit(sky, where=wrong, workers=1)


@pytest.mark.parametrize("kind", ["logistic", "knn"])
def test_words_are_classes(sky, kind, tmp_path):
    found = Probe("KIND", kind=kind).fit(sky, workers=1)
    assert found.classes == ("DEV", "SER")
    assert found.metrics["auroc"] > (0.95 if kind == "logistic" else 0.8)
    loaded = Probe.load(found.save(tmp_path / "p"))
    table = loaded.apply(sky).table
    assert set(table.column("KIND_predicted").to_pylist()) == {"DEV", "SER"}
    lazy = loaded.apply(lsdb.open_catalog(sky, columns=IDS)).compute(progress_bar=False)
    assert lazy["KIND_predicted"].isna().sum() == 15
    both = dict(zip(*(table.column(c).to_pylist() for c in ("object_id", "KIND_predicted")),
                    strict=True))  # fmt: skip
    kept = lazy.dropna(subset="KIND_predicted")
    assert {i: both[i] for i in kept["object_id"]} == dict(
        zip(kept["object_id"], kept["KIND_predicted"], strict=True)
    )


@pytest.mark.parametrize(
    ("target", "kind", "error", "message"),
    [
        ("FLAT", "ridge", ConfigurationError, "'FLAT' is constant"),
        ("FEW", "ridge", ConfigurationError, "only 3 rows in .* have a vector and a finite label"),
        ("KIND", "ridge", MissingColumnError, "'KIND' is not numeric. Choose one of"),
        ("NOPE", "ridge", MissingColumnError, "no column 'NOPE'.*TRUTH"),
        ("object_id", "ridge", ConfigurationError, "is the id of the rows"),
        (("KIND", "FLAT"), "logistic", ConfigurationError, "classes of one target"),
    ],
)
def test_what_cannot_be_learnt_is_refused(sky, target, kind, error, message):
    with pytest.raises(error, match=message):
        Probe(target, kind=kind).fit(sky, workers=1)


def test_too_few_sky_blocks_are_refused(sky):
    with pytest.raises(ConfigurationError, match=r"rows in 1 sky blocks.*block_order"):
        Probe("TRUTH", block_order=0).fit(sky, where="ra < 20", workers=1)
    coarse = Probe("TRUTH", block_order=0).fit(sky, workers=1)
    assert coarse.record["folds"] < 5
    assert "there are as many blocks" in " ".join(coarse.record["notes"])


def made_from(*inputs):
    return Provenance(
        product="embedding", model="small", model_digest="", precision="float32", device="cpu",
        numerics_version=1, vector_type="float16", survey="desi", inputs=inputs, skyvec_version="0",
    )  # fmt: skip


def test_a_label_that_the_model_has_read_is_refused(tmp_path, factory):
    table, vectors = sky_table()
    collection = factory.write_collection(table, tmp_path / "sky")
    write_vectors(collection, table, vectors, inputs=("Z=tok_z", "FLUX_R=tok_flux_r"))
    for target in ("Z", "FLUX_R"):
        with pytest.raises(ConfigurationError, match=rf"is an input .*{target} \(the model read"):
            Probe(target).fit(collection, workers=1)
    told = Probe("Z", allow_leaks=True).fit(collection, workers=1)
    assert told.record["notes"][0] == "leak: Z (the model read Z)"
    assert Probe("TRUTH").fit(collection, workers=1).record["notes"][0].startswith("12 labelled")


def test_a_leak_goes_by_any_name():
    with pytest.raises(ConfigurationError, match=r"z_spec .the model read Z"):
        refuse_leaks(made_from("Z=tok_z"), ["z_spec"], allowed=False)
    (note,) = refuse_leaks(made_from("spectrum=tok_spectrum_desi"), ["Z"], allowed=False)
    assert "no photometric redshift" in note
    assert refuse_leaks(made_from("FLUX_R=tok_flux_r"), ["Z", "MASS"], allowed=False) == []


def test_the_vectors_of_another_model_are_refused(probe, tmp_path, factory):
    table, vectors = sky_table()
    collection = factory.write_collection(table, tmp_path / "sky")
    write_vectors(collection, table, vectors, model="other")
    for use in (
        lambda: probe.apply(collection),
        lambda: probe.apply(lsdb.open_catalog(collection)),
        lambda: probe.publish(collection, "guess_v1"),
    ):
        with pytest.raises(ConfigurationError, match=r"learnt on vectors .* these are .* by other"):
            use()
    assert not (collection / "guess_v1").exists()


# ---- predicates


def lazy(sky, probe, *, joined=False, **options):
    catalog = lsdb.open_catalog(sky, columns=[*IDS, "Z"], **options)
    if joined:
        catalog = catalog.load_extension(sky / "vec.properties")
    return probe.apply(catalog)


@pytest.mark.parametrize("joined", [False, True])
def test_predictions_are_lazy_columns_and_predicates(sky, probe, joined):
    catalog = lazy(sky, probe, joined=joined)
    assert isinstance(catalog, lsdb.Catalog)
    everything = catalog.compute(progress_bar=False)
    table = probe.apply(sky).table.to_pandas().set_index("object_id")
    assert len(everything) == ROWS
    assert everything["guess"].isna().sum() == 15
    by_id = everything.dropna(subset="guess").set_index("object_id")
    for column in ("guess", "guess_low", "guess_high", "guess_width"):
        assert np.allclose(by_id[column], table[column].reindex(by_id.index), rtol=1e-12)
    few = catalog.query("guess > 0 and guess_width < 2").compute(progress_bar=False)
    assert set(few["object_id"]) == set(table.query("guess > 0 and guess_width < 2").index)
    assert 0 < len(few) < ROWS - 15


def test_a_result_is_a_catalog_that_can_be_written(sky, probe, tmp_path):
    lazy(sky, probe).query("guess > 0").write_catalog(
        tmp_path / "hits", catalog_name="hits", progress_bar=False
    )
    again = lsdb.open_catalog(tmp_path / "hits").compute(progress_bar=False)
    assert (again["guess"] > 0).all()
    assert len(again) == len(probe.apply(sky, where="guess > 0"))


def test_a_predicate_in_a_cone_reads_ids_and_the_row_groups_it_needs(sky, probe, monkeypatch):
    """Other partitions are never opened, the other side of the row groups is never mapped."""
    opened = []
    usual = probe_rows.open_vectors

    def watched(path, column, **options):
        vectors = usual(path, column, **options)
        blocks = vectors.blocks

        def noted(*, groups=None, **more):
            opened.append((path, column, tuple(groups)))
            yield from blocks(groups=groups, **more)

        vectors.blocks = noted
        return vectors

    monkeypatch.setattr(probe_rows, "open_vectors", watched)
    cone = lazy(sky, probe).cone_search(20, 0, 2 * 3600).query("guess > -99")
    found = cone.compute(progress_bar=False)
    release = VectorCatalog.open(sky).release
    groups = {path: pq.ParquetFile(path).num_row_groups for path, _, _ in opened}
    assert 0 < len(found) < 60
    assert 0 < len(groups) < len(release.pixels)
    assert {column for _, column, _ in opened} == {"vec"}
    assert len(opened) == len(groups)


def test_after_a_cone_only_the_row_groups_of_its_objects_are_mapped(sky, probe, monkeypatch):
    wanted = []
    usual = probe_rows.open_vectors

    class Watched:
        def __init__(self, vectors, path):
            self.vectors, self.path = vectors, path

        def blocks(self, *, groups, **options):
            wanted.append((pq.ParquetFile(self.path).num_row_groups, len(groups)))
            return self.vectors.blocks(groups=groups, **options)

    monkeypatch.setattr(probe_rows, "open_vectors", lambda p, c, **o: Watched(usual(p, c, **o), p))
    catalog = lsdb.open_catalog(sky, columns=IDS).cone_search(20, 0, 1800)
    found = probe.apply(catalog).compute(progress_bar=False)
    assert len(found)
    assert sum(some for _, some in wanted) < sum(every for every, _ in wanted)


def test_an_lsdb_catalog_is_a_choice_of_rows_to_learn_from(sky, probe):
    catalog = lsdb.open_catalog(sky, columns=[*IDS, "TRUTH"])
    whole = Probe("TRUTH").fit(catalog, workers=1)
    assert np.allclose(whole.weights, probe.weights, rtol=1e-6)
    west = catalog.box_search(ra=(0, 100), dec=(-10, 10))
    half = Probe("TRUTH").fit(west.load_extension(sky / "vec.properties"), workers=1)
    assert half.record["labelled"] == ROWS // 2
    assert half.fingerprint == probe.fingerprint
    with pytest.raises(ConfigurationError, match="LSDB catalog: has no column OTHER"):
        Probe("OTHER").fit(catalog, workers=1)
    with pytest.raises(ConfigurationError, match="is a dict"):
        Probe("OTHER").fit({})


def test_names_that_are_taken_and_catalogs_without_ids_are_refused(sky, probe):
    with pytest.raises(ConfigurationError, match="has columns Z already"):
        probe.apply(lsdb.open_catalog(sky, columns=[*IDS, "Z"]), name="Z")
    with pytest.raises(ConfigurationError, match="not understood"):
        probe.apply(sky, where="nothing > 1")
    for no_condition in ("guess", "guess + 1"):
        with pytest.raises(ConfigurationError, match="is no condition"):
            probe.apply(sky, where=no_condition)


def test_published_predictions_come_back_with_the_catalog(probe, tmp_path, factory):
    table, vectors = sky_table()
    collection = factory.write_collection(table, tmp_path / "sky")
    write_vectors(collection, table, vectors)
    place = probe.publish(collection, "guess_v1", workers=2)
    assert place == collection / "guess_v1.properties"
    catalog = lsdb.open_catalog(collection, columns=IDS).load_extension("guess_v1")
    found = catalog.compute(progress_bar=False)
    assert list(found.columns) == [*IDS, "guess", "guess_low", "guess_high", "guess_width"]
    assert len(found) == ROWS
    assert found["guess"].isna().sum() == 15
    expected = probe.apply(collection).table.to_pandas().set_index("object_id")["guess"]
    same = found.dropna(subset="guess").set_index("object_id")["guess"]
    assert np.allclose(same, expected.reindex(same.index))
    properties = place.read_text()
    assert probe.fingerprint in properties
    assert "hats_product_type_served=predictions" in properties
    with pytest.raises(OutputExistsError, match="is there already"):
        probe.publish(collection, "guess_v1")
    with pytest.raises(ConfigurationError, match="is no name for an extension"):
        probe.publish(collection, "../guess")


# ---- files and commands


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_a_changed_file_is_refused(probe, tmp_path, name):
    folder = probe.save(tmp_path / "p")
    assert {f.name for f in folder.iterdir()} == {"probe.json", "probe.safetensors"}
    path = folder / name
    if name.endswith("json"):
        facts = json.loads(path.read_text())
        facts["fingerprint"] = "0" * 64
        path.write_text(json.dumps(facts))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} changed after it was written"):
        Probe.load(folder)


def test_what_is_no_probe_of_ours_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"not a probe .*Probe\.save"):
        Probe.load(tmp_path)
    (tmp_path / "probe.json").write_text('{"fingerprint": "a", "target": "Z", "kind": "ridge"}')
    with pytest.raises(WeightsError, match=r"written by an older skyvec.*Fit it again"):
        Probe.load(tmp_path)


def test_the_commands_have_the_same_verbs(sky, tmp_path):
    run = CliRunner()
    folder = str(tmp_path / "p")
    fit = run.invoke(
        probe_app,
        ["fit", str(sky), "--target", "Z", "--name", "photoz", "--out", folder, "--workers", "1"],
    )
    assert fit.exit_code == 0, fit.output
    assert "sigma_NMAD" in fit.output
    assert "Intervals of Z at 90% by prediction" in fit.output
    report = run.invoke(probe_app, ["report", folder])
    assert report.exit_code == 0
    assert fit.output.startswith(report.output)
    facts = json.loads(run.invoke(probe_app, ["report", folder, "--json"]).output)
    assert facts["record"]["metrics"]["Z"]["photoz"]["outliers"] >= 0
    assert len(facts["intervals"]["Z"]["bins"]) == 10
    kept = tmp_path / "found.parquet"
    apply = run.invoke(
        probe_app,
        ["apply", str(sky), "--probe", folder, "--where", "photoz > 0.5", "--save", str(kept)],
    )
    assert apply.exit_code == 0, apply.output
    assert re.search(r"rows without a vector, left out +15", apply.output)
    assert (pq.read_table(kept).column("photoz").to_numpy() > 0.5).all()


def test_the_command_reports_classes(sky):
    said = CliRunner().invoke(
        probe_app, ["fit", str(sky), "--target", "KIND", "--kind", "logistic", "--workers", "1"]
    )
    assert said.exit_code == 0, said.output
    assert "AUROC" in said.output
    assert "ECE" in said.output
    assert "DEV (" in said.output

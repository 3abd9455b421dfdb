"""Bridges: what they find, what they say of themselves, what they refuse."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hats.catalog import ExtensionProperties
from hats.io import paths
from hats.pixel_math.healpix_pixel import HealpixPixel
from hats.pixel_math.spatial_index import compute_spatial_index, spatial_index_to_healpix

from skyvec.bridge import Bridge, digest_of_probe
from skyvec.bridging import overlap
from skyvec.bridging.fitting import fit_bridge
from skyvec.bridging.moments import Moments
from skyvec.bridging.overlap import pairs
from skyvec.extensions.hats_output import SKYMAP_ORDER, finish_catalog
from skyvec.extensions.vector_catalog import VectorCatalog
from skyvec.probes.probe import Probe
from skyvec.probes.scores import r_squared
from skyvec_schemas.errors import ConfigurationError, MissingColumnError, WeightsError
from skyvec_schemas.provenance import FOOTER_KEY, Provenance
from skyvec_schemas.vectors import tensor_array

ROWS, HIDDEN, WIDTH = 400, 4, 32
NEW, OLD = "other_v1", "small_v1"


def hidden_of(ids):
    """Four numbers of each object, from its id."""
    return np.stack([np.random.default_rng(int(i)).normal(size=HIDDEN) for i in ids])


def vectors_of(ids, *, seed, noise):
    """What one model makes of these numbers: a linear map, an offset, noise of its own."""
    rng = np.random.default_rng(seed)
    lens, offset = rng.normal(size=(HIDDEN, WIDTH)), rng.normal(size=WIDTH)
    own = [np.random.default_rng([int(i), seed]).normal(size=WIDTH) for i in ids]
    return hidden_of(ids) @ lens + offset + noise * np.stack(own)


def truth_of(ids):
    return hidden_of(ids) @ np.array([1.0, -2.0, 0.5, 3.0]) + 7


def write_extension(collection, name, *, vectors, model, order=1):
    """An extension as the stage leaves it: id, position and vector of each row, and what made it."""
    table, catalog = primary_of(collection), collection / name
    ids, (ra, dec) = table.column("object_id").to_numpy(), positions_of(table)
    made, absent = vectors(ids)
    provenance = Provenance(
        product="embedding", model=model, model_digest=f"digest of {model}", precision="float32",
        device="cpu", numerics_version=1, vector_type="float16", survey="legacysurvey",
        inputs=(), skyvec_version="0",
    )  # fmt: skip
    index = compute_spatial_index(ra, dec)
    whole = pa.table(
        {
            "_healpix_29": index, "object_id": ids, "ra": ra, "dec": dec,
            name: tensor_array(made.astype(np.float16), absent=absent),
        }
    ).replace_schema_metadata({FOOTER_KEY: provenance.to_json()})  # fmt: skip
    pixels, rows = spatial_index_to_healpix(index, order), {}
    for pixel in np.unique(pixels):
        place = HealpixPixel(order, int(pixel))
        leaf = Path(str(paths.pixel_catalog_file(str(catalog), place)))
        leaf.parent.mkdir(parents=True, exist_ok=True)
        part = whole.filter(pa.array(pixels == pixel))
        pq.write_table(part, leaf)
        rows[place] = len(part)
    finish_catalog(
        catalog, name=name, rows=rows, ra_column="ra", dec_column="dec", builder="tests",
        skymap=Counter(spatial_index_to_healpix(index, SKYMAP_ORDER).tolist()), properties={},
    )  # fmt: skip
    ExtensionProperties(
        name=name, primary_catalog=".", primary_column="object_id", join_catalog=name,
        join_column="object_id", extension_columns=[name], extension_join_style="left",
        shares_primary_coordinates=True, extension_product_type="embedding",
    ).to_properties_file_path(collection / f"{name}.properties")  # fmt: skip


def primary_of(collection):
    leaves = sorted((collection / "cat" / "dataset").rglob("Npix*.parquet"))
    columns = ["object_id", "ra", "dec"]
    return pa.concat_tables(pq.read_table(f, columns=columns, partitioning=None) for f in leaves)


def positions_of(table):
    return (table.column(name).to_numpy() for name in ("ra", "dec"))


def write_sky(folder, factory, *, rows=ROWS, noise=0.02, missing=0, ids=0, order=1):
    """A collection with the vectors of two models that look at the same four numbers."""
    rng = np.random.default_rng(0)
    own = 10**12 + ids + rng.permutation(rows)
    table = pa.table(
        {
            "object_id": own,
            "ra": np.r_[rng.uniform(10, 30, rows // 2), rng.uniform(190, 210, rows - rows // 2)],
            "dec": rng.uniform(-5, 5, rows), "TRUTH": truth_of(own),
        }
    )  # fmt: skip
    collection = factory.write_collection(table, folder / "sky", order=order)
    lost = own[:missing]
    write_extension(
        collection, OLD, model="small", order=order,
        vectors=lambda i: (vectors_of(i, seed=1, noise=noise), np.zeros(len(i), bool)),
    )  # fmt: skip
    write_extension(
        collection, NEW, model="other",
        order=order,
        vectors=lambda i: (vectors_of(i, seed=2, noise=noise), np.isin(i, lost)),
    )  # fmt: skip
    return collection


@pytest.fixture(scope="module")
def sky(tmp_path_factory, factory):
    return write_sky(tmp_path_factory.mktemp("bridge"), factory, missing=20)


@pytest.fixture(scope="module")
def probe(sky):
    return Probe("TRUTH").fit(sky, extension=OLD)


@pytest.fixture(scope="module")
def bridge(sky):
    return fit_bridge(sky, new=NEW, old=OLD)


def both(sky):
    parts = list(pairs(VectorCatalog.open(sky, NEW), VectorCatalog.open(sky, OLD)))
    new, old = (np.concatenate([getattr(p, n) for p in parts]) for n in ("new", "old"))
    return pa.concat_arrays([p.ids for p in parts]).to_numpy(), new, old


def test_the_overlap_joins_by_id_and_leaves_out_what_one_side_lacks(sky):
    ids, new, old = both(sky)
    assert len(ids) == len(set(ids.tolist())) == ROWS - 20
    assert np.allclose(new, vectors_of(ids, seed=2, noise=0.02), atol=2e-2)
    assert np.allclose(old, vectors_of(ids, seed=1, noise=0.02), atol=2e-2)


def test_releases_in_other_partitions_are_joined_too(sky, tmp_path, factory):
    finer = write_sky(tmp_path, factory, order=3)
    ours, theirs = VectorCatalog.open(sky, NEW), VectorCatalog.open(finer, OLD)
    assert len(theirs.release.pixels) > 2 * len(ours.release.pixels)
    found = [np.concatenate([p.ids.to_numpy() for p in pairs(*both)])
             for both in ((ours, theirs), (theirs, ours))]  # fmt: skip
    assert len(found[0]) == ROWS - 20
    assert sorted(found[0]) == sorted(found[1])


def test_partitions_of_any_size_meet():
    old = [HealpixPixel(1, 3), HealpixPixel(3, 4 * 16)]
    at = [overlap._range(pixel) for pixel in old]

    def meets(pixel):
        first, last = overlap._range(pixel)
        return [start < last and first < stop for start, stop in at]

    assert meets(HealpixPixel(2, 3 * 4 + 1)) == [True, False]
    assert meets(HealpixPixel(0, 0)) == [True, False]
    assert meets(HealpixPixel(1, 4)) == [False, True]
    assert meets(HealpixPixel(3, 4 * 16 + 1)) == [False, False]


def test_a_linear_relation_is_found_and_its_error_is_true(sky, bridge):
    ids, new, old = both(sky)
    assert bridge.quality.rows + bridge.quality.fitted_rows == len(ids)
    assert bridge.quality.r2 > 0.99
    assert bridge.quality.cosine > 0.99
    assert bridge.quality.neighbours > 0.7
    assert bridge.quality.r2_dimensions["least"] > 0.9
    # A rotation cannot undo two lenses that stretch differently.
    assert bridge.quality.r2_procrustes < bridge.quality.r2
    everywhere = 1 - np.mean((bridge.apply(new) - old) ** 2) / np.mean((old - old.mean(0)) ** 2)
    assert everywhere == pytest.approx(bridge.quality.r2, abs=2e-3)


def test_no_relation_is_admitted_as_such(tmp_path, factory):
    found = fit_bridge(write_sky(tmp_path, factory, noise=30.0), new=NEW, old=OLD)
    assert found.quality.r2 < 0.1
    assert found.quality.neighbours < 0.5


def test_moments_are_those_of_numpy_in_any_pieces():
    values = np.random.default_rng(0).normal(size=(500, 6)) + 1e4
    first, second = Moments(values[0]), Moments(values[0])
    first.add(values[:17])
    second.add(values[17:])
    total = first + second
    assert np.allclose(total.mean, values.mean(0))
    assert np.allclose(total.about(total.mean), np.cov(values.T, bias=True), atol=1e-8)
    point = np.arange(6.0)
    expected = (values - point).T @ (values - point) / len(values)
    assert np.allclose(total.about(point), expected)


def test_an_old_probe_runs_on_new_vectors_through_it(sky, probe, bridge, tmp_path):
    with pytest.raises(ConfigurationError, match=r"learnt on vectors .* these are .* by other"):
        probe.apply(sky, extension=NEW)
    folder = bridge.save(tmp_path / "bridge")
    predicted = Probe.load(probe.save(tmp_path / "probe")).apply(sky, bridge=folder)
    truth = truth_of(predicted.table.column("object_id").to_pylist())
    assert len(truth) == ROWS - 20
    assert r_squared(truth, predicted.table.column("TRUTH_predicted").to_numpy()) > 0.97


def test_the_loss_without_labels_is_that_of_the_predictions(sky, probe, bridge):
    loss, words = bridge.loss_of(probe)
    assert "against its own predictions" in words
    _, new, old = both(sky)
    before, after = probe.predict(old), probe.predict(bridge.apply(new))
    assert loss == pytest.approx(1 - r_squared(before, after), abs=3e-3)
    assert 0 < loss < 0.02


def test_the_loss_with_labels_is_what_the_labels_say(sky, probe):
    bridge = fit_bridge(sky, new=NEW, old=OLD, probes=[probe])
    measured = bridge.probes[digest_of_probe(probe)]
    assert measured.rows == bridge.quality.rows
    assert 0.97 < measured.r2_bridged < 1
    loss, words = bridge.loss_of(probe)
    assert loss == measured.r2 - measured.r2_bridged
    assert f"against the labels of {measured.rows} held-out objects" in words


def test_a_probe_that_loses_too_much_is_refused_with_the_number(sky, probe, bridge):
    strict = fit_bridge(sky, new=NEW, old=OLD, max_loss=0.0)
    loss, _ = strict.loss_of(probe)
    with pytest.raises(ConfigurationError, match=f"loses {loss:.4f} of R2 .* at most 0 is allowed"):
        probe.apply(sky, bridge=strict)
    lost = Probe("TRUTH")
    lost.fingerprint, lost.extension = probe.fingerprint, OLD
    # A direction in which the old vectors only have noise: nothing of it crosses.
    lens = np.random.default_rng(1).normal(size=(HIDDEN, WIDTH))
    lost.weights = np.linalg.svd(lens)[2][-1]
    assert bridge.loss_of(lost)[0] > 0.5
    with pytest.raises(ConfigurationError, match="Fit the probe again on the new vectors"):
        lost.apply(sky, bridge=bridge)


def test_the_wrong_bridge_is_refused(sky, probe, bridge):
    back = fit_bridge(sky, new=OLD, old=NEW)
    with pytest.raises(ConfigurationError, match="begins at vectors"):
        probe.apply(sky, extension=OLD, bridge=bridge)
    with pytest.raises(ConfigurationError, match="it leads the other way"):
        probe.apply(sky, extension=NEW, bridge=back)
    newer = Probe("TRUTH").fit(sky, extension=NEW)
    with pytest.raises(ConfigurationError, match=r"ends at vectors .* the probe for TRUTH learnt"):
        newer.apply(sky, extension=NEW, bridge=bridge)


@pytest.mark.parametrize("name", ["bridge.json", "bridge.safetensors"])
def test_a_changed_file_is_refused(bridge, tmp_path, name):
    folder = bridge.save(tmp_path / "bridge")
    loaded = Bridge.load(folder)
    assert loaded.quality == bridge.quality
    assert np.array_equal(loaded.weights, bridge.weights)
    path = folder / name
    if name.endswith("json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"max_loss": 0.5}))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} changed after it was written"):
        Bridge.load(folder)


def test_what_is_no_bridge_is_refused(tmp_path, sky, probe):
    with pytest.raises(WeightsError, match="not a bridge"):
        Bridge.load(tmp_path)
    (tmp_path / "bridge.json").write_text("[1]")
    with pytest.raises(WeightsError, match="not a bridge"):
        probe.apply(sky, bridge=tmp_path)


def test_requests_that_cannot_be_are_refused(sky, probe, tmp_path, factory):
    with pytest.raises(ConfigurationError, match=r"hold the vectors .* of one model"):
        fit_bridge(sky, new=NEW, old=NEW)
    with pytest.raises(ConfigurationError, match="max_loss = -1: must not be negative"):
        fit_bridge(sky, new=NEW, old=OLD, max_loss=-1)
    with pytest.raises(ConfigurationError, match=r"probe for TRUTH: learnt on .*, small_v1 holds"):
        fit_bridge(sky, new=NEW, old=OLD, probes=[Probe("TRUTH").fit(sky, extension=NEW)])
    other = write_sky(tmp_path, factory, rows=12, ids=10**6)
    with pytest.raises(ConfigurationError, match=r"only 0 objects in 0 sky blocks"):
        fit_bridge(sky, new=str(other / f"{NEW}.properties"), old=OLD)
    unlabelled = Probe("NOT_THERE")
    unlabelled.fingerprint, unlabelled.weights = probe.fingerprint, probe.weights
    with pytest.raises(MissingColumnError, match="no column NOT_THERE, which probes predict"):
        fit_bridge(sky, new=NEW, old=OLD, probes=[unlabelled])


def test_the_command_says_how_good_it_is(sky, probe, tmp_path):
    import typer
    from typer.testing import CliRunner

    from skyvec.commands.bridge import bridge as command

    app = typer.Typer()
    app.command()(command)
    probe.save(tmp_path / "probe")
    said = CliRunner().invoke(
        app,
        [str(sky), "--from", NEW, "--to", OLD, "--out", str(tmp_path / "bridge"),
         "--probe", str(tmp_path / "probe")],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    found = Bridge.load(tmp_path / "bridge")
    assert f"{found.quality.r2:.4f}" in said.output
    assert "probe for TRUTH" in said.output

"""Codecs that are tables, fitted to surveys."""

from copy import deepcopy

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyvec_schemas.errors import ConfigurationError, ContractError, MissingColumnError
from skyvec_schemas.survey_columns import GAIA, LEGACY_SURVEY
from skyvec_training.codecs import scalar_scores
from skyvec_training.codecs.quantiles import PASSES, StreamingQuantiles
from skyvec_training.codecs.scalars import columns_of, fit_scalars, fit_source, table_columns
from skyvec_training.data.numbers import NumberStream
from skyvec_training.recipe.codecs import CodecSource, ScalarRun

LS = CodecSource(name="legacysurvey", held_out=20)


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {name: np.exp(rng.normal(size=5000)) for name in columns_of(LEGACY_SURVEY)}


def leaves(folder, values, *, cuts):
    """A catalog of the same rows, split into leaves at ``cuts``."""
    pieces = np.split(np.arange(len(next(iter(values.values())))), cuts)
    for number, rows in enumerate(pieces):
        leaf = folder / "dataset" / "Norder=1" / "Dir=0" / f"Npix={number}.parquet"
        leaf.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({name: column[rows] for name, column in values.items()}), leaf)
    return folder


def streamed(batches, size=1024):
    found = StreamingQuantiles(size)
    for _ in range(PASSES):
        for batch in batches:
            found.add(batch)
        found.end_pass()
    return found.quantiles()


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1,
                     max_size=60),
    cut=st.integers(0, 60),
)  # fmt: skip
def test_quantiles_are_exact_for_any_numbers_in_any_split(numbers, cut):
    sample = np.array(numbers, np.float32)
    found = streamed([sample[cut:], sample[:cut]], size=9)
    expected = np.quantile(sample.astype(np.float64), np.linspace(0, 1, 9))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("kind", ["heavy tails", "far from zero", "many ties", "both signs"])
def test_the_rank_error_is_far_below_a_quarter_of_a_bin(kind):
    rng = np.random.default_rng(1)
    sample = {
        "heavy tails": np.exp(6 * rng.normal(size=30_000)),
        "far from zero": 2.46e6 + rng.random(30_000),
        "many ties": np.where(rng.random(30_000) < 0.7, 0.0, rng.normal(size=30_000)),
        "both signs": rng.standard_cauchy(30_000),
    }[kind].astype(np.float32)
    found = streamed(np.array_split(sample, 7))
    ordered = np.sort(sample.astype(np.float64))
    rank = np.linspace(0, 1, 1024) * (len(sample) - 1)
    low, high = np.searchsorted(ordered, found, "left"), np.searchsorted(ordered, found, "right")
    error = np.maximum(0, np.maximum(low - rank, rank - high)) / (len(sample) / 1024)
    assert error.max() <= 0.25


def test_counts_of_workers_add_up_to_the_same_bits():
    rng = np.random.default_rng(2)
    parts = [rng.normal(size=700), rng.normal(5, 1, 300)]
    whole = StreamingQuantiles(64)
    for _ in range(PASSES):
        workers = [deepcopy(whole), deepcopy(whole)]
        for worker, part in zip(workers, parts, strict=True):
            worker.add(part)
            whole.merge(worker)
        whole.end_pass()
    np.testing.assert_array_equal(whole.quantiles(), streamed(parts, 64))
    with pytest.raises(ValueError, match="of the same pass"):
        whole.merge(StreamingQuantiles(64))


def test_numbers_that_are_not_finite_are_left_out():
    sample = np.array([1.0, np.nan, 2.0, np.inf, -np.inf, 3.0])
    assert streamed([sample], 3).tolist() == [1, 2, 3]
    empty = StreamingQuantiles(3)
    empty.add(np.array([np.nan]))
    with pytest.raises(ValueError, match="no finite value"):
        empty.end_pass()
    with pytest.raises(ValueError, match="0 of 3 passes"):
        StreamingQuantiles(3).quantiles()


def test_every_scalar_and_label_gets_a_codec(values):
    codecs = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))
    assert set(codecs) == {s.token_key for s in LEGACY_SURVEY.scalars} | {"tok_z"}


def test_a_fitted_codec_gives_values_back_to_three_percent(values):
    codec = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))["tok_flux_r"]
    sample = torch.from_numpy(values["FLUX_R"][:1000]).float()
    again = codec.decode(codec.encode(sample).ids_BN)
    inner = (sample > 0.2) & (sample < 5)
    torch.testing.assert_close(again[inner], sample[inner], rtol=0.03, atol=0)


def test_the_split_into_leaves_does_not_matter(tmp_path, values):
    tables = []
    for name, cuts in {"one": [], "many": [10, 11, 2500, 4999]}.items():
        folder = leaves(tmp_path / name, values, cuts=cuts)
        columns, rows = fit_source(folder, LEGACY_SURVEY, LS, ScalarRun())
        assert rows == 4980
        tables.append({c.token_key: c.tables[0].values for c in columns if c.tables})
    assert all(torch.equal(tables[0][key], tables[1][key]) for key in tables[0])
    flux = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=20))["tok_flux_g"]
    assert torch.equal(tables[0]["tok_flux_g"], flux.quantizer.values)


def test_held_out_rows_are_not_fitted(values):
    before = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))["tok_ebv"].quantizer.values
    values["EBV"][-100:] = 1e9
    after = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=100))["tok_ebv"].quantizer.values
    assert torch.equal(before, after)


def test_the_redshift_grid_is_that_of_the_recipe(values):
    codec = fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=0))["tok_z"]
    torch.testing.assert_close(codec.quantizer.values, torch.linspace(0, 6, 1024))


def gaia(folder, rows=400):
    rng = np.random.default_rng(3)
    place = folder / "healpix=1" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    coefficients = rng.normal(0, 10 ** rng.uniform(-1, 2, 110), (rows, 110))
    coefficients[0] = 0
    with h5py.File(place, "w") as file:
        file["source_id"] = np.arange(rows)
        file["ra"], file["dec"] = rng.uniform(0, 360, rows), rng.uniform(-90, 90, rows)
        file["coeff"] = coefficients.astype(np.float32)
        for scalar in GAIA.scalars:
            file[scalar.name] = np.exp(rng.normal(size=rows)).astype(">f8")
    return folder, coefficients


def test_xp_coefficients_and_positions_get_codecs(tmp_path):
    folder, coefficients = gaia(tmp_path / "gaia")
    source = CodecSource(name="gaia", held_out=100)
    run = ScalarRun(sources=(source,), positions="gaia")
    columns, rows = fit_source(folder, GAIA, source, run)
    codecs = {c.token_key: c.codec for c in columns}
    assert {"tok_xp_bp", "tok_xp_rp", "tok_parallax", "tok_ra", "tok_dec"} <= set(codecs)
    for key, part in {"tok_xp_bp": slice(0, 55), "tok_xp_rp": slice(55, 110)}.items():
        codec = codecs[key]
        seen = codec.compress(torch.from_numpy(coefficients[1:rows, part])).float()
        torch.testing.assert_close(codec.tables[7].values[[0, -1]],
                                   torch.stack([seen[:, 7].min(), seen[:, 7].max()]))  # fmt: skip
    compared = scalar_scores.pairs(folder, columns, first=rows)
    scores = scalar_scores.scores(compared, columns)
    assert scores["tok_xp_bp"]["numbers"] == 100 * 55
    assert scores["tok_xp_bp"]["relative_median"] < 0.02
    assert scores["tok_ra"]["median_error"] < 1.0
    assert scores["tok_ra"]["p99_error"] >= scores["tok_ra"]["median_error"]


def test_catalogs_of_cutouts_are_fitted_to_the_objects_that_are_there(tmp_path, values):
    place = tmp_path / "ls" / "healpix=1" / "001-of-001.hdf5"
    place.parent.mkdir(parents=True)
    rng = np.random.default_rng(4)
    present = rng.random((200, 20)) < 0.3
    radius = np.where(present, rng.uniform(0.5, 3, present.shape), 0)
    with h5py.File(place, "w") as file:
        for name, column in values.items():
            if name != "Z":
                file[name] = column[:200]
        for band in "GRIZ":
            file[f"catalog_FLUX_{band}"] = present * 2.0
        for name in ("SHAPE_E1", "SHAPE_E2"):
            file[f"catalog_{name}"] = np.where(present, rng.normal(size=present.shape), 0)
        file["catalog_SHAPE_R"] = radius
    run = ScalarRun(sources=(LS,), catalogs=True)
    columns, _ = fit_source(tmp_path / "ls", LEGACY_SURVEY, LS, run)
    table = columns[-1].codec.tables[2].values
    fitted = radius[:180][present[:180]].astype(np.float32)
    assert (float(table[0]), float(table[-1])) == (fitted.min(), fitted.max())


@pytest.mark.parametrize(
    ("broken", "message"),
    [(np.nan, "column EBV holds no finite number"), (0.25, "column EBV holds only 0.25")],
)
def test_a_column_without_information_is_named(tmp_path, values, broken, message):
    values["EBV"][:] = broken
    folder = leaves(tmp_path / "survey", values, cuts=[100])
    with pytest.raises(ContractError, match=f"{message}.*Leave it out by `without`"):
        fit_source(folder, LEGACY_SURVEY, LS, ScalarRun())
    columns, _ = fit_source(folder, LEGACY_SURVEY, LS, ScalarRun(without=("EBV",)))
    assert "tok_ebv" not in [c.token_key for c in columns]


def test_infinite_and_null_numbers_are_not_fitted(tmp_path, values):
    values["FLUX_R"][:10] = np.inf
    values["FLUX_R"][10:20] = np.nan
    folder = leaves(tmp_path / "survey", values, cuts=[])
    columns, _ = fit_source(folder, LEGACY_SURVEY, LS, ScalarRun())
    table = {c.token_key: c for c in columns}["tok_flux_r"].tables[0].values
    torch.testing.assert_close(
        table[-1].exp(), torch.tensor(values["FLUX_R"][20:4980].max()).float()
    )


def test_a_missing_column_is_named(tmp_path, values):
    del values["EBV"]
    folder = leaves(tmp_path / "survey", values, cuts=[])
    with pytest.raises(MissingColumnError, match="column EBV is missing"):
        fit_source(folder, LEGACY_SURVEY, LS, ScalarRun())


def test_holding_out_everything_is_refused(values):
    with pytest.raises(ConfigurationError, match="leaves none of 5000 objects"):
        fit_scalars(values, LEGACY_SURVEY, ScalarRun(held_out=5000))


def test_settings_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match="positions: there is no source hsc"):
        ScalarRun(positions="hsc")
    everything = tuple(columns_of(LEGACY_SURVEY))
    with pytest.raises(ConfigurationError, match="no column is left to fit"):
        table_columns(LEGACY_SURVEY, ScalarRun(without=everything))


def test_a_stream_gives_the_rows_it_is_asked_for(tmp_path, values):
    folder = leaves(tmp_path / "survey", values, cuts=[7, 8, 3000])
    stream = NumberStream(source=folder, columns=("EBV",))
    assert stream.rows() == 5000
    found = np.concatenate([b["EBV"] for b in stream.batches(start=5, stop=3001)])
    np.testing.assert_array_equal(found, values["EBV"][5:3001])

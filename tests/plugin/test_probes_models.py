"""Probes on arrays: what they find, how sure they are, how they behave as estimators."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.preprocessing import StandardScaler

from skyvec.probes.conformal import Intervals
from skyvec.probes.folds import Folds
from skyvec.probes.in_memory import cross_validate, ridge
from skyvec.probes.logistic import fit_logistic
from skyvec.probes.probe import Probe
from skyvec.probes.products import Accumulator, Centre
from skyvec.probes.scores import calibration_error, is_redshift, photoz_metrics
from skyvec_schemas.errors import ConfigurationError

DIM = 12


def world(rows=2000, *, seed=0, noise=1.0, per_block=20):
    """Vectors far from zero, a label that is linear in them, blocks with an offset of their own."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, DIM)) * np.geomspace(0.1, 3, DIM) + 40
    labels = vectors @ np.linspace(-1, 1, DIM) + noise * rng.normal(size=rows)
    return vectors.astype(np.float32), labels, np.arange(rows) // per_block


def test_the_sums_lead_where_the_rows_do():
    vectors, labels, blocks = world()
    probe = Probe().fit(vectors, labels, groups=blocks, workers=1)
    scaler = StandardScaler().fit(vectors.astype(np.float64))
    model = Ridge(alpha=probe.metrics["y"]["alpha"]).fit(
        scaler.transform(vectors.astype(np.float64)), labels
    )
    expected = model.predict(scaler.transform(vectors.astype(np.float64)))
    assert np.allclose(probe.predict(vectors), expected, atol=1e-4)
    assert np.allclose(probe.scaler["scale"], scaler.scale_, rtol=1e-4)
    assert probe.metrics["y"]["r2_of_every_row"] == pytest.approx(probe.metrics["y"]["r2"])


def test_out_of_fold_errors_of_the_sums_are_those_of_refitted_models():
    vectors, labels, blocks = world(400)
    probe = Probe(alphas=(3.0,)).fit(vectors, labels, groups=blocks, workers=1)
    folds = Folds(dict(zip(*np.unique(blocks, return_counts=True), strict=True)), 5, where="")
    missed = 0.0
    for fold in range(5):
        held = folds.of(blocks) == fold
        scaler = StandardScaler().fit(vectors[~held])
        model = Ridge(alpha=3.0).fit(scaler.transform(vectors[~held]), labels[~held])
        missed += np.sum((model.predict(scaler.transform(vectors[held])) - labels[held]) ** 2)
    expected = 1 - missed / np.sum((labels - labels.mean()) ** 2)
    assert probe.metrics["y"]["r2_of_every_row"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_products_are_exact_far_from_zero_in_any_pieces(kind):
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(5000, 8)) + 300).astype(kind)
    labels = rng.normal(size=(5000, 2)) * 1e-3 + 1e4
    folds = rng.integers(0, 3, 5000)
    centre = Centre(vectors=vectors[:50].astype(np.float32).mean(0), labels=labels.mean(0),
                    scale=labels.std(0))  # fmt: skip
    sums = Accumulator(centre, 3)
    for start in range(0, 5000, 777):
        rows = slice(start, start + 777)
        sums.add(vectors[rows], labels[rows], folds[rows])
    found = sums.moments()
    assert [found[f].count for f in range(3)] == [(folds == f).sum() for f in range(3)]
    both = np.concatenate([vectors.astype(np.float64), (labels - centre.labels) / centre.scale], 1)
    expected = np.cov(both.T, bias=True)
    assert np.allclose((found[0] + found[1] + found[2]).spread, expected, atol=2e-4)


def test_vectors_that_are_not_finite_are_counted_and_change_nothing():
    vectors, labels, blocks = world(600)
    broken = vectors.copy()
    broken[5, 3], broken[99, 0], broken[100] = np.nan, np.inf, -np.inf
    keep = np.isfinite(broken).all(1)
    probe = Probe().fit(broken, labels, groups=blocks, workers=1)
    clean = Probe().fit(vectors[keep], labels[keep], groups=blocks[keep], workers=1)
    assert probe.record["vectors_not_finite"] == 3
    assert probe.record["used"] == 597
    assert "3 one with NaN or infinity" in " ".join(probe.record["notes"])
    assert np.allclose(probe.predict(vectors), clean.predict(vectors), atol=1e-3)


@pytest.mark.parametrize("kind", ["ridge", "knn"])
def test_shuffled_labels_score_chance(kind):
    vectors, labels, blocks = world()
    labels = np.random.default_rng(1).permutation(labels)
    probe = Probe(kind=kind).fit(vectors, labels, groups=blocks, workers=1)
    assert probe.metrics["y"]["r2"] < 0.02
    assert abs(probe.metrics["y"]["r2_shuffled"] - probe.metrics["y"]["r2"]) < 0.1


def test_every_probe_says_what_shuffled_labels_score():
    vectors, labels, blocks = world()
    probe = Probe().fit(vectors, labels, groups=blocks, workers=1)
    assert probe.metrics["y"]["r2"] > 0.9
    assert probe.metrics["y"]["r2_shuffled"] < 0.02
    classes = Probe(kind="logistic").fit(vectors, labels > labels.mean(), groups=blocks, workers=1)
    assert classes.metrics["auroc"] > 0.95
    assert classes.metrics["auroc_shuffled"] == pytest.approx(0.5, abs=0.06)


def test_shuffled_labels_score_chance_in_memory():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 16)), rng.normal(size=400)
    _, score = cross_validate(features, labels, np.arange(400) // 20)
    assert score.r2 < 0.02
    assert score.r2_low < 0 < score.r2_high + 0.1


@pytest.mark.parametrize("fit", ["memory", "sums"])
def test_a_fold_never_holds_one_block_on_both_sides(fit):
    """Labels that are constants of their block cannot be learnt when whole blocks are left out."""
    rng = np.random.default_rng(0)
    blocks = np.arange(300) // 10
    features = np.eye(30)[blocks] + rng.normal(0, 0.01, (300, 30))
    labels = rng.normal(size=30)[blocks]
    if fit == "memory":
        predicted, score = cross_validate(features, labels, blocks, model=ridge())
        assert len(predicted) == 300
        assert score.r2 < 0.1
        return
    assert Probe().fit(features, labels, groups=blocks, workers=1).metrics["y"]["r2"] < 0.1
    one_by_one = Probe().fit(features, labels, workers=1)
    assert one_by_one.metrics["y"]["r2"] > 0.9
    assert "not by sky block" in one_by_one.record["notes"][0]


def test_intervals_hold_their_share_on_sky_that_nobody_has_seen():
    """Noise grows with the label: one width for all would hold on average and fail in the bins."""
    rng = np.random.default_rng(3)
    vectors, clean, blocks = world(12_000, noise=0, per_block=40)
    size = 0.2 + 0.5 * (clean - clean.min()) / np.ptp(clean)
    labels = clean + size**2 * 8 * rng.normal(size=len(clean))
    seen = blocks % 2 == 0
    probe = Probe(bins=5).fit(vectors[seen], labels[seen], groups=blocks[seen], workers=1)
    low, high = probe.predict_interval(vectors[~seen])
    inside = (low <= labels[~seen]) & (labels[~seen] <= high)
    assert inside.mean() == pytest.approx(0.9, abs=3 * np.sqrt(0.09 / len(inside)) * 1.5)
    predicted, bins = probe.predict(vectors[~seen]), probe.intervals["y"].bins
    assert len(bins) == 5
    for b in bins:
        rows = (predicted >= b.low) & (predicted < b.high)
        # Both the widths and this test are of some 1,200 rows.
        assert inside[rows].mean() == pytest.approx(0.9, abs=4 * np.sqrt(2) * b.coverage_error)
        assert b.coverage == pytest.approx(0.9, abs=4 * np.sqrt(2) * b.coverage_error)
    assert bins[-1].half_width > 2 * bins[0].half_width


def test_ten_labels_give_wide_intervals_and_no_more_confidence_than_there_is():
    vectors, labels, _ = world(10, noise=3)
    groups = np.arange(10) // 2
    probe = Probe().fit(vectors, labels, groups=groups, workers=1)
    (only,) = probe.intervals["y"].bins
    assert only.half_width >= probe.metrics["y"]["rmse"]
    assert np.isfinite(only.half_width)
    surer = Probe(confidence=0.95).fit(vectors, labels, groups=groups, workers=1)
    low, high = surer.predict_interval(vectors)
    assert np.isinf(low).all()
    assert np.isinf(high).all()


@pytest.mark.parametrize(("rows", "rank"), [(9, 9), (10, 10), (19, 18), (99, 90)])
def test_the_quantile_is_that_of_finite_samples(rows, rank):
    residuals = np.random.default_rng(0).permutation(np.arange(1.0, rows + 1))
    found = Intervals.fit(np.zeros(rows), residuals, np.arange(rows) % 2, confidence=0.9)
    assert found.bins[0].half_width == rank
    again = Intervals.from_facts(found.facts())
    assert again == found


def test_classes_are_told_apart_with_probabilities_that_mean_something():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, DIM)).astype(np.float32)
    odds = 1 / (1 + np.exp(-2 * vectors[:, 0] + 2))
    labels = np.where(rng.random(3000) < odds, "QSO", "STAR")
    probe = Probe("TYPE", kind="logistic").fit(
        vectors, labels, groups=np.arange(3000) // 50, workers=1
    )
    assert probe.classes == ("QSO", "STAR")
    chance = probe.predict_proba(vectors)
    assert np.allclose(chance.sum(1), 1)
    assert np.abs(chance[:, 0] - odds).mean() < 0.03
    assert probe.metrics["ece"] < 0.03
    assert probe.metrics["prevalence"] == pytest.approx((labels == "STAR").mean())
    assert probe.score(vectors, labels) == np.mean(probe.predict(vectors) == labels)
    columns = probe.columns(vectors[:4])
    assert list(columns) == ["TYPE_predicted", "TYPE_predicted_probability",
                             "TYPE_predicted_p_QSO", "TYPE_predicted_p_STAR"]  # fmt: skip


def test_a_temperature_mends_what_is_too_sure():
    rng = np.random.default_rng(0)
    vectors, codes = rng.normal(size=(600, 100)), rng.integers(0, 2, 600)
    vectors[:, 0] += codes
    # Hardly any penalty on a hundred dimensions: far too sure of itself.
    fit = fit_logistic(vectors, codes, np.arange(600) % 5, classes=2, seed=0, strengths=(10.0,))
    assert fit.model.temperature > 1.2
    assert calibration_error(codes, fit.probabilities) < 0.5 * calibration_error(
        codes, fit.uncalibrated
    )


def test_more_classes_than_two_and_a_number_by_neighbours():
    vectors, labels, blocks = world()
    kinds = np.digitize(labels, np.quantile(labels, [0.3, 0.7]))
    probe = Probe(kind="logistic").fit(vectors, kinds, groups=blocks, workers=1)
    assert probe.classes == (0, 1, 2)
    assert probe.metrics["auroc"] > 0.85
    near = Probe(kind="knn").fit(vectors, labels, groups=blocks, workers=1)
    assert near.metrics["y"]["r2"] > 0.3
    words = Probe(kind="knn").fit(vectors, kinds.astype(str), groups=blocks, workers=1)
    assert words.classes == ("0", "1", "2")
    assert words.metrics["auroc"] > 0.7
    assert near.record["k"] == near.neighbours.k > 1


def test_several_targets_are_several_probes_in_one():
    vectors, labels, blocks = world()
    other = 3 - 2 * labels + vectors[:, 0]
    both = Probe(("a", "b")).fit(vectors, np.stack([labels, other], 1), groups=blocks, workers=1)
    single = Probe("b").fit(vectors, other, groups=blocks, workers=1)
    assert np.allclose(both.predict(vectors)[:, 1], single.predict(vectors), atol=1e-3)
    assert list(both.columns(vectors[:1], "p"))[4:] == ["p_b", "p_b_low", "p_b_high", "p_b_width"]


def test_it_is_an_estimator():
    vectors, labels, blocks = world(400)
    probe = Probe("Z", name="photoz", folds=3).fit(vectors, labels, groups=blocks, workers=1)
    copy = clone(probe)
    assert copy.get_params() == probe.get_params()
    with pytest.raises(ConfigurationError, match="not fitted"):
        copy.predict(vectors)
    assert copy.set_params(folds=4).folds == 4
    scores = cross_val_score(copy, vectors, labels, groups=blocks, cv=GroupKFold(3))
    assert scores.min() > 0.8
    assert is_classifier(Probe(kind="logistic"))
    assert not is_classifier(probe)


def test_photoz_metrics_are_those_of_rail():
    truth = np.full(100, 1.0)
    predicted = truth + np.linspace(-0.02, 0.02, 100)
    predicted[:4] += 2 * np.array([0.1, 0.1, 0.2, 0.3])
    found = photoz_metrics(truth, predicted)
    assert found["outliers"] == 0.02
    assert found["outliers_rail"] == 0.04
    assert abs(found["bias"]) < 1e-3
    assert is_redshift("Z")
    assert is_redshift("z_spec")
    assert not is_redshift("FLUX_Z")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(200)}, "'y' is constant"),
        ({"rows": 3}, "only 3 rows in 1 sky blocks"),
        ({"rows": 9}, "only 9 rows .* At least 10 rows in 2 blocks are needed for 5 folds"),
        ({"groups": np.zeros(200, int)}, "200 rows in 1 sky blocks"),
        ({"labels": np.ones((200, 2))}, r"labels of shape \(200, 2\)"),
        ({"kind": "forest"}, "forest: unknown kind of probe. Use one of ridge, logistic, knn"),
        ({"kind": "attentive"}, "learns from every token .* Give a catalog with a token extension"),
        ({"confidence": 1.0}, "confidence = 1.0: must lie between 0 and 1"),
        ({"folds": 1}, "folds = 1: at least 2"),
        ({"kind": "logistic"}, "'y' has 200 different values.*use kind='ridge'"),
        ({"kind": "logistic", "labels": np.full(200, "A")}, "'y' is constant"),
        ({"kind": "logistic", "labels": np.array(["A"] * 199 + ["B"])}, "only one row is B"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_reason(change, message):
    vectors, labels, groups = world(200)
    labels, groups = change.get("labels", labels), change.get("groups", groups)
    rows = change.get("rows", 200)
    settings = {k: v for k, v in change.items() if k in {"kind", "confidence", "folds"}}
    with pytest.raises(ConfigurationError, match=message):
        Probe(**settings).fit(vectors[:rows], labels[:rows], groups=groups[:rows], workers=1)


def test_fewer_blocks_than_folds_are_told():
    vectors, labels, _ = world(200)
    probe = Probe().fit(vectors, labels, groups=np.arange(200) // 70, workers=1)
    assert probe.record["folds"] == 3
    assert probe.record["notes"] == ["3 folds instead of 5: there are as many blocks"]


def test_vectors_of_another_width_are_refused():
    vectors, labels, blocks = world(200)
    probe = Probe().fit(vectors, labels, groups=blocks, workers=1)
    with pytest.raises(ConfigurationError, match=r"shape \(2, 5\), the probe learnt on 12 values"):
        probe.predict(np.ones((2, 5)))
    with pytest.raises(ConfigurationError, match="is bound to no vectors"):
        probe.apply("sky")

"""Metrics, folds, intervals and heads of the scorecard, on numbers that are known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from skyvec_schemas.errors import ConfigurationError
from skyvec_training.recipe.evaluation import ClassificationTask, Evaluation, HeadRun
from skyvec_training.recipe.reading import read
from skyvec_training.scorecard import metrics, search, segmentation
from skyvec_training.scorecard.heads import AttentivePool, MlpHead, RidgeHead
from skyvec_training.scorecard.kernel import KernelHead
from skyvec_training.scorecard.photometry import BoostingHead, asinh_magnitude
from skyvec_training.scorecard.prediction import CHOSEN, Folds, Method, predict_out_of_fold
from skyvec_training.scorecard.resampling import Resamples, folds_of, inner_split, sky_blocks
from skyvec_training.scorecard.targets import Targets

ROWS = 240


@pytest.fixture
def blocks():
    return np.repeat(np.arange(24), ROWS // 24)


@pytest.fixture
def folds(blocks):
    return Folds(fold_B=folds_of(blocks, folds=4, where="sky"), block_B=blocks, seed=0)


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((ROWS, 6))


def numbers(values):
    return Targets(values_BK=values[:, None], columns={"y": slice(0, 1)}, classes={})


def method(*heads, role="embeddings"):
    return Method(name="ours", role=role, inputs="x", heads=heads, has_B=np.ones(ROWS, bool),
                  version="1")  # fmt: skip


def test_redshift_metrics_are_those_of_the_literature():
    truth = np.full(1000, 1.0)
    shift = np.random.default_rng(1).normal(0.01, 0.02, 1000)
    shift[:100] = 0.5
    predicted = truth + shift * 2
    assert metrics.outliers_fixed(truth, predicted) == pytest.approx(0.1)
    assert metrics.outliers_rail(truth, predicted) == pytest.approx(0.1, abs=0.01)
    assert metrics.sigma_nmad(truth, predicted) == pytest.approx(0.02, rel=0.2)
    assert metrics.redshift_bias(truth, predicted) == pytest.approx(0.01, abs=0.006)


def test_perfect_and_useless_classifiers_score_one_and_chance():
    hot = np.eye(3)[np.arange(300) % 3]
    useless = np.random.default_rng(0).random((300, 3))
    assert metrics.auroc(hot, hot) == metrics.balanced_accuracy(hot, hot) == 1
    assert metrics.auroc(hot, useless) == pytest.approx(0.5, abs=0.08)
    assert metrics.average_precision(hot, useless) == pytest.approx(1 / 3, abs=0.08)


@given(st.lists(st.lists(st.booleans(), min_size=10, max_size=10), min_size=1, max_size=5))
def test_ndcg_is_that_of_scikit_learn(relevant):
    relevant = np.array(relevant)
    ours = metrics.ndcg(relevant, total=relevant.sum(1))
    ranks = -np.arange(10.0)[None]
    theirs = [ndcg_score(row[None].astype(float), ranks) for row in relevant]
    np.testing.assert_allclose(ours, theirs)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_ranking_scores_are_those_of_scikit_learn_ties_included(rows):
    positive, scores = np.array(rows).T.astype(float)
    if 0 < positive.sum() < len(positive):
        truth, ranked = np.stack([positive, 1 - positive], 1), np.stack([scores, -scores], 1)
        pairs = ((metrics.auroc, roc_auc_score), (metrics.average_precision,
                                                  average_precision_score))  # fmt: skip
        for ours, theirs in pairs:
            expected = (theirs(positive, scores) + theirs(1 - positive, -scores)) / 2
            assert ours(truth, ranked) == pytest.approx(expected)


def test_an_object_is_not_its_own_neighbour_and_nan_is_nobodys():
    vectors = search.centred(np.random.default_rng(0).standard_normal((30, 4)))
    among = vectors.copy()
    among[7] = np.nan
    near = search.neighbours(vectors, among, k=29, without=np.arange(30))
    best = near[:, :28]  # the last place is left to those that may not be found
    assert all(row not in best[row] for row in range(30))
    assert 7 not in np.delete(best, 7, axis=0)


def test_no_block_lies_in_two_folds_and_an_inner_split_keeps_blocks_whole(blocks, folds):
    assert all(len(np.unique(folds.fold_B[blocks == block])) == 1 for block in np.unique(blocks))
    fit, choose = inner_split(blocks, share=0.25, seed=3)
    assert not set(blocks[fit]) & set(blocks[choose])
    assert len(choose) == pytest.approx(ROWS / 4, abs=10)


def test_blocks_get_finer_where_there_are_too_few_and_too_little_sky_is_refused():
    index = np.arange(64, dtype=np.int64) << 2 * (29 - 7)
    blocks, order = sky_blocks(index, order=4, least=16)
    assert (order, len(np.unique(blocks))) == (6, 16)
    with pytest.raises(ConfigurationError, match=r"1 sky blocks, 5 folds"):
        folds_of(np.zeros(9, np.int64), folds=5, where="sky")


def test_a_paired_difference_is_narrower_than_its_parts(blocks):
    rng = np.random.default_rng(2)
    truth = rng.standard_normal(ROWS) + blocks % 3
    noise = rng.standard_normal(ROWS)
    ours, theirs = truth + 0.5 * noise, truth + 0.55 * noise
    resamples, known = Resamples(blocks, count=200, seed=0), np.ones(ROWS, bool)
    alone = resamples.estimate(metrics.r2, truth, ours, known)
    paired = resamples.difference(metrics.r2, (truth, ours), (truth, theirs), known)
    assert 0 < paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_heads_are_chosen_by_rows_kept_apart_and_kept_on_disk(tmp_path, folds, features):
    truth = features @ np.arange(6.0)
    blind = RidgeHead("blind", np.random.default_rng(1).standard_normal((ROWS, 6)))
    seeing = RidgeHead("seeing", features)
    found, chosen = predict_out_of_fold(method(blind, seeing), numbers(truth), folds, tmp_path,
                                        inner_share=0.2)  # fmt: skip
    assert chosen == {"y": "seeing 4"}
    assert metrics.r2(truth, found[CHOSEN][0, :, 0]) > 0.99 > metrics.r2(truth,
                                                                         found["blind"][0, :, 0])  # fmt: skip
    seeing.features_BF = None  # nothing may be computed again
    again, _ = predict_out_of_fold(method(blind, seeing), numbers(truth), folds, tmp_path,
                                   inner_share=0.2)  # fmt: skip
    np.testing.assert_array_equal(again[CHOSEN], found[CHOSEN])


def test_a_row_never_helps_to_predict_itself(tmp_path, folds):
    # The only feature is the label of noise: whoever saw the test rows would score.
    noise = np.random.default_rng(5).standard_normal(ROWS)
    own = RidgeHead("own", np.eye(ROWS))
    found, _ = predict_out_of_fold(method(own), numbers(noise), folds, tmp_path, inner_share=0.2)
    assert metrics.r2(noise, found[CHOSEN][0, :, 0]) < 0.05


def test_shuffled_labels_score_chance(tmp_path, folds, features):
    truth = features @ np.arange(6.0)
    found, _ = predict_out_of_fold(method(RidgeHead("x", features)), numbers(truth), folds,
                                   tmp_path, inner_share=0.2, shuffled=True)  # fmt: skip
    assert metrics.r2(truth, found[CHOSEN][0, :, 0]) < 0.1


def test_unknown_labels_are_left_out_target_by_target(features):
    values = np.stack([features @ np.ones(6), features @ np.arange(6.0)], axis=1)
    train, test = np.arange(200), np.arange(200, ROWS)
    values_with_holes = values.copy()
    values_with_holes[:150, 1] = np.nan
    targets = Targets(values_BK=values_with_holes, columns={"a": slice(0, 1), "b": slice(1, 2)},
                      classes={})  # fmt: skip
    for head in (RidgeHead("r", features), BoostingHead("b", features, iterations=40),
                 KernelHead("k", features),
                 MlpHead("m", features, HeadRun(epochs=40, dropout=0.0))):  # fmt: skip
        out = head.predict(train, test, targets, seed=0)
        assert np.isfinite(out).all()
        assert metrics.r2(values[test, 0], out[:, 0]) > 0.5, head.name


def test_a_kernel_follows_curves_that_a_ridge_cannot(features):
    bent = np.sin(2 * features[:, 0]) * features[:, 1]
    train, test = np.arange(200), np.arange(200, ROWS)
    straight, curved = (metrics.r2(bent[test], head.predict(train, test, numbers(bent), seed=0)[:, 0])
                        for head in (RidgeHead("r", features), KernelHead("k", features)))  # fmt: skip
    assert straight < 0.2 < curved


def test_missing_modalities_are_filled_from_training_rows(features):
    holes = features.copy()
    holes[::3, :3] = np.nan
    out = RidgeHead("r", holes).predict(np.arange(200), np.arange(200, ROWS),
                                        numbers(features[:, 5]), seed=0)  # fmt: skip
    assert metrics.r2(features[200:, 5], out[:, 0]) > 0.9


def test_boosting_learns_classes_and_survives_one_class_only(features):
    hot = np.eye(2)[(features[:, 0] > 0).astype(int)]
    targets = Targets(values_BK=hot, columns={"kind": slice(0, 2)}, classes={"kind": ("a", "b")})
    head, test = BoostingHead("b", features, iterations=40), np.arange(200, ROWS)
    assert metrics.accuracy(hot[test], head.predict(np.arange(200), test, targets, seed=0)) > 0.9
    only = np.flatnonzero(hot[:200, 1] > 0.5)
    np.testing.assert_array_equal(head.predict(only, test, targets, seed=0), [[0, 1]] * len(test))


def test_attention_ignores_padding():
    pool = AttentivePool(8, 2, HeadRun(), seed=0)
    torch.nn.init.ones_(pool.after[-1].weight)
    pool.eval()
    context, valid = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    padded = torch.cat([context, torch.full((3, 2, 8), 1e4)], 1)
    more = torch.cat([valid, torch.zeros(3, 2, dtype=torch.bool)], 1)
    assert torch.allclose(pool(context, valid), pool(padded, more), atol=1e-5)
    assert not torch.allclose(pool(context, valid), pool(context * 2 + torch.randn(3, 5, 8), valid))


def test_asinh_magnitudes_are_pogsons_where_bright():
    flux = np.array([1e3, 1e5])
    np.testing.assert_allclose(
        asinh_magnitude(flux, softening=0.1), 22.5 - 2.5 * np.log10(flux), atol=1e-4
    )
    assert np.isfinite(asinh_magnitude(np.array([-1.0, 0.0]), softening=0.1)).all()


def test_maps_go_to_patches_and_back():
    maps = np.random.default_rng(0).random((3, 96, 96)) > 0.5
    again = segmentation.whole(segmentation.patches(maps, 24, 24) > 0.5, 24, 24)
    np.testing.assert_array_equal(again, maps)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name = "x"\n[[transfer]]\nname = "t"\nlabels = "y"\ntaught_on = "a"\nasked_on = "a"',
         "input sets a are not declared"),
        ('name = "x"\n[[regression]]\nname = "y"\ncolumn = "Z"\nvalid = [2.0, 1.0]', "ascending"),
        ('name = "x"\n[[regression]]\nname = "y"\ncolumn = "Z"\nblocks = 3', "unknown key"),
        ('name = "x"\nresamples = 3', "20 resamples"),
    ],
)  # fmt: skip
def test_a_wrong_list_of_tasks_is_one_error(tmp_path, text, problem):
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        read(Evaluation, path)


def test_classes_must_fit_their_edges():
    with pytest.raises(ValueError, match="2 edges part 3 classes"):
        ClassificationTask(name="m", column="x", edges=(0.1, 0.2), classes=("a", "b"))

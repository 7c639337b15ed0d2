"""Metrics equal scikit-learn's; intervals, paired tests and thresholds do what they say."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from aidet import metrics
from aidet.errors import UserError
from aidet.labels import sigmoid
from aidet.metrics import points, thresholds


@st.composite
def cases(draw):
    """Labels of both classes, scores with ties, decisions, weights that keep both classes."""
    n = draw(st.integers(4, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.integers(0, 2, n)
    y[:2] = 0, 1
    score = np.round(rng.normal(size=n) + y * draw(st.floats(-2, 3)), draw(st.integers(0, 6)))
    weight = rng.integers(0, 4, n).astype(float)
    weight[:2] = 1
    return y, score, (score > draw(st.floats(-1, 1))).astype(int), weight


@settings(max_examples=150, deadline=None)
@given(cases())
def test_point_estimates_equal_scikit_learn(case):
    y, score, label, _ = case
    decided, ranked = metrics.decision_metrics(y, label), metrics.ranking_metrics(y, score)
    prob = 1 / (1 + np.exp(-score))
    close = {"rel": 1e-12, "abs": 1e-12}
    assert decided["accuracy"] == pytest.approx(sk.accuracy_score(y, label), **close)
    assert decided["balanced_accuracy"] == pytest.approx(
        sk.recall_score(y, label, average="macro", zero_division=0), **close
    )
    assert decided["macro_f1"] == pytest.approx(
        sk.f1_score(y, label, average="macro", labels=[0, 1], zero_division=0), **close
    )
    assert decided["confusion"] == sk.confusion_matrix(y, label, labels=[0, 1]).tolist()
    each = sk.precision_recall_fscore_support(y, label, labels=[0, 1], zero_division=0)
    for side, name in enumerate(("real", "generated")):
        precision, recall, f1, count = (float(column[side]) for column in each)
        want = {"precision": precision, "recall": recall, "f1": f1, "n": count}
        assert decided["classes"][name] == pytest.approx(want, **close)
        assert decided[f"{name}_recall"] == pytest.approx(recall, **close)
    fpr, tpr, _ = sk.roc_curve(y, score, drop_intermediate=False)
    assert ranked["tpr_at_fpr"] == {f"{f:g}": tpr[fpr <= f + 1e-12].max() for f in metrics.FPRS}
    assert ranked["eer"] == metrics.eer(fpr, tpr)
    assert ranked["auc"] == pytest.approx(sk.roc_auc_score(y, score), **close)
    assert ranked["ap"] == pytest.approx(sk.average_precision_score(y, score), **close)
    assert ranked["nll"] == pytest.approx(sk.log_loss(y, prob), **close)
    assert ranked["brier"] == pytest.approx(sk.brier_score_loss(y, prob), **close)


def test_probabilities_of_0_and_1_equal_scikit_learn():
    """Scores so large that the probability is 0 or 1, some of them wrong."""
    y = np.array([0, 0, 1, 1, 1])
    score = np.array([-800.0, 37.0, 800.0, -40.0, 1e-9])
    prob = points.sigmoid(score)
    found = metrics.ranking_metrics(y, score)
    assert found["nll"] == pytest.approx(sk.log_loss(y, prob), rel=1e-12)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, prob), rel=1e-12)


@pytest.mark.parametrize(
    ("y", "score", "auc"),
    [([0] * 7 + [1] * 3, range(10), 1.0), ([1] * 7 + [0] * 3, range(10), 0.0), ([0, 1] * 49, [0.3] * 98, 0.5)],
)
def test_the_auc_of_a_perfect_inverted_or_constant_ranking_is_exact(y, score, auc):
    assert metrics.ranking_metrics(y, list(score))["auc"] == metrics.auc(y, list(score)) == auc


def test_what_cannot_be_measured_is_refused_or_none():
    assert metrics.auc([1, 1], [0.0, 1.0]) is None
    with pytest.raises(UserError, match=r"probability \(=1.5\) of row 1 must be between 0 and 1"):
        metrics.ranking_metrics([0, 1], [0.0, 1.0], [0.5, 1.5])
    with pytest.raises(UserError, match="at least one row"):
        metrics.decision_metrics([], [])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_roc_counts_are_those_of_the_curve(case):
    y, score, _, _ = case
    cut, real, generated = thresholds.roc_counts(y, score)
    fpr, tpr, edge = sk.roc_curve(y, score, drop_intermediate=False)
    assert cut.tolist() == edge[1:].tolist()
    assert (real / real[-1]).tolist() == fpr[1:].tolist() and (generated / generated[-1]).tolist() == tpr[1:].tolist()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_weighted_metrics_equal_scikit_learn_under_weights(case):
    y, score, label, weight = case
    prob = 1 / (1 + np.exp(-score))
    got = points.Weighted(y, label, score, prob)(weight)
    close = {"rel": 1e-9, "abs": 1e-9}
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, label, sample_weight=weight), **close)
    f1 = sk.f1_score(y, label, average="macro", labels=[0, 1], sample_weight=weight, zero_division=0)
    assert got["macro_f1"] == pytest.approx(f1, **close)
    recalls = sk.recall_score(y, label, average="macro", labels=[0, 1], sample_weight=weight, zero_division=0)
    assert got["balanced_accuracy"] == pytest.approx(recalls, **close)
    assert got["auc"] == pytest.approx(sk.roc_auc_score(y, score, sample_weight=weight), **close)
    assert got["ap"] == pytest.approx(sk.average_precision_score(y, score, sample_weight=weight), **close)
    assert got["nll"] == pytest.approx(sk.log_loss(y, prob, sample_weight=weight), **close)
    fpr, tpr, _ = sk.roc_curve(y, score, sample_weight=weight, drop_intermediate=False)
    assert got["eer"] == pytest.approx(metrics.eer(fpr, tpr), **close)
    assert got["ece"] == pytest.approx(metrics.ece(y, prob, weight), **close)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_draw_of_every_row_once_gives_the_point_estimate(case):
    y, score, label, _ = case
    prob = 1 / (1 + np.exp(-score))
    got = points.Weighted(y, label, score, prob)(np.ones(len(y)))
    want = {**metrics.decision_metrics(y, label), **metrics.ranking_metrics(y, score)}
    want.update({f"tpr_at_fpr_{k}": v for k, v in want["tpr_at_fpr"].items()})
    for name in metrics.CI_NAMES:
        assert got[name] == pytest.approx(want[name], rel=1e-9, abs=1e-9), name


def test_eer_is_where_the_error_rates_cross():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 20000)
    score = rng.normal(size=40000) + 2 * y
    # Two unit normals two apart cross at one standard deviation: Phi(-1) = 0.1587.
    assert metrics.ranking_metrics(y, score)["eer"] == pytest.approx(0.1587, abs=0.005)
    assert metrics.ranking_metrics([0, 0, 1, 1], [-2.0, -1.0, 1.0, 2.0])["eer"] == 0.0
    assert metrics.ranking_metrics([1, 1, 0, 0], [-2.0, -1.0, 1.0, 2.0])["eer"] == 1.0
    assert metrics.ranking_metrics([0, 1], [3.0, 3.0])["eer"] == 0.5


def test_ece_is_0_for_calibrated_probabilities_and_1_for_certain_errors():
    y = np.array([0] * 75 + [1] * 25 + [0] * 25 + [1] * 75)
    prob = np.repeat([0.25, 0.75], 100)
    assert metrics.ece(y, prob) == pytest.approx(0.0)
    assert metrics.ece(np.array([0, 1]), np.array([1.0, 0.0])) == pytest.approx(1.0)


def test_intervals_of_crops_of_one_photo_are_wider_than_of_as_many_photos():
    rng = np.random.default_rng(1)
    photos, crops = 40, 25
    y = np.repeat(np.arange(photos) % 2, crops)
    score = np.repeat(rng.normal(size=photos), crops) + y + 0.05 * rng.normal(size=photos * crops)
    label = (score > 0.5).astype(int)
    grouped = metrics.intervals(y, label, score, groups=np.repeat(np.arange(photos), crops), times=300)
    single = metrics.intervals(y, label, score, times=300)
    width = {k: (grouped[k][1] - grouped[k][0]) / (single[k][1] - single[k][0]) for k in ("auc", "accuracy")}
    assert min(width.values()) > 2.5  # with 25 crops of each photo, at most sqrt(25) = 5 times as wide


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.repeat([0, 1], 60)
        score = rng.normal(size=120) + y * np.sqrt(2)  # AUC = Phi(1) = 0.8413
        low, high = metrics.intervals(y, (score > 0.7).astype(int), score, times=200, seed=seed)["auc"]
        inside += low <= 0.8413 <= high
    assert 51 <= inside <= 60


def test_intervals_repeat_with_the_seed():
    rng = np.random.default_rng(3)
    y, score = np.arange(50) % 2, rng.normal(size=50)
    args = (y, (score > 0).astype(int), score)
    assert metrics.intervals(*args, times=50, seed=1) == metrics.intervals(*args, times=50, seed=1)
    assert metrics.intervals(*args, times=50, seed=1) != metrics.intervals(*args, times=50, seed=2)
    assert metrics.intervals(*args, times=0) == {}


def test_paired_test_sees_what_two_separate_intervals_hide():
    rng = np.random.default_rng(4)
    y = np.repeat([0, 1], 150)
    shared = rng.normal(size=300)
    good = shared + 1.2 * y
    worse = shared + 0.9 * y + 0.1 * rng.normal(size=300)
    arrays = [((s > 0.5).astype(int), s, 1 / (1 + np.exp(-s))) for s in (good, worse)]
    found = metrics.paired(y, *arrays, times=500)
    assert found["differences"]["auc"]["p"] < 0.02 and found["differences"]["auc"]["ci"][0] > 0
    alone = [metrics.intervals(y, *a, times=300)["auc"] for a in arrays]
    assert alone[0][0] < alone[1][1]  # the separate intervals overlap
    same = metrics.paired(y, arrays[0], arrays[0], times=100)
    assert same["differences"]["auc"]["p"] == 1.0 and same["mcnemar"]["p"] == 1.0
    back = metrics.paired(y, arrays[1], arrays[0], times=500)
    assert back["differences"]["auc"]["difference"] == pytest.approx(-found["differences"]["auc"]["difference"])


def test_mcnemar_is_the_exact_binomial():
    y = np.ones(10, int)
    first = (np.array([1] * 10), np.ones(10), np.ones(10))
    second = (np.array([0] * 6 + [1] * 4), np.ones(10), np.ones(10))
    found = metrics.paired(y, first, second, times=10)["mcnemar"]
    assert found == {"only_first": 6, "only_second": 0, "p": pytest.approx(2 * 0.5**6)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=200), st.floats(0.001, 0.999))
def test_threshold_from_real_images_keeps_the_rate_and_is_the_lowest_that_does(scores, target):
    threshold, rate = metrics.threshold_at_fpr(scores, target)
    scores = np.array(scores)
    assert rate <= target + 1e-9 and rate == (scores > threshold).mean()
    lower = scores[scores < threshold]
    if len(lower):
        assert (scores > lower.max()).mean() > target


@settings(max_examples=100, deadline=None)
@given(cases())
def test_oracle_reaches_what_it_says_and_nothing_beats_it(case):
    y, score, _, _ = case
    threshold, best = metrics.oracle(y, score)
    reached = metrics.decision_metrics(y, (score > threshold).astype(int))["balanced_accuracy"]
    assert reached == pytest.approx(best)
    assert all(metrics.decision_metrics(y, (score > t).astype(int))["balanced_accuracy"] <= best + 1e-12 for t in score)


def test_of_equally_good_thresholds_the_lowest_and_the_highest_are_chosen():
    """Equal as fractions; as floating-point numbers they differ in the last digit, up or down."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y = np.append(rng.integers(0, 2, rng.integers(5, 30)), [0, 1])
        score = np.round(rng.normal(y, 1.5), 1)
        values, (real, generated) = np.unique(score), (score[y == 0], score[y == 1])
        cuts = (values[1:] + values[:-1]) / 2

        def gain(cut, real=real, generated=generated):
            return Fraction(int((generated > cut).sum()), len(generated)) - Fraction(int((real > cut).sum()), len(real))

        best = [cut for cut in cuts if gain(cut) == max(map(gain, cuts))]
        assert metrics.best_threshold(y, score) == pytest.approx(sigmoid(best[0]))
        everything = [values[0] - 1, *cuts, values[-1]]
        best = [cut for cut in everything if gain(cut) == max(map(gain, everything))]
        assert metrics.oracle(y, score)[0] == pytest.approx(best[-1])


def test_by_value_ranks_a_generator_against_all_real_images():
    y = np.array([0, 0, 0, 1, 1, 1, 1])
    score = np.array([-2.0, -1.0, 1.5, 1.0, 2.0, -3.0, np.nan])
    label = np.array([0, 0, 1, 1, 1, 0, -1])
    table = metrics.by_value(y, label, score, ["cam", "cam", "web", "A", "A", "B", "B"], times=0)
    assert table["A"]["accuracy"] == 1.0 and table["A"]["auc"] == pytest.approx(5 / 6) and table["A"]["n"] == 2
    assert table["B"]["auc"] == 0.0 and table["B"]["accuracy"] == 0.0 and table["B"]["classes"] == "generated"
    assert table["cam"]["classes"] == "real" and table["cam"]["accuracy"] == 1.0
    assert metrics.spread(table) == {"values": 2, "average": 0.5, "minimum": 0.0, "worst": "B"}


def test_a_handful_of_images_gets_no_interval_of_width_zero():
    y, label, score = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), np.array([-1.0, -2, 1, 2])
    low, high = metrics.by_value(y, label, score, ["r", "r", "g", "g"], times=50)["g"]["ci"]["accuracy"]
    assert low < 0.5 and high == 1.0


def test_the_interval_of_a_perfect_recall_has_a_width():
    y = np.repeat([0, 1], 40)
    score = np.where(y == 1, 2.0, -2.0)
    score[0] = 3.0
    ci = metrics.intervals(y, (score > 0).astype(int), score, groups=np.arange(80) // 4, times=100)
    low, high = ci["generated_recall"]
    assert 0.65 < low < 0.75 and high == 1.0  # ten photographs, none wrong: Wilson says 0.722
    assert ci["real_recall"][1] <= 1.0 and ci["real_recall"][0] > 0.8


def test_vip_score():
    assert metrics.vip(0.9, 0.5) == pytest.approx(0.78)


@pytest.mark.parametrize(
    ("y", "score", "text"),
    [
        ([0, 0, 0], None, "all 3 labels are real"),
        ([1, 1], None, "all 2 labels are generated"),
        ([], None, "no rows"),
        ([0, 2], None, "labels must be 0 or 1"),
        ([0, 1], [0.0, np.nan], "1 scores are not finite"),
        ([0, 1], [0.0], "1 scores for 2 labels"),
    ],
)
def test_check_says_what_is_wrong(y, score, text):
    with pytest.raises(UserError, match=text):
        metrics.check(np.array(y), score)

"""The clustered bootstrap against closed forms and against SciPy."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from common.evaluation.intervals import Interval, Sample, interval, paired_difference
from common.evaluation.metrics import resampled


def draw(n: int, *, signal: float = 1.0, prevalence: float = 0.3, seed: int = 0) -> Sample:
    """Returns predictions whose labels depend on n only, so that two draws can be compared as a pair."""
    labels = (np.random.default_rng(n).random(n) < prevalence).astype(int)
    scores = 1 / (1 + np.exp(-(np.random.default_rng(seed).normal(size=n) + signal * labels)))
    return Sample(scores, labels, np.array([f"patient-{i}" for i in range(n)]))


def test_accuracy_interval_equals_the_binomial_closed_form() -> None:
    n, right = 400, 300
    answers = (np.arange(n) < right).astype(float)
    found = interval([Sample(answers, np.ones(n), np.arange(n))], "accuracy", "binary", resamples=4000)
    low, high = stats.binom(n, right / n).ppf([0.025, 0.975]) / n
    assert found is not None
    assert found.estimate == 0.75
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_identical_visits_of_a_patient_count_as_one_patient() -> None:
    patients, visits = 100, 4
    answers = np.repeat((np.arange(patients) < 70).astype(float), visits)
    ones = np.ones(patients * visits)
    clustered = interval([Sample(answers, ones, np.repeat(np.arange(patients), visits))], "accuracy", "binary", resamples=4000)
    naive = interval([Sample(answers, ones, np.arange(patients * visits))], "accuracy", "binary", resamples=4000)
    assert clustered is not None and naive is not None
    low, high = stats.binom(patients, 0.7).ppf([0.025, 0.975]) / patients
    assert (clustered.low, clustered.high) == pytest.approx((low, high), abs=0.012)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(np.sqrt(visits), rel=0.1)


def test_auroc_interval_equals_scipy_on_unclustered_data() -> None:
    sample = draw(200)
    found = interval([sample], "auroc", "binary", resamples=2000)
    reference = stats.bootstrap(
        (sample.scores, sample.labels),
        lambda score, label: roc_auc_score(label, score),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found is not None
    assert found.estimate == pytest.approx(roc_auc_score(sample.labels, sample.scores))
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.01)


def test_seeds_are_averaged_after_the_metric_and_share_the_draws() -> None:
    samples = [draw(150, seed=s) for s in range(3)]
    found = interval(samples, "auroc", "binary")
    assert found is not None
    assert found.estimate == pytest.approx(np.mean([roc_auc_score(s.labels, s.scores) for s in samples]))
    same = interval([samples[0]] * 3, "auroc", "binary")
    alone = interval([samples[0]], "auroc", "binary")
    assert same is not None and alone is not None
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))


def test_paired_difference_is_narrower_than_two_intervals_and_antisymmetric() -> None:
    a = draw(300, signal=1.5)
    noise = np.random.default_rng(9).normal(scale=0.02, size=300)
    b = Sample(np.clip(a.scores + noise, 0, 1), a.labels, a.clusters)
    difference, back = paired_difference([a], [b], "auroc", "binary"), paired_difference([b], [a], "auroc", "binary")
    alone = interval([a], "auroc", "binary")
    assert difference is not None and back is not None and alone is not None
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    assert (difference.estimate, difference.low, difference.high) == pytest.approx((-back.estimate, -back.high, -back.low))


def test_a_real_difference_is_resolved_and_none_is_not() -> None:
    good, bad, other = (draw(800, signal=signal, seed=seed) for signal, seed in ((2.5, 0), (0.3, 1), (2.5, 2)))
    assert paired_difference([good], [bad], "auroc", "binary").verdict("auroc") == "better"
    assert paired_difference([bad], [good], "auroc", "binary").verdict("auroc") == "worse"
    assert paired_difference([good], [other], "auroc", "binary").verdict("auroc") == "not resolved"
    assert paired_difference([good], [good], "auroc", "binary") == Interval(0.0, 0.0, 0.0)


def test_a_smaller_error_is_better() -> None:
    truth, patients = np.arange(200.0), np.arange(200)
    near, far = (Sample(truth + error * np.resize([1, -1], 200), truth, patients) for error in (1, 3))
    difference = paired_difference([near], [far], "mae", "regression")
    assert difference == Interval(-2.0, -2.0, -2.0)
    assert (difference.verdict("mae"), difference.verdict("r2")) == ("better", "worse")
    back = paired_difference([far], [near], "rmse", "regression")
    assert back is not None and back.verdict("rmse") == "worse"
    assert Interval(-0.1, -1.0, 1.0).verdict("mae") == "not resolved"


def test_paired_difference_refuses_other_rows() -> None:
    a = draw(50)
    with pytest.raises(ValueError, match="same rows in the same order"):
        paired_difference([a], [Sample(a.scores, a.labels, a.clusters[::-1])], "auroc", "binary")
    with pytest.raises(ValueError, match="2 scores, 2 labels, 1 clusters"):
        Sample(np.zeros(2), np.zeros(2), np.zeros(1))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = stats.norm.cdf(1 / np.sqrt(2))
    covered = []
    for trial in range(150):
        rng = np.random.default_rng(trial)
        labels = (rng.random(200) < 0.3).astype(int)
        scores = stats.norm.cdf(rng.normal(size=200) + labels)
        found = interval([Sample(scores, labels, np.arange(200))], "auroc", "binary", resamples=300)
        assert found is not None
        covered.append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_undefined_metrics_have_no_interval() -> None:
    nobody_dies = Sample(np.linspace(0, 1, 20), np.zeros(20), np.arange(20))
    assert interval([nobody_dies], "auroc", "binary") is None
    one_event_in_one_patient = Sample(np.array([0.1, 0.9]), np.array([0, 1]), np.array([7, 7]))
    assert interval([one_event_in_one_patient], "auroc", "binary") == Interval(1.0, 1.0, 1.0)
    assert interval([Sample(np.empty(0), np.empty(0), np.empty(0))], "auroc", "binary") is None


def test_resamples_without_an_event_are_skipped() -> None:
    labels = (np.arange(40) < 2).astype(int)
    scores = np.linspace(0.9, 0.1, 40)
    found = interval([Sample(scores, labels, np.arange(40))], "auroc", "binary")
    assert found is not None
    assert found == Interval(1.0, 1.0, 1.0)


def test_same_seed_same_interval_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = draw(120)
    whole = interval([sample], "auprc", "binary", seed=3)
    assert whole != interval([sample], "auprc", "binary", seed=4)
    monkeypatch.setattr("common.evaluation.intervals.BLOCK_CELLS", 1000)
    assert interval([sample], "auprc", "binary", seed=3) == whole


def test_one_row_of_the_eicu_table_takes_far_less_than_a_second() -> None:
    samples = [draw(1571, prevalence=0.088, seed=s) for s in range(3)]
    resampled("auroc", "binary", samples[0].scores, samples[0].labels, np.ones((1571, 1)))
    start = time.process_time()
    interval(samples, "auroc", "binary")
    interval(samples, "auprc", "binary")
    assert time.process_time() - start < 1.5

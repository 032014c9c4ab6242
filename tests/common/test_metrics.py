"""The metrics equal scikit-learn's, and what is undefined is left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from common.evaluation.metrics import METRICS, REGRESSION_METRICS, check_predictions, metrics, resampled


def draw(n: int, outputs: int, *, ties: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, outputs)) < 0.3).astype(int)
    scores = 1 / (1 + np.exp(-(rng.normal(size=(n, outputs)) + labels)))
    return (scores.round(1) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
def test_binary_metrics_equal_scikit_learn(ties: bool) -> None:
    scores, labels = draw(300, 1, ties=ties)
    found = metrics("binary", scores[:, 0], labels[:, 0])
    assert found == pytest.approx(
        {
            "auroc": sk.roc_auc_score(labels, scores),
            "auprc": sk.average_precision_score(labels, scores),
            "accuracy": sk.accuracy_score(labels, scores > 0.5),
            "f1": sk.f1_score(labels, scores > 0.5),
        },
        abs=1e-6,
    )


def test_multilabel_metrics_are_means_over_outputs_that_are_told_too() -> None:
    scores, labels = draw(200, 3, ties=False)
    found = metrics("multilabel", scores, labels)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores, average="macro"))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(labels, scores, average="macro"))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, scores > 0.5, average="macro"), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(labels == (scores > 0.5)))
    for c in range(3):
        assert found[f"auroc:{c}"] == pytest.approx(sk.roc_auc_score(labels[:, c], scores[:, c]))
        assert found[f"accuracy:{c}"] == pytest.approx(np.mean(labels[:, c] == (scores[:, c] > 0.5)))


def test_multiclass_metrics_equal_scikit_learn_for_indices_and_for_one_hot_labels() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(4, size=250)
    logits = rng.normal(size=(250, 4)) + 1.5 * np.eye(4)[classes]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = metrics("multiclass", scores, classes)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(classes, scores.argmax(axis=1)))
    assert found["f1"] == pytest.approx(sk.f1_score(classes, scores.argmax(axis=1), average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(classes, scores, multi_class="ovr", average="macro"))
    assert found == metrics("multiclass", scores, np.eye(4)[classes])
    assert "accuracy:0" not in found


def test_one_class_leaves_ranking_metrics_out_and_never_gives_nan() -> None:
    assert metrics("binary", np.array([0.2, 0.9]), np.array([0, 0])) == {"accuracy": 0.5}
    assert set(metrics("binary", np.array([0.2, 0.9]), np.array([1, 1]))) == {"accuracy", "f1"}
    assert metrics("binary", np.empty(0), np.empty(0)) == {}


def test_macro_mean_is_over_the_outputs_that_are_defined() -> None:
    scores, labels = draw(100, 3, ties=False)
    labels[:, 1] = 0
    found = metrics("multilabel", scores, labels)
    assert "auroc:1" not in found and "f1:1" not in found
    assert found["auroc"] == pytest.approx((found["auroc:0"] + found["auroc:2"]) / 2)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 40), st.booleans(), st.sampled_from(METRICS))
def test_resampled_metrics_equal_scikit_learn_with_sample_weights(seed: int, n: int, ties: bool, metric: str) -> None:
    scores, labels = draw(n, 1, ties=ties, seed=seed)
    score, label = scores[:, 0], labels[:, 0]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=5).astype(float)
    reference = {
        "auroc": lambda w: sk.roc_auc_score(label, score, sample_weight=w),
        "auprc": lambda w: sk.average_precision_score(label, score, sample_weight=w),
        "accuracy": lambda w: sk.accuracy_score(label, score > 0.5, sample_weight=w),
        "f1": lambda w: sk.f1_score(label, score > 0.5, sample_weight=w, zero_division=0),
    }[metric]
    for value, w in zip(resampled(metric, "binary", score, label, weights.T), weights, strict=True):
        drawn = label[w > 0]
        defined = metric == "accuracy" or (drawn.any() and (metric == "f1" or not drawn.all()))
        assert value == pytest.approx(reference(w), abs=1e-9) if defined else np.isnan(value)


@pytest.mark.parametrize("task_type", ["multilabel", "multiclass"])
@pytest.mark.parametrize("metric", METRICS)
def test_unit_weights_give_the_metric_itself(task_type: str, metric: str) -> None:
    scores, labels = draw(120, 4, ties=True)
    if task_type == "multiclass":
        labels = np.eye(4)[labels.argmax(axis=1)]
    found = resampled(metric, task_type, scores, labels, np.ones((120, 1)))
    assert found[0] == pytest.approx(metrics(task_type, scores, labels)[metric], abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([0.1, np.nan], [0, 1]), ([0.1, 1.2], [0, 1]), ([0.1, 0.2], [0, 2]), ([0.1, 0.2], [0, 1, 1])],
)
def test_scores_and_labels_that_are_none_are_refused(scores: list[float], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"probability|neither 0 nor 1|shape"):
        metrics("binary", np.array(scores), np.array(labels))


def test_multiclass_row_with_two_classes_and_unknown_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly one class"):
        metrics("multiclass", np.full((1, 2), 0.5), np.ones((1, 2)))
    with pytest.raises(ValueError, match="known: auroc, auprc"):
        resampled("auc", "binary", np.array([0.5]), np.array([1]), np.ones((1, 1)))


# Numbers.

BY_HAND = {"mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error, "r2": sk.r2_score}


def numbers(n: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = np.exp(rng.normal(size=(n, outputs))) + [0, 1000, -3][:outputs]
    return true + rng.normal(size=true.shape), true


@pytest.mark.parametrize("outputs", [1, 3])
def test_errors_of_numbers_equal_scikit_learn(outputs: int) -> None:
    said, true = numbers(200, outputs)
    found = metrics("regression", said, true)
    for name, reference in BY_HAND.items():
        each = [reference(true[:, c], said[:, c]) for c in range(outputs)]
        assert found[name] == pytest.approx(np.mean(each))
        assert [found[f"{name}:{c}"] for c in range(outputs) if outputs > 1] == pytest.approx(each if outputs > 1 else [])
    assert len(found) == (3 if outputs == 1 else 12)
    if outputs == 1:
        assert metrics("regression", said[:, 0], true[:, 0]) == found


def test_numbers_that_are_all_the_same_have_no_r2_and_no_numbers_no_error() -> None:
    assert metrics("regression", np.array([1.0, 3.0]), np.array([2.0, 2.0])) == {"mae": 1.0, "rmse": 1.0}
    assert metrics("regression", np.empty(0), np.empty(0)) == {}


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 30), st.sampled_from(REGRESSION_METRICS))
def test_resampled_errors_equal_scikit_learn_with_sample_weights(seed: int, n: int, metric: str) -> None:
    said, true = numbers(n, 2, seed)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=5).astype(float)
    weights[0] = np.eye(n)[0]
    for value, w in zip(resampled(metric, "regression", said, true, weights.T), weights, strict=True):
        if metric == "r2" and (w > 0).sum() == 1:
            assert np.isnan(value)
        else:
            each = [BY_HAND[metric](true[:, c], said[:, c], sample_weight=w) for c in range(2)]
            assert value == pytest.approx(np.mean(each), rel=1e-6, abs=1e-6)


def test_numbers_that_are_none_and_metrics_of_classes_are_refused() -> None:
    one = np.ones(2)
    for said, true, text in (([1.0, np.nan], one, "finite"), (one, [1.0, np.inf], "finite"), (one, [1.0], "shape")):
        with pytest.raises(ValueError, match=text):
            metrics("regression", np.array(said), np.array(true))
    with pytest.raises(ValueError, match="known: mae, rmse, r2"):
        resampled("auroc", "regression", one, one, np.ones((2, 1)))
    check_predictions("regression", 7 * one, -7 * one)
    with pytest.raises(ValueError, match="probability"):
        check_predictions("multiclass", 7 * one, one)

"""Metrics of one set of predictions: AUROC, AUPRC, accuracy and F1 of classes; MAE, RMSE and R² of numbers; overlap of regions.

Two doors to the same definitions: :func:`metrics` asks torchmetrics, :func:`resampled` computes one metric under many sets of
patient weights at once, because a bootstrap needs it a thousand times.

* ``auroc``, ``auprc`` (average precision) and ``f1`` are means over the outputs (macro; a class is scored against the rest).
* ``accuracy`` is the share of right answers: over patients (``multiclass``) or over patients and outputs (``multilabel``).
* An answer is *yes* above a probability of one half; the answer of a ``multiclass`` task is its most probable class.
* AUROC and AUPRC of an output need both classes, its F1 needs a positive label. An output without them is left out of the mean,
  and a metric without any such output is left out altogether: it is never NaN and never a made-up zero.
* ``mae`` and ``rmse``, in the task's units, and ``r2`` are means over the outputs of a ``regression``. R² needs numbers that
  differ.
* The regions of a ``segmentation`` are compared scan by scan (``common/evaluation/regions.py``); here ``dice``, ``hd95`` and
  ``nsd`` are means over scans and regions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.task import TaskType

METRICS = ("auroc", "auprc", "accuracy", "f1")
REGRESSION_METRICS = ("mae", "rmse", "r2")
REGION_METRICS = ("dice", "hd95", "nsd")
LOWER_IS_BETTER = frozenset({"mae", "rmse", "hd95"})
Floats = NDArray[np.float64]


def metrics(task_type: TaskType, scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Returns every metric that is defined.

    Args:
        task_type: What the outputs mean together.
        scores: Probabilities (regression: numbers), float [N, C] (or [N], if C is one). Of a segmentation ``REGION_METRICS`` of
            every region, [N, 3 C].
        labels: 0/1 (regression: numbers), [N, C] (or [N]); a multiclass task may give the index of the class, int [N].

    Returns:
        ``auroc``, ``auprc``, ``accuracy`` and ``f1`` over all outputs, in [0, 1], or ``mae``, ``rmse`` and ``r2``, or ``dice``,
        ``hd95`` and ``nsd``; with more than one output also ``auroc:0``, ``auroc:1``, ... per output (no ``accuracy`` per class).
        No entry where one is undefined.

    Raises:
        ValueError: If shapes differ, a score is no probability or a label is neither 0 nor 1, or a number is not finite.
    """
    if task_type == "regression":
        return _regression_metrics(*_numbers(scores, labels))
    if task_type == "segmentation":
        return _region_metrics(_numbers(scores, labels)[0])
    # here: a deployed site starts a process per message, and only one of its messages evaluates
    from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_average_precision, binary_f1_score

    p, y = as_matrices(task_type, scores, labels)
    if not len(p):
        return {}
    answers = _answers(task_type, p)
    per_output: dict[str, dict[int, float]] = {"auroc": {}, "auprc": {}, "f1": {}}
    for c in range(p.shape[1]):
        score, label, answer = torch.from_numpy(p[:, c].copy()), torch.from_numpy(y[:, c].astype(int)), answers[:, c]
        if label.any():
            per_output["f1"][c] = float(binary_f1_score(torch.from_numpy(answer.astype(int)), label))
            if not label.all():
                per_output["auroc"][c] = float(binary_auroc(score, label))
                per_output["auprc"][c] = float(binary_average_precision(score, label))
    right = _right(task_type, answers, y)
    found = {name: float(np.mean(list(values.values()))) for name, values in per_output.items() if values}
    found["accuracy"] = float(right.mean())
    if p.shape[1] > 1:
        found |= {f"{name}:{c}": value for name, values in per_output.items() for c, value in values.items()}
        if task_type == "multilabel":
            columns = zip(torch.from_numpy(answers.astype(int)).T, torch.from_numpy(y.astype(int)).T, strict=True)
            found |= {f"accuracy:{c}": float(binary_accuracy(answer, label)) for c, (answer, label) in enumerate(columns)}
    return found


def resampled(metric: str, task_type: TaskType, scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any]) -> Floats:
    """Returns one metric under many sets of weights.

    Args:
        metric: One of ``METRICS``, ``REGRESSION_METRICS`` or ``REGION_METRICS``.
        task_type: What the outputs mean together.
        scores: As in :func:`metrics`.
        labels: As in :func:`metrics`.
        weights: How often each row counts, non-negative [N, B].

    Returns:
        float64 [B]; NaN where the metric is undefined under that set of weights.

    Raises:
        ValueError: As :func:`metrics`, and for an unknown metric.
    """
    w = np.asarray(weights, dtype=np.float64)
    known = {"regression": REGRESSION_METRICS, "segmentation": REGION_METRICS}.get(task_type, METRICS)
    if metric not in known:
        raise ValueError(f"unknown metric '{metric}'; known: {', '.join(known)}")
    if task_type == "regression":
        return _mean_of_defined(_weighted_errors(metric, *_numbers(scores, labels), w))
    if task_type == "segmentation":
        values = _numbers(scores, labels)[0][:, known.index(metric) :: len(known)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(values.mean(axis=1) @ w / w.sum(axis=0))
    p, y = as_matrices(task_type, scores, labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "accuracy":
            return np.asarray(_right(task_type, _answers(task_type, p), y) @ w / w.sum(axis=0))
        if metric == "f1":
            answers = _answers(task_type, p)
            positive = y.T @ w
            values = np.where(positive > 0, 2 * ((answers & y).T @ w) / (answers.T @ w + positive), np.nan)
        else:
            statistic = _weighted_auroc if metric == "auroc" else _weighted_average_precision
            values = np.stack([statistic(p[:, c], y[:, c], w) for c in range(p.shape[1])])
    return _mean_of_defined(values)


def _mean_of_defined(values: Floats) -> Floats:
    """Returns the mean over outputs of [C, B] without those that are NaN; NaN where all are."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0))


def as_matrices(task_type: TaskType, scores: NDArray[Any], labels: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns scores as float64 [N, C] and labels as bool [N, C], checked.

    Raises:
        ValueError: If shapes differ, a score is no probability or a label is neither 0 nor 1.
    """
    p, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    p = p.reshape(-1, 1) if p.ndim == 1 else p
    if y.ndim == 1:
        y = np.eye(p.shape[1])[y.astype(int)] if task_type == "multiclass" else y.reshape(-1, 1)
    if p.shape != y.shape:
        raise ValueError(f"scores have shape {p.shape}, labels {y.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a score is no probability: it is NaN or lies outside [0, 1]")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if task_type == "multiclass" and not (y.sum(axis=1) == 1).all():
        raise ValueError("a multiclass row does not belong to exactly one class")
    return p, y.astype(bool)


def _numbers(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[Floats, Floats]:
    """Returns predicted and true numbers as float64 [N, C], checked.

    Raises:
        ValueError: If shapes differ or a number is not finite.
    """
    said, true = (np.asarray(x, dtype=np.float64) for x in (scores, labels))
    said, true = (x.reshape(-1, 1) if x.ndim == 1 else x for x in (said, true))
    if said.shape != true.shape:
        raise ValueError(f"scores have shape {said.shape}, labels {true.shape}")
    if not (np.isfinite(said).all() and np.isfinite(true).all()):
        raise ValueError("a score or a label is not finite")
    return said, true


def check_predictions(task_type: TaskType, scores: NDArray[Any], labels: NDArray[Any]) -> None:
    """Checks single predictions, [N] each, whatever their outputs mean together.

    Raises:
        ValueError: As :func:`metrics`.
    """
    if task_type in ("regression", "segmentation"):
        _numbers(scores, labels)
    else:
        as_matrices("multilabel", scores, labels)


def _regression_metrics(said: Floats, true: Floats) -> dict[str, float]:
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

    per_output: dict[str, dict[int, float]] = {"mae": {}, "rmse": {}, "r2": {}}
    for c in range(true.shape[1] if len(true) else 0):
        a, b = torch.from_numpy(said[:, c].copy()), torch.from_numpy(true[:, c].copy())
        per_output["mae"][c] = float(mean_absolute_error(a, b))
        per_output["rmse"][c] = float(mean_squared_error(a, b, squared=False))
        if float(b.max()) > float(b.min()):
            per_output["r2"][c] = float(r2_score(a, b))
    found = {name: float(np.mean(list(values.values()))) for name, values in per_output.items() if values}
    if true.shape[1] > 1:
        found |= {f"{name}:{c}": value for name, values in per_output.items() for c, value in values.items()}
    return found


def _region_metrics(values: Floats) -> dict[str, float]:
    """Returns the means over scans; per region under the index of its column."""
    if not len(values):
        return {}
    step = len(REGION_METRICS)
    found = {name: float(values[:, at::step].mean()) for at, name in enumerate(REGION_METRICS)}
    if values.shape[1] > step:
        found |= {f"{REGION_METRICS[c % step]}:{c}": float(values[:, c].mean()) for c in range(values.shape[1])}
    return found


def _weighted_errors(metric: str, said: Floats, true: Floats, w: Floats) -> Floats:
    """Returns the weighted mean absolute error, root mean squared error or R² of every output, [C, B]; NaN where undefined."""
    total = w.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "mae":
            return np.asarray(np.abs(said - true).T @ w / total)
        squared = np.square(said - true).T @ w / total
        if metric == "rmse":
            return np.asarray(np.sqrt(squared))
        apart = true - true.mean(axis=0) if len(true) else true
        variance = np.square(apart).T @ w / total - np.square(apart.T @ w / total)
        differ = np.stack([[np.ptp(column[drawn > 0]) > 0 for drawn in w.T] for column in true.T])
        return np.where(differ, 1 - squared / variance, np.nan)


def _answers(task_type: TaskType, p: Floats) -> NDArray[np.bool_]:
    """Returns what the model would answer, bool [N, C]."""
    if task_type == "multiclass":
        return np.asarray(np.arange(p.shape[1]) == p.argmax(axis=1)[:, None])
    return np.asarray(p > 0.5)


def _right(task_type: TaskType, answers: NDArray[np.bool_], y: NDArray[np.bool_]) -> Floats:
    """Returns the share of right answers per row, float64 [N]."""
    same = answers == y
    return np.asarray(same.all(axis=1) if task_type == "multiclass" else same.mean(axis=1), dtype=np.float64)


def _weighted_auroc(score: Floats, label: NDArray[np.bool_], w: Floats) -> Floats:
    """Returns the weighted share of (positive, negative) pairs in the right order, ties counting one half, float64 [B]."""
    positives, negatives = np.sort(score[label]), np.sort(score[~label])
    weight, below = w[label][np.argsort(score[label], kind="stable")], _cumulated(score[~label], w[~label])
    under, level = (below[np.searchsorted(negatives, positives, side)] for side in ("left", "right"))
    return np.asarray(np.einsum("pb,pb->b", weight, (under + level) / 2) / (weight.sum(axis=0) * below[-1]))


def _weighted_average_precision(score: Floats, label: NDArray[np.bool_], w: Floats) -> Floats:
    """Returns the weighted average precision, float64 [B]: the mean over positives of the precision at their score."""
    positives, negatives = np.sort(-score[label]), np.sort(-score[~label])
    weight, found = w[label][np.argsort(-score[label], kind="stable")], _cumulated(-score[label], w[label])
    wrong = _cumulated(-score[~label], w[~label])
    hits, misses = found[np.searchsorted(positives, positives, "right")], wrong[np.searchsorted(negatives, positives, "right")]
    called = hits + misses
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    both = (found[-1] > 0) & (wrong[-1] > 0)
    return np.asarray(np.where(both, np.einsum("pb,pb->b", weight, precision) / found[-1], np.nan))


def _cumulated(key: Floats, w: Floats) -> Floats:
    """Returns the weight of the first 0, 1, ... rows in the order of the key, float64 [N + 1, B]."""
    sums = np.zeros((len(key) + 1, w.shape[1]))
    np.cumsum(w[np.argsort(key, kind="stable")], axis=0, out=sums[1:])
    return sums

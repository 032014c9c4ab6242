"""Metrics of one set of predictions: AUROC, AUPRC, accuracy and F1, for every task type.

Two doors to the same definitions: :func:`metrics` asks torchmetrics, :func:`resampled` computes one metric under many sets of
patient weights at once, because a bootstrap needs it a thousand times.

* ``auroc``, ``auprc`` (average precision) and ``f1`` are means over the outputs (macro; a class is scored against the rest).
* ``accuracy`` is the share of right answers: over patients (``multiclass``) or over patients and outputs (``multilabel``).
* An answer is *yes* above a probability of one half; the answer of a ``multiclass`` task is its most probable class.
* AUROC and AUPRC of an output need both classes, its F1 needs a positive label. An output without them is left out of the mean,
  and a metric without any such output is left out altogether: it is never NaN and never a made-up zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.task import TaskType

METRICS = ("auroc", "auprc", "accuracy", "f1")
Floats = NDArray[np.float64]


def metrics(task_type: TaskType, scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Returns every metric that is defined.

    Args:
        task_type: What the outputs mean together.
        scores: Probabilities, float [N, C] (or [N], if C is one).
        labels: 0/1, [N, C] (or [N]); a multiclass task may give the index of the class, int [N].

    Returns:
        ``auroc``, ``auprc``, ``accuracy`` and ``f1`` over all outputs, in [0, 1]; with more than one output also
        ``auroc:0``, ``auroc:1``, ... per output (no ``accuracy`` per class). No entry where a metric is undefined.

    Raises:
        ValueError: If shapes differ, a score is no probability or a label is neither 0 nor 1.
    """
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
        metric: ``auroc``, ``auprc``, ``accuracy`` or ``f1``.
        task_type: What the outputs mean together.
        scores: Probabilities, float [N, C] (or [N]).
        labels: As in :func:`metrics`.
        weights: How often each row counts, non-negative [N, B].

    Returns:
        float64 [B]; NaN where the metric is undefined under that set of weights.

    Raises:
        ValueError: As :func:`metrics`, and for an unknown metric.
    """
    p, y = as_matrices(task_type, scores, labels)
    w = np.asarray(weights, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "accuracy":
            return np.asarray(_right(task_type, _answers(task_type, p), y) @ w / w.sum(axis=0))
        if metric == "f1":
            answers = _answers(task_type, p)
            positive = y.T @ w
            values = np.where(positive > 0, 2 * ((answers & y).T @ w) / (answers.T @ w + positive), np.nan)
        elif metric in ("auroc", "auprc"):
            statistic = _weighted_auroc if metric == "auroc" else _weighted_average_precision
            values = np.stack([statistic(p[:, c], y[:, c], w) for c in range(p.shape[1])])
        else:
            raise ValueError(f"unknown metric '{metric}'; known: {', '.join(METRICS)}")
        defined = ~np.isnan(values)
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

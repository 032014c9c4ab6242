"""What tables of results say, for the terminal and for the documentation: which lines, and how a figure is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.evaluation.intervals import Interval
from common.evaluation.results import Comparison, Results, Row
from simulations.benchmarks.base import MEAN_OF_PATTERNS
from simulations.scores import ALL, TEACHER

NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "accuracy": "Accuracy", "f1": "F1", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}
NAMES |= {"dice": "Dice", "hd95": "HD95", "nsd": "NSD"}
EQUAL = 1e-6  # by which equal weights differ through rounding


@dataclass(frozen=True)
class Line:
    """One line of a table of methods: a method on a combination of modalities, or a figure of others.

    Attributes:
        method: Name of the method.
        pattern: Modalities that it was given.
        rows: Metric -> its row; at least one.
    """

    method: str
    pattern: str
    rows: Mapping[str, Row]

    @property
    def first(self) -> Row:
        """Any of its rows: what all of them share, like n and parameters."""
        return next(iter(self.rows.values()))


def pooled(results: Results) -> list[Row]:
    """Returns the rows over all sites, folds and outputs."""
    return [r for r in results.rows if r.site is None and r.fold is None and r.output is None]


def main_metrics(results: Results, number: int = 2) -> list[str]:
    """Returns the names of the first metrics of our own rows, the main one first."""
    return list(dict.fromkeys(r.metric for r in pooled(results) if r.published is None))[:number]


def sites_apart(results: Results) -> list[str]:
    """Returns the test sites that the benchmark tells apart: their rows have intervals."""
    return list(dict.fromkeys(r.site for r in results.rows if r.site is not None and r.ci95 is not None))


def method_lines(results: Results, site: str | None = None) -> list[Line]:
    """Returns every method on every test visit with what it has, unimodal teachers on the visits that they can read, others.

    The figures of others are of real patients: they do not stand beside those of generated ones.

    Args:
        results: What was found.
        site: A site of :func:`sites_apart`; by default all of them together.
    """
    rows = pooled(results) if site is None else [r for r in results.rows if r.site == site and r.output is None]
    lone = lone_teachers(r.method for r in rows)
    others = [r for r in rows if r.published and results.data == "real"]
    ours = [r for r in rows if not r.published and r.method not in lone]
    shown = [*(r for r in ours if r.pattern in (ALL, MEAN_OF_PATTERNS) or r.method.startswith(TEACHER)), *others]
    lines: dict[tuple[str, str, str | None], dict[str, Row]] = {}
    for row in shown:
        lines.setdefault((row.method, row.pattern, row.published), {})[row.metric] = row
    return [Line(method, pattern, found) for (method, pattern, _), found in lines.items()]


def lone_teachers(methods: Iterable[str]) -> set[str]:
    """Returns the teachers that are all of their modality's ensemble: a line of their own would only repeat it."""
    teachers = sorted({m for m in methods if is_member(m)})
    number = Counter(m.split("/")[0] for m in teachers)
    return {m for m in teachers if number[m.split("/")[0]] == 1}


def is_member(method: str) -> bool:
    """Returns whether a method is a single teacher of a modality's ensemble."""
    return method.startswith(TEACHER) and "/" in method


def given(pattern: str) -> str:
    """Returns the modalities that a method was given, in words."""
    return "what each has" if pattern == ALL else pattern


def bounds_of(comparison: Comparison) -> Interval:
    """Returns the difference of a comparison with its interval."""
    return Interval(comparison.difference, *comparison.ci95)


def verdict(comparison: Comparison) -> str:
    """Returns whether ``a`` is resolved to be ``better`` or ``worse`` than ``b``, or ``not resolved``."""
    return bounds_of(comparison).verdict(comparison.metric)


def figure(row: Row | None) -> str:
    """Returns a metric with its spread and interval."""
    if row is None:
        return "-"
    if row.mean is None:
        return "not found"
    bounds = "" if row.ci95 is None else f" [{row.ci95[0]:.3f}, {row.ci95[1]:.3f}]"
    return f"{spread(row.mean, row.sd)}{bounds}"


def spread(mean: float | None, sd: float | None) -> str:
    """Returns a mean with its standard deviation over the seeds."""
    return "-" if mean is None else f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}")


def difference(bounds: Interval | None) -> str:
    """Returns a difference with its interval, signed; with a digit more where an end would look like 0 and is not."""
    if bounds is None:
        return "-"
    digits = 4 if any(x and abs(x) < 0.0005 for x in (bounds.low, bounds.high)) else 3
    return f"{bounds.estimate:+.{digits}f} [{bounds.low:+.{digits}f}, {bounds.high:+.{digits}f}]"


def count(number: float | None) -> str:
    """Returns a whole number."""
    return "-" if number is None else f"{round(number):,}"


def link_to(heading: str) -> str:
    """Returns a Markdown link to a heading of the same document, by the name that GitHub gives it."""
    return f"[{heading}](#{re.sub(r'[^a-z0-9_ -]', '', heading.lower()).replace(' ', '-')})"


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"

"""From cells to ``results.json``: rows for every (method, pattern), and comparisons on the same patients.

Metrics are computed on the rows of all folds together (out of fold), per seed, and then averaged over the seeds; a seed that
lacks a fold is no part of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.evaluation.intervals import Sample, interval, paired_difference
from common.evaluation.metrics import LOWER_IS_BETTER, metrics
from common.evaluation.results import Comparison, Results, Row, Weight
from common.task import COMPLETE, pattern_name
from simulations.benchmarks.base import CUSTOM, MEAN_OF_PATTERNS, Benchmark
from simulations.finished import Cell, environment

ALL, OURS, TEACHERS, TEACHER = "all", "student", "teachers", "teacher:"
AT_SITES = "visits with a fault in their files or without any modality, left out by the sites (the most in a fold)"
KEYS = ["fold", "site", "row"]


@dataclass(frozen=True)
class _Table:
    """The predictions of one method for one pattern under one seed: rows sorted by key, scores and labels [N, C]."""

    keys: pd.MultiIndex
    patients: NDArray[Any]
    scores: NDArray[np.float64]
    labels: NDArray[np.float64]

    def take(self, rows: NDArray[Any]) -> _Table:
        return _Table(self.keys[rows], self.patients[rows], self.scores[rows], self.labels[rows])

    def sample(self) -> Sample:
        return Sample(self.scores, self.labels, self.patients)


def build_results(
    benchmark: Benchmark,
    cells: Sequence[Cell],
    *,
    seeds: Sequence[int],
    folds: Sequence[int],
    variant: str | None,
    prepared: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    every_pattern: bool = False,
) -> Results:
    """Builds the results of a run.

    Args:
        benchmark: What was run.
        cells: The finished cells.
        seeds: Seeds of the plan.
        folds: Folds of the plan.
        variant: Variant of the plan.
        prepared: What ``prepare`` returned, the first seed's folds first.
        run: What else to tell of the run, recorded under ``environment``; of training that was cut short (``debug``) nothing
            is compared.
        every_pattern: Whether the student is compared with every method on every pattern too, in the main metric; and so is an
            ablation with the other one that it names.
    """
    builder = _Builder(benchmark, cells, seeds, folds, variant)
    return Results(
        schema_version=1,
        benchmark=benchmark.name,
        data=_data(benchmark, prepared),
        data_checksum=_checksum(prepared),
        n=_counts(prepared[: len(folds)]),
        exclusions=_exclusions(benchmark, prepared[0]["exclusions"], cells),
        seeds=list(seeds),
        rows=[*builder.rows(), *published_rows(benchmark, variant)],
        comparisons=[] if run.get("debug") else builder.comparisons() + (builder.by_pattern() if every_pattern else []),
        weights=[
            Weight.model_validate({**w, "method": c.method, "seed": c.seed, "fold": c.fold}) for c in cells for w in c.weights
        ],
        environment={**environment(), "data_version": prepared[0].get("data_version", benchmark.data_version), **run},
    )


def _exclusions(benchmark: Benchmark, prepared: Mapping[str, int], cells: Sequence[Cell]) -> dict[str, int]:
    """Returns what was left out when the sites were made, and when they opened their files; own data are only opened."""
    at_sites = 0 if benchmark.name == CUSTOM else max((c.excluded for c in cells), default=0)  # some methods open fewer sites
    return {**prepared, **({AT_SITES: at_sites} if at_sites else {})}


def _data(benchmark: Benchmark, prepared: Sequence[Mapping[str, Any]]) -> Any:
    """Returns whether the patients are real: as ``prepare`` said, else as the benchmark says."""
    kinds = {said.get("data", benchmark.data) for said in prepared}
    if len(kinds) > 1:
        raise ConsiliumError(
            f"Some splits of '{benchmark.name}' hold real patients and others generated ones: CONSILIUM_DATA changed while it "
            "ran. Remove the run directory, and run again."
        )
    return kinds.pop()


class _Builder:
    """Rows and comparisons from cells; holds the tables by (method, pattern) and seed."""

    def __init__(
        self, benchmark: Benchmark, cells: Sequence[Cell], seeds: Sequence[int], folds: Sequence[int], variant: str | None
    ) -> None:
        self.benchmark, self.cells, self.variant = benchmark, cells, variant
        done = {method: {(c.seed, c.fold) for c in cells if c.method == method} for method in benchmark.methods}
        self.complete = {m: [s for s in seeds if all((s, f) in d for f in folds)] for m, d in done.items()}
        self.outputs: tuple[str, ...] = ()
        self.tables = self._tables()

    def _tables(self) -> dict[tuple[str, str], dict[int, _Table]]:
        """Returns (method or unimodal teacher, pattern) -> seed -> table, in the order of the methods."""
        tables: dict[tuple[str, str], dict[int, _Table]] = {}
        for method in self.benchmark.methods:
            frames = [c.predictions.assign(seed=c.seed, fold=c.fold) for c in self.cells if c.method == method]
            if not frames:
                continue
            frame = pd.concat(frames, ignore_index=True)
            frame = spoken(method, frame)
            self.outputs = self.outputs or tuple(sorted(frame["output"].unique()))
            for (model, pattern, seed), part in frame.groupby(["model", "pattern", "seed"], sort=True):
                tables.setdefault((str(model), str(pattern)), {})[int(str(seed))] = self._table(method, part)
        if self.benchmark.task_type == "segmentation":  # the figures of a scan can be averaged, probabilities cannot
            for model in {model for model, _ in tables}:
                if mean := self._mean_of_patterns({p: t for (m, p), t in tables.items() if m == model and p != ALL}):
                    tables[model, MEAN_OF_PATTERNS] = mean
        return dict(sorted(tables.items(), key=lambda item: (self._rank(item[0][0]), item[0][0], item[0][1].count("+"))))

    def _mean_of_patterns(self, found: Mapping[str, Mapping[int, _Table]]) -> dict[int, _Table]:
        """Returns seed -> what the scans have on average of all patterns; nothing if a pattern or a scan of one is missing."""
        if len(found) < max(2, 2 ** len(self.benchmark.modalities) - 1):
            return {}
        means = {}
        for seed in set.intersection(*(set(by_seed) for by_seed in found.values())):
            tables = [by_seed[seed] for by_seed in found.values()]
            if all(t.keys.equals(tables[0].keys) for t in tables):
                means[seed] = replace(tables[0], scores=np.mean([t.scores for t in tables], axis=0))
        return means

    def _table(self, method: str, part: pd.DataFrame) -> _Table:
        part = part.sort_values([*KEYS, "output"])
        shape = (-1, len(self.outputs))
        if len(part) % shape[1] or (part["output"].to_numpy().reshape(shape) != np.array(self.outputs)).any():
            raise ConsiliumError(
                f"Method '{method}' does not predict every output ({', '.join(self.outputs)}) for every test row."
            )
        first = part.iloc[:: len(self.outputs)]
        scores, labels = (part[name].to_numpy(np.float64).reshape(shape) for name in ("score", "label"))
        return _Table(pd.MultiIndex.from_frame(first[KEYS]), first["patient"].to_numpy(str), scores, labels)

    def _rank(self, method: str) -> int:
        known = self.benchmark.methods
        return known.index(method) if method in known else len(known)

    def _pooled(self, method: str, pattern: str) -> dict[int, _Table]:
        """Returns the tables of the seeds of which every fold is there."""
        complete = self.complete.get(TEACHERS if method.startswith(TEACHER) else method, [])
        return {s: t for s, t in self.tables.get((method, pattern), {}).items() if s in complete}

    def rows(self) -> list[Row]:
        """Returns pooled rows with intervals, then rows per output, fold and site without (but for ``Benchmark.apart``)."""
        rows: list[Row] = []
        for method, pattern in self.tables:
            pooled = list(self._pooled(method, pattern).values())
            rows += self._rows(method, pattern, pooled, with_intervals=True)
            tables = list(self.tables[method, pattern].values())
            for fold in sorted({int(f) for t in tables for f in t.keys.get_level_values("fold")}):
                rows += self._rows(method, pattern, _where(tables, "fold", fold), fold=fold)
            if pattern == ALL:
                for site in sorted({str(s) for t in pooled for s in t.keys.get_level_values("site")}):
                    apart = site in self.benchmark.apart
                    rows += self._rows(method, pattern, _where(pooled, "site", site), site=site, with_intervals=apart)
        return rows

    def _rows(
        self,
        method: str,
        pattern: str,
        tables: Sequence[_Table],
        *,
        site: str | None = None,
        fold: int | None = None,
        with_intervals: bool = False,
    ) -> list[Row]:
        """Returns the rows of one group of predictions, one table per seed; none where a seed's metric is undefined."""
        task_type = self.benchmark.task_type
        found = [metrics(task_type, t.scores, t.labels) for t in tables]
        defined = [m for m in (found[0] if found else {}) if all(m in f for f in found)]
        wanted = [m for m in defined if m.split(":")[0] in self.benchmark.metrics and (with_intervals or ":" not in m)]
        rows: list[Row] = []
        for name in sorted(wanted, key=lambda m: (":" in m, self.benchmark.metrics.index(m.split(":")[0]))):
            metric, _, output = name.partition(":")
            values = np.array([f[name] for f in found])
            bounds = interval([t.sample() for t in tables], metric, task_type) if with_intervals and not output else None
            rows.append(
                Row(
                    method=method,
                    variant=self.variant,
                    pattern=pattern,
                    split="test",
                    site=site,
                    fold=fold,
                    output=self.outputs[int(output)].removesuffix(f":{metric}") if output else None,
                    metric=metric,
                    mean=float(values.mean()),
                    sd=float(values.std(ddof=1)) if len(values) > 1 else None,
                    ci95=(bounds.low, bounds.high) if bounds else None,
                    n=len(tables[0].keys),
                    parameters=self._parameters(method),
                    bytes_per_site=self._bytes(method, site, fold),
                    published=None,
                )
            )
        return rows

    def _parameters(self, method: str) -> int | None:
        counts = [c.parameters for c in self.cells if c.method == method and c.parameters is not None]
        return round(np.mean(counts)) if counts else None

    def _bytes(self, method: str, site: str | None, fold: int | None) -> float | None:
        """Returns the mean over sites, and over cells, of the bytes that a site sent and received."""
        cells = [c for c in self.cells if c.method == method and fold in (None, c.fold)]
        moved = [b for c in cells for s, b in c.bytes_per_site.items() if site in (None, s)]
        return float(np.mean(moved)) if moved else None

    def comparisons(self) -> list[Comparison]:
        """Returns our student against every other method, and for every pattern against the best unimodal teacher of it.

        Of a segmentation the mean of all patterns is compared too, where both have been tested with every one.
        """
        found: list[Comparison] = []
        for other in dict.fromkeys(method for method, _ in self.tables if method != OURS):
            lone = other.removeprefix(TEACHER).split("/")[0] if other.startswith(TEACHER) else ALL
            lone = pattern_name(self.benchmark.modalities) if lone == COMPLETE else lone
            found += self._compare(ALL, other, lone)
            found += self._compare(MEAN_OF_PATTERNS, other, MEAN_OF_PATTERNS)
        for pattern in dict.fromkeys(pattern for method, pattern in self.tables if method == OURS and pattern != ALL):
            teachers = {m: f"{TEACHER}{m}" for m in pattern.split("+") if self._paired(pattern, f"{TEACHER}{m}", m)}
            if teachers:
                best = max(teachers, key=lambda m: self._score(pattern, teachers[m], m))
                found += self._compare(pattern, teachers[best], best)
        return found

    def by_pattern(self) -> list[Comparison]:
        """Returns our student against every method, and ablations against each other, on every pattern, in the main metric."""
        metric = self.benchmark.metrics[:1]
        others = [
            (method, pattern) for method, pattern in self.tables if method != OURS and pattern not in (ALL, MEAN_OF_PATTERNS)
        ]
        found = [c for method, pattern in others for c in self._compare(pattern, method, pattern, metric)]
        named = [(a.name, a.against) for a in self.benchmark.ablations if a.against in self.complete and a.name in self.complete]
        pairs = [(a, b, pattern) for a, b in named for method, pattern in self.tables if method == a]
        return found + [c for a, b, pattern in pairs for c in self._compare(pattern, str(b), pattern, metric, ours=a)]

    def _paired(self, pattern: str, other: str, other_pattern: str, ours: str = OURS) -> list[tuple[_Table, _Table]]:
        """Returns per common seed the rows that our method (on ``pattern``) and the other (on its own) both predict."""
        mine, theirs = self._pooled(ours, pattern), self._pooled(other, other_pattern)
        pairs = []
        for seed in sorted(mine.keys() & theirs.keys()):
            a, b = mine[seed], theirs[seed]
            common = a.keys.intersection(b.keys).sort_values()
            if len(common):
                pairs.append((a.take(a.keys.get_indexer(common)), b.take(b.keys.get_indexer(common))))
        return pairs

    def _score(self, pattern: str, teacher: str, modality: str) -> float:
        """Returns the main metric of a unimodal teacher on the patients of a pattern, averaged over seeds, more being better."""
        main, task_type = self.benchmark.metrics[0], self.benchmark.task_type
        found = [metrics(task_type, t.scores, t.labels) for _, t in self._paired(pattern, teacher, modality)]
        sign = -1 if main in LOWER_IS_BETTER else 1
        return float(np.mean([sign * f.get(main, -sign * np.inf) for f in found]))

    def _compare(
        self, pattern: str, other: str, other_pattern: str, wanted: Sequence[str] | None = None, ours: str = OURS
    ) -> list[Comparison]:
        """Returns the paired differences in some metrics, in all of the benchmark by default."""
        pairs = self._paired(pattern, other, other_pattern, ours)
        if not pairs:
            return []
        a, b = [p[0].sample() for p in pairs], [p[1].sample() for p in pairs]
        found = {m: paired_difference(a, b, m, self.benchmark.task_type) for m in wanted or self.benchmark.metrics}
        return [
            Comparison(
                a=ours,
                b=other,
                variant=self.variant,
                pattern=pattern,
                split="test",
                output=None,
                metric=metric,
                difference=bounds.estimate,
                ci95=(bounds.low, bounds.high),
            )
            for metric, bounds in found.items()
            if bounds
        ]


def spoken(method: str, predictions: pd.DataFrame) -> pd.DataFrame:
    """Returns what a method itself says of what its cells hold.

    That is the network, by the method's name; of ``teachers`` the consilium by that name, and every single teacher. Its cells
    hold a student too, whom nobody has taught.
    """
    model = predictions["model"]
    if method == TEACHERS:
        return predictions[(model == TEACHERS) | model.str.startswith(TEACHER)]
    return predictions[model == OURS].assign(model=method)


def _where(tables: Sequence[_Table], key: str, value: object) -> list[_Table]:
    """Returns the tables of the seeds that hold such rows, with these rows only."""
    taken = [t.take(np.flatnonzero(t.keys.get_level_values(key) == value)) for t in tables]
    return [t for t in taken if len(t.keys)]


def published_rows(benchmark: Benchmark, variant: str | None) -> list[Row]:
    """Returns the figures of others as rows."""
    return [
        Row(
            method=p.method,
            variant=variant,
            pattern=p.pattern,
            split="test",
            site=None,
            fold=None,
            output=p.output,
            metric=p.metric,
            mean=p.value,
            sd=None,
            ci95=None,
            n=p.n,
            parameters=None,
            bytes_per_site=None,
            published=f"{p.mark}: {p.source}",
        )
        for p in benchmark.published
        if p.variant == variant
    ]


def _checksum(prepared: Sequence[Mapping[str, Any]]) -> str:
    """Returns the checksum of the data; one over all of them if folds or seeds have their own."""
    sums = sorted({str(p["data_checksum"]) for p in prepared})
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _counts(prepared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the test rows of all folds together (every row is tested once), and the counts of every fold."""
    tests = [p["n"].get("test", {}) for p in prepared]
    return {
        "test": {what: sum(t.get(what, 0) for t in tests) for what in dict.fromkeys(w for t in tests for w in t)},
        "folds": [dict(p["n"]) for p in prepared],
    }

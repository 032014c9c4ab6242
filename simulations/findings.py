"""What a run found, in words: against whom the student is resolved better or worse, and what every ablated factor is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.evaluation.intervals import Interval
from common.evaluation.results import Comparison, Results
from simulations.ablations import MAIN
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Benchmark
from simulations.scores import ALL
from simulations.tables import NAMES, bounds_of, lone_teachers, pooled, verdict

Effect = Literal["helps", "hurts", "not resolved"]
EFFECTS: Mapping[str, Effect] = {"better": "helps", "worse": "hurts", "not resolved": "not resolved"}
MOST_NAMED = 3


@dataclass(frozen=True)
class AblationFinding:
    """One line of an ablation table.

    Attributes:
        factor: What is varied; empty for the main setting itself.
        setting: How it is set.
        mean: Metric on every test visit with what it has, mean over the seeds; None if cells are missing.
        sd: Its standard deviation over the seeds.
        difference: Main setting minus this one, on the same patients.
        effect: What the main setting's choice does.
        parameters: Parameters of the student.
        combinations: Effect -> combinations of modalities on which the main setting's choice has it.
    """

    factor: str
    setting: str
    mean: float | None
    sd: float | None
    difference: Interval | None
    effect: Effect | None
    parameters: int | None
    combinations: Mapping[Effect, tuple[str, ...]]

    @property
    def elsewhere(self) -> str:
        """What is resolved on single combinations of modalities, in words; many are counted."""
        resolved = {e: p for e, p in self.combinations.items() if p and e != "not resolved"}
        every = sum(map(len, self.combinations.values()))
        said = {e: ", ".join(p) if len(p) <= MOST_NAMED else f"{len(p)} of {every}" for e, p in resolved.items()}
        return "; ".join(f"{e} on {names}" for e, names in said.items()) or "-"


def effect(comparison: Comparison) -> Effect:
    """Returns what the main setting's choice does, by the comparison of the main setting with another."""
    return EFFECTS[verdict(comparison)]


def is_ablation(results: Results) -> bool:
    """Returns whether results are those of an ablation."""
    return bool(results.environment.get("ablations"))


def is_whole(results: Results, benchmark: Benchmark) -> bool:
    """Returns whether results are of every method and seed of a benchmark, and of whole training."""
    methods = {row.method for row in results.rows if row.published is None}
    asked = set(benchmark.methods) <= methods and set(range(benchmark.seeds)) <= set(results.seeds)
    return asked and not results.environment.get("debug") and not is_ablation(results)


def against_all(results: Results, metric: str) -> list[Comparison]:
    """Returns the comparisons of the student with every method on what each visit has.

    Args:
        results: Of the methods of a benchmark.
        metric: Name of the metric.
    """
    return [c for c in _of_the_whole(results, metric) if c.pattern == ALL]


def with_fewer(results: Results, metric: str) -> list[Comparison]:
    """Returns the comparisons of the student with the best teacher of one modality, where both are given certain modalities.

    Args:
        results: Of the methods of a benchmark.
        metric: Name of the metric.
    """
    return [c for c in _of_the_whole(results, metric) if c.pattern not in (ALL, MEAN_OF_PATTERNS)]


def on_average(results: Results, metric: str) -> list[Comparison]:
    """Returns the comparisons of the student with every method on the mean of all patterns, if the benchmark tells that.

    Args:
        results: Of the methods of a benchmark.
        metric: Name of the metric.
    """
    return [c for c in _of_the_whole(results, metric) if c.pattern == MEAN_OF_PATTERNS]


def _of_the_whole(results: Results, metric: str) -> list[Comparison]:
    lone = lone_teachers(c.b for c in results.comparisons)
    return [c for c in results.comparisons if (c.metric, c.output) == (metric, None) and c.b not in lone]


def method_sentences(results: Results, metric: str) -> list[str]:
    """Returns in words against whom the student is resolved better or worse; nothing if it is compared with nobody.

    Args:
        results: Of the methods of a benchmark.
        metric: Name of the metric.
    """
    patterns, sentences, name = with_fewer(results, metric), [], NAMES.get(metric, metric)
    for compared, where in ((against_all(results, metric), ""), (on_average(results, metric), f", {MEAN_OF_PATTERNS},")):
        for found, words in (("better", "better than"), ("worse", "worse than"), ("not resolved", "not to be told from")):
            methods = [f"`{c.b}`" for c in compared if verdict(c) == found]
            if methods or (compared and found == "worse"):
                sentences.append(f"In {name}{where} the student is {words} {', '.join(methods) or 'none of them'}.")
    for found in ("better", "worse"):
        given = [c.pattern for c in patterns if verdict(c) == found]
        if given:
            sentences.append(f"It is {found} than the best teacher of one modality when given {'; '.join(given)}.")
    return sentences


def findings(results: Results, metric: str) -> list[AblationFinding]:
    """Returns the lines of an ablation table: the main setting, then the others by factor.

    Args:
        results: Of an ablation.
        metric: Name of the metric.
    """
    main = {"name": MAIN, "factor": "", "setting": "main setting"}
    return [_finding(results, told, metric) for told in (main, *results.environment["ablations"])]


def rivals(results: Results, metric: str) -> list[tuple[str, str, Comparison]]:
    """Returns the comparisons of two other settings with each other, with both in words: ``a`` minus ``b``.

    Args:
        results: Of an ablation.
        metric: Name of the metric.
    """
    said = {told["name"]: told["setting"] for told in results.environment["ablations"]}
    found = [c for c in results.comparisons if c.a in said and c.b in said and (c.metric, c.output) == (metric, None)]
    return [(said[c.a], said[c.b], c) for c in found]


def _finding(results: Results, told: Mapping[str, Any], metric: str) -> AblationFinding:
    own = next((r for r in pooled(results) if (r.method, r.metric, r.pattern) == (told["name"], metric, ALL)), None)
    wanted = (MAIN, told["name"], metric, None)
    against = {c.pattern: c for c in results.comparisons if (c.a, c.b, c.metric, c.output) == wanted}
    whole = against.pop(ALL, None)
    return AblationFinding(
        factor=told["factor"],
        setting=told["setting"],
        mean=own.mean if own else None,
        sd=own.sd if own else None,
        difference=bounds_of(whole) if whole else None,
        effect=effect(whole) if whole else None,
        parameters=own.parameters if own else None,
        combinations={e: tuple(p for p, c in against.items() if effect(c) == e) for e in EFFECTS.values()},
    )

"""``docs/results.md`` from the results kept under ``docs/results/``: every table and every sentence follows by rule.

A kept file is the ``results.json`` of a finished run without what the document does not show: rows of single sites, folds and,
except for regions, outputs, and the modality weights before the last update.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from common.arrays import write_atomically, write_json
from common.errors import ConsiliumError
from common.evaluation.metrics import LOWER_IS_BETTER, REGION_METRICS
from common.evaluation.results import Comparison, Results, Row, load_results
from simulations.ablations import MAIN
from simulations.bench import results_of
from simulations.benchmarks.base import CUSTOM, MEAN_OF_PATTERNS, benchmarks
from simulations.findings import (
    AblationFinding,
    Effect,
    against_all,
    findings,
    is_ablation,
    is_whole,
    method_sentences,
    on_average,
    rivals,
    with_fewer,
)
from simulations.scores import ALL, published_rows
from simulations.tables import (
    EQUAL,
    NAMES,
    bounds_of,
    count,
    difference,
    figure,
    given,
    link_to,
    main_metrics,
    markdown_table,
    method_lines,
    pooled,
    sites_apart,
    spread,
    verdict,
)

MACHINE = ("platform", "cpus")
ABLATION_SEEDS = 3
ASKED_FOR = ("fedavg", "central", "student-no-kd", "student-uniform", "teachers")
VERSIONS = ("flwr", "torch", "scikit-learn")
HEAD = """# Results

Written by `consilium-bench report` from the files in `docs/results/`, which it keeps from finished runs; not by hand.

Metrics are means over seeds ± their standard deviation, with 95 % intervals from resampled patients. A difference is paired: both
methods on the same test patients. It is *resolved* if its interval excludes 0; what is not resolved may be small, or too few
patients may have been tested. Intervals hold the chance of who was tested; that of training is told by the spread over seeds
alone. No interval is corrected for the number of comparisons.

An ablation changes one factor of the main setting at a time; *helps* means that the main setting's choice is resolved better.
*Distillation: off* takes all its terms away, pairs too, and lets labels weigh 1; its other settings were chosen with teachers.
*One loss, no teachers* changes several at once: late fusion, equal weights, labels alone, no dropout, no losses of single heads.
*Student reads steps, columns and words* changes its encoders and the fusion.
These are test patients: a setting that is better here was not chosen for it, and choosing it now would be choosing on them.
"""
WORDS: dict[Effect, tuple[str, str]] = {
    "helps": ("What helps", "the main setting is better than"),
    "hurts": ("What hurts", "the main setting is worse than"),
    "not resolved": ("What does not help, as far as these patients can tell", "no difference is resolved from"),
}


WORTH = (
    "The main setting minus another one that differs in what the row names, on all test patients with what they have; *helps*: "
    "the main setting's choice is resolved better. Only settings that two benchmarks tried, or that are resolved better than the "
    "main one; all of them, with parameters and by combination of modalities, stand further down."
)


def keep(run: Path, docs: Path) -> Path:
    """Keeps the results of a finished run, in place of those of an earlier one of the same benchmark and variant.

    Args:
        run: Run directory.
        docs: Folder of the documentation.

    Returns:
        ``docs/results/NAME.json``; the name has the variant in it, and ``-ablation`` for an ablation, with the factors if it is
        of some only. Beside it lies the run's figure of all combinations of modalities, ``NAME.png``.

    Raises:
        ConsiliumError: If there are no results of a benchmark, cells, methods or seeds are missing, training was cut short, an
            older version made them, or they are of generated patients and would replace those of real ones.
    """
    results = results_of(run)
    about = results.environment
    if results.benchmark == CUSTOM:
        raise ConsiliumError(f"{run} is a run on your own data: they have no place in this project's documentation.")
    if about.get("debug"):
        raise ConsiliumError(f"{run} is a debug run: its numbers say nothing about the methods. Run without --debug.")
    if about.get("missing"):
        raise ConsiliumError(f"{run} lacks {len(about['missing'])} cell(s). Run the same command again; it resumes.")
    if "command" not in about:
        raise ConsiliumError(f"{run} was made by an older version, which did not record its command. Run the benchmark again.")
    file = docs / "results" / f"{_name(results)}.json"
    benchmark = benchmarks().get(results.benchmark)
    if benchmark and is_ablation(results) and len(results.seeds) < ABLATION_SEEDS:
        raise ConsiliumError(
            f"{run} is an ablation of {len(results.seeds)} seed(s); those that are kept have {ABLATION_SEEDS} at least. Run it "
            "again without --seeds."
        )
    if benchmark and not is_ablation(results) and not is_whole(results, benchmark):
        raise ConsiliumError(
            f"{run} is of some methods or seeds of '{results.benchmark}' only: it would take the place of whole results. Run the "
            "benchmark without --only and --seeds."
        )
    if results.data == "generated" and file.is_file() and load_results(file).data == "real":
        raise ConsiliumError(f"{run} is of generated patients: it would take the place of results on real ones, {file.name}.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, _shown(results).model_dump(mode="json"))
    drawn, picture = run / "figures" / f"patterns-{main_metrics(results, 1)[0]}.png", file.with_suffix(".png")
    if drawn.is_file():
        shutil.copy(drawn, picture)
    else:
        picture.unlink(missing_ok=True)  # an earlier run's
    return file


def write(docs: Path) -> Path:
    """Writes ``docs/results.md`` from everything kept.

    Raises:
        ConsiliumError: If there is no such folder, or a kept file does not fit the schema.
    """
    if not docs.is_dir():
        raise ConsiliumError(f"There is no folder {docs.resolve()}. Run in the checkout of the project, or name one with --docs.")
    file = docs / "results.md"
    write_atomically(file, render(docs).encode())
    return file


def render(docs: Path) -> str:
    """Returns the text of ``results.md``: benchmarks on real patients first, each with its ablation behind it."""
    kept = [_as_told_now(load_results(file)) for file in sorted((docs / "results").glob("*.json"))]
    order = sorted(kept, key=lambda r: (r.data == "generated", r.benchmark, _variant(r), is_ablation(r), _some_factors(r)))
    if not order:
        return f"{HEAD}\nNo run is kept yet.\n"
    body = "\n".join([_overview(order), _worth(order), *(_section(r, docs) for r in order)])
    contents = "".join(f"- {link_to(heading)}\n" for heading in re.findall(r"^## (.*)$", body, flags=re.M))
    return "\n".join([HEAD, contents, body])


def _overview(kept: Sequence[Results]) -> str:
    """Returns the student against the methods that everybody asks for, on every benchmark kept."""
    lines = []
    for results in (r for r in kept if not is_ablation(r)):
        metric = main_metrics(results, 1)[0]
        whole = {c.b: c for c in results.comparisons if (c.a, c.metric, c.pattern, c.output) == (MAIN, metric, ALL, None)}
        own = next((r for r in pooled(results) if (r.method, r.metric, r.pattern) == (MAIN, metric, ALL)), None)
        if own is None:  # kept of a run of other methods only
            continue
        told = [f"{difference(bounds_of(whole[m]))} {verdict(whole[m])}" if m in whole else "-" for m in ASKED_FOR]
        lower = " (lower is better)" if metric in LOWER_IS_BETTER else ""
        lines.append([_named(results), f"{NAMES.get(metric, metric)}{lower}", spread(own.mean, own.sd), *told])
    head = ["benchmark", "metric", f"`{MAIN}`", *(f"against `{m}`" for m in ASKED_FOR)]
    return "## In one table\n\n" + markdown_table(head, lines) if lines else ""


def _worth(kept: Sequence[Results]) -> str:
    """Returns what the parts of the method are worth: settings that several benchmarks tried, or that are better on one."""
    names: list[str] = []
    benchmark_of: dict[str, str] = {}
    said: dict[str, dict[str, str]] = {}
    for results in (r for r in kept if is_ablation(r)):
        metric = main_metrics(results, 1)[0]
        lower = " (lower is better)" if metric in LOWER_IS_BETTER else ""
        name = f"{_named(results)}, {NAMES.get(metric, metric)}{lower}"
        names += [name] if name not in names else []
        benchmark_of[name] = results.benchmark
        for told, found in zip(results.environment["ablations"], findings(results, metric)[1:], strict=True):
            setting = found.setting if told["reference"] is None else found.setting.split(",")[0]  # its size is the benchmark's
            if found.difference:
                worth = f"{difference(found.difference)} {found.effect}"
                cells = said.setdefault(f"{found.factor}: {setting}", {})
                cells[name] = worth if found.effect == "not resolved" else f"**{worth}**"
    told_of = {
        s: cells
        for s, cells in said.items()
        if len({benchmark_of[n] for n in cells}) > 1 or any("hurts" in worth for worth in cells.values())
    }
    rows = [[s, *(cells.get(n, "-") for n in names)] for s, cells in told_of.items()]
    if not rows:
        return ""
    return f"## What the parts are worth\n\n{WORTH}\n\n{markdown_table(['other setting', *names], rows)}"


def _named(results: Results) -> str:
    name = "-".join(filter(None, (results.benchmark, _variant(results))))
    return f"`{name}`{' (generated)' if results.data == 'generated' else ''}"


def _as_told_now(results: Results) -> Results:
    """Returns results with the figures of others as their benchmark tells them now: a source may be corrected after a run."""
    benchmark = benchmarks().get(results.benchmark)
    if benchmark is None or is_ablation(results):
        return results
    ours = [r for r in results.rows if r.published is None]
    return results.model_copy(update={"rows": [*ours, *published_rows(benchmark, _variant(results) or None)]})


def _shown(results: Results) -> Results:
    """Returns results without what the document does not show."""
    main = main_metrics(results, 1)
    whole = (ALL, MEAN_OF_PATTERNS)
    rows = [r for r in pooled(results) if r.pattern in whole or r.published or (r.metric in main and not is_ablation(results))]
    rows += [r for r in results.rows if r.site in sites_apart(results) and r.output is None and not is_ablation(results)]
    rows += [r for r in [*_beside_published(results), *_of_regions(results)] if r not in rows]
    last = {(w.seed, w.fold, w.output, w.modality): w for w in results.weights if w.method == MAIN}
    environment = {k: v for k, v in results.environment.items() if k not in MACHINE}
    return results.model_copy(update={"rows": rows, "weights": list(last.values()), "environment": environment})


def _beside_published(results: Results) -> list[Row]:
    """Returns the rows that published figures of the same metric and output stand beside, on every combination of modalities."""
    told = [r for r in results.rows if r.published]
    metrics, outputs = {r.metric for r in told}, {r.output for r in told}
    whole = [r for r in results.rows if r.site is None and r.fold is None]
    return [r for r in whole if r.metric in metrics and r.output in outputs]


def _of_regions(results: Results) -> list[Row]:
    """Returns the rows of single regions of a segmentation, in the main metric, on what each visit has."""
    main = main_metrics(results, 1)[0]
    whole = [r for r in results.rows if r.site is None and r.fold is None and r.output and not r.published]
    return [r for r in whole if main in REGION_METRICS and (r.metric, r.pattern) == (main, ALL)]


def _name(results: Results) -> str:
    """Returns the name of a kept file without its suffix: long ablations are run, and kept, by factors."""
    factors = ["ablation", *re.findall("[a-z0-9]+", _some_factors(results).lower())] if is_ablation(results) else []
    return "-".join(filter(None, [results.benchmark, _variant(results), *factors]))


def _some_factors(results: Results) -> str:
    """Returns the factors of an ablation that was asked for some only; empty for others."""
    factors = dict.fromkeys(told["factor"] for told in results.environment.get("ablations", ()))
    return ", ".join(factors) if "--only" in shlex.split(results.environment["command"]) else ""


def _variant(results: Results) -> str:
    return next((r.variant for r in results.rows if r.variant), "")


def _section(results: Results, docs: Path) -> str:
    """Returns what one kept run found, with its figure if there is one."""
    variant = f", variant `{_variant(results)}`" if _variant(results) else ""
    about = results.environment
    some = _some_factors(results)
    kind = "methods" if not is_ablation(results) else f"ablation of {some}" if some else "ablation"
    body = _ablation(results) if is_ablation(results) else _methods(results)
    drawn = f"results/{_name(results)}.png"
    picture = [f"![By method and combination of modalities]({drawn})\n"] if (docs / drawn).is_file() else []
    return "\n".join([f"## `{results.benchmark}`{variant}: {kind}\n", f"{about['title']}.\n", _facts(results), *picture, *body])


def _facts(results: Results) -> str:
    """Returns which data, how many patients and which code stand behind the tables."""
    about = results.environment
    kind = "**Generated, no real patients: not to be compared with published figures.** " if results.data == "generated" else ""
    packages = ", ".join(f"{p} {about['packages'].get(p)}" for p in VERSIONS)
    commit, dirty, _ = (about["git_commit"] or "").partition("-")
    version = f"commit `{commit[:12]}{dirty and '-dirty'}`, " if commit else ""
    facts = [f"- Data: {kind}{about['data_version']}, checksum `{results.data_checksum[:12]}`"]
    counts = {"tested": results.n["test"]} if results.n["test"] else results.n["folds"][0]
    facts += [f"- {role.capitalize()}: {_counts(said)}" for role, said in counts.items()]
    if results.exclusions:
        facts.append("- Left out: " + "; ".join(f"{n:,} {reason}" for reason, n in results.exclusions.items()))
    facts.append(f"- Seeds: {', '.join(map(str, results.seeds))}; folds: {len(results.n['folds'])}; runtime: {about['runtime']}")
    if seconds := about.get("seconds"):
        facts.append(f"- Time: {seconds / 60:,.0f} minutes, all cells one after the other")
    facts.append(f"- Version: {version}code `{about['code']}`; Python {about['python']}, {packages}")
    facts.append(f"- Again: `{about['command']}`\n")
    return "\n".join(facts)


def _counts(said: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in said.items())


def _methods(results: Results) -> list[str]:
    """Returns the table of methods, the student on every combination of modalities, and both in words."""
    metrics = main_metrics(results)
    main = NAMES.get(metrics[0], metrics[0])
    whole, mean = ({c.b: c for c in told(results, metrics[0])} for told in (against_all, on_average))
    rows = []
    for line in method_lines(results):
        of_line = mean if line.pattern == MEAN_OF_PATTERNS else whole
        against = None if line.first.published else of_line.get(line.method)
        told = f"{difference(bounds_of(against))} {verdict(against)}" if against else "-"
        size = "-" if line.first.bytes_per_site is None else f"{line.first.bytes_per_site / 1e6:,.1f}"
        scores = (figure(line.rows.get(m)) for m in metrics)
        rows.append(
            [
                f"`{line.method}`" if line.first.published is None else line.method,
                given(line.pattern),
                count(line.first.n),
                *scores,
            ]
            + [count(line.first.parameters), size, line.first.published or "this run", told]
        )
    head = ["method", "given", "n", *(NAMES.get(m, m) for m in metrics), "parameters", "MB per site", "evidence"]
    parts = [markdown_table([*head, f"`{MAIN}` against it, {main}"], rows)]
    benchmark = benchmarks().get(results.benchmark)
    if benchmark and benchmark.comparable and results.data == "real" and any(r.published for r in results.rows):
        parts += [f"On published figures: {benchmark.comparable}\n"]
    if regions := _of_regions(results):
        told_of = {(r.method, r.output): r for r in regions}
        methods, outputs = (list(dict.fromkeys(key)) for key in zip(*told_of, strict=True))
        by_region = [[f"`{m}`", *(figure(told_of.get((m, o))) for o in outputs)] for m in methods]
        parts += [f"{main} by region:\n", markdown_table(["method", *map(str, outputs)], by_region)]
    for site in sites_apart(results):
        apart = [
            [line.method, count(line.first.n), *(figure(line.rows.get(m)) for m in metrics)]
            for line in method_lines(results, site)
        ]
        parts += [f"On `{site}` alone:\n", markdown_table(["method", "n", *(NAMES.get(m, m) for m in metrics)], apart)]
    if patterns := with_fewer(results, metrics[0]):
        lines = [[c.pattern, _mean(results, c), f"`{c.b}`", difference(bounds_of(c)), verdict(c)] for c in patterns]
        parts += ["With fewer modalities, against the best teacher of one of them:\n"]
        parts += [markdown_table(["given", f"`{MAIN}`, {main}", "teacher", "difference", "verdict"], lines)]
    parts += [f"- {line}" for line in method_sentences(results, metrics[0])]
    for metric in main_metrics(results, len(NAMES))[1:]:
        others = [f"`{c.b}` {difference(bounds_of(c))} {verdict(c)}" for c in against_all(results, metric)]
        parts += [f"- In {NAMES.get(metric, metric)}, the student minus each: {'; '.join(others)}."] if others else []
    return [*parts, *_weights(results), ""]


def _mean(results: Results, comparison: Comparison) -> str:
    wanted = (comparison.a, comparison.pattern, comparison.metric)
    row = next((r for r in pooled(results) if (r.method, r.pattern, r.metric) == wanted), None)
    return spread(row.mean, row.sd) if row else "-"


def _weights(results: Results) -> list[str]:
    """Returns the student's modality weights at the end of the runs, in words."""
    frame = pd.DataFrame([dict(w) for w in results.weights if w.method == MAIN])
    if frame.empty:
        return []
    said = []
    for output, part in frame.fillna({"output": ""}).groupby("output"):
        mean = part.groupby("modality")["value"].mean().sort_values(ascending=False, kind="stable")
        of = f" for `{output!s}`" if output else ""
        said.append(
            f"- Its modality weights{of} in the end, mean over cells: {', '.join(f'{m} {v:.2f}' for m, v in mean.items())}."
        )
    if frame["modality"].nunique() > 1:
        spreads = frame.groupby(["seed", "fold"])["value"].agg(lambda values: values.max() - values.min())
        differ = int((spreads > EQUAL).sum())
        said.append(
            f"- Learned weights were kept in {differ} of {len(spreads)} cells (a seed and a fold each), equal ones in the others."
        )
    return said


def _ablation(results: Results) -> list[str]:
    """Returns the table of an ablation, and in words what helps, what hurts and what does not help."""
    metric = main_metrics(results, 1)[0]
    name, found = NAMES.get(metric, metric), findings(results, metric)
    rows = [
        [f.factor, f.setting, spread(f.mean, f.sd), difference(f.difference), f.effect or "-", count(f.parameters), f.elsewhere]
        for f in found
    ]
    head = ["factor", "setting", name, "main setting minus it", "main setting", "parameters", "by combination of modalities"]
    parts = [markdown_table(head, rows)]
    lines = [[a, b, given(c.pattern), difference(bounds_of(c)), verdict(c)] for a, b, c in rivals(results, metric)]
    if lines:
        parts += ["Two other settings, on the same patients:\n"]
        parts += [markdown_table(["setting", "against", "given", f"{name}, difference", "verdict"], lines)]
    for effect in WORDS:
        told = [f for f in found if f.effect == effect]
        parts += [f"{WORDS[effect][0]} (in {name}):\n", *(_ablation_sentence(f, effect) for f in told), ""] if told else []
    return parts


def _ablation_sentence(found: AblationFinding, effect: Effect) -> str:
    more = f" By combination it {found.elsewhere}." if found.elsewhere != "-" else ""
    return f"- **{found.factor}**: {WORDS[effect][1]} *{found.setting}*, {difference(found.difference)}.{more}"

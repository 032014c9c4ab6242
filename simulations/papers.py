"""The tables of the papers: our figures beside the published ones, each with how good the evidence is.

Of every benchmark and variant the newest results count: a finished run of all methods and seeds on this machine, else what
``docs/results/`` keeps. Runs that were cut short, or asked for less, never count. ``docs/benchmarks.md`` is written from what is
kept alone, so that anybody can write it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.arrays import write_atomically
from common.errors import ConsiliumError
from common.evaluation.results import FILE_NAME, Results, Row, load_results
from simulations import bench
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Benchmark, Published, benchmarks
from simulations.findings import is_ablation
from simulations.scores import ALL
from simulations.tables import NAMES, count, given, main_metrics, markdown_table, spread

PAPERS = {
    "metakd": ("MetaKD (arXiv 2405.07155)", ("metakd-", "brain-twin")),
    "mind": ("MIND (arXiv 2502.01158)", ("mind-",)),
    "pb": ("Pooled bottleneck fusion (doi 10.1016/j.cmpb.2024.108568)", ("pb-",)),
}
"""Name on the command line -> the paper, and how the names of its benchmarks begin."""
OURS = ("student", "teachers", "metakd-faithful", "central", "central-zero", "fedavg")
"""Our columns, where a run has them: the student, what it learns from, and what it is measured against."""
STATED = {"published": "stated"}
GENERATED, REAL, NONE = "measured on GENERATED data", "measured on real data", "not run"
SAID = "Our figures come from GENERATED data: they say nothing about the published ones."
MARKS = (
    "Marks: *stated*, read in the source itself; *second-hand*, told by a third party; *not found*, could not be read; "
    "*measured*, by this project; *inferred*, our conclusion from what is published. Ours: mean ± standard deviation over seeds."
)
HEAD = f"""# Benchmarks of the papers

Written by `consilium-bench report` from the files in `docs/results/`, as `consilium-bench table --paper NAME` prints it; not by
hand. {MARKS}
"""

Source = Callable[[Benchmark, str | None], Results | None]


class Key(NamedTuple):
    """What a line of a table is about: site of ``Benchmark.apart`` or None for all, combination of modalities, output, metric."""

    site: str | None
    pattern: str
    output: str | None
    metric: str


@dataclass(frozen=True)
class PaperTable:
    """The table of one benchmark.

    Attributes:
        name: Name of the benchmark.
        title: What it is about.
        head: Heads of the columns; those of others come first, ours after ``ours on``.
        rows: One line per variant, test site that is told apart, combination of modalities, output and metric.
        notes: Sentences: on comparability, on where the figures come from.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def kept_in(docs: Path) -> Source:
    """Returns where kept results are found: ``docs/results/``."""

    def find(benchmark: Benchmark, variant: str | None) -> Results | None:
        file = docs / "results" / f"{benchmark.name}{f'-{variant}' if variant else ''}.json"
        return load_results(file) if file.is_file() else None

    return find


def newest(docs: Path, out: Path | None = None) -> Source:
    """Returns where the newest results are found: finished runs of all that a benchmark asks for, else kept ones.

    Args:
        docs: Folder of the documentation.
        out: Folder of all runs; see :func:`simulations.bench.runs_root`.

    Raises:
        ConsiliumError: If the documentation keeps no results.
    """
    if not (docs / "results").is_dir():
        raise ConsiliumError(
            f"{docs.resolve()} keeps no results. Run in the checkout of the project, or name its docs with --docs."
        )
    kept = kept_in(docs)

    def find(benchmark: Benchmark, variant: str | None) -> Results | None:
        for folder in bench.finished_runs(benchmark.name, out):
            results = load_results(folder / FILE_NAME)
            theirs = next((r.variant for r in results.rows if r.variant), None)
            if theirs == variant and _is_whole(results, benchmark):
                return results
        return kept(benchmark, variant)

    return find


def _is_whole(results: Results, benchmark: Benchmark) -> bool:
    """Returns whether results are of every method and seed of a benchmark, and of whole training."""
    methods = {row.method for row in results.rows if row.published is None}
    asked = set(benchmark.methods) <= methods and set(range(benchmark.seeds)) <= set(results.seeds)
    return asked and not results.environment.get("debug") and not is_ablation(results)


def tables_of(paper: str, source: Source) -> list[PaperTable]:
    """Returns the tables of a paper, one per benchmark.

    Raises:
        ConsiliumError: If there is no such paper, or results do not fit the schema.
    """
    if paper not in PAPERS:
        raise ConsiliumError(f"There is no paper '{paper}'. Known: {', '.join(PAPERS)}")
    mine = [b for b in benchmarks().values() if b.name.startswith(PAPERS[paper][1])]
    return [table_of(b, {v: source(b, v) for v in b.variants}) for b in mine]


def table_of(benchmark: Benchmark, found: Mapping[str | None, Results | None]) -> PaperTable:
    """Returns the table of one benchmark.

    Args:
        benchmark: The benchmark.
        found: Variant -> our results; None if there are none.
    """
    others = list(dict.fromkeys(p.method for p in benchmark.published))
    rows = {variant: _rows(results, benchmark) for variant, results in found.items()}
    sites = {row.n: row.site for mine in rows.values() for row in mine.values() if row.site and row.n}
    ours = [m for m in OURS if any(method == m for mine in rows.values() for method, _ in mine)]
    by_variant = any(p.variant for p in benchmark.published) or any(v and results for v, results in found.items())
    by_output = any(p.output for p in benchmark.published)
    optional = ((by_variant, "variant"), (bool(sites), "tested on"), (True, "given"), (by_output, "output"), (True, "metric"))
    lines = []
    for variant, results in found.items():
        figures = {(p.method, _key_of(p, sites)): p for p in benchmark.published if p.variant == variant}
        mine = rows[variant]
        data = NONE if results is None else GENERATED if results.data == "generated" else REAL
        for key in _keys([k for _, k in figures], [k for _, k in mine], main_metrics(results, 1) if results else []):
            site, pattern, output, metric = key
            words = (variant or "main", site or "all", given(pattern), output or "all", NAMES.get(metric, metric))
            what = [word for word, (shown, _) in zip(words, optional, strict=True) if shown]
            theirs = [_theirs(figures.get((method, key))) for method in others]
            n = next((count(mine[m, key].n) for m in ours if (m, key) in mine), "-")
            lines.append((*what, *theirs, data, n, *(_ours(mine, m, key, benchmark) for m in ours)))
    head = (*(name for shown, name in optional if shown), *others, "ours on", "n", *ours)
    return PaperTable(benchmark.name, benchmark.title, head, tuple(lines), _notes(benchmark, found))


def _key_of(figure: Published, sites: Mapping[int, str]) -> Key:
    """Returns the line of a figure of others; one of as many rows as a site that is told apart stands on its line alone."""
    return Key(sites.get(figure.n) if figure.n else None, figure.pattern, figure.output, figure.metric)


def _rows(results: Results | None, benchmark: Benchmark) -> dict[tuple[str, Key], Row]:
    """Returns our rows over all folds, of all sites together and of those that are told apart."""
    shown = (None, *benchmark.apart)
    mine = [r for r in results.rows if r.site in shown and r.fold is None and r.published is None] if results else []
    return {(r.method, Key(r.site, r.pattern, r.output, r.metric)): r for r in mine}


def _keys(published: Iterable[Key], tested: Sequence[Key], main: Sequence[str]) -> list[Key]:
    """Returns the lines: what others report, and our main metric on everything and on every combination that was tested."""
    ours = [k for k in tested if k.metric in main and k.output is None]
    single = len({k.pattern for k in ours} - {ALL}) == 1  # then it is what each has
    keys = [*published, *(k for k in ours if k.pattern == ALL or not single)]
    order = {pattern: at for at, pattern in enumerate([ALL, MEAN_OF_PATTERNS])}
    return sorted(
        dict.fromkeys(keys), key=lambda k: (k.site or "", order.get(k.pattern, len(order)), k.pattern.count("+"), k.pattern)
    )


def _theirs(figure: Published | None) -> str:
    """Returns a figure of others with its mark; a dash where they are not said to report any."""
    if figure is None:
        return "-"
    mark = STATED.get(figure.mark, figure.mark)
    return mark if figure.value is None else f"{figure.value:.3f} ({mark})"


def _ours(rows: Mapping[tuple[str, Key], Row], method: str, key: Key, benchmark: Benchmark) -> str:
    """Returns our figure; a mean of all combinations only if every one of them was tested."""
    if (method, key) in rows:
        row = rows[method, key]
        return spread(row.mean, row.sd)
    if key.pattern != MEAN_OF_PATTERNS:
        return "-"
    parts = [r for (m, k), r in rows.items() if m == method and k._replace(pattern=key.pattern) == key and k.pattern != ALL]
    found = [r.mean for r in parts if r.mean is not None]
    every = 2 ** len(benchmark.modalities) - 1
    return spread(sum(found) / every, None) if len(found) == every else "-"


def _notes(benchmark: Benchmark, found: Mapping[str | None, Results | None]) -> tuple[str, ...]:
    """Returns sentences on comparability, and on where the figures come from."""
    notes = [SAID] if any(results and results.data == "generated" for results in found.values()) else []
    notes.append(f"Comparability: {benchmark.comparable or 'nothing is published that ours could stand beside.'}")
    sources = dict.fromkeys(f"{p.method}: {p.source}" for p in benchmark.published)
    notes += [f"Sources: {'; '.join(sources)}."] if sources else []
    command = f"consilium-bench run {benchmark.name}"
    for variant, results in found.items():
        if results is not None:
            about, name = results.environment, f"Ours, variant {variant}" if variant else "Ours"
            commit = f", commit {about['git_commit'][:12]}" if about.get("git_commit") else ""
            notes.append(f"{name}: {about.get('data_version')}; `{about.get('command', command)}`{commit}.")
    absent = [variant or "the main protocol" for variant, results in found.items() if results is None]
    how = f"`{command}`{'' if absent == ['the main protocol'] else ', with `--variant`'}"
    return (*notes, f"Not run yet: {', '.join(absent)} ({how}).") if absent else tuple(notes)


def print_paper(paper: str, source: Source, console: Console) -> None:
    """Prints the tables of a paper."""
    tables = tables_of(paper, source)
    console.print(f"\n[bold]{PAPERS[paper][0]}[/bold]\n{MARKS.replace('*', '')}")
    for told in tables:
        console.print(f"\n[italic]{escape(told.name)}: {escape(told.title)}[/italic]", highlight=False)
        table = Table()
        for name in told.head:
            table.add_column(escape(name), overflow="fold")
        for row in told.rows:
            table.add_row(*map(escape, row), style="red" if GENERATED in row else None)
        if told.rows:
            console.print(table)
        for note in told.notes:
            console.print(escape(note.replace("`", "")), highlight=False)


def render(docs: Path) -> str:
    """Returns the text of ``benchmarks.md``."""
    parts = [HEAD]
    for paper, (title, _) in PAPERS.items():
        parts.append(f"## {title}\n")
        for told in tables_of(paper, kept_in(docs)):
            parts += [f"### `{told.name}`\n", f"{told.title}.\n", markdown_table(told.head, told.rows) if told.rows else ""]
            parts += [*(f"- {note}" for note in told.notes), ""]
    return "\n".join(parts)


def write(docs: Path) -> Path:
    """Writes ``docs/benchmarks.md`` from everything kept.

    Raises:
        ConsiliumError: If a kept file does not fit the schema.
    """
    file = docs / "benchmarks.md"
    write_atomically(file, render(docs).encode())
    return file

"""The tables of the papers: our figures beside the published ones, each with how good the evidence is.

Of every benchmark and variant the newest results count: a finished run of all methods and seeds on this machine, else what
``docs/results/`` keeps. Runs that were cut short, or asked for less, never count. ``docs/benchmarks.md`` is written from what is
kept alone, so that anybody can write it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.arrays import write_atomically
from common.errors import ConsiliumError
from common.evaluation.results import FILE_NAME, Results, Row, load_results
from simulations import bench
from simulations.benchmarks.base import MEAN_OF_PATTERNS, Benchmark, Mark, Published, benchmarks
from simulations.findings import is_whole
from simulations.scores import ALL
from simulations.tables import NAMES, count, given, link_to, main_metrics, markdown_table, spread

PAPERS = {
    "metakd": ("MetaKD (arXiv 2405.07155)", ("metakd-", "brain-twin")),
    "mind": ("MIND (arXiv 2502.01158)", ("mind-",)),
    "pb": ("Pooled bottleneck fusion (doi 10.1016/j.cmpb.2024.108568)", ("pb-",)),
}
"""Name on the command line -> the paper, and how the names of its benchmarks begin."""
OURS = ("student", "teachers", "metakd-faithful", "central-kd", "central", "central-zero", "fedavg")
"""Our methods, where a run has them: the student, what it learns from, and what it is measured against, a paper's own too."""
COLUMNS = 6
"""Columns of figures in one table of the document; a terminal has as many as fit it."""
WIDTH, METHOD, GAP = len("0.123 ± 0.123"), len("metakd-faithful"), 2
BESIDE = METHOD + len("second-hand") + len("10,000") + 3 * GAP
STATED = {"published": "stated"}
GENERATED, REAL, NONE = "GENERATED", "real data", "not run"
UNKNOWN = "-"
SAID = "Our figures come from GENERATED data: they say nothing about the published ones."
MARKS = (
    "Evidence: *stated*, read in the source itself; *second-hand*, told by a third party; *inferred*, our conclusion from what "
    "is published; *measured*, by this project, with a model that is no part of it; *not found*, could not be read. Ours, below "
    "those of others, are on *real data* or on *GENERATED* ones: mean ± standard deviation over seeds. n: test rows. A dash: no "
    "figure is known."
)
HEAD = f"""# Benchmarks of the papers

Written by `consilium-bench report` from the files in `docs/results/`, as `consilium-bench table --paper NAME` prints it; not by
hand. {MARKS}
"""

Source = Callable[[Benchmark, str | None], Results | None]


class Key(NamedTuple):
    """What a figure is of: variant, site of ``Benchmark.apart`` or None for all, combination of modalities, output, metric."""

    variant: str | None
    site: str | None
    pattern: str
    output: str | None
    metric: str


Told = Mapping[Key, Sequence[Published]]
"""What others report, by what it is of."""
_Group = tuple[int | None, str | None, str | None]


@dataclass(frozen=True)
class Part:
    """A table of methods.

    Attributes:
        title: What all its figures are of.
        head: Heads of the columns: method, evidence, n, then what a figure is of.
        rows: One per method and kind of evidence, those of others first.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PaperTable:
    """The tables of one benchmark.

    Attributes:
        name: Name of the benchmark.
        title: What it is about.
        is_run: Whether there are results of ours, under any protocol.
        parts: By output and test rows, and by columns where they are many; what cannot be compared is in different ones.
        notes: Sentences: on comparability, on where the figures come from.
    """

    name: str
    title: str
    is_run: bool
    parts: tuple[Part, ...]
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
            if theirs == variant and is_whole(results, benchmark):
                return results
        return kept(benchmark, variant)

    return find


def tables_of(paper: str, source: Source, columns: int = COLUMNS) -> list[PaperTable]:
    """Returns the tables of a paper, one per benchmark.

    Args:
        paper: Its name on the command line.
        source: Where our results are found.
        columns: Most columns of figures in one table.

    Raises:
        ConsiliumError: If there is no such paper, or results do not fit the schema.
    """
    if paper not in PAPERS:
        raise ConsiliumError(f"There is no paper '{paper}'. Known: {', '.join(PAPERS)}")
    mine = [b for b in benchmarks().values() if b.name.startswith(PAPERS[paper][1])]
    return [table_of(b, {v: source(b, v) for v in b.variants}, columns) for b in mine]


def table_of(benchmark: Benchmark, found: Mapping[str | None, Results | None], columns: int = COLUMNS) -> PaperTable:
    """Returns the tables of one benchmark.

    Args:
        benchmark: The benchmark.
        found: Variant -> our results; None if there are none.
        columns: Most columns of figures in one table.
    """
    mine = {key: row for variant, results in found.items() if results for key, row in _rows(variant, results, benchmark).items()}
    sites = {row.n: row.site for row in mine.values() if row.site and row.n}
    theirs: dict[Key, list[Published]] = {}
    for figure in benchmark.published:
        theirs.setdefault(_key_of(figure, sites), []).append(figure)
    main = [k for v, results in found.items() if results for k in _main_keys(v, results, [key for _, key in mine])]
    variants, metrics = list(found), [*benchmark.metrics, *(p.metric for p in benchmark.published)]
    order = {k: (variants.index(k.variant), *_place_of(k.pattern), metrics.index(k.metric)) for k in (*theirs, *main)}
    keys = sorted(order, key=lambda k: order[k])
    beside = _Beside(benchmark, found, mine, columns)
    parts = []
    for (n, output, site), told in _groups(keys, theirs).items():
        about = [f"`{output}`" if output else "all outputs"] if any(k.output for k in keys) else []
        about += [f"tested on {site or 'all'}"] if sites else []
        about += [f"figures of others are of {count(n)} test rows"] if n else []
        parts += beside.parts(about, [k for k in keys if k in told], told)
    return PaperTable(benchmark.name, benchmark.title, any(found.values()), tuple(parts), _notes(benchmark, found))


def _groups(keys: Sequence[Key], theirs: Told) -> dict[_Group, Told]:
    """Returns what may stand in one table, by number of test rows, output and site.

    That number counts only where a method is told on several test sets: such figures are of protocols that are not to be mixed.
    What we alone have joins the first table of its output and site.
    """
    several = any(len({(p.method, p.mark) for p in told}) < len(told) for told in theirs.values())
    tests = dict.fromkeys(p.n if several else None for told in theirs.values() for p in told) or {None: None}
    where = sorted({(k.output, k.site) for k in keys}, key=lambda place: (place[0] is None, place[0] or "", place[1] or ""))
    groups: dict[_Group, dict[Key, list[Published]]] = {}
    for n, (output, site) in itertools.product(tests, where):
        told = {k: [p for p in theirs[k] if not several or p.n == n] for k in theirs if (k.output, k.site) == (output, site)}
        groups[n, output, site] = {k: figures for k, figures in told.items() if figures}
    for key in (k for k in keys if k not in theirs):
        mine = [group for group in groups if group[1:] == (key.output, key.site)]
        groups[next((g for g in mine if groups[g]), mine[0])][key] = []
    return {group: told for group, told in groups.items() if told}


@dataclass(frozen=True)
class _Beside:
    """What stands in the tables of a benchmark: figures of others, and our rows by method and what they are of."""

    benchmark: Benchmark
    found: Mapping[str | None, Results | None]
    mine: Mapping[tuple[str, Key], Row]
    most: int

    def parts(self, about: Sequence[str], keys: Sequence[Key], told: Told) -> list[Part]:
        """Returns tables of a few columns each: what all columns share is in their title, the rest in their heads."""
        words = [(k.variant or "main", given(k.pattern), NAMES.get(k.metric, k.metric)) for k in keys]
        same = [len(set(column)) == 1 for column in zip(*words, strict=True)]
        shared = [word for word, is_same in zip(words[0], same, strict=True) if is_same and word != "main"]
        heads = [", ".join(word for word, is_same in zip(w, same, strict=True) if not is_same) or w[-1] for w in words]
        parts = []
        for start in range(0, len(keys), self.most):
            columns = keys[start : start + self.most]
            rows = (*self._others(columns, told), *self._ours(columns))
            head = ("method", "evidence", "n", *heads[start : start + self.most])
            parts.append(Part(", ".join([*about, *shared]), head, rows))
        return parts

    def _others(self, columns: Sequence[Key], told: Told) -> list[tuple[str, ...]]:
        """Returns a row per method of others, evidence and test rows; what was not found is in a row with what was."""
        shown = [(key, p) for key in columns for p in told[key]]
        known = {(p.method, p.n): p.mark for _, p in reversed(shown) if p.value is not None}
        lines: dict[tuple[str, Mark, int | None], dict[Key, str]] = {}
        for key, p in shown:
            mark = known.get((p.method, p.n), p.mark) if p.value is None else p.mark
            cell = p.mark if p.value is None else f"{p.value:.{self._decimals(p.source)}f}"
            lines.setdefault((p.method, mark, p.n), {})[key] = cell
        return [
            (method, STATED.get(mark, mark), count(n), *(cells.get(k, UNKNOWN) for k in columns))
            for (method, mark, n), cells in lines.items()
        ]

    def _decimals(self, source: str) -> int:
        """Returns how many decimals a source has, three at least."""
        values = (repr(p.value) for p in self.benchmark.published if p.source == source and p.value is not None)
        return max([3, *(len(value.partition(".")[2]) for value in values)])

    def _ours(self, columns: Sequence[Key]) -> list[tuple[str, ...]]:
        """Returns a row per method of ours and kind of data; one that says so where nothing was run."""
        data = {
            v: NONE if results is None else GENERATED if results.data == "generated" else REAL
            for v, results in self.found.items()
        }
        lines = []
        for method, kind in itertools.product(OURS, (REAL, GENERATED)):
            rows = {k: self.mine.get((method, k)) for k in columns if data[k.variant] == kind}
            cells = {k: spread(row.mean, row.sd) if row else self._mean(method, k) for k, row in rows.items()}
            if set(cells.values()) - {UNKNOWN}:
                tested = sorted({row.n for row in rows.values() if row and row.n})
                n = "-".join(count(number) for number in dict.fromkeys(tested[:1] + tested[-1:])) or UNKNOWN
                absent = {k: NONE if data[k.variant] == NONE else UNKNOWN for k in columns}
                lines.append((f"`{method}`", kind, n, *(absent | cells).values()))
        return lines or [
            ("ours", kind, *[UNKNOWN] * (1 + len(columns))) for kind in dict.fromkeys(data[k.variant] for k in columns)
        ]

    def _mean(self, method: str, key: Key) -> str:
        """Returns our mean of all combinations of modalities, only if every one of them was tested."""
        if key.pattern != MEAN_OF_PATTERNS:
            return UNKNOWN
        mine = {k: row.mean for (m, k), row in self.mine.items() if m == method and k._replace(pattern=key.pattern) == key}
        found = [mean for k, mean in mine.items() if k.pattern not in (ALL, MEAN_OF_PATTERNS) and mean is not None]
        every = 2 ** len(self.benchmark.modalities) - 1
        return spread(sum(found) / every, None) if len(found) == every else UNKNOWN


def _key_of(figure: Published, sites: Mapping[int, str]) -> Key:
    """Returns what a figure of others is of; one of as many rows as a site that is told apart is of that site alone."""
    site = sites.get(figure.n) if figure.n else None
    return Key(figure.variant, site, figure.pattern, figure.output, figure.metric)


def _rows(variant: str | None, results: Results, benchmark: Benchmark) -> dict[tuple[str, Key], Row]:
    """Returns our rows over all folds, of all sites together and of those that are told apart."""
    mine = [r for r in results.rows if r.site in (None, *benchmark.apart) and r.fold is None and r.published is None]
    return {(r.method, Key(variant, r.site, r.pattern, r.output, r.metric)): r for r in mine}


def _main_keys(variant: str | None, results: Results, tested: Iterable[Key]) -> list[Key]:
    """Returns our main metric on everything, and on every combination of modalities that was tested if there are several."""
    main = main_metrics(results, 1)
    ours = [k for k in tested if k.variant == variant and k.metric in main and k.output is None]
    single = len({k.pattern for k in ours} - {ALL}) == 1  # then it is what each has
    return [k for k in ours if k.pattern == ALL or not single]


def _place_of(pattern: str) -> tuple[int, int, str]:
    """Returns where a combination of modalities stands: everything first, then the mean, then the smaller ones."""
    first = [ALL, MEAN_OF_PATTERNS]
    return first.index(pattern) if pattern in first else len(first), pattern.count("+"), pattern


def _notes(benchmark: Benchmark, found: Mapping[str | None, Results | None]) -> tuple[str, ...]:
    """Returns sentences on comparability, and on where the figures come from."""
    notes = [SAID] if any(results and results.data == "generated" for results in found.values()) else []
    notes.append(f"Comparability: {benchmark.comparable or 'nothing is published that ours could stand beside.'}")
    sources: dict[str, dict[str, None]] = {}
    for p in benchmark.published:
        sources.setdefault(p.source, {})[p.method] = None
    told = [f"{', '.join(methods)}: {source}" for source, methods in sources.items()]
    notes += [f"Sources: {'; '.join(told)}."] if told else []
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
    """Prints the tables of a paper, as wide as the console is."""
    tables = tables_of(paper, source, max(1, (console.width - BESIDE) // (WIDTH + GAP)))
    console.print(f"\n[bold]{PAPERS[paper][0]}[/bold]\n{MARKS.replace('*', '')}")
    for told in tables:
        console.print(f"\n[bold]{escape(told.name)}[/bold]: {escape(told.title)}", highlight=False)
        for part in told.parts:
            console.print()
            console.print(_printed(part))
        console.print()
        for note in told.notes:
            console.print(escape(note.replace("`", "")), highlight=False)


def _printed(part: Part) -> Table:
    """Returns a table for the terminal, with a line between others and us."""
    table = Table(title=escape(part.title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for at, name in enumerate(part.head):
        head = name if len(name) <= WIDTH else name.replace("+", "+\n")
        table.add_column(escape(head), overflow="fold", justify="right" if at > 1 else "left", min_width=0 if at else METHOD)
    others = sum(row[1] not in (REAL, GENERATED, NONE) for row in part.rows)
    for at, row in enumerate(part.rows):
        cells = (escape(cell.replace("`", "")) for cell in row)
        table.add_row(*cells, style="red" if GENERATED in row else None, end_section=at + 1 == others)
    return table


def render(docs: Path) -> str:
    """Returns the text of ``benchmarks.md``."""
    tables = {paper: tables_of(paper, kept_in(docs)) for paper in PAPERS}
    every = [told for of_paper in tables.values() for told in of_paper]
    absent = sum(not told.is_run for told in every)
    lines = [HEAD, f"Of these {len(every)} benchmarks {absent} are not run yet, as the list says.\n"]
    for paper, of_paper in tables.items():
        lines.append(f"- {link_to(PAPERS[paper][0])}")
        lines += [f"  - {link_to(f'`{told.name}`')}{'' if told.is_run else ', not run yet'}" for told in of_paper]
    lines.append("")
    for paper, of_paper in tables.items():
        lines.append(f"## {PAPERS[paper][0]}\n")
        for told in of_paper:
            lines += [f"### `{told.name}`\n", f"{told.title}.\n"]
            for part in told.parts:
                lines += [f"*{part.title}*\n", markdown_table(part.head, part.rows)]
            lines += [*(f"- {note}" for note in told.notes), ""]
    return "\n".join(lines)


def write(docs: Path) -> Path:
    """Writes ``docs/benchmarks.md`` from everything kept.

    Raises:
        ConsiliumError: If a kept file does not fit the schema.
    """
    file = docs / "benchmarks.md"
    write_atomically(file, render(docs).encode())
    return file

"""Runs a benchmark: plans its cells, resumes where an earlier run stopped, and writes what was found.

A run directory ``NAME/<time>/``, of an ablation ``NAME-ablation/<time>/``, holds ``bench.json`` (the plan), ``prepared/`` (what
the sites of each split hold), ``cells/``, ``results.json`` and ``figures/``. The sites themselves lie in ``sites/`` only as long
as a cell needs them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any, BinaryIO

from rich.console import Console

from common.arrays import write_json
from common.errors import ConsiliumError, nearest
from common.evaluation.results import FILE_NAME, Results, load_results
from simulations.ablations import MAIN, Ablation, of_factors
from simulations.benchmarks.base import CUSTOM, Benchmark, get
from simulations.datasets.files import data_folder
from simulations.figures import draw_ablation, draw_figures
from simulations.finished import Cell, load_cell
from simulations.region_figures import OVERLAY_FILE
from simulations.scores import build_results
from simulations.work import Job, RunCell, Work
from simulations.workers import run_jobs

ROOMS = ("client", "common", "configs", "server", "simulations")
CODE = (".py", ".yaml", ".json")


@dataclass(frozen=True)
class Plan:
    """What a run directory is for; a run resumes a directory only if all of this is the same.

    Attributes:
        benchmark: Name of the benchmark.
        variant: Its variant; None is the main protocol.
        methods: Methods, in the order of the table.
        seeds: Seeds.
        folds: Test folds.
        debug: Whether training is cut short.
        runtime: ``inproc`` or ``flwr``.
        code: Digest of the project's code and configuration: cells of two versions never share a table.
        source: Digest of what the user defined the benchmark by, if so.
    """

    benchmark: str
    variant: str | None
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    debug: bool
    runtime: str
    code: str
    source: str = ""

    def jobs(self) -> list[Job]:
        """Returns every cell, those of one split beside each other, students last: they begin behind a teach phase."""
        methods = sorted(self.methods, key=lambda method: method.startswith(MAIN))
        return [Job(m, s, f) for s in self.seeds for f in self.folds for m in methods]

    def as_json(self) -> dict[str, Any]:
        """Returns the plan as it reads from ``bench.json``."""
        plan: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plan


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: The run directory.
        missing: Cell -> why it is not there.
    """

    folder: Path
    missing: dict[str, str]


def runs_root(out: Path | None = None) -> Path:
    """Returns where run directories lie: ``out``, else ``CONSILIUM_RUNS``, else ``runs`` in the working directory."""
    return (out or Path(os.environ.get("CONSILIUM_RUNS") or "runs")).resolve()


def results_of(folder: Path) -> Results:
    """Returns the results in the run directory of a benchmark.

    Raises:
        ConsiliumError: If there are none, or they are those of a federation: tables of benchmarks have no place for them.
    """
    results = load_results(folder / FILE_NAME)
    if "title" not in results.environment:
        raise ConsiliumError(
            f"{folder} is the run directory of a federation, not of a benchmark. Its results are shown by: "
            f"consilium-server show {folder}"
        )
    return results


def newest_finished(name: str, out: Path | None = None) -> Path:
    """Returns the newest run directory of a benchmark that lacks no cell; one that was cut short (debug) if there is no other.

    Raises:
        ConsiliumError: If there is none, or no such benchmark.
    """
    home = runs_root(out) / (name if name == CUSTOM else get(name).name)
    finished = finished_runs(home.name, out)
    if finished:
        return next((f for f in finished if not (_plan_of(f) or {}).get("debug")), finished[0])
    docs = Path(__file__).resolve().parents[1] / "docs"
    kept = f" Kept results: {docs / 'results.md'}" if (docs / "results" / f"{home.name}.json").is_file() else ""
    raise ConsiliumError(
        f"There is no finished run of '{name}' under {home}. Start or resume one: consilium-bench run {name}.{kept}"
    )


def finished_runs(name: str, out: Path | None = None) -> list[Path]:
    """Returns the run directories of a benchmark that lack no cell, the newest first, those that were cut short among them."""
    return [folder for folder in _run_folders(runs_root(out) / name) if _is_finished(folder)]


def run(
    wanted: str | Benchmark,
    *,
    ablate: bool = False,
    seeds: int | None = None,
    only: Sequence[str] = (),
    debug: bool = False,
    runtime: str = "inproc",
    variant: str | None = None,
    out: Path | None = None,
    run_cell: RunCell | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Outcome:
    """Runs a benchmark, or resumes the newest unfinished run with the same plan.

    Args:
        wanted: The benchmark, or its name.
        ablate: Whether to run the student and its ablations, not the methods that are compared with it.
        seeds: Number of seeds; the benchmark's own number by default.
        only: Methods to run, or factors to ablate; all by default.
        debug: One seed, the first fold, short training: to see whether it works, not how well.
        runtime: ``inproc`` or ``flwr``.
        variant: Variant of the benchmark.
        out: Folder of all runs; see :func:`runs_root`.
        run_cell: Runs one cell; ``simulations.cells.run_cell`` by default.
        workers: Cells at a time; by default one per processor, or one if Flower's runtime spreads each over the processors.
        console: Where progress is shown.

    Returns:
        The run directory, and the cells that failed. What the others found is on disk all the same.

    Raises:
        ConsiliumError: If the benchmark, a method, a factor or the variant is unknown, or its data cannot be prepared.
    """
    benchmark = get(wanted) if isinstance(wanted, str) else wanted
    plan = make_plan(benchmark, ablate=ablate, seeds=seeds, only=only, debug=debug, runtime=runtime, variant=variant)
    if benchmark.needs:
        data_folder(*benchmark.needs)
    with _open_run(plan, runs_root(out) / (f"{benchmark.name}-ablation" if ablate else benchmark.name)) as folder:
        work = Work(benchmark, folder, variant, runtime, debug, run_cell)
        try:
            number = workers or (1 if runtime == "flwr" else os.cpu_count() or 1)
            run_jobs(work, plan.jobs(), number, console or Console(), lambda: code_digest() == plan.code)
        except ConsiliumError:
            if not (folder / "prepared").exists():  # nothing has begun, so that there is nothing to resume
                shutil.rmtree(folder)
            raise
        cells, missing = _collect(plan, work)
        results = _results(plan, work, cells, missing, _command(plan, only, ablate=ablate), ablate=ablate)
        if ablate:
            draw_ablation(results, folder / "figures")
        else:
            draw_figures(results, cells, folder / "figures")
            for drawn in sorted((folder / "cells").glob(f"{MAIN}-[0-9]*/{OVERLAY_FILE}"))[:1]:
                shutil.copy(drawn, folder / "figures")
        write_json(folder / "results.json", results.model_dump(mode="json"))
    return Outcome(folder, missing)


def make_plan(
    benchmark: Benchmark,
    *,
    ablate: bool = False,
    seeds: int | None,
    only: Sequence[str],
    debug: bool,
    runtime: str,
    variant: str | None,
) -> Plan:
    """Returns the plan that the command line asks for; see :func:`run`.

    Raises:
        ConsiliumError: If a method, a factor or the variant is unknown, naming the nearest.
    """
    for method in () if ablate else only:
        if method not in benchmark.methods:
            raise ConsiliumError(f"Benchmark '{benchmark.name}' has no method '{method}'{nearest(method, benchmark.methods)}")
    if ablate:
        methods = (MAIN, *(a.name for a in of_factors(benchmark.ablations, only)))
    else:
        methods = tuple(m for m in benchmark.methods if not only or m in only)
    if variant not in benchmark.variants:
        hint = nearest(str(variant), [v for v in benchmark.variants if v])
        raise ConsiliumError(f"Benchmark '{benchmark.name}' has no variant '{variant}'{hint}")
    return Plan(
        benchmark=benchmark.name,
        variant=variant,
        methods=methods,
        seeds=tuple(range(seeds or (1 if debug else benchmark.seeds))),
        folds=tuple(range(1 if debug else benchmark.folds)),
        debug=debug,
        runtime=runtime,
        code=code_digest(),
        source=benchmark.source,
    )


def code_digest() -> str:
    """Returns the first 16 hex digits of the SHA-256 of the project's code and configuration."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(f for room in ROOMS for f in (root / room).rglob("*") if f.suffix in CODE):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _open_run(plan: Plan, home: Path) -> Iterator[Path]:
    """Yields the newest unfinished run directory with this plan, else a new one; locked, so that no other process resumes it."""
    while not (found := _locked(plan, home)):
        _make_run(plan, home)
    folder, lock = found
    with lock:
        yield folder


def _locked(plan: Plan, home: Path) -> tuple[Path, BinaryIO] | None:
    """Returns the newest unfinished run directory with this plan that nobody else runs, and its lock; None if there is none."""
    for folder in _run_folders(home):
        if _plan_of(folder) == plan.as_json() and not _is_finished(folder):
            lock = (folder / "bench.json").open("rb")
            if _is_locked_by_us(lock):
                return folder, lock
            lock.close()
    return None


def _make_run(plan: Plan, home: Path) -> None:
    """Makes a new run directory."""
    home.mkdir(parents=True, exist_ok=True)
    while True:
        folder = home / datetime.now().strftime("%Y%m%d-%H%M%S")
        with suppress(FileExistsError):
            folder.mkdir()
            break
        time.sleep(0.2)
    write_json(folder / "bench.json", {"schema_version": 1, "plan": plan.as_json()})


def _is_locked_by_us(file: BinaryIO) -> bool:
    """Locks a file until it is closed or the process ends; returns whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run_folders(home: Path) -> list[Path]:
    """Returns the run directories of a benchmark, the newest first."""
    return sorted((f.parent for f in home.glob("*/bench.json")), reverse=True)


def _plan_of(folder: Path) -> Any:
    try:
        return json.loads((folder / "bench.json").read_text(encoding="utf-8")).get("plan")
    except (OSError, ValueError):
        return None


def _is_finished(folder: Path) -> bool:
    """Returns whether a run has results that lack no cell."""
    try:
        return not load_results(folder / "results.json").environment.get("missing")
    except ConsiliumError:
        return False


def _results(plan: Plan, work: Work, cells: Sequence[Cell], missing: Mapping[str, str], command: str, *, ablate: bool) -> Results:
    """Returns what the cells found, with what else there is to tell of the run."""
    benchmark, told = work.benchmark, [a for a in work.benchmark.ablations if a.name in plan.methods] if ablate else []
    prepared = _prepared(plan, work, plan.methods[0])
    return build_results(
        replace(benchmark, methods=plan.methods, published=()) if ablate else benchmark,
        cells,
        seeds=plan.seeds,
        folds=plan.folds,
        variant=plan.variant,
        prepared=prepared,
        run={
            "title": benchmark.title,
            "runtime": plan.runtime,
            "debug": plan.debug,
            "code": plan.code,
            "missing": dict(missing),
            "seconds": round(sum(c.seconds for c in cells)),
            "command": command,
            "units": dict(prepared[0].get("units", {})),
            "warnings": list(dict.fromkeys(w for said in prepared for w in said.get("warnings", ()))),
            "ablations": [_told(a, _prepared(plan, work, a.name)) for a in told],
        },
        every_pattern=ablate,
    )


def _command(plan: Plan, only: Sequence[str], *, ablate: bool) -> str:
    """Returns the command line that makes a run again; one on own data without the files that only its user has."""
    words = ["consilium-bench", "ablate" if ablate else "run", plan.benchmark, "--seeds", str(len(plan.seeds))]
    words += [word for name in only for word in ("--only", name)] + (["--variant", plan.variant] if plan.variant else [])
    return shlex.join(words + (["--runtime", plan.runtime] if plan.runtime != "inproc" else []))


def _told(ablation: Ablation, prepared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns an ablation as it stands in the results: a reference set's share with the size that came of it."""
    told = asdict(ablation)
    if ablation.reference:
        sizes = [p["n"]["reference"] for p in prepared]
        what = next(iter(sizes[0]))
        told["setting"] += f", {round(mean(size[what] for size in sizes)):,} {what}"
    return told


def _prepared(plan: Plan, work: Work, method: str) -> list[dict[str, Any]]:
    """Returns what ``prepare`` said of the splits of a method, the first seed's folds first."""
    return [work.prepared(work.split(job)) for job in plan.jobs() if job.method == method]


def _collect(plan: Plan, work: Work) -> tuple[list[Cell], dict[str, str]]:
    """Returns the finished cells, and why the others are not there."""
    cells, missing = [], {}
    for job in plan.jobs():
        try:
            cells.append(load_cell(work.cell(job), work.benchmark.task_type))
        except ConsiliumError as error:
            missing[job.name] = str(error)
    return cells, missing

"""Runs cells in worker processes, a few at a time, on sites that are prepared just before and removed just after.

A cell that fails is recorded and the others go on. What a cell prints goes to its ``cell.log``.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import ConsiliumError
from simulations.benchmarks.base import Split
from simulations.work import Job, RunCell, Work

LOOK_SECONDS = 1.0
# What each process would import for seconds. Libraries alone: the project's own modules come from where the parent's do.
IMPORTED_ONCE = [
    "flwr.serverapp",
    "hydra",
    "matplotlib.figure",
    "pandas",
    "scipy.stats",
    "sklearn.model_selection",
    "torch._dynamo",
]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CHANGED = (
    "The project's code or configuration has changed since the run began: cells of two versions would share a table. Put the "
    "files back and run again, which resumes, or run again with the new ones, which begins anew. To work on them meanwhile, run "
    "benchmarks in another checkout (git worktree)."
)
KILLED = "its process was killed, most often for want of memory; close other programs and run again: it resumes"


def run_jobs(work: Work, jobs: Sequence[Job], workers: int, console: Console, unchanged: Callable[[], bool]) -> None:
    """Runs the cells that are not finished.

    Args:
        work: What they share.
        jobs: All cells of the plan.
        workers: Cells at a time.
        console: Where progress is shown: bars on a terminal, else one line per round and per finished cell.
        unchanged: Whether code and configuration are still those of the plan. Processes import and read them when they need them.

    Raises:
        ConsiliumError: If sites cannot be prepared: then no method can run on them; or if the code has changed.
    """
    todo = [job for job in jobs if work.fault(job) is not None]
    with _Progress(console, work, jobs, todo) as progress, _one_thread_per_process():
        _Schedule(work, todo, workers, progress, unchanged).run()
    shutil.rmtree(work.folder / "sites", ignore_errors=True)


def run_one(work: Work, job: Job) -> float:
    """Runs a cell anew; its failure is written into its ``cell.json``. Returns the seconds that it took."""
    out, start = work.cell(job), time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with _said_to(out / "cell.log"):
        try:
            (work.run_cell or _default_run_cell())(work, job)
        except ConsiliumError as error:
            work.record_failure(job, str(error))
        except Exception as error:  # whatever breaks in one method must not end the others
            traceback.print_exc()
            work.record_failure(job, f"{type(error).__name__}: {error} (see cell.log)")
    return time.monotonic() - start


class _Schedule:
    """Which cell or preparation runs next, and what to do when one ends."""

    def __init__(self, work: Work, todo: Sequence[Job], workers: int, progress: _Progress, unchanged: Callable[[], bool]) -> None:
        self.work, self.workers, self.progress, self.unchanged = work, workers, progress, unchanged
        self.left: dict[Split, list[Job]] = {}
        for job in todo:
            self.left.setdefault(work.split(job), []).append(job)
        self.waiting, self.ready = deque(self.left), deque[Job]()
        self.running: dict[Future[Any], Job | Split] = {}
        self.processes: set[BaseProcess] = set()

    def run(self) -> None:
        """Runs everything to its end, or to the first split that cannot be prepared."""
        pool = open_pool(self.workers)
        try:
            while self.waiting or self.ready or self.running:
                while len(self.running) < self.workers and (self.ready or self.waiting):
                    self._submit(pool)
                done, _ = wait(self.running, LOOK_SECONDS, FIRST_COMPLETED)
                self.progress.look()
                broken = any(isinstance(future.exception(), BrokenProcessPool) for future in done)
                if broken:
                    done, _ = wait(self.running)
                    pool.shutdown()
                    pool = open_pool(self.workers)
                for future in done:
                    self._ended(self.running.pop(future), future)
                if broken:
                    self.processes.clear()  # the next death has causes of its own
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ProcessPoolExecutor) -> None:
        if self.ready:
            job = self.ready.popleft()
            self.progress.started(job)
            self.running[pool.submit(run_one, self.work, job)] = job
        else:
            split = self.waiting.popleft()
            self.running[pool.submit(self.work.prepare, split)] = split
        self.processes.update(multiprocessing.active_children())

    def _death(self, error: BaseException) -> str:
        """Returns what is known of why a process is gone; the others were ended with it, by SIGTERM."""
        codes = {code for process in self.processes if (code := process.exitcode)} - {-signal.SIGTERM}
        if -signal.SIGKILL in codes:
            return KILLED
        if codes:
            return f"its process died (exit code {', '.join(map(str, sorted(codes)))}); run again: it resumes"
        return f"its process died: {error.__cause__ or error}"

    def _ended(self, what: Job | Split, future: Future[Any]) -> None:
        if not self.unchanged():
            if isinstance(what, Job):
                self.work.record_failure(what, CHANGED)
            raise ConsiliumError(CHANGED)
        error = future.exception()
        lost = isinstance(error, BrokenProcessPool)
        death = self._death(error) if isinstance(error, BrokenProcessPool) else ""
        if isinstance(what, Split):
            if lost:
                raise ConsiliumError(f"Preparing the sites of seed {what.seed}, fold {what.fold}: {death}.")
            future.result()
            self.progress.prepared(self.work.prepared(what))
            self.ready.extend(self.left[what])
            return
        if lost:
            self.work.record_failure(what, death)
        self.progress.ended(what, self.work.fault(what), None if lost else future.result())
        split = self.work.split(what)
        self.left[split].remove(what)
        if not self.left[split]:
            shutil.rmtree(self.work.sites(split), ignore_errors=True)


class _Reader:
    """Reads what is appended to a record, whole lines only; the file need not be there yet."""

    def __init__(self, file: Path) -> None:
        self.file, self.at = file, 0

    def events(self) -> list[dict[str, Any]]:
        """Returns the events since the last call."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.at)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self.at += len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # torn by a kill, and closed when the run was resumed
                found.append(json.loads(line))
        return found


class _Progress:
    """Bars per method on a terminal, with what its cells do now; else one line of ``key=value`` per round and finished cell."""

    def __init__(self, console: Console, work: Work, jobs: Sequence[Job], todo: Sequence[Job]) -> None:
        self.console, self.work, self.total, self.done = console, work, len(jobs), len(jobs) - len(todo)
        self.said: set[str] = set()
        self.readers: dict[Job, _Reader] = {}
        self.doing: dict[Job, str] = {}
        columns = (
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
        )
        self.bars = Progress(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
        self._say(f"run={work.folder} cells={self.total} done={self.done}")
        self.of_all = self.bars.add_task("all cells", total=self.total, completed=self.done, now="")
        self.of_method = {
            method: self.bars.add_task(
                method,
                total=sum(job.method == method for job in jobs),
                completed=sum(job.method == method for job in jobs) - sum(job.method == method for job in todo),
                start=False,
                now="",
            )
            for method in dict.fromkeys(job.method for job in jobs)
        }

    def __enter__(self) -> _Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def prepared(self, told: Mapping[str, Any]) -> None:
        """Says at once if a generated twin has taken the place of the data, not hours later above the table."""
        benchmark = self.work.benchmark
        if told.get("data", benchmark.data) == benchmark.data:
            return
        for warning in dict.fromkeys(told.get("warnings", ())):
            if warning not in self.said:
                self._say(f"Warning: {warning}")
                self.said.add(warning)

    def started(self, job: Job) -> None:
        self.work.record(job).unlink(missing_ok=True)  # of an earlier attempt
        self.readers[job] = _Reader(self.work.record(job))
        self.bars.start_task(self.of_method[job.method])

    def look(self) -> None:
        """Shows what the running cells have recorded since the last look."""
        for job, reader in self.readers.items():
            for event in reader.events():
                if event["event"] == "transition":
                    self.doing[job] = f"{event['phase']} {event['round'] or ''}".rstrip()
                elif event["event"] == "round" and not self.console.is_terminal:
                    told = {"accepted": len(event["accepted"]), "left_out": len(event["left_out"]), "seconds": event["seconds"]}
                    said = {"cell": job.name, "phase": event["phase"], "round": event["round"]} | told
                    self._say(" ".join(f"{key}={value}" for key, value in said.items()))
        for method, bar in self.of_method.items():
            now = [f"{job.seed}-{job.fold} {what}" for job, what in self.doing.items() if job.method == method]
            self.bars.update(bar, now=", ".join(now))

    def ended(self, job: Job, fault: str | None, seconds: float | None) -> None:
        self.look()
        del self.readers[job]
        self.doing.pop(job, None)
        self.done += 1
        self.bars.advance(self.of_all)
        self.bars.advance(self.of_method[job.method])
        if fault or not self.console.is_terminal:
            took = "" if seconds is None else f" seconds={seconds:.1f}"
            why = f" reason={json.dumps(fault)}" if fault else ""
            self._say(
                f"cell={job.name} status={'failed' if fault else 'finished'}{took} done={self.done} cells={self.total}{why}"
            )

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def _default_run_cell() -> RunCell:
    """Returns the runner of the project's own methods; imported late because it brings the whole of Flower."""
    from simulations.cells import run_cell

    return run_cell


def open_pool(workers: int) -> ProcessPoolExecutor:
    """Returns a pool of processes with one thread each, which end with this process, however it ends.

    They are forked from one that has imported the libraries, and get the environment that this process has now.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    return ProcessPoolExecutor(workers, context, _begin_worker, (dict(os.environ),))


def _begin_worker(environ: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # a cell is in the middle of its work: nothing to finish, it begins anew when the run is resumed


@contextlib.contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Lets processes started meanwhile compute with one thread each: a cell then gives the same result on any machine."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _said_to(log: Path) -> Iterator[None]:
    """Sends everything that this process and its children print to a file, loggers that hold the streams included."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, stream)
            os.close(descriptor)

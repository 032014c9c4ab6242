"""The benchmark command: cells run, fail, resume and end in a table."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import simulations.benchmarks
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from simulations import bench, cli
from simulations.benchmarks import base, demo
from simulations.consortium import write_tiny
from simulations.work import Job, Work
from simulations.workers import _Progress, _Reader, run_jobs
from tests.simulations import fakes

NAME = fakes.BENCHMARK.name
METHODS = ("student", "fedavg", "central-full", "teachers")
ONLY = dataclasses.replace(fakes.BENCHMARK, methods=METHODS, metrics=("auroc",))
PLAIN = dataclasses.replace(ONLY, name="plain", ablations=())
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the fake benchmark the only one, and the project's code the same even if somebody edits it meanwhile."""
    monkeypatch.setattr(bench, "code_digest", lambda: "code")
    for module in (base, cli):
        monkeypatch.setattr(module, "benchmarks", lambda: {NAME: ONLY, "plain": PLAIN})


def run(out: Path, **other: object) -> bench.Outcome:
    console = Console(file=io.StringIO(), width=200)
    return bench.run(NAME, out=out, run_cell=fakes.run_cell, **({"console": console, "workers": 1} | other))


def calls(folder: Path) -> Counter[str]:
    return Counter((folder / "calls").read_text().split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[bench.Outcome, str]:
    """An undisturbed run with two workers, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "benchmarks", lambda: {NAME: ONLY})
        console = Console(file=io.StringIO(), width=200)
        outcome = run(tmp_path_factory.mktemp("runs"), workers=2, console=console)
    return outcome, console.file.getvalue()


def test_a_run_leaves_plan_cells_results_and_figures_and_no_copies_of_patients(finished: tuple[bench.Outcome, str]) -> None:
    outcome, _ = finished
    assert outcome.missing == {}
    assert re.fullmatch(r"\d{8}-\d{6}", outcome.folder.name)
    assert {f.name for f in outcome.folder.iterdir()} == {"bench.json", "calls", "cells", "figures", "prepared", "results.json"}
    cells = {f"{m}-{s}-{f}" for m in METHODS for s in (0, 1) for f in (0, 1)}
    assert {f.name for f in (outcome.folder / "cells").iterdir()} == cells
    plan = json.loads((outcome.folder / "bench.json").read_text())["plan"]
    assert (plan["seeds"], plan["folds"], plan["methods"], plan["variant"]) == ([0, 1], [0, 1], list(METHODS), None)
    assert (outcome.folder / "figures" / "patterns-auroc.png").is_file()
    results = load_results(outcome.folder / "results.json")
    assert results.n["test"]["stays"] == 480
    assert results.environment["missing"] == {} and results.environment["runtime"] == "inproc"


def test_off_a_terminal_every_round_and_cell_is_one_line_and_its_own_words_go_to_its_log(
    finished: tuple[bench.Outcome, str],
) -> None:
    outcome, said = finished
    first, *lines = said.splitlines()
    assert first == f"run={outcome.folder} cells=16 done=0"
    pattern = re.compile(r"cell=([a-z-]+-\d-\d) status=finished seconds=\d+\.\d done=\d+ cells=16")
    ends = {match[1]: at for at, line in enumerate(lines) if (match := pattern.fullmatch(line))}
    rounds = {line: at for at, line in enumerate(lines) if " round=" in line}
    assert (len(ends), len(rounds), len(lines)) == (16, 8, 24)
    for cell in ("student-0-0", "student-0-1", "student-1-0", "student-1-1"):
        both = [rounds[f"cell={cell} phase=teach round={r} accepted=1 left_out=1 seconds=0.25"] for r in (0, 1)]
        assert both[0] < both[1] < ends[cell]
    assert (outcome.folder / "cells" / "student-0-1" / "cell.log").read_text() == "running student-0-1 on inproc\n"


def test_a_record_is_read_line_by_line_while_it_is_written(tmp_path: Path) -> None:
    reader = _Reader(tmp_path / "run" / "events.jsonl")
    assert reader.events() == []
    reader.file.parent.mkdir()
    for written, read in (
        ('{"n": 1}\n{"n": 2}\n{"n"', [1, 2]),
        ("", []),
        (': 3}\n{"n": 4', [3]),
        ('\n{"n": 5}\n', [5]),  # torn by a kill: the resumed run begins a new line
    ):
        with reader.file.open("a") as file:
            file.write(written)
        assert [event["n"] for event in reader.events()] == read


def test_a_failing_cell_and_a_dying_process_are_recorded_and_only_they_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[bench.Outcome, str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "fedavg-1-0")
    monkeypatch.setenv("FAKE_DIE", "teachers-0-1")
    first = run(tmp_path)
    assert set(first.missing) == {"fedavg-1-0", "teachers-0-1"}
    assert "RuntimeError: the loss is not a number" in first.missing["fedavg-1-0"]
    assert "its process died (exit code 9)" in first.missing["teachers-0-1"]
    assert "Traceback" in (first.folder / "cells" / "fedavg-1-0" / "cell.log").read_text()
    assert load_results(first.folder / "results.json").environment["missing"] == first.missing
    with pytest.raises(ConsiliumError, match="no finished run"):
        bench.newest_finished(NAME, tmp_path)

    monkeypatch.delenv("FAKE_FAIL")
    monkeypatch.delenv("FAKE_DIE")
    second = run(tmp_path)
    assert (second.folder, second.missing) == (first.folder, {})
    assert {cell: n for cell, n in calls(second.folder).items() if n > 1} == {"fedavg-1-0": 2, "teachers-0-1": 2}
    assert load_results(second.folder / "results.json").rows == load_results(finished[0].folder / "results.json").rows
    assert bench.newest_finished(NAME, tmp_path) == second.folder


def killed_run(out: str) -> None:
    """Runs in a process of its own, which a cell kills."""
    base.benchmarks, bench.code_digest = lambda: {NAME: ONLY}, lambda: "code"
    run(Path(out), only=("student", "fedavg"), seeds=1)


def test_a_killed_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    code = f"from tests.simulations.test_bench import killed_run; killed_run({str(tmp_path)!r})"
    env = os.environ | {"FAKE_KILL": "student-0-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, start_new_session=True, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    (folder,) = (tmp_path / NAME).iterdir()
    assert not (folder / "results.json").exists() and (folder / "sites" / "0-1").exists()

    outcome = run(tmp_path, only=("student", "fedavg"), seeds=1)
    assert (outcome.folder, outcome.missing) == (folder, {})
    assert calls(folder) == {"student-0-0": 1, "fedavg-0-0": 1, "student-0-1": 2, "fedavg-0-1": 1}
    assert not (folder / "sites").exists()


def test_sites_that_cannot_be_prepared_end_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ConsiliumError, match="The data are not at /nowhere"):
        run(tmp_path, variant="no-data")
    assert not multiprocessing.active_children()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert not any((tmp_path / NAME).iterdir())  # a run that never began leaves no folder


def test_a_run_stops_when_the_code_changes_under_it_and_goes_on_when_it_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "code_digest", lambda: "code" if not list(tmp_path.rglob("cell.json")) else "changed")
    with pytest.raises(ConsiliumError, match="has changed since the run began"):
        run(tmp_path, only=("student", "fedavg"), seeds=1)
    (folder,) = (tmp_path / NAME).iterdir()
    assert not (folder / "results.json").exists() and sum(calls(folder).values()) == 1

    monkeypatch.setattr(bench, "code_digest", lambda: "code")
    outcome = run(tmp_path, only=("student", "fedavg"), seeds=1)
    assert (outcome.folder, outcome.missing) == (folder, {})
    assert sorted(calls(folder).values()) == [1, 1, 1, 2]  # the cell that saw both versions runs again


def test_on_a_terminal_every_method_has_a_bar(finished: tuple[bench.Outcome, str]) -> None:
    screen = Console(file=io.StringIO(), width=200, force_terminal=True)
    work = Work(ONLY, finished[0].folder, None, "inproc", False, fakes.run_cell)
    run_jobs(work, [Job(m, 0, 0) for m in METHODS], 1, screen, lambda: True)
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.file.getvalue())
    assert re.search(r"all cells\W+4/4", said)
    assert all(re.search(rf"{method}\W+1/1", said) for method in METHODS)


def test_a_bar_says_what_its_cells_do_now(tmp_path: Path) -> None:
    work = Work(ONLY, tmp_path, None, "inproc", False, fakes.run_cell)
    jobs = [Job("student", 0, 0), Job("student", 0, 1), Job("fedavg", 0, 0)]
    screen = Console(file=io.StringIO(), width=100, force_terminal=True)
    with _Progress(screen, work, jobs, jobs) as progress:
        for job, phase, number in ((jobs[0], "teaching", 3), (jobs[1], "distilling", 0)):
            work.record(job).parent.mkdir(parents=True)
            work.record(job).write_text('{"event": "transition", "phase": "of an earlier attempt", "round": 9}\n')
            progress.started(job)
            progress.look()
            work.record(job).write_text(json.dumps({"event": "transition", "phase": phase, "round": number}) + "\n")
        progress.look()
        progress.bars.refresh()
        progress.ended(jobs[0], None, 1.0)
        progress.look()
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.file.getvalue())
    assert re.search(r"student .* 0-0 teaching 3, 0-1 distilling *\n", said)
    assert re.search(r"student .* 1/2 [-0-9:\s]+ 0-1 distilling *\n", said)
    assert "earlier" not in said


def opened(plan: bench.Plan, home: Path) -> Path:
    with bench._open_run(plan, home) as folder:
        return folder


def test_only_an_unfinished_run_with_the_same_plan_that_nobody_runs_is_resumed(tmp_path: Path) -> None:
    asked = {"seeds": None, "only": (), "debug": False, "runtime": "inproc", "variant": None}
    plan = bench.make_plan(ONLY, **asked)
    first = opened(plan, tmp_path)
    assert opened(plan, tmp_path) == first
    for change in ({"seeds": 1}, {"only": ("student",)}, {"debug": True}, {"runtime": "flwr"}, {"variant": "no-data"}):
        assert bench.make_plan(ONLY, **(asked | change)) != plan
    assert opened(bench.make_plan(ONLY, **(asked | {"seeds": 1})), tmp_path) != first
    assert opened(dataclasses.replace(plan, code="other code"), tmp_path) != first
    with bench._open_run(plan, tmp_path) as mine:
        assert mine == first
        assert opened(plan, tmp_path) != first


def test_the_plan_follows_the_command_line() -> None:
    plan = bench.make_plan(ONLY, seeds=3, only=["teachers", "student"], debug=False, runtime="inproc", variant=None)
    assert (plan.seeds, plan.folds, plan.methods) == ((0, 1, 2), (0, 1), ("student", "teachers"))
    quick = bench.make_plan(ONLY, seeds=None, only=[], debug=True, runtime="inproc", variant=None)
    assert (quick.seeds, quick.folds) == ((0,), (0,))
    assert len(quick.jobs()) == 4


def test_the_code_has_one_digest_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "common").mkdir()
    (tmp_path / "simulations").mkdir()
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "simulations" / "bench.py"))
    digests = []
    for text in ("a = 1", "a = 1", "a = 2"):
        (tmp_path / "common" / "task.py").write_text(text)
        digests.append(bench.code_digest())
    assert digests[0] == digests[1] != digests[2]


def test_runs_lie_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_RUNS", str(tmp_path / "there"))
    assert bench.runs_root() == tmp_path / "there"
    monkeypatch.delenv("CONSILIUM_RUNS")
    monkeypatch.chdir(tmp_path)
    assert bench.runs_root() == tmp_path / "runs"
    assert bench.runs_root(Path("x")).is_absolute()


def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Calls the command line as the console script does."""
    monkeypatch.setattr(sys, "argv", ["consilium-bench", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "fake-mortalty"], 1, "did you mean 'fake-mortality'"),
        (["run", "costum", "--task", "T.yaml", "--sites", "s"], 1, "no benchmark 'costum'; did you mean 'custom'?"),
        (["run", "custom", "--task", "T.yaml", "--sites", "s", "--set", "teach.rounds"], 1, "--set teach.rounds: say KEY=VALUE"),
        (["ablate", "custom"], 1, "Your own data have no ablations"),
        (["ablate", "plain"], 1, f"'plain' has no ablations. These have some: {NAME}"),
        (["run", NAME, "--only", "studnt"], 1, "did you mean 'student'"),
        (["run", NAME, "--variant", "no-date"], 1, "did you mean 'no-data'"),
        (["run", NAME, "--variant", "no-data", "--debug"], 1, "The data are not at /nowhere"),
        (["table", NAME], 1, f"consilium-bench run {NAME}"),
        (["table", NAME, "--run", "elsewhere"], 1, "results.json"),
        (["run", NAME, "--seeds", "0"], 2, "--seeds"),
        (["run", NAME, "--runtime", "ray"], 2, "--runtime"),
        (["run"], 2, "NAME"),
    ],
)
def test_a_fault_is_one_plain_message_with_its_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONSILIUM_RUNS", str(tmp_path))
    found, _, said = invoke(capsys, monkeypatch, *arguments)
    assert found == code
    assert message in said and "Traceback" not in said
    if code == 1:
        assert said.startswith("Error: ") and said.count("\n") == 1


def test_table_prints_what_the_run_found(finished: tuple[bench.Outcome, str]) -> None:
    outcome, _ = finished
    runner = CliRunner(env={"CONSILIUM_RUNS": str(outcome.folder.parents[1])})
    said = runner.invoke(cli.app, ["table", NAME])
    assert said.exit_code == 0
    assert said.output == runner.invoke(cli.app, ["table", NAME, "--run", str(outcome.folder)]).output
    for words in (
        "GENERATED DATA",
        "invented 1.0, checksum c0ffeec0ffee",
        "480 stays",
        "12 stays without a label",
        "Seeds: 0, 1; folds: 2",
    ):
        assert words in said.output
    row = next(r for r in load_results(outcome.folder / "results.json").rows if (r.method, r.pattern) == ("fedavg", "all"))
    assert row.ci95 is not None
    assert f"{row.mean:.3f} ± {row.sd:.3f} [{row.ci95[0]:.3f}, {row.ci95[1]:.3f}]" in said.output
    line = next(text for text in said.output.splitlines() if re.search(r"student\W+fedavg\W+what each has\W+AUROC", text))
    assert "better" in line
    assert "Mean ± sd over seeds" in said.output and "teacher:labs" in said.output
    assert "teacher:labs/linear" not in said.output


def test_of_one_seed_no_spread_is_promised_and_single_teachers_of_an_ensemble_are_not_compared(
    finished: tuple[bench.Outcome, str], tmp_path: Path
) -> None:
    results = load_results(finished[0].folder / "results.json")
    more = [c.model_copy(update={"b": "teacher:labs/small"}) for c in results.comparisons if c.b == "teacher:labs/linear"]
    assert more
    several = results.model_copy(update={"seeds": [0], "comparisons": [*results.comparisons, *more]})
    console = Console(file=io.StringIO(), width=200)
    cli.show(several, tmp_path, console)
    assert "over seeds" not in console.file.getvalue() and "teacher:labs/" not in console.file.getvalue()


def test_a_debug_run_is_shown_only_where_there_is_no_other(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    debug = run(tmp_path, debug=True, only=["fedavg"], console=console).folder
    assert bench.newest_finished(NAME, tmp_path) == debug
    whole = run(tmp_path, seeds=1, only=["fedavg"]).folder
    newer = whole.rename(tmp_path / NAME / "20000101-000000")
    assert bench.newest_finished(NAME, tmp_path) == newer


def test_of_hospitals_that_train_and_test_the_table_tells_the_sizes(
    finished: tuple[bench.Outcome, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "write_demo", lambda folder, **_: write_tiny(folder))
    said = demo.prepare(tmp_path / "sites", base.Split(0, 0))
    tables = {f.parent.name: pd.read_csv(f) for f in (tmp_path / "sites").glob("*/patients.csv")}
    assert said["n"]["hospitals"]["sites"] == len(tables) - 1 == 2
    assert said["n"]["hospitals"]["visits"] == sum(len(table) for site, table in tables.items() if site != "reference")
    assert said["n"]["reference"]["visits"] == len(tables["reference"])
    results = load_results(finished[0].folder / "results.json")
    console = Console(file=io.StringIO(), width=200)
    cli.show(results.model_copy(update={"n": {"test": {}, "folds": [said["n"]]}}), tmp_path, console)
    assert f"Hospitals: {said['n']['hospitals']['visits']} visits, " in console.file.getvalue()


def test_run_exits_with_one_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONSILIUM_RUNS", str(tmp_path))
    monkeypatch.setenv("FAKE_FAIL", "fedavg-0-0")
    original = bench.run
    monkeypatch.setattr(bench, "run", lambda name, **asked: original(name, run_cell=fakes.run_cell, workers=1, **asked))
    code, said, fault = invoke(capsys, monkeypatch, "run", NAME, "--debug", "--only", "student", "--only", "fedavg")
    assert code == 1
    assert "MISSING fedavg-0-0" in said and "DEBUG RUN" in said and "student" in said
    assert fault.startswith("Error: 1 cell(s) failed")


def test_list_names_every_benchmark_for_people_and_programs() -> None:
    listed = json.loads(CliRunner().invoke(cli.app, ["list", "--json"]).output)
    assert [(b["name"], b["data"], b["methods"], b["folds"]) for b in listed][:1] == [(NAME, "generated", list(METHODS), 2)]
    assert [a["method"] for a in listed[0]["ablations"]] == [a.name for a in fakes.BENCHMARK.ablations]
    assert not listed[1]["ablations"]
    assert NAME in CliRunner().invoke(cli.app, ["list"]).output
    of_one = CliRunner().invoke(cli.app, ["list", NAME]).output
    assert all(method in of_one for method in METHODS)
    assert all(ablation.name in of_one for ablation in fakes.BENCHMARK.ablations)
    assert json.loads(CliRunner().invoke(cli.app, ["list", NAME, "--json"]).output) == listed[:1]


def test_a_new_benchmark_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "another.py").write_text("from tests.simulations.fakes import BENCHMARK\n")
    monkeypatch.setattr(simulations.benchmarks, "__path__", [*simulations.benchmarks.__path__, str(tmp_path)])
    assert base.get(NAME) is fakes.BENCHMARK
    sys.modules.pop("simulations.benchmarks.another")

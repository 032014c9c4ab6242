"""What the benchmark commands tell those who type them: refusals, warnings, and what stands above and in the tables."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common import terminal
from common.arrays import write_json
from common.errors import ConsiliumError, nearest
from common.evaluation.results import Results
from simulations import bench, cli, report
from simulations.benchmarks.base import Split, benchmarks
from tests.simulations import fakes
from tests.simulations.test_scores import all_cells, build

ABOUT = {"title": "invented", "runtime": "inproc", "debug": False, "missing": {}}
NEEDY = {name: b for name, b in benchmarks().items() if b.needs}


@pytest.fixture(scope="module")
def results() -> Results:
    return build(all_cells(), run=ABOUT)


def shown(results: Results, **about: Any) -> str:
    """Returns what is printed of results."""
    console = Console(file=io.StringIO(), width=200)
    cli.show(results.model_copy(update={"environment": results.environment | about}), Path("run"), console)
    return console.file.getvalue()


def test_the_run_directory_of_a_federation_is_refused_with_the_command_that_shows_it(tmp_path: Path, results: Results) -> None:
    of_sites = {"n": {"north": {"train": 9, "test": 3}}, "environment": {"python": "3.12"}}
    write_json(tmp_path / "results.json", results.model_copy(update=of_sites).model_dump(mode="json"))
    for read in (bench.results_of, lambda run: report.keep(run, tmp_path / "docs")):
        with pytest.raises(ConsiliumError, match=f"not of a benchmark.* consilium-server show {tmp_path}$"):
            read(tmp_path)


@pytest.mark.parametrize("command", ["run", "ablate"])
def test_who_interrupts_a_run_is_told_what_is_kept(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["consilium-bench", command, "eicu-mortality"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == f"{cli.INTERRUPTED}\n"


def test_a_twin_is_told_of_once_and_before_the_first_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "code_digest", lambda: "code")
    wanted = dataclasses.replace(fakes.BENCHMARK, data="real", prepare=fakes.prepare_twin, methods=("fedavg", "local"))
    for benchmark, times in ((wanted, 1), (dataclasses.replace(wanted, data="generated"), 0)):
        console = Console(file=io.StringIO(), width=200)
        out = tmp_path / benchmark.data
        outcome = bench.run(benchmark, seeds=1, out=out, run_cell=fakes.run_cell, console=console, workers=1)
        assert not outcome.missing
        before = console.file.getvalue().partition("cell=")[0]
        assert before.count("Warning: These patients are generated: no folder 'fake'.") == times
        assert console.file.getvalue().count("These patients are generated") == times


def test_published_figures_stand_beside_real_patients_only(results: Results) -> None:
    assert results.data == "generated" and "bedside score" not in shown(results)
    said = shown(results.model_copy(update={"data": "real"}))
    assert "bedside score" in said and "not found" in said


def test_of_a_debug_run_nothing_is_compared(results: Results) -> None:
    told = [dataclasses.asdict(a) for a in fakes.ABLATIONS]
    asked = dataclasses.replace(fakes.BENCHMARK, methods=("student", *(a.name for a in fakes.ABLATIONS)), published=())
    cells, about = all_cells(asked.methods), ABOUT | {"ablations": told}
    ablations = [build(cells, benchmark=asked, run=about | {"debug": debug}, every_pattern=True) for debug in (False, True)]
    methods = [results, build(all_cells(), run=ABOUT | {"debug": True})]
    for (whole, cut_short), words in ((methods, ("better", "Paired differences")), (ablations, ("helps", "two other settings"))):
        assert whole.comparisons and not cut_short.comparisons
        assert all(word in shown(whole) and word not in shown(cut_short) for word in words)
        assert "no differences are shown" in shown(cut_short)


def test_a_run_of_which_no_cell_finished_says_why_and_no_more(results: Results) -> None:
    said = shown(results.model_copy(update={"rows": [], "comparisons": []}), missing={"student-0-0": "all labels are the same"})
    assert "MISSING student-0-0: all labels are the same" in said and "No cell finished" in said


def test_test_visits_of_one_class_are_told_where_auroc_is_missing(results: Results) -> None:
    rows = [r for r in results.rows if r.metric not in ("auroc", "auprc")]
    left = [c for c in results.comparisons if c.metric not in ("auroc", "auprc")]
    assert cli.ONE_CLASS in shown(results.model_copy(update={"rows": rows, "comparisons": left}))
    assert cli.ONE_CLASS not in shown(results)


def test_a_narrow_table_leaves_out_sizes_and_breaks_no_method(results: Results) -> None:
    console = Console(file=io.StringIO(), width=80)
    cli.show(results, Path("run"), console)
    narrow = console.file.getvalue()
    assert "parameters" not in narrow and "student-uniform" in narrow and "parameters" in shown(results)


def test_a_summary_stands_before_the_table_of_differences(results: Results) -> None:
    before, _, _ = shown(results).partition("Paired differences")
    (better,) = (line for line in before.splitlines() if line.startswith("In AUROC the student is better than "))
    (same,) = (line for line in before.splitlines() if line.startswith("In AUROC the student is not to be told from "))
    assert "local" in better and "teachers" in same and "local" not in same and "`" not in better


def test_without_a_run_the_kept_results_are_named_where_there_are_some(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"no finished run of 'eicu-mortality'.*\. Kept results: /.*/docs/results\.md$"):
        bench.newest_finished("eicu-mortality", tmp_path)
    with pytest.raises(ConsiliumError, match=r"consilium-bench run metakd-adni\.$"):
        bench.newest_finished("metakd-adni", tmp_path)


@pytest.mark.parametrize("name", NEEDY)
def test_data_that_are_not_there_are_missed_before_a_run_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConsiliumError, match=r"The data are not there: .* is missing") as early:
        bench.run(name, debug=True, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConsiliumError) as late:
        NEEDY[name].prepare(tmp_path / "sites", Split(0, 0))
    assert str(late.value) == str(early.value)


def test_every_benchmark_on_open_data_says_what_it_needs() -> None:
    assert {"heart-disease", "hippocampus", "eicu-mortality", "eicu-los", "metakd-avmnist", "metakd-brats2018"} <= set(NEEDY)


def test_off_a_terminal_tables_are_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch, results: Results) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    for said, width in (("80", 80), ("", terminal.PLAIN_WIDTH), ("wide", terminal.PLAIN_WIDTH)):
        monkeypatch.setenv("COLUMNS", said)
        assert terminal.console().width == width
    narrow = Console(file=io.StringIO(), width=80)
    cli.show(results, Path("run"), narrow)
    lines = [line for line in narrow.file.getvalue().splitlines() if line.startswith("│")]
    assert lines and all(line.endswith("│") for line in lines), "a table is cut off"


def test_only_a_near_name_is_suggested() -> None:
    known = ["demo", "heart-disease", "mind-phenotyping"]
    assert nearest("nope", known) == ". Known: demo, heart-disease, mind-phenotyping"
    assert nearest("hart-disease", known).startswith("; did you mean 'heart-disease'?")

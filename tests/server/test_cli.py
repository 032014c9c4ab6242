"""``consilium-server``; a real resumption by it: tests/e2e."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.arrays import write_json
from common.errors import ConsiliumError
from common.evaluation.results import load_results
from server import checkpoint, cli
from server.run import read_config
from server.summary import summary
from tests.server import fakes
from tests.server.fakes import Clock, Site


@pytest.fixture
def interrupted(tmp_path: Path, clock: Clock) -> Path:
    """The directory of a run that lost its quorum."""
    with pytest.raises(Exception, match="lost its quorum"):
        fakes.perform(
            tmp_path / "run", [Site("ash", script=fakes.in_round("train.teach", 1, lambda *_: None)), Site("birch", {})]
        )
    return tmp_path / "run"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of Flower."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cli, "run_flower", lambda **options: calls.append(("own", options)))
    monkeypatch.setattr(cli, "run_flower_at", lambda connection, **options: calls.append((connection, options)))
    return calls


def resume(*words: object) -> Any:
    return CliRunner().invoke(cli.app, ["resume", *map(str, words)])


def test_a_run_is_resumed_on_the_connection_that_is_named(interrupted: Path, asked: list[tuple[Any, ...]]) -> None:
    assert "Student, teachers" in resume(interrupted).output
    assert resume(interrupted, "--connection", "clinic").exit_code == 0
    options = {"run_dir": interrupted, "num_supernodes": 2}
    assert asked == [(None, options), ("clinic", options)]


def test_hospitals_of_a_folder_are_simulated_one_node_each(interrupted: Path, tiny: Path, asked: list[tuple[Any, ...]]) -> None:
    assert resume(interrupted, "--sites", tiny).exit_code == 0
    ((where, options),) = asked
    assert (where, options["sites"], options["run_dir"], options["num_supernodes"]) == ("own", tiny, interrupted, 2)
    assert options["resume"] is True


def test_a_finished_run_starts_nothing(undisturbed: Path, asked: list[tuple[Any, ...]]) -> None:
    done = resume(undisturbed)
    assert (done.exit_code, asked) == (0, [])
    assert "nothing to resume" in done.output


def test_what_cannot_be_resumed_starts_nothing(
    interrupted: Path, tiny: Path, tmp_path: Path, asked: list[tuple[Any, ...]]
) -> None:
    assert resume(interrupted, "--sites", tiny, "--connection", "clinic").exit_code == 2
    with pytest.raises(ConsiliumError, match=r"No run at .*nowhere"):
        cli.resume(tmp_path / "nowhere")
    with pytest.raises(ConsiliumError, match=r"No hospital in .*: name a folder"):
        cli.resume(interrupted, sites=tmp_path)
    shutil.rmtree(interrupted / "checkpoint")
    with pytest.raises(ConsiliumError, match="cannot be read"):
        cli.resume(interrupted)
    assert asked == []


def test_a_fault_is_one_message_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["consilium-server", "resume", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("Error: No run at")


def test_what_the_hospitals_told_is_shown(undisturbed: Path) -> None:
    shown = CliRunner().invoke(cli.app, ["show", str(undisturbed)])
    assert shown.exit_code == 0, shown.output
    results = load_results(undisturbed / "results.json")
    whole = [r for r in results.rows if r.pattern == "all" and r.metric == "auroc"]
    student = next(r for r in whole if r.method == "student")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.output.splitlines() if line.startswith("│")]
    (row,) = [row for row in cells if row[:2] == [student.site, "what each has"]]
    teaching = next(r for r in whole if r.method == "teachers" and r.site == student.site)
    assert row[2:5] == [str(student.n), f"{student.mean:.3f}", f"{teaching.mean:.3f}"]
    assert "Modality weights in the end" in shown.output


def test_a_hospital_that_withheld_its_figures_is_named_with_their_number(undisturbed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    state = checkpoint.load(run)
    state.withheld = {"ash": 7, "birch": 0}
    write_json(run / "results.json", summary(read_config(run), state).model_dump(mode="json"))
    shown = CliRunner().invoke(cli.app, ["show", str(run)])
    assert shown.output.count("Withheld combinations of a model and modalities") == 1 and ": ash 7\n" in shown.output
    assert "Withheld" not in CliRunner().invoke(cli.app, ["show", str(undisturbed)]).output


def test_a_run_that_has_not_finished_has_nothing_to_show(interrupted: Path) -> None:
    refused = CliRunner().invoke(cli.app, ["show", str(interrupted)])
    assert isinstance(refused.exception, ConsiliumError)
    assert f"consilium-server resume {interrupted} --connection" in str(refused.exception)

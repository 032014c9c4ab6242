"""The project's own app by real ``flwr run`` simulations."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.arrays import read_arrays
from common.flower import run_flower
from server import app, cli
from server.record import Record
from server.rounds import RunFailed
from server.run import Run
from simulations.consortium import write_tiny
from simulations.inproc import run_inproc
from tests.e2e.processes import PATIENCE

pytestmark = pytest.mark.e2e


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "sites")
    return tmp_path / "sites"


def test_flowers_simulation_and_this_process_make_the_same_student(
    sites: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run_inproc(sites=sites, run_dir=tmp_path / "inproc", experiment="tiny")
    started = time.monotonic()
    run_flower(
        experiment="tiny", overrides=(), run_dir=tmp_path / "flwr", sites=sites, num_supernodes=2, timeout_s=PATIENCE, show=False
    )
    record_property("seconds of the tiny run (at most 40 on two quiet cores)", round(time.monotonic() - started))
    for name in ("student", "consilium", "teachers/cxr-base", "teachers/notes-linear"):
        here, there = (read_arrays(tmp_path / run / f"{name}.safetensors") for run in ("inproc", "flwr"))
        assert here.keys() == there.keys()
        for key in here:
            np.testing.assert_allclose(here[key], there[key], rtol=0, atol=1e-5, err_msg=key)
    here, there = (json.loads((tmp_path / run / "state.json").read_text(encoding="utf-8")) for run in ("inproc", "flwr"))
    assert (here["phase"], here["sites"], here["prior"]) == (there["phase"], there["sites"], there["prior"])


def test_the_command_resumes_a_run_with_simulated_hospitals(
    sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stops(run: Run) -> None:
        raise RunFailed("the power is out")

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(RunFailed):
        patched.setitem(app.PHASES, "evaluating", stops)  # type: ignore[attr-defined]
        run_inproc(sites=sites, run_dir=run, experiment="tiny")
    monkeypatch.setattr(sys, "argv", ["consilium-server", "resume", str(run), "--sites", str(sites)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert f"record of the run lie in {run}" in capfd.readouterr().out
    steps = [e["event"] for e in Record(run).events() if e["event"] in ("started", "failed", "resumed", "finished")]
    assert steps == ["started", "failed", "resumed", "finished"]
    assert (run / "student.safetensors").is_file()

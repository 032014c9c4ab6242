"""The launcher is tried with a Flower app of a few lines, so that only the launcher can fail."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from sklearn.metrics import roc_auc_score

from common import flower
from common.errors import ConsiliumError
from server.record import Record
from simulations import launch
from simulations.consortium import write_tiny
from simulations.inproc import run_inproc

PYPROJECT = """
[project]
name = "trial"
version = "0.1.0"
description = "Trial"
license = "Apache-2.0"
dependencies = ["torch>=99"]

[tool.flwr.app]
publisher = "consilium"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
experiment = ""
overrides = ""
run-dir = ""
resume = false
"""
SERVER = """
import json, os, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = dict(context.run_config)
    folder = Path(config["run-dir"])
    (folder / "started").touch()
    if config["experiment"] == "fail":
        raise RuntimeError("quorum not reached: 1 of 2")
    if config["experiment"] == "hang":
        time.sleep(600)
    while len(list(grid.get_node_ids())) < 2:  # a simulation adds its nodes while this runs already
        time.sleep(0.1)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
    replies = [dict(reply.content["said"]) for reply in grid.send_and_receive(messages)]
    (folder / "said.json").write_text(json.dumps({"config": config, "replies": replies, "env": dict(os.environ)}))
"""
CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    said = {"sites": os.environ["CONSILIUM_SITES"], "file": __file__, "partition": context.node_config["partition-id"]}
    return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    for name, text in {"pyproject.toml": PYPROJECT, "server/app.py": SERVER, "client/app.py": CLIENT}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for room in ("server", "client"):
        (folder / room / "__init__.py").touch()
    return folder


def left_behind(sites: Path) -> list[str]:
    """Command lines of processes that still know the run's sites folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CONSILIUM_SITES") == str(sites):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def run(app: Path, tmp_path: Path, experiment: str, *, timeout_s: float = 180, overrides: tuple[str, ...] = ()) -> Path:
    flower.run_flower(
        experiment=experiment,
        overrides=overrides,
        run_dir=tmp_path / "run",
        sites=tmp_path / "sites",
        num_supernodes=2,
        timeout_s=timeout_s,
        app=app,
        show=False,
    )
    return tmp_path / "run"


def test_a_run_completes_isolated_from_others_and_leaves_nothing(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    ports = [taken.getsockname()[1], flower._free_port()]
    monkeypatch.setattr(flower, "_free_port", lambda: ports.pop(0))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "foreign"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("PYTHONPATH", str(flower.project_root()))
    overrides = ("distill.temperature=4", "modalities=['a b',c]")
    with taken:
        folder = run(app, tmp_path, "talk", overrides=overrides)
    said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    assert not ports
    assert said["config"]["run-dir"] == str(folder)
    assert shlex.split(said["config"]["overrides"]) == list(overrides)
    assert sorted(reply["partition"] for reply in said["replies"]) == [0, 1]
    assert {reply["sites"] for reply in said["replies"]} == {str(tmp_path / "sites")}
    assert not any(Path(reply["file"]).is_relative_to(flower.project_root()) for reply in said["replies"])
    assert said["env"]["FLWR_TELEMETRY_ENABLED"] == "0"
    assert said["env"]["OMP_NUM_THREADS"] == "1"
    assert not Path(said["env"]["FLWR_HOME"]).exists()
    assert not (tmp_path / "foreign").exists()
    assert not left_behind(tmp_path / "sites")


def test_a_failed_run_raises_with_the_reason_and_the_log(app: Path, tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"finished:failed.*quorum not reached: 1 of 2.*flower\.log"):
        run(app, tmp_path, "fail")
    assert "RuntimeError: quorum not reached" in (tmp_path / "run" / "flower.log").read_text(encoding="utf-8")
    assert not left_behind(tmp_path / "sites")


def test_a_run_is_resumed_on_a_superlink_that_stays(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with flower._superlink(tmp_path / "sites", tmp_path / "superlink.log") as link:
        monkeypatch.setenv("FLWR_HOME", link.env["FLWR_HOME"])
        flower.run_flower_at(link.connection, run_dir=folder, num_supernodes=2, app=app)
        said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
        assert said["config"] == {"experiment": "", "overrides": "", "run-dir": str(folder), "resume": True}
        assert sorted(reply["partition"] for reply in said["replies"]) == [0, 1]
        (app / "server" / "app.py").write_text(SERVER.replace('config["experiment"] == "fail"', "True"), encoding="utf-8")
        with pytest.raises(ConsiliumError, match=r"finished:failed.*quorum not reached: 1 of 2.*flower\.log"):
            flower.run_flower_at(None, run_dir=folder, num_supernodes=2, app=app)
        assert any("flower-superlink" in line for line in left_behind(tmp_path / "sites"))
    assert not left_behind(tmp_path / "sites")


def test_an_app_that_cannot_be_submitted_raises_and_points_at_the_log(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"did not run the app in .*nowhere.*flower\.log"):
        run(tmp_path / "nowhere", tmp_path, "talk")
    assert not left_behind(tmp_path / "sites")


def test_a_run_that_takes_too_long_is_ended(app: Path, tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="took too long"):
        run(app, tmp_path, "hang", timeout_s=3)
    assert not left_behind(tmp_path / "sites")


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "started"), (signal.SIGTERM, "superlink.log")])
def test_a_launcher_that_is_told_to_stop_ends_what_it_started(
    app: Path, tmp_path: Path, number: signal.Signals, when: str
) -> None:
    code = (
        "import signal; from pathlib import Path; from common.flower import run_flower; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell that starts tests behind it lets them ignore it
        "run_flower(experiment='hang', overrides=(), run_dir=Path('run'), sites=Path('sites'), num_supernodes=2, "
        "timeout_s=180, app=Path('app'), show=False)"
    )
    env = os.environ | {"PYTHONPATH": str(flower.project_root())}
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / when).exists() or not left_behind(tmp_path / "sites"):
        assert launcher.poll() is None, "the launcher ended by itself"
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.1)
    launcher.send_signal(number)
    assert launcher.wait(timeout=30) != 0
    assert not left_behind(tmp_path / "sites")


def test_without_its_sources_the_project_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "__file__", str(tmp_path / "common" / "flower.py"))
    with pytest.raises(ConsiliumError, match="'inproc'"):
        flower.project_root()


def test_the_demonstration_shows_every_pattern_on_all_hospitals_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "tiny" / "first"
    sites = run_dir / "sites"
    write_tiny(sites)
    short = ["teach.rounds=1", "distill.epochs=1", "weights.steps=1", "refine.rounds=1"]
    run_inproc(sites=sites, run_dir=run_dir, experiment="tiny", overrides=short)
    capsys.readouterr()
    assert launch.main(["show", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert launch.main(["show", str(run_dir)]) == 0
    assert capsys.readouterr().out == said
    assert launch.main(["show", str(tmp_path)]) == 1
    assert "runs/demo/<time>" in capsys.readouterr().err
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    predictions = pd.read_parquet(run_dir / "predictions.parquet")
    everybody = predictions[(predictions["pattern"] == "all") & (predictions["model"] == "student")]
    auroc = roc_auc_score(everybody["label"], everybody["score"])
    assert lines[0][:2] == ["whatever each patient has", f"{auroc:.3f}"]
    assert lines[0][3] == str(len(everybody))
    assert {line[0] for line in lines[1:]} == set(predictions["pattern"]) - {"all"}
    assert "they sum to 1), from start to end: admission 0.25 -> " in said
    assert "Equal ones were kept" not in said  # tiny's weights move whatever they are worth
    Record(run_dir).event("equal-weights", reason="said by the test")
    launch.show(run_dir)
    assert "Equal ones were kept" in capsys.readouterr().out


def test_a_demonstration_that_fails_ends_with_exit_code_1_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(overrides: list[str]) -> Path:
        raise ConsiliumError(f"no room on the disk for {overrides}")

    monkeypatch.setattr(launch, "demo", fails)
    assert launch.main(["demo", "teach.rounds=3"]) == 1
    assert "no room on the disk for ['teach.rounds=3']" in capsys.readouterr().err


def test_a_wrong_override_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(["demo", "teach.round=3"]) == 1
    assert "did you mean" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_interrupted_demonstration_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "write_demo", lambda sites: sites.mkdir(parents=True))
    monkeypatch.setattr(launch, "run_flower", interrupted)
    assert launch.main(["demo"]) == 1
    assert f"consilium-server resume {tmp_path.resolve()}/runs/demo/" in capsys.readouterr().err


def test_the_log_of_an_attempt_that_failed_is_kept_when_the_run_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link, log = flower._SuperLink(None, tmp_path, dict(os.environ)), tmp_path / "flower.log"
    for said in ("first", "second"):
        command = [sys.executable, "-c", f"print('{said}')"]
        assert flower._follow(link, command, log, time.monotonic() + 60, True) == 0
        assert capsys.readouterr().out == f"{said}\n"
    assert log.read_text() == "first\nsecond\n"


def test_a_reader_that_has_seen_enough_ends_show_quietly() -> None:
    code = (
        "import sys; from simulations import launch; launch.show = lambda run: print('line\\n' * 10**6); "
        "sys.exit(launch.main(['show', '.']))"
    )
    words = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", words], cwd=Path(__file__).parents[2], capture_output=True, text=True)  # noqa: S607
    assert (done.stdout, done.stderr, done.returncode) == ("line\n", "", 0)

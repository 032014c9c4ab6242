"""A real federation on this machine: a SuperLink and two SuperNodes, each a process with a home and a manifest of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from common.flower import SCRIPTS, project_root
from server.record import Record
from simulations.consortium import write_tiny

pytestmark = pytest.mark.e2e
PATIENCE = 400
HOSPITALS = ("alder", "birch")


@dataclass
class Federation:
    """Processes that belong together; all of them, and no others, are ended with it."""

    home: Path
    processes: list[psutil.Process] = field(default_factory=list)

    def env(self, name: str, **more: str) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", "CONSILIUM_"))}
        return keep | {
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.home / name),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def start(self, name: str, *command: str, **more: str) -> None:
        folder = self.home / name
        folder.mkdir()
        with (folder / "process.log").open("wb") as log:
            words = [str(SCRIPTS / command[0]), *command[1:]]
            process = subprocess.Popen(words, cwd=folder, env=self.env(name, **more), stdout=log, stderr=log)
        self.processes.append(psutil.Process(process.pid))

    def flwr(self, *words: str) -> str:
        command = [str(SCRIPTS / "flwr"), *words]
        done = subprocess.run(command, cwd=self.home, env=self.env("admin"), capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout

    def end(self) -> None:
        family = [p for process in self.processes if process.is_running() for p in (process, *process.children(recursive=True))]
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            for process in family:
                if process.is_running():
                    stop(process)
            _, family = psutil.wait_procs(family, timeout=10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A SuperLink that knows the reference set, and two SuperNodes that know their manifest each."""
    write_tiny(tmp_path / "sites")
    made = Federation(tmp_path)
    port = free_port()
    try:
        reference = {"CONSILIUM_REFERENCE": str(tmp_path / "sites" / "reference")}
        made.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port), **reference)
        for name in HOSPITALS:
            manifest = f"manifest='{tmp_path / 'sites' / name / 'manifest.yaml'}'"
            place = ("--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
            made.start(name, "flower-supernode", "--insecure", *place, "--node-config", manifest)
        (tmp_path / "admin").mkdir()
        connection = f'[superlink]\ndefault = "clinic"\n\n[superlink.clinic]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (tmp_path / "admin" / "config.toml").write_text(connection, encoding="utf-8")
        wait_for_nodes(made)
        yield made
    finally:
        made.end()


def wait_for_nodes(federation: Federation) -> None:
    deadline = time.monotonic() + PATIENCE
    online = 0
    while online < len(HOSPITALS):
        assert all(p.is_running() for p in federation.processes), "a process ended by itself"
        assert time.monotonic() < deadline, "the SuperNodes did not come online"
        answer = federation.flwr("supernode", "list", "clinic", "--format", "json")
        online = answer.count('"online"')


def status(federation: Federation) -> list[str]:
    return [run["status"] for run in json.loads(federation.flwr("list", "clinic", "--format", "json"))["runs"]]


def test_a_federation_of_real_processes_makes_a_student(federation: Federation, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "run.toml"
    overrides = "teach.rounds=1 refine.rounds=0 federation.poll=1"  # a process starts, and imports torch, for every message
    config.write_text(f'experiment = "tiny"\noverrides = "{overrides}"\nrun-dir = "{run}"\n', encoding="utf-8")
    said = federation.flwr("run", str(project_root()), "clinic", "--stream", "--run-config", str(config))
    assert status(federation) == ["finished:completed"], said
    events = Record(run).events()
    assert {e["site"] for e in events if e["event"] == "enrolled"} == set(HOSPITALS)
    assert next(e for e in events if e["event"] == "plan")["reference"] == 60
    assert all(e["left_out"] == {} for e in events if e["event"] == "round")
    assert (run / "student.safetensors").is_file()

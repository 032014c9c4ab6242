"""Runs the Flower app by ``flwr run``, and asks how the run ended: Flower returns 0 for failed runs.

Plain ``flwr run`` shares one SuperLink per machine, whatever checkout, environment or sites folder started it, and leaves it
running. Here ``run_flower`` gives a run its own SuperLink, Flower home, port and empty working directory, and leaves no process
behind; ``run_flower_at`` runs on a SuperLink that somebody else looks after.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from common.errors import ConsiliumError

CONNECTION = "own"
RAY_CPUS = 2
START_SECONDS = 60.0
END_SECONDS = 5.0
PORTS_TRIED = 3
# Ray's sockets lie some 70 characters below its folder, and a socket's path may have about 105.
LONGEST_RAY_HOME = 35
SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class _SuperLink:
    """How a SuperLink is reached.

    Attributes:
        connection: Name of the connection in Flower's configuration; None for its default.
        cwd: Working directory of the commands.
        env: Their environment.
    """

    connection: str | None
    cwd: Path
    env: dict[str, str]


def run_flower(
    *,
    experiment: str,
    overrides: Sequence[str],
    run_dir: Path,
    sites: Path,
    num_supernodes: int,
    timeout_s: float,
    resume: bool = False,
    app: Path | None = None,
    show: bool = True,
) -> None:
    """Runs the Flower app once and returns when it has completed.

    Everything that Flower says is kept in ``flower.log`` and ``superlink.log`` of the run directory.

    Args:
        experiment: Name of the Hydra experiment.
        overrides: Hydra overrides, one per item.
        run_dir: Run directory that the ServerApp writes to; made if missing.
        sites: Folder with one sub-folder per hospital and perhaps one named ``reference``.
        num_supernodes: Number of simulated sites.
        timeout_s: Longest wait for the run, in seconds.
        resume: Whether to continue the run that the run directory holds.
        app: Folder with the Flower app's ``pyproject.toml``; the project itself by default.
        show: Whether the log also goes to standard output, line by line.

    Raises:
        ConsiliumError: If the app cannot be submitted, fails, is stopped or takes too long, with Flower's reason.
    """
    app = (app or project_root()).resolve()
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    run_config: dict[str, str | bool] = {"experiment": experiment, "run-dir": str(run_dir), "resume": resume}
    run_config["overrides"] = shlex.join(overrides)
    federation = (
        f"{_nodes(num_supernodes)} client-resources-num-cpus=1 init-args-num-cpus={RAY_CPUS} init-args-log-to-driver=false"
    )
    with _superlink(sites.resolve(), run_dir / "superlink.log") as link:
        _run(link, app, run_config, federation, run_dir / "flower.log", time.monotonic() + timeout_s, show)


def run_flower_at(connection: str | None, *, run_dir: Path, num_supernodes: int, app: Path | None = None) -> None:
    """Resumes a run on a SuperLink that is there already, and returns when it has completed; what Flower says is shown.

    Args:
        connection: Name of a connection in Flower's configuration; None for its default, as in plain ``flwr run``.
        run_dir: Run directory, as the ServerApp sees it.
        num_supernodes: Number of sites if the SuperLink simulates them, 0 for its default. It does not matter to real SuperNodes.
        app: Folder with the Flower app's ``pyproject.toml``; the project itself by default.

    Raises:
        ConsiliumError: If the app cannot be submitted, fails or is stopped, with Flower's reason.
    """
    app = (app or project_root()).resolve()
    run_config: dict[str, str | bool] = {"run-dir": str(run_dir.resolve()), "resume": True}
    # Not the project's folder: if this starts Flower's shared SuperLink, Ray's workers will import from it.
    link = _SuperLink(connection, Path(app.anchor), _settings(dict(os.environ)))
    _run(link, app, run_config, _nodes(num_supernodes), run_dir / "flower.log", math.inf, True)


def _nodes(number: int) -> str:
    return f"num-supernodes={number}" if number else ""


def project_root() -> Path:
    """Returns the folder of the source checkout, which is what ``flwr run`` bundles and submits.

    Raises:
        ConsiliumError: If the project is installed without its sources.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        raise ConsiliumError(
            f"The 'flwr' runtime submits the project's source checkout, but there is no pyproject.toml in {root}. "
            "Run it from a clone of the project, or use the runtime 'inproc'."
        )
    return root


@contextmanager
def _superlink(sites: Path, log: Path) -> Iterator[_SuperLink]:
    """Starts a SuperLink for one run and ends it, with every process it started, whatever happens meanwhile."""
    with (
        _on_signals(_leave, signal.SIGTERM, signal.SIGHUP),
        tempfile.TemporaryDirectory(prefix="consilium-", ignore_cleanup_errors=True) as scratch,
    ):
        home = Path(scratch).resolve()
        # Empty, because Ray's workers import from the directory in which the SuperLink was started. Also the mark by which
        # the run's processes are found again: Flower and Ray detach theirs, and some overwrite their environment.
        cwd = home / "cwd"
        cwd.mkdir()
        link = _SuperLink(CONNECTION, cwd, _environment(home, sites))
        try:
            port = _start(link, log)
            address = f'address = "127.0.0.1:{port}"\ninsecure = true\n'
            (home / "config.toml").write_text(f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{address}')
            yield link
        finally:
            with _on_signals(_ignore, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                _end(cwd)


def _environment(home: Path, sites: Path) -> dict[str, str]:
    """Returns the environment of the run's processes: nobody else's Flower or Ray settings, and no calls home."""
    env = _settings({name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))})
    env |= {"FLWR_HOME": str(home), "CONSILIUM_SITES": str(sites)}
    if len(str(home)) <= LONGEST_RAY_HOME:
        env["RAY_TMPDIR"] = str(home)
    return env


def _settings(env: dict[str, str]) -> dict[str, str]:
    """Returns an environment in which Flower's commands are found, call nobody, install nothing and use one thread each."""
    return env | {
        "PATH": f"{SCRIPTS}{os.pathsep}{env.get('PATH', os.defpath)}",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }


def _start(link: _SuperLink, log: Path) -> int:
    """Starts the SuperLink on a free port of this machine and returns the port when it listens there."""
    deadline = time.monotonic() + START_SECONDS
    for _ in range(PORTS_TRIED):
        port = _free_port()
        command = [str(SCRIPTS / "flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        with log.open("ab") as out:
            process = _popen(link, command, out.fileno())
        while process.poll() is None and time.monotonic() < deadline:
            if _listens(process.pid, port):
                return port
            time.sleep(0.05)
    raise ConsiliumError(f"Flower's SuperLink did not start. Look for the cause in its log: {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(pid: int, port: int) -> bool:
    """Whether this very process listens on the port; a health check would also be answered by another SuperLink."""
    with suppress(psutil.Error):
        connections = psutil.Process(pid).net_connections("tcp")
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)
    return False


def _popen(link: _SuperLink, command: Sequence[str], out: int) -> subprocess.Popen[bytes]:
    # A session of its own keeps Ctrl-C from the children: they are ended in order, by `_end`.
    return subprocess.Popen(
        command,
        cwd=link.cwd,
        env=link.env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _run(
    link: _SuperLink, app: Path, run_config: dict[str, str | bool], federation: str, log: Path, deadline: float, show: bool
) -> None:
    """Submits the app, follows its log until the log ends, and checks how the run ended."""
    with tempfile.TemporaryDirectory(prefix="consilium-") as scratch:
        config = Path(scratch) / "run.toml"
        # A JSON value is a TOML value, quotes and all, which Flower's KEY='VALUE' notation is not.
        config.write_text(
            "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in run_config.items()), encoding="utf-8"
        )
        before = log.stat().st_size if log.exists() else 0  # of a run that is resumed
        command = _flwr(link, "run", str(app)) + ["--stream", "--run-config", str(config)]
        code = _follow(link, command + (["--federation-config", federation] if federation else []), log, deadline, show)
    started = re.search(r"started run (\d+)", log.read_bytes()[before:].decode(errors="replace"))
    if code or not started:
        raise ConsiliumError(f"Flower did not run the app in {app} to its end (exit code {code}). Its log says why: {log}")
    status, reason = _outcome(link, started[1], deadline)
    if status != "finished:completed":
        raise ConsiliumError(f"The Flower run did not complete ({status}): {reason}. Its log: {log}")


def _flwr(link: _SuperLink, *words: str) -> list[str]:
    return [str(SCRIPTS / "flwr"), *words, *([link.connection] if link.connection else [])]


def _follow(link: _SuperLink, command: Sequence[str], log: Path, deadline: float, show: bool) -> int:
    """Runs a command until it ends, keeps what it says in ``log`` and returns its exit code."""
    with log.open("ab") as out:
        before = out.tell()
        process = _popen(link, command, out.fileno())
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            lines.seek(before)
            code = None
            while code is None:
                code = process.poll()
                text = lines.read()
                if show:
                    print(text, end="", flush=True)
                if code is None and time.monotonic() > deadline:
                    raise ConsiliumError(f"The Flower run took too long and was ended. Its log so far: {log}")
                if code is None:
                    time.sleep(0.2)
        return code
    finally:
        process.terminate()


def _outcome(link: _SuperLink, run: str, deadline: float) -> tuple[str, str]:
    """Returns how a run ended, and why: Flower's exit codes do not tell."""
    while True:
        command = _flwr(link, "list") + ["--run-id", run, "--format", "json"]
        answer = subprocess.run(command, cwd=link.cwd, env=link.env, capture_output=True, text=True)
        try:
            told = json.loads(answer.stdout)["runs"][0]
            status, reason = str(told["status"]), str(told["status-details"])
        except (ValueError, LookupError):
            return "unknown", "the SuperLink does not answer"
        if status.startswith("finished") or time.monotonic() > deadline:
            return status, reason
        time.sleep(0.5)


def _end(cwd: Path) -> None:
    """Ends every process that works in ``cwd``."""
    for stop in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        alive = [process for process in psutil.process_iter() if _works_in(process, cwd)]
        for process in alive:
            with suppress(psutil.Error):
                stop(process)
        psutil.wait_procs(alive, timeout=END_SECONDS)


def _works_in(process: psutil.Process, cwd: Path) -> bool:
    with suppress(psutil.Error):
        return process.cwd() == str(cwd)
    return False


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Handles signals for a while, except those that the caller handles or ignores (``nohup``) itself."""
    ours = threading.current_thread() is threading.main_thread()
    defaults = (signal.SIG_DFL, signal.default_int_handler, _leave)
    previous = {number: signal.getsignal(number) for number in numbers if ours and signal.getsignal(number) in defaults}
    for number in previous:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    return None

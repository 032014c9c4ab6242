"""Runs the Flower app on Flower's simulation runtime, in a SuperLink that belongs to this one run.

Plain ``flwr run`` shares one SuperLink per machine, whatever checkout, environment or sites folder started it, leaves it
running, and returns 0 for failed runs. Here every run gets its own SuperLink, Flower home, port and empty working directory,
is asked how it ended, and leaves no process behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
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
from rich.console import Console
from rich.table import Table

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
    """A running SuperLink: its scratch folder, and the environment and working directory of all that belongs to it."""

    home: Path
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
    app = app or project_root()
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    log = run_dir / "flower.log"
    run_config: dict[str, str | bool] = {"experiment": experiment, "run-dir": str(run_dir), "resume": resume}
    run_config["overrides"] = shlex.join(overrides)
    deadline = time.monotonic() + timeout_s
    with _superlink(sites.resolve(), run_dir / "superlink.log") as link:
        _submit(link, app.resolve(), run_config, num_supernodes, log, deadline, show)
        status, reason = _outcome(link, deadline)
    if status != "finished:completed":
        raise ConsiliumError(f"The Flower run of experiment '{experiment}' did not complete ({status}): {reason}. Its log: {log}")


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
        link = _SuperLink(home, cwd, _environment(home, sites))
        try:
            port = _start(link, log)
            connection = f'address = "127.0.0.1:{port}"\ninsecure = true\n'
            (home / "config.toml").write_text(f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{connection}')
            yield link
        finally:
            with _on_signals(_ignore, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                _end(cwd)


def _environment(home: Path, sites: Path) -> dict[str, str]:
    """Returns the environment of the run's processes: nobody else's Flower or Ray settings, and no calls home."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    env |= {
        "PATH": f"{SCRIPTS}{os.pathsep}{env.get('PATH', os.defpath)}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "CONSILIUM_SITES": str(sites),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }
    if len(str(home)) <= LONGEST_RAY_HOME:
        env["RAY_TMPDIR"] = str(home)
    return env


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


def _submit(
    link: _SuperLink, app: Path, run_config: dict[str, str | bool], num_supernodes: int, log: Path, deadline: float, show: bool
) -> None:
    """Submits the app and follows its log until the log ends."""
    config = link.home / "run.toml"
    # A JSON value is a TOML value, quotes and all, which Flower's KEY='VALUE' notation is not.
    config.write_text("".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in run_config.items()), encoding="utf-8")
    federation = (
        f"num-supernodes={num_supernodes} client-resources-num-cpus=1 init-args-num-cpus={RAY_CPUS} init-args-log-to-driver=false"
    )
    command = [str(SCRIPTS / "flwr"), "run", str(app), CONNECTION, "--stream"]
    command += ["--run-config", str(config), "--federation-config", federation]
    with log.open("wb") as out:
        process = _popen(link, command, out.fileno())
    with log.open(encoding="utf-8", errors="replace") as lines:
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
    if code:
        raise ConsiliumError(f"Flower did not run the app in {app} to its end (exit code {code}). Its log says why: {log}")


def _outcome(link: _SuperLink, deadline: float) -> tuple[str, str]:
    """Returns how the SuperLink's only run ended, and why: Flower's exit codes do not tell."""
    while True:
        command = [str(SCRIPTS / "flwr"), "list", CONNECTION, "--format", "json"]
        answer = subprocess.run(command, cwd=link.cwd, env=link.env, capture_output=True, text=True)
        try:
            run = json.loads(answer.stdout)["runs"][0]
            status, reason = str(run["status"]), str(run["status-details"])
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


def demo() -> Path:
    """Writes the demonstration consortium, runs the app on it and shows the result.

    Returns:
        The run directory, ``runs/demo/<time>`` below the current directory.

    Raises:
        ConsiliumError: If the run does not complete.
    """
    # Imported here, because they take seconds that a run of anything else need not wait for.
    from client.site import hospital_folders
    from simulations.consortium import write_demo

    run_dir = Path("runs", "demo", time.strftime("%Y%m%d-%H%M%S")).resolve()
    sites = run_dir / "sites"
    started = time.monotonic()
    print(f"Six hospitals and a reference set are written to {sites}", flush=True)
    write_demo(sites)
    run_flower(
        experiment="demo",
        overrides=(),
        run_dir=run_dir,
        sites=sites,
        num_supernodes=len(hospital_folders(sites)),
        timeout_s=900,
    )
    _show(run_dir)
    print(f"Done in {time.monotonic() - started:.0f} s. Student, teachers, weights and record of the run lie in {run_dir}")
    return run_dir


def _show(run_dir: Path) -> None:
    """Prints what the hospitals reported of student and teachers, as it stands in the run's state."""
    found: dict[str, dict[str, str]] = {}
    for row in json.loads((run_dir / "state.json").read_text(encoding="utf-8"))["evaluation"]:
        cells = found.setdefault(row["site"], {})
        if row["pattern"] == "all" and row["metric"] == "auroc":
            cells |= {row["model"]: f"{row['value']:.3f}", "visits": str(row["n"])}
    table = Table("hospital", "student", "teachers", "visits", title="AUROC on each hospital's test patients")
    for site, cells in sorted(found.items()):
        table.add_row(site, *(cells.get(column, "-") for column in ("student", "teachers", "visits")))
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``python -m simulations.launch demo``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.launch", description=__doc__)
    parser.add_argument("what", choices=["demo"], help="what to run")
    parser.parse_args(argv)
    try:
        demo()
    except ConsiliumError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The ServerApp: reads like the five phases."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import load_config
from common.errors import ConsiliumError
from server.phases.distill import distill
from server.phases.enrol import enrol, roll_call, take_back
from server.phases.evaluate import evaluate
from server.phases.refine import refine
from server.phases.teach import teach
from server.rounds import RunFailed
from server.run import Run, default_folder, open_run

PHASES = {"teaching": teach, "distilling": distill, "refining": refine, "evaluating": evaluate}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs or resumes the five phases.

    Run-config: ``experiment`` (a file of ``configs/experiment``), ``overrides`` (Hydra overrides), ``run-dir`` (absolute; a new
    one by default) and ``resume`` (continue the run that ``run-dir`` holds).

    Raises:
        ConsiliumError: If the configuration is refused; nothing has been started then.
        RunFailed: If the run fails; Flower shows it as failed.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    wanted = str(context.run_config.get("run-dir", ""))
    if context.run_config.get("resume"):
        run = open_run(grid, Path(wanted).resolve(), None)
    else:
        config = load_config(str(context.run_config["experiment"]), str(context.run_config.get("overrides", "")))
        run = open_run(grid, Path(wanted).resolve() if wanted else default_folder(config.name), config)
    play(run)


def play(run: Run) -> None:
    """Takes a run to its end, one transition at a time, from wherever it stands.

    Raises:
        RunFailed: With the reason, which is also in the run's state and record.
    """
    try:
        if run.state.phase != "finished":
            run.settle_reference()
            replies = roll_call(run)
            if run.state.phase == "enrolling":
                enrol(run, replies)
        while run.state.phase in PHASES:
            take_back(run)
            PHASES[run.state.phase](run)
    except Exception as error:
        told = isinstance(error, (RunFailed, ConsiliumError))
        run.fail(str(error) if told else f"{type(error).__name__} in the server; its log holds more")
        raise
    run.record.event("finished", folder=str(run.folder))

"""The demonstration: hospitals are written as files, the Flower app runs on them, and the result is shown."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from common.config import load_config
from common.data.manifest import hospital_folders
from common.errors import ConsiliumError
from common.evaluation.metrics import metrics
from common.evaluation.predictions import ALL, STUDENT, TEACHERS
from common.evaluation.results import FILE_NAME, load_results
from common.flower import run_flower
from server.record import Record
from simulations.cells import collect_predictions
from simulations.consortium import write_demo


def demo(overrides: Sequence[str] = ()) -> Path:
    """Writes the demonstration consortium, runs the app on it and shows the result.

    Args:
        overrides: Hydra overrides of the experiment.

    Returns:
        The run directory, ``runs/demo/<time>`` below the current directory.

    Raises:
        ConsiliumError: If the configuration is refused, before anything starts, or the run does not complete.
    """
    load_config("demo", overrides)
    run_dir = Path("runs", "demo", time.strftime("%Y%m%d-%H%M%S")).resolve()
    sites = run_dir / "sites"
    started = time.monotonic()
    print(f"Six hospitals and a reference set are written to {sites}", flush=True)
    write_demo(sites)
    try:
        run_flower(
            experiment="demo",
            overrides=overrides,
            run_dir=run_dir,
            sites=sites,
            num_supernodes=len(hospital_folders(sites)),
            timeout_s=900,
        )
    except KeyboardInterrupt:
        resume = f"{Path(sys.executable).parent / 'consilium-server'} resume {run_dir} --sites {sites}"
        raise ConsiliumError(f"Interrupted. Everything so far is on disk; go on with: {resume}") from None
    show(run_dir)
    print(
        f"Done in {time.monotonic() - started:.0f} s. Student, teachers, weights, results and record of the run lie in {run_dir}"
    )
    return run_dir


def show(run_dir: Path) -> None:
    """Prints what the student and the teachers are worth on all hospitals' test patients together, pattern by pattern.

    Only a simulation can: it owns the hospitals' folders, where the predictions lie.

    Raises:
        ConsiliumError: If the run is no finished demonstration.
    """
    run_dir = run_dir.resolve()
    collected = run_dir / "predictions.parquet"
    if not (run_dir / FILE_NAME).is_file():
        raise ConsiliumError(f"No finished demonstration at {run_dir}. Name a run directory, like runs/demo/<time>.")
    if not collected.is_file() and not (run_dir / "sites").is_dir():
        raise ConsiliumError(
            f"{run_dir} is no demonstration that this machine ran. A benchmark's table: consilium-bench table NAME --run DIR; "
            "what real hospitals told: consilium-server show DIR"
        )
    if not collected.is_file():
        name = f"{run_dir.parent.name}-{run_dir.name}"
        collect_predictions(run_dir / "sites", name).to_parquet(collected, index=False)
    predictions = pd.read_parquet(collected)
    whole = predictions[predictions["model"].isin([STUDENT, TEACHERS])]
    title = "AUROC, all hospitals' test patients (generated)"
    table = Table("modalities present", "student", "teachers", "visits", title=title)
    for pattern in sorted(map(str, whole["pattern"].unique()), key=lambda p: (p != ALL, p.count("+"), p)):
        part = whole[whole["pattern"] == pattern]
        cells = [_auroc(part[part["model"] == model]) for model in (STUDENT, TEACHERS)]
        table.add_row("whatever each patient has" if pattern == ALL else pattern, *cells, str(part["row"].count() // 2))
    Console().print(table)
    results = load_results(run_dir / FILE_NAME)
    sizes = {r.method: r.parameters for r in results.rows if r.parameters}
    teachers = [n for m, n in sizes.items() if m != STUDENT]
    print(f"Parameters: student {sizes.get(STUDENT, 0):,}; its {len(teachers)} teachers {sum(teachers):,}")
    first = {w.modality: w.value for w in reversed(results.weights)}
    last = {w.modality: w.value for w in results.weights}
    moved = ", ".join(f"{m} {first[m]:.2f} -> {v:.2f}" for m, v in last.items())
    print(f"Modality weights (what the teachers of each count in the consilium; they sum to 1), from start to end: {moved}")
    if any(event["event"] == "equal-weights" for event in Record(run_dir).events()):
        print("Equal ones were kept: learned ones were not better on the reference set by a standard error.")


def _auroc(predictions: pd.DataFrame) -> str:
    found = metrics("binary", predictions[["score"]].to_numpy(), predictions[["label"]].to_numpy())
    return f"{found['auroc']:.3f}" if "auroc" in found else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``python -m simulations.launch demo [OVERRIDE ...] | show RUN``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("demo", help="write the hospitals, run the app on them, show the result")
    running.add_argument("overrides", nargs="*", help="Hydra overrides, like distill.temperature=4")
    commands.add_parser("show", help="show the result of a demonstration again").add_argument("run", type=Path)
    said = parser.parse_args(argv)
    try:
        if said.command == "show":
            show(said.run)
        else:
            demo(said.overrides)
        sys.stdout.flush()
    except ConsiliumError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read along, like head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())

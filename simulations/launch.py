"""The demonstration: hospitals are written as files, the Flower app runs on them, and the result is shown."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.data.manifest import hospital_folders
from common.errors import ConsiliumError
from common.flower import run_flower
from simulations.consortium import write_demo


def demo() -> Path:
    """Writes the demonstration consortium, runs the app on it and shows the result.

    Returns:
        The run directory, ``runs/demo/<time>`` below the current directory.

    Raises:
        ConsiliumError: If the run does not complete.
    """
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

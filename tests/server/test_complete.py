"""A whole run with a teacher of complete visits, the pooled bottleneck and gradient modulation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from server import checkpoint
from server.rounds import RunFailed
from simulations.inproc import run_inproc

GROUP = "complete/bottleneck"
OVERRIDES = [
    "model.fusion=bottleneck",
    "model.complete=bottleneck",
    "balance=gradient-modulation",
    "teach.rounds=2",
    "distill.epochs=1",
    "weights.steps=1",
    "refine.rounds=1",
]


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "run"
    run_inproc(sites=tiny, run_dir=folder, experiment="tiny", overrides=OVERRIDES)
    return folder


def test_the_sites_teach_it_together_and_the_server_keeps_it(run: Path) -> None:
    state = checkpoint.load(run)
    assert state.phase == "finished"
    members = state.group_sites()[GROUP]
    assert members == ["birch"]  # alder tells too few visits with everything
    assert "complete" not in state.modality_sites()
    assert {c["group"] for c in state.curves} >= {GROUP}


def test_a_run_that_asks_for_it_where_nobody_can_train_it_fails_before_anything_is_trained(tiny: Path, tmp_path: Path) -> None:
    sites = tmp_path / "sites"
    shutil.copytree(tiny, sites)
    for site in ("alder", "birch"):
        file = sites / site / "manifest.yaml"
        manifest = yaml.safe_load(file.read_text())
        manifest["limits"] = {**manifest.get("limits", {}), "largest": "linear"}
        file.write_text(yaml.safe_dump(manifest))
    with pytest.raises(RunFailed, match=r"Leave model\.complete out"):
        run_inproc(
            sites=sites, run_dir=tmp_path / "run", experiment="tiny", overrides=[*OVERRIDES, "model.teachers.image=[linear]"]
        )


def test_it_is_evaluated_where_nothing_is_missing(run: Path, tiny: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    task = json.loads((run / "config.json").read_text())["task"]
    whole = "+".join(sorted(task["modalities"]))
    rows = [r for r in results["rows"] if r["method"] == "teacher:complete"]
    files = sorted(tiny.glob(f"*/.consilium/{run.parent.name}-{run.name}/predictions.parquet"))
    told = pd.concat(map(pd.read_parquet, files))
    mine = told[told["model"] == "teacher:complete"]
    assert set(mine["pattern"]) == {whole}
    assert {r["pattern"] for r in rows} <= {whole}

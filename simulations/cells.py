"""One cell of a benchmark: a method on a seed and a fold."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from common.arrays import write_json
from common.config import BalanceConfig, Config, DistillConfig, RefineConfig, WeightsConfig, load_config, to_json
from common.data.ingest.frames import read_frame, texts
from common.data.manifest import OWN_FOLDER, hospital_folders, load_manifest
from common.errors import ConsiliumError
from common.evaluation.predictions import predict_patterns
from common.flower import run_flower
from common.models.ensemble import build_teacher
from common.models.student import build_student, parameters_of
from server import checkpoint
from server.record import Record
from server.run import CONFIG_FILE, read_config
from simulations.ablations import MAIN, METAKD, NO_KD, UNIFORM
from simulations.baselines import BASELINES, Consortium, Trained, open_consortium
from simulations.benchmarks.base import Benchmark
from simulations.central_kd import central_kd
from simulations.inproc import run_inproc
from simulations.metakd import SETTINGS, metakd_faithful
from simulations.region_figures import OVERLAY_FILE, draw_overlay
from simulations.work import RUN_FOLDER, Job, Work

RUNS: dict[str, tuple[str, ...]] = {
    MAIN: (),
    "student-uniform": UNIFORM,
    "student-metakd": METAKD,
    "student-no-kd": NO_KD,
    "teachers": ("distill.epochs=0", "refine.rounds=0"),
}
"""Methods of every benchmark that are a run of the five phases -> overrides."""

METAKD_FAITHFUL = "metakd-faithful"
ALONE: Mapping[str, Callable[[Consortium], Trained]] = {**BASELINES, "central-kd": central_kd, METAKD_FAITHFUL: metakd_faithful}
"""Methods that are no run of the five phases."""

DEBUG = ("teach.rounds=2", "distill.epochs=2", "refine.rounds=1", "weights.steps=2")
FLOWER_TIMEOUT_S = 3600.0


def methods() -> list[str]:
    """Returns the names of the methods of every benchmark."""
    return sorted([*RUNS, *ALONE])


def _runs(benchmark: Benchmark) -> dict[str, tuple[str, ...]]:
    """Returns the methods that are a run of the five phases, ablations too -> overrides."""
    return RUNS | {a.name: a.overrides for a in benchmark.ablations}


def run_cell(work: Work, job: Job) -> None:
    """Runs one cell and writes ``predictions.parquet`` and, last, ``cell.json`` into its folder, which exists.

    Args:
        work: What all cells of the benchmark run share; its runtime is not for baselines, which are no Flower runs.
        job: Which cell; its sites are prepared.

    Raises:
        ConsiliumError: If the method is unknown, the configuration is refused or a Flower run fails.
        RunFailed: If an in-process run fails.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    runs = _runs(work.benchmark)
    overrides = [
        f"seed={job.seed}",
        *work.benchmark.protocols.get(work.variant or "", ()),
        *(SETTINGS if job.method == METAKD_FAITHFUL else ()),
        *work.benchmark.overrides.get(MAIN if work.benchmark.ablation(job.method) else job.method, ()),
        *(DEBUG if work.debug else ()),
        *runs.get(job.method, ()),  # last: they are what makes it this method
    ]
    config = load_config(work.benchmark.experiment, overrides)
    if job.method in runs:
        said, predictions = _federated(work, job, config, overrides)
    else:
        said, predictions = _baseline(job.method, config, work.sites(work.split(job)))
    out = work.cell(job)
    predictions.to_parquet(out / "predictions.parquet", index=False)
    head = work.head(job) | {"seconds": round(time.monotonic() - started, 1)}
    write_json(out / "cell.json", head | said | {"status": "finished"})


def _federated(work: Work, job: Job, config: Config, overrides: list[str]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Runs the five phases and collects the predictions from the hospitals' folders, which a simulation owns."""
    experiment, sites, out = work.benchmark.experiment, work.sites(work.split(job)), work.cell(job)
    run_dir = out / RUN_FOLDER
    shutil.rmtree(run_dir, ignore_errors=True)
    taught = _begin_behind_teaching(work, job, config)
    if work.runtime == "flwr":
        run_flower(
            experiment=experiment,
            overrides=overrides,
            run_dir=run_dir,
            sites=sites,
            num_supernodes=len(hospital_folders(sites)),
            timeout_s=FLOWER_TIMEOUT_S,
            resume=taught,
            show=False,
        )
    else:
        run_inproc(sites=sites, run_dir=run_dir, experiment=experiment, overrides=overrides, resume=taught)
    if config.task.type == "segmentation":
        draw_overlay(config, sites, run_dir, out / OVERLAY_FILE, debug=work.debug)
    state = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))
    if absent := sorted({load_manifest(f).site for f in hospital_folders(sites)} - set(state["sites"])):
        raise ConsiliumError(
            f"{', '.join(absent)} took no part: {run_dir}/events.jsonl says why. A pooled figure needs them all: mend their "
            "files, and run the benchmark again."
        )
    groups = sorted({g for s in state["sites"].values() for g in s["groups"]})
    size = (
        sum(parameters_of(build_teacher(g, config.task, config.model)) for g in groups)
        if not config.trains_student
        else parameters_of(build_student(config.task, config.model))
    )
    trains = {s for s, enrolled in state["sites"].items() if enrolled["groups"]}
    moved = {s: sum(sum(ways) for ways in phases.values()) for s, phases in state["traffic"].items() if s in trains}
    weights = [{k: v for k, v in w.items() if k != "omega"} for w in state["weights"]]
    excluded = sum(s["excluded"] for s in state["sites"].values()) + state["reference_excluded"]
    said = {"parameters": size, "bytes_per_site": moved, "weights": weights, "curves": state["curves"], "excluded": excluded}
    predictions = collect_predictions(sites, f"{out.name}-{RUN_FOLDER}")
    silent = sorted({s for s, e in state["sites"].items() if e["visits"]["test"]} - set(predictions["site"]))
    if silent:
        raise ConsiliumError(
            f"No test predictions of {', '.join(silent)}: see {run_dir}/events.jsonl. A pooled figure needs them all."
        )
    return said, predictions


def _begin_behind_teaching(work: Work, job: Job, config: Config) -> bool:
    """Writes the state that a run has when its teachers are ready, if a finished cell on the same sites taught the same ones.

    The teachers do not depend on what becomes of them: resumed from there, the run ends as if it had taught them itself. Its
    record names the cell where enrolment and teaching are recorded.

    Returns:
        Whether there was such a cell.
    """
    run_dir, prepared = work.cell(job) / RUN_FOLDER, work.sites(work.split(job)).stat().st_mtime
    others = (replace(job, method=m) for m in _runs(work.benchmark) if m != job.method)
    for other in (o for o in others if work.split(o) == work.split(job)):
        source = work.cell(other) / RUN_FOLDER
        # Sites that were prepared anew since have other checksums: they would not go on with a run of the old ones.
        if work.fault(other) is None and (source / checkpoint.STATE_FILE).stat().st_mtime > prepared:
            theirs = read_config(source)
            if _up_to_teaching(theirs) == _up_to_teaching(config):
                break
    else:
        return False
    state = checkpoint.load(source)
    state.phase = "distilling"
    for name in ("student", "consilium", "best:student", "best:consilium", "omega-adam", "velocity"):
        state.arrays.pop(name, None)
    state.best.pop("student", None)
    state.curves = [c for c in state.curves if c["phase"] == "teaching"]
    state.weights, state.equal_weights, state.evaluation, state.withheld = [], False, [], {}
    state.traffic = {site: {"teach": phases["teach"]} for site, phases in state.traffic.items() if "teach" in phases}
    run_dir.mkdir()
    shutil.copy(source / "environment.json", run_dir)
    write_json(run_dir / CONFIG_FILE, to_json(config))
    earlier = Record(source).events("taught")
    Record(run_dir).event("taught", by=earlier[0]["by"] if earlier else other.name)
    checkpoint.save(run_dir, state)
    return True


def _up_to_teaching(config: Config) -> Config:
    """Returns a configuration without what matters only after the teach phase."""
    distill, model = DistillConfig(reference=config.distill.reference), replace(config.model, fusion="")
    return replace(config, model=model, distill=distill, weights=WeightsConfig(), balance=BalanceConfig(), refine=RefineConfig())


def collect_predictions(sites: Path, run: str) -> pd.DataFrame:
    """Moves the predictions of a run out of the folders of simulated hospitals.

    Args:
        sites: Sites folder.
        run: Name of the run.

    Returns:
        The predictions of all sites with columns ``site`` and ``patient`` (a hash of the patient's name).

    Raises:
        ConsiliumError: If no site has any.
    """
    frames = []
    for folder in hospital_folders(sites):
        place = folder / OWN_FOLDER / run
        if (place / "predictions.parquet").is_file():
            frames.append(_with_patients(folder, pd.read_parquet(place / "predictions.parquet")))
            shutil.rmtree(place)
    if not frames:
        raise ConsiliumError(f"No site under {sites} kept predictions of run '{run}'. See events.jsonl of the run.")
    return pd.concat(frames, ignore_index=True)


def _with_patients(folder: Path, predictions: pd.DataFrame) -> pd.DataFrame:
    """Adds the site and a key by which the visits of one patient are found, wherever they lie."""
    manifest = load_manifest(folder)
    names = texts(read_frame(folder / manifest.patients)[manifest.patient])
    keys = names.map(lambda name: hashlib.sha256(name.encode()).hexdigest()[:16], na_action="ignore").to_numpy()
    return predictions.assign(site=manifest.site, patient=keys[predictions["row"].to_numpy()])


def _baseline(method: str, config: Config, sites: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    if method not in ALONE:
        raise ConsiliumError(f"There is no method '{method}'. Known: {', '.join(methods())}")
    consortium = open_consortium(sites, config)
    trained = ALONE[method](consortium)
    folders = {load_manifest(f).site: f for f in hospital_folders(sites)}
    frames = []
    for site, cohort in consortium.testing.items():
        speaker, scaling = trained.speaker(site)
        frames.append(_with_patients(folders[site], predict_patterns(cohort, [speaker], scaling)))
    said = {
        "parameters": trained.parameters,
        "bytes_per_site": trained.bytes_per_site,
        "weights": trained.weights,
        "curves": trained.curves,
        "excluded": consortium.excluded,
    }
    return said, pd.concat(frames, ignore_index=True)

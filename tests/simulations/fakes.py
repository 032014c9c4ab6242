"""A benchmark whose predictions are drawn from distributions with known AUROC, so that runs take seconds.

Environment variables make its cells misbehave, because they run in processes of their own: ``FAKE_FAIL`` names cells that
raise, ``FAKE_DIE`` cells whose process dies, ``FAKE_KILL`` cells that kill the whole run.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import ConsiliumError
from common.task import pattern_name, patterns
from simulations.ablations import Ablation
from simulations.benchmarks.base import Benchmark, Published, Split
from simulations.work import Job, Work

SIGNAL = {"labs": 1.0, "notes": 0.5, "vitals": 0.7}
METHODS = ("student", "student-uniform", "local", "fedavg", "central", "central-full", "teachers")
ABLATIONS = (
    Ablation("student-no-kd", "distillation", "off, labels alone"),
    Ablation("student-uniform", "modality weights", "uniform"),
    Ablation("student-no-refine", "refine", "off", against="student-no-kd"),
    Ablation("student-reference-5", "reference set", "5 %", reference=0.05),
)
SKILL = {
    "student": 1.0,
    "student-uniform": 0.95,
    "local": 0.4,
    "fedavg": 0.6,
    "central": 1.0,
    "central-full": 1.1,
    "teachers": 1.0,
    "student-no-kd": 0.5,
    "student-no-refine": 1.6,
    "student-reference-5": 0.98,
}
ROWS = 120


def prepare(folder: Path, split: Split) -> dict[str, Any]:
    fold = split.fold
    if split.variant == "no-data":
        raise ConsiliumError("The data are not at /nowhere. Fetch them first.")
    folder.mkdir()
    for site in ("a", "b"):
        (folder / f"test-{fold}{site}").mkdir()
        cohort(fold, site).to_csv(folder / f"test-{fold}{site}" / "patients.csv", index=False)
    (folder / f"masked-{split.masked}").mkdir()
    (folder / f"reference-{split.reference}").mkdir()
    deaths = int(sum(cohort(fold, site)["label"].sum() for site in ("a", "b")))
    return {
        "n": {
            "train": {"stays": 500 + fold},
            "reference": {"stays": 30 + 2 * fold},
            "test": {"stays": 2 * ROWS, "deaths": deaths},
        },
        "exclusions": {"stays without a label": 12},
        "data_checksum": "c0ffee" * 8,
    }


def prepare_twin(folder: Path, split: Split) -> dict[str, Any]:
    """Prepares a generated twin in the place of data that are not there."""
    return prepare(folder, split) | {"data": "generated", "warnings": ["These patients are generated: no folder 'fake'."]}


def cohort(fold: int, site: str) -> pd.DataFrame:
    """Returns the patients of a site: two visits each, one in six without notes."""
    rng = np.random.default_rng([fold, ord(site)])
    label = np.repeat(rng.random(ROWS // 2) < 0.25, 2).astype(float)
    patient = [f"{fold}{site}{i // 2}" for i in range(ROWS)]
    return pd.DataFrame({"row": range(ROWS), "patient": patient, "label": label, "notes": np.arange(ROWS) % 6 != 0})


def predictions(method: str, seed: int, fold: int) -> pd.DataFrame:
    """Returns the predictions of a cell."""
    rng = np.random.default_rng([list(SKILL).index(method), seed, fold])
    frames = []
    for site in ("a", "b"):
        people = cohort(fold, site).assign(site=f"test-{fold}{site}")
        for pattern in ["all", *map(pattern_name, patterns(SIGNAL))]:
            names = list(SIGNAL) if pattern == "all" else pattern.split("+")
            held = people if "notes" not in names or pattern == "all" else people[people["notes"]]
            models = [("student", SKILL[method])] if method != "teachers" else [("teachers", 1.0)]
            if method == "teachers" and len(names) == 1:
                models += [(f"teacher:{pattern}", 1.0), (f"teacher:{pattern}/linear", 0.9)]
            for model, skill in models:
                strength = skill * np.sqrt(sum(SIGNAL[n] ** 2 for n in names))
                logit = rng.normal(size=len(held)) + strength * (held["label"] - 0.5)
                frames.append(held.assign(pattern=pattern, model=model, output="death", score=1 / (1 + np.exp(-logit))))
    return pd.concat(frames, ignore_index=True).drop(columns="notes")


def weights(method: str, seed: int, fold: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([7, seed, fold])
    drift = np.cumsum(rng.normal(0, 0.02, (24, 3)) + (0.03, -0.02, 0.0), axis=0)
    drift = np.zeros_like(drift) if method == "student-uniform" else drift
    values = np.exp(drift) / np.exp(drift).sum(axis=1, keepdims=True)
    moments = [("distilling", 0, step) for step in range(18)] + [("refining", r, 0) for r in range(6)]
    return [
        {"phase": p, "round": r, "step": s, "output": None, "modality": m, "value": float(values[i, k])}
        for i, (p, r, s) in enumerate(moments)
        for k, m in enumerate(SIGNAL)
    ]


def curves(seed: int, fold: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([8, seed, fold])
    teachers = [("teaching", f"{m}/{a}", 5) for m in SIGNAL for a in ("linear", "small")]
    groups = [*teachers, ("distilling", "student", 20), ("refining", "student", 4)]
    return [
        {"phase": p, "group": g, "split": s, "loss": float(0.35 * extra + 0.4 * np.exp(-r / 3) + rng.normal(0, 0.01))}
        | ({"round": 0, "step": r} if p == "distilling" else {"round": r})
        for p, g, rounds in groups
        for s, extra in (("train", 0.8), ("validation", 1.0))
        for r in range(rounds)
    ]


def run_cell(work: Work, job: Job) -> None:
    cell, out = job.name, work.cell(job)
    print(f"running {cell} on {work.runtime}")
    with (out.parents[1] / "calls").open("a") as calls:
        calls.write(cell + "\n")
    sites = work.sites(work.split(job))
    assert (sites / f"masked-{job.method != 'central-full'}").is_dir()
    assert (sites / f"reference-{0.05 if job.method == 'student-reference-5' else None}").is_dir()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    if cell in os.environ.get("FAKE_FAIL", "").split():
        raise RuntimeError("the loss is not a number")
    if cell in os.environ.get("FAKE_DIE", "").split():
        os._exit(9)
    if cell in os.environ.get("FAKE_KILL", "").split():
        os.killpg(0, signal.SIGKILL)
    if job.method == "student":
        work.record(job).parent.mkdir()
        with work.record(job).open("w") as file:
            for number in (0, 1):
                said = {"phase": "teach", "round": number, "accepted": ["north"], "left_out": {"south": "late"}, "seconds": 0.25}
                file.write(json.dumps({"event": "transition", "phase": "teaching", "round": number}) + "\n")
                file.write(json.dumps({"event": "round"} | said) + "\n")
            file.write('{"event": "tor')
    write_cell(out, job.method, job.seed, job.fold)


def write_cell(out: Path, method: str, seed: int, fold: int) -> None:
    predictions(method, seed, fold).to_parquet(out / "predictions.parquet")
    learns = method.startswith("student")
    said = {
        "method": method,
        "seed": seed,
        "fold": fold,
        "variant": None,
        "seconds": 0.1,
        "parameters": 1000 + 100 * list(SKILL).index(method),
        "bytes_per_site": {} if method.startswith("central") else {"north": 1_000_000, "south": 3_000_000},
        "weights": weights(method, seed, fold) if learns else [],
        "curves": curves(seed, fold) if learns else [],
        "status": "finished",
    }
    (out / "cell.json").write_text(json.dumps(said))


BENCHMARK = Benchmark(
    name="fake-mortality",
    title="death of invented patients from labs, notes and vitals",
    experiment="fake",
    data="generated",
    data_version="invented 1.0",
    task_type="binary",
    modalities=tuple(SIGNAL),
    prepare=prepare,
    methods=METHODS,
    folds=2,
    seeds=2,
    variants=(None, "no-data"),
    metrics=("auroc", "auprc", "accuracy"),
    published=(
        Published("bedside score", "auroc", 0.834, "published", "a paper, table 2", n=1191),
        Published("another method", "auroc", None, "not found", "the paper is not readable"),
    ),
    ablations=ABLATIONS,
)

"""A whole run with sound, a pretrained text encoder and encoders that are not the default ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file

from common.arrays import read_arrays
from common.config import load_config
from common.errors import ConsiliumError
from common.models.encoders.pretrained import ENVIRONMENT
from common.models.encoders.text import AttentionText
from server import checkpoint
from server.rounds import RunFailed
from simulations.inproc import run_inproc

COUGH = "{kind: audio, frames: 16, coefficients: 8}"
OVERRIDES = [
    f"+task.modalities.cough={COUGH}",
    "model.teachers={image: [resnet], series: [conv], text: [attention, pretrained], table: [linear], audio: [linear, smil]}",
    "model.student={image: lenet, series: attention, text: pretrained, table: compact, audio: compact}",
    "teach.rounds=1",
    "distill.epochs=1",
    "weights.steps=1",
    "refine.rounds=1",
]


def record_coughs(sites: Path) -> None:
    """Gives every second visit of every folder a recording, at rates that differ; one of them is silent."""
    rng = np.random.default_rng(0)
    for folder in (sites / "alder", sites / "birch", sites / "reference"):
        manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
        manifest["modalities"]["cough"] = {"kind": "audio", "column": "cough"}
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        file = folder / manifest["patients"]
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
        table["cough"] = [f"cough{i}.wav" if i % 2 else None for i in range(len(table))]
        for i, name in enumerate(table["cough"]):
            if isinstance(name, str):
                rate = (8000, 16000)[i // 2 % 2]
                soundfile.write(folder / name, rng.normal(0, 0.0 if i == 1 else 0.1, rate // 4), rate)
        table.to_parquet(file) if file.suffix == ".parquet" else table.to_csv(file, index=False)


def write_encoder(folder: Path, seed: int) -> None:
    text = load_config("tiny").task.modalities["notes"]
    torch.manual_seed(seed)
    folder.mkdir()
    save_file(AttentionText(text, 8, 0.0).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"buckets": text.buckets, "tokens": text.tokens, "width": 8}))
    names = ("model.safetensors", "config.json")
    (folder / "SHA256SUMS").write_text("".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names))


def test_a_run_with_sound_and_other_encoders_finishes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = Path(shutil.copytree(tiny, tmp_path / "sites"))
    record_coughs(sites)
    write_encoder(tmp_path / "encoder", 0)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "encoder"))
    run_inproc(sites=sites, run_dir=tmp_path / "run", experiment="tiny", overrides=OVERRIDES)
    state = checkpoint.load(tmp_path / "run")
    assert (state.phase, sorted(state.sites)) == ("finished", ["alder", "birch"])
    assert {p.stem for p in (tmp_path / "run" / "teachers").iterdir()} >= {"cough-linear", "cough-smil", "notes-pretrained"}
    student = read_arrays(tmp_path / "run" / "student.safetensors")
    assert any(name.startswith("encoders.cough.") for name in student)
    assert "encoders.notes.fingerprint" in student
    assert not any("frozen" in name for name in student)
    findings = (sites / "alder" / ".consilium" / "findings.csv").read_text()
    assert "patients" in findings
    assert "silent" in findings


def test_a_run_without_the_pretrained_encoder_fails_at_once_and_says_why(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises((RunFailed, ConsiliumError), match=f"{ENVIRONMENT} is needed"):
        run_inproc(sites=tiny, run_dir=tmp_path / "run", experiment="tiny", overrides=["model.teachers.text=[pretrained]"])

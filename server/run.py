"""A run: its directory, its state, its sites."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

from common.arrays import standardisation_of, tensors, write_arrays, write_json
from common.config import Config, from_json, to_json
from common.data.cohort import Cohort
from common.errors import ConsiliumError
from common.evaluation import results
from common.learning.loop import derive_seed
from common.messages import code_hash
from common.models.ensemble import Ensembles
from common.models.student import Student, build_student
from server import checkpoint
from server.checkpoint import RunState
from server.record import Record
from server.reference import checksum, find_reference, open_reference
from server.rounds import Council
from server.summary import environment, summary

CONFIG_FILE = "config.json"


@dataclass
class Run:
    """One run of the five phases.

    Attributes:
        folder: The run directory.
        config: What it was told.
        state: Where it stands.
        record: What happened.
        council: Its sites.
    """

    folder: Path
    config: Config
    state: RunState
    record: Record
    council: Council

    @property
    def name(self) -> str:
        """Name of the run, a plain name: experiment and time; where that is none, made unique by a hash of the folder."""
        folder = self.folder.resolve()
        said = f"{folder.parent.name}-{folder.name}"
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", said).lstrip("._-")
        return plain if plain == said else f"run-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}-{plain}"

    @cached_property
    def raw_reference(self) -> Cohort | None:
        """The reference set, raw."""
        return open_reference(self.config)

    def settle_reference(self) -> None:
        """Opens the reference set before any site is asked, and keeps what a resumed run will find it by.

        Raises:
            ConsiliumError: If it cannot be used, or is not the one that the run was started with, most often because the server
                does not find it.
        """
        state, found = self.state, self.raw_reference
        visits, now = 0 if found is None else len(found), checksum(found)
        if state.phase == "enrolling":
            state.reference, state.reference_checksum = visits, now
            if found is not None:
                state.reference_excluded = found.excluded
                self.record.event("reference", visits=visits, excluded=found.excluded)
        elif (visits, now) != (state.reference, state.reference_checksum):
            raise ConsiliumError(
                f"The run was started with another reference set: {state.reference} visits (checksum "
                f"{state.reference_checksum[:8] or 'none'}), now there are {visits} ({now[:8] or 'none'}). Let CONSILIUM_SITES "
                "or CONSILIUM_REFERENCE name the same one, unchanged, where the server is started, then resume again."
            )

    @cached_property
    def reference(self) -> Cohort | None:
        """The reference set, model-ready."""
        if self.raw_reference is None:
            return None
        return self.raw_reference.standardised(standardisation_of(self.state.standardisation()))

    @property
    def prior(self) -> Tensor:
        """Log-odds of the outputs in training, [C]."""
        return torch.tensor(self.state.prior, dtype=torch.float32)

    def request(self, phase: str, round: int, site: str) -> dict[str, Any]:
        """Returns the fields that every request carries."""
        seed = derive_seed(self.config.seed, phase, round, site)
        return {"run": self.name, "config": to_json(self.config), "code": code_hash(), "seed": seed, "round": round}

    def ensembles(self, *, unseeing: bool = False) -> Ensembles:
        """Returns the teachers as they stand, or as they were before the reference set taught them too."""
        teachers = self.state.teachers(unseeing=unseeing)
        return Ensembles(self.config.task, self.config.model, {g: tensors(a) for g, a in teachers.items()})

    def student(self) -> Student:
        """Returns the student as it stands."""
        student = build_student(self.config.task, self.config.model, per_output=self.config.weights.per_output)
        student.load_state_dict(tensors(self.state.arrays["student"]))
        return student.eval()

    def advance(self, phase: checkpoint.Phase, round: int = 0) -> None:
        """Moves to a phase and round: on disk, in the record, and in the files that people read."""
        self.state.phase, self.state.round = phase, round
        write_json(self.folder / "weights.json", self.state.weights)
        write_json(self.folder / "traffic.json", self.state.traffic)
        checkpoint.save(self.folder, self.state)
        self.record.event("transition", phase=phase, round=round)

    def fail(self, reason: str) -> None:
        """Ends the run as failed; everything so far is on disk, and ``resume`` takes up the phase that failed."""
        self.record.event("failed", phase=self.state.phase, round=self.state.round, reason=reason)
        checkpoint.mark_failed(self.folder, reason)

    def note_weights(self, step: int, omega: Tensor) -> None:
        """Keeps omega and w of a step."""
        entry = {"phase": self.state.phase, "round": self.state.round, "step": step}
        names = list(self.config.task.modalities)
        outputs = self.config.task.outputs if len(omega) > 1 else (None,)
        for output, raw, row in zip(outputs, omega.tolist(), omega.softmax(1).tolist(), strict=True):
            for modality, o, value in zip(names, raw, row, strict=True):
                self.state.weights.append({**entry, "output": output, "modality": modality, "omega": o, "value": value})

    def note_loss(self, group: str, split: str, loss: float, **more: Any) -> None:
        """Keeps a loss for the learning curves."""
        self.state.curves.append(
            {"phase": self.state.phase, "round": self.state.round, "group": group, "split": split, "loss": loss, **more}
        )

    def export(self) -> None:
        """Writes student and teachers as files of their own."""
        for name in ("student", "consilium"):
            write_arrays(self.folder / f"{name}.safetensors", self.state.arrays[name], task=self.config.task.name)
        folder = self.folder / "teachers"
        folder.mkdir(exist_ok=True)
        for group, arrays in self.state.teachers().items():
            write_arrays(folder / f"{group.replace('/', '-')}.safetensors", arrays, group=group)
        write_json(self.folder / results.FILE_NAME, summary(self.config, self.state).model_dump(mode="json"))


def open_run(grid: Grid, folder: Path, config: Config | None) -> Run:
    """Starts a run in an empty directory, or opens the run that the directory holds.

    Args:
        grid: Flower's grid.
        folder: Run directory, absolute.
        config: Of a new run; None opens an old one with the configuration recorded there.

    Raises:
        ConsiliumError: If there is no run to open, a run to start lies there already, or the reference set's manifest is refused.
    """
    torch.set_num_threads(1)  # more threads add up in another order, and a resumed run would end with another student
    existing = (folder / checkpoint.STATE_FILE).is_file()
    if config is None:
        state = checkpoint.load(folder)
        config = read_config(folder)
        if state.failed_in is not None:
            state.phase, state.failed_in, state.reason = state.failed_in, None, None
            checkpoint.save(folder, state)
    elif existing:
        raise ConsiliumError(f"{folder} already holds a run. Continue it with: consilium-server resume {folder}")
    else:
        find_reference(config)  # a fault in its manifest leaves no run behind
        folder.mkdir(parents=True, exist_ok=True)
        state = RunState()
        write_json(folder / CONFIG_FILE, to_json(config))
        write_json(folder / "environment.json", environment())
    record = Record(folder)
    council = Council(grid, record, config.federation, traffic=state.traffic)
    run = Run(folder, config, state, record, council)
    if existing:
        record.event("resumed", phase=state.phase, round=state.round, code=code_hash())
    else:
        record.event("started", name=config.name, seed=config.seed, code=code_hash())
        run.advance("enrolling")
    return run


def read_config(folder: Path) -> Config:
    """Returns the configuration recorded with a run.

    Raises:
        ConsiliumError: If there is none, it is damaged, or this version does not understand it.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConsiliumError(f"No run at {folder}: {CONFIG_FILE} is missing. Name a run directory, like runs/demo/<time>.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ConsiliumError(f"{file} is damaged. Restore it from a backup, or start a new run.") from None
    return from_json(raw)


def default_folder(name: str) -> Path:
    """Returns a new run directory: under ``CONSILIUM_RUNS``, else ``runs`` in the home directory's ``.consilium``."""
    root = Path(os.environ.get("CONSILIUM_RUNS") or Path.home() / ".consilium" / "runs")
    return root.resolve() / name / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")

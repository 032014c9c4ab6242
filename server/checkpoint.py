"""The state of a run on disk: after every transition, so that a killed server continues as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter

from common.arrays import Arrays, read_arrays, write_arrays, write_json
from common.errors import ConsiliumError
from common.models.ensemble import read_by
from common.task import COMPLETE

Phase = Literal["enrolling", "teaching", "distilling", "refining", "evaluating", "finished", "failed"]
STATE_FILE = "state.json"
FOLDER = "checkpoint"


@dataclass
class Enrolled:
    """What the server keeps of a site's enrolment.

    Attributes:
        role: ``train`` or ``evaluate``.
        groups: (modality, architecture) groups that it trains.
        visits: Split -> visits.
        patterns: Pattern -> visits; None where hidden.
        excluded: Rows left out because of a fault, or because they hold nothing.
        data: ``real`` or ``generated``.
        checksum: Keyed hash of its files; the key stays at the site.
    """

    role: str
    groups: list[str]
    visits: dict[str, int]
    patterns: dict[str, int | None]
    excluded: int = 0
    data: str = "real"
    checksum: str = ""


@dataclass
class PlainState:
    """What is written as JSON of a run's state.

    Attributes:
        phase: Where the run stands.
        round: Next round within the phase, from 0.
        reason: Why it failed, if it did.
        failed_in: Phase in which it failed, and which ``resume`` takes up.
        nodes: Flower nodes that were asked to enrol.
        reference: Visits of the reference set.
        reference_checksum: SHA-256 of its patients as they were read; empty without one.
        reference_excluded: Visits of it left out because of a fault, or because they hold nothing.
        sites: Site -> what it enrolled with.
        prior: Log-odds of the outputs (log class shares for multi-class, 0 for regression), [C].
        best: ``teach`` group or ``student`` -> lowest validation loss so far.
        traffic: Site -> phase -> [bytes sent to it, bytes received from it].
        weights: omega and w over time.
        equal_weights: Whether the weights stay equal, because learned ones were not resolved better (``weights.guard``).
        curves: Losses over time.
        evaluation: Released metrics of the sites.
        withheld: Site -> cells that its disclosure rules withheld.
    """

    phase: Phase = "enrolling"
    round: int = 0
    reason: str | None = None
    failed_in: Phase | None = None
    nodes: int = 0
    reference: int = 0
    reference_checksum: str = ""
    reference_excluded: int = 0
    sites: dict[str, Enrolled] = field(default_factory=dict)
    prior: list[float] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    traffic: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    weights: list[dict[str, Any]] = field(default_factory=list)
    equal_weights: bool = False
    curves: list[dict[str, Any]] = field(default_factory=list)
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    withheld: dict[str, int] = field(default_factory=dict)


@dataclass
class RunState(PlainState):
    """Everything that a run needs to go on.

    Attributes:
        arrays: Name -> arrays: ``teacher:<group>``, ``best:<group>``, ``unseeing:<group>``, ``standardisation:<modality>``,
            ``student``, ``consilium``, ``velocity`` (refine's last step), ``best:student``, ``best:consilium``, ``omega-adam``.
    """

    arrays: dict[str, Arrays] = field(default_factory=dict)

    def group_sites(self) -> dict[str, list[str]]:
        """Returns group -> the sites that train it."""
        names = sorted({g for s in self.sites.values() for g in s.groups})
        return {g: sorted(n for n, s in self.sites.items() if g in s.groups) for g in names}

    def modality_sites(self) -> dict[str, list[str]]:
        """Returns modality -> the sites that train a teacher of it."""
        held = {n: {read_by(g) for g in s.groups} - {COMPLETE} for n, s in self.sites.items()}
        return {m: sorted(n for n, mine in held.items() if m in mine) for m in sorted(set().union(*held.values()))}

    def teachers(self, *, unseeing: bool = False) -> dict[str, Arrays]:
        """Returns group -> the parameters of the best validated round, or the latest where no site validates.

        Args:
            unseeing: Whether to return them as they were before the reference set took part in teaching.
        """
        groups = [n.removeprefix("teacher:") for n in self.arrays if n.startswith("teacher:")]
        found = {g: self.arrays.get(f"best:{g}", self.arrays[f"teacher:{g}"]) for g in groups}
        return {g: self.arrays.get(f"unseeing:{g}", a) for g, a in found.items()} if unseeing else found

    def standardisation(self) -> dict[str, Arrays]:
        """Returns modality -> pooled moments."""
        prefix = "standardisation:"
        return {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}


def save(run_dir: Path, state: RunState) -> None:
    """Writes the state; arrays first, under a name of their own, then the JSON that points at them."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{get_args(Phase).index(state.phase)}-{state.phase}-{state.round:04d}.safetensors"
    flat = {f"{group}|{key}": a for group, arrays in state.arrays.items() for key, a in arrays.items()}
    write_arrays(folder / name, flat)
    plain = TypeAdapter(PlainState).dump_python(state)
    write_json(run_dir / STATE_FILE, {**plain, "arrays_file": f"{FOLDER}/{name}"})
    for old in folder.glob("*.safetensors"):
        if old.name != name:
            old.unlink()


def mark_failed(run_dir: Path, reason: str) -> None:
    """Notes on disk that the run failed.

    All else stays as the last transition left it: what was done of the next one must not be done twice when the run is resumed.
    """
    file = run_dir / STATE_FILE
    raw = json.loads(file.read_text(encoding="utf-8"))
    if raw["phase"] != "failed":
        raw |= {"phase": "failed", "failed_in": raw["phase"]}
    write_json(file, {**raw, "reason": reason})


def load(run_dir: Path) -> RunState:
    """Reads the state.

    Raises:
        ConsiliumError: If there is none, or its files are damaged.
    """
    file = run_dir / STATE_FILE
    if not file.is_file():
        raise ConsiliumError(f"No run at {run_dir}: {STATE_FILE} is missing. Name a run directory, like runs/demo/<time>.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        flat = read_arrays(run_dir / raw.pop("arrays_file"))
        state = RunState(**vars(TypeAdapter(PlainState).validate_python(raw)))
    except Exception as error:
        raise ConsiliumError(
            f"The state of the run at {run_dir} cannot be read ({type(error).__name__}). Restore {STATE_FILE} and {FOLDER}/ "
            "from a backup, or start a new run."
        ) from None
    for name, array in flat.items():
        group, key = name.split("|", 1)
        state.arrays.setdefault(group, {})[key] = np.array(array)
    return state

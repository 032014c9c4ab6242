"""One hospital on disk, and the messages that a server would send it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from client.site import Site, open_site
from common.arrays import Arrays, consilium_arrays, module_arrays, moments_arrays
from common.config import Config, to_json
from common.data.cohort import Cohort
from common.data.manifest import Limits
from common.learning.loop import derive_seed
from common.messages import EnrolRequest, EvaluateRequest, RefineRequest, TeachRequest, code_hash
from common.models.ensemble import build_teacher, groups, initial_calibration
from common.models.student import Student
from tests.common.samples import make_config, write_folder


@pytest.fixture(autouse=True)
def nothing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sites of whoever runs the tests."""
    monkeypatch.delenv("CONSILIUM_SITES", raising=False)


def context_of(folder: Path | None = None, **node_config: Any) -> Context:
    """A node whose manifest lies in a folder."""
    place = {} if folder is None else {"manifest": str(folder)}
    return Context(run_id=1, node_id=1, node_config=place | node_config, state=RecordDict(), run_config={})


class Server:
    """Writes requests, as a server with freshly initialised teachers and student would."""

    def __init__(self, config: Config, site: Site) -> None:
        self.config = config
        self.standardisation = moments_arrays(site.cohort.moments())

    def body(self, **changes: Any) -> dict[str, Any]:
        head = {"run": "toy-1", "config": to_json(self.config), "code": code_hash(), "seed": derive_seed(0, "test"), "round": 0}
        return head | changes

    def teachers(self) -> dict[str, Arrays]:
        torch.manual_seed(0)
        task, model = self.config.task, self.config.model
        return {g: module_arrays(build_teacher(g, task, model)) for g in groups(task, model)}

    def student(self) -> Arrays:
        torch.manual_seed(0)
        return module_arrays(Student(self.config.task, self.config.model, per_output=self.config.weights.per_output))

    def consilium(self) -> Arrays:
        omega = torch.zeros(1, len(self.config.task.modalities))
        return consilium_arrays(initial_calibration(self.config.task, torch.zeros(len(self.config.task.outputs))), omega)

    def enrol(self, **changes: Any) -> EnrolRequest:
        return EnrolRequest(**self.body(**changes))

    def teach(self, **changes: Any) -> TeachRequest:
        more = {"epochs": 1, "groups": self.teachers(), "standardisation": self.standardisation}
        return TeachRequest(**self.body(**(more | changes)))

    def refine(self, **changes: Any) -> RefineRequest:
        more = {
            "epochs": 1, "student": self.student(), "teachers": self.teachers(), "consilium": self.consilium(),
            "standardisation": self.standardisation,
        }  # fmt: skip
        return RefineRequest(**self.body(**(more | changes)))

    def evaluate(self, **changes: Any) -> EvaluateRequest:
        more = {
            "student": self.student(), "teachers": self.teachers(), "consilium": self.consilium(),
            "standardisation": self.standardisation,
        }  # fmt: skip
        return EvaluateRequest(**self.body(**(more | changes)))


@pytest.fixture
def config() -> Config:
    return make_config()


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A hospital with 80 visits and everything, written and opened once."""
    folder, config = tmp_path_factory.mktemp("hospital") / "riverside", make_config()
    write_folder(folder, config.task, 80)
    return open_site(context_of(folder), config)


@pytest.fixture
def folder(hospital: Site, tmp_path: Path) -> Path:
    """A copy of the hospital's folder, for a test to spoil."""
    return shutil.copytree(hospital.folder, tmp_path / "riverside")


@pytest.fixture
def site(hospital: Site, tmp_path: Path) -> Site:
    """The hospital, with a folder of its own for what a run leaves behind."""
    (tmp_path / "own").mkdir()
    for name in ("manifest.yaml", "patients.csv"):
        shutil.copy(hospital.folder / name, tmp_path / "own")
    return Site(tmp_path / "own", hospital.manifest, hospital.cohort)


@pytest.fixture
def server(config: Config, site: Site) -> Server:
    return Server(config, site)


def limited(site: Site, **limits: Any) -> Site:
    """The site with other limits."""
    return replace(site, manifest=replace(site.manifest, limits=Limits(**limits)))


def with_cohort(site: Site, change: Callable[[Cohort], Cohort]) -> Site:
    """The site with other patients."""
    return replace(site, cohort=change(site.cohort), _ready={})


def keeping(*modalities: str) -> Callable[[Cohort], Cohort]:
    def change(cohort: Cohort) -> Cohort:
        kept = torch.tensor([m in modalities for m in cohort.task.modalities])
        present = cohort.present & kept
        return replace(cohort, present=present).select(present.any(1).numpy())

    return change


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)

"""What the server's tests share: a clock that a test can afford to wait for, and one undisturbed run on real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import rounds
from simulations.consortium import write_tiny
from simulations.inproc import run_inproc
from tests.server.fakes import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(rounds, "time", fake)
    return fake


@pytest.fixture(autouse=True)
def nothing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sites or reference set of whoever runs the tests."""
    for name in ("CONSILIUM_SITES", "CONSILIUM_REFERENCE", "CONSILIUM_RUNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sites folder of the tiny consortium."""
    folder = tmp_path_factory.mktemp("tiny") / "sites"
    write_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run on the tiny consortium that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_inproc(sites=tiny, run_dir=folder, experiment="tiny")
    return folder

"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    # Tests run in parallel on few cores; more threads per process only slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    # pytest-xdist tells its workers a width; tables are as wide as a user sees them who pipes them.
    os.environ.pop("COLUMNS", None)
    # No wall clock decides whether a test passes: the machine may be busy.
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what tests measured (``record_property``), from all workers."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {value} {name}")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the public data sets; a test that needs it is skipped where there is none."""
    root = os.environ.get("CONSILIUM_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("CONSILIUM_DATA does not name a folder with the public data sets")
    return Path(root)

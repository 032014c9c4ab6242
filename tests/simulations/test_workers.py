"""Processes that run the cells of a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from simulations.workers import open_pool

PARENT = """
import os, time
from simulations.workers import open_pool

if __name__ == "__main__":
    pool = open_pool(1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_a_worker_has_the_environment_of_now_though_its_process_is_forked_from_an_older_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in ("one", "two"):
        monkeypatch.setenv("CONSILIUM_TRIED", value)
        with open_pool(1) as pool:
            assert pool.submit(os.getenv, "CONSILIUM_TRIED").result() == value
    monkeypatch.delenv("CONSILIUM_TRIED")
    with open_pool(1) as pool:
        assert pool.submit(os.getenv, "CONSILIUM_TRIED").result() is None

"""Errors come whole out of another process, where cells and preparations run."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil

import pytest

import client
import common
import server
import simulations
from common.data.cohort import Finding
from common.data.ingest import IngestError
from common.errors import ConsiliumError
from common.messages import MessageError
from server.rounds import RunFailed

for room in (common, client, server, simulations):
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        importlib.import_module(module.name)


def kinds() -> list[type[Exception]]:
    """Returns every error of the project."""
    found: list[type[Exception]] = [ConsiliumError, IngestError, MessageError, RunFailed]
    for kind in found:
        found += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: str(kind.__name__))
def test_an_error_survives_the_way_between_two_processes(kind: type[Exception]) -> None:
    values = {"message": "the site refuses", "findings": (Finding("patients.csv", 2, "age", "the cell is empty"),)}
    named = [p for p in inspect.signature(kind.__init__).parameters if p in values]
    error = kind(*[values[p] for p in named] or ["the site refuses"])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (kind, "the site refuses", vars(error))

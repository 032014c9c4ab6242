"""A site whose task is a regression: what it tells of the numbers, and in which units it keeps what is predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client import handlers
from client.site import open_site
from tests.client.conftest import Server, context_of, limited
from tests.common.samples import make_config, write_folder


def test_a_site_tells_the_moments_of_its_targets_and_keeps_them_in_the_tasks_units(tmp_path: Path) -> None:
    config = make_config("regression")
    table = write_folder(tmp_path / "a", config.task, 80)
    site = limited(open_site(context_of(tmp_path / "a"), config), min_count=5)
    server = Server(config, site)
    reply = handlers.enrol(site, config, server.enrol())
    train = site.cohort.part("train")
    assert reply.labels == {}
    assert set(reply.moments) == {*config.task.modalities, "labels"}
    assert reply.moments["labels"]["mean"] == pytest.approx(table[["los", "cost"]].iloc[train.row].mean().to_numpy(), rel=1e-5)
    few = handlers.enrol(limited(site, min_count=len(train) + 1), config, server.enrol()).moments["labels"]
    assert not any(a.any() for a in few.values())
    handlers.evaluate(site, config, server.evaluate())
    stored = pd.read_parquet(site.folder / ".consilium" / "toy-1" / "predictions.parquet")
    los = stored[stored["output"] == "los"]
    assert los["label"].to_numpy() == pytest.approx(table["los"].to_numpy(np.float32)[los["row"]])
    assert los["score"].between(table["los"].min() - 20, table["los"].max() + 20).all()
    assert los["score"].mean() == pytest.approx(table["los"].mean(), abs=4)

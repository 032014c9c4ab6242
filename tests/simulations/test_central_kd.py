"""Teachers and student at one place: the student learns from the teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from common.evaluation.metrics import metrics
from common.evaluation.predictions import predict_patterns
from simulations.baselines import Consortium, Trained, open_consortium
from simulations.central_kd import central_kd
from tests.common.samples import make_config, write_folder


def accuracy(consortium: Consortium, trained: Trained) -> float:
    found = [predict_patterns(c, [trained.speaker(s)[0]], trained.speaker(s)[1]) for s, c in consortium.testing.items()]
    rows = pd.concat(found).query("pattern == 'all'")
    scores, labels = (rows[c].to_numpy().reshape(-1, 3) for c in ("score", "label"))
    return metrics("multiclass", scores, labels)["accuracy"]


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    config = make_config("multiclass", ("admission", "labs"))
    distill = replace(config.distill, labels=0.0, epochs=40)  # what the student knows, teachers told it
    for seed, site in enumerate(("alder", "birch")):
        write_folder(tmp_path / site, config.task, 160, site=site, seed=seed)
    return open_consortium(tmp_path, replace(config, distill=distill, teach=replace(config.teach, rounds=10, epochs=2)))


def test_the_student_knows_what_its_teachers_do_without_any_label(consortium: Consortium) -> None:
    trained = central_kd(consortium)
    assert accuracy(consortium, trained) > 0.8
    assert {c["group"] for c in trained.curves} >= {"student", "admission/linear", "labs/linear"}
    config = consortium.config
    untaught = replace(config, distill=replace(config.distill, beta=0.0, gamma=0.0))
    assert accuracy(consortium, central_kd(replace(consortium, config=untaught))) < 0.5

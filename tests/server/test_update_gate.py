"""What may be aggregated (what a site may send wrong in a run: test_misbehaviour.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.arrays import Arrays
from common.learning.loop import Fit
from server.rounds import RunFailed
from server.update_gate import fault, loss_fault, require_finite, score_fault

SENT: dict[str, Arrays] = {"labs/small": {"w": np.zeros((2, 3), np.float32), "steps": np.array(3, np.int64)}}
HONEST: dict[str, Arrays] = {"labs/small": {"w": np.ones((2, 3), np.float32), "steps": np.array(4, np.int64)}}


def changed(**arrays: np.ndarray) -> dict[str, Arrays]:  # type: ignore[type-arg]
    return {"labs/small": HONEST["labs/small"] | arrays}


def test_an_honest_update_passes_with_as_many_patients_as_asked_for() -> None:
    assert fault(HONEST, SENT, {"labs/small": 5}, 5) is None
    assert fault({}, SENT, {}, 5) is None


@pytest.mark.parametrize(
    ("update", "counts", "reason"),
    [
        ({"ct/base": {}}, {"ct/base": 9}, "it holds 'ct/base', which it was not asked for"),
        ({"labs/small": {"w": HONEST["labs/small"]["w"]}}, {"labs/small": 9}, "the arrays of 'labs/small' have other names"),
        (
            changed(w=np.ones((3, 2), np.float32)),
            {"labs/small": 9},
            "'w' of 'labs/small' is float32 (3, 2), float32 (2, 3)",
        ),
        (
            changed(w=np.ones((2, 3), np.float16)),
            {"labs/small": 9},
            "'w' of 'labs/small' is float16 (2, 3), float32 (2, 3)",
        ),
        (changed(w=np.full((2, 3), np.nan, np.float32)), {"labs/small": 9}, "'w' of 'labs/small' holds NaN or infinity"),
        (changed(w=np.full((2, 3), -np.inf, np.float32)), {"labs/small": 9}, "'w' of 'labs/small' holds NaN or infinity"),
        (HONEST, {"labs/small": 4}, "'labs/small' rests on 4 training visits, fewer than federation.min_patients = 5"),
        (HONEST, {"labs/small": -4}, "'labs/small' rests on -4 training visits"),
        (HONEST, {}, "'labs/small' rests on 0 training visits"),
    ],
)
def test_an_update_is_refused_with_the_reason(update: dict[str, Arrays], counts: dict[str, int], reason: str) -> None:
    assert (fault(update, SENT, counts, 5) or "").startswith(reason)


def test_a_site_cannot_claim_more_patients_than_it_enrolled_with() -> None:
    assert fault(HONEST, SENT, {"labs/small": 40}, 5, 40) is None
    assert (fault(HONEST, SENT, {"labs/small": 41}, 5, 40) or "").startswith("'labs/small' claims 41 training visits")


def test_numbers_must_be_finite_and_rest_on_visits() -> None:
    assert loss_fault({"loss": 0.5, "Dice loss of a perfect mask": -1e-7}) is None
    for loss in (float("inf"), float("nan"), 1.7e308, -1.0):
        assert (loss_fault({"one": 0.5, "other": loss}) or "").startswith("its other is NaN, infinite, negative or above")
    assert score_fault({"labs/small": (0.5, 9)}, 9) is None
    assert (score_fault({"labs/small": (float("nan"), 1)}, 9) or "").startswith("its validation loss of 'labs/small' is NaN")
    for visits in (0, 10):
        said = f"its validation loss of 'labs/small' rests on {visits} visits, the site enrolled with 9"
        assert score_fault({"labs/small": (0.5, visits)}, 9) == said


def test_what_the_server_trains_itself_must_be_finite_too() -> None:
    layer = nn.Linear(2, 1)
    require_finite("the student", layer, Fit(2, (0.5, 0.4), ()), "refine.training.lr")
    with pytest.raises(RunFailed, match=r"training the student .* diverged: .* Lower refine.training.lr"):
        require_finite("the student", layer, Fit(1, (float("nan"),), ()), "refine.training.lr")
    with torch.no_grad():
        layer.bias[0] = torch.inf
    with pytest.raises(RunFailed, match="diverged"):
        require_finite("the student", layer, Fit(1, (0.5,), ()), "refine.training.lr")

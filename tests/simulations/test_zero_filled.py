"""A zero-filled network reads what is present, and zeros in the place of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from common.config import Config, load_config
from common.data.cohort import Batch
from simulations.zero_filled import ZeroFilled, ZeroFilledVolumes, zero_filled
from tests.common.samples import make_cohort, make_config

BRAINS = ("flair", "t1", "t1ce", "t2")
EDGE = 8


def brains() -> Config:
    return load_config(
        "brain-twin", ["model.patch=null", *(f"task.modalities.{m}.voxels=[{EDGE},{EDGE},{EDGE}]" for m in BRAINS)]
    )


def scans(config: Config, present: Sequence[Sequence[bool]]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = {n: torch.randn(len(present), 1, EDGE, EDGE, EDGE, generator=generator) for n in config.task.modalities}
    labels = torch.zeros(len(present), len(config.task.outputs), EDGE, EDGE, EDGE, dtype=torch.uint8)
    return Batch(inputs, torch.tensor(present), labels)


@pytest.mark.parametrize("kind", ["table and labs", "volumes"])
@pytest.mark.parametrize("value", [0.0, 7.0, torch.nan])
def test_what_an_absent_modality_holds_cannot_matter_and_what_a_present_one_holds_does(kind: str, value: float) -> None:
    if kind == "volumes":
        config = brains()
        batch = scans(config, [[True, True, False, False], [False, True, True, True]])
    else:
        config = make_config("binary", ("admission", "labs"))
        batch = make_cohort(config.task, 20, complete=True).batch()
        batch = batch.masked(torch.tensor([[True, False], [False, True]] * 10))
    torch.manual_seed(0)
    network = zero_filled(config, torch.zeros(len(config.task.outputs))).eval()
    assert isinstance(network, ZeroFilledVolumes if kind == "volumes" else ZeroFilled)
    before = network(batch)

    def replaced(where: torch.Tensor, value: float) -> Batch:
        changed = {
            n: torch.where(where[:, k].reshape(-1, *[1] * (x.ndim - 1)), torch.full_like(x, value), x)
            for k, (n, x) in enumerate(batch.inputs.items())
        }
        return Batch(changed, batch.present, batch.labels)

    assert before.isfinite().all()
    assert torch.equal(network(replaced(~batch.present, value)), before)
    for k in range(len(config.task.modalities)):
        held = torch.zeros_like(batch.present)
        held[:, k] = batch.present[:, k]
        after = network(replaced(held, 1.0))
        rows = batch.present[:, k]
        assert (after != before)[rows].flatten(1).any(1).all()
        assert torch.equal(after[~rows], before[~rows])

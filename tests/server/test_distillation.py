"""What the server learns from the reference set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from common.learning.lessons import Teaching
from common.models.ensemble import Calibration, initial_calibration
from server.distillation import calibrated, resolved_better
from tests.common.samples import make_config


def heard(noise: float, patients: int = 400) -> tuple[Teaching, Tensor]:
    """Two teachers of a binary outcome, the second of whom knows nothing and says it with some noise; and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(patients, 1, generator=generator) < 0.5).float()
    knows = 2 * labels - 1 + torch.randn(patients, 1, generator=generator)
    guesses = noise * torch.randn(patients, 1, generator=generator)
    calibration = Calibration(torch.full((1,), 2.0), torch.zeros(1), torch.zeros(1))
    return Teaching(torch.stack([knows, guesses], 1), torch.ones(patients, 2, dtype=torch.bool), calibration), labels


@pytest.mark.parametrize(("noise", "omega", "expected"), [(3.0, 2.0, True), (3.0, -2.0, False), (0.0, 0.0, False)])
def test_weights_are_kept_if_the_consilium_is_better_with_them(noise: float, omega: float, expected: bool) -> None:
    teaching, labels = heard(noise)
    learned, even = torch.tensor([[omega, -omega]]), torch.zeros(1, 2)
    one, other = (learned, teaching.calibration), (even, teaching.calibration)
    assert resolved_better("binary", teaching, labels, np.arange(len(labels)), one, other) == expected


@pytest.mark.parametrize(("patients", "once"), [(40, False), (60, False), (80, True)])
def test_a_patients_further_visits_prove_nothing(patients: int, once: bool) -> None:
    teaching, labels = heard(0.0, patients)
    guesses = torch.randn(
        patients, 2, 1, generator=torch.Generator().manual_seed(1)
    )  # of both teachers, better or worse by chance
    labels, logits, taught = (x.repeat(9, *[1] * (x.dim() - 1)) for x in (labels, guesses, teaching.taught))
    told = replace(teaching, logits=logits, taught=taught)
    one, other = (torch.tensor([[-0.1, 0.1]]), teaching.calibration), (torch.zeros(1, 2), teaching.calibration)
    assert resolved_better("binary", told, labels, np.tile(np.arange(patients), 9), one, other) == once
    assert resolved_better("binary", told, labels, np.arange(9 * patients), one, other)


def test_patients_with_one_modality_tell_nothing_of_the_weights() -> None:
    teaching, labels = heard(3.0)
    alone = replace(teaching, taught=torch.tensor([[True, False]]).expand(len(labels), 2))
    learned, even = torch.tensor([[2.0, -2.0]]), torch.zeros(1, 2)
    one, other = (learned, teaching.calibration), (even, teaching.calibration)
    assert not resolved_better("binary", alone, labels, np.arange(len(labels)), one, other)


def test_without_scale_s_and_b_stay_where_they_start() -> None:
    teaching, labels = heard(3.0)
    config, omega, start = make_config(), torch.zeros(1, 2), teaching.calibration
    fitted = calibrated(config, labels, teaching, None, omega, start)
    assert not torch.allclose(fitted.scale, start.scale, rtol=0.05)
    off = replace(config, distill=replace(config.distill, scale=False))
    assert calibrated(off, labels, teaching, None, omega, start) is start
    assert [initial_calibration(config.task, start.prior, scale=on).scale.item() for on in (True, False)] == [4, 1]

"""Phase 4: what goes to which site, and what becomes of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.arrays import read_arrays
from common.models.student import block_of
from server import checkpoint
from tests.server import fakes
from tests.server.fakes import Site, changed, in_round

pytestmark = pytest.mark.usefixtures("clock")


def three() -> list[Site]:
    return [Site("ash"), Site("birch", {"labs": 20, "signs": 30}, shift=0.5), Site("cedar", {"labs": 40}, shift=2.0)]


def moves(folder: Path, site: Site) -> dict[str, set[float]]:
    """How far the first round moved the parameters of every block."""
    before, after = (site.refined[r].student for r in (0, 1))
    found: dict[str, set[float]] = {}
    for key in (k for k in before if "." in k):
        found.setdefault(block_of(key), set()).update(np.round(after[key] - before[key], 5).ravel().tolist())
    return found


def test_a_block_is_the_mean_of_the_sites_that_have_data_for_it_by_their_visits(tmp_path: Path) -> None:
    sites = three()
    fakes.perform(tmp_path / "run", sites)
    found = moves(tmp_path / "run", sites[0])
    labs = (40 * 0.25 + 20 * 0.5 + 40 * 2.0) / 100
    signs, together = (40 * 0.25 + 30 * 0.5) / 70, (40 * 0.25 + 20 * 0.5) / 60
    assert {b: len(v) for b, v in found.items()} == {"labs": 1, "signs": 1, "fusion": 1}
    np.testing.assert_allclose([*found["labs"], *found["signs"], *found["fusion"]], [labs, signs, together], atol=1e-4)


def test_a_block_that_nobody_has_patients_enough_for_stays(tmp_path: Path) -> None:
    few = in_round("train.refine", 0, changed(counts=lambda c: {b: 4 if b == "fusion" else n for b, n in c.items()}))
    sites = [Site("ash", script=few), Site("birch", shift=0.5, script=few)]
    fakes.perform(tmp_path / "run", sites)
    found = moves(tmp_path / "run", sites[0])
    assert (found["fusion"], 0.0 in found["labs"]) == ({0.0}, False)


def test_a_site_is_not_taught_by_a_teacher_of_its_own_patients_alone(tmp_path: Path) -> None:
    sites = [Site("ash"), Site("birch", {"signs": 40}), Site("cedar", {"signs": 30})]
    fakes.perform(tmp_path / "run", sites)
    assert [set(s.refined[0].teachers) for s in sites] == [{"signs/linear"}] * 3
    assert [s.refined[-1].teachers for s in sites] == [{}] * 3, "the last round only validates"


def gradient(*omega: float) -> dict[str, Any]:
    return {"omega": np.array([omega], "f4"), "scale": np.ones(1, "f4"), "bias": -np.ones(1, "f4")}


def test_the_sites_gradients_move_weights_scale_and_bias(tmp_path: Path) -> None:
    heavy = changed(meta=gradient(1.0, -1.0), meta_count=6)
    light = changed(meta=gradient(-1.0, 1.0), meta_count=2)
    sites = three()
    for site, script in zip(sites, (heavy, light, changed(meta={}, meta_count=0)), strict=True):
        site.script = in_round("train.refine", 0, script)
    fakes.perform(tmp_path / "run", sites)
    sent = [site_round.consilium for site_round in sites[0].refined[:2]]
    weights = [w for w in checkpoint.load(tmp_path / "run").weights if (w["phase"], w["round"]) == ("refining", 0)]
    assert {w["modality"]: w["value"] > 0.5 for w in weights} == {"labs": False, "signs": True}  # against the gradient
    np.testing.assert_allclose(sent[1]["scale"] - sent[0]["scale"], -0.05, atol=1e-6)
    np.testing.assert_allclose(sent[1]["bias"] - sent[0]["bias"], 0.05, atol=1e-6)
    np.testing.assert_array_equal(sent[1]["omega"], sites[0].refined[1].student["omega"])


def test_uniform_weights_do_not_listen_to_gradients(tmp_path: Path) -> None:
    fakes.perform(tmp_path / "run", three(), fakes.small_config(weights__estimator="uniform"))
    assert not read_arrays(tmp_path / "run" / "student.safetensors")["omega"].any()


def test_scale_and_bias_are_learned_with_uniform_weights_too(tmp_path: Path) -> None:
    sites = three()
    for site in sites:
        site.script = in_round("train.refine", 0, changed(meta=lambda m: {k: m[k] for k in ("scale", "bias")}))
    fakes.perform(tmp_path / "run", sites, fakes.small_config(weights__estimator="uniform"))
    sent = [site_round.consilium for site_round in sites[0].refined[:2]]
    np.testing.assert_allclose(sent[1]["scale"] - sent[0]["scale"], -0.05, atol=1e-6)
    assert not sent[1]["omega"].any()


@pytest.mark.parametrize(("scale", "start"), [(True, 2.0), (False, 1.0)])
def test_without_a_reference_set_late_fusion_starts_from_the_consiliums_scale(tmp_path: Path, scale: bool, start: float) -> None:
    sites = three()
    fakes.perform(tmp_path / "run", sites, fakes.small_config(model__fusion="late", distill__scale=scale))
    np.testing.assert_array_equal(sites[0].refined[0].student["fusion.scale_and_bias.weight"], [[start], [0.0]])


def test_the_student_that_validates_best_is_kept(tmp_path: Path) -> None:
    def losses(values: list[float]) -> list[Site]:
        sites = three()
        for site in sites:
            script = fakes.honest
            for number, value in enumerate(values):
                script = chained(script, in_round("train.refine", number, changed(validation=(value, 4))))
            site.script = script
        return sites

    sites = losses([0.6, 0.4, 0.5])
    fakes.perform(tmp_path / "run", sites)
    kept, second = read_arrays(tmp_path / "run" / "student.safetensors"), sites[0].refined[1].student
    assert all(np.array_equal(kept[k], second[k]) for k in kept)


def chained(one: fakes.Script, other: fakes.Script) -> fakes.Script:
    return lambda message, reply: other(message, one(message, reply))  # type: ignore[arg-type]


def test_momentum_carries_a_block_on_and_leaves_one_that_nobody_trained_where_it_is(tmp_path: Path) -> None:
    tired = in_round("train.refine", 1, changed(counts=lambda c: {b: 4 if b == "fusion" else n for b, n in c.items()}))
    sites = [Site("ash", shift=1.0, script=tired), Site("birch", shift=1.0, script=tired)]
    fakes.perform(tmp_path / "run", sites, fakes.small_config(refine__momentum=0.5))
    first, second, third = (site_round.student for site_round in sites[0].refined[:3])
    for block, share in (("labs", 1.5), ("signs", 1.5), ("fusion", 0.0)):
        names = [k for k in first if "." in k and block_of(k) == block]
        assert names
        for k in names:
            np.testing.assert_allclose(third[k] - second[k], share * (second[k] - first[k]), atol=1e-5)

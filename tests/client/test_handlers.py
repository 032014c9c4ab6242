"""What a site answers: no more than it may, and nothing that it has no data for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from client import handlers
from client.site import Site, open_site
from common.arrays import module_arrays, tensors
from common.config import Config
from common.data.cohort import Cohort
from common.models.ensemble import build_teacher
from common.models.student import block_of
from tests.client.conftest import Server, context_of, keeping, limited, same, with_cohort
from tests.common.samples import KINDS, make_config, write_folder

# Teach.


def test_teachers_are_trained_validated_and_counted(site: Site, config: Config, server: Server) -> None:
    request = server.teach(epochs=3)
    reply = handlers.teach(site, config, request)
    train, validation = site.cohort.part("train"), site.cohort.part("validation")
    assert set(reply.groups) == set(reply.counts) == set(reply.training) == set(request.groups)
    for group, arrays in reply.groups.items():
        modality = group.split("/")[0]
        assert {n: (a.shape, a.dtype) for n, a in arrays.items()} == {
            n: (a.shape, a.dtype) for n, a in request.groups[group].items()
        }
        assert not same(arrays, request.groups[group])
        assert reply.counts[group] == len(train.holding(modality))
        assert reply.validation[group][1] == len(validation.holding(modality))
        assert np.isfinite(reply.validation[group][0])


def test_the_validation_is_of_the_parameters_received(site: Site, config: Config, server: Server) -> None:
    zero = handlers.teach(site, config, server.teach(epochs=0))
    three = handlers.teach(site, config, server.teach(epochs=3))
    assert zero.validation == three.validation
    assert zero.training == {}
    assert all(same(a, server.teach().groups[g]) for g, a in zero.groups.items())


def test_the_same_request_gives_the_same_reply_and_another_seed_another(site: Site, config: Config, server: Server) -> None:
    first, again = (handlers.teach(site, config, server.teach()) for _ in range(2))
    other = handlers.teach(site, config, server.teach(seed=5))
    assert all(same(a, again.groups[g]) for g, a in first.groups.items())
    assert first.training == again.training
    assert not same(first.groups["labs/small"], other.groups["labs/small"])


def test_training_does_not_depend_on_which_other_groups_are_asked_for(site: Site, config: Config, server: Server) -> None:
    everything = handlers.teach(site, config, server.teach())
    groups = server.teachers()
    alone = handlers.teach(site, config, server.teach(groups={"labs/small": groups["labs/small"]}))
    assert same(everything.groups["labs/small"], alone.groups["labs/small"])


def test_the_hospitals_limits_bind_whatever_the_server_asks(site: Site, config: Config, server: Server) -> None:
    capped = handlers.teach(limited(site, epochs=2), config, server.teach(epochs=99))
    two = handlers.teach(site, config, server.teach(epochs=2))
    assert all(same(a, two.groups[g]) for g, a in capped.groups.items())
    small = handlers.teach(limited(site, largest="linear"), config, server.teach())
    assert set(small.groups) == {"admission/linear", "labs/linear", "note/linear"}


def test_a_group_that_the_site_has_no_data_for_or_does_not_know_is_left_out(site: Site, config: Config, server: Server) -> None:
    groups = server.teachers()
    mine = with_cohort(site, keeping("labs", "note"))
    reply = handlers.teach(mine, config, server.teach(groups=groups | {"mri/huge": groups["labs/linear"]}))
    assert set(reply.groups) == {"labs/linear", "labs/small", "note/linear"}


def test_teachers_never_see_meta_validation_or_test_patients(site: Site, config: Config, server: Server) -> None:
    def spoilt(cohort: Cohort) -> Cohort:
        held = torch.from_numpy(cohort.split != "train")
        return replace(cohort, labels=torch.where(held[:, None], 1 - cohort.labels, cohort.labels))

    a, b = (handlers.teach(s, config, server.teach()) for s in (site, with_cohort(site, spoilt)))
    assert all(same(x, b.groups[g]) for g, x in a.groups.items())
    assert a.validation != b.validation


# Refine.


def test_the_student_is_refined_block_by_block(site: Site, config: Config, server: Server) -> None:
    request = server.refine()
    reply = handlers.refine(site, config, request)
    train, meta = site.cohort.part("train"), site.cohort.part("meta")
    assert set(reply.student) == set(request.student) - {"omega", "prior"}
    assert reply.counts["fusion"] == int((train.present.sum(1) > 1).sum())
    assert reply.counts["labs"] == len(train.holding("labs"))
    assert not same(reply.student, {n: request.student[n] for n in reply.student})
    assert reply.validation is not None
    assert reply.validation[1] == len(site.cohort.part("validation"))
    assert reply.meta["omega"].shape == (1, 4)
    assert reply.meta["scale"].shape == reply.meta["bias"].shape == (1,)
    assert reply.meta["omega"].any()
    assert reply.meta_count == int((meta.present.sum(1) > 1).sum())


def test_only_blocks_with_data_are_returned(site: Site, config: Config, server: Server) -> None:
    two = handlers.refine(with_cohort(site, keeping("labs", "note")), config, server.refine())
    assert {block_of(n) for n in two.student} == set(two.counts) == {"labs", "note", "fusion"}
    one = handlers.refine(with_cohort(site, keeping("labs")), config, server.refine())
    assert {block_of(n) for n in one.student} == set(one.counts) == {"labs"}
    assert (one.meta, one.meta_count) == ({}, 0)


def test_refine_repeats_and_absent_values_do_not_matter(site: Site, config: Config, server: Server) -> None:
    first, again = (handlers.refine(site, config, server.refine()) for _ in range(2))
    assert same(first.student, again.student)
    assert same(first.meta, again.meta)
    assert first.validation == again.validation

    def filled(cohort: Cohort) -> Cohort:
        return replace(cohort, inputs={m: x if m == "note" else x.nan_to_num(nan=0.7) for m, x in cohort.inputs.items()})

    masked = handlers.refine(with_cohort(site, keeping("labs", "note", "admission")), config, server.refine())
    filled_in = handlers.refine(
        with_cohort(site, lambda c: filled(keeping("labs", "note", "admission")(c))), config, server.refine()
    )
    assert same(masked.student, filled_in.student)
    assert same(masked.meta, filled_in.meta)


def test_zero_epochs_only_validate(site: Site, config: Config, server: Server) -> None:
    request = server.refine(epochs=0)
    reply = handlers.refine(site, config, request)
    assert (reply.student, reply.counts, reply.meta) == ({}, {}, {})
    assert reply.validation is not None


def test_uniform_weights_send_no_gradient_of_omega(site: Site, config: Config, server: Server) -> None:
    uniform = replace(config, weights=replace(config.weights, estimator="uniform"))
    reply = handlers.refine(site, uniform, server.refine())
    assert set(reply.meta) == {"scale", "bias"}
    assert reply.meta_count > 0


@pytest.mark.parametrize("scale", [True, False])
def test_without_teachers_or_without_scale_only_omegas_gradient_is_sent(
    site: Site, config: Config, server: Server, scale: bool
) -> None:
    config = replace(config, distill=replace(config.distill, scale=scale))
    reply = handlers.refine(site, config, server.refine(teachers=server.teachers() if not scale else {}))
    assert set(reply.meta) == {"omega"}


def test_the_epochs_of_refine_are_capped_too(site: Site, config: Config, server: Server) -> None:
    capped = handlers.refine(limited(site, epochs=1), config, server.refine(epochs=9))
    assert same(capped.student, handlers.refine(site, config, server.refine(epochs=1)).student)


def test_what_rests_on_few_visits_does_not_leave_the_site(site: Site, config: Config, server: Server) -> None:
    shy = limited(site, min_count=1000)
    taught, refined = handlers.teach(shy, config, server.teach()), handlers.refine(shy, config, server.refine())
    assert (taught.groups, taught.counts, taught.validation, taught.training) == ({}, {}, {}, {})
    assert (refined.student, refined.counts, refined.validation, refined.meta, refined.meta_count) == ({}, {}, None, {}, 0)


# Evaluate.


def test_predictions_stay_in_the_folder_and_metrics_leave(site: Site, config: Config, server: Server) -> None:
    reply = handlers.evaluate(limited(site, min_count=2), config, server.evaluate())
    stored = pd.read_parquet(site.folder / ".consilium" / "toy-1" / "predictions.parquet")
    test = site.cohort.part("test")
    assert set(stored["row"]) == set(test.row)
    assert {"student", "teachers", "teacher:labs", "teacher:labs/small"} <= set(stored["model"])
    assert {"all", "labs", "labs+note"} <= set(stored["pattern"])
    assert reply.rows
    assert {frozenset(r) for r in reply.rows} == {frozenset({"model", "pattern", "metric", "value", "n"})}
    cells = stored.groupby(["model", "pattern"]).ngroups
    assert len({(r["model"], r["pattern"]) for r in reply.rows}) + reply.withheld == cells


def test_small_cells_are_withheld(site: Site, config: Config, server: Server) -> None:
    reply = handlers.evaluate(limited(site, min_count=1000), config, server.evaluate())
    assert reply.rows == []
    assert reply.withheld > 10


def test_without_student_or_teachers_the_others_are_evaluated(site: Site, config: Config, server: Server) -> None:
    site = limited(site, min_count=1)
    alone = handlers.evaluate(site, config, server.evaluate(student={}))
    assert "student" not in {r["model"] for r in alone.rows}
    assert {r["model"] for r in handlers.evaluate(site, config, server.evaluate(teachers={})).rows} == {"student"}


def test_a_site_without_test_patients_releases_nothing(site: Site, config: Config, server: Server) -> None:
    reply = handlers.evaluate(with_cohort(site, lambda c: c.part("train")), config, server.evaluate())
    assert (reply.rows, reply.withheld) == ([], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_of_one_site_works_for_every_kind_of_task(tmp_path: Path, kind: Any) -> None:
    config = make_config(kind, fusion="late", per_output=True)
    write_folder(tmp_path / "a", config.task, 80)
    site = limited(open_site(context_of(tmp_path / "a"), config), min_count=1)
    server = Server(config, site)
    taught = handlers.teach(site, config, server.teach(epochs=2))
    refined = handlers.refine(site, config, server.refine(teachers=taught.groups))
    assert refined.meta["omega"].shape == (len(config.task.outputs), 4)
    student = server.student() | refined.student
    reply = handlers.evaluate(site, config, server.evaluate(student=student, teachers=taught.groups))
    wanted = {"mae", "rmse", "r2"} if kind == "regression" else {"auroc", "accuracy"}
    assert wanted <= {r["metric"] for r in reply.rows}
    assert kind == "regression" or all(0 <= r["value"] <= 1 for r in reply.rows)


def test_a_teacher_survives_the_reply(site: Site, config: Config, server: Server) -> None:
    reply = handlers.teach(site, config, server.teach())
    teacher = build_teacher("labs/small", config.task, config.model)
    teacher.load_state_dict(tensors(reply.groups["labs/small"]))
    assert same(module_arrays(teacher), reply.groups["labs/small"])

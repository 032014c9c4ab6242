"""What a site answers: no more than it may, and nothing that it has no data for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client import handlers
from client.site import Site, open_site
from common.arrays import module_arrays, tensors
from common.config import Config
from common.data.cohort import Cohort, Finding, count_patterns
from common.messages import Arrays
from common.models.ensemble import build_teacher
from common.models.student import block_of
from tests.client.conftest import Server, context_of, limited
from tests.common.samples import KINDS, make_config, write_folder


def with_cohort(site: Site, change: Callable[[Cohort], Cohort]) -> Site:
    """The site with other patients."""
    return replace(site, cohort=change(site.cohort), _ready={})


def keeping(*modalities: str) -> Callable[[Cohort], Cohort]:
    def change(cohort: Cohort) -> Cohort:
        kept = torch.tensor([m in modalities for m in cohort.task.modalities])
        present = cohort.present & kept
        return replace(cohort, present=present).select(present.any(1).numpy())

    return change


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


# Enrol.


def test_a_site_tells_what_it_holds(site: Site, config: Config, server: Server) -> None:
    reply = handlers.enrol(site, config, server.enrol())
    train = site.cohort.part("train")
    assert (reply.site, reply.sites_here, reply.role, reply.excluded) == ("riverside", 1, "train", 0)
    assert reply.modalities == {m: len(train.holding(m)) for m in config.task.modalities}
    assert reply.labels == {"death": int(train.labels.sum())}
    assert reply.splits == {s: len(site.cohort.part(s)) for s in ("train", "meta", "validation", "test")}
    assert reply.patterns == handlers.hide_small(count_patterns(site.cohort), 5)
    assert None in reply.patterns.values()
    assert reply.architectures == site.trainable(config)
    assert set(reply.versions) == {"python", "flwr", "torch", "numpy"}
    assert set(reply.moments) == set(config.task.modalities)
    assert reply.bytes() > 0


def test_small_counts_are_hidden_and_moments_of_few_observations_suppressed(site: Site, config: Config, server: Server) -> None:
    reply = handlers.enrol(limited(site, min_count=1000), config, server.enrol())
    assert set(reply.modalities.values()) == set(reply.patterns.values()) == set(reply.labels.values()) == {None}
    assert not any(a["mean"].any() or a["variance"].any() for a in (reply.moments[m] for m in ("admission", "note")))
    assert not reply.moments["admission"]["count"].any()


def test_a_count_of_zero_is_no_secret(site: Site, config: Config, server: Server) -> None:
    reply = handlers.enrol(with_cohort(site, keeping("labs")), config, server.enrol())
    assert reply.modalities == {"admission": 0, "cxr": 0, "labs": reply.modalities["labs"], "note": 0}
    assert reply.modalities["labs"] is not None


@pytest.mark.parametrize(("events", "told"), [(3, None), (5, 5), (-3, None), (0, 0)])
def test_a_count_that_leaves_few_others_is_hidden_too(site: Site, config: Config, server: Server, events: int, told: Any) -> None:
    train = site.cohort.part("train")
    labels = torch.zeros(len(train), 1)
    labels[: events if events >= 0 else len(train) + events] = 1
    mine = with_cohort(site, lambda cohort: replace(train, labels=labels))
    assert handlers.enrol(mine, config, server.enrol()).labels == {"death": told}


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([30, 20, 10], [30, 20, 10]),
        ([30, 20, 0], [30, 20, 0]),
        ([30, 20, 3], [30, None, None]),
        ([30, 5, 4, 3], [30, 5, None, None]),
        (
            [30, 6, 1, 1],
            [30, None, None, None],
        ),  # the sum of the hidden ones would be told, and two hidden ones of two are one each
        ([30, 0, 3], [None, 0, None]),
        ([3], [None]),
        ([], []),
    ],
)
def test_a_small_count_is_never_the_rest_of_a_sum(counts: list[int], told: list[int | None]) -> None:
    assert list(handlers.hide_small(dict(zip("abcd", counts, strict=False)), 5).values()) == told


@given(st.dictionaries(st.text("abcdefg", min_size=1, max_size=3), st.integers(0, 30)), st.integers(1, 12), st.booleans())
def test_hidden_counts_are_at_least_two_and_many_together_wherever_there_are_so_many(
    counts: dict[str, int], least: int, total: bool
) -> None:
    told = handlers.hide_small(counts, least, total=total)
    assert told.keys() == counts.keys()
    assert all(n == counts[k] and (n == 0 or n >= least) for k, n in told.items() if n is not None)
    mine = [counts[k] for k, n in told.items() if n is None]
    if mine or (total and any(counts.values())):
        assert (len(mine) >= 2 and sum(mine) >= least + len(mine)) or mine == [n for n in counts.values() if n]


@pytest.mark.parametrize("few", ["meta", "test"])
def test_a_small_split_is_told_as_the_limit_and_cannot_be_had_from_the_patterns(
    site: Site, config: Config, server: Server, few: str
) -> None:
    cohort = keeping("labs")(site.cohort)
    drop = np.flatnonzero(cohort.split == few)[3:]
    mine = with_cohort(site, lambda _: cohort.select(~np.isin(np.arange(len(cohort)), drop)))
    reply = handlers.enrol(mine, config, server.enrol())
    assert reply.splits == {s: 5 if s == few else int((cohort.split == s).sum()) for s in reply.splits}
    assert reply.patterns == {"labs": None}
    assert handlers.enrol(with_cohort(site, lambda _: cohort), config, server.enrol()).patterns == {"labs": len(cohort)}


def test_rare_classes_are_hidden_with_the_next_rarest(tmp_path: Path) -> None:
    config = make_config("multiclass")
    write_folder(tmp_path / "a", config.task, 80)
    site = open_site(context_of(tmp_path / "a"), config)
    train = site.cohort.part("train")
    labels = torch.zeros(len(train), dtype=torch.int64)
    labels[:4], labels[4:14] = 1, 2
    reply = handlers.enrol(with_cohort(site, lambda _: replace(train, labels=labels)), config, Server(config, site).enrol())
    assert reply.labels == {"cn": len(train) - 14, "mci": None, "ad": None}  # alone, mci would be the rest of the training visits


def test_moments_are_those_of_training_patients(site: Site, config: Config, server: Server) -> None:
    reply = handlers.enrol(site, config, server.enrol())
    labs = site.cohort.part("train").holding("labs").inputs["labs"].double().reshape(-1, 2)
    assert reply.moments["labs"]["count"].tolist() == [len(labs)] * 2
    np.testing.assert_allclose(reply.moments["labs"]["mean"], labs.mean(0))
    np.testing.assert_allclose(reply.moments["labs"]["variance"], labs.var(0, correction=0))


def test_an_evaluating_site_tells_no_moments_and_trains_nothing(tmp_path: Path, config: Config) -> None:
    write_folder(tmp_path / "a", config.task, 40, role="evaluate")
    site = open_site(context_of(tmp_path / "a"), config)
    reply = handlers.enrol(site, config, Server(config, site).enrol())
    assert (reply.role, reply.moments, reply.architectures) == ("evaluate", {}, [])
    assert reply.splits == {"train": 0, "meta": 0, "validation": 0, "test": 40}


def test_a_site_of_which_nothing_is_left_still_answers(site: Site, config: Config, server: Server) -> None:
    reply = handlers.enrol(with_cohort(site, lambda c: c.part("nowhere")), config, server.enrol())
    assert set(reply.modalities.values()) == set(reply.splits.values()) == {0}
    assert reply.patterns == {}
    assert reply.architectures == []


def test_moments_that_few_visits_stand_behind_are_suppressed_however_many_hours_they_hold(
    site: Site, config: Config, server: Server
) -> None:
    few = np.flatnonzero((site.cohort.split == "train") & site.cohort.present[:, 2].numpy())[:4]
    reply = handlers.enrol(with_cohort(site, lambda c: keeping("labs")(c.select(few))), config, server.enrol())
    assert not any(reply.moments["labs"][name].any() for name in ("count", "mean", "variance"))


def test_faults_are_listed_in_the_hospitals_folder_and_only_their_number_leaves(
    site: Site, config: Config, server: Server
) -> None:
    faults = (
        Finding("patients.csv", 3, "cxr", "the file does not exist"),
        Finding("patients.csv", 3, "note", "the text holds no word"),
    )
    reply = handlers.enrol(with_cohort(site, lambda c: replace(c, findings=faults)), config, server.enrol())
    assert reply.excluded == 1
    listed = pd.read_csv(site.folder / ".consilium" / "findings.csv")
    assert listed.to_dict("records") == [vars(f) for f in faults]


def test_the_checksum_that_leaves_is_keyed_and_stable(folder: Path, config: Config, server: Server) -> None:
    site = open_site(context_of(folder), config)
    first, again = (handlers.enrol(site, config, server.enrol()).checksum for _ in range(2))
    assert first == again == site.checksum()
    assert first != hashlib.sha256((folder / "patients.csv").read_bytes()).hexdigest()


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
    assert reply.training is not None
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
    assert (first.validation, first.training) == (again.validation, again.training)

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
    assert same(reply.student, {n: request.student[n] for n in reply.student})
    assert reply.training is None
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
    assert refined.training is None


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

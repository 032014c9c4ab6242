"""What a site tells of its patients when it enrols: no more than it may."""

from __future__ import annotations

import hashlib
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
from common.config import Config
from common.data.cohort import Finding, count_patterns
from tests.client.conftest import Server, context_of, keeping, limited, with_cohort
from tests.common.samples import make_config, write_folder


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

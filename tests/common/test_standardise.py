"""Common standardisation: what sites tell, pooled, is what one place with all patients would have found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.data.standardise import (
    CLIP,
    Moments,
    Standardisation,
    moments,
    pool,
    table_columns,
    target_moments,
    visits_behind,
)
from common.task import LABELS, Feature, Modality
from tests.common.samples import MODALITIES, make_cohort, make_task

TABLE = Modality("table", {"a": Feature(), "b": Feature()})
SERIES = Modality("series", {"a": Feature(), "b": Feature()}, steps=3)
VALUES = st.floats(-1000, 1000, width=32) | st.just(float("nan"))


def close(a: Moments, b: Moments) -> None:
    assert a.count.tolist() == b.count.tolist()
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-6, rtol=1e-9)
    np.testing.assert_allclose(a.variance, b.variance, atol=1e-5, rtol=1e-9)


def site_arrays(*shape: int) -> st.SearchStrategy[list[np.ndarray]]:
    sizes = st.integers(0, 6)
    one = sizes.flatmap(lambda n: hnp.arrays(np.float32, (n, *shape), elements=VALUES))
    return st.lists(one, min_size=1, max_size=4)


@given(site_arrays(2))
def test_pooled_moments_of_tables_are_those_of_all_patients_together(parts: list[np.ndarray]) -> None:
    found = pool([moments(TABLE, torch.from_numpy(p)) for p in parts])
    close(found, moments(TABLE, torch.from_numpy(np.concatenate(parts))))


@given(site_arrays(3, 2))
def test_pooled_moments_of_series_are_those_of_all_patients_together(parts: list[np.ndarray]) -> None:
    found = pool([moments(SERIES, torch.from_numpy(p)) for p in parts])
    close(found, moments(SERIES, torch.from_numpy(np.concatenate(parts))))
    observed = np.concatenate(parts).reshape(-1, 2).astype(np.float64)
    for f in range(2):
        seen = observed[~np.isnan(observed[:, f]), f]
        assert found.count[f] == len(seen)
        if len(seen):
            assert found.mean[f] == pytest.approx(seen.mean(), abs=1e-6)
            assert found.variance[f] == pytest.approx(seen.var(), abs=1e-4)


@given(
    st.lists(
        st.integers(0, 5).flatmap(lambda n: hnp.arrays(np.int64, (n, 8), elements=st.integers(0, 63))), min_size=1, max_size=3
    )
)
def test_pooled_document_frequencies_are_those_of_all_texts_together(parts: list[np.ndarray]) -> None:
    text = MODALITIES["note"]
    found = pool([moments(text, torch.from_numpy(p)) for p in parts])
    close(found, moments(text, torch.from_numpy(np.concatenate(parts))))
    documents = [set(row) - {0} for p in parts for row in p.tolist()]
    if documents:
        assert found.mean[1:] == pytest.approx([np.mean([w in d for d in documents]) for w in range(1, 64)])
    assert found.mean[0] == 0


def test_the_order_of_the_sites_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    parts = [moments(TABLE, torch.from_numpy(rng.normal(size=(n, 2)))) for n in (3, 9, 1)]
    close(pool(parts), pool(parts[::-1]))


def test_images_have_one_mean_and_deviation_over_all_pixels() -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = moments(MODALITIES["cxr"], images)
    assert found.count.tolist() == [5 * 64]
    assert found.mean[0] == pytest.approx(images.double().mean().item())
    assert found.variance[0] == pytest.approx(images.double().var(correction=0).item())


def test_features_with_too_few_observations_are_not_told() -> None:
    told = Moments(np.array([4.0, 5.0, 0.0]), np.array([1.0, 2.0, 0.0]), np.array([3.0, 4.0, 0.0])).suppressed(5, words=False)
    assert told.count.tolist() == [0, 5, 0]
    assert told.mean.tolist() == [0, 2, 0]
    assert told.variance.tolist() == [0, 4, 0]


def test_many_hours_or_pixels_of_few_patients_are_not_told() -> None:
    series = torch.full((6, 3, 2), float("nan"))
    series[:4, :, 0], series[:, 0, 1] = 1.0, 2.0  # four visits with three hours each; six with one
    behind = visits_behind(SERIES, series)
    assert behind.tolist() == [4, 6]
    assert moments(SERIES, series).suppressed(5, words=False, visits=behind).count.tolist() == [0, 6]
    assert visits_behind(TABLE, series[:, 0]).tolist() == [4, 6]
    assert visits_behind(MODALITIES["cxr"], torch.rand(4, 1, 8, 8)).tolist() == [4]


def test_a_word_in_too_few_documents_is_not_told() -> None:
    frequency = np.array([0.0, 0.04, 0.05, 1.0])
    told = Moments(np.full(4, 100.0), frequency, frequency * (1 - frequency)).suppressed(5, words=True)
    assert told.count.tolist() == [100] * 4
    assert told.mean.tolist() == [0, 0, 0.05, 1]
    assert told.variance[1] == 0


def test_a_table_becomes_standardised_values_and_centred_missing_flags() -> None:
    raw = torch.tensor([[1.0, float("nan")], [3.0, 5.0], [5.0, 7.0], [7.0, float("nan")]])
    pooled = moments(TABLE, raw)
    ready = Standardisation({"t": pooled}).apply("t", TABLE, raw)
    assert ready.shape == (4, 2, 2)
    assert ready.dtype == torch.float32
    assert ready[:, 0, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert ready[:, 0, 0].std(correction=0).item() == pytest.approx(1)
    assert ready[:, 0, 1].tolist() == pytest.approx([0, -1, 1, 0])
    assert ready[:, 1].mean(0).tolist() == pytest.approx([0, 0])
    assert ready[:, 1, 1].tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5])


def test_a_series_becomes_standardised_values_and_observation_masks() -> None:
    raw = torch.tensor([[[1.0, float("nan")], [float("nan"), float("nan")], [3.0, float("nan")]]])
    ready = Standardisation({"s": moments(SERIES, raw)}).apply("s", SERIES, raw)
    assert ready.shape == (1, 2, 3, 2)
    assert ready[0, 0, :, 0].tolist() == [-1, 0, 1]
    assert ready[0, 1, :, 0].tolist() == [1, 0, 1]
    assert not ready[0, :, :, 1].any()


def test_a_text_becomes_word_ids_and_inverse_document_frequencies() -> None:
    text = MODALITIES["note"]
    raw = torch.zeros(4, 8, dtype=torch.int64)
    raw[:, 0], raw[0, 1] = 7, 9  # one word is in every document, another in one
    ready = Standardisation({"n": moments(text, raw)}).apply("n", text, raw)
    assert ready.shape == (4, 2, 8)
    assert ready[0, 0].tolist() == [7, 9, 0, 0, 0, 0, 0, 0]
    assert ready[0, 1, :2].tolist() == pytest.approx([1, np.log(5 / 2) + 1])
    assert not ready[:, 1, 2:].any()


def test_a_word_that_nobody_may_name_weighs_nothing() -> None:
    text = MODALITIES["note"]
    raw = torch.full((4, 8), 7)
    told = moments(text, raw).suppressed(5, words=True)
    assert not Standardisation({"n": told}).apply("n", text, raw)[:, 1].any()


def test_an_image_is_scaled_by_the_pooled_mean_and_deviation() -> None:
    cxr = MODALITIES["cxr"]
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ready = Standardisation({"i": moments(cxr, images)}).apply("i", cxr, images)
    assert ready.shape == images.shape
    assert ready.mean().item() == pytest.approx(0, abs=1e-5)
    assert ready.std(correction=0).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("modality", [TABLE, SERIES])
@pytest.mark.parametrize("told", [[4.0, 4.0], [4.0, float("nan")]], ids=["constant", "never observed"])
def test_a_constant_or_never_observed_column_is_zero_and_never_nan(modality: Modality, told: list[float]) -> None:
    rows = torch.tensor([[1.0, told[0]], [2.0, told[1]], [3.0, told[0]]])
    rows[:, 1] = torch.tensor(told[1])
    raw = rows if modality is TABLE else rows[None]
    standardisation = Standardisation({"x": moments(modality, raw)})
    new = raw.clone()
    new[..., 1] = 1e6  # observed for the first time after the enrolment
    for each in (raw, new):
        ready = standardisation.apply("x", modality, each)
        assert ready.isfinite().all()
        assert not ready[:, 0, ..., 1].any()


def test_whether_a_feature_varies_does_not_depend_on_its_unit() -> None:
    molar = torch.tensor([[1.0e-8, 3.0], [2.0e-8, 3.0], [3.0e-8, 3.0]])
    told = moments(TABLE, molar)
    assert told.varies.tolist() == [True, False]
    ready = Standardisation({"x": told}).apply("x", TABLE, molar)
    assert ready[:, 0, 0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], abs=1e-5)
    task = make_task("regression")
    found = Standardisation({LABELS: Moments(np.full(2, 9.0), np.full(2, 2e-8), np.full(2, 2.5e-17))})
    assert found.targets(task, torch.tensor([[2.5e-8, 2e-8]]))[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_far_values_are_clipped() -> None:
    raw = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    standardisation = Standardisation({"t": moments(TABLE, raw)})
    assert standardisation.apply("t", TABLE, torch.tensor([[1e9, -1e9]]))[0, 0].tolist() == [CLIP, -CLIP]


def test_the_moments_of_no_patient_are_zero() -> None:
    for name, modality in MODALITIES.items():
        shape = {"table": (0, table_columns(modality)), "series": (0, 6, 2), "text": (0, 8), "image": (0, 1, 8, 8)}[modality.kind]
        found = moments(modality, torch.zeros(shape, dtype=torch.int64 if name == "note" else torch.float32))
        assert not (found.count.any() or found.mean.any() or found.variance.any())


# Targets of a regression.


def test_targets_are_standardised_and_outcomes_are_what_they_were() -> None:
    task = replace(make_task("regression"), log=("cost",))
    labels = torch.tensor([[1.0, 0.0], [3.0, np.e - 1], [5.0, np.e**2 - 1]])
    found = Standardisation({LABELS: target_moments(task, labels)})
    assert found.moments[LABELS].mean.tolist() == pytest.approx([3, 1])
    assert found.moments[LABELS].variance.tolist() == pytest.approx([8 / 3, 2 / 3])
    targets = found.targets(task, labels)
    assert targets.dtype == torch.float32
    step = (3 / 2) ** 0.5
    assert targets.T.flatten().tolist() == pytest.approx([-step, 0, step] * 2, abs=1e-6)
    assert found.outcomes(task, targets).flatten().tolist() == pytest.approx(labels.flatten().tolist(), abs=1e-6)


def test_a_target_that_never_varies_and_one_that_nobody_tells_keep_their_unit() -> None:
    task = make_task("regression")
    found = Standardisation({LABELS: Moments(np.array([9.0, 0.0]), np.array([4.0, 0.0]), np.zeros(2))})
    assert found.targets(task, torch.tensor([[5.0, 7.0]])).tolist() == [[1.0, 7.0]]
    assert found.outcomes(task, torch.tensor([[1.0, 7.0]])).tolist() == [[5.0, 7.0]]


def test_classes_stay_as_they_are() -> None:
    labels = torch.tensor([[1.0], [0.0]])
    assert Standardisation({}).targets(make_task("binary"), labels) is labels


def test_a_cohort_tells_its_targets_like_a_feature_and_an_unlabelled_one_nothing() -> None:
    cohort = make_cohort(make_task("regression", ["labs"]), 40)
    train = cohort.part("train")
    told = cohort.moments()[LABELS]
    assert told.count.tolist() == [len(train)] * 2
    assert told.mean == pytest.approx(train.labels.double().mean(0).numpy())
    assert cohort.moments_told(len(train) + 1)[LABELS].count.tolist() == [0, 0]
    assert replace(cohort, labelled=False).moments()[LABELS].count.tolist() == [0, 0]
    assert LABELS not in make_cohort(make_task("binary", ["labs"]), 40).moments()

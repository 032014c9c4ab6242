"""MetaKD as released: the mean fills what is absent, weights move by the features' scaling alone, the network learns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

from common.config import Config
from common.data.cohort import Batch, Cohort
from common.data.manifest import FILE_NAME, REFERENCE_FOLDER
from common.data.patches import Edges
from common.evaluation.metrics import metrics
from common.evaluation.predictions import predict_patterns
from common.models.fusion import Features
from simulations import metakd
from simulations.baselines import Consortium, Trained, open_consortium, unimodal
from simulations.metakd import MetaKD, MetaKDVolumes, metakd_faithful
from tests.common.samples import make_cohort, make_config, write_folder
from tests.simulations.test_zero_filled import brains, scans

THREE = ("admission", "labs", "cxr")


def test_an_absent_modality_is_the_mean_of_the_present_ones() -> None:
    config = make_config("multiclass", THREE)
    torch.manual_seed(0)
    network = MetaKD(config).eval()
    features = torch.randn(2, 3, config.model.width)
    present = torch.tensor([[True, True, False], [False, False, True]])
    filled = features.clone()
    filled[0, 2] = (features[0, 0] + features[0, 1]) / 2
    filled[1, :2] = features[1, 2]
    held = Features(features * present[:, :, None])
    assert torch.allclose(network.fused(held, present), network.head(filled.flatten(1)), atol=1e-6)
    weights = torch.tensor([0.2, 0.5, 0.3])
    scaled = network.head((filled * weights[:, None]).flatten(1))
    assert torch.allclose(network.fused(held, present, weights), scaled, atol=1e-6)


def test_what_an_absent_modality_holds_cannot_matter() -> None:
    config = make_config("binary", THREE)
    network = MetaKD(config).eval()
    batch = make_cohort(config.task, 20).batch()
    other = replace(batch, inputs={n: x.nan_to_num(nan=7.0) for n, x in batch.inputs.items()})
    assert torch.equal(network(batch), network(other))


def test_of_volumes_the_mean_fills_the_bottleneck_alone_and_weights_scale_it_alone() -> None:
    config = brains()
    torch.manual_seed(0)
    network = MetaKDVolumes(config).eval()
    batch = scans(config, [[True, True, False, False], [False, False, True, False]])
    features = network.features(batch)
    blank = network.encoder.maps(torch.zeros(1, 1, *batch.inputs["flair"].shape[2:]))
    for level, nothing in zip((*features.tokens, features.pooled), blank, strict=True):
        assert torch.allclose(level[0, 2:], nothing.expand(2, *nothing.shape[1:]), atol=1e-3)
    filled = features.pooled.clone()
    filled[0, 2:] = (features.pooled[0, 0] + features.pooled[0, 1]) / 2
    filled[1, [0, 1, 3]] = features.pooled[1, 2]

    def decoded(bottleneck: Tensor) -> Tensor:
        levels = (*features.tokens, bottleneck)
        said: Tensor = network.decoder([mix(x.flatten(1, 2)) for mix, x in zip(network.mix, levels, strict=True)])
        return said

    assert torch.allclose(network(batch), decoded(filled), atol=1e-5)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    scaled = decoded(filled * weights[:, None, None, None, None])
    assert torch.allclose(network.fused(features, batch.present, weights), scaled, atol=1e-5)
    assert not torch.allclose(scaled, decoded(filled), atol=1e-3)
    other = replace(
        batch, inputs={n: torch.where(at, x, torch.nan) for (n, x), at in zip(batch.inputs.items(), held(batch), strict=True)}
    )
    assert torch.equal(network(other), network(batch)), "what an absent scan holds cannot matter"


def held(batch: Batch) -> tuple[Tensor, ...]:
    """Whether a modality is present, per modality, [B, 1, 1, 1, 1]."""
    return batch.present[:, :, None, None, None, None].unbind(1)


def scanned(config: Config, size: int) -> Cohort:
    """Cases of two or four scans each, with masks, the first of each three complete."""
    batch = scans(config, [[True, True, n % 3 == 0, n % 3 == 0] for n in range(size)])
    labels = (torch.rand(batch.labels.shape, generator=torch.Generator().manual_seed(1)) < 0.3).to(torch.uint8)
    rows = np.arange(size)
    return Cohort(config.task, batch.inputs, batch.present, labels, True, rows, rows, np.full(size, "train", dtype="<U10"))


def test_the_released_loss_of_voxels_averages_dice_and_sums_the_cross_entropy_over_the_regions() -> None:
    g = torch.Generator().manual_seed(0)
    logits, regions = torch.randn(2, 3, 4, 4, 4, generator=g), torch.rand(2, 3, 4, 4, 4, generator=g) < 0.4
    p, y = logits.sigmoid(), regions.float()
    overlap, sizes = (p * y).flatten(2).sum(2), (p + y).flatten(2).sum(2)
    crossed = -(y * p.log() + (1 - y) * (1 - p).log()).flatten(2).mean(2)
    expected = (1 - 2 * overlap / (sizes + 1)).mean(1) + crossed.sum(1)
    assert torch.allclose(metakd._loss("segmentation", logits, regions.to(torch.uint8)), expected, atol=1e-5)


def test_the_weights_of_scans_are_learned_on_the_released_share_of_the_fullest_cases() -> None:
    config = brains()
    for size, most in ((24, 1), (285, 5)):
        train, meta = metakd._meta_patients(scanned(config, size), torch.Generator().manual_seed(0))
        assert (len(train), len(meta)) == (size - most, most)
        assert meta.present.all()


@pytest.mark.parametrize("kind", ["scans", "visits"])
def test_in_the_second_stage_patterns_are_drawn_and_all_along_pairs_are_distilled(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = brains() if kind == "scans" else make_config("multiclass", THREE)
    config = replace(config, distill=replace(config.distill, epochs=6))
    cohort = scanned(config, 4) if kind == "scans" else make_cohort(config.task, 40)
    train, meta = cohort.select(np.arange(len(cohort)) > 0), cohort.select(np.arange(len(cohort)) == 0)
    monkeypatch.setattr(metakd, "WEIGHTS_EVERY", (1, 1))
    monkeypatch.setattr(metakd, "WEIGHTS_STEPS", 2)

    def trained(pairwise: float) -> tuple[list[float], list[list[float]], list[tuple[bool, bool]]]:
        seen: list[tuple[bool, bool]] = []
        drawn = metakd._drawn

        def spy(batch: Batch, patch: Edges | None, generator: torch.Generator, *, second: bool) -> Batch:
            said = drawn(batch, patch, generator, second=second)
            seen.append((second, torch.equal(said.present, batch.present)))
            return said

        torch.manual_seed(0)
        network = MetaKDVolumes(config) if kind == "scans" else MetaKD(config)
        with monkeypatch.context() as patched:
            patched.setattr(metakd, "_drawn", spy)
            patched.setattr(metakd, "PAIRWISE", pairwise)
            curve, weights = metakd._train(network, train, meta, config, torch.Generator().manual_seed(0))
        return curve, weights, seen

    curve, weights, seen = trained(0.1)
    second = [s for s, _ in seen]
    assert second == sorted(second) and sum(second) == len(second) / 3, "the last two of six epochs"
    assert all(whole for s, whole in seen if not s) and not all(whole for s, whole in seen if s)
    assert len(weights) == 1 + len(second) / 3 and len({tuple(w) for w in weights}) == len(weights)
    assert all(a != b for a, b in zip(curve, trained(0.0)[0], strict=True))


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    config = make_config("multiclass", THREE)
    config = replace(config, distill=replace(config.distill, epochs=60))
    for seed, site in enumerate(("alder", "birch")):
        write_folder(tmp_path / site, config.task, 160, site=site, seed=seed)
    return open_consortium(tmp_path, config)


def accuracy(consortium: Consortium, trained: Trained, pattern: str) -> float:
    found = []
    for site, cohort in consortium.testing.items():
        speaker, scaling = trained.speaker(site)
        found.append(predict_patterns(cohort, [speaker], scaling))
    rows = pd.concat(found)
    rows = rows[rows["pattern"] == pattern]
    scores, labels = (rows[c].to_numpy().reshape(-1, 3) for c in ("score", "label"))
    return metrics("multiclass", scores, labels)["accuracy"]


def test_it_learns_and_its_weights_move_from_where_they_started(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metakd, "WEIGHTS_EVERY", (50, 50))
    trained = metakd_faithful(consortium)
    again = metakd_faithful(consortium)
    assert accuracy(consortium, trained, "all") > 0.5
    assert trained.curves == again.curves
    assert trained.weights == again.weights
    steps = [w for w in trained.weights if w["modality"] == "labs"]
    assert len({w["value"] for w in steps}) == len(steps) > 3
    first = [w["value"] for w in trained.weights if w["step"] == 0]
    assert sum(first) == pytest.approx(1)  # type: ignore[arg-type]
    assert len(trained.curves) == 60


def test_it_trains_on_no_validation_patient(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Cohort] = []

    def spy(network: MetaKD, train: Cohort, meta: Cohort, *_: object) -> tuple[list[float], list[list[float]]]:
        seen.extend((train, meta))
        return [], []

    monkeypatch.setattr(metakd, "_train", spy)
    metakd_faithful(consortium)
    splits = Counter(s for c in consortium.training.values() for s in c.split)
    assert splits["validation"] > 0
    assert Counter(s for c in seen for s in c.split) == {"train": splits["train"]}


def test_a_network_of_one_modality_reads_that_modality_alone(consortium: Consortium) -> None:
    trained = unimodal(consortium)
    assert accuracy(consortium, trained, "labs") > 0.45
    speaker, scaling = trained.speaker("alder")
    batch = consortium.testing["alder"].standardised(scaling).batch()
    both = speaker.logits(batch.masked(torch.tensor([True, True, False])))
    one, other = (speaker.logits(batch.masked(torch.tensor(p))) for p in ([True, False, False], [False, True, False]))
    complete = batch.present[:, :2].all(1)
    assert torch.allclose(both[complete], ((one + other) / 2)[complete], atol=1e-5)
    assert complete.any()


def test_a_reference_set_without_labels_teaches_no_baseline(consortium: Consortium, tmp_path: Path) -> None:
    folder = tmp_path / REFERENCE_FOLDER
    write_folder(folder, consortium.config.task, 40, site="public", seed=5)
    assert REFERENCE_FOLDER in open_consortium(tmp_path, consortium.config).training
    manifest = yaml.safe_load((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(yaml.dump({k: v for k, v in manifest.items() if k != "labels"}))
    assert set(open_consortium(tmp_path, consortium.config).training) == {"alder", "birch"}

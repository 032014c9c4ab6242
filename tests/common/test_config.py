"""Every shipped experiment composes; whatever is wrong is named together with what is right."""

from __future__ import annotations

import json

import pytest

from common.config import CONFIG_DIR, Config, Training, from_json, load_config, to_json
from common.errors import ConsiliumError, keys_at, nearest
from common.models.registry import fusions
from common.task import patterns

EXPERIMENTS = sorted({p.stem for p in (CONFIG_DIR / "experiment").glob("*.yaml")} - {"custom"})  # it has no task of its own
GROUPS = sorted(
    p.name for p in CONFIG_DIR.iterdir() if p.is_dir() and any(p.glob("*.yaml")) and p.name not in ("experiment", "task")
)
OPTIONS = [f"{group}={p.stem}" for group in GROUPS for p in sorted((CONFIG_DIR / group).glob("*.yaml"))]


def refused(overrides: str, experiment: str = "demo") -> str:
    with pytest.raises(ConsiliumError) as error:
        load_config(experiment, overrides)
    return str(error.value)


@pytest.mark.parametrize("override", [*OPTIONS, *(f"model.fusion={f}" for f in fusions()), "weights.per_output=true"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_shipped_experiment_composes_with_every_option(experiment: str, override: str) -> None:
    if load_config(experiment).task.type == "segmentation" and override in (
        "model.fusion=bottleneck",
        "balance=gradient-modulation",
    ):
        assert "A segmentation is fused by joint, weighted, late" in refused(override, experiment)
    else:
        assert isinstance(load_config(experiment, override), Config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_configuration_survives_json_and_repeats(experiment: str) -> None:
    config = load_config(experiment)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert load_config(experiment) == config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_modality_of_an_experiment_has_teachers_and_a_pattern(experiment: str) -> None:
    config = load_config(experiment)
    assert all(config.model.teachers[m.kind] for m in config.task.modalities.values())
    assert len(patterns(config.task.modalities)) == 2 ** len(config.task.modalities) - 1


def test_overrides_are_words_or_one_text() -> None:
    words = ["distill.temperature=4", "seed=3"]
    config = load_config("demo", words)
    assert config == load_config("demo", "distill.temperature=4 seed=3")
    assert (config.distill.temperature, config.seed) == (4, 3)


def test_the_uniform_weights_keep_everything_else() -> None:
    learned, uniform = load_config("demo"), load_config("demo", "weights=uniform")
    assert uniform.weights.estimator == "uniform"
    assert uniform.weights.eta == learned.weights.eta
    assert uniform.distill == learned.distill


@pytest.mark.parametrize(
    ("overrides", "wrong", "right"),
    [
        ("distill.tempertur=4", "distill.tempertur", "'temperature'"),
        ("distll.temperature=4", "distll", "'distill'"),
        ("weights.esimator.x=4", "weights.esimator", "'estimator'"),
        ("+foo.bar=1", "foo", "Known: balance, "),
        ("sed=1", "sed", "'seed'"),
        ("weight=uniform", "weight", "'weights'"),
        ("weights=unifrm", "weights=unifrm", "'uniform'"),
        ("task=dem", "task=dem", "'demo'"),
        ("federation=x", "federation=x", "Known: default"),
        ("model.fusion=lat", "fusion 'lat'", "'late'"),
        ("model.complete=lat", "fusion 'lat'", "'late'"),
        ("model.patch=[32,32,32]", "reads no volumes", "Leave it out"),
        ("model.teachers.image=[smal]", "architecture 'smal' for kind 'image'", "'small'"),
        ("model.student.text=compct", "architecture 'compct' for kind 'text'", "'compact'"),
        ("+model.teachers.imge=[small]", "imge", "'image'"),
        ("+teach.training.linaer={}", "'linaer' in teach.training", "'linear'"),
        ("+teach.training.cxr-smal={}", "'cxr-smal' in teach.training", "'cxr-small'"),
        ("weights.estimator=lookahed", "weights.estimator='lookahed'", "'lookahead'"),
        ("+task.modalities.cxr.pixel=3", "task.modalities.cxr.pixel", "'pixels'"),
        ("+task.modalities.admission.features.age.unt=a", "features.age.unt", "'unit'"),
        ("task.modalities.cxr.kind=imge", "task.modalities.cxr.kind='imge'", "'image'"),
        ("task.type=binar", "task.type='binar'", "'binary'"),
        ("seed=abc", "seed='abc'", "integer"),
        ("distill.temperature=0", "distill.temperature=0", "greater than 0"),
        ("distill.temperature=nan", "distill.temperature=nan", "greater than 0"),
        ("model.dropout=1", "model.dropout=1", "less than 1"),
        ("teach.training.default.lr=-1", "teach.training.default.lr=-1", "greater than 0"),
        ("teach.training.linaer.lr=1", "teach.training.linaer.lr", "+teach.training.linaer.lr=1"),
        ("split.test=0.9", "split.test", "Lower them"),
        ("~teach", "'teach' is missing", ""),
        ("task.outputs=[a,b]", "task", "exactly one output"),
        ("'name=x", "quotes", ""),
        ("weights", "weights", ""),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named_with_the_nearest_right_one(overrides: str, wrong: str, right: str) -> None:
    text = refused(overrides)
    assert wrong in text
    assert right in text
    assert "\n" not in text
    assert str(CONFIG_DIR) not in text


def test_an_unknown_experiment_is_named_with_the_nearest() -> None:
    text = refused("", "demmo")
    assert "'demmo'" in text
    assert "did you mean 'demo'" in text


def test_a_modality_kind_without_an_architecture_is_refused() -> None:
    assert "kind 'image'" in refused("~model.teachers.image")
    assert "kind 'text'" in refused("~model.student.text")


def test_teachers_without_a_default_optimiser_are_refused() -> None:
    assert "default" in refused("~teach.training.default")


def test_a_configuration_of_another_version_is_refused_by_key() -> None:
    raw = to_json(load_config("demo"))
    with pytest.raises(ConsiliumError, match=r"unknown key 'distill.temperatur'; did you mean 'temperature'"):
        from_json(raw | {"distill": raw["distill"] | {"temperatur": 1}})
    with pytest.raises(ConsiliumError, match="'weights' is missing"):
        from_json({k: v for k, v in raw.items() if k != "weights"})
    with pytest.raises(ConsiliumError):
        from_json([])  # type: ignore[arg-type]


def test_a_group_is_trained_as_its_name_its_architecture_or_the_default_says() -> None:
    words = ["+teach.training.labs-linear={lr: 0.5}", "teach.training.linear.lr=0.25", "teach.training.default.lr=0.125"]
    teach = load_config("demo", words).teach
    assert teach.training_of("labs/linear").lr == 0.5
    assert teach.training_of("notes/linear").lr == 0.25
    assert teach.training_of("labs/small").lr == 0.125
    assert isinstance(teach.training_of("labs/small"), Training)


def test_nearest_names_one_and_lists_all() -> None:
    assert nearest("lat", ["joint", "late"]) == "; did you mean 'late'? Known: joint, late"
    assert nearest("x", []) == ". Known: none"
    said = nearest("rna_17", [f"rna_{i}" for i in range(20_000)])
    assert said.startswith("; did you mean 'rna_17'? Known: rna_") and said.endswith("and 19,990 more") and len(said) < 200


def test_keys_of_a_path_that_leads_nowhere_are_none() -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"properties": {"b": {}}}}}
    assert keys_at(schema, []) == ["a"]
    assert keys_at(schema, ["a"]) == ["b"]
    assert keys_at(schema, ["a", "b", "c"]) == []


def test_a_patch_larger_than_the_grid_is_refused() -> None:
    assert "is larger than the task's grid, [48, 64, 48]" in refused("model.patch=[48,48,64]", "hippocampus")

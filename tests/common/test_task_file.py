"""``task_file=...``: a task of one's own in the place of an experiment's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from common.config import load_config, to_json
from common.errors import ConsiliumError

TASK = {
    "name": "wards",
    "type": "multiclass",
    "outputs": [0, 1, "2b"],
    "modalities": {
        "rna": {"kind": "table", "features": ["tp53", "c.1"]},
        "clinic": {"kind": "table", "features": {"age": {"unit": "a"}}},
    },
}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    file = tmp_path / "my tasks" / "TASK.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(TASK, sort_keys=False))
    return file


def test_the_task_of_a_file_takes_the_place_of_the_experiments_own(task: Path) -> None:
    config = load_config("custom", [f"task_file={task}", "seed=4"])
    assert (config.name, config.task.name, config.task.outputs, config.seed) == ("custom", "wards", ("0", "1", "2b"), 4)
    assert list(config.task.modalities["rna"].features) == ["tp53", "c.1"]
    assert load_config("demo", f"'task_file={task}'").task == config.task
    assert load_config("demo").task.name == "demo-deterioration"


def test_overrides_change_the_task_of_a_file_too(task: Path) -> None:
    config = load_config("custom", [f"task_file={task}", "+task.modalities.rna.steps=3", "task.name=other"])
    assert (config.task.modalities["rna"].steps, config.task.name) == (3, "other")


def test_where_the_file_lies_does_not_travel(task: Path) -> None:
    assert str(task.parent) not in json.dumps(to_json(load_config("custom", [f"task_file={task}"])))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"TASK\.yaml does not exist; did you mean 'TASKS\.yaml'"),
        (
            "name: x\ntype: binary\noutputs: [a]\nmodalities: {m: {kind: table, features: {smoker: {codes: [yes, no]}}}}\n",
            r"TASK\.yaml: codes of 'smoker': YAML reads yes and no as true and false; put them in quotes",
        ),
        ("name: [", r"not valid YAML, line 1"),
        ("just words", r"holds no task: it needs name, type, outputs, modalities"),
        ("name: x\ntyp: binary\n", r"unknown key 'task.typ'; did you mean 'type'"),
        ("name: x\ntype: binary\noutputs: [a]\nmodalities: {m: {kind: tabel, features: [a]}}\n", r"kind='tabel'.*'table'"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "TASK.yaml"
    (tmp_path / "TASKS.yaml").touch()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConsiliumError, match=said):
        load_config("custom", [f"task_file={file}"])


def test_the_experiment_custom_says_that_it_needs_a_task() -> None:
    with pytest.raises(ConsiliumError, match=r"'custom' has no task.*task_file=/absolute"):
        load_config("custom")

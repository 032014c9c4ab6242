"""The state on disk: what was written is read again, and nothing in between ever is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConsiliumError
from server import checkpoint
from server.checkpoint import Enrolled, RunState


@pytest.fixture
def state() -> RunState:
    rng = np.random.default_rng(0)
    return RunState(
        phase="teaching",
        round=3,
        nodes=2,
        reference=60,
        sites={"ash": Enrolled("train", ["labs/small"], {"train": 40, "test": 9}, {"labs": 49, "labs+notes": None})},
        prior=[-0.1 - 1e-17, 1 / 3],
        best={"labs/small": 0.1 + 0.2},
        traffic={"ash": {"teach": [10, 20]}},
        weights=[{"step": 0, "output": None, "modality": "labs", "omega": 0.1, "value": 1 / 7}],
        curves=[{"group": "labs/small", "loss": 1e-300}],
        evaluation=[{"site": "ash", "value": 0.7, "n": 9}],
        withheld={"ash": 3},
        arrays={
            "teacher:labs/small": {"head.weight": rng.normal(size=(2, 3)).astype(np.float32), "n": np.array(7, np.int64)},
            "omega-adam": {"step": np.array(5.0, np.float32), "exp_avg": rng.normal(size=(1, 4))},
            "best:labs/small": {"a|b": np.zeros((0, 2), np.float32)},
        },
    )


def assert_equal(a: RunState, b: RunState) -> None:
    plain = [{f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.name != "arrays"} for s in (a, b)]
    assert plain[0] == plain[1]
    assert a.arrays.keys() == b.arrays.keys()
    for name, arrays in a.arrays.items():
        assert arrays.keys() == b.arrays[name].keys()
        for key, array in arrays.items():
            other = b.arrays[name][key]
            assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def test_what_was_saved_is_loaded_bit_by_bit(state: RunState, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(tmp_path)
    assert_equal(loaded, state)
    loaded.arrays["omega-adam"]["exp_avg"] += 1  # memory of its own, not a map of the file


def test_a_run_that_has_no_arrays_yet_can_be_resumed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, RunState())
    assert_equal(checkpoint.load(tmp_path), RunState())


def test_only_the_newest_arrays_are_kept(state: RunState, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state)
    state.phase, state.round = "distilling", 0
    checkpoint.save(tmp_path, state)
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["2-distilling-0000.safetensors"]
    assert_equal(checkpoint.load(tmp_path), state)


@pytest.mark.parametrize("dies_in", ["write_arrays", "write_json"])
def test_a_server_that_dies_while_it_saves_leaves_the_state_before(
    dies_in: str, state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, state)
    before = checkpoint.load(tmp_path)
    state.round = 4
    state.arrays["teacher:labs/small"]["head.weight"] = np.ones((2, 3), np.float32)

    def dies(path: Path, *_: object, **__: object) -> None:
        path.with_name(path.name + ".partial").write_bytes(b"half of")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, dies_in, dies)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, state)
    assert_equal(checkpoint.load(tmp_path), before)
    checkpoint.save(tmp_path, state)
    assert_equal(checkpoint.load(tmp_path), state)


def test_a_failure_is_noted_without_what_was_half_done(state: RunState, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state)
    state.arrays.clear()
    state.curves.append({"half": "done"})
    checkpoint.mark_failed(tmp_path, "no quorum")
    checkpoint.mark_failed(tmp_path, "no site is connected")
    loaded = checkpoint.load(tmp_path)
    assert (loaded.phase, loaded.failed_in, loaded.round) == ("failed", "teaching", 3)
    assert loaded.reason == "no site is connected"
    assert len(loaded.curves) == 1
    assert "teacher:labs/small" in loaded.arrays


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def no_json(file: Path) -> None:
    file.write_text("not JSON", encoding="utf-8")


def other_phase(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"phase": "pondering"}), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.json", cut),
        ("state.json", no_json),
        ("state.json", other_phase),
        ("checkpoint/1-teaching-0003.safetensors", cut),
        ("checkpoint/1-teaching-0003.safetensors", no_json),
        ("checkpoint/1-teaching-0003.safetensors", Path.unlink),
    ],
)
def test_a_damaged_state_says_what_to_do(file: str, damage: object, state: RunState, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state)
    damage(tmp_path / file)  # type: ignore[operator]
    with pytest.raises(ConsiliumError, match=r"cannot be read .*Restore state\.json and checkpoint/ from a backup"):
        checkpoint.load(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"No run at .*state\.json is missing\. Name a run directory"):
        checkpoint.load(tmp_path)

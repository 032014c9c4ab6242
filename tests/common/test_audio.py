"""Sound: what is read of a recording, and that one which cannot be used is named."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from torch.nn import functional

from common.config import SplitConfig, Training
from common.data.folder import open_cohort
from common.data.ingest import Frames, IngestError, reader
from common.data.ingest.audio import read_audio
from common.data.manifest import Source, load_manifest
from common.data.standardise import Standardisation, moments, visits_behind
from common.learning.loop import fit
from common.models.encoders.audio import stretched
from common.models.teacher import Teacher
from common.task import Modality, Task
from tests.common.samples import SPEECH

SPOKEN = Modality("audio")
RATE = SPOKEN.sample_rate


def tone(seconds: float = 0.4, rate: int = RATE, pitch: float = 440.0, level: float = 0.5) -> np.ndarray[Any, Any]:
    """A tone with an overtone that fades."""
    t = np.arange(int(seconds * rate)) / rate
    return level * (np.sin(2 * np.pi * pitch * t) * 0.7 + np.sin(6 * np.pi * pitch * t) * 0.3) * np.exp(-t)


def wav(path: Path, wave: np.ndarray[Any, Any], rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def heard(found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The frames that are no padding."""
    return found[~np.isnan(found).any(1)]


def test_a_short_recording_is_padded_behind_its_end_and_a_long_one_cut(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = read_audio(wav(tmp_path / "short.wav", tone(0.4)), SPOKEN)
        long = read_audio(wav(tmp_path / "long.wav", tone(4.0)), SPOKEN)
    assert short.shape == long.shape == (SPOKEN.frames, SPOKEN.coefficients)
    assert short.dtype == np.float32
    frames = 1 + int(0.4 / 0.016)
    assert np.isfinite(short[:frames]).all()
    assert np.isnan(short[frames:]).all()
    assert np.isfinite(long).all()
    np.testing.assert_allclose(long[: frames - 2], short[: frames - 2], atol=0.5)


def test_faster_stereo_and_flac_recordings_say_the_same(tmp_path: Path) -> None:
    plain = heard(read_audio(wav(tmp_path / "plain.wav", tone()), SPOKEN))
    fast = tone(rate=44100)
    for file in (
        wav(tmp_path / "fast.wav", np.stack([fast, 0.5 * fast], 1), 44100),
        wav(tmp_path / "lossless.flac", tone()),
        wav(tmp_path / "quiet.wav", tone(level=0.05) + 0.1),
        wav(tmp_path / "float.wav", tone(), subtype="FLOAT"),
        wav(tmp_path / "eight-bit.wav", tone(), subtype="PCM_U8"),
    ):
        found = heard(read_audio(file, SPOKEN))
        assert abs(len(found) - len(plain)) <= 1
        size = min(len(found), len(plain)) - 2
        coarse = found[1:size, 1:6] - plain[1:size, 1:6]
        assert np.abs(coarse).mean() < (20 if "eight" in file.name else 8), file.name
    other = heard(read_audio(wav(tmp_path / "other.wav", tone(pitch=1000.0)), SPOKEN))
    assert np.abs(other[1:20, 1:6] - plain[1:20, 1:6]).mean() > 20


def damaged(folder: Path) -> dict[str, str]:
    """Writes recordings that cannot be used; returns file name -> cause and remedy."""
    both = np.stack([tone(), -tone()], 1)
    wav(folder / "slow.wav", tone(rate=4000), 4000)
    wav(folder / "none.wav", np.zeros(0))
    wav(folder / "silent.wav", np.full(4000, 0.2))
    wav(folder / "cancels.wav", both)
    wav(folder / "clipped.wav", np.clip(tone(level=3.0), -1, 1))
    wav(folder / "loud.wav", tone(level=3.0), subtype="FLOAT")
    wav(folder / "click.wav", tone(0.01))
    wav(folder / "nan.wav", np.full(4000, np.nan), subtype="FLOAT")
    (folder / "no.wav").write_bytes(b"SECRET" * 100)
    (folder / "nothing.wav").write_bytes(b"")
    return {
        "slow.wav": "4000 samples per second, fewer than the task's 8000.* give the original",
        "none.wav": "holds no samples; give another",
        "silent.wav": "silent where it is read, at its start",
        "cancels.wav": "silent where it is read, at its start",
        "clipped.wav": "is clipped.* recorded at a lower level",
        "loud.wav": "is clipped",
        "click.wav": "shorter than a frame of 32 ms; give the whole",
        "nan.wav": "no numbers; export it again",
        "no.wav": r"cannot be read \(LibsndfileError\); save it as WAV or FLAC",
        "nothing.wav": "cannot be read",
        "absent.wav": "does not exist",
    }


def test_a_recording_that_cannot_be_used_is_named_with_what_to_do(tmp_path: Path) -> None:
    read = reader(tmp_path, Source("audio", column="speech"), SPOKEN, Frames())
    for name, cause in damaged(tmp_path).items():
        with pytest.raises(IngestError, match=cause) as found:
            read(name, "1")
        assert "SECRET" not in str(found.value)
    assert np.isfinite(heard(read_audio(wav(tmp_path / "peak.wav", tone(level=1.0)), SPOKEN))).all()  # loud is not clipped


def test_bad_recordings_are_findings_with_row_and_column_and_the_rest_is_read(tmp_path: Path) -> None:
    bad = list(damaged(tmp_path))
    good = [wav(tmp_path / f"good{i}.wav", tone(pitch=300 + 40 * i)).name for i in range(8)]
    names = [*good, *bad, None]
    table = {"patient": range(len(names)), "visit": range(len(names)), "class": ["a", "b"] * 10, "speech": names}
    pd.DataFrame(table).to_csv(tmp_path / "patients.csv", index=False)
    source = {"speech": {"kind": "audio", "column": "speech"}}
    head = {"site": "clinic", "patients": "patients.csv", "patient": "patient", "visit": "visit", "labels": {"class": "class"}}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(head | {"modalities": source, "limits": {"bad_rows": 0.9}}))
    task = Task("toy", "multiclass", ("a", "b"), {"speech": SPOKEN})
    shares = SplitConfig(meta=0, validation=0, test=0)
    cohort = open_cohort(tmp_path, load_manifest(tmp_path), task, shares, seed=0)
    assert [(f.file, f.row, f.column) for f in cohort.findings] == [("patients.csv", 10 + i, "speech") for i in range(len(bad))]
    assert len(cohort) == len(good)
    ready = cohort.standardised(Standardisation(cohort.moments())).inputs["speech"]
    assert ready.shape == (len(good), 2, SPOKEN.frames, SPOKEN.coefficients)
    assert ready.isfinite().all()


def test_the_moments_are_those_of_what_was_heard_and_padding_becomes_the_mean() -> None:
    raw = torch.randn(6, SPEECH.frames, SPEECH.coefficients, generator=torch.Generator().manual_seed(0)) * 3 + 5
    raw[:, 7:] = torch.nan
    found = moments(SPEECH, raw)
    assert found.count.tolist() == [6 * 7] * SPEECH.coefficients
    assert found.mean == pytest.approx(raw[:, :7].mean((0, 1)).numpy(), abs=1e-5)
    assert visits_behind(SPEECH, raw).tolist() == [6] * SPEECH.coefficients
    ready = Standardisation({"s": found}).apply("s", SPEECH, raw)
    assert ready[:, 0, :7].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert not ready[:, :, 7:].any()
    assert ready[:, 1, :7].all()


def test_slow_and_fast_speech_look_alike_when_stretched() -> None:
    def said(frames: int) -> torch.Tensor:
        time = torch.linspace(0, 1, frames)
        x = torch.zeros(1, 2, 48, 2)
        x[0, 0, :frames] = torch.stack([time, (6 * time).sin()], 1)
        x[0, 1, :frames] = 1
        return x

    slow, fast = stretched(said(40), 8), stretched(said(20), 8)
    assert slow.shape == (1, 8, 2)
    assert torch.allclose(slow, fast, atol=0.06)
    assert (slow[0, 1:, 0] > slow[0, :-1, 0]).all()
    few = said(3)
    assert (stretched(few, 8)[0, :, 0].diff() >= 0).all()  # no part stays empty
    assert not stretched(torch.zeros(1, 2, 48, 2), 8).any()


def test_a_linear_teacher_tells_spoken_digits_apart(data_root: Path, tmp_path: Path) -> None:
    archive = data_root / "avmnist" / "free-spoken-digit-dataset.tar.gz"
    if not archive.is_file():
        pytest.skip("no spoken digits in the data folder")
    raw, digit, taught = [], [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name)
            if name.suffix != ".wav" or "_theo_" not in name.name:
                continue
            index = int(name.stem.split("_")[2])
            file = tar.extractfile(member)
            if not 15 <= index < 35 or file is None:  # recordings of the training part of the published split
                continue
            (tmp_path / name.name).write_bytes(file.read())
            raw.append(read_audio(tmp_path / name.name, SPOKEN))
            digit.append(int(name.stem.split("_")[0]))
            taught.append(index < 25)
    x, y, train = torch.from_numpy(np.stack(raw)), torch.tensor(digit), torch.tensor(taught)
    ready = Standardisation({"s": moments(SPOKEN, x[train])}).apply("s", SPOKEN, x)
    teacher = Teacher(SPOKEN, "linear", 10, width=4, dropout=0.0)
    mine, labels = ready[train], y[train]
    fit(
        teacher,
        len(mine),
        lambda i, _: functional.cross_entropy(teacher(mine[i]), labels[i]),
        Training(lr=0.01),
        epochs=20,
        seed=0,
    )
    with torch.no_grad():
        assert (teacher(ready[~train]).argmax(1) == y[~train]).float().mean() > 0.9

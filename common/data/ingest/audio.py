"""Sound recordings (WAV or FLAC, by soundfile) as mel-frequency cepstral coefficients (by librosa)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.ingest.frames import IngestError
from common.task import Modality

FULL_SCALE = 0.99  # 127 of 128 in a file of 8 bits
CLIPPED = 0.01
SILENT = 1e-4  # -80 dB of full scale, some three steps of 16 bits
MEL_BANDS = 40
COARSEST_BIN = 32.0  # Hz; with fewer bins the lowest mel bands would be empty


def read_audio(path: Path, modality: Modality) -> NDArray[np.generic]:
    """Returns the mel-frequency cepstral coefficients of a recording's start.

    Channels are mixed, a faster recording is resampled behind a low-pass, and the loudest sample becomes 1, so that microphones
    of different gain agree.

    Args:
        path: The file.
        modality: Sample rate, frames and coefficients.

    Returns:
        float32 [frames, coefficients]; NaN behind the end of the recording.

    Raises:
        IngestError: If the file is no recording, is slower than the task's sample rate, is empty, silent, shorter than a frame
            or clipped.
    """
    import librosa  # here: it takes seconds, and most tasks have no sound

    window, hop = (round(modality.sample_rate * ms / 1000) for ms in (modality.window_ms, modality.hop_ms))
    wave, rate = _read(path, ((modality.frames - 1) * hop + window) / modality.sample_rate)
    if rate < modality.sample_rate:
        raise IngestError(
            f"the recording has {rate} samples per second, fewer than the task's {modality.sample_rate}, and what it lacks "
            "cannot be made up; give the original recording, or leave the cell empty"
        )
    if (np.abs(wave) >= FULL_SCALE).mean() > CLIPPED:
        raise IngestError(
            f"the recording is clipped: more than {CLIPPED:.0%} of its samples are at full scale; give one recorded at a lower "
            "level, or leave the cell empty"
        )
    mono = wave.mean(1) - wave.mean()
    loudest = np.abs(mono).max()
    if loudest < SILENT:
        raise IngestError("the recording is silent where it is read, at its start; cut the silence off, or leave the cell empty")
    mono = librosa.resample(mono / loudest, orig_sr=rate, target_sr=modality.sample_rate)
    if len(mono) < window:
        raise IngestError(
            f"the recording is shorter than a frame of {modality.window_ms:g} ms; give the whole one, or leave the cell empty"
        )
    found = librosa.feature.mfcc(
        y=mono,
        sr=modality.sample_rate,
        n_mfcc=modality.coefficients,
        n_mels=MEL_BANDS,
        n_fft=2 ** math.ceil(math.log2(max(window, modality.sample_rate / COARSEST_BIN))),
        win_length=window,
        hop_length=hop,
    )
    padded = np.full((modality.frames, modality.coefficients), np.nan, dtype=np.float32)
    kept = found.T[: modality.frames]
    padded[: len(kept)] = kept
    return padded


def _read(path: Path, seconds: float) -> tuple[NDArray[np.float32], int]:
    """Returns the first seconds of a recording, float32 [N, channels] within -1 and 1, and its samples per second."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            wave: NDArray[np.float32] = file.read(math.ceil(seconds * rate), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise IngestError(
            f"the recording cannot be read ({type(error).__name__}); save it as WAV or FLAC, or leave the cell empty"
        ) from None
    if not len(wave):
        raise IngestError("the recording is empty: it holds no samples; give another one, or leave the cell empty")
    if not np.isfinite(wave).all():
        raise IngestError("the recording holds samples that are no numbers; export it again, or leave the cell empty")
    return wave, rate

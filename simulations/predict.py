"""Predicts the visits of a folder with the student of a finished run: one CSV file, one row per visit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from client.handlers import load_student
from common.arrays import standardisation_of
from common.config import Config
from common.data.cohort import Cohort, Finding
from common.data.folder import open_cohort
from common.data.ingest.frames import HEADER, read_frame
from common.data.manifest import load_manifest, unlabelled
from common.data.standardise import Standardisation
from common.errors import ConsiliumError, TooManyFaults, no_file
from common.evaluation.predictions import student_speaker
from common.models.fusion import probabilities
from common.models.student import Student
from common.task import pattern_name
from server import checkpoint
from server.run import read_config
from simulations.ablations import MAIN
from simulations.work import RUN_FOLDER

STUDENT = "student.safetensors"
MOST_SHOWN = 10


def predict(run: Path, folder: Path, out: Path, say: Callable[[str], None]) -> pd.DataFrame:
    """Predicts every visit of a folder with the modalities that it has, and writes what is predicted.

    Labels are neither needed nor read. Visits with a fault are left out, whatever their share: the others are predicted as they
    would be without them.

    Args:
        run: Run directory, or that of a benchmark's run (:func:`find_run`).
        folder: With a manifest, or the manifest itself.
        out: New CSV file: ``row`` (of the patient table, as a spreadsheet shows it), ``pattern`` (modalities used), and for every
            output its probability, or its number in a regression.
        say: Told which student predicts, what is left out and where the file lies.

    Returns:
        What was written.

    Raises:
        ConsiliumError: If there is no finished run, it trained no student or its task is a segmentation, if the folder does not
            fit the task or holds nobody to predict, or if the file exists or cannot be written.
    """
    if out.exists():
        raise ConsiliumError(f"{out} exists already. Name another file with --out, or remove it first.")
    found = find_run(run)
    say(f"Student: {found / STUDENT}")
    config, state = read_config(found), checkpoint.load(found)
    if config.task.type == "segmentation":
        raise ConsiliumError(
            f"Task '{config.task.name}' finds regions in scans: 'predict' writes a table of numbers, and no masks. How well its "
            "student finds them stands in results.json of the run."
        )
    if not config.trains_student:
        raise ConsiliumError(
            f"The run in {found} trained teachers alone (distill.epochs=0, refine.rounds=0): its student has learned nothing. "
            "Name a run that trained one."
        )
    try:
        student = load_student(config, state.arrays["student"])
    except RuntimeError:
        raise ConsiliumError(
            f"The student of {found} does not fit the networks of this version of the project. Use the version that trained it, "
            "or train it again."
        ) from None
    predicted = _scores(student, _open(folder, config, say), standardisation_of(state.standardisation()))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        predicted.to_csv(out, index=False, float_format="%.6g")
    except OSError as error:
        raise ConsiliumError(f"{out} cannot be written ({type(error).__name__}). Name another file with --out.") from None
    say(f"Written {out}: {len(predicted):,} visit(s) of task '{config.task.name}'.")
    return predicted


def find_run(place: Path) -> Path:
    """Returns the directory of a finished run of the five phases.

    Args:
        place: That directory; the run directory of a benchmark, of which the first seed's (and fold's) student is taken; or the
            file of the student.

    Raises:
        ConsiliumError: If no finished run lies there.
    """
    if not place.exists():
        raise ConsiliumError(no_file(place))
    home = place.parent if place.is_file() else place
    if (home / STUDENT).is_file():
        return home
    cells = sorted(file.parent for file in home.glob(f"cells/{MAIN}-[0-9]*/{RUN_FOLDER}/{STUDENT}"))
    if not cells:
        raise ConsiliumError(
            f"{home} holds no student of a finished run. Name a run directory, like runs/custom/<time>; a run that was "
            "interrupted is finished by the command that began it."
        )
    return cells[0]


def _open(folder: Path, config: Config, say: Callable[[str], None]) -> Cohort:
    """Returns everybody in a folder, without labels; says who is left out."""
    manifest = load_manifest(folder)
    home = folder if folder.is_dir() else folder.parent
    try:
        cohort = open_cohort(home, unlabelled(manifest), config.task, config.split, config.seed)
    except TooManyFaults as error:
        _tell(error.findings, say)
        raise
    _tell(cohort.findings, say)
    rows, bad = len(read_frame(home / manifest.patients)), len({f.visit for f in cohort.findings})
    if left := rows - len(cohort):
        names = ", ".join(config.task.modalities)
        say(f"{left:,} of {rows:,} row(s) are left out: {bad:,} with a fault, {left - bad:,} with none of {names}.")
    if not len(cohort):
        raise ConsiliumError(f"{home} holds no visit that can be predicted. Correct its files; what is wrong stands above.")
    return cohort


def _tell(findings: Sequence[Finding], say: Callable[[str], None]) -> None:
    """Says what is wrong with rows that are left out."""
    for finding in findings[:MOST_SHOWN]:
        say(f"Left out: {finding}")
    if len(findings) > MOST_SHOWN:
        say(f"... and {len(findings) - MOST_SHOWN:,} more faults")


@torch.no_grad()
def _scores(student: Student, raw: Cohort, scaling: Standardisation) -> pd.DataFrame:
    """Returns the table of :func:`predict`."""
    task = raw.task
    said = student_speaker(student).logits(raw.standardised(scaling).batch())
    values = scaling.outcomes(task, said) if task.type == "regression" else probabilities(task.type, said)
    names = list(task.modalities)
    used = [pattern_name(n for n, held in zip(names, row, strict=True) if held) for row in raw.present.tolist()]
    head = pd.DataFrame({"row": raw.row + HEADER + 1, "pattern": used})
    return pd.concat([head, pd.DataFrame(values.numpy(), columns=list(task.outputs))], axis=1)


def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory, like runs/custom/<time>.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with a manifest.yaml; labels are not needed.")],
    out: Annotated[Path, typer.Option(metavar="FILE.csv", help="New file for the predictions.")] = Path("scores.csv"),
) -> None:
    """Predicts the visits of a folder with the student of a finished run, into a CSV file."""
    predict(run, folder, out, typer.echo)

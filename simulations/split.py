"""One big table becomes a folder of sites with manifests, and a task file if there is none yet."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
import yaml
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from common import terminal
from common.config import TASK_FILE, load_config
from common.data.ingest.frames import IngestError, numbers, read_frame, separated, texts
from common.data.manifest import FILE_NAME, REFERENCE_FOLDER, SAME
from common.errors import ConsiliumError, nearest, no_file
from common.task import Task
from simulations.benchmarks.base import CUSTOM
from simulations.doubts import FEWEST, doubts
from simulations.new_task import Names, infer_task, parse

PATIENTS = "patients.csv"
ROW = "row"
TEST_SITE = "test"
MOST_WHOLE = 2**53
NAME, OWN = "patient's name", "own site"


@dataclass(frozen=True)
class Wish:
    """How a table is to be dealt.

    Attributes:
        sites: Number of sites of about equal size and composition; None if ``by`` names them.
        by: Column that names the site of a row; a patient at several stays at the first.
        labels: Columns with what is predicted: one of 0 and 1 (binary), several of them (multilabel), one with a class, or a
            number (regression).
        modalities: ``name=column,column,prefix*`` of a task that is not written yet.
        patient: Column that names the patient; None if every row is one.
        reference: Share of the patients that become the server's reference set.
        test: Share of the patients that become a site of their own, ``test``, which only evaluates.
        hold: ``site=modality,modality``: a site that has only these.
        missing: Probability that a visit lacks a modality, each by itself; one always stays.
        seed: Of all that is drawn.
    """

    sites: int | None = None
    by: str | None = None
    labels: Names = ()
    modalities: Names = ()
    patient: str | None = None
    reference: float = 0.1
    test: float = 0.0
    hold: Names = ()
    missing: float = 0.0
    seed: int = 0


def split_table(
    table: Path, task_file: Path, out: Path, wish: Wish, say: Callable[[str], None] = lambda said: None
) -> pd.DataFrame:
    """Writes the sites, and the task file if it does not exist.

    Args:
        table: CSV or Parquet file with a row per visit; an empty cell is a missing value, and a visit in which all columns of a
            modality are empty lacks it.
        task_file: Of the task; if it exists, its features are the columns of these names.
        out: New folder.
        wish: How the table is dealt.
        say: Told how many rows each class has, what looks like a mistake (:func:`doubts`), which rows are left out, what is not
            called as the user wrote it, and what the new task is.

    Returns:
        One row per site: ``site``, ``role``, ``visits``, ``patients`` and the visits with each modality.

    Raises:
        ConsiliumError: If a column is missing or cannot be used, a label or a name is a feature too, a name is unknown or the
            folder has content.
    """
    if (wish.sites is None) == (wish.by is None):
        raise ConsiliumError("Say either how many sites there shall be (--sites N) or which column names them (--by COLUMN).")
    if wish.reference + wish.test >= 1:
        raise ConsiliumError(f"--reference {wish.reference:g} and --test {wish.test:g} leave nobody to train on. Lower them.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConsiliumError(f"{out} is not empty. Name a new folder for the sites, or remove it first.")
    special = [c for c in (wish.by, wish.patient) if c]
    frame = _read(table, [*wish.labels, *special])
    new = not task_file.exists()
    if new:
        task_file.parent.mkdir(parents=True, exist_ok=True)
        inferred = infer_task(frame, table, wish.labels, wish.modalities, special)
        text = yaml.safe_dump(inferred, sort_keys=False, default_flow_style=None, width=120)
        task_file.write_text(text, encoding="utf-8")
    elif wish.modalities:
        raise ConsiliumError(f"{task_file} exists and says what the modalities are. Leave --modality out, or name a new file.")
    try:
        task = load_config(CUSTOM, [f"{TASK_FILE}{task_file.resolve()}"]).task
        labels = _labels(task, wish.labels, frame)
        for output, column in labels.items():
            if column != output and task.type != "multiclass":
                say(f"Column '{column}' is taken for output '{output}' of task '{task.name}'.")
        _refuse_features(task, task_file, {*labels.values(), *special})
        _columns(frame, task)  # refuses a task that cannot be cut out of this table
        for doubt in doubts(frame, task, labels.values(), wish.patient, wish.by):
            say(doubt)
        dealt = _write(_labelled(frame, labels, say), task, labels, out, wish, say)
        if new:
            say(f"Written {task_file}: {task.type}, {', '.join(task.outputs)}. Correct it if that is not what the table means.")
        if new and task.type == "multiclass" and len(task.outputs) == 2:
            say(
                f"The two values of '{wish.labels[0]}' are two classes there. If it is one outcome, there or not, make the "
                f"task binary: write the column as 0 and 1, remove {task_file} and {out}, and split again."
            )
        return dealt
    except BaseException:
        if new:
            task_file.unlink()
        raise


def _read(table: Path, needed: Names) -> pd.DataFrame:
    if not table.is_file():
        raise ConsiliumError(no_file(table))
    try:
        frame = read_frame(table)
    except IngestError as error:
        raise ConsiliumError(f"{table}: {error}. Write CSV (UTF-8, commas) or Parquet.") from None
    for column in needed:
        if column not in frame:
            raise ConsiliumError(f"{table} has no column '{column}'{separated(frame) or nearest(column, map(str, frame))}")
    if frame.empty:
        raise ConsiliumError(f"{table} has no rows. Write one per visit, below the header.")
    return frame.rename(columns=str)


def _labels(task: Task, named: Names, frame: pd.DataFrame) -> dict[str, str]:
    """Returns what a manifest says under ``labels``: output (or ``class``) -> column."""
    columns = list(named) or ([] if task.type == "multiclass" else list(task.outputs))
    if len(columns) != len(task.label_columns):
        wanted = (
            "one --label, the column with the class" if task.type == "multiclass" else f"a --label for each of {task.outputs}"
        )
        raise ConsiliumError(f"Task '{task.name}' needs {wanted}, in this order.")
    for column in columns:
        if column not in frame:
            raise ConsiliumError(f"The table has no label column '{column}'{nearest(column, map(str, frame))}")
        _check_labels(task, column, frame)
    return dict(zip(task.label_columns, columns, strict=True))


def _check_labels(task: Task, column: str, frame: pd.DataFrame) -> None:
    """Raises ConsiliumError if a label is none of the task's."""
    if task.type == "multiclass":
        wanted, valid = f"one of the classes {', '.join(task.outputs)}", texts(frame[column]).isin(task.outputs).to_numpy()
    else:
        values, bad = numbers(frame, column)
        wanted, valid = "a number", ~bad
        if task.type != "regression":
            wanted, valid = "0 or 1", np.isin(values, (0, 1))
    wrong = np.flatnonzero(frame[column].notna().to_numpy() & ~valid)
    if len(wrong):
        raise ConsiliumError(
            f"Task '{task.name}' is of type {task.type}: column '{column}' must hold {wanted}, and does not in {len(wrong)} "
            f"row(s), first row {wrong[0] + 2}. Name another column or another task, or correct the cells."
        )


def _refuse_features(task: Task, task_file: Path, taken: set[str]) -> None:
    """Raises ConsiliumError if a feature of the task is a column that holds the answer, or names patients or sites."""
    for name, modality in task.modalities.items():
        for feature in (f for f in modality.features if f in taken):
            raise ConsiliumError(
                f"{task_file}: feature '{feature}' of modality '{name}' is a label, or names patients or sites. Networks would "
                "read the answer there, or learn patients by name. Take it out of the task, or name another column."
            )


def _labelled(frame: pd.DataFrame, labels: Mapping[str, str], say: Callable[[str], None]) -> pd.DataFrame:
    """Returns the rows that have every label; says how many have not."""
    columns = list(labels.values())
    known = frame[columns].notna().all(axis=1).to_numpy()
    if not known.all():
        named = " or ".join(f"'{c}'" for c in columns)
        say(f"{int((~known).sum()):,} row(s) without {named} are left out (first: row {int(known.argmin()) + 2}).")
    return frame[known].reset_index(drop=True)


def _write(
    frame: pd.DataFrame, task: Task, labels: Mapping[str, str], out: Path, wish: Wish, say: Callable[[str], None]
) -> pd.DataFrame:
    """Deals the rows and writes the sites; they appear complete or not at all."""
    columns = _columns(frame, task)
    if frame.empty:
        raise ConsiliumError(f"No row has a label in {', '.join(labels.values())}.")
    plain = _plain_names(frame, wish.by) if wish.by else {}
    for name in (name for name in plain if plain[name] != name):
        say(f"Site '{name}' is written '{plain[name]}'.")
    place = _places(frame, wish, list(labels.values()), plain)
    held = _held(frame, wish, columns, place, plain)
    blanked = {c: frame[c].astype(object) if frame[c].dtype == bool else frame[c] for names in columns.values() for c in names}
    frame = frame.assign(**blanked)  # a column of True and False has no empty cell
    for at, names in enumerate(columns.values()):
        frame.loc[~held[:, at], names] = np.nan
    row = ROW
    while row in frame:
        row += "_"
    frame = pd.concat([frame, pd.Series(np.arange(len(frame)), name=row)], axis=1)
    patient = wish.patient or row
    kept = list(dict.fromkeys([patient, row, *labels.values(), *(c for names in columns.values() for c in names)]))
    frame = frame.assign(**{c: _whole(frame[c]) for c in kept})
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    told = []
    for site in map(str, sorted(set(place))):
        mine = frame[place == site]
        present = dict(zip(columns, held[place == site].sum(0).tolist(), strict=True))
        modalities = {m: {"kind": "table", "variables": SAME} for m, number in present.items() if number}
        manifest = {"schema_version": 1, "site": site, "patients": PATIENTS, "patient": patient, "visit": row}
        role = "evaluate" if site == TEST_SITE and wish.test else "train"
        manifest |= {"labels": dict(labels), "modalities": modalities} | ({"role": role} if role == "evaluate" else {})
        manifest |= {"label_units": dict(task.units)} if task.units else {}
        folder = partial / site
        folder.mkdir(parents=True)
        lacking = {c for m, names in columns.items() if not present[m] for c in names}
        mine[[c for c in kept if c not in lacking]].to_csv(folder / PATIENTS, index=False)
        (folder / FILE_NAME).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
        shown = "reference" if site == REFERENCE_FOLDER else role
        told.append({"site": site, "role": shown, "visits": len(mine), "patients": mine[patient].nunique(), **present})
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, out)
    return pd.DataFrame(told)


def _whole(column: pd.Series) -> pd.Series:
    """Returns a column of whole numbers as such; where a cell is empty, it was read as floats, and 3 would be written 3.0."""
    if column.dtype.kind != "f" or not (column.isna() | ((column % 1 == 0) & (column.abs() < MOST_WHOLE))).all():
        return column
    return column.astype("Int64")


def _columns(frame: pd.DataFrame, task: Task) -> dict[str, list[str]]:
    """Returns modality -> its columns: the task's features by their names."""
    for name, modality in task.modalities.items():
        if modality.kind != "table":
            raise ConsiliumError(
                f"Modality '{name}' is of kind '{modality.kind}': only feature tables can be cut out of one table. "
                "Write the sites' manifests by hand (README, 'Your hospital's files')."
            )
        for feature in modality.features:
            if feature not in frame:
                raise ConsiliumError(f"The table has no column '{feature}' of '{name}'{nearest(feature, map(str, frame))}")
    columns = {name: list(modality.features) for name, modality in task.modalities.items()}
    holders: dict[str, str] = {}
    for name, feature in ((name, feature) for name, features in columns.items() for feature in features):
        if feature in holders:
            raise ConsiliumError(
                f"Column '{feature}' stands in the modalities '{holders[feature]}' and '{name}': a site or visit without one "
                "would lack it for the other. Leave it to one of them, or copy it under another name."
            )
        holders[feature] = name
    return columns


def _places(frame: pd.DataFrame, wish: Wish, labels: Names, plain: Mapping[str, str]) -> NDArray[np.str_]:
    """Returns the site of every row: whole patients are dealt in the order of their outcome, so that sites are alike in it."""
    patient = texts(frame[wish.patient]) if wish.patient else pd.Series(np.arange(len(frame)).astype(str))
    if patient.isna().any():
        raise ConsiliumError(
            f"Column '{wish.patient}' does not name the patient in {int(patient.isna().sum())} row(s). Fill it in."
        )
    people = frame[labels].assign(
        **{NAME: patient.to_numpy(), OWN: texts(frame[wish.by]).map(plain).to_numpy() if wish.by else ""}
    )
    rng = np.random.default_rng(wish.seed)
    order = people.groupby(NAME, sort=True).first().sample(frac=1, random_state=rng).sort_values(list(labels), kind="stable")
    site = order[OWN].to_numpy(dtype=object)
    drawn = _every(wish.test, len(order), rng)
    site[drawn] = TEST_SITE
    others = np.flatnonzero(~drawn)
    drawn = _every(wish.reference / (1 - wish.test), len(others), rng)
    site[others[drawn]] = REFERENCE_FOLDER
    rest = others[~drawn]
    if wish.sites is not None:
        if len(rest) < FEWEST * wish.sites:
            raise ConsiliumError(
                f"--sites {wish.sites}: {len(rest)} patients are left for them, fewer than {FEWEST} each. A hospital tells no "
                f"count below that (limits.min_count), so it could teach nobody. Ask for at most {max(len(rest) // FEWEST, 1)}."
            )
        width = len(str(wish.sites))
        site[rest] = [f"site-{i % wish.sites + 1:0{width}d}" for i in range(len(rest))]
    return pd.Series(site, index=order.index)[patient].to_numpy().astype(str)


def _every(share: float, number: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Returns which of a sorted row are drawn: a share of them, evenly spread, so that every kind of outcome is among them."""
    return np.asarray(np.diff(np.floor(np.arange(number + 1) * share + rng.random())) > 0)


def _plain_names(frame: pd.DataFrame, column: str) -> dict[str, str]:
    """Returns what a column names the sites -> their names as folders, in plain letters."""
    names = texts(frame[column])
    if names.isna().any():
        raise ConsiliumError(f"Column '{column}' does not name the site in {int(names.isna().sum())} row(s). Fill it in.")
    plain = {}
    for name in sorted(names.unique()):
        letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
        plain[name] = re.sub(r"^(?=[^A-Za-z0-9]|$)", "site", re.sub(r"[^A-Za-z0-9._-]+", "-", letters))[:63]
    clash = [n for n in (TEST_SITE, REFERENCE_FOLDER) if n in plain.values()]
    if clash or len(set(plain.values())) < len(plain):
        why = f"'{clash[0]}' has a meaning of its own" if clash else "two become the same as names of folders"
        raise ConsiliumError(f"The sites that column '{column}' names cannot be told apart: {why}. Rename them.")
    return plain


def _held(
    frame: pd.DataFrame, wish: Wish, columns: Mapping[str, list[str]], place: NDArray[np.str_], plain: Mapping[str, str]
) -> NDArray[np.bool_]:
    """Returns which modalities every row keeps, [N, M]."""
    held = np.stack([frame[names].notna().any(axis=1).to_numpy() for names in columns.values()], axis=1)
    for spec in wish.hold:
        named, kept = parse(spec, "--hold", "SITE=MODALITY,MODALITY")
        site = plain.get(named, named)
        if site not in place:
            raise ConsiliumError(f"--hold: there is no site '{site}'{nearest(site, set(place))}")
        for modality in kept:
            if modality not in columns:
                raise ConsiliumError(f"--hold: there is no modality '{modality}'{nearest(modality, columns)}")
        held[place == site] &= [m in kept for m in columns]
    draw = np.where(held, np.random.default_rng([wish.seed, 1]).random(held.shape), -1.0)
    last = draw.argmax(axis=1)  # what stays, whatever is drawn for it
    lost = draw < wish.missing
    lost[np.arange(len(held)), last] = False
    return np.asarray(held & ~lost)


def split_command(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV or Parquet file with a row per patient visit.")],
    task: Annotated[Path, typer.Option(metavar="TASK.yaml", help="The task; written, if the file does not exist.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the sites.")],
    sites: Annotated[int | None, typer.Option(min=1, help="Number of sites of about equal size.")] = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column that names the site instead.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="What is predicted; may be repeated.")] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMNS", help="Of a new task: columns, prefix*; may be repeated."),
    ] = None,
    patient: Annotated[str | None, typer.Option(metavar="COLUMN", help="Names the patient; every row is one by default.")] = None,
    reference: Annotated[float, typer.Option(min=0, max=1, help="Share of patients in the server's reference set.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of patients in a site 'test' that only evaluates.")] = 0.0,
    hold: Annotated[
        list[str] | None, typer.Option(metavar="SITE=MODALITIES", help="What a site has, if not all; may be repeated.")
    ] = None,
    missing: Annotated[float, typer.Option(min=0, max=1, help="Probability that a visit lacks a modality.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
) -> None:
    """Makes sites of one big table, and a task file if there is none: docs/your-own-data.md."""
    wish = Wish(sites, by, label or (), modality or (), patient, reference, test, hold or (), missing, seed)
    told = split_table(table, task, out, wish, typer.echo)
    shown = Table(*told.columns)
    for line in told.itertuples(index=False):
        shown.add_row(*(escape(str(cell)) for cell in line))
    console = terminal.console()
    console.print(shown)
    console.print(f"First: consilium-client check {out} --task {task}", soft_wrap=True, markup=False)
    console.print(f"Next: consilium-bench run {CUSTOM} --task {task} --sites {out}", soft_wrap=True, markup=False)

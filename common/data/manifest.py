"""The manifest: how a hospital says what it holds.

A folder of patients holds ``manifest.yaml`` and a patient table (CSV or Parquet) with one row per patient visit::

    schema_version: 1
    site: riverside
    patients: patients.csv
    patient: patient_id            # column that names the patient; never leaves the site
    visit: visit_id                # column that names the visit
    labels: {death: died}          # output of the task: column (0/1); {class: column} for a multiclass task
    # label_units: {los: d}        # regression: unit of a label's column
    # labels: {mask: seg}          # segmentation: column of paths to masks, NIfTI on the scans' grid
    modalities:
      cxr:       {kind: image, column: cxr}                          # the cell holds a path: DICOM or PNG
      labs:      {kind: series, column: labs, key: visit_id, time: hour,
                  variables: {creatinine: {column: crea, unit: mg/dL}}}
      cough:     {kind: audio, column: cough}                        # a path: WAV or FLAC
      flair:     {kind: volume, column: flair}                       # a path: NIfTI (.nii, .nii.gz); segmentation tasks only
      notes:     {kind: text, column: note}                          # a path; `inline: true`: the text itself
      admission: {kind: table, column: admission, key: visit_id,     # a path; without `column`: the patient table
                  variables: {age: {column: age, unit: a}, sex: {column: sex, codes: {M: male, F: female}}}}
      genes:     {kind: table, variables: same}                      # the task's names, units and codes, as they are

An empty cell is a missing modality, and so is a series without any value within the task's steps. Paths are relative to the
manifest's folder and may not leave it. ``key`` says that the file holds many visits and which of its columns names the visit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from common.errors import BARE_YES, ConsiliumError, is_bare_yes, keys_at, nearest
from common.task import STRICT, Kind, Modality, Task, misspelt

FILE_NAME = "manifest.yaml"
TABLES = (".csv", ".parquet")
OWN_FOLDER = ".consilium"
REFERENCE_FOLDER = "reference"
SAME = "same"
SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Of a site, whole; it becomes a key of many files."""


@dataclass(frozen=True, config=STRICT)
class Variable:
    """Where a feature of the task is found in the hospital's file.

    Attributes:
        column: Column of the file.
        unit: Unit of that column; must equal the task's.
        codes: The hospital's code -> the task's category.
    """

    column: str
    unit: str = ""
    codes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Source:
    """Where a modality is found.

    Attributes:
        kind: Kind of the modality; must equal the task's.
        column: Column of the patient table with the file's path (or with the text, if ``inline``).
        key: Column of that file which names the visit, if it holds many.
        time: Column with hours since the start of the visit (``series``).
        inline: Whether the cell is the text itself (``text``).
        encoding: Encoding of text files.
        variables: Feature of the task -> column of the file. ``same``: every feature of the task is the column of that name, in
            the task's unit and codes.
    """

    kind: Kind
    column: str | None = None
    key: str | None = None
    time: str = "hour"
    inline: bool = False
    encoding: str = "utf-8"
    variables: Annotated[dict[str, Variable], BeforeValidator(lambda v: {SAME: {"column": SAME}} if v == SAME else v)] = field(
        default_factory=dict
    )

    def spelled_out(self, modality: Modality) -> Source:
        """Returns the source with every variable named, if it said ``variables: same``."""
        if list(self.variables) != [SAME] or SAME in modality.features:
            return self
        return replace(self, variables={name: Variable(name, feature.unit) for name, feature in modality.features.items()})


@dataclass(frozen=True, config=STRICT)
class Limits:
    """What this hospital allows, whatever the server asks.

    Attributes:
        bad_rows: Largest share of patient rows with a fault before the site refuses to take part.
        epochs: Most local epochs per message.
        largest: Largest teacher that the hardware carries.
        min_count: Counts below this are not told to the server.
    """

    bad_rows: float = Field(default=0.05, ge=0, le=1)
    epochs: int = Field(default=50, ge=1)
    largest: Literal["linear", "small", "base"] = "base"
    min_count: int = Field(default=5, ge=1)


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """What a hospital, or the server's reference set, holds.

    Attributes:
        site: Name of the site.
        patients: Patient table, relative to the manifest's folder.
        patient: Its column that names the patient.
        visit: Its column that names the visit.
        labels: Output of the task -> column; empty for an unlabelled reference set.
        label_units: Output of a regression task -> UCUM unit of its column.
        modalities: Modality of the task -> where it is found.
        role: ``train`` splits the patients; with ``evaluate`` all of them are test patients.
        split: Column that fixes the split (``train``, ``meta``, ``validation``, ``test``) instead of the seeded one.
        data: Whether the patients are real; results on generated ones say so.
        limits: What this hospital allows.
        schema_version: Version of this format.
    """

    site: Annotated[str, Field(pattern=f"^{SITE_NAME}$")]
    patients: Annotated[str, Field(pattern=r"^[^/]")]
    patient: str
    visit: str
    modalities: dict[str, Source]
    labels: dict[str, str] = field(default_factory=dict)
    label_units: dict[str, str] = field(default_factory=dict)
    role: Literal["train", "evaluate"] = "train"
    split: str | None = None
    data: Literal["real", "generated"] = "real"
    limits: Limits = field(default_factory=Limits)
    schema_version: Literal[1] = 1


def spelled_out(manifest: Manifest, task: Task) -> Manifest:
    """Returns a manifest that fits the task (:func:`check_against_task`) with every variable named."""
    return replace(manifest, modalities={n: s.spelled_out(task.modalities[n]) for n, s in manifest.modalities.items()})


def unlabelled(manifest: Manifest) -> Manifest:
    """Returns a manifest of visits that are only predicted: all of them, whatever their share with a fault and without labels."""
    limits = replace(manifest.limits, bad_rows=1.0)
    return replace(manifest, role="evaluate", labels={}, label_units={}, split=None, limits=limits)


def hospital_folders(sites: Path) -> list[Path]:
    """Returns the hospitals' folders of a sites folder, in the order of their names: node i of a simulation is the i-th."""
    return sorted(p.parent for p in sites.glob(f"*/{FILE_NAME}") if p.parent.name != REFERENCE_FOLDER)


def reference_folder(sites: Path) -> list[Path]:
    """Returns the reference set's folder of a sites folder, if there is one."""
    return [sites / REFERENCE_FOLDER] if (sites / REFERENCE_FOLDER / FILE_NAME).is_file() else []


def stray_folders(sites: Path) -> list[Path]:
    """Returns the folders of a sites folder that have no manifest, hidden ones aside: perhaps a hospital that was forgotten."""
    return sorted(p for p in sites.iterdir() if p.is_dir() and p.name[0] != "." and not (p / FILE_NAME).is_file())


def check_labels(manifest: Manifest) -> None:
    """Checks that a hospital's manifest names labels.

    Raises:
        ConsiliumError: If it does not.
    """
    if not manifest.labels:
        raise ConsiliumError(
            f"Site '{manifest.site}' has no labels: its manifest names no 'labels', so that nothing could be learned or tested "
            f"there. Add them; only a reference set, in a folder named '{REFERENCE_FOLDER}', may be without."
        )


def check_names(manifests: Mapping[Path, Manifest]) -> None:
    """Checks that every site of a machine has a name of its own.

    Args:
        manifests: Folder -> manifest.

    Raises:
        ConsiliumError: Naming the first name that two have, and their folders.
    """
    seen: dict[str, Path] = {}
    for folder, manifest in manifests.items():
        other = seen.setdefault(manifest.site, folder)
        if other != folder:
            both = f"'{other.name}' and '{folder.name}'"
            raise ConsiliumError(f"The manifests in {both} name their site '{manifest.site}' alike. Give each a name of its own.")


def load_manifest(path: Path, name: str | None = None) -> Manifest:
    """Reads and checks a manifest.

    Args:
        path: The manifest file, or the folder that holds it.
        name: What errors call the file; by default its path, which is for people on this machine only.

    Raises:
        ConsiliumError: If the file is missing, is no manifest or no YAML, or does not fit the format. Cell values are not quoted.
    """
    file = path / FILE_NAME if path.is_dir() else path
    name = name or str(file)
    if not file.is_file():
        raise ConsiliumError(
            f"No manifest: {name} does not exist. Write one (format: README, 'Your hospital's files') or correct the path."
        )
    if file.suffix in TABLES:
        raise ConsiliumError(
            f"{name} is a table and no manifest. Name a folder that holds a {FILE_NAME}, or that file. consilium-bench split "
            f"makes such folders of one table; or copy a site's {FILE_NAME} into the table's folder and name the table there, "
            "under 'patients'."
        )
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else f" ({type(error).__name__})"
        raise ConsiliumError(f"{name} is not valid YAML{at}. Check its indentation and quotes.") from None
    try:
        return TypeAdapter(Manifest).validate_python(raw)
    except ValidationError as error:
        faults = dict.fromkeys(_explain(e) for e in error.errors(include_url=False))
        raise ConsiliumError(f"{name} does not fit the manifest format: {'; '.join(faults)}.") from None


def _explain(error: Any) -> str:
    """Returns one line on a pydantic error, with the nearest valid key for an unknown one."""
    path = [str(p) for p in error["loc"]]
    where = ".".join(path) or "manifest"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key '{where}'{nearest(path[-1], keys_at(TypeAdapter(Manifest).json_schema(), path[:-1]))}"
    if is_bare_yes(error):
        return f"{where}: {BARE_YES}"
    if found := misspelt(error):
        return f"{where}: '{error['input']}' is unknown{found}"
    return f"{where}: {error['msg']}"


def check_against_task(manifest: Manifest, task: Task) -> None:
    """Checks that a manifest speaks of the task's modalities in the task's kinds, units and codes, and gives no answer away.

    Raises:
        ConsiliumError: Naming the first modality, variable, unit or code that differs, and the nearest valid one; or the first
            that is read from a column which holds a label, the patient, the visit or the split.
    """
    where = f"Manifest of site '{manifest.site}'"
    for label in manifest.labels:
        if label not in task.label_columns:
            raise ConsiliumError(f"{where}: label '{label}' is not in task '{task.name}'{nearest(label, task.label_columns)}")
        _check_unit(f"{where}: label '{label}'", manifest.label_units.get(label, ""), task.units.get(label, ""))
    for name, source in manifest.modalities.items():
        if name not in task.modalities:
            raise ConsiliumError(f"{where}: modality '{name}' is not in task '{task.name}'{nearest(name, task.modalities)}")
        modality = task.modalities[name]
        source = source.spelled_out(modality)
        if source.kind != modality.kind:
            raise ConsiliumError(f"{where}: modality '{name}' is of kind '{source.kind}', the task needs '{modality.kind}'.")
        if source.column is None and source.kind != "table":
            raise ConsiliumError(f"{where}: modality '{name}' needs 'column', the patient-table column that points at its files.")
        if source.kind in ("table", "series") and not source.variables:
            raise ConsiliumError(
                f"{where}: modality '{name}' needs 'variables': '{SAME}', or some of {', '.join(modality.features)}."
            )
        _check_columns(where, manifest, name, source)
        for feature, variable in source.variables.items():
            if feature not in modality.features:
                raise ConsiliumError(f"{where}: '{name}' has no variable '{feature}'{nearest(feature, modality.features)}")
            wanted = modality.features[feature]
            _check_unit(f"{where}: '{name}.{feature}'", variable.unit, wanted.unit)
            for code in variable.codes.values():
                if code not in wanted.codes:
                    fault = f"'{name}.{feature}' maps to unknown category '{code}'"
                    raise ConsiliumError(f"{where}: {fault}{nearest(code, wanted.codes)}")


def _check_columns(where: str, manifest: Manifest, name: str, source: Source) -> None:
    """Checks that nothing is learned from a column of the patient table that is no measurement."""
    taken = {manifest.split: "the split", manifest.visit: "the visit", manifest.patient: "the patient"}
    taken |= {column: f"the label '{label}'" for label, column in manifest.labels.items()}
    read = {f"{name}.{feature}": variable.column for feature, variable in source.variables.items()} if not source.column else {}
    for what, column in (read | ({name: source.column} if source.inline else {})).items():
        if column in taken:
            raise ConsiliumError(
                f"{where}: '{what}' is read from column '{column}', which names {taken[column]}: nobody may learn from that. "
                "Take it out of the manifest and of the task's features, or name its own column."
            )


def _check_unit(what: str, unit: str, wanted: str) -> None:
    if unit != wanted:
        said = f"is in '{unit}'" if unit else "names no unit"
        raise ConsiliumError(
            f"{what} {said}, the task counts it in '{wanted}'. Convert the column if it is in another unit, and write the task's."
        )

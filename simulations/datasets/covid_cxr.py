"""COVID-19 Image Data Collection: frontal chest X-rays of single patients, as published from many countries, with note and table.

Reads ``metadata.csv`` (the state of July 2020, 758 rows) and ``images/`` of the collection (Cohen et al., arXiv:2003.11597 and
2006.11988). Only frontal X-rays whose licence, stated per image, allows changes: 321, of which two are not distributed. An image
is either the original file or its centre, cropped to a square of 224 x 224 grey pixels (``images/<stem>.png``).

The images of one patient are his visits, and he has one outcome: whether he was ever in intensive care. Images may be of before,
of then or of after. Columns that tell the outcome, or the course that leads to it, are left out of the table: survival,
intubated, intubation_present, in_icu, needed_supplemental_O2, extubated, finding; ``leukocyte_count`` is known of one image; doi,
url, date, licence and location tell the source. ``pO2_saturation`` is as published: a saturation in % in most sources, a pressure
in mm Hg in the German one.

What remains is not innocent. Who cannot stand is taken AP, at the bedside, so ``view`` tells how ill a patient is when he is
taken, and in intensive care most are: it is known with the image, which shows it too, and is therefore in the table, as PA or
AP. "AP Supine" is joined with AP: which of both is written tells the source. A variant is without it. And missing values tell
the source: in the largest, a German hospital, everybody lacks age and note; the other 90 images are case reports, of which 76
tell of intensive care. So figures are partly of sites, and the German one is to be told apart.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import ConsiliumError
from simulations.datasets.files import finish_sites, new_sites, verified, with_split, write_site
from simulations.partition import grouped_folds

FOLDER = "covid_cxr"
TABLE = "metadata.csv"
HOW_TO_GET = (
    "Clone https://github.com/ieee8023/covid-chestxray-dataset (the licence of every image is in its table), check out the last "
    f"commit of July 2020 whose {TABLE} has 758 rows, put {TABLE} and images/ into a folder '{FOLDER}', and set CONSILIUM_DATA "
    "to the folder that holds it. Where images were cropped and resampled already, images/NAME.png stands for images/NAME.jpg."
)
ROWS = 758
OPEN_LICENCES = ("CC BY", "CC BY 3.0", "CC BY 4.0", "CC BY-SA", "CC BY-NC-SA", "CC BY-NC-SA 4.0")
NOT_DISTRIBUTED = ("cavitating-pneumonia-4-day28-PA.png", "covid-19-pneumonia-24-day6.jpg")
COUNTS = {"images": 319, "icu": (194, 137), "covid": (262, 194)}
"""As published: images, and of each label the images with a known one and the positive ones."""
PIXELS = 224
FOLDS, FOLD_SEED = 5, 0

NUMBERS = {
    "age": ("age", "a"),
    "offset": ("offset", "d"),
    "temperature": ("temperature", "Cel"),
    "po2_saturation": ("pO2_saturation", ""),
    "lymphocytes": ("lymphocyte_count", "10*9/L"),
    "neutrophils": ("neutrophil_count", "10*9/L"),
}
"""Feature -> column of the table, and unit; ``offset`` counts from the first symptom or the admission, as published."""
NEEDED = ["patientid", "sex", "finding", "went_icu", "view", "modality", "location", "folder", "filename", "license"]
NEEDED += ["clinical_notes", *(column for column, _ in NUMBERS.values())]
NO_FINDING = ("todo", "Unknown", "No Finding")
VIEWS = {"PA": "PA", "AP": "AP", "AP Supine": "AP"}
CODES = {"sex": {"F": "F", "M": "M"}, "view": {"PA": "PA", "AP": "AP"}}
LARGE = ("Germany", "Spain")
EUROPE = (
    "Austria", "Belgium", "Denmark", "Greece", "Hungary", "Italy", "Malta", "Portugal", "Russia", "Sweden", "United Kingdom",
)  # fmt: skip

OUTCOME_WORDS = r"""
    i\.?c\.?u itu intensive critical\w* (?:in|ex|re|post)?-?(?:in)?tubat\w* ventilat\w* mechanical\w* (?:endo)?trache\w*
    e\.?t\.?t? tubes? ng nasogastric og orogastric peep prone\w* proning sedat\w* wean\w* ecmo ecls extracorporeal
    o2 oxygen\w* supplement\w* cannula\w* non-?rebreath\w* cpap bipap niv high.?flow
    central lines? jugular catheter\w* vasopress\w* noradrenalin\w* norepinephrin\w* shock
    resuscitat\w* arrest\w* deteriorat\w* worsen\w* die[sd]? dying deaths? dead deceas\w* fatal\w* mortal\w*
    pass(?:ed|es|ing)?\s+away expired demise surviv\w* discharg\w* recover\w* outcomes? wards? transfer\w* hospitali[sz]\w*
    admit\w* admission\w*
"""
"""Patterns of words masked in notes, whole ones in any case: of intensive care, oxygen and devices, of the course and its end."""
DISEASE_WORDS = r"""
    n?covid\w* n?cov\w* sars\w* mers\w* corona\w* wuhan pandemic\w* pneumocyst\w* p[cj]p carinii jirovec\w* strepto\w*
    pneumococc\w* klebsiell\w* e\.?\s?coli escherichia legionell\w* legionnaire\w* varicell\w* chicken.?pox zoster mycoplasm\w*
    lipoid\w* chlamyd\w* psittac\w* influenza\w* flu h1n1 ards bacteri\w* vir(?:al|us\w*) fung\w* aspergill\w* tubercul\w*
    nocardi\w* pcr rna swabs? cultures? serolog\w* positive negative
"""
"""Patterns of words masked beside them where the disease is predicted: names, germs and the tests that find them."""

Label = Literal["icu", "covid"]


@dataclass(frozen=True)
class CovidImages:
    """The images that may be used.

    Attributes:
        rows: One row per image, in the order of the table: patient, visit (name of the image), site, icu and covid (0/1, NaN
            where not known), sex (M, F or null), view (PA, AP), the numbers, note (null if there is none).
        files: Visit -> PNG file, grey and square.
        exclusions: What was left out, whatever is predicted -> how many.
        unknown: Label -> what else is left out where it is predicted -> how many.
        checksum: SHA-256 over the checksums of the files.
    """

    rows: pd.DataFrame
    files: Mapping[str, bytes]
    exclusions: Mapping[str, int]
    unknown: Mapping[str, Mapping[str, int]]
    checksum: str


@functools.cache
def load(root: Path) -> CovidImages:
    """Reads the data set; a second call with the same root answers from memory (do not change what it holds).

    Args:
        root: Folder with ``metadata.csv`` and ``images/``.

    Raises:
        ConsiliumError: If a file is missing, damaged or unreadable, a count is not as published, or an image stands there twice.
    """
    table = _table(root)
    frontal = (table["modality"] == "X-ray") & table["view"].isin(VIEWS) & (table["folder"] == "images")
    licensed = table["license"].isin(OPEN_LICENCES)
    distributed = ~table["filename"].isin(NOT_DISTRIBUTED)
    exclusions = {
        "rows that are no frontal X-ray": int((~frontal).sum()),
        "frontal X-rays without a licence that allows changes": int((frontal & ~licensed).sum()),
        "frontal X-rays that are not distributed": int((frontal & licensed & ~distributed).sum()),
    }
    kept = table[frontal & licensed & distributed].reset_index(drop=True)
    _expect(root, "images", len(kept), COUNTS["images"])
    found = {str(name): _image_file(root, str(name)) for name in kept["filename"]}
    checksum = verified(root, [TABLE, *(file.relative_to(root).as_posix() for file in found.values())], HOW_TO_GET)
    visits = kept["filename"].map(lambda name: PurePosixPath(name).stem)
    files = {visit: _square(found[name]) for visit, name in zip(visits, kept["filename"], strict=True)}
    _refuse_twins(root, files)
    unknown: dict[str, dict[str, int]] = {}
    labels = {"icu": _icu(kept["went_icu"], unknown), "covid": _covid(kept["finding"], unknown)}
    for label, values in labels.items():
        found_of_it = int(values.count()), int(values.sum())
        _expect(root, f"images with a known '{label}', and positive ones", found_of_it, COUNTS[label])
    numbers = {name: _numbers(root, kept[column]) for name, (column, _) in NUMBERS.items()}
    rows = pd.DataFrame({"patient": kept["patientid"], "visit": visits, "site": _sites(kept), **labels, "sex": kept["sex"]})
    rows = rows.assign(view=kept["view"].map(VIEWS), **numbers, note=kept["clinical_notes"])
    return CovidImages(rows, files, exclusions, unknown, checksum)


def write_sites(
    images: CovidImages,
    folder: Path,
    *,
    fold: int,
    label: Label = "icu",
    text: bool = False,
    view: bool = True,
    folds: int = FOLDS,
) -> dict[str, Any]:
    """Writes the sites of one fold; each trains and tests, its table fixes the split. There is no reference set.

    Folds are dealt by patient, balanced in the label and the German site, by a fixed seed: they are the same in every run.

    Args:
        images: What :func:`load` returned.
        folder: New or empty folder; it appears complete or not at all.
        fold: The test fold.
        folds: Number of folds.
        label: ``icu``: ever in intensive care; ``covid``: COVID-19 or another known finding.
        text: Whether sites hold notes, masked (:func:`masked_note`).
        view: Whether tables hold the view.

    Returns:
        ``data_checksum``, ``exclusions`` and ``n`` per role.

    Raises:
        ConsiliumError: If there is no such fold or the folder is not empty.
    """
    if not 0 <= fold < folds:
        raise ConsiliumError(f"covid-cxr has no fold {fold}. Ask for one of 0 to {folds - 1}.")
    rows = images.rows[images.rows[label].notna()].copy()
    rows["split"] = np.where(folds_of(rows, label, folds) == fold, "test", "train")
    rows[label] = rows[label].astype(int)
    rows["image"] = rows["visit"] + ".png"
    variables: dict[str, dict[str, Any]] = {name: {"column": name, "unit": unit} for name, (_, unit) in NUMBERS.items()}
    variables |= {name: {"column": name, "codes": codes} for name, codes in CODES.items() if view or name != "view"}
    columns = ["patient", "visit", label, "split", "image", *variables]
    modalities: dict[str, Any] = {
        "image": {"kind": "image", "column": "image"},
        "table": {"kind": "table", "variables": variables},
    }
    if text:
        rows["text"] = rows["note"].map(lambda note: masked_note(note, label), na_action="ignore")
        modalities["text"] = {"kind": "text", "column": "text", "inline": True}
        columns.append("text")
    partial = new_sites(folder)
    for site, mine in rows.groupby("site"):
        manifest = {"labels": {label: label}, "split": "split", "modalities": modalities}
        write_site(partial / str(site), mine[columns], manifest, {})
        for visit in mine["visit"]:
            (partial / str(site) / f"{visit}.png").write_bytes(images.files[visit])
    finish_sites(partial)
    return {
        "data_checksum": with_split(images.checksum, rows[["visit", "site", "split"]]),
        "exclusions": {**images.exclusions, **images.unknown[label]},
        "n": {str(split): _counts(mine, label) for split, mine in rows.groupby("split")},
    }


def folds_of(rows: pd.DataFrame, label: Label, folds: int) -> NDArray[np.int64]:
    """Returns the fold of every row, patients whole; see :func:`write_sites`."""
    return grouped_folds(rows["patient"], rows[label] + 2 * (rows["site"] == LARGE[0].lower()), folds=folds, seed=FOLD_SEED)


def masked_note(note: str, label: Label) -> str | None:
    """Returns a note without the words that tell the label, None if no word remains.

    Nothing stands in their place: that something was masked would tell as much.
    """
    words = (OUTCOME_WORDS + (DISEASE_WORDS if label == "covid" else "")).split()
    left = re.sub(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", " ", note, flags=re.IGNORECASE)
    return " ".join(left.split()) if re.search(r"\w", left) else None


def _table(root: Path) -> pd.DataFrame:
    """Returns ``metadata.csv``."""
    file = root / TABLE
    if not file.is_file():
        raise ConsiliumError(f"The data are not complete: {file} is missing. {HOW_TO_GET}")
    try:
        table = pd.read_csv(file, dtype={"patientid": str, "filename": str})
    except ValueError as error:
        raise ConsiliumError(f"{file} is no table with commas in UTF-8 ({type(error).__name__}). {HOW_TO_GET}") from None
    absent = [c for c in NEEDED if c not in table]
    if absent:
        raise ConsiliumError(f"{file} lacks column(s) {', '.join(absent)}. {HOW_TO_GET}")
    _expect(root, f"rows of {TABLE}", len(table), ROWS)
    names = table["filename"].map(lambda name: PurePosixPath(name).stem)
    if names[table["modality"] == "X-ray"].duplicated().any():
        raise ConsiliumError(f"{file} names an image twice. {HOW_TO_GET}")
    return table


def _numbers(root: Path, cells: pd.Series) -> pd.Series[float]:
    """Returns a column as numbers, NaN where empty; of rows that are left out some hold words."""
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    if (values.isna() & cells.notna()).any():
        raise ConsiliumError(f"{root / TABLE}: column '{cells.name}' holds what is no number. {HOW_TO_GET}")
    return values


def _expect(root: Path, what: str, found: object, published: object) -> None:
    if found != published:
        raise ConsiliumError(f"{root}: {what}: {found} found, {published} published. {HOW_TO_GET}")


def _image_file(root: Path, name: str) -> Path:
    """Returns the file of an image, cropped or original."""
    cropped = (root / "images" / name).with_suffix(".png")
    return cropped if cropped.is_file() else root / "images" / name


def _square(file: Path) -> bytes:
    """Returns an image as grey PNG of 224 x 224 pixels: its centre, transparency black; one that is so already as it is."""
    try:
        with Image.open(file) as image:
            image.load()
            if image.format == "PNG" and (image.size, image.mode) == ((PIXELS, PIXELS), "L"):
                return file.read_bytes()
            flat = Image.new("RGBA", image.size, "black")
            flat.alpha_composite(image.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise ConsiliumError(f"{file} cannot be read as an image ({type(error).__name__}). {HOW_TO_GET}") from None
    edge = min(flat.size)
    left, top = (flat.width - edge) // 2, (flat.height - edge) // 2
    grey = flat.convert("L").crop((left, top, left + edge, top + edge)).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    grey.save(buffer, format="png")
    return buffer.getvalue()


def _refuse_twins(root: Path, files: Mapping[str, bytes]) -> None:
    """Raises ConsiliumError if two images are the same: training and test could share it."""
    first: dict[str, str] = {}
    for visit, content in files.items():
        with Image.open(io.BytesIO(content)) as image:
            digest = sha256(image.tobytes()).hexdigest()
        if first.setdefault(digest, visit) != visit:
            raise ConsiliumError(f"{root / 'images'}: {first[digest]} and {visit} are the same image. {HOW_TO_GET}")


def _icu(cells: pd.Series, unknown: dict[str, dict[str, int]]) -> pd.Series[float]:
    """Returns whether a patient was ever in intensive care, NaN where not known."""
    values = cells.map({"Y": 1.0, "N": 0.0})
    empty = int(cells.isna().sum())
    unknown["icu"] = {
        "images that do not tell of intensive care": empty,
        "images of whose intensive care is only supposed": int(values.isna().sum()) - empty,
    }
    return values


def _covid(cells: pd.Series, unknown: dict[str, dict[str, int]]) -> pd.Series[float]:
    """Returns whether the finding is COVID-19 (or that with ARDS), NaN where no disease was found or none is known."""
    none = cells.isin(NO_FINDING) | cells.isna()
    unknown["covid"] = {"images without a known finding": int(none.sum())}
    return cells.str.startswith("COVID-19").astype(float).mask(none)


def _sites(kept: pd.DataFrame) -> pd.Series[str]:
    """Returns the site of every image: Germany, Spain, the rest of Europe, overseas.

    A patient is where the first image of his in the table is; one image without a place is overseas. Two countries have more than
    ten patients with a known outcome; the others, with one to six, are joined.
    """
    country = kept["location"].str.rsplit(",", n=1).str[-1].str.strip()
    country = country.groupby(kept["patientid"]).transform("first")
    site = country.str.lower().where(country.isin(LARGE), "overseas")
    return site.mask(country.isin(EUROPE), "europe")


def _counts(rows: pd.DataFrame, label: Label) -> dict[str, int]:
    return {
        "images": len(rows),
        "patients": int(rows["patient"].nunique()),
        "positive images": int(rows[label].sum()),
    }

"""Official homes of the open data sets.

A checksum stands here only where the file that it was computed from is known to be the official one byte by byte; the others are
checked by what is in them.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

from common.errors import ConsiliumError
from simulations.datasets import eicu
from simulations.datasets.remote import RemoteData, RemoteFile

EICU_HOME = "https://physionet.org/files/eicu-crd-demo/2.0.1"
EICU_TABLES = ("patient", "hospital", "apacheApsVar", "apachePredVar", "admissionDx", "diagnosis", "pastHistory")
YAIB_COMMIT = "498950203522f81d67fa94748db23d8eb99ec1ab"
YAIB_COHORT = "https://raw.githubusercontent.com/rvandewater/YAIB/{}/demo_data/los/eicu_demo/dyn.parquet"
CINC2012_HOME = "https://physionet.org/files/challenge-2012/1.0.0"
CINC2012_RECORDS = 4000
UCI_HOME = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"
MNIST_HOME = "https://ossci-datasets.s3.amazonaws.com/mnist"
FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FSDD_FILE, FSDD_FOLDER = "free-spoken-digit-dataset.tar.gz", "free-spoken-digit-dataset"
FSDD_SHA256 = "1b72db738dba16aaa4763496bd1a8cbce8eb85d030c9e6ae2c9f45f894372fe5"


def _check_eicu(folder: Path) -> None:
    """Raises ConsiliumError unless the tables can be read as a benchmark reads them."""
    eicu.load(folder)


def _check_cinc2012(folder: Path) -> None:
    """Raises ConsiliumError unless both sets hold every record that has an outcome."""
    for name in ("a", "b"):
        with tarfile.open(folder / f"set-{name}.tar.gz") as archive:
            held = {Path(m.name).stem for m in archive if m.isfile() and m.name.endswith(".txt")}
        lines = (folder / f"Outcomes-{name}.txt").read_text(encoding="utf-8").split()[1:]
        told = {line.split(",")[0] for line in lines}
        if held != told or len(held) != CINC2012_RECORDS:
            raise ConsiliumError(
                f"set-{name}.tar.gz holds {len(held):,} records and Outcomes-{name}.txt tells of {len(told):,}; both should be "
                f"the same {CINC2012_RECORDS:,}."
            )


def _recordings(download: Path, target: Path) -> None:
    """Writes the recordings of a GitHub archive, whose top folder has the commit in its name, as one archive in order."""
    with tarfile.open(download) as source, tarfile.open(target, "w:gz") as kept:
        members = {f"recordings/{Path(m.name).name}": m for m in source if m.isfile() and m.name.endswith(".wav")}
        for name, member in sorted(members.items()):
            member.name = f"{FSDD_FOLDER}/{name}"
            kept.addfile(member, source.extractfile(member))


def _check_avmnist(folder: Path) -> None:
    """Raises ConsiliumError unless the recordings are those of the commit; the images have a checksum each."""
    digest = hashlib.sha256()
    with tarfile.open(folder / FSDD_FILE) as archive:
        for member in sorted((m for m in archive if m.isfile()), key=lambda m: m.name):
            content = archive.extractfile(member)
            digest.update(f"{hashlib.sha256(content.read() if content else b'').hexdigest()}  {member.name}\n".encode())
    if digest.hexdigest() != FSDD_SHA256:
        raise ConsiliumError(f"{FSDD_FILE} does not hold the recordings of commit {FSDD_COMMIT[:12]}.")


def _check_nothing_more(folder: Path) -> None:
    """Every file has a checksum."""


EICU_DEMO = RemoteData(
    folder=eicu.FOLDER,
    title="eICU Collaborative Research Database Demo, with the hourly series of the YAIB benchmark",
    licence="ODbL 1.0",
    files=(
        *(RemoteFile(f"{table.lower()}.csv.gz", f"{EICU_HOME}/{table}.csv.gz") for table in EICU_TABLES),
        RemoteFile(eicu.SERIES_FILE, YAIB_COHORT.format(YAIB_COMMIT)),
    ),
    check=_check_eicu,
    benchmarks=("eicu-mortality", "eicu-los"),
)
CINC2012 = RemoteData(
    folder="cinc2012",
    title="PhysioNet/Computing in Cardiology Challenge 2012: 48 h of intensive care, sets a and b",
    licence="ODC-By 1.0",
    files=tuple(
        RemoteFile(name, f"{CINC2012_HOME}/{name}")
        for name in ("set-a.tar.gz", "set-b.tar.gz", "Outcomes-a.txt", "Outcomes-b.txt")
    ),
    check=_check_cinc2012,
    benchmarks=("cinc2012-mortality",),
)
UCI_HEART = RemoteData(
    folder="uci_heart",
    title="UCI Heart Disease, four centres",
    licence="CC BY 4.0",
    files=tuple(
        RemoteFile(f"processed.{name}.data", f"{UCI_HOME}/processed.{name}.data", sha256)
        for name, sha256 in (
            ("cleveland", "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"),
            ("hungarian", "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"),
            ("switzerland", "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"),
            ("va", "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"),
        )
    ),
    check=_check_nothing_more,
    benchmarks=("heart-disease",),
)
AVMNIST = RemoteData(
    folder="avmnist",
    title="MNIST images and spoken digits (FSDD)",
    licence="MNIST CC BY-SA 3.0, FSDD CC BY-SA 4.0",
    files=(
        *(
            RemoteFile(f"{name}.gz", f"{MNIST_HOME}/{name}.gz", content_sha256=sha256)
            for name, sha256 in (
                ("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
                ("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
                ("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
                ("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
            )
        ),
        RemoteFile(
            FSDD_FILE,
            f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{FSDD_COMMIT}.tar.gz",
            convert=_recordings,
        ),
    ),
    check=_check_avmnist,
    benchmarks=("metakd-avmnist",),
)

"""Open data sets are got whole and checked, or not at all."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from common.errors import ConsiliumError
from simulations.benchmarks.base import Split, benchmarks
from simulations.datasets import official
from simulations.datasets.remote import RemoteData, RemoteFile
from simulations.fetch import CHECKSUMS, fetch, fetch_data, remote_data

TABLE = b"age,died\n61,0\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a web server gives its files."""
    home = tmp_path / "home"
    home.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(home)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield home, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def data_set(*files: RemoteFile, check: object = None) -> RemoteData:
    return RemoteData("wards", "Two wards", "CC0", files, check or (lambda folder: None))  # type: ignore[arg-type]


def left(root: Path) -> list[str]:
    return [f.name for f in root.glob("*")]


def test_a_data_set_is_got_checked_and_listed_with_its_checksums(served: tuple[Path, str], tmp_path: Path) -> None:
    home, url = served
    (home / "a.csv").write_bytes(TABLE)
    (home / "b.gz").write_bytes(gzip.compress(TABLE))
    digest = hashlib.sha256(TABLE).hexdigest()
    said: list[str] = []
    wards = data_set(
        RemoteFile("a.csv", f"{url}/a.csv", sha256=digest), RemoteFile("sub/b.gz", f"{url}/b.gz", content_sha256=digest)
    )
    folder = fetch_data(wards, tmp_path / "data", said.append)
    assert (folder / "a.csv").read_bytes() == TABLE
    assert gzip.decompress((folder / "sub/b.gz").read_bytes()) == TABLE
    assert f"{digest}  a.csv\n" in (folder / CHECKSUMS).read_text()
    assert left(tmp_path / "data") == ["wards"]
    assert any("CC0" in line for line in said)


def test_what_lies_there_already_is_checked_and_not_fetched_again(served: tuple[Path, str], tmp_path: Path) -> None:
    wards = data_set(RemoteFile("a.csv", "http://127.0.0.1:1/a.csv"))
    (tmp_path / "data" / "wards").mkdir(parents=True)
    with pytest.raises(ConsiliumError, match=r"lacks a\.csv.*--to"):
        fetch_data(wards, tmp_path / "data", print)
    (tmp_path / "data" / "wards" / "a.csv").write_bytes(TABLE)
    assert fetch_data(wards, tmp_path / "data", print) == tmp_path / "data" / "wards"
    other = data_set(RemoteFile("a.csv", "http://127.0.0.1:1/a.csv", sha256=hashlib.sha256(b"other").hexdigest()))
    with pytest.raises(ConsiliumError, match=r"a\.csv is not the file that was expected.*--to"):
        fetch_data(other, tmp_path / "data", print)
    (tmp_path / "data" / "wards" / "a.gz").write_bytes(b"<html>")
    damaged = data_set(RemoteFile("a.gz", "http://127.0.0.1:1/a.gz", content_sha256="0" * 64))
    with pytest.raises(ConsiliumError, match=r"a\.gz is not the file that was expected"):
        fetch_data(damaged, tmp_path / "data", print)


def test_a_check_that_finds_no_archive_is_a_clear_error_and_nothing_is_left(served: tuple[Path, str], tmp_path: Path) -> None:
    home, url = served
    (home / "a.tar.gz").write_bytes(b"<html>proxy</html>")

    def opens(folder: Path) -> None:
        with tarfile.open(folder / "a.tar.gz"):
            raise AssertionError("it is no archive")

    with pytest.raises(ConsiliumError, match=r"cannot be read \(ReadError\)"):
        fetch_data(data_set(RemoteFile("a.tar.gz", f"{url}/a.tar.gz"), check=opens), tmp_path / "data", print)
    assert left(tmp_path / "data") == []


@pytest.mark.parametrize("which", ["sha256", "content_sha256"])
def test_another_file_than_expected_is_refused_and_nothing_is_left(served: tuple[Path, str], tmp_path: Path, which: str) -> None:
    home, url = served
    (home / "a.gz").write_bytes(gzip.compress(TABLE))
    wanted = RemoteFile("a.gz", f"{url}/a.gz", **{which: "0" * 64})  # type: ignore[arg-type]
    with pytest.raises(ConsiliumError, match=r"a\.gz.*SHA-256.*Nothing was kept"):
        fetch_data(data_set(wanted), tmp_path / "data", print)
    assert left(tmp_path / "data") == []


def test_what_is_no_archive_is_refused_and_nothing_is_left(served: tuple[Path, str], tmp_path: Path) -> None:
    home, url = served
    (home / "a.gz").write_bytes(gzip.compress(TABLE * 100)[:-20])
    with pytest.raises(ConsiliumError, match="cannot be unpacked"):
        fetch_data(data_set(RemoteFile("a.gz", f"{url}/a.gz", content_sha256="0" * 64)), tmp_path / "data", print)
    assert left(tmp_path / "data") == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.csv", "{served}/absent.csv"])
def test_an_unreachable_file_is_a_clear_error_and_nothing_is_left(served: tuple[Path, str], tmp_path: Path, url: str) -> None:
    home, address = served
    (home / "first.csv").write_bytes(TABLE)
    files = [RemoteFile("first.csv", f"{address}/first.csv"), RemoteFile("a.csv", url.format(served=address))]
    with pytest.raises(ConsiliumError, match=r"cannot be got.*network"):
        fetch_data(data_set(*files), tmp_path / "data", print)
    assert left(tmp_path / "data") == []


def test_files_that_are_not_the_data_set_are_refused(served: tuple[Path, str], tmp_path: Path) -> None:
    home, url = served
    (home / "a.csv").write_bytes(TABLE)

    def refuse(folder: Path) -> None:
        raise ConsiliumError("Half of the wards are missing.")

    with pytest.raises(ConsiliumError, match=r"Half of the wards.*nothing was kept"):
        fetch_data(data_set(RemoteFile("a.csv", f"{url}/a.csv"), check=refuse), tmp_path / "data", print)
    assert left(tmp_path / "data") == []


def test_an_unknown_name_or_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    with pytest.raises(ConsiliumError, match="did you mean 'eicu_demo'"):
        fetch("eicu-demo", None, print)
    with pytest.raises(ConsiliumError, match="--to DIR"):
        fetch("eicu_demo", None, print)


def test_every_open_data_set_is_known_by_https_and_can_be_checked(data_root: Path) -> None:
    assert set(remote_data()) >= {"avmnist", "cinc2012", "eicu_demo", "uci_heart"}
    for name, data in remote_data().items():
        assert all(file.url.startswith("https://") for file in data.files)
        if (data_root / name).is_dir():
            data.check(data_root / name)
            for file in data.files:
                assert (data_root / name / file.name).is_file()
                if file.sha256:
                    assert hashlib.sha256((data_root / name / file.name).read_bytes()).hexdigest() == file.sha256
                if file.content_sha256:
                    content = gzip.decompress((data_root / name / file.name).read_bytes())
                    assert hashlib.sha256(content).hexdigest() == file.content_sha256


def test_the_spoken_digits_are_packed_again_without_the_commit_in_their_names(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, url = served
    top, listed = f"{official.FSDD_FOLDER}-{official.FSDD_COMMIT}", ""
    with tarfile.open(home / "archive.tar.gz", "w:gz") as archive:
        for name in ("README.md", "recordings/1_theo_0.wav", "recordings/0_theo_0.wav"):
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    recordings = replace(official.AVMNIST.files[-1], url=f"{url}/archive.tar.gz")
    digits = replace(official.AVMNIST, files=(recordings,))
    with pytest.raises(ConsiliumError, match="does not hold the recordings of commit 26eb9aaf76e8"):
        fetch_data(digits, tmp_path / "data", print)
    for name in ("recordings/0_theo_0.wav", "recordings/1_theo_0.wav"):
        listed += f"{hashlib.sha256(name.encode()).hexdigest()}  {official.FSDD_FOLDER}/{name}\n"
    monkeypatch.setattr(official, "FSDD_SHA256", hashlib.sha256(listed.encode()).hexdigest())
    with tarfile.open(fetch_data(digits, tmp_path / "data", print) / official.FSDD_FILE) as kept:
        assert kept.getnames() == [f"{official.FSDD_FOLDER}/recordings/{n}_theo_0.wav" for n in (0, 1)]


def test_a_data_set_is_found_by_the_benchmarks_that_need_it(tmp_path: Path) -> None:
    (tmp_path / "uci_heart").mkdir()
    with pytest.raises(ConsiliumError, match=r"uci_heart lacks processed\.cleveland"):
        fetch("heart-disease", tmp_path, lambda said: None)
    with pytest.raises(ConsiliumError, match="did you mean 'heart-disease'"):
        fetch("heart-diseas", tmp_path, lambda said: None)


HOMES = {
    "covid-cxr": ("covid_cxr", "https://github.com/ieee8023/covid-chestxray-dataset"),
    "hippocampus": ("msd_task04_hippocampus", "http://medicaldecathlon.com"),
    "metakd-adni": ("adni", "https://ida.loni.usc.edu"),
    **{f"metakd-brats{year}": (f"brats{year}", f"organisers of BraTS {year}") for year in (2018, 2019, 2020)},
    "mind-cremad": ("cremad", "https://github.com/CheyneyComputerScience/CREMA-D"),
    "mind-luma": ("luma", "https://github.com/bezirganyan/LUMA"),
    **dict.fromkeys(("mind-mortality", "mind-phenotyping", "pb-mortality"), ("mimic", "PhysioNet")),
    "mind-smnist": ("smnist", "https://zenodo.org/record/4452953"),
}


def test_of_every_benchmark_that_cannot_be_fetched_it_is_said_where_its_data_are(tmp_path: Path) -> None:
    fetched = {name for data in remote_data().values() for name in data.benchmarks}
    real = {name for name, benchmark in benchmarks().items() if benchmark.data == "real"}
    assert fetched | set(HOMES) == real and not fetched & set(HOMES)
    for name, (folder, home) in HOMES.items():
        with pytest.raises(ConsiliumError) as error:
            fetch(name, tmp_path, lambda said: None)
        assert f"The data of '{name}' cannot be fetched" in str(error.value)
        assert f"folder below CONSILIUM_DATA is '{folder}'" in str(error.value) and home in str(error.value)
    for name in set(benchmarks()) - real:
        with pytest.raises(ConsiliumError, match=f"'{name}' needs no data.*consilium-bench run {name}"):
            fetch(name, tmp_path, lambda said: None)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("year", [2018, 2019, 2020])
def test_what_is_said_of_brats_is_the_folder_that_the_benchmark_opens(
    year: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONSILIUM_DATA", raising=False)
    with pytest.raises(ConsiliumError, match=f"the folder that holds 'brats{year}'"):
        benchmarks()[f"metakd-brats{year}"].prepare(tmp_path / "sites", Split(0, 0))

"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("common", "client", "server", "simulations", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
DEVELOPMENT = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["dev"]]
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def tracked() -> list[Path]:
    """Files under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked where an installer would put it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("consilium_fl-*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(file),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


def test_the_wheel_holds_every_module_and_every_configuration(wheel: Path) -> None:
    sources = {p.relative_to(ROOT) for room in ROOMS for ext in ("py", "yaml", "json") for p in (ROOT / room).rglob(f"*.{ext}")}
    assert sources
    assert sources <= {p.relative_to(wheel) for p in wheel.rglob("*")}


def test_the_installed_wheel_is_imported_from_a_foreign_directory(wheel: Path, tmp_path: Path) -> None:
    for name in ("common", "client", "server"):
        (tmp_path / name).mkdir()
    code = (
        "from importlib import import_module; from pathlib import Path; "
        "from common.config import load_config; load_config('demo', ''); "
        "modules = ('common', 'client.app', 'server.app', 'simulations', 'configs'); "
        "print(*(Path(import_module(m).__file__).parents[1] for m in modules), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(wheel)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {Path(folder) for folder in done.stdout.splitlines()} == {wheel}


@pytest.mark.parametrize("script", sorted(PROJECT["project"]["scripts"].items()), ids=lambda script: str(script[0]))
def test_a_script_answers_help(script: tuple[str, str]) -> None:
    module, function = script[1].split(":")
    code = f"import sys; from {module} import {function}; sys.argv = [{script[0]!r}, '--help']; sys.exit({function}())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_flower_installs_nothing_at_run_time(tmp_path: Path) -> None:
    overrides = [Requirement(line) for line in PROJECT["tool"]["uv"]["override-dependencies"]]
    assert {o.name for o in overrides} == {d.name for d in DEPENDENCIES + DEVELOPMENT}
    # What Flower does before a run, in a hospital without internet.
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    flags = ["--python", sys.executable, "--no-install-project", "--no-install-package", "flwr", "--inexact", "--offline"]
    env = os.environ | {"UV_CACHE_DIR": str(tmp_path / "cache"), "UV_PROJECT_ENVIRONMENT": str(tmp_path / "env")}
    done = subprocess.run([sys.executable, "-m", "uv", "sync", *flags], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "env").glob("lib/python*/site-packages/*") if p.is_dir()] == []


def test_the_tested_versions_are_within_the_declared_ranges() -> None:
    tested = constraints()
    outside = [str(r) for r in DEPENDENCIES + DEVELOPMENT if not r.specifier.contains(tested[canonicalize_name(r.name)])]
    assert not outside


def test_every_third_party_import_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(d.name) for d in DEPENDENCIES}
    providers = packages_distributions()
    undeclared = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - set(ROOMS) - sys.stdlib_module_names:
                if not declared & {canonicalize_name(p) for p in providers.get(top, [])}:
                    undeclared.add(f"{top} in {path.relative_to(ROOT)}")
    assert not undeclared


def test_only_arrays_and_json_are_stored_or_sent() -> None:
    unsafe = re.compile(
        r"\b(pickle|joblib|dill|cloudpickle|shelve|marshal)\b|torch\.(load|save)\(|allow_pickle|yaml\.(load|unsafe_load)\("
    )
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in MODULES if (m := unsafe.search(p.read_text(encoding="utf-8")))]
    assert not found


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES + tests}
    assert not {name: lines for name, lines in lengths.items() if lines > 400}


def test_nothing_unfinished_is_left() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b|pragma: no cover")
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in MODULES if (m := marks.search(p.read_text(encoding="utf-8")))]
    assert not found


def test_no_file_names_a_package_index_or_a_place_on_somebodys_machine() -> None:
    # Put together from pieces, so that this file does not name them either.
    hosts = [
        ".".join(host) for host in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"), ("npmjs", "org"))
    ]
    places = [f"/{folder}/" for folder in ("work", "tmp", "home", "root", "Users")]
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [
            f"{path.relative_to(ROOT)}: {word}" for word in hosts + places if re.search(rf"(?<![\w.]){re.escape(word)}", text)
        ]
    assert not found


def test_every_make_target_explains_itself() -> None:
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S607
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["setup", "demo", "test", "lint", "help"]

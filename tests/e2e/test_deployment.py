"""A real federation: a SuperLink and two SuperNodes, each with a home and a manifest of its own, with TLS and known keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from common.flower import project_root
from server.record import Record
from simulations.consortium import write_tiny
from tests.e2e.processes import PATIENCE, Federation, free_port, write_certificates, write_key

pytestmark = pytest.mark.e2e
HOSPITALS = ("alder", "birch")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """A SuperLink that knows the reference set and the hospitals' keys, and SuperNodes that know their manifest each."""
    write_tiny(tmp_path / "sites")
    write_certificates(tmp_path)
    made = Federation(tmp_path, address=f"127.0.0.1:{free_port()}")
    try:
        start_superlink(made)
        for name in HOSPITALS:
            write_key(tmp_path / f"{name}.key")
            said = made.flwr("supernode", "register", str(tmp_path / f"{name}.key.pub"), "clinic", "--format", "json")
            assert json.loads(said)["success"] is True, said
            start_supernode(made, name, manifest_of=name)
        yield made
    finally:
        made.end()


def start_superlink(federation: Federation) -> None:
    home, (host, port) = federation.home, federation.address.split(":")
    tls = ("--ssl-ca-certfile", f"{home}/ca.crt", "--ssl-certfile", f"{home}/server.pem", "--ssl-keyfile", f"{home}/server.key")
    reference = {"CONSILIUM_REFERENCE": str(home / "sites" / "reference")}
    place = ("--host", host, "--port", port)
    superlink = federation.start("superlink", "flower-superlink", *place, *tls, "--enable-supernode-auth", **reference)
    (home / "admin").mkdir()
    connection = f'[superlink.clinic]\naddress = "{federation.address}"\nroot-certificates = "{home}/ca.crt"\n'
    (home / "admin" / "config.toml").write_text(f'[superlink]\ndefault = "clinic"\n\n{connection}', encoding="utf-8")
    deadline = time.monotonic() + PATIENCE
    while '"success": true' not in federation.flwr("supernode", "list", "clinic", "--format", "json"):
        ended = not superlink.is_running() or superlink.status() == psutil.STATUS_ZOMBIE
        assert not ended, (home / "superlink" / "process.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, "the SuperLink does not answer"


def start_supernode(federation: Federation, name: str, manifest_of: str) -> psutil.Process:
    home = federation.home
    place = ("--superlink", federation.address, "--root-certificates", f"{home}/ca.crt", "--port", str(free_port()))
    manifest = f"manifest='{home / 'sites' / manifest_of / 'manifest.yaml'}'"
    key = ("--auth-supernode-private-key", f"{home}/{name}.key")
    return federation.start(name, "flower-supernode", *place, *key, "--node-config", manifest)


def status(federation: Federation) -> list[str]:
    return [run["status"] for run in json.loads(federation.flwr("list", "clinic", "--format", "json"))["runs"]]


def test_only_hospitals_whose_keys_are_known_make_a_student_over_tls(
    federation: Federation, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    write_key(tmp_path / "stranger.key")
    stranger = start_supernode(federation, "stranger", manifest_of=HOSPITALS[0])
    started = time.monotonic()
    run, config = tmp_path / "run", tmp_path / "run.toml"
    # Few rounds: for every message a process starts, and imports torch.
    short = "teach.rounds=1 distill.epochs=1 weights.estimator=uniform refine.rounds=0 federation.poll=0.5"
    overrides = f"{short} federation.min_sites={len(HOSPITALS)}"
    config.write_text(f'experiment = "tiny"\noverrides = "{overrides}"\nrun-dir = "{run}"\n', encoding="utf-8")
    said = federation.flwr("run", str(project_root()), "clinic", "--stream", "--run-config", str(config))
    assert status(federation) == ["finished:completed"], said
    events = Record(run).events()
    assert {e["site"] for e in events if e["event"] == "enrolled"} == set(HOSPITALS)
    assert next(e for e in events if e["event"] == "plan")["reference"] == 60
    assert all(e["left_out"] == {} for e in events if e["event"] == "round")
    assert (run / "student.safetensors").is_file()
    stranger.wait(timeout=PATIENCE)
    assert "Failed to activate SuperNode" in (tmp_path / "stranger" / "process.log").read_text(encoding="utf-8")
    record_property("seconds of the run on SuperNodes", round(time.monotonic() - started))

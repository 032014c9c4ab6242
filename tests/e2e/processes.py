"""A federation of real processes on this machine, secured as hospitals would secure it."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from common.flower import SCRIPTS

PATIENCE = 400


@dataclass
class Federation:
    """Processes that belong together; all of them, and no others, are ended with it."""

    home: Path
    address: str
    processes: list[psutil.Process] = field(default_factory=list)

    def env(self, name: str, **more: str) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", "CONSILIUM_"))}
        return keep | {
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.home / name),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def start(self, name: str, *command: str, **more: str) -> psutil.Process:
        """Starts a process in a folder of its own; what it says is in ``process.log`` there."""
        folder = self.home / name
        folder.mkdir()
        with (folder / "process.log").open("wb") as log:
            words = [str(SCRIPTS / command[0]), *command[1:]]
            process = subprocess.Popen(words, cwd=folder, env=self.env(name, **more), stdout=log, stderr=log)
        self.processes.append(psutil.Process(process.pid))
        return self.processes[-1]

    def flwr(self, *words: str) -> str:
        """Returns what ``flwr`` answers the administrator."""
        command = [str(SCRIPTS / "flwr"), *words]
        done = subprocess.run(command, cwd=self.home, env=self.env("admin"), capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout

    def end(self) -> None:
        family = [p for process in self.processes if process.is_running() for p in (process, *process.children(recursive=True))]
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            for process in family:
                if process.is_running():
                    stop(process)
            _, family = psutil.wait_procs(family, timeout=10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_certificates(folder: Path) -> None:
    """Writes an authority (``ca.crt``) and the certificate that it gave the server (``server.pem``, ``server.key``)."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name.from_rfc4514_string("CN=authority")
    root = _certificate(issuer, authority, issuer, authority, x509.BasicConstraints(ca=True, path_length=None))
    # 127.0.0.1 is needed wherever the server stands: the SuperLink's own SuperExec calls it there.
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = _certificate(x509.Name.from_rfc4514_string("CN=server"), server, issuer, authority, names)
    (folder / "ca.crt").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    authority: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    return builder.add_extension(extension, critical=False).sign(authority, hashes.SHA256())


def write_key(file: Path) -> None:
    """Writes a SuperNode's key, as ``ssh-keygen -t ecdsa -b 384`` does, and beside it the public one (``.pub``)."""
    key = ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    file.with_name(f"{file.name}.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))

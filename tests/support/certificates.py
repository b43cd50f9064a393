"""A certificate authority for one test run, made with the `openssl` command: a server and a client, all in PEM."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Certificates:
    """Paths below one folder; the files exist after `make`. `server` holds key and certificate in one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "ca.pem"
        self.server = folder / "server.pem"
        self.client = folder / "client.pem"
        self.client_key = folder / "client.key"
        self.other_authority = folder / "other-ca.pem"

    def make(self) -> None:
        """Valid for localhost and 127.0.0.1, for ten days. `other_authority` has signed nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._authority("ca")
        self._authority("other-ca")
        for name, use in (("server", "serverAuth"), ("client", "clientAuth")):
            extensions = self.folder / f"{name}.cnf"
            extensions.write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={use}\n")
            self._openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN=sluiceway-{name}",
                          "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
            self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                          "-days", "10", "-extfile", f"{name}.cnf", "-out", f"{name}.crt")  # fmt: skip
        self.server.write_bytes(self._read("server.key") + self._read("server.crt") + self._read("ca.pem"))
        self.client.write_bytes(self._read("client.crt"))

    def _authority(self, name: str) -> None:
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", f"/CN=sluiceway {name}",
            "-addext", "keyUsage=keyCertSign,cRLSign", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip

    def _read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {arguments[0]} failed:\n{done.stderr}")

"""ssh servers behind the emulator, and the ways that real ssh clients take to them.

Both servers run as inetd would run them, one a connection, with keys and files of the test's own. Dropbear takes the
user's home from the passwd file alone, so it gets one of its own, by way of libnss_wrapper.
"""

import glob
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import HANG, Child, called, command, started

DROPBEAR, OPENSSH, NOBODY = 22, 23, 1999  # the guest's ports
SEPARATION = Path("/run/sshd")  # sshd does not start as root without this folder
WRAPPER = "libnss_wrapper.so"

SSHD_CONFIG = """\
HostKey {folder}/openssh_host_key
AuthorizedKeysFile {folder}/home/.ssh/authorized_keys
AuthenticationMethods publickey
StrictModes no
PermitRootLogin yes
UsePAM no
PidFile none
"""


@dataclass(frozen=True)
class Guest:
    """Where ssh servers are, and as whom to log in."""

    uds: str
    user: str
    key: str  # in dropbear's form

    def dbclient(self, *options: str) -> list[str]:
        """dbclient, up to where the command goes."""
        return ["dbclient", "-y", "-y", "-i", self.key, *options, f"{self.user}@127.0.0.1"]

    def jump(self, engine: str) -> list[str]:
        """By dbclient's -J."""
        return self.dbclient("-J", transport(self.uds, DROPBEAR, engine))

    def direct(self) -> list[str]:
        """By the connection itself, which dbclient finds as its descriptor 3."""
        return [*command(self.uds, str(DROPBEAR)), "--", *self.dbclient("-J", "&3")]

    def proxied(self, engine: str) -> list[str]:
        """By a proxy of its own."""
        proxy = [*called("fastvsock"), "proxy", "--engine", engine, self.uds, str(DROPBEAR), "--"]
        return proxy + self.dbclient("-p", "{port}")

    def ssh(self, *options: str, port: int = OPENSSH, engine: str = "auto", connect: tuple[str, ...] = ()) -> list[str]:
        """OpenSSH's client, by ProxyCommand, up to where the command goes; `connect` are our options."""
        settings = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": self.key.removesuffix(".dropbear"),
            "LogLevel": "ERROR",
            "ProxyCommand": transport(self.uds, port, engine, *connect),
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", *words, *options, f"{self.user}@guest"]


def transport(uds: str, port: int, engine: str, *options: str) -> str:
    """The connect program as one word, as a client's option has it."""
    return " ".join(command(*options, uds, str(port), engine=engine))


def need(*programs: str) -> None:
    """Skip, and say why, where one is missing."""
    for program in programs:
        if not find(program):
            pytest.skip(f"{program} is not installed")


def missing_for_guest() -> str:
    """Return what `shell_guest` lacks on this machine; an empty string if nothing."""
    programs = ("dropbear", "dropbearkey", "dropbearconvert", "dbclient", "ssh-keygen")
    if not glob.glob(f"/usr/lib*/{WRAPPER}") + glob.glob(f"/usr/lib/*/{WRAPPER}"):
        return "libnss-wrapper is not installed"
    return next((f"{program} is not installed" for program in programs if not find(program)), "")


def find(program: str) -> str | None:
    """Servers are not on everybody's PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def shell_guest(folder: Path) -> Iterator[Guest]:
    """The emulator with a dropbear and, where it is installed, an OpenSSH server."""
    if reason := missing_for_guest():
        pytest.skip(reason)
    user = pwd.getpwuid(os.getuid()).pw_name
    make_keys(folder, user)
    uds = str(folder / "v.sock")
    services = {DROPBEAR: f"sh {folder}/dropbear.sh"}
    with ExitStack() as undo:
        sshd = find("sshd")
        if sshd:
            services[OPENSSH] = f"{sshd} -i -f {folder}/sshd_config -E {folder}/sshd.log"
            undo.enter_context(separation_folder())
        options = [f"--exec={port}={service}" for port, service in services.items()]
        words = [*called("fastvsock"), "emulate", uds, *options]
        child = undo.enter_context(started(words, stdin=subprocess.DEVNULL, stderr=None))
        assert b"listening" in child.stdout.readline()
        yield Guest(uds, user, str(folder / "key.dropbear"))


def make_keys(folder: Path, user: str) -> None:
    """Keys, and the servers' files."""

    def run(*words: object) -> None:
        subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=HANG)

    for name in ("key", "openssh_host_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    run("dropbearconvert", "openssh", "dropbear", folder / "key", folder / "key.dropbear")
    run("dropbearkey", "-t", "ed25519", "-f", folder / "dropbear_host_key")
    keys = folder / "home/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True, mode=0o700)
    keys.write_bytes((folder / "key.pub").read_bytes())
    keys.chmod(0o600)
    (folder / "home").chmod(0o700)
    (folder / "passwd").write_text(f"{user}:x:{os.getuid()}:{os.getgid()}::{folder}/home:/bin/sh\n")
    (folder / "group").write_text(f"{user}:x:{os.getgid()}:\n")
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    wrapper = f"LD_PRELOAD={WRAPPER} NSS_WRAPPER_PASSWD={folder}/passwd NSS_WRAPPER_GROUP={folder}/group"
    server = f"exec env {wrapper} {find('dropbear')} -i -s -r {folder}/dropbear_host_key\n"
    (folder / "dropbear.sh").write_text(server)


@contextmanager
def separation_folder() -> Iterator[None]:
    """The folder that sshd wants, where it is missing and can be made; it is taken away again."""
    missing = os.getuid() == 0 and not SEPARATION.exists()
    if missing:
        SEPARATION.mkdir(mode=0o755)
    try:
        yield
    finally:
        if missing:
            SEPARATION.rmdir()


def until_status(script: str) -> str:
    """A script for the guest's shell that says its status in a last line, and ends only when stdin does.

    Close stdin when all output has come: a shell that exits with much of its output still in dropbear's hands can hang
    the session (2022.83, one in some hundred on a loaded machine, with nothing but socat between the two).
    """
    return f"{script}; status=$?; echo status $status; cat; exit $status"


def output(client: Child, status: int) -> bytes | None:
    """What such a script said before its last line; None where that line does not come, or has another status."""
    end, tail, parts = b"status %d\n" % status, b"", []
    while not tail.endswith(end):
        part = os.read(client.stdout.fileno(), 1 << 16)
        if not part:
            return None
        parts.append(part)
        tail = (tail + part)[-len(end) :]
    return b"".join(parts)[: -len(end)]

"""The ways to run a command in the guest: channels, ssh by two programs, and a forwarder with no protocol above it.

The guest is this machine. What serves a way there listens on a Unix socket itself, as a VMM does, so between both
ends there is nothing but the kernel: the agent, or an inetd in C that becomes the server of each connection.
"""

import os
import pwd
import shlex
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .build_c import program
from .peers import HERE, no_binary, our_version, static

sys.path.insert(0, str(HERE.parents[1] / "tests"))

from support.ssh import WRAPPER, Guest, find, make_keys, missing_for_guest, separation_folder

BIN = Path(sys.executable).parent
CONNECT = [str(BIN / "runcvm-vsock-connect")]
FIRST_PORT = 1 << 20  # on AF_VSOCK, of agents that nobody calls
SFTP = "Subsystem sftp internal-sftp\n"
Start = Callable[..., Any]  # starts a server, with Popen's parameters, and waits for the line that says it is ready


class Way(ABC):
    """One way into the guest, whose sockets lie in `folder`; `keys` is a folder that `keys_in` filled."""

    name = title = ""
    terminals = True  # whether it gives the command one

    def __init__(self, folder: Path, keys: Path) -> None:
        self.keys = keys
        self.uds = str(folder / "v.sock")

    @classmethod
    def missing(cls) -> str:
        """Return why this way does not work on this machine; an empty string if it does."""
        return ""

    @classmethod
    def version(cls) -> str:
        """What is measured, with its version."""
        return our_version()

    @abstractmethod
    def serve(self, start: Start) -> None:
        """Start what listens in the guest."""

    def rest(self, start: Start) -> None:
        """Start it as it waits in a real guest, where that is another way."""
        self.serve(start)

    @abstractmethod
    def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
        """The command line on the host that runs `words` in the guest."""

    def inetd(self, start: Start, *words: str, **options: Any) -> None:
        """Start an inetd that runs `words`. Its socket has a short name: dropbear ends where its own has 32 bytes."""
        self.runs(*words)
        start([program("inetd"), Path(self.uds).name, f"{self.uds}.words"], cwd=Path(self.uds).parent, **options)

    def runs(self, *words: str) -> None:
        """From the next connection on the inetd runs `words`."""
        Path(f"{self.uds}.words").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))


class Channels(Way):
    """`fastvsock exec` and the agent, both installed."""

    name, title = "exec", "fastvsock exec"
    engine = "auto"

    @property
    def client(self) -> str:
        """The program on the host."""
        return str(BIN / "fastvsock")

    @property
    def agent(self) -> str:
        """The program in the guest."""
        return str(BIN / "fastvsock")

    def serve(self, start: Start) -> None:
        """Start the agent."""
        start([self.agent, "agent", "--engine", self.engine, "--listen", f"unix:{self.uds}"])

    def rest(self, start: Start) -> None:
        """On a port of AF_VSOCK it has fewer modules in memory."""
        try:
            with socket.socket(socket.AF_VSOCK):
                port = FIRST_PORT + os.getpid()
        except OSError:
            return self.serve(start)
        start([self.agent, "agent", "--engine", self.engine, "--port", str(port)])

    def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
        """`fastvsock exec`."""
        options = ["-i"] * stdin + ["-t"] * tty
        return [self.client, "exec", "--engine", self.engine, *options, self.uds, "--", *words]


class CopyingChannels(Channels):
    """The same with the engine in Python at both ends."""

    name, title, engine = "exec-copy", "fastvsock exec, copy", "copy"


class StaticChannels(Channels):
    """The static binary at both ends."""

    name, title = "exec-static", "fastvsock exec, static"

    @classmethod
    def missing(cls) -> str:
        """Return why there is no static binary."""
        return no_binary()

    @property
    def client(self) -> str:
        """The program on the host."""
        return str(static() / "fastvsock")

    @property
    def agent(self) -> str:
        """The program in the guest."""
        return str(static() / "fastvsock")


class StaticAgent(StaticChannels):
    """The static binary in the guest, where there may be no Python, and the installation on the host."""

    name, title = "exec-static-agent", "fastvsock exec, static agent"

    @property
    def client(self) -> str:
        """The program on the host."""
        return str(BIN / "fastvsock")


class Raw(Way):
    """The forwarder, and a child in the guest whose stdin and stdout are the socket: no status, no stderr."""

    name, title = "raw", "forwarder and a child on the socket"
    terminals = False
    linger = "inf"  # until the guest's process ends

    def serve(self, start: Start) -> None:
        """Start an inetd, which becomes what the next connection is for."""
        self.inetd(start, "true")

    def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
        """`runcvm-vsock-connect`."""
        self.runs(*words)
        return [*CONNECT, "--linger", self.linger, self.uds, "1"]


class Relayed(Raw):
    """The same with a relay at the guest's end too, in C, and the child behind pipes, as a channel has them."""

    name, title = "raw-relayed", "forwarder, a relay in C, and the child behind it"

    def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
        """The words are the relay's."""
        return super().command(program("forward"), "relay", *words, stdin=stdin, tty=tty)


class HalfClosing(Raw):
    """The same for a process that needs the end of its input. Firecracker would drop what it says after that."""

    name, linger = "raw-half-close", "0"


class Dropbear(Way):
    """dbclient on a connection that it is given, as 0.1 installs it into RunCVM's bundle, and dropbear."""

    name, title = "dropbear", "dbclient and dropbear"

    @classmethod
    def missing(cls) -> str:
        """Return what this machine lacks."""
        return missing_for_guest()

    @classmethod
    def version(cls) -> str:
        """The client's line about its version, which it writes to stderr."""
        return subprocess.run(["dbclient", "-V"], capture_output=True, text=True, timeout=9, check=False).stderr.strip()

    def serve(self, start: Start) -> None:
        """Start an inetd that becomes dropbear."""
        wrapped = {f"NSS_WRAPPER_{name.upper()}": str(self.keys / name) for name in ("passwd", "group")}
        words = [find("dropbear") or "", "-i", "-s", "-r", str(self.keys / "dropbear_host_key")]
        self.inetd(start, *words, env=os.environ | {"LD_PRELOAD": WRAPPER} | wrapped)

    def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
        """The connect program, which becomes dbclient."""
        guest = Guest(self.uds, _user(), str(self.keys / "key.dropbear"))
        client = guest.dbclient(*["-t"] * tty, "-J", "&3")
        return [*CONNECT, self.uds, "22", "--", *client, shlex.join(words)]


class OpenSSH(Way):
    """ssh on a connection that it is given, and sshd."""

    name, title = "openssh", "ssh and sshd"

    @classmethod
    def missing(cls) -> str:
        """Return what this machine lacks."""
        return missing_for_guest() or ("" if find("sshd") else "sshd is not installed")

    @classmethod
    def version(cls) -> str:
        """The client's line about its version, which it writes to stderr."""
        return subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=9, check=False).stderr.strip()

    @property
    def host(self) -> str:
        """Whom to be, and where."""
        return f"{_user()}@guest"

    def options(self) -> list[str]:
        """The options that `scp` takes too."""
        settings = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityFile": self.keys / "key",
            "LogLevel": "ERROR",
            "ProxyCommand": shlex.join([*CONNECT, "--fdpass", self.uds, "22"]),
            "ProxyUseFdpass": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        return ["-F", "none", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]

    def serve(self, start: Start) -> None:
        """Start an inetd that becomes sshd."""
        self.inetd(start, find("sshd") or "", "-i", "-f", str(self.keys / "sshd_config"), "-E", "/dev/null")

    def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
        """Ssh."""
        return ["ssh", *self.options(), *["-tt"] * tty, self.host, shlex.join(words)]


class SharedOpenSSH(OpenSSH):
    """The same over one connection that stays (ControlMaster); what keeps it counts as the client's."""

    name, title = "openssh-shared", "ssh and sshd, connection kept"

    def options(self) -> list[str]:
        """With the socket of the master."""
        return [*super().options(), "-S", f"{self.uds}.master"]

    def serve(self, start: Start) -> None:
        """Start the server, and the master, which says when it is connected."""
        super().serve(start)
        said = ["-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo ready"]
        start(["ssh", *super().options(), "-MN", "-S", f"{self.uds}.master", *said, self.host])


WAYS: tuple[type[Way], ...] = (
    StaticChannels,
    StaticAgent,
    Channels,
    CopyingChannels,
    Raw,
    Relayed,
    Dropbear,
    OpenSSH,
    SharedOpenSSH,
)


@contextmanager
def keys_in(folder: Path) -> Iterator[None]:
    """Fill a folder with throw-away keys and what the ssh servers read; they can start in this block."""
    folder.mkdir(mode=0o700)
    make_keys(folder, _user())
    with (folder / "sshd_config").open("a") as config:
        config.write(SFTP)
    with separation_folder():
        yield


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name

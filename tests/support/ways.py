"""The ways that a command takes from the CRI into the guest; the guest is this machine, behind the emulator.

To add a way, make a class of `Way` and give it a place in `WAYS`: the tests in tests/kubectl run for each of them.
"""

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import HANG, started
from support.bundles import exec_script, make_bundle, put, runcvm
from support.installing import stand_in
from support.ssh import Guest, find, missing_for_guest, shell_guest

UDS = "/run/firecracker.vsock"
# What RunCVM's runtime puts before a command: user, directory, whether there is a HOME, whether there is a terminal.
RUNTIME = ("0:0:", "/", "1", "{tty}")
# As RunCVM's: the encoding is undone, and a directory that is not there has its sentence and 126.
VM_EXEC = """\
#!/bin/bash
decode() { tr '\\200\\201\\202\\203\\204\\205' '\\011\\012\\040\\047\\042\\134'; }
mapfile -t words < <(printf %s "$3" | decode)
directory=$(printf %s "$2" | decode)
mapfile -t env < <(printf %s "$4" | decode)
cd "$directory" 2>/dev/null || { echo "OCI runtime exec failed: chdir to cwd (\\"$directory\\") failed"; exit 126; }
exec env -i "${env[@]}" PATH={path} "${words[@]}"
"""


@dataclass(frozen=True)
class Exec:
    """How the CRI runs a command in the pod: the words before it, and the environment of all.

    All that serves it has `root`, a folder, in its words or its environment.
    """

    root: Path
    words: list[str]
    environment: dict[str, str]


class Way(ABC):
    """A way into the guest.

    `any_bytes` is whether words arrive as they are, `signals` whether a command that a signal ends has 128+n,
    `ends_unread` whether a command ends whose stdout is closed.
    """

    name = ""
    title = ""
    any_bytes = signals = ends_unread = True

    def missing(self) -> str:
        """Return why this way does not work on this machine; an empty string if it does."""
        return ""

    @abstractmethod
    def ready(self, folder: Path) -> AbstractContextManager[Exec]:
        """Set up everything below `folder`, which is there, and take it down at the end."""


class Floor(Way):
    """No guest: the API server runs the command itself, which shows the cost and the faults of kubectl alone."""

    name, title = "floor", "no guest: the API server runs the command"

    def missing(self) -> str:
        """Return what this machine lacks."""
        return "" if find("busybox") else "busybox is not installed"

    @contextmanager
    def ready(self, folder: Path) -> Iterator[Exec]:
        """A folder of programs as a guest has them."""
        add_applets(folder / "bin")
        yield Exec(folder, [], os.environ | {"PATH": path_of(folder)})


class Dropbear(Way):
    """RunCVM's exec script as `install` leaves it: dbclient on a connection of its own, to a dropbear in the guest."""

    name, title = "dropbear", "dbclient through fastvsock"
    any_bytes = False  # the script's encoding eats the bytes 0x80 to 0x85, and splits at newlines
    signals = False  # dbclient's status is 0 where the server says exit-signal
    ends_unread = False  # dbclient with a closed stdout waits for the guest, and the guest's command for dbclient

    def missing(self) -> str:
        """Return what this machine lacks. The user must be root, since the script logs in as root."""
        if os.geteuid() != 0:
            return "this machine: RunCVM's script logs in as root"
        return missing_for_guest() or ("" if find("busybox") else "busybox is not installed")

    @contextmanager
    def ready(self, folder: Path) -> Iterator[Exec]:
        """A bundle, and a guest with a dropbear."""
        with self.guest(folder) as guest:
            bundle = self.bundle(folder / "bundle", guest)
            script = str(bundle / "scripts/runcvm-ctr-exec")
            environment = os.environ | {"RUNCVM_GUEST": str(bundle), "KEY": guest.key, "PATH": path_of(bundle)}
            yield Exec(folder, [str(bundle / "bin/bash"), "-e", script, *RUNTIME], environment)

    def guest(self, folder: Path) -> AbstractContextManager[Guest]:
        """What stands for the VMM, with dropbear behind it."""
        return shell_guest(folder)

    def bundle(self, folder: Path, guest: Guest) -> Path:
        """A bundle whose exec script leads to that guest."""
        bundle = make_bundle(folder)
        put(bundle / "scripts/runcvm-ctr-exec", exec_script("fork").replace(UDS, guest.uds), 0o755)
        put(bundle / "scripts/runcvm-vm-exec", VM_EXEC.replace("{path}", path_of(bundle)), 0o755)
        for program in ("dbclient", "socat"):
            (bundle / "usr/bin" / program).unlink()
        shutil.copy(find("dbclient") or "", bundle / "usr/bin/dbclient")
        self.prepare(bundle)
        return bundle

    def prepare(self, bundle: Path) -> None:
        """Install fastvsock into the bundle."""
        done = runcvm("install", bundle)
        assert done.returncode == 0, done.stderr


class Channels(Way):
    """RunCVM's exec script as `install` from the static binary leaves it: a channel to the guest's agent.

    The guest has no ssh server, so that nothing else can serve an exec.
    """

    name, title = "channels", "fastvsock exec and the guest's agent"

    def missing(self) -> str:
        """Return what this machine lacks. The user must be root, since RunCVM names the user that a command runs as."""
        if os.geteuid() != 0:
            return "this machine: only root can run a command as another user"
        return "" if find("busybox") else "busybox is not installed"

    def binary(self, folder: Path) -> Path:
        """The static binary to install, or what stands for it."""
        return stand_in(folder / "stand-in")

    def far_end(self, program: str, uds: str) -> list[str]:
        """What stands for the VMM, with the agent behind it."""
        return [program, "emulate", uds, "--agent"]

    @contextmanager
    def ready(self, folder: Path) -> Iterator[Exec]:
        """A bundle, and a guest with an agent."""
        uds = str(folder / "v.sock")
        execution = self.lead_to(uds, folder)
        program = str(folder / "bundle/bin/fastvsock")
        with started(self.far_end(program, uds), stdin=subprocess.DEVNULL, stderr=None, cwd=folder) as child:
            assert b"listening" in child.stdout.readline()
            yield execution
            child.terminate()
            child.wait(HANG)

    def lead_to(self, uds: str, folder: Path) -> Exec:
        """Install into a bundle below `folder`, whose exec script leads to the guest behind `uds`."""
        bundle = make_bundle(folder / "bundle")
        script = bundle / "scripts/runcvm-ctr-exec"
        put(script, exec_script("fork").replace(UDS, uds), 0o755)
        done = runcvm("install", bundle, "--binary", self.binary(folder))
        assert done.returncode == 0, done.stderr
        environment = os.environ | {"RUNCVM_GUEST": str(bundle), "PATH": path_of(bundle)}
        return Exec(folder, [str(bundle / "bin/bash"), "-e", str(script), *RUNTIME], environment)


WAYS: tuple[Way, ...] = (Floor(), Dropbear(), Channels())


def path_of(root: Path) -> str:
    """PATH with a bundle's programs first, and then those of the Python that runs this (`python3` may be a shim)."""
    here = os.path.dirname(sys.executable)
    return os.pathsep.join([f"{root}/bin", f"{root}/usr/bin", here, os.environ.get("PATH", os.defpath)])


def add_applets(folder: Path) -> None:
    """Make a folder with the busybox applets that `kubectl cp` runs in the guest."""
    folder.mkdir()
    for applet in ("sh", "tail", "tar"):
        (folder / applet).symlink_to(find("busybox") or "")

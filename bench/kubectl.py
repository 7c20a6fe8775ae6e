"""What a user of kubectl waits for: `kubectl cp` and `kubectl exec` into a guest, by each way, and with no guest.

The real kubectl speaks to the API server of the tests, which runs RunCVM's scripts as a CRI would. The guest is this
machine, and what serves a way there listens on the VMM's socket itself, as in ways.py: an emulator in Python would
limit the copies. A way into the guest is a class of tests/support/ways.py, or one here that only figures need. `floor`
is the reference: the API server runs the same command itself. The time is from kubectl's start to its end.
"""

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from . import ways as transports
from .measures import MIB, Measure, unit
from .peers import HERE, Peer, binary, no_binary, our_version, socat_version
from .sample import PeerError, Sample

sys.path.insert(0, str(HERE.parents[1] / "tests"))
sys.path.insert(0, str(HERE.parents[1] / "tests" / "vm"))

import fetch
import images

from support import started
from support.apiserver import NAME
from support.bundles import put
from support.kubectl import Pod, inside, pod, processes_about
from support.ssh import Guest, find
from support.ways import WAYS, Channels, Dropbear, Way

SLOWEST = 400.0  # seconds; more is a fault


class StaticChannels(Channels):
    """With the static binary itself, which is what is installed, and with the agent where the emulator would be."""

    def missing(self) -> str:
        """Return what this machine lacks."""
        return super().missing() or no_binary()

    def binary(self, folder: Path) -> Path:
        """The one of this source."""
        return binary()

    def far_end(self, program: str, uds: str) -> list[str]:
        """The agent alone, which answers CONNECT."""
        return [program, "agent", "--listen", f"unix:{uds}"]


class DirectDropbear(Dropbear):
    """With an inetd in C that becomes dropbear, where the emulator would be."""

    @contextmanager
    def guest(self, folder: Path) -> Iterator[Guest]:
        """The inetd, which answers CONNECT."""
        keys = folder / "keys"
        with ExitStack() as undo:

            def start(words: list[str], **options: Any) -> None:
                child = undo.enter_context(started(words, stdin=subprocess.DEVNULL, stderr=None, **options))
                assert child.stdout.readline() == b"ready\n"

            undo.enter_context(transports.keys_in(keys))
            server = transports.Dropbear(folder, keys)
            server.serve(start)
            yield Guest(server.uds, "root", str(keys / "key.dropbear"))


class Socats(DirectDropbear):
    """RunCVM's script as it was: dbclient to a TCP port on which a socat starts the transport, which is three more.

    The first socat stays when the exec has ended. Its streams are /dev/null here, else the exec would wait for them.
    Some runs fail, since the script waits 0.1 s for that socat to listen; they are repeated, and not counted.
    """

    name, title = "socats", "dbclient through socats (RunCVM at first)"

    def missing(self) -> str:
        """Return what this machine lacks."""
        return super().missing() or ("" if find("socat") else "socat is not installed")

    def prepare(self, bundle: Path) -> None:
        """Leave the bundle as it is, with the transport that it had; give it a tar, which else `install` does."""
        shutil.copy(find("socat") or "", bundle / "usr/bin/socat")
        script = bundle / "scripts/runcvm-ctr-exec"
        put(script, script.read_text().replace('22" &\n', '22" >/dev/null 2>&1 &\n'), 0o755)
        put(bundle / "scripts/runcvm-vsock-connect", (HERE / "pipeline.sh").read_text(), 0o755)
        (bundle / "bin/tar").symlink_to("busybox")


ALL: dict[str, Way] = {way.name: way for way in (*WAYS, DirectDropbear(), StaticChannels(), Socats())}
VERSIONS = {"floor": lambda: f"kubectl {fetch.KUBECTL_VERSION}", "channels": our_version, "socats": socat_version}
PEERS = [
    Peer(name, way.title, "kubectl", list[str], way.missing, VERSIONS.get(name, transports.Dropbear.version))
    for name, way in ALL.items()
]


def _copy(way: str, size: int, rounds: tuple[int, int], suffix: str = "") -> Measure:
    title = f"kubectl cp {'into' if way == 'up' else 'from'} the guest, {unit(size)}"
    return Measure(f"kubectl-cp-{way}{suffix}", title, "whole", way, size=size, rounds=rounds, actors=("kubectl",))


# By socats a copy from the guest is slow: their TCP connection delays the rest of each ssh window (Nagle) by 40 ms.
MEASURES = (
    _copy("up", 100 * MIB, (5, 0)),
    _copy("down", 100 * MIB, (3, 0)),
    _copy("up", 4 * MIB, (15, 5), "-4M"),
    _copy("down", 4 * MIB, (9, 3), "-4M"),
    Measure("kubectl-exec", "kubectl exec of true", "whole", "exec", size=1, rounds=(31, 7), actors=("kubectl",)),
)


def stage(folder: Path) -> "Stage":
    """The stage on which these measures are taken."""
    return Stage(folder)


class Stage:
    """The ways with an API server each, set up when they are first taken, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._pods: dict[str, Pod] = {}
        try:
            self._program = images.kubectl()
        except (fetch.CannotRun, fetch.Failed) as error:
            raise PeerError(f"kubectl is not available: {error}") from None

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, measure: Measure, peer: Peer, check: bool) -> Sample:
        """Run kubectl once, by the way of that peer. With `check` the copy is compared. Raises `PeerError`."""
        found = self._pod(ALL[peer.name])
        source, target = self._folder / f"source-{measure.size}", self._folder / "target"
        if not source.exists():
            source.write_bytes(os.urandom(measure.size))
        words: dict[str, list[str | Path]] = {
            "up": ["cp", source, inside(target)],
            "down": ["cp", inside(source), target],
            "exec": ["exec", NAME, "--", "true"],
        }
        try:
            seconds = _time(found.kubectl(*words[measure.way]), tries=5 if isinstance(found.way, Socats) else 1)
            if check and measure.way != "exec" and not filecmp.cmp(source, target, shallow=False):
                raise PeerError("changed the bytes on their way")
        finally:
            _end_what_is_left(found)
            target.unlink(missing_ok=True)
        return Sample(seconds)

    def _pod(self, way: Way) -> Pod:
        if way.name not in self._pods:
            folder = self._folder / way.name
            folder.mkdir()
            reached = self._stack.enter_context(way.ready(folder))
            self._pods[way.name] = self._stack.enter_context(pod(way, reached, self._program, folder))
        return self._pods[way.name]


def _time(command: list[str], tries: int) -> float:
    """The seconds that the command takes, the first time that it succeeds."""
    for _ in range(tries):
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SLOWEST, check=False
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"did not finish within {SLOWEST:.0f} s") from None
        seconds = time.monotonic() - began
        if done.returncode == 0:
            return seconds
    raise PeerError(f"ended with {done.returncode} after {seconds:.1f} s: {done.stdout}{done.stderr}")


def _end_what_is_left(of: Pod) -> None:
    """End what an exec has left behind: RunCVM's first script leaves a socat that listens."""
    for process in processes_about(of.exec.root) - of.idle:
        with suppress(ProcessLookupError):
            os.kill(int(process.split()[0]), signal.SIGTERM)

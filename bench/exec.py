"""What running a command in the guest takes: `true`, a stream each way, a keystroke, memory; by channels and by ssh.

The command of a stream is one of the benchmarks' own ends, whose CPU time is not counted. It reports to a pipe of this
process, not through the peer, and waits for the start as the ends on this side do.
"""

import os
import pty
import subprocess
import tty
from pathlib import Path

from .build_c import program
from .measures import MIB, Measure
from .peers import Peer
from .sample import Sample
from .served import ServedRig, Stage
from .ways import WAYS

NAMES = {way.name: way for way in WAYS}
ALL, TERMINALS = ("exec", "exec-raw"), ("exec",)
PEERS = [
    Peer(way.name, way.title, "exec" if way.terminals else "exec-raw", list[str], way.missing, way.version)
    for way in WAYS
]
SIZE = 256 * MIB
MEASURES = (
    Measure("exec-true", "exec of true", "whole", "exec", size=1, rounds=(31, 5), actors=ALL),
    Measure("exec-up", "exec, host to guest", "bulk", "up", size=SIZE, rounds=(7, 2), actors=ALL),
    Measure("exec-down", "exec, guest to host", "bulk", "down", size=SIZE, rounds=(7, 2), actors=ALL),
    Measure(
        "exec-key", "exec, round trip of a keystroke", "latency", "both", "tty", 1, rounds=(9, 2), actors=TERMINALS
    ),
    Measure("exec-memory", "exec, memory of both sides", "rest", "up", size=1, rounds=(3, 1), actors=ALL),
)


def stage(folder: Path) -> Stage:
    """The stage on which these measures are taken."""
    return Stage(folder, ExecRig)


class GuestsReport:
    """Where the guest's end reports, in the place of a process of this side."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.stdout = self

    def fileno(self) -> int:
        """The descriptor to read from."""
        return self._fd

    def terminate(self) -> None:
        """Do nothing: it ends with the server."""


class ExecRig(ServedRig):
    """One command in the guest, by one way."""

    def __init__(self, stage: Stage, measure: Measure, peer: Peer, check: bool) -> None:
        super().__init__(measure, peer, check, NAMES[peer.name], stage.keys)

    def begin(self) -> None:
        """Start the server; before that, where memory is measured, one that nobody comes to."""
        if self.measure.kind == "rest":
            self.way.rest(self._start_server)
            self._tree.settle()
            self._at_rest = self._tree.share_of(*self._tree.heads)
            self._tree.end(grace=0)
            self._tree.heads.clear()
            Path(self.uds).unlink(missing_ok=True)
        super().begin()

    def take(self) -> Sample:
        """Do the work of the measure."""
        return {"whole": self.whole, "bulk": self.bulk, "latency": self.latency, "rest": self.rest}[self.measure.kind]()

    def whole(self) -> Sample:
        """The second `true` in the life of a server: the first one loads what it needs."""
        self.run(self.way.command("true"))
        return self.run(self.way.command("true"))

    def bulk(self) -> Sample:
        """As without a server, but that one is no part of what starts and ends with the work."""
        sample = super().bulk()
        sample.cpu_in_all, sample.killed = None, False
        return sample

    def rest(self) -> Sample:
        """Memory before anybody came, and with one command that waits."""
        servers = list(self._tree.heads)
        far = self._far_end("sink", 1, subprocess.DEVNULL)
        self._near.append(self._start_forwarder())
        self._expect(far, b"open")
        self._tree.settle()
        return Sample(
            at_rest=self._at_rest,
            serving=self._tree.share_of(*servers),
            client=self._tree.share_of(self._tree.heads[-1]),
        )

    def _far_end(self, service: str, size: int, stdin: int) -> GuestsReport:
        """Write the script that the guest is to run."""
        reader, writer = self._pipe()
        ours = f"/proc/{os.getpid()}/fd"
        report, ends, check = f"{ours}/{writer}", program("ends"), "check" * self.check
        first, command = {
            "sink": ("", f"exec {ends} consume {size} {check} > {report}"),
            "source": ("", f"exec {ends} produce {size} {self.measure.chunk} {check} < {ours}/{stdin} 2> {report}"),
            "echo": ("stty raw -echo", "exec cat"),
        }[service]
        self._script.write_text(f"{first}\necho open > {report}\n{command}\n")
        self._far = GuestsReport(reader)
        return self._far

    def _start_forwarder(self) -> tuple[int, int]:
        if self.measure.ends != "tty":
            return super()._start_forwarder()
        near, far = map(self._keep, pty.openpty())
        tty.setraw(far)
        self._start_peer(self._command(), stdin=far, stdout=far)
        self._drop(far)
        self._expect(self._far, b"open")
        return near, near

    def _command(self) -> list[str]:
        return self.way.command("sh", str(self._script), stdin=True, tty=self.measure.ends == "tty")

    @property
    def _script(self) -> Path:
        return Path(self.uds).with_name("script")

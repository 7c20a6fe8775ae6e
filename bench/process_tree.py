"""All the processes of a forwarder, and what they cost.

A forwarder is started in a session of its own. What it starts stays in that session, also when its parent has ended, or
makes another one and is known by its parent, as dropbear. CPU time is read from each process' own clock (nanoseconds;
clock_getcpuclockid(3)); the time of children that ended and were waited for is added from /proc. Orphans become
children of this process, which is their subreaper (PR_SET_CHILD_SUBREAPER), and are waited for here. So no process,
thread or grandchild escapes the sum.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
TICK = 1 / os.sysconf("SC_CLK_TCK")
GRACE = 0.3  # seconds for a forwarder to end by itself


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Tree:
    """Forwarders of one kind: `commands` started side by side, each the head of a session."""

    def __init__(self, apart: str = "") -> None:
        self._apart = apart  # the CPU time of this program's processes is not counted
        self.heads: list[subprocess.Popen[bytes]] = []
        self._reaped = 0.0  # CPU seconds of processes that this one waited for
        self.killed = False  # whether one had to be, because it did not end by itself

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start one more forwarder."""
        head = subprocess.Popen(command, start_new_session=True, **options)
        self.heads.append(head)
        return head

    def pids(self) -> list[int]:
        """Every process that belongs to it now."""
        return [pid for pid, _ in _family(self.heads)]

    def cpu(self) -> float:
        """CPU seconds, user and system, of all its processes so far, the ended ones included."""
        total = self._reaped
        for pid, fields in _family(self.heads):
            if not self._stands_apart(pid):
                total += _clock(pid) + TICK * (int(fields[13]) + int(fields[14]))
        return total

    def memory(self) -> int:
        """Bytes: the sum of the peaks of resident memory of its processes (shared pages count for each process)."""
        return 1024 * sum(_kib(pid, "VmHWM") for pid in self.pids())

    def resident(self) -> int:
        """Bytes of resident memory of all its processes now (shared pages count for each process)."""
        return 1024 * sum(_kib(pid, "VmRSS") for pid in self.pids())

    def private(self) -> int:
        """Bytes of memory that its processes have written to, and share with nobody."""
        return 1024 * sum(_kib(pid, "Private_Dirty:", "smaps_rollup") for pid in self.pids())

    def share_of(self, *heads: "subprocess.Popen[bytes]") -> int:
        """Bytes of resident memory now of some of the heads with all that they started (PSS: shared pages in parts)."""
        pids = [pid for pid, _ in _family(heads) if not self._stands_apart(pid)]
        return 1024 * sum(_kib(pid, "Pss:", "smaps_rollup") for pid in pids)

    def faults(self) -> int:
        """Page faults of all its processes so far, and of their children that ended."""
        return sum(sum(map(int, fields[7:11])) for _, fields in _family(self.heads))

    def settle(self, patience: float = 0.5, pause: float = 0.01) -> float:
        """Wait until no CPU time is spent for `pause` seconds, `patience` seconds at most; return the CPU seconds."""
        deadline = time.monotonic() + patience
        before, now = -1.0, self.cpu()
        while now != before and time.monotonic() < deadline:
            time.sleep(pause)
            before, now = now, self.cpu()
        return now

    def end(self, grace: float = GRACE) -> float:
        """Wait for all processes, kill those left after `grace` seconds, and return their CPU seconds in all."""
        deadline = time.monotonic() + grace
        waiting = list(self.heads)
        elsewhere = {pid for pid, fields in _family(self.heads) if int(fields[3]) not in {head.pid for head in waiting}}
        while waiting := [head for head in waiting if self._reap(head)]:
            if time.monotonic() > deadline:
                self.killed = True
                for head in waiting:
                    with suppress(ProcessLookupError):
                        os.killpg(head.pid, signal.SIGKILL)
                deadline += 60
            time.sleep(0.002)
        for pid in elsewhere:  # in sessions of their own, and children of this process now
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return self._reaped

    def _stands_apart(self, pid: int) -> bool:
        try:
            return bool(self._apart) and os.readlink(f"/proc/{pid}/exe") == self._apart
        except OSError:
            return False

    def _reap(self, head: "subprocess.Popen[bytes]") -> bool:
        """Wait for what has ended of one session; whether something is left of it."""
        while True:
            try:
                pid, status, used = os.wait4(-head.pid, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == head.pid:
                head.returncode = os.waitstatus_to_exitcode(status)
            self._reaped += used.ru_utime + used.ru_stime


def _family(heads: Iterable["subprocess.Popen[bytes]"]) -> list[tuple[int, list[str]]]:
    """The processes in the sessions of `heads`, and all that these have started."""
    members, rest = {head.pid for head in heads}, _processes()
    found: list[tuple[int, list[str]]] = []
    while more := [entry for entry in rest if int(entry[1][3]) in members or int(entry[1][1]) in members]:
        found += more
        members |= {pid for pid, _ in more}
        rest = [entry for entry in rest if entry[0] not in members]
    return found


def _processes() -> list[tuple[int, list[str]]]:
    """Every process with its fields of /proc/PID/stat behind the name, the state first: proc(5)."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            found.append((int(name), text.rpartition(")")[2].split()))
    return found


def _clock(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of a process: include/linux/posix-timers.h
    except OSError:
        return 0.0


def _kib(pid: int, name: str, file: str = "status") -> int:
    """The sum of a file's fields whose names begin with `name`; 0 for a process that has ended.

    The peak in ru_maxrss is not used, since it may be the forking process' (fs/exec.c, exec_mmap()).
    """
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))

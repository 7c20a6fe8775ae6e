"""All the processes of a forwarder, and what they cost.

A forwarder is started in a session of its own; every process that it starts stays in that session, also when its
parent has ended. CPU time is read from each process' own clock (nanoseconds; clock_getcpuclockid(3)); the time of
children that ended and were waited for is added from /proc. Orphans become children of this process, which is their
subreaper (PR_SET_CHILD_SUBREAPER), and are waited for here. So no process, thread or grandchild escapes the sum.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
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

    def __init__(self) -> None:
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
        sessions = {head.pid for head in self.heads}
        return [pid for pid, fields in _processes() if int(fields[3]) in sessions]

    def cpu(self) -> float:
        """CPU seconds, user and system, of all its processes so far, the ended ones included."""
        sessions = {head.pid for head in self.heads}
        total = self._reaped
        for pid, fields in _processes():
            if int(fields[3]) in sessions:
                total += _clock(pid) + TICK * (int(fields[13]) + int(fields[14]))
        return total

    def memory(self) -> int:
        """Bytes: the sum of the peaks of resident memory of its processes (shared pages count for each process)."""
        return 1024 * sum(_kib(pid, "VmHWM") for pid in self.pids())

    def resident(self) -> int:
        """Bytes of resident memory of all its processes now (shared pages count for each process)."""
        return 1024 * sum(_kib(pid, "VmRSS") for pid in self.pids())

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
        while waiting := [head for head in waiting if self._reap(head)]:
            if time.monotonic() > deadline:
                self.killed = True
                for head in waiting:
                    with suppress(ProcessLookupError):
                        os.killpg(head.pid, signal.SIGKILL)
                deadline += 60
            time.sleep(0.002)
        return self._reaped

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


def _kib(pid: int, name: str) -> int:
    """A field of /proc/PID/status. (The peak in ru_maxrss may be the forking process': fs/exec.c, exec_mmap().)"""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)

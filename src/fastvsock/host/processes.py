"""Child processes and signals, for a process whose threads block signals and whose main thread handles them.

All signals of interest are blocked before the first thread starts, and one thread takes them with sigwaitinfo(2).

A command has to get each signal once, however it was sent. One that was sent to this process alone has to be passed on.
One that was sent to the process group (Ctrl-C, ``kill -- -PGID``, timeout(1)) or to each process of a control group
(systemd's KillMode=control-group) has reached the command already, and nothing in siginfo_t tells the difference. So
there is a *witness*: a child that does nothing but report the signals it gets. It is in the same process group and the
same control group as the command, so a signal that reaches the witness has reached the command.

A hang-up of the terminal goes to the session's leader alone (tty_signal_session_leader() in drivers/tty/tty_jobctrl.c),
which this process is under `docker run -t` and `ssh -t`; only when the leader has ended does the group get it.

A child starts with no signal blocked or ignored, and with the limit of descriptors that this process was started with.
posix_spawn(3) does the former without running Python between fork and exec.
"""

import _thread
import os
import resource
import select
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from .. import errors
from ..stdio import close_from, log

SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = (*ENDING, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)
HANG_UP = (signal.SIGHUP, signal.SIGCONT)  # a terminal's hang-up is these two
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

# Seconds in which the copies of one signal arrive: timeout(1) sends one to its child and one to its group, and a
# service manager signals the processes of a control group one after another.
SETTLE = 0.1
FORGET = 1.0  # seconds after which what the witness reported belongs to an earlier signal

STDERR = (os.POSIX_SPAWN_DUP2, 2, 2)  # in case it was closed: then it is /dev/null, and not inheritable
STACK = 1 << 18  # bytes; the default of 8 MiB is address space that some containers count
PAUSE = 0.02  # seconds between two looks at a child that is about to end

Signal = tuple[int, bool]  # its number, and whether the command's process group has got it as well


class Witness:
    """A child that reports which signals reach the process group and the control group that it shares with a command.

    To be made while this process has one thread and blocks `numbers`. It ends with `close`, or with this process.
    """

    REPORT = struct.Struct("=id")  # the signal's number, and when it came: CLOCK_MONOTONIC is the same in all processes

    def __init__(self, numbers: Sequence[int]) -> None:
        self._ours, theirs = socket.socketpair()
        self._seen: dict[int, float] = {}
        self.pid = os.fork()
        if not self.pid:
            try:
                self._watch(theirs.detach(), numbers)
            finally:
                os._exit(0)
        theirs.close()
        self._ours.setblocking(False)

    def _watch(self, fd: int, numbers: Sequence[int]) -> None:
        """Report until the parent closes its end. Keeps nothing else open: somebody may wait for an end of file."""
        os.closerange(0, fd)
        close_from(fd + 1)
        _thread.start_new_thread(self._end_with, (fd,))
        while True:
            number = signal.sigwaitinfo(numbers).si_signo
            os.write(fd, self.REPORT.pack(number, monotonic()))

    @staticmethod
    def _end_with(fd: int) -> None:
        try:
            os.read(fd, 1)
        finally:
            os._exit(0)

    def has_got(self, number: int, deadline: float) -> bool:
        """Whether it has got the signal `number` just now, or gets it before the time `deadline`."""
        while self._read():
            since = self._seen.pop(number, None)
            if since is not None and monotonic() - since < FORGET:
                return True
            left = deadline - monotonic()
            if left <= 0:
                return self._has_pending(number)
            select.select([self._ours], (), (), left)
        return False

    def _read(self) -> bool:
        """Take its reports; return whether it is alive."""
        try:
            data = self._ours.recv(self.REPORT.size << 8)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for number, when in self.REPORT.iter_unpack(data):
            self._seen[number] = when
        return bool(data)

    def _has_pending(self, number: int) -> bool:
        """Whether the signal waits for it, since a busy machine has not let it run: proc(5), ShdPnd."""
        try:
            with open(f"/proc/{self.pid}/status") as lines:
                masks = [int(line.split()[1], 16) for line in lines if line.startswith(("ShdPnd:", "SigPnd:"))]
        except OSError:
            return False
        return any(mask >> (number - 1) & 1 for mask in masks)

    def close(self) -> None:
        """Let it end."""
        self._ours.close()


class Signals:
    """Takes the signals `numbers` from now on and calls `tell` with each, in a thread of its own.

    Signals that were ignored stay so: nohup, and a shell's background jobs, want that. With `for_command`, a witness
    finds out which signals a command in this process group gets by itself.
    """

    def __init__(
        self, numbers: Sequence[signal.Signals], tell: Callable[[Signal], object], *, for_command: bool = False
    ) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would have the kernel reap: wait(2)
        self._numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        self._tell = tell
        self._next: deque[signal.struct_siginfo] = deque()
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        self._witness = Witness([*set(self._numbers) - {signal.SIGCHLD}]) if for_command else None
        threading.Thread(target=self._take, daemon=True).start()

    def close_witness(self) -> None:
        """Let the witness end: there is no command any more."""
        witness, self._witness = self._witness, None
        if witness:
            witness.close()

    def _take(self) -> None:
        while True:
            taken = self._next.popleft() if self._next else signal.sigwaitinfo(self._numbers)
            self._tell((taken.si_signo, taken.si_signo != signal.SIGCHLD and self._settle(taken)))

    def _settle(self, taken: signal.struct_siginfo) -> bool:
        """Swallow the copies of one signal; return whether the command's process group has got it as well."""
        number, deadline = taken.si_signo, monotonic() + SETTLE
        for_leader = number in HANG_UP and os.getsid(0) == os.getpid()
        group = taken.si_code == SI_KERNEL and not for_leader
        witness = self._witness
        if witness:
            group = witness.has_got(number, deadline) or group
        while (left := deadline - monotonic()) > 0:
            again = signal.sigtimedwait([number], left)
            if again and again.si_pid != taken.si_pid:
                self._next.append(again)
        return group


class Child:
    """A running child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None  # as a shell's $?, once it has ended
        self._lock = threading.Lock()  # after wait(2) the pid may be another process'

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended; log where that is not allowed."""
        with self._lock:
            try:
                if self.status is None:
                    os.kill(self.pid, number)
            except ProcessLookupError:
                pass
            except PermissionError:
                name = signal.Signals(number).name
                log(f"cannot pass {name} on to the command, process {self.pid}: it runs as another user (sudo?)")

    def shares_group(self) -> bool:
        """Whether it is in this process' process group."""
        try:
            return os.getpgid(self.pid) == os.getpgrp()
        except ProcessLookupError:
            return True  # it needs no signal any more

    def wait(self) -> int:
        """Wait for its end and return its status."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            if self.status is None:
                self.status = exit_status(os.waitpid(self.pid, 0)[1])
        return self.status

    def end(self, deadline: float) -> None:
        """Kill it unless it ends by itself before the time `deadline`."""
        while not self._has_ended():
            if monotonic() >= deadline:
                return self.send(signal.SIGKILL)
            sleep(PAUSE)

    def _has_ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True  # and it was waited for

    def reap(self) -> None:
        """Take its status if it has ended, and reap other children: orphans that became this process' own."""
        while True:
            try:
                with self._lock:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == self.pid:
                        self.status = exit_status(status)
            except ChildProcessError:
                return
            if not pid:
                return


def exit_status(status: int) -> int:
    """What a shell's $? is for a status of wait(2)."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def raise_descriptor_limit() -> tuple[int, int]:
    """Raise this process' soft limit of descriptors to the hard one; return both as they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def spawn(
    words: list[str],
    *,
    stdin: int = 0,
    stdout: int = 1,
    limit: tuple[int, int],
    environment: Mapping[str, str] = os.environ,
) -> Child:
    """Start the command `words` with `limit` as its RLIMIT_NOFILE. Raises `CommandError`."""
    try:
        with _descriptor_limit(limit[0]):
            pid = os.posix_spawnp(
                words[0],
                words,
                {name: value for name, value in environment.items() if name != "NOTIFY_SOCKET"},
                file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1), STDERR],
                setsigmask=(),
                setsigdef=IGNORED_BY_PYTHON,
            )
    except OSError as error:
        raise errors.CommandError(words[0], error) from None
    return Child(pid)


_limit_changes = threading.Lock()


@contextmanager
def _descriptor_limit(soft: int) -> Iterator[None]:
    """Lower this process' soft limit for a moment, for a child to inherit: posix_spawn(3) cannot set one.

    What is open stays open. Another thread that opens a descriptor just then may find none; all of them try again.
    """
    with _limit_changes:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError):  # over a hard limit that somebody has lowered since
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

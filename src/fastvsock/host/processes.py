"""Child processes and signals, for a process whose threads block signals and whose main thread is told of them.

All signals of `SIGNALS` are blocked before the first thread starts, and one thread takes them by sigwaitinfo(2). That
way, unlike in a handler, it can be seen where a signal comes from: what the kernel sends for a terminal (Ctrl-C, say)
goes to the whole foreground process group, so a child in it has got it already and must not get it twice. But a hang-up
goes to the session's leader alone (tty_signal_session_leader() in drivers/tty/tty_jobctrl.c), which this process is
under `docker run -t` and `ssh -t`; only when that one has ended, the group gets it.

A child starts as if nobody had blocked or ignored anything, and with the limit of descriptors that this process was
started with: posix_spawn(3) is what can do the former without running Python between fork and exec.
"""

import os
import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence

from .. import errors
from ..stdio import log

SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = (*ENDING, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)
HANG_UP = (signal.SIGHUP, signal.SIGCONT)  # it comes as these two
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

STDERR = (os.POSIX_SPAWN_DUP2, 2, 2)  # for the case that it was closed, and now is /dev/null and not inheritable
STACK = 1 << 18  # bytes; the default of 8 MiB is address space that some containers count

Signal = tuple[int, bool]  # its number, and whether the foreground process group has got it as well


class Signals:
    """Takes the signals `numbers` from now on and calls `tell` with each, in a thread of its own.

    What was ignored stays so: nohup, and a shell's background jobs, mean it.
    """

    def __init__(self, numbers: Sequence[signal.Signals], tell: Callable[[Signal], object]) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would have the kernel reap: wait(2)
        self._numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        self._tell = tell
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            taken = signal.sigwaitinfo(self._numbers)
            for_leader = taken.si_signo in HANG_UP and os.getsid(0) == os.getpid()
            self._tell((taken.si_signo, taken.si_code == SI_KERNEL and not for_leader))


class Child:
    """A running child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None  # as a shell has it, once it has ended
        self._lock = threading.Lock()  # a pid that was waited for may be another process' by now

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended; say so where that is not allowed."""
        with self._lock:
            try:
                if self.status is None:
                    os.kill(self.pid, number)
            except PermissionError:
                name = signal.Signals(number).name
                log(f"cannot pass {name} on to the command, process {self.pid}: it runs as another user (sudo?)")

    def wait(self) -> int:
        """Wait for its end and return its status."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self.status = exit_status(os.waitpid(self.pid, 0)[1])
        return self.status

    def reap(self) -> None:
        """See whether it has ended, and take away whatever other child has: orphans that became this process' own."""
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


def spawn(
    words: list[str],
    *,
    stdin: int = 0,
    stdout: int = 1,
    limit: tuple[int, int],
    environment: Mapping[str, str] = os.environ,
) -> Child:
    """Start the command `words`. `limit` is RLIMIT_NOFILE for it. Raises `CommandError`."""
    try:
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
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    except OSError:
        pass  # it has ended already, or may not be touched any more (setuid)
    return Child(pid)


PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs; best effort."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # without it an orphan's connection counts as a stranger's

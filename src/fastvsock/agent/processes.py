"""The agent's children: who has ended, and how a session is ended whose client has gone.

A child that has ended stays a zombie until its channel is over. Until then its pid, and so its session's number,
belongs to nobody else, and no signal can reach a stranger.
"""

import _thread
import os
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal  # signal itself imports enum, and the agent stays in memory

ESCALATION = ((_signal.SIGHUP, 1.0), (_signal.SIGTERM, 1.5), (_signal.SIGKILL, 1.0))  # signals, and seconds for each
LOOK_FIRST, LOOK_LAST = 0.01, 0.2  # seconds between two looks at a session, doubling


class Child:
    """A running command. `status` is 0 to 255 once it has ended, or -n for signal n; `wake` is an eventfd to say so."""

    def __init__(self, pid: int, wake: int) -> None:
        self.pid, self.wake = pid, wake
        self.status: int | None = None

    def signal(self, number: int) -> None:
        """Send a signal to its process group. It is still ours: a zombie, if it has ended."""
        try:
            os.killpg(self.pid, number)
        except OSError:
            pass  # all have ended, or become another user's

    def end_session(self) -> None:
        """End every process of its session: the client has gone. Takes 3.5 s at most."""
        for number, patience in ESCALATION:
            deadline = monotonic() + patience
            pause = LOOK_FIRST
            self._signal_session(number)
            while self._members():
                if monotonic() >= deadline:
                    break
                sleep(pause)
                pause = min(2 * pause, LOOK_LAST)
            else:
                return

    def _signal_session(self, number: int) -> None:
        self.signal(number)
        for pid in self._members():
            try:
                os.kill(pid, number)
                if number != _signal.SIGKILL:
                    os.kill(pid, _signal.SIGCONT)  # one that is stopped would not see it
            except OSError:
                pass  # it has ended meanwhile

    def _members(self) -> "list[int]":
        """The session's processes, zombies left out: all of its groups, where there is a /proc."""
        try:
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        except OSError:
            return [] if self.status is not None else [self.pid]
        return [pid for pid in pids if _session(pid) == self.pid]


def _session(pid: int) -> int:
    """The session of a process that is alive, or 0: proc_pid_stat(5)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = os.read(fd, 1024).rpartition(b")")[2].split()
        finally:
            os.close(fd)
    except OSError:
        return 0
    return 0 if words[0] in (b"Z", b"X") else int(words[3])


class Children:
    """The agent's running children. The server's loop calls `look` after each SIGCHLD."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._running: dict[int, Child] = {}
        self._starting = 0

    def start(self, make: "Callable[[], int]", wake: int) -> Child:
        """Start a child with `make`, which returns its pid, and raises what it likes. It may have ended by now.

        Meanwhile no orphan is taken away: one that is not known yet could be this child.
        """
        with self._lock:
            self._starting += 1
        try:
            child = Child(make(), wake)
            with self._lock:
                self._running[child.pid] = child
        finally:
            with self._lock:
                self._starting -= 1
            self.look()
        return child

    def look(self) -> None:
        """See which have ended, and wake their channels. Take away strangers: orphans, where we are process 1."""
        with self._lock:
            for child in self._running.values():
                if child.status is None:
                    child.status = _status(child.pid)
                    if child.status is not None:
                        os.eventfd_write(child.wake, 1)
            self._reap_orphans()

    def forget(self, child: Child) -> None:
        """Its channel is over: take away the zombie. It must have ended."""
        with self._lock:
            del self._running[child.pid]
            os.waitpid(child.pid, 0)
            self._reap_orphans()  # those that were behind it

    def _reap_orphans(self) -> None:
        while os.getpid() == 1 and not self._starting:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in self._running:
                return  # behind a child of ours, which is taken away in a moment
            os.waitpid(found.si_pid, 0)


def _status(pid: int) -> int | None:
    """The status of a child that has ended, which stays a zombie."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

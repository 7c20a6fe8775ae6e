"""Picks the engine that serves one direction, and changes from `splice` to `copy` where the kernel says no.

`_splice` (Cython) and `_copy` (pure Python) are twins: one class `Pump` each, the same in all but how the bytes move.
``FASTVSOCK_ENGINE=auto|splice|copy`` chooses where a caller does not. ``auto`` is splice where it was built and the
descriptors allow it; ``splice`` fails where it was not built; both change to copy for a direction that does not
splice.
"""

import os
import stat
from _thread import allocate_lock

from .. import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Engine(Protocol):
        """What the twins have in common: see `_copy.Pump`."""

        def __init__(self, source: int, target: int, wake: int, down: bool = False) -> None: ...
        @property
        def moved(self) -> int: ...
        @property
        def moved_at(self) -> float: ...
        def stop(self) -> None: ...
        def leftover(self) -> int: ...
        def run(self, look: int = -1) -> tuple[int, int]: ...


ENGINES = ("auto", "splice", "copy")

# How Pump.run() ends; the numbers stand in `_splice.pyx` once more.
EOF, SOURCE, TARGET, STOPPED, UNSUPPORTED, IDLE = range(6)


class PipeBudget:
    """What this process takes of the pipe pages that all processes of its user share, in bytes.

    Once a user's pipes hold fs.pipe-user-pages-soft pages together, every further pipe of that user, in whatever
    program, holds 8 KiB instead of 64 (pipe(7)). So the pumps of a process take a quarter of the limit at most, and
    what makes pipes larger than usual half of that: a stream that begins later still finds the usual size. The kernel
    counts the pipes of privileged processes too, so they keep to the same share.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._lock = allocate_lock()
        self._limit = limit  # None until the first pipe asks for more
        self.taken = 0

    def take(self, size: int, growing: bool) -> bool:
        """Whether `size` bytes may be taken: to grow a pipe, or for one of the usual size."""
        with self._lock:
            if self._limit is None:
                self._limit = _quarter_of_the_soft_limit()
            if self.taken + size > (self._limit / 2 if growing else self._limit):
                return False
            self.taken += size
            return True

    def give_back(self, size: int) -> None:
        """Return what `take` has granted."""
        with self._lock:
            self.taken -= size


def _quarter_of_the_soft_limit() -> float:
    try:
        with open("/proc/sys/fs/pipe-user-pages-soft", "rb") as limit:
            pages = int(limit.read())
    except OSError:
        pages = USUAL_SOFT_LIMIT
    return pages * os.sysconf("SC_PAGE_SIZE") / 4 if pages else float("inf")


USUAL_SOFT_LIMIT = 1 << 14  # pages: PIPE_DEF_BUFFERS * INR_OPEN_CUR in fs/pipe.c
budget = PipeBudget()


class Pump:
    """Moves bytes from the descriptor `source` to the descriptor `target`, by the best engine that they allow.

    `engine` is one of `ENGINES`; None means what the environment says. `wake` is the pump's own, see the twins; `down`
    marks the direction from the VMM to the near end. Raises `EngineError` for an engine that is not there.
    """

    def __init__(self, source: int, target: int, wake: int, *, down: bool = False, engine: str | None = None) -> None:
        self._ends = source, target, wake, down
        self._before = 0  # moved by pumps that have ended
        splices = choose(engine) == "splice" and _may_splice(source, target)
        self._pump: Engine = (_splice_pump if splices else _copy_pump)(*self._ends)
        self.engine = "splice" if splices else "copy"
        self._stopped = False
        self._spliced: Engine | None = None  # the pump before a change of engine; it owns the pipe with the rest
        self._copies_rest = False

    @property
    def moved(self) -> int:
        """Bytes handed to the target so far."""
        return self._before + self._pump.moved

    @property
    def moved_at(self) -> float:
        """The time of the last call that moved bytes, as `time.monotonic` counts; 0.0 if none did."""
        return self._pump.moved_at or (self._spliced.moved_at if self._spliced else 0.0)

    def stop(self) -> None:
        """Let run() end, from any thread; the caller also makes `wake` readable."""
        self._stopped = True
        self._pump.stop()

    def run(self, look: int = -1) -> tuple[int, int]:
        """Move bytes until an end is reached: EOF, SOURCE, TARGET (the end that failed) or STOPPED; an errno or 0.

        With `look` (milliseconds) it also returns, with IDLE, after a wait of that long; the next call goes on.
        """
        while True:
            end, error = self._pump.run(look)
            if end == UNSUPPORTED:
                self._spliced = self._pump
                rest = self._spliced.leftover()
            elif end == EOF and self._copies_rest:
                rest = -1
            else:
                return end, error
            self._copies_rest = rest >= 0
            self._copy_from(rest if self._copies_rest else self._ends[0])
            if self._stopped:
                return STOPPED, 0

    def _copy_from(self, source: int) -> None:
        self._before = self.moved
        self.engine = "splice+copy" if self._before else "copy"
        self._pump = _copy_pump(source, *self._ends[1:])


def choose(engine: str | None = None) -> str:
    """Either ``splice`` or ``copy``, for one of `ENGINES` or None. Raises `EngineError`."""
    wanted = engine or os.environ.get("FASTVSOCK_ENGINE") or "auto"
    source = "" if engine else "FASTVSOCK_ENGINE"
    if wanted not in ENGINES:
        raise errors.UnknownEngineError(wanted, source)
    if wanted == "copy":
        return "copy"
    try:
        from . import _splice  # noqa: F401
    except ImportError as error:
        if wanted == "splice":
            raise errors.EngineError(
                f"the splice engine is not installed ({error}): install a wheel, build with a C compiler, "
                f"or use engine auto{source and f' (from {source})'}"
            ) from None
        return "copy"
    return "splice"


def queues(fd: int, engine: str | None = None) -> tuple[int, int]:
    """The bytes in a socket's two queues: received and not read here, sent and not read there."""
    if choose(engine) == "splice":
        from ._splice import queues as count
    else:
        from ._copy import queues as count
    return count(fd)


def has_closed(fd: int, wake: int = -1, engine: str | None = None) -> bool:
    """Whether a Unix socket's peer has closed, and not just half-closed; with `wake`, wait for either to show.

    A peer that has half-closed shows POLLRDHUP, one that has closed POLLHUP: unix_poll() in net/unix/af_unix.c.
    """
    if choose(engine) == "splice":
        from ._splice import has_closed as look
    else:
        from ._copy import has_closed as look
    return look(fd, wake)


def _splice_pump(source: int, target: int, wake: int, down: bool) -> "Engine":
    from ._splice import Pump

    return Pump(source, target, wake, down)


def _copy_pump(source: int, target: int, wake: int, down: bool) -> "Engine":
    from ._copy import Pump

    return Pump(source, target, wake, down)


def _may_splice(source: int, target: int) -> bool:
    """Whether splice may serve these ends, and is the better engine for them.

    A terminal may block inside splice(2). A regular file as the target costs up to four times the CPU time of a copy
    (3.4 against 0.9 s/GiB, Linux 6.18, ext4 and tmpfs alike): the pieces of a socket's buffers lie at odd offsets, and
    are copied into the file's pages one by one.
    """
    try:
        return not (os.isatty(source) or os.isatty(target) or stat.S_ISREG(os.fstat(target).st_mode))
    except OSError:
        return False

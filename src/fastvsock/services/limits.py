"""What a service may take: descriptors, threads, connections at a time; and waiting where something is short."""

import errno
import os
import resource
import sys
from collections.abc import Callable
from time import monotonic, sleep

from ..stdio import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    Made = TypeVar("Made")


MAX_CONNECTIONS = 1023  # the VMM's own limit: Firecracker's vsock/unix/mod.rs
# A connection's: two sockets, the relay's wake-up pipe and eventfd, a pipe for each direction, and one that is open for
# a moment only, when the kernel or /proc is asked for something.
DESCRIPTORS = 2 + 3 + 4 + 1
SPARE = 32  # descriptors for everything else
SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SHORTAGE_PAUSE = 1.0  # seconds
# Seconds after which a thread that waits for the interpreter's lock wakes up to ask for it. No thread here keeps it for
# long, and a thousand that wake up 200 times a second for it leave little of a processor to the one that has it.
SWITCH_INTERVAL = 0.1


def retry_on_shortage(make: "Callable[[], Made]", patience: float = 10 * SHORTAGE_PAUSE) -> "Made":
    """What `make` returns; where it fails for a shortage it is called again, for `patience` seconds."""
    give_up = monotonic() + patience
    while True:
        try:
            return make()
        except (OSError, MemoryError) as error:
            if (isinstance(error, OSError) and error.errno not in SHORTAGE) or monotonic() >= give_up:
                raise
        sleep(SHORTAGE_PAUSE / 4)


def prepare_process() -> tuple[int, int]:
    """Make this process fit for many connections; return its limits of descriptors, soft and hard, as they were."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def affordable(limit: int) -> int:
    """`limit`, or as many connections as the descriptors are enough for, said on stderr where that is less."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return limit
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        used = SPARE  # a guess, where there is no /proc
    enough_for = max((descriptors - used - SPARE) // DESCRIPTORS, 1)
    if enough_for < limit:
        log(
            f"the limit of {descriptors} descriptors (ulimit -Hn) is enough for {enough_for} connections at once, "
            f"not {limit}: more will wait"
        )
    return min(limit, enough_for)

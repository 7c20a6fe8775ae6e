"""How much a service may use (descriptors, threads, connections at a time), and how it waits for what is short."""

import errno
import os
import resource
import sys
from collections.abc import Callable
from time import monotonic, sleep

from ..host.processes import raise_descriptor_limit
from ..stdio import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    Made = TypeVar("Made")


MAX_CONNECTIONS = 1023  # the VMM's own limit: Firecracker's vsock/unix/mod.rs
# Of a connection: two sockets, the relay's pair of sockets and eventfd by which it is woken, a pipe for each direction,
# and one that is open only for a moment, to ask the kernel or read /proc.
DESCRIPTORS = 2 + 3 + 4 + 1
SPARE = 32  # descriptors for everything else
SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SHORTAGE_PAUSE = 1.0  # seconds
# Seconds after which a thread that waits for the interpreter's lock wakes up to ask for it. No thread here holds it for
# long, and a thousand threads that wake up 200 times a second leave little of a processor to the one that holds it.
SWITCH_INTERVAL = 0.1


def retry_on_shortage(make: "Callable[[], Made]", patience: float = 10 * SHORTAGE_PAUSE) -> "Made":
    """Return what `make` does; where something is short, call it again for `patience` seconds."""
    give_up = monotonic() + patience
    while True:
        try:
            return make()
        except (OSError, MemoryError) as error:
            if (isinstance(error, OSError) and error.errno not in SHORTAGE) or monotonic() >= give_up:
                raise
        sleep(SHORTAGE_PAUSE / 4)


def prepare_process() -> tuple[int, int]:
    """Prepare this process for many connections; return its soft and hard limit of descriptors as they were."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    return raise_descriptor_limit()


def affordable(limit: int, *, queue: bool = True) -> int:
    """`limit`, or the number of connections that the descriptors allow, with a line on stderr where that is less."""
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
            f"ulimit -Hn is {descriptors}: serving at most {enough_for} connections at a time instead of {limit}; "
            + ("others wait" if queue else "others are closed")
        )
    return min(limit, enough_for)

"""How a service announces that it listens: a port file, a ready descriptor, the service manager.

listen(2) is what makes the kernel accept, so everything here comes after it.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from time import sleep

from .. import errors
from ..host.addresses import Address

FIFO_PAUSE = 0.02  # seconds


class PortFile:
    """A file with the port (or the path of a Unix socket) and a newline: whole from its first moment.

    A regular file at that place is replaced. Anything else, a FIFO or /dev/stdout for instance, is written to as a
    shell's ``>`` does, and stays. A FIFO's reader is waited for, until `give_up` says otherwise.
    """

    def __init__(self, path: str, address: Address, give_up: Callable[[], object] = lambda: False) -> None:
        text = os.fsencode(f"{address.path or address.port}\n")
        self._path = path
        self._made: os.stat_result | None = None
        try:
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                _write_into(path, text, give_up)
            else:
                self._made = _replace(path, text)
        except OSError as error:
            raise errors.FastvsockError(f"cannot write the port file {path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it, if it is a file of ours and no other process has put its own in its place."""
        try:
            if self._made and os.path.samestat(os.lstat(self._path), self._made):
                os.unlink(self._path)
        except OSError:
            pass


def _replace(path: str, text: bytes) -> os.stat_result:
    """Put a new file in the place of `path`, at once; return which one it is."""
    # No pid in the name: in containers the same one comes back, and finds what was left behind by one that was killed.
    draft = os.path.join(os.path.dirname(path), f".fastvsock-{os.urandom(8).hex()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, text)
        made = os.fstat(fd)
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    finally:
        os.close(fd)
    return made


def _write_into(path: str, text: bytes, give_up: Callable[[], object]) -> None:
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):  # fifo(7): no reader yet
                raise
            if give_up():
                raise InterruptedError(errno.EINTR, "nobody has opened it to read") from None
        sleep(FIFO_PAUSE)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def notify(state: str) -> None:
    """Tell the service manager, where there is one: sd_notify(3). A leading @ means an abstract address."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            pass  # as sd_notify(3) has it: a service works without


def check_ready(fd: int) -> None:
    """Raise `UsageError` unless a line can be written to `fd`. To be asked before anything of ours is opened."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return
    except (OSError, OverflowError, ValueError):
        pass
    raise errors.UsageError(f"--ready-fd {fd}: no descriptor of that number is open for writing")

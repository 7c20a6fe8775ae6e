"""How a service announces that it listens: a port file, a ready descriptor, the service manager.

The kernel accepts connections from listen(2) on, so all of this comes after it.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from time import sleep

from .. import errors
from ..host.addresses import Address, unix_name

FIFO_PAUSE = 0.02  # seconds


class PortFile:
    """A file with the port (or the path of a Unix socket) and a newline, complete from the moment it exists.

    A regular file at `path` is replaced. Anything else, such as a FIFO or /dev/stdout, is written to as a shell's ``>``
    does, and stays. The reader of a FIFO is waited for until `give_up` returns true.
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
        """Remove the file that this object made, unless another process has replaced it."""
        try:
            if self._made and os.path.samestat(os.lstat(self._path), self._made):
                os.unlink(self._path)
        except OSError:
            pass


def _replace(path: str, text: bytes) -> os.stat_result:
    """Replace `path` by a new file, atomically; return which file it is."""
    # No pid in the name: in a container the next process gets the same one, and would find the file of a killed one.
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
                raise InterruptedError(errno.EINTR, "no process has opened it to read") from None
        sleep(FIFO_PAUSE)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def notify(state: str) -> None:
    """Send `state` to the service manager, if there is one: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(errors="surrogateescape"), unix_name(address))
    except OSError:
        pass  # a service works without, as sd_notify(3) recommends


def check_ready(fd: int) -> None:
    """Raise `UsageError` unless `fd` is open for writing. To be called before this program opens descriptors."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return
    except (OSError, OverflowError, ValueError):
        pass
    raise errors.UsageError(f"invalid --ready-fd {fd}: expected the number of a descriptor that is open for writing")

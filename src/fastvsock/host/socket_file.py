"""The file of a listening Unix socket: how it is made, distinguished from a stale one, and removed.

A stale file is replaced, a live one never. A *datagram* socket that connects to it finds out which it is: where no
process has the socket open any more, connect(2) is refused; a live one has the wrong type (unix(7), EPROTOTYPE; one
with a peer, EPERM). The process that listens there does not notice. A stream would reach it as a connection, and a
service of one connection would serve that one.

The folder is locked from that look to the bind(2) (flock on the folder itself, which leaves nothing behind), so that of
two services that start at the same time none replaces the other's new socket. Any user who may read the folder can hold
such a lock for ever, so nothing else depends on it, and nothing waits for it longer than `LOCK_PATIENCE`.
"""

import errno
import fcntl
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from ..errors import SUN_PATH_MAX

LOCK_PATIENCE, LOCK_PAUSE = 1.0, 0.02  # seconds

# Why it is impossible to listen; other reasons are the kernel's own.
IN_USE = "another process listens on it"
NOT_A_SOCKET = "the path exists and is not a socket"
LOCKED = "the file exists, and another process keeps its folder locked (flock), so it may be in use"


_umask_changes = threading.Lock()


@contextmanager
def _umask(mode: int | None) -> Iterator[None]:
    """Give a file `mode` from its first moment. The umask is the process', so one thread at a time changes it."""
    if mode is None:
        yield
        return
    with _umask_changes:
        before = os.umask(0o777 & ~mode)
        try:
            yield
        finally:
            os.umask(before)


class SocketFile:
    """A Unix socket's path, with its folder held open: its length and a change of directory do not matter.

    `address` is what bind(2) and connect(2) take: unix(7), sun_path. Raises `OSError` where there is no such folder.
    """

    def __init__(self, path: str) -> None:
        folder, self._name = os.path.split(path)
        self._made: os.stat_result | None = None
        self._folder = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.address = path
        if len(os.fsencode(path)) > SUN_PATH_MAX:
            self.address = f"/proc/self/fd/{self._folder}/{self._name}"

    def __enter__(self) -> "SocketFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder; the file stays."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def listen(self, backlog: int, mode: int | None = None) -> socket.socket:
        """A socket that listens there and does not block; its file gets `mode`, from its first moment, or the umask's.

        Raises `OSError`, with a `strerror` for people: EADDRINUSE where a process has the socket open, EEXIST where the
        path is something else, EAGAIN where another process has locked the folder, and those of bind(2) and listen(2).
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not self._bind(sock, mode):
                self._replace_stale(sock, mode)
            self._made = self._look()
            sock.setblocking(False)
            sock.listen(backlog)
        except BaseException:
            sock.close()
            self.remove()
            raise
        return sock

    def remove(self) -> None:
        """Remove the file that `listen` made, unless another process has put its own in its place."""
        made, self._made = self._made, None
        if made is None:
            return
        try:
            locked = self._lock()  # for a process that is just looking at the file; without the lock it still goes
            if os.path.samestat(self._look(), made):
                os.unlink(self._name, dir_fd=self._folder)
            if locked:
                self._unlock()
        except OSError:
            pass  # gone already, or its folder is

    def _bind(self, sock: socket.socket, mode: int | None) -> bool:
        """Bind, and return whether the path was free."""
        try:
            with _umask(mode):
                sock.bind(self.address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    def _replace_stale(self, sock: socket.socket, mode: int | None) -> None:
        if not self._is_stale() and self._bind(sock, mode):  # gone since
            return
        if not self._lock():
            raise BlockingIOError(errno.EAGAIN, LOCKED)
        try:
            if self._is_stale():
                os.unlink(self._name, dir_fd=self._folder)
            if not self._bind(sock, mode):
                raise OSError(errno.EADDRINUSE, IN_USE)
        finally:
            self._unlock()

    def _is_stale(self) -> bool:
        """Whether the path is a socket that no process has open. Raises `OSError` for anything else that exists."""
        try:
            if not stat.S_ISSOCK(self._look().st_mode):
                raise FileExistsError(errno.EEXIST, NOT_A_SOCKET)
        except FileNotFoundError:
            return False
        number = probe(self.address)
        if number == errno.ENOENT:
            return False
        if number in (0, errno.EPROTOTYPE, errno.EPERM):
            raise OSError(errno.EADDRINUSE, IN_USE)
        if number != errno.ECONNREFUSED:
            raise OSError(number, os.strerror(number))
        return True

    def _look(self) -> os.stat_result:
        return os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)

    def _lock(self) -> bool:
        """Whether the folder could be locked within `LOCK_PATIENCE`."""
        give_up = monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if monotonic() >= give_up:
                    return False
            sleep(LOCK_PAUSE)

    def _unlock(self) -> None:
        fcntl.flock(self._folder, fcntl.LOCK_UN)


def probe(address: str | bytes) -> int:
    """What connect(2) reports to a datagram socket, as an errno or 0. The process that listens does not notice.

    EPROTOTYPE: a process has a stream socket open there. ECONNREFUSED: none has. 0 or EPERM: a datagram socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        return sock.connect_ex(address)

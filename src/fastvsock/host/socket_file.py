"""The file of a listening Unix socket: made, told from a stale one, and removed again.

A stale file is replaced, a live one never. To tell them apart, a *datagram* socket is connected to it: where nobody
holds the socket any more that is refused, a live one has the wrong type (unix(7), EPROTOTYPE; one that has a peer,
EPERM), and whoever listens there sees nothing of it: a service of one connection would take a stream for that one.

From that look to the bind(2) the folder is locked (flock on the folder itself, which leaves nothing behind), so two
that start at once cannot take each other's new socket for a stale one. Anybody who may read the folder can hold such
a lock for ever, so nothing else needs it, and nobody waits for it for more than `LOCK_PATIENCE`.
"""

import errno
import fcntl
import os
import socket
import stat
from time import monotonic, sleep

from ..errors import SUN_PATH_MAX

LOCK_PATIENCE, LOCK_PAUSE = 1.0, 0.02  # seconds

# Why there can be no listening, by errno; others are the kernel's own.
IN_USE = "another process listens on it"
NO_SOCKET = "there is something, and it is no socket"
LOCKED = "it is there, and another process keeps its folder locked (flock), so whether it is in use cannot be told"


class SocketFile:
    """A path for a Unix socket, with its folder held open: no length of it and no change of directory does harm.

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
        """Let go of the folder; the file stays."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def listen(self, backlog: int, mode: int | None = None) -> socket.socket:
        """A socket that listens there and does not block; its file gets `mode`, from its first moment, or the umask's.

        Raises `OSError`, its `strerror` for people: EADDRINUSE where somebody holds the socket that is there, EEXIST
        where something else is, EAGAIN where that cannot be told, and whatever bind(2) and listen(2) have to say.
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
            locked = self._lock()  # out of regard for one who is just looking at the file; without it, it still goes
            if os.path.samestat(self._look(), made):
                os.unlink(self._name, dir_fd=self._folder)
            if locked:
                self._unlock()
        except OSError:
            pass  # gone already, or its folder is

    def _bind(self, sock: socket.socket, mode: int | None) -> bool:
        """Whether there was nothing yet."""
        umask = None if mode is None else os.umask(0o777 & ~mode)
        try:
            sock.bind(self.address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        finally:
            if umask is not None:
                os.umask(umask)
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
        """Whether a socket that no process holds is there; anything else that is there raises `OSError`."""
        try:
            if not stat.S_ISSOCK(self._look().st_mode):
                raise FileExistsError(errno.EEXIST, NO_SOCKET)
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

"""Whose connection it is: is the process at its other end a descendant of ours?

Unix sockets tell: SO_PEERCRED holds the pid and the uid of whoever called connect(2). TCP does not, but on loopback
both ends are in this kernel: the line of /proc/net/tcp with our two addresses swapped is the other end's, and it has
the socket's inode, which a process that holds it shows in /proc/PID/fd. Only descendants are looked into.

Descendants are found from the top: this process is made a *subreaper* (prctl(2)), so a descendant whose parent ended
becomes our own child and stays in the tree. A process that may not be looked into (it runs as another user, or is not
dumpable: proc(5)) leaves the question open; then the uid decides: the socket must belong to a user that such a process
runs as. A connection that is closed already when it is looked at has no owner any more and is nobody's.
"""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from time import sleep

from .service import Connection

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
LOOKS = 3  # a process that changes parents may be missed by one look at the tree
PAUSE = 0.01  # seconds between them


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs; best effort."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # without it an orphan's connection counts as a stranger's


class Family:
    """The descendants of this process, but for the children that it has already when this object is made."""

    def __init__(self) -> None:
        self._strangers = set(_children(os.getpid()))

    def owns(self, connection: Connection) -> bool:
        """Whether the other end of an accepted connection is a descendant's."""
        return any(self._look(connection.sock, look) for look in range(LOOKS))

    def _look(self, sock: socket.socket, look: int) -> bool:
        sleep(PAUSE if look else 0)
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = peer_credentials(sock)
            return self._has(pid, uid)
        owner = _tcp_owner(sock)
        return owner is not None and owner[1] > 0 and self._holds(*owner)

    def members(self) -> Iterator[int]:
        """Their pids, parents first."""
        todo = [pid for pid in _children(os.getpid()) if pid not in self._strangers]
        while todo:
            pid = todo.pop()
            yield pid
            todo += _children(pid)

    def _has(self, pid: int, uid: int) -> bool:
        """Whether `pid` is one of them, or has gone, and was of our user: who it was cannot be told any more."""
        if pid in self.members():
            return True
        return uid == os.getuid() and not os.path.exists(f"/proc/{pid}")

    def _holds(self, uid: int, inode: int) -> bool:
        """Whether one of them has the socket `inode` of the user `uid` open, or may have."""
        hidden = set()
        for pid in self.members():
            found = _has_open(pid, inode)
            if found:
                return True
            if found is None:
                hidden.add(_user(pid))
        return uid in hidden


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of whoever connected to a Unix socket: unix(7)."""
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid, gid


def _children(pid: int) -> list[int]:
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for text in lists for child in text.split()]
    except (FileNotFoundError, ProcessLookupError):
        # A thread has ended meanwhile, or the process, or the kernel was built without CONFIG_PROC_CHILDREN.
        return [child for child in _processes() if _parent(child) == pid] if os.path.exists(f"/proc/{pid}") else []


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    try:
        # The name, in parentheses, may hold anything: proc(5).
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _has_open(pid: int, inode: int) -> bool | None:
    """Whether a process has a socket open; None where that may not be asked."""
    link = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"{folder}/{descriptor}") == link:
                return True
        except FileNotFoundError:
            continue
        except PermissionError:
            return None
    return False


def _user(pid: int) -> int | None:
    """The user whose rights a process has; the owner of its /proc folder may be root for another reason: proc(5)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[2]) for line in lines if line.startswith("Uid:")), None)


def _tcp_owner(sock: socket.socket) -> tuple[int, int] | None:
    """uid and inode of the socket at the other end of a connection inside this machine.

    The inode is 0 where that socket is closed; None where there is none, or no more.
    """
    table = "/proc/net/tcp6" if sock.family == socket.AF_INET6 else "/proc/net/tcp"
    try:
        local, remote = _in_table(sock.getpeername()), _in_table(sock.getsockname())
        with open(table) as lines:
            for line in lines:
                if local in line:
                    fields = line.split()
                    if fields[1] == local and fields[2] == remote:
                        return int(fields[7]), int(fields[9])
    except OSError:
        pass
    return None


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end of a TCP connection inside this machine is closed, and not only half-closed."""
    if sock.family == socket.AF_UNIX:
        return False
    owner = _tcp_owner(sock)
    return owner is not None and not owner[1]


def _in_table(address: tuple[str, int]) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the machine's byte order."""
    host, port = address[:2]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"

"""Whose connection it is: is the process at its other end a descendant of ours?

Unix sockets tell: SO_PEERCRED holds the pid and the uid of whoever called connect(2). TCP does not, but on loopback
both ends are in this kernel, and it tells the uid and the inode of the socket at the other end (sockdiag.py); a process
that holds it shows the inode in /proc/PID/fd. Only descendants are looked into.

Descendants are found from the top: this process is made a *subreaper* (prctl(2)), so a descendant whose parent ended
becomes our own child and stays in the tree. A process that may not be looked into (it runs as another user, is not
dumpable, or /proc hides it or is not there: proc(5)) leaves the question open; then the uid decides: the socket must
belong to a user that such a process runs as.

A client may connect, send, close and be gone before anybody looks. Its socket has no inode any more, but a user for as
long as the end of file is not acknowledged, so the kernel is asked right at accept(2); and where the process cannot be
told any more, the user decides: ours is served. After that only a remnant is left, which belongs to nobody. Whoever it
was could be any user of this machine, so that connection is closed, what it sent is lost, and this is said and counted.
"""

import errno
import os
import socket
import struct
import termios
from time import sleep

from ..host.sock_diag import FIN_WAIT2, TIME_WAIT, Found, other_end
from .acceptor import Connection, queued

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
LOOKS = 3  # a process that changes parents may be missed by one look at the tree
PAUSE = 0.01  # seconds between them
KEEPS_USERS = (6, 17)  # Linux: before, a closed socket's user is 0 (sock_i_uid), and since, the one it had (sk_uid)

STRANGER = "closed, for it is none of the command's own connections"
BROKEN = "closed, for its client had broken it off"
CLOSED = "closed, for its client had closed it before the kernel could tell whose it is"
LOST = CLOSED + ", and what it sent is lost (a Unix socket always tells: --listen unix:PATH)"
UNTOLD = (
    "closed, for nobody can tell whose it is: there is neither netlink (sock_diag) nor /proc "
    "(a Unix socket tells: --listen unix:PATH)"
)


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
        self._strangers = set(_children(os.getpid()) or ())

    def meet(self, connection: Connection) -> None:
        """Note what can be told of a connection right when it is accepted, for later it may be less."""
        if connection.sock.family != socket.AF_UNIX:
            try:
                connection.owner = other_end(connection.sock)
            except OSError:
                pass  # `refusal` asks again

    def refusal(self, connection: Connection) -> str:
        """Why an accepted connection is not to be served; empty where its other end is a descendant's, or may be."""
        if connection.sock.family == socket.AF_UNIX:
            return "" if any(self._connected(connection.sock, look) for look in range(LOOKS)) else STRANGER
        try:
            refusal = self._judge(connection)
        except OSError as error:
            refusal = BROKEN if error.errno == errno.ENOTCONN else UNTOLD
        if refusal == CLOSED and queued(connection.sock, termios.FIONREAD):
            refusal = LOST
        connection.lost = refusal in (LOST, UNTOLD)
        return refusal

    def _connected(self, sock: socket.socket, look: int) -> bool:
        """Whether one of them called connect(2), or may have."""
        sleep(PAUSE if look else 0)
        pid, uid, _ = peer_credentials(sock)
        members, hidden = self._survey()
        return pid in members or uid in hidden or (uid == os.getuid() and not _is_there(pid))

    def _judge(self, connection: Connection) -> str:
        met = found = connection.owner or other_end(connection.sock)
        for look in range(LOOKS):
            if look:
                sleep(PAUSE)
                found = other_end(connection.sock)
            if not found or not found[2]:
                return self._judge_closed(connection.sock, met, found)
            if self._holds(*found[1:]):
                return ""
        return STRANGER

    def _judge_closed(self, sock: socket.socket, *seen: Found | None) -> str:
        users = {found[1] for found in seen if found and _tells_user(found)}
        if users:
            return "" if users & (self._survey()[1] | {os.getuid()}) else STRANGER
        return CLOSED if any(seen) or _is_local(sock) else STRANGER

    def _holds(self, uid: int, inode: int) -> bool:
        """Whether one of them has the socket `inode` of the user `uid` open, or may have."""
        members, hidden = self._survey()
        for pid in members:
            found = _has_open(pid, inode)
            if found:
                return True
            if found is None:
                hidden |= _users(pid)
        return uid in hidden

    def _survey(self) -> tuple[set[int], set[int]]:
        """Their pids, and the users of those among them whose children cannot be told."""
        found: set[int] = set()
        hidden: set[int] = set()
        todo = [os.getpid()]
        while todo:
            pid = todo.pop()
            children = _children(pid)
            if children is None:
                hidden |= _users(pid)
                continue
            new = set(children) - self._strangers - found
            found |= new
            todo += new
        return found, hidden


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of whoever connected to a Unix socket: unix(7)."""
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid, gid


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end of a TCP connection inside this machine is closed, and not only half-closed."""
    if sock.family == socket.AF_UNIX:
        return False
    try:
        found = other_end(sock)
    except OSError:
        return False
    return found is not None and not found[2]


def _tells_user(found: Found) -> bool:
    """Whether the user of a socket is its own: that of a closed one may be 0 for want of a better."""
    state, uid, inode = found
    if inode or uid:
        return True
    numbers = os.uname().release.split(".")[:2]
    keeps = all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) >= KEEPS_USERS
    return keeps and state not in (FIN_WAIT2, TIME_WAIT)


def _is_local(sock: socket.socket) -> bool:
    """Whether the other end has an address of this machine, as far as one can see."""
    host = sock.getpeername()[0].removeprefix("::ffff:")
    return host.startswith("127.") or host in ("::1", sock.getsockname()[0].removeprefix("::ffff:"))


def _children(pid: int) -> list[int] | None:
    """The children of a process, none where it has ended; None where that cannot be told."""
    try:
        lists = [_read(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")]
        return [int(child) for text in lists for child in text.split()]
    except (FileNotFoundError, ProcessLookupError):
        pass
    except OSError:
        return None
    if os.path.exists(f"/proc/{pid}"):  # a thread has ended meanwhile, or there is no CONFIG_PROC_CHILDREN
        return [child for child in _processes() if _stat(child)[1] == pid]
    return None if _is_there(pid) else []


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> tuple[str, int]:
    """State and parent of a process; nothing and 0 where that cannot be told."""
    try:
        # The name, in parentheses, may hold anything: proc(5).
        state, parent = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return "", 0
    return state, int(parent)


def _is_there(pid: int) -> bool:
    """Whether there is such a process, which /proc may hide: kill(2)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid > 0  # 0 stands for one outside of our pid namespace


def _has_open(pid: int, inode: int) -> bool | None:
    """Whether a process has a socket open; None where that may not be asked."""
    link = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return None if _is_there(pid) and _stat(pid)[0] != "Z" else False  # a zombie has nothing open, but hides it
    for descriptor in descriptors:
        try:
            if os.readlink(f"{folder}/{descriptor}") == link:
                return True
        except PermissionError:
            return None
        except OSError:
            continue  # closed meanwhile
    return False


def _users(pid: int) -> set[int]:
    """The user whose rights a process has; where that is hidden it is taken to be ours, or root as for sudo.

    The owner of its /proc folder may be root for another reason: proc(5).
    """
    try:
        lines = _read(f"/proc/{pid}/status").splitlines()
    except OSError:
        return {0, os.getuid()} if _is_there(pid) else set()
    return {int(line.split()[2]) for line in lines if line.startswith("Uid:")}

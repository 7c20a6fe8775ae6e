"""Whose connection it is: is the process at its other end a descendant of ours?

Unix sockets tell: SO_PEERCRED holds the pid and the uid of whoever called connect(2). TCP does not, but on loopback
both ends are in this kernel, which knows the uid and the inode of the socket at the other end (host/sock_diag.py). A
process that holds it shows the inode in /proc/PID/fd. Only descendants are looked into.

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
from time import sleep

from ..engines import queues
from ..host.process_tree import children_of, exists, has_open, peer_credentials, users_of
from ..host.sock_diag import FIN_WAIT2, TIME_WAIT, Found, other_end
from .connection import Connection

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


class Family:
    """The descendants of this process, but for the children that it has already when this object is made."""

    def __init__(self) -> None:
        self._strangers = set(children_of(os.getpid()) or ())

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
        if refusal == CLOSED and queues(connection.sock.fileno())[0]:
            refusal = LOST
        connection.lost = refusal in (LOST, UNTOLD)
        return refusal

    def _connected(self, sock: socket.socket, look: int) -> bool:
        """Whether one of them called connect(2), or may have."""
        sleep(PAUSE if look else 0)
        pid, uid, _ = peer_credentials(sock)
        members, hidden = self._survey()
        return pid in members or uid in hidden or (uid == os.getuid() and not exists(pid))

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
            found = has_open(pid, inode)
            if found:
                return True
            if found is None:
                hidden |= users_of(pid)
        return uid in hidden

    def _survey(self) -> tuple[set[int], set[int]]:
        """Their pids, and the users of those among them whose children cannot be told."""
        found: set[int] = set()
        hidden: set[int] = set()
        todo = [os.getpid()]
        while todo:
            pid = todo.pop()
            children = children_of(pid)
            if children is None:
                hidden |= users_of(pid)
                continue
            new = set(children) - self._strangers - found
            found |= new
            todo += new
        return found, hidden


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

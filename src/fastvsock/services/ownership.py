"""Decides whose a connection is: whether the process at its other end is a descendant of this one.

For a Unix socket, SO_PEERCRED holds the pid and the uid of the process that called connect(2). TCP has no such thing,
but on loopback both ends are in this kernel, which knows the uid and the inode of the socket at the other end
(host/sock_diag.py). The process that holds it shows the inode in /proc/PID/fd. Only descendants are looked into.

The uid is compared first, in the accepting thread: a connection of a user that no descendant runs as is closed before
it takes a thread or a slot. A process outside of our pid namespace has pid 0 in SO_PEERCRED, and cannot be a
descendant.

Descendants are found from the top: this process is made a *subreaper* (prctl(2)), so a descendant whose parent ended
becomes our own child and stays in the tree. Where /proc hides a process, the uid decides: the socket must belong to a
user that such a process runs as. It hides processes of other users, those that are not dumpable, and all of them where
it is mounted with hidepid, for another pid namespace or not at all: proc(5).

A client may connect, send, close and be gone before anybody looks. Its socket has no inode any more, but a user until
the end of file is acknowledged, so the kernel is asked right at accept(2). Where the process is not known any more, the
user decides: ours is served. After that only a remnant without a user is left. Its client may have been any user of
this machine, so the connection is closed and counted as unidentified. That never changes the exit status of the
service, since any user could cause it.
"""

import errno
import os
import socket
from time import sleep

from ..engines import queues
from ..host.process_tree import children_of, exists, has_open, is_own_proc, peer_credentials, users_of
from ..host.sock_diag import FIN_WAIT2, TIME_WAIT, Found, other_end
from .connection import Connection

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
LOOKS = 3  # one look at the tree may miss a process that changes parents
PAUSE = 0.01  # seconds between them
KEEPS_USERS = (6, 17)  # Linux: before, a closed socket's user is 0 (sock_i_uid), and since, the one it had (sk_uid)

STRANGER = "rejected: the client is neither the command nor one of its descendants"
BROKEN = "rejected: the client reset the connection"
CLOSED = "rejected: the client disconnected before its owner could be determined"
ADVICE = "(use --listen unix:PATH, where the owner is always known)"
DISCARDED = f"{CLOSED}; what it sent was discarded {ADVICE}"
UNKNOWN = f"rejected: the owner of the connection is unknown, since neither sock_diag nor /proc is available {ADVICE}"


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs; best effort."""
    try:
        from ..engines import _splice
    except ImportError:  # installed without a C compiler, for a Python that can load libc
        pass
    else:
        _splice.adopt_orphans()
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # without it, the connections of orphans are rejected


class Family:
    """The descendants of this process, except for the children that it has when this object is made."""

    def __init__(self) -> None:
        self._strangers = set(children_of(os.getpid()) or ())

    def on_accept(self, connection: Connection) -> str:
        """Look at a connection while the kernel knows most about it; return why it is rejected if that is clear."""
        sock = connection.sock
        try:
            if sock.family == socket.AF_UNIX:
                pid, uid, _ = peer_credentials(sock)
                return "" if pid and self._may_be_of(uid, pid) else STRANGER
            connection.owner = found = other_end(sock)
            if not found or not found[2]:
                return self._report(connection, self._judge_closed(sock, found))
            return "" if self._may_be_of(found[1]) else STRANGER
        except OSError as error:
            return BROKEN if error.errno == errno.ENOTCONN else ""  # `reject_reason` asks again

    def reject_reason(self, connection: Connection) -> str:
        """Why an accepted connection is rejected; empty where its other end is a descendant's, or may be."""
        if connection.sock.family == socket.AF_UNIX:
            return "" if any(self._connected(connection.sock, look) for look in range(LOOKS)) else STRANGER
        try:
            return self._report(connection, self._judge(connection))
        except OSError as error:
            return self._report(connection, BROKEN if error.errno == errno.ENOTCONN else UNKNOWN)

    def _report(self, connection: Connection, reason: str) -> str:
        connection.unidentified = reason in (CLOSED, UNKNOWN)
        return DISCARDED if reason == CLOSED and queues(connection.sock.fileno())[0] else reason

    def _may_be_of(self, uid: int, pid: int = 0) -> bool:
        """Whether a client of the user `uid`, or the process `pid`, can be a descendant."""
        return uid == os.getuid() or any(self._has_user(uid, pid) for _ in range(LOOKS))

    def _has_user(self, uid: int, pid: int) -> bool:
        members, hidden = self._survey()
        return pid in members or uid in hidden or any(uid in users_of(member) for member in members)

    def _connected(self, sock: socket.socket, look: int) -> bool:
        """Whether a descendant called connect(2), or may have."""
        sleep(PAUSE if look else 0)
        pid, uid, _ = peer_credentials(sock)
        if not pid:
            return False
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
        users = {found[1] for found in seen if found and _has_own_user(found)}
        if users:
            return "" if users & (self._survey()[1] | {os.getuid()}) else STRANGER
        return CLOSED if any(seen) or _is_local(sock) else STRANGER

    def _holds(self, uid: int, inode: int) -> bool:
        """Whether a descendant has the socket `inode` of the user `uid` open, or may have."""
        members, hidden = self._survey()
        for pid in members:
            found = has_open(pid, inode)
            if found:
                return True
            if found is None:
                hidden |= users_of(pid)
        return uid in hidden

    def _survey(self) -> tuple[set[int], set[int]]:
        """The descendants' pids, and the users of those whose children /proc hides."""
        if not is_own_proc():
            return set(), {0, os.getuid()}
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


def _has_own_user(found: Found) -> bool:
    """Whether the user of a socket is its own: a closed socket's may be 0 because the kernel does not keep it."""
    state, uid, inode = found
    if inode or uid:
        return True
    numbers = os.uname().release.split(".")[:2]
    keeps = all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) >= KEEPS_USERS
    return keeps and state not in (FIN_WAIT2, TIME_WAIT)


def _is_local(sock: socket.socket) -> bool:
    """Whether the other end has an address of this machine, as far as the addresses show."""
    host = sock.getpeername()[0].removeprefix("::ffff:")
    return host.startswith("127.") or host in ("::1", sock.getsockname()[0].removeprefix("::ffff:"))

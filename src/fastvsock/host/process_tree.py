"""The processes of this machine as /proc shows them: children, open sockets, users. See proc(5)."""

import os
import socket
import struct


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the process that connected to a Unix socket: unix(7).

    A process outside of our pid namespace has pid 0.
    """
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid, gid


def children_of(pid: int) -> list[int] | None:
    """The children of a process, none where it has ended; None where /proc hides them."""
    try:
        lists = [_read(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")]
        return [int(child) for text in lists for child in text.split()]
    except (FileNotFoundError, ProcessLookupError):
        pass
    except OSError:
        return None
    if os.path.exists(f"/proc/{pid}"):  # a thread has ended meanwhile, or there is no CONFIG_PROC_CHILDREN
        return [child for child in processes() if state_and_parent(child)[1] == pid]
    return None if exists(pid) else []


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def is_own_proc() -> bool:
    """Whether /proc shows the pid namespace that this process is in, and not the one that it was started from."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def processes() -> list[int]:
    """The pids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def state_and_parent(pid: int) -> tuple[str, int]:
    """State and parent of a process; empty and 0 where /proc hides them."""
    try:
        # The name, in parentheses, may hold anything: proc(5).
        state, parent = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return "", 0
    return state, int(parent)


def exists(pid: int) -> bool:
    """Whether there is such a process, which /proc may hide. To kill(2), pids of 0 and less are groups."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def has_open(pid: int, inode: int) -> bool | None:
    """Whether a process has a socket open; None where this user may not know."""
    link = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:
        hidden = exists(pid) and state_and_parent(pid)[0] != "Z"  # a zombie's folder cannot be read, and has nothing
        return None if hidden else False
    for descriptor in descriptors:
        try:
            if os.readlink(f"{folder}/{descriptor}") == link:
                return True
        except PermissionError:
            return None
        except OSError:
            continue  # closed meanwhile
    return False


def users_of(pid: int) -> set[int]:
    """The user whose rights a process has; where /proc hides it, both ours and root (as for sudo).

    The owner of its /proc folder may be root for another reason: proc(5).
    """
    try:
        lines = _read(f"/proc/{pid}/status").splitlines()
    except OSError:
        return {0, os.getuid()} if exists(pid) else set()
    return {int(line.split()[2]) for line in lines if line.startswith("Uid:")}


def name_of(pid: int) -> str:
    """The name that a process has, in full; empty where /proc hides it.

    The kernel keeps 15 bytes of it, which are the program's, the script's, or of the process's own choice: proc(5).
    """
    try:
        name = _read(f"/proc/{pid}/comm").rstrip("\n")
    except OSError:
        return ""
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return name  # another user's
    return program if program.startswith(name) else name

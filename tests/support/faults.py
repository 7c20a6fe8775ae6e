"""What the tests of faults share: to fill what can be filled, to await what shows, and to count what is left."""

import gc
import os
import select
import socket
import struct
import subprocess
import time

from support import HANG, Listener, descriptors, write_all

MIB = 1 << 20
SETTLED = 0.3  # seconds without a byte moving, after which a producer counts as stopped


def complaint(child: subprocess.Popen[bytes]) -> tuple[int, list[bytes]]:
    """Exit status and lines on stderr."""
    assert child.stderr is not None
    status = child.wait(HANG)
    return status, child.stderr.read().splitlines()


def await_readable(sock: socket.socket) -> None:
    """Until something has arrived."""
    assert select.select([sock], [], [], HANG)[0]


def await_end(sock: socket.socket) -> None:
    """Until the other side has closed; a reset is that too, where it had not read everything."""
    try:
        while sock.recv(MIB):
            pass
    except ConnectionResetError:
        pass


def reset(sock: socket.socket) -> None:
    """Close a TCP connection so that its peer gets a reset and no end of file: socket(7), SO_LINGER."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def push(fd: int, data: bytes) -> int:
    """Write until nothing is taken any more, or all of `data`: how many bytes that was."""
    blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    pushed = 0
    while pushed < len(data) and select.select([], [fd], [], SETTLED)[1]:
        try:
            pushed += os.write(fd, data[pushed : pushed + MIB])
        except BlockingIOError:  # a socket polls writable a little before it takes anything
            time.sleep(SETTLED)
            break
    os.set_blocking(fd, blocking)
    return pushed


def say_hello(child: subprocess.Popen[bytes], far: socket.socket) -> None:
    """A byte each way: the relay runs."""
    assert child.stdin is not None
    assert child.stdout is not None
    write_all(child.stdin.fileno(), b"u")
    assert far.recv(9) == b"u"
    far.sendall(b"d")
    assert os.read(child.stdout.fileno(), 9) == b"d"


def idle(listener: Listener, child: subprocess.Popen[bytes]) -> socket.socket:
    """It relays, and nothing moves."""
    far = listener.accept()
    say_hello(child, far)
    return far


def settled(before: tuple[dict[str, str], int]) -> tuple[dict[str, str], int]:
    """Descriptors and threads, after a while: a thread, and what it refers to, lives a little longer than its work."""
    deadline = time.monotonic() + HANG
    while (now := (descriptors(), threads())) != before and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    return now


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))

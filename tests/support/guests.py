"""Raw sockets at the host's side of the emulator, and at the guest's."""

import queue
import socket
import time
from collections.abc import Callable

from support import HANG

SOON = 0.3  # seconds in which what must not happen would have happened
GUEST, SHELL, UNUSED = 5000, 5001, 1999
PACKET = 65536


class Guest:
    """A service that leaves the guest's end of each connection to the test."""

    def __init__(self) -> None:
        self._ends: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def __call__(self, guest: socket.socket) -> None:
        end = guest.dup()
        end.settimeout(HANG)
        self._ends.put(end)

    def accept(self) -> socket.socket:
        return self._ends.get(timeout=HANG)

    def close(self) -> None:
        """Close the ends that the test has left behind."""
        while not self._ends.empty():
            self._ends.get().close()


def dial(uds: str) -> socket.socket:
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(HANG)
    host.connect(uds)
    return host


def connect(uds: str, port: int) -> socket.socket:
    host = dial(uds)
    host.sendall(b"CONNECT %d\n" % port)
    assert accepted(host), "refused"
    return host


def accepted(host: socket.socket) -> bool:
    """Whether OK comes. Takes the answer off the socket; a refusal has none."""
    answer = b""
    try:
        while not answer.endswith(b"\n"):
            byte = host.recv(1)
            if not byte:
                break
            answer += byte
    except ConnectionResetError:
        pass
    assert answer == b"" or (answer[:3] == b"OK " and len(answer) == 14), answer
    return bool(answer)


def drain(sock: socket.socket) -> bytes:
    """All that comes until end of file."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def is_silent(sock: socket.socket, seconds: float = SOON) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1, socket.MSG_PEEK)
        return False
    except TimeoutError:
        return True
    finally:
        sock.settimeout(HANG)


def queue_size() -> int:
    """Bytes that a Unix socket's queue takes in packets of 64 KiB: 233,152 with 4 KiB pages and Linux' defaults."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        total = 0
        while True:
            try:
                total += one.send(bytes(PACKET))
            except BlockingIOError:
                return total


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def failing(act: Callable[[], object], failures: list[BaseException]) -> None:
    try:
        act()
    except OSError as error:
        failures.append(error)

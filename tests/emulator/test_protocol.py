"""Facts of the protocol, each a probe with its outcome for each VMM.

Against the emulator this is a test of the emulator; inside the harness of tests/vm it is a test of Firecracker's facts
themselves. Where the two differ, the emulator is wrong. Cloud Hypervisor's facts are from its sources (53.0).
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import CLOSE, COMMAND, ECHO, HANG, NOTHING, SOURCE, SOURCE_SIZE, Endpoint, pattern, summary

QUEUE = 233_152  # bytes that the VMM's writes find room for in a socket that is not read, in packets of 64 KiB


def dial(uds: str) -> socket.socket:
    """A connection to the VMM, without a request."""
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(HANG)
    host.connect(uds)
    return host


def shaken(uds: str, port: int, command: bytes = b"") -> socket.socket:
    """A connection to a port; `command` tells the service COMMAND which service to be."""
    host = dial(uds)
    host.sendall(b"CONNECT %d\n%s" % (port, command))
    assert reply(host), "refused"
    return host


def reply(host: socket.socket) -> bytes:
    """The answer's line, or nothing where the VMM closed without an answer."""
    line = b""
    with contextlib.suppress(ConnectionResetError):
        while not line.endswith(b"\n") and (byte := host.recv(1)):
            line += byte
    return line


def rest(host: socket.socket) -> bytes:
    """What comes until the end of file."""
    parts = []
    while part := host.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def is_silent(host: socket.socket, seconds: float) -> bool:
    """Whether nothing comes, not even an end of file."""
    host.settimeout(seconds)
    try:
        host.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        host.settimeout(HANG)
    return False


def asked(uds: str, *pieces: bytes, pause: float = 0.2) -> str:
    """What becomes of a request that is sent in these pieces: accepted, or refused without an answer."""
    with dial(uds) as host:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            try:
                host.sendall(piece)
            except BrokenPipeError:
                return "refused"
        line = reply(host)
    return "accepted" if line.startswith(b"OK ") else "refused" if not line else repr(line)


def in_pieces(*pieces: bytes, pause: float = 0.2) -> Callable[[Endpoint], object]:
    return lambda endpoint: asked(endpoint.uds, *pieces, pause=pause)


def a_second_after_connecting(endpoint: Endpoint) -> object:
    return asked(endpoint.uds, b"", b"CONNECT 1002\n", pause=1.0)


def shape_of_the_answer(endpoint: Endpoint) -> object:
    with dial(endpoint.uds) as host:
        host.sendall(b"CONNECT 1002\n")
        word, number = reply(host).split(b" ")
        return word, len(number), int(number) >= 1 << 30


def behind_byte_32(endpoint: Endpoint) -> object:
    """What echo gives back after a line that is longer than the VMM reads."""
    with dial(endpoint.uds) as host:
        host.sendall(b"CONNECT 7".ljust(32) + b"payload\n")
        return host.recv(8, socket.MSG_WAITALL) if reply(host) else "refused"


def behind_the_line(endpoint: Endpoint) -> object:
    """Payload in the same write as the CONNECT line."""
    payload = pattern(20_000)
    with shaken(endpoint.uds, COMMAND, b"sink 20000\n" + payload) as host:
        return rest(host) == summary(payload)


def refusal(endpoint: Endpoint) -> object:
    with dial(endpoint.uds) as host:
        host.sendall(b"CONNECT %d\n" % NOTHING)
        return reply(host)


def a_half_close_of_the_host(endpoint: Endpoint) -> object:
    """What still comes of an answer that the guest would give a second later."""
    with shaken(endpoint.uds, COMMAND, b"sleep 1 source 100000\n") as host:
        time.sleep(0.3)
        host.shutdown(socket.SHUT_WR)
        return rest(host)


def without_a_half_close(endpoint: Endpoint) -> object:
    with shaken(endpoint.uds, COMMAND, b"sleep 1 source 100000\n") as host:
        return rest(host) == pattern(100_000)


@contextlib.contextmanager
def called(endpoint: Endpoint, port: int) -> Iterator[Callable[[], bytes]]:
    """Listen where the guest's connections to `port` arrive; the function takes one and reads it to its end."""
    path = Path(f"{endpoint.uds}_{port}")
    path.unlink(missing_ok=True)

    def take() -> bytes:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(HANG)
            return rest(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.settimeout(HANG)
        listener.listen()
        yield take
    path.unlink()


def sent_before_a_half_close(endpoint: Endpoint) -> object:
    """Whether the guest still reads what was sent before: it then connects to the host."""
    with called(endpoint, 5557) as take, shaken(endpoint.uds, COMMAND) as host:
        host.sendall(b"back 5557 10\n")
        host.shutdown(socket.SHUT_WR)
        return take() == pattern(10)


def a_half_close_of_the_guest(endpoint: Endpoint) -> object:
    """Whether all came that the guest sent before, whether the host sees no end, and whether it can still send."""
    with shaken(endpoint.uds, COMMAND, b"half 1000\n") as host:
        whole = host.recv(1000, socket.MSG_WAITALL) == pattern(1000)
        silent = is_silent(host, 2)
        host.sendall(b"still here")
        return whole, silent, poll(host, 0.5) & select.POLLHUP == 0


def poll(host: socket.socket, seconds: float) -> int:
    """What poll(2) reports of the ends of a connection within this time."""
    poller = select.poll()
    poller.register(host, select.POLLRDHUP)
    return sum(events for _, events in poller.poll(1000 * seconds))


def poll_shows(command: bytes, *, within: float = 2) -> Callable[[Endpoint], object]:
    """What poll(2) reports of the guest's end within these seconds: nothing, its half-close or its close."""

    def probe(endpoint: Endpoint) -> object:
        with shaken(endpoint.uds, COMMAND, command) as host:
            host.recv(1000, socket.MSG_WAITALL)
            events = poll(host, within)
        return {0: "nothing", select.POLLRDHUP: "half-closed", select.POLLRDHUP | select.POLLHUP: "closed"}[events]

    return probe


def half_closes_of_both(endpoint: Endpoint) -> object:
    """What the host reads, and what poll(2) shows, when the guest half-closes and then the host does."""
    with shaken(endpoint.uds, COMMAND, b"half 1000\n") as host:
        host.recv(1000, socket.MSG_WAITALL)
        time.sleep(0.3)
        host.shutdown(socket.SHUT_WR)
        return rest(host), bool(poll(host, HANG) & select.POLLHUP)


def a_full_close_of_the_guest(endpoint: Endpoint) -> object:
    with shaken(endpoint.uds, SOURCE) as host:
        return rest(host) == pattern(SOURCE_SIZE)


def a_close_at_once(endpoint: Endpoint) -> object:
    with shaken(endpoint.uds, CLOSE) as host:
        return rest(host)


def a_guest_that_does_not_read(endpoint: Endpoint) -> object:
    """How many bytes the host can send: 327,680 behind Firecracker, give or take what is just under way."""
    with shaken(endpoint.uds, COMMAND, b"unread 4000\n") as host:
        host.settimeout(1)
        sent, least, silent = 0, 327_680 - 65_536, 0
        while silent < 1 or (sent < least and silent < 20):  # a busy machine is silent for a second too
            try:
                sent += host.send(bytes(65_536))  # queues are charged by the piece: small ones fill them sooner
                silent = 0
            except TimeoutError:
                silent += 1
        return least <= sent <= 327_680 + 65_536


def the_tail(size: int, *, visitor: bool) -> Callable[[Endpoint], object]:
    """How many bytes are lost of a guest that closes while the host reads nothing for more than 2 s."""

    def probe(endpoint: Endpoint) -> object:
        with shaken(endpoint.uds, COMMAND, b"source %d\n" % size) as host:
            time.sleep(3.5)
            if visitor:
                shaken(endpoint.uds, ECHO).close()
                time.sleep(0.5)
            got = rest(host)
        assert got == pattern(len(got))
        return size - len(got)

    return probe


def a_guest_that_calls(endpoint: Endpoint) -> object:
    """Bytes of a connection that the guest begins: no preamble before them."""
    with called(endpoint, 5558) as take, shaken(endpoint.uds, COMMAND, b"back 5558 70000\n") as host:
        return take() == pattern(70_000), rest(host)


def a_guest_that_calls_an_unused_port(endpoint: Endpoint) -> object:
    with shaken(endpoint.uds, COMMAND, b"back 5559 10\n") as host:
        return rest(host) not in (b"", b"back ok\n")


Probe = Callable[[Endpoint], object]

# What holds for every VMM of this family.
FACTS: dict[str, tuple[Probe, object]] = {
    "a line in one write": (in_pieces(b"CONNECT 1002\n"), "accepted"),
    "a line a second after connecting": (a_second_after_connecting, "accepted"),
    "small letters": (in_pieces(b"connect 1002\n"), "accepted"),
    "extra blanks": (in_pieces(b"CONNECT   1002  \n"), "accepted"),
    "a carriage return": (in_pieces(b"CONNECT 1002\r\n"), "accepted"),
    "leading zeros": (in_pieces(b"CONNECT 01002\n"), "accepted"),
    "a plus sign": (in_pieces(b"CONNECT +1002\n"), "accepted"),
    "a port of 2 to the 32": (in_pieces(b"CONNECT 4294967296\n"), "refused"),
    "VMADDR_PORT_ANY": (in_pieces(b"CONNECT 4294967295\n"), "refused"),
    "a negative port": (in_pieces(b"CONNECT -1\n"), "refused"),
    "a port in words": (in_pieces(b"CONNECT ssh\n"), "refused"),
    "no port": (in_pieces(b"CONNECT \n"), "refused"),
    "another word": (in_pieces(b"CONNEXT 1002\n"), "refused"),
    "the answer": (shape_of_the_answer, (b"OK", 11, True)),
    "bytes behind the line": (behind_the_line, True),
    "a port where nothing listens": (refusal, b""),
    "no half-close of the host": (without_a_half_close, True),
    "bytes before a half-close": (sent_before_a_half_close, True),
    "a full close of the guest": (a_full_close_of_the_guest, True),
    "a full close of the guest, by poll": (poll_shows(b"source 1000\n", within=HANG), "closed"),
    "a close at once": (a_close_at_once, b""),
    "a guest that does not read": (a_guest_that_does_not_read, True),
    "the tail of 240,000 bytes and a visitor": (the_tail(240_000, visitor=True), 240_000 - QUEUE),
    "the tail of 260,000 bytes and a visitor": (the_tail(260_000, visitor=True), 260_000 - QUEUE),
    "the tail of 260,000 bytes without": (the_tail(260_000, visitor=False), 0),
    "a guest that calls": (a_guest_that_calls, (True, b"back ok\n")),
    "a guest that calls where nothing listens": (a_guest_that_calls_an_unused_port, True),
    "half-closes of both": (half_closes_of_both, (b"", True)),
}

# What differs: the outcome with Firecracker, and with Cloud Hypervisor.
DIFFERENCES: dict[str, tuple[Probe, object, object]] = {
    "a line in two writes": (in_pieces(b"CONNECT 10", b"02\n"), "refused", "accepted"),
    "a line in single bytes": (in_pieces(*map(bytes, zip(b"CONNECT 1002\n")), pause=0.1), "refused", "accepted"),
    "a line whose newline comes later": (in_pieces(b"CONNECT 1002", b"\n"), "refused", "accepted"),
    "mixed letters": (in_pieces(b"cOnNeCt 1002\n"), "accepted", "refused"),
    "a blank before the word": (in_pieces(b" CONNECT 1002\n"), "accepted", "refused"),
    "a word behind the port": (in_pieces(b"CONNECT 1002 now\n"), "accepted", "refused"),
    "bytes behind the 32nd of the line": (behind_byte_32, b"payload\n", "refused"),
    "a half-close of the host": (a_half_close_of_the_host, b"", pattern(100_000)),
    "a half-close of the guest": (a_half_close_of_the_guest, (True, True, True), (True, False, True)),
    "a half-close of the guest, by poll": (poll_shows(b"half 1000\n"), "nothing", "half-closed"),
}


@pytest.mark.parametrize("endpoint", ["firecracker", "cloud-hypervisor"], indirect=True)
@pytest.mark.parametrize("fact", FACTS)
def test_fact(endpoint: Endpoint, fact: str) -> None:
    probe, outcome = FACTS[fact]
    assert probe(endpoint) == outcome


@pytest.mark.parametrize("endpoint", ["firecracker"], indirect=True)
@pytest.mark.parametrize("fact", DIFFERENCES)
def test_fact_of_firecracker(endpoint: Endpoint, fact: str) -> None:
    probe, outcome, _ = DIFFERENCES[fact]
    assert probe(endpoint) == outcome


@pytest.mark.parametrize("endpoint", ["cloud-hypervisor"], indirect=True)
@pytest.mark.parametrize("fact", DIFFERENCES)
def test_fact_of_cloud_hypervisor(endpoint: Endpoint, fact: str) -> None:
    probe, _, outcome = DIFFERENCES[fact]
    assert probe(endpoint) == outcome

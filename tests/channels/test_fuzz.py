"""Bytes of any kind for both parsers, and for the programs around them; `make fuzz` tries more, and for longer.

In a run of the tests the examples are the same each time. FASTVSOCK_FUZZ is a number of seconds for each of the tests
below, with examples of their own.
"""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastvsock
from fastvsock import errors
from fastvsock.channels import protocol
from fastvsock.channels.protocol import Request
from fastvsock.engines import exchange, frames
from fastvsock.engines.exchange import Exchange
from fastvsock.engines.frames import Frames
from support import HANG

SECONDS = float(os.environ.get("FASTVSOCK_FUZZ", "0"))
CAPACITY = 1 << 20  # bytes of a pipe that takes all of an example, in pieces of any size

pytestmark = pytest.mark.timeout(SECONDS + 2 * HANG)

# An element is bytes, or the end of a stream with the count that is right: its number.
KINDS = st.sampled_from([*range(5), 15, *range(protocol.REQUEST, protocol.SIGNALLED + 2), 255])
LENGTHS = st.sampled_from([0, 1, 4, 8, 65535, 65536, 65537, frames.MAX_MESSAGE, frames.MAX_MESSAGE + 1, 0xFFFFFFFF])
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 255])
ROOM = frames.WINDOW_MAX - frames.WINDOW  # the credit that a stream may be given at its beginning
PAYLOADS = st.binary(max_size=40) | st.sampled_from([1, 8193, 65535, 65536, 65537]).map(bytes)
FRAMES = st.one_of(
    st.builds(frames.frame, KINDS, NUMBERS, st.binary(max_size=40)),
    st.builds(frames.frame, st.just(frames.DATA), st.sampled_from([1, 2]), PAYLOADS),
    st.builds(frames.end_frame, st.sampled_from([1, 2]), st.integers(0, (1 << 64) - 1)),
    st.builds(frames.credit_frame, NUMBERS, st.integers(0, 1 << 21)),
    st.builds(frames.credit_frame, st.just(0), st.sampled_from([ROOM, ROOM + 1])),
    st.builds(frames.header, KINDS, NUMBERS, LENGTHS),
    st.builds(frames.header, st.just(protocol.EXIT), st.just(0), LENGTHS),
    st.binary(max_size=20),
)
ELEMENTS = st.lists(FRAMES | st.sampled_from([1, 2]), max_size=12)
SIZES = st.lists(st.sampled_from([1, 7, 8, 9, 100, 4096, 65536, 1 << 20]), min_size=1, max_size=4)
FIELDS = st.builds(
    lambda name, value, lie: bytes((name,)) + max(len(value) + lie, 0).to_bytes(4, "big") + value,
    st.integers(0, 11),
    st.binary(max_size=30),
    st.sampled_from([0, 0, 0, 1, -1, 1 << 30]),
)


def fuzz(target: Callable[[], None], examples: int) -> None:
    """Try a function of hypothesis' with that many examples, or with others for SECONDS."""
    deadline = monotonic() + SECONDS
    bounded = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        suppress_health_check=list(HealthCheck),
    )(target)
    bounded()
    while monotonic() < deadline:
        bounded()


def assembled(elements: list[bytes | int]) -> bytes:
    """The bytes of a connection."""
    data, counts = b"", {1: 0, 2: 0}
    for element in elements:
        if isinstance(element, int):
            element = frames.end_frame(element, counts[element])
        elif element[:1] == bytes((frames.DATA,)) and len(element) > frames.HEADER and element[1] in counts:
            counts[element[1]] += len(element) - frames.HEADER
        data += element
    return data


def in_pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The same bytes in pieces whose sizes repeat."""
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)] if len(pieces) < 200 else len(data)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


class Found:
    """What a receiver makes of a connection: bytes of streams 1 and 2, messages, ends, and how it is over."""

    def __init__(self) -> None:
        self.streams = {1: b"", 2: b""}
        self.events: list[tuple[int, object]] = []
        self.end: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Found) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Found({ {stream: len(data) for stream, data in self.streams.items()} }, {self.events}, {self.end})"


def by_the_books(pieces: list[bytes]) -> Found:
    """What the books say, which the pumps have to agree with."""
    books, found = Frames(incoming=(1, 2), outgoing=(0,)), Found()
    try:
        for piece in pieces:
            for kind, stream, value in books.receive(memoryview(piece)):
                if kind == frames.DATA:
                    assert isinstance(value, memoryview)
                    found.streams[stream] += value
                    books.incoming[stream].deliver(len(value))
                elif kind == frames.END:
                    found.events.append((exchange.DELIVERED, (stream, value)))
                elif kind >= frames.MESSAGES:
                    found.events.append((exchange.MESSAGE, (kind, value)))
        found.end = 0 if books.is_between else errno.ECONNRESET
    except frames.Complaint as complaint:
        found.end = complaint.args[:3]
    return found


def by_a_pump(pieces: list[bytes], engine: str, splices: bool) -> Found:
    """What a pump makes of them, between a socket and pipes."""
    found = Found()
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        wake, source, feed = os.eventfd(0), *os.pipe()
        pipes = {stream: os.pipe() for stream in found.streams}
        for fd in (wake, source, feed, *(fd for pipe in pipes.values() for fd in pipe)):
            stack.callback(os.close, fd)
        pump = Exchange(ours.fileno(), wake, engine=engine, splices=splices)
        stack.callback(pump.close)
        pump.add_source(0, source)
        for stream, (_, target) in pipes.items():
            fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, CAPACITY)
            pump.add_target(stream, target)
        for piece in pieces:
            theirs.sendall(piece)
            take(pump, found)
        theirs.shutdown(socket.SHUT_WR)
        take(pump, found)
        for stream, (output, _) in pipes.items():
            os.set_blocking(output, False)
            while data := read(output):
                found.streams[stream] += data
    return found


def take(pump: Exchange, found: Found) -> None:
    """All that has happened by now."""
    while found.end is None:
        event, stream, value = pump.run(0)
        if event == exchange.TIMEOUT:
            return
        if event in (exchange.MESSAGE, exchange.DELIVERED):
            found.events.append((event, (stream, value)))
        elif event == exchange.BROKEN:
            assert isinstance(value, tuple)
            found.end = value[:3]
        elif event == exchange.CLOSED:
            found.end = value


def read(fd: int) -> bytes:
    try:
        return os.read(fd, CAPACITY)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize(("engine", "splices"), [("splice", True), ("splice", False), ("copy", False)])
def test_the_pumps_make_of_any_bytes_what_the_books_do(engine: str, splices: bool) -> None:
    @given(ELEMENTS, SIZES)
    def target(elements: list[bytes | int], sizes: list[int]) -> None:
        pieces = in_pieces(assembled(elements), sizes)
        assert by_a_pump(pieces, engine, splices) == by_the_books(pieces)

    fuzz(target, 500)


def test_any_request_is_understood_or_refused() -> None:
    @given(st.binary(max_size=3), st.lists(FIELDS, max_size=8), st.binary(max_size=8))
    def target(start: bytes, fields: list[bytes], rest: bytes) -> None:
        for payload in (start + b"".join(fields) + rest, b"\0\1\1" + b"".join(fields)):
            try:
                found = protocol.parse_request(payload)
            except (ValueError, protocol.VersionError):
                continue
            assert found.operation == payload[2]
            assert b"\0" not in b"".join(found.arguments + found.variables)

    fuzz(target, 2000)


def test_any_request_arrives_as_it_was_asked_for() -> None:
    word = st.binary(max_size=30).map(lambda word: word.replace(b"\0", b""))

    @given(
        st.builds(
            Request,
            st.sampled_from([protocol.EXEC, protocol.DIAL, protocol.INFO]),
            arguments=st.lists(word, min_size=1),
            variables=st.lists(word),
            directory=word,
            user=word,
            groups=st.none() | st.lists(word.filter(bool)),
            flags=st.integers(0, 255),
            size=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
            address=word,
        )
    )
    def target(request: Request) -> None:
        whole = request.encode()
        head, payload = whole[: frames.HEADER], whole[frames.HEADER :]
        assert protocol.request_length(head) == len(payload)
        assert protocol.parse_request(payload) == request

    fuzz(target, 300)


def test_any_messages_of_an_agent_are_an_order_or_an_error() -> None:
    @given(st.lists(st.tuples(st.integers(16, 26), st.binary(max_size=12) | FIELDS), max_size=6))
    def target(messages: list[tuple[int, bytes]]) -> None:
        client = protocol.Client()
        try:
            for kind, payload in messages:
                client.receive(kind, payload)
        except (errors.ProtocolError, errors.StartError) as error:
            str(error)  # can be made
        assert client.status is None or client.has_started

    fuzz(target, 1000)


def test_whatever_answers_a_client_has_a_result_or_an_error(tmp_path: Path) -> None:
    uds = tmp_path / "vmm.sock"
    answers: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # the test is over
            with sock:
                sock.recv(1 << 16)
                try:
                    sock.sendall(answers.pop())
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(1 << 16):
                        pass
                except OSError:
                    pass  # the client has heard enough

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(uds))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        guest = fastvsock.Guest(uds, timeout=HANG)

        @given(st.booleans(), st.booleans(), ELEMENTS, st.sampled_from([b"", protocol.exited(3)]))
        def target(is_vmm: bool, has_started: bool, elements: list[bytes | int], end: bytes) -> None:
            answer = b"OK 5\n" * is_vmm + protocol.started() * has_started + assembled(elements) + end
            answers.append(answer)
            try:
                status = guest.run(["true"], capture_output=True).returncode
            except fastvsock.FastvsockError as error:
                str(error)  # can be made
            else:
                assert status == 3

        try:
            fuzz(target, 300)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(HANG)

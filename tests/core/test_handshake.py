"""The handshake: its parser against any bytes in any pieces, its attempts, and its errors."""

import ast
import re
import socket
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastvsock import handshake
from fastvsock.errors import BadReplyError, ConnectError, GuestRefusedError, PortError
from support import read_exactly

PORT = 5003
replies = st.integers(0, 2**32 - 1).map(lambda n: b"OK %d\n" % n)
payloads = st.binary(max_size=64)
# Bytes that keep to the reply's own alphabet come much nearer to its borders than any bytes do.
near_replies = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"OK ", b"OK ", b"OK", b"ok ", b"OK  ", b"\nOK "]),
    st.text("0129", max_size=13).map(str.encode),
    st.sampled_from([b"", b"\n", b"\n", b"\r\n", b" \n", b"x\n"]),
    st.binary(max_size=4),
)
answers = st.one_of(st.binary(max_size=32), st.text("OK 019\n\r", max_size=20).map(str.encode), near_replies)


def expected(data: bytes) -> int | type[ValueError] | None:
    """What parse_reply has to say, by two patterns: a whole reply, and the beginning of one."""
    whole = re.match(rb"OK [0-9]{1,10}\n", data)
    if whole:
        return whole.end()
    return None if re.fullmatch(rb"|O|OK|OK [0-9]{0,10}", data) else ValueError


@given(answers)
@example(b"OK 1234567890\n")
@example(b"OK 12345678901\n")
@example(b"OK 12345678901")
@example(b"ok 5\n")
def test_a_reply_is_ok_blank_digits_newline_and_nothing_else(data: bytes) -> None:
    wanted = expected(data)
    if wanted is ValueError:
        with pytest.raises(ValueError, match="not a reply"):
            handshake.parse_reply(data)
    else:
        assert handshake.parse_reply(data) == wanted


@given(replies, payloads)
def test_any_beginning_of_a_reply_is_incomplete_and_the_payload_is_not_counted(reply: bytes, payload: bytes) -> None:
    for cut in range(len(reply)):
        assert handshake.parse_reply(reply[:cut]) is None
    assert handshake.parse_reply(reply + payload) == len(reply)


@given(st.integers(0, 2**32 - 1))
def test_every_guest_port_is_a_port_as_number_and_as_text(port: int) -> None:
    assert handshake.parse_port(port) == handshake.parse_port(str(port)) == handshake.parse_port(f"000{port}") == port
    assert handshake.request(port) == b"CONNECT " + str(port).encode() + b"\n"


@given(st.one_of(st.integers(max_value=-1), st.integers(min_value=2**32)))
def test_no_other_number_is_a_port(number: int) -> None:
    for port in (number, str(number)):
        with pytest.raises(PortError) as caught:
            handshake.parse_port(port)
        assert caught.value.port == port


@given(st.text().filter(lambda text: not re.fullmatch("[0-9]+", text)))
def test_no_other_text_is_a_port(text: str) -> None:
    with pytest.raises(PortError):
        handshake.parse_port(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the handshake sees, in seconds; a test may set it."""
    now = [1000.0]
    monkeypatch.setattr(handshake, "monotonic", lambda: now[0])
    return now


def test_the_pauses_of_wait_double_up_to_half_a_second_and_end_with_the_time(clock: list[float]) -> None:
    retry = handshake.Retry(2.0, 10.0)
    pauses = []
    while (pause := retry.pause()) is not None:
        pauses.append(pause)
        clock[0] += pause
    assert pauses[:6] == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.5])
    assert pauses[6:-1] == pytest.approx([0.5])
    assert sum(pauses) == pytest.approx(2.0)  # so the last attempt is made when the time is just up


def test_without_wait_there_is_no_second_attempt(clock: list[float]) -> None:
    assert handshake.Retry(0.0, 10.0).pause() is None


def test_an_attempt_that_outlasts_the_wait_is_the_last(clock: list[float]) -> None:
    retry = handshake.Retry(1.0, 10.0)
    clock[0] += 5.0
    assert retry.pause() is None


class Vmm:
    """Both ends of one handshake in one thread: `step` lets the near end go on until it waits."""

    def __init__(self, listener: socket.socket, uds: str) -> None:
        self.near = handshake.open_socket(socket.socket, uds, PORT)
        self._shaking = handshake.shake(self.near, uds, PORT)
        assert self.step()
        self.far, _ = listener.accept()

    def step(self) -> bool:
        """Whether the near end still waits for bytes. Raises what it raises."""
        return next(self._shaking, "done") is None

    def answer(self, *pieces: bytes) -> None:
        """Send the pieces, and let the near end look after each until it is done."""
        for piece in pieces:
            self.far.sendall(piece)
            if not self.step():
                return

    def __enter__(self) -> "Vmm":
        return self

    def __exit__(self, *failure: object) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture(scope="module")
def uds() -> Iterator[tuple[socket.socket, str]]:
    """A listening socket for many handshakes, and its path."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/v.sock"
        listener.bind(path)
        listener.listen()
        yield listener, path


@given(reply=replies, payload=payloads, cuts=st.lists(st.integers(1, 40)))
def test_a_reply_in_any_pieces_is_taken_and_the_payload_is_not(
    uds: tuple[socket.socket, str], reply: bytes, payload: bytes, cuts: list[int]
) -> None:
    data = reply + payload
    edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    waits = True
    with Vmm(*uds) as vmm:
        for start, end in pairwise(edges):
            vmm.far.sendall(data[start:end])
            if waits:
                waits = vmm.step()
                assert waits == (end < len(reply))
        vmm.far.shutdown(socket.SHUT_WR)
        vmm.near.setblocking(True)
        assert read_exactly(vmm.near.fileno(), 1000) == payload


@given(answers.filter(lambda data: expected(data) is ValueError), st.integers(0, 32))
def test_garbage_in_two_pieces_is_a_bad_reply_that_shows_it(
    uds: tuple[socket.socket, str], data: bytes, cut: int
) -> None:
    with Vmm(*uds) as vmm:
        with pytest.raises(BadReplyError) as caught:
            vmm.answer(data[:cut], data[cut:])
        assert (caught.value.port, caught.value.uds) == (PORT, uds[1])
        shown = ast.literal_eval(caught.value.detail).encode("latin-1")
        assert shown
        assert data.startswith(shown)


@given(reply=replies, cut=st.integers(0, 13))
def test_the_end_of_the_stream_before_the_newline_is_a_refusal(
    uds: tuple[socket.socket, str], reply: bytes, cut: int
) -> None:
    with Vmm(*uds) as vmm:
        vmm.answer(reply[:-1][:cut])
        assert vmm.far.recv(100) == b"CONNECT 5003\n"  # else closing resets
        vmm.far.close()
        with pytest.raises(GuestRefusedError):
            vmm.step()


def test_a_reset_before_the_newline_is_a_refusal(uds: tuple[socket.socket, str]) -> None:
    with Vmm(*uds) as vmm:
        vmm.answer(b"OK 12")
        vmm.far.close()  # with the CONNECT line unread
        with pytest.raises(GuestRefusedError):
            vmm.step()


def test_a_wakeup_without_bytes_is_no_error(uds: tuple[socket.socket, str]) -> None:
    with Vmm(*uds) as vmm:
        assert vmm.step()
        assert vmm.step()
        vmm.far.sendall(b"OK 1\n")
        assert not vmm.step()


def test_an_error_that_has_no_class_of_its_own_is_a_connect_error(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConnectError, match="Too many levels of symbolic links") as caught:
        handshake.connect(loop, PORT)
    assert (type(caught.value), caught.value.uds, caught.value.port) == (ConnectError, str(loop), PORT)

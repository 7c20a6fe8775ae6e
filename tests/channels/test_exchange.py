"""The framed pumps, both twins: descriptors on one side, on the other side a test that writes and reads frames."""

import errno
import os
import select
import socket
from pathlib import Path

import pytest

from fastvsock.engines import exchange, frames
from support import HANG, read_exactly, write_all
from support.bad_frames import BAD, events
from support.rig import Rig

MESSAGE = frames.MESSAGES + 5
LIMIT = int(HANG * 1000)  # milliseconds


def test_what_a_source_gives_is_data_and_its_end_a_count(rig: Rig) -> None:
    rig.use_pipes()
    write_all(rig.feed, b"some bytes")
    rig.settle()
    assert rig.peer.receive() == (frames.DATA, 0, b"some bytes")
    os.close(rig.feed)
    assert rig.run() == (exchange.SOURCE_ENDED, 0, 0)
    rig.settle()
    assert rig.peer.receive() == (frames.END, 0, (10).to_bytes(8, "big"))
    assert rig.exchange.moved == (10, 0)
    assert rig.exchange.unsent == 0


def test_an_empty_source_ends_at_once(rig: Rig) -> None:
    rig.use_pipes()
    os.close(rig.feed)
    assert rig.run() == (exchange.SOURCE_ENDED, 0, 0)
    rig.settle()
    assert rig.peer.receive() == (frames.END, 0, bytes(8))


def test_no_more_is_sent_than_there_is_credit_for(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))
    with (tmp_path / "file").open("rb") as file:
        rig.exchange.add_source(0, file.fileno())
        rig.settle()
        assert rig.exchange.moved == (frames.WINDOW, 0)
        rig.peer.sock.sendall(frames.credit_frame(0, 1000))
        rig.settle()
        assert rig.exchange.moved == (frames.WINDOW + 1000, 0)


@pytest.mark.parametrize("kind", ["pipe", "file", "socket", "own socket"])
def test_every_kind_of_source_is_sent_whole(rig: Rig, kind: str, tmp_path: Path) -> None:
    data = os.urandom(frames.WINDOW - 100)
    if kind == "file":
        (tmp_path / "file").write_bytes(data)
        source = os.open(tmp_path / "file", os.O_RDONLY)
        rig.stack.callback(os.close, source)
    elif kind == "pipe":
        source = rig.source
        write_all(rig.feed, data)
        os.close(rig.feed)
    else:
        near, far = socket.socketpair()
        source = rig.stack.enter_context(near).fileno()
        near.setblocking(kind == "socket")
        with far:
            far.sendall(data)
    rig.exchange.add_source(0, source)
    while rig.run() != (exchange.SOURCE_ENDED, 0, 0):
        pass
    rig.settle()
    assert rig.peer.stream(0) == data


@pytest.mark.parametrize("kind", ["pipe", "full pipe", "own pipe", "file", "append", "socket", "null"])
@pytest.mark.parametrize("size", [1, 5000, frames.WINDOW])
def test_every_kind_of_target_gets_it_whole(rig: Rig, kind: str, size: int, tmp_path: Path) -> None:
    data, before, source, target = os.urandom(size), b"", rig.out, rig.out_target
    if kind == "full pipe":
        rig.stall(target)
        before = bytes(1 << 20)
    elif kind == "own pipe":
        os.set_blocking(target, False)
    elif kind in ("file", "append"):
        flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if kind == "append" else 0)
        source = target = os.open(tmp_path / "file", flags)
        rig.stack.callback(os.close, source)
    elif kind == "socket":
        ends = [rig.stack.enter_context(end) for end in socket.socketpair()]
        source, target = (end.fileno() for end in ends)
    elif kind == "null":
        target = os.open("/dev/null", os.O_WRONLY)
        rig.stack.callback(os.close, target)
    rig.exchange.add_target(1, target)
    rig.peer.send(frames.DATA, 1, data)
    rig.peer.sock.sendall(frames.end_frame(1, size))
    if kind == "full pipe":
        rig.settle()
    if kind == "full pipe" or kind == "socket":  # which may not hold all of it
        assert read_exactly(source, len(before)) == before
        got = b""
        while len(got) < size:
            rig.run(20)
            os.set_blocking(source, False)
            try:
                got += os.read(source, 1 << 20)
            except BlockingIOError:
                continue
        assert got == data
    else:
        assert rig.run() == (exchange.DELIVERED, 1, size)
        if kind in ("file", "append"):
            os.lseek(source, 0, os.SEEK_SET)
        if kind != "null":
            assert read_exactly(source, size) == data
    assert rig.exchange.moved == (0, size)


def test_a_target_that_nobody_reads_stops_no_other_stream(rig: Rig) -> None:
    rig.use_pipes()
    rig.stall(rig.out_target)
    rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW))
    rig.peer.send(MESSAGE, 0, b"a message behind it")
    rig.peer.send(frames.DATA, 2, b"an error")
    assert rig.run() == (exchange.MESSAGE, MESSAGE, b"a message behind it")
    write_all(rig.feed, b"some bytes")
    rig.settle()
    assert os.read(rig.err, 100) == b"an error"
    assert rig.peer.receive() == (frames.DATA, 0, b"some bytes")
    assert rig.peer.is_silent(), "no credit is given back for what was not delivered"


def test_what_a_stalled_target_gets_in_many_small_frames_is_kept_whole(rig: Rig) -> None:
    """A pipe holds 16 pieces, however small."""
    rig.use_pipes()
    data = os.urandom(3000)
    rig.stall(rig.out_target)
    rig.peer.sock.sendall(b"".join(frames.frame(frames.DATA, 1, data[at : at + 1]) for at in range(3000)))
    rig.peer.sock.sendall(frames.end_frame(1, 3000))
    rig.settle()
    read_exactly(rig.out, 1 << 20)
    assert rig.run() == (exchange.DELIVERED, 1, 3000)
    assert read_exactly(rig.out, 3000) == data


def test_credit_is_given_back_as_bytes_are_delivered(rig: Rig) -> None:
    rig.use_pipes()
    rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW))
    rig.settle()
    assert rig.peer.receive() == (frames.CREDIT, 1, (2 * frames.WINDOW).to_bytes(4, "big"))


def test_a_stream_in_small_frames_gets_more_credit_once_half_of_it_is_delivered(rig: Rig) -> None:
    rig.use_pipes()
    for _ in range(8):
        rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW // 16))
    rig.settle()
    assert rig.peer.receive() == (frames.CREDIT, 1, (3 * frames.WINDOW // 2).to_bytes(4, "big"))
    assert rig.peer.is_silent()


def test_a_reader_that_has_gone_is_said_and_the_rest_dropped(rig: Rig) -> None:
    rig.use_pipes()
    os.close(rig.out)
    assert rig.run() == (exchange.TARGET_LOST, 1, errno.EPIPE)
    rig.settle()
    assert rig.peer.receive() == (frames.STOP, 1, b"")
    rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW))
    rig.settle()
    assert rig.peer.receive()[:2] == (frames.CREDIT, 1)
    rig.peer.sock.sendall(frames.end_frame(1, frames.WINDOW))
    assert rig.run() == (exchange.DELIVERED, 1, frames.WINDOW)


def test_a_reader_that_goes_while_bytes_are_held_for_it(rig: Rig) -> None:
    rig.use_pipes()
    rig.stall(rig.out_target)
    rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW))
    rig.peer.sock.sendall(frames.end_frame(1, frames.WINDOW))
    rig.settle()
    os.close(rig.out)
    assert rig.run() == (exchange.TARGET_LOST, 1, errno.EPIPE)
    assert rig.run() == (exchange.DELIVERED, 1, frames.WINDOW)
    rig.settle()
    assert rig.peer.is_silent(), "an ended stream is not asked to stop"


def test_a_full_disk_is_an_error_of_its_own(rig: Rig) -> None:
    target = os.open("/dev/full", os.O_WRONLY)
    rig.stack.callback(os.close, target)
    rig.exchange.add_target(1, target)
    rig.peer.send(frames.DATA, 1, b"bytes")
    assert rig.run() == (exchange.TARGET_LOST, 1, errno.ENOSPC)


def test_a_stream_that_nobody_wants_any_more_ends(rig: Rig) -> None:
    rig.use_pipes()
    write_all(rig.feed, b"some bytes")
    rig.settle()
    rig.peer.receive()
    rig.peer.send(frames.STOP, 0)
    assert rig.run() == (exchange.STOPPED, 0, 0)
    rig.peer.send(frames.STOP, 0)
    write_all(rig.feed, b"more that stays where it is")
    rig.settle()
    assert rig.peer.receive() == (frames.END, 0, (10).to_bytes(8, "big"))
    assert rig.peer.is_silent()
    assert os.read(rig.source, 100) == b"more that stays where it is"


def test_finish_sends_what_is_there_and_waits_for_nothing_else(rig: Rig) -> None:
    os.set_blocking(rig.source, False)
    rig.exchange.add_source(0, rig.source)
    write_all(rig.feed, b"x" * 60_000)
    rig.exchange.finish(0)
    write_all(rig.feed, b"late")
    assert rig.run() == (exchange.SOURCE_ENDED, 0, 0)
    rig.settle()
    assert rig.peer.stream(0) == b"x" * 60_000


def test_finish_of_an_empty_pipe_ends_it(rig: Rig) -> None:
    rig.use_pipes()
    rig.exchange.finish(0)
    assert rig.run() == (exchange.SOURCE_ENDED, 0, 0)
    rig.settle()
    assert rig.peer.stream(0) == b""


def test_a_source_that_fails_is_not_an_end(rig: Rig) -> None:
    folder = os.open("/", os.O_RDONLY)
    rig.stack.callback(os.close, folder)
    rig.exchange.add_source(0, folder)
    assert rig.run() == (exchange.SOURCE_ENDED, 0, errno.EISDIR)
    rig.settle()
    assert rig.peer.is_silent()
    rig.exchange.end(0)
    rig.settle()
    assert rig.peer.stream(0) == b""


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_rules_is_refused_by_name(rig: Rig, name: str) -> None:
    data, _ = BAD[name]
    rig.use_pipes()
    rig.peer.sock.sendall(data)
    event, _, value = rig.run()
    if event == exchange.DELIVERED:
        event, _, value = rig.run()
    with pytest.raises(frames.Complaint) as caught:
        events(data)
    assert isinstance(value, tuple)
    assert (event, value[:3]) == (exchange.BROKEN, caught.value.args[:3])
    assert exchange.complaint(value)


def test_a_message_comes_whole_however_large(rig: Rig) -> None:
    data = os.urandom(frames.MAX_MESSAGE)
    whole = frames.frame(MESSAGE, 0, data)
    rig.peer.sock.sendall(whole[:5])
    assert rig.run(20)[0] == exchange.TIMEOUT
    rig.peer.sock.sendall(whole[5:100])
    assert rig.run(20)[0] == exchange.TIMEOUT
    rig.peer.sock.sendall(whole[100:] + frames.frame(MESSAGE + 1))
    assert rig.run() == (exchange.MESSAGE, MESSAGE, data)
    assert rig.run() == (exchange.MESSAGE, MESSAGE + 1, b"")


def test_what_comes_behind_a_message_waits_until_that_is_taken(rig: Rig) -> None:
    rig.use_pipes()
    rig.peer.sock.sendall(frames.frame(MESSAGE, 0, b"first") + frames.frame(frames.DATA, 1, b"then"))
    assert rig.run() == (exchange.MESSAGE, MESSAGE, b"first")
    assert not select.select([rig.out], [], [], 0)[0]
    rig.settle()
    assert read_exactly(rig.out, 4) == b"then"


@pytest.mark.parametrize("before", [b"", frames.frame(frames.DATA, 1, b"bytes")])
def test_the_end_of_the_connection_between_frames(rig: Rig, before: bytes) -> None:
    rig.use_pipes()
    rig.peer.sock.sendall(before)
    rig.peer.sock.close()
    assert rig.run() == (exchange.CLOSED, 0, 0)


@pytest.mark.parametrize("before", [b"\0", frames.header(frames.DATA, 1, 10), frames.frame(MESSAGE, 0, b"abc")[:-1]])
def test_the_end_of_the_connection_inside_a_frame(rig: Rig, before: bytes) -> None:
    rig.use_pipes()
    rig.peer.sock.sendall(before)
    rig.peer.sock.close()
    assert rig.run() == (exchange.CLOSED, 0, errno.ECONNRESET)


def test_it_can_be_woken(rig: Rig) -> None:
    rig.use_pipes()
    os.eventfd_write(rig.wake, 1)
    assert rig.run() == (exchange.WOKEN, 0, 0)
    rig.settle()


def test_nothing_is_waited_for_by_turning_round_and_round(rig: Rig) -> None:
    """A second of a stall, of a hung-up pipe and of a spent credit takes no processor time."""
    rig.use_pipes()
    rig.stall(rig.out_target)
    rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW))
    write_all(rig.feed, bytes(60_000))
    rig.settle()
    os.close(rig.feed)
    rig.run(10)
    before = sum(os.times()[:2])
    rig.run(1000)
    assert sum(os.times()[:2]) - before < 0.2


def test_a_descriptor_whose_stream_has_ended_is_watched_no_more(rig: Rig) -> None:
    """Its owner may close it, and its number may be another's then."""
    os.set_blocking(rig.out_target, False)
    rig.exchange.add_target(1, rig.out_target)
    rig.peer.sock.sendall(frames.end_frame(1, 0))
    assert rig.run() == (exchange.DELIVERED, 1, 0)
    read_end, nobody_reads_it = rig.pipe()
    os.close(read_end)
    os.dup2(nobody_reads_it, rig.out_target)
    rig.settle()
    os.close(rig.out_target)
    rig.settle()


def test_modes_of_descriptors_are_left_as_they_were(rig: Rig) -> None:
    rig.use_pipes()
    assert all(map(os.get_blocking, (rig.source, rig.out_target, rig.err_target)))


def test_the_twins_have_the_same_numbers() -> None:
    """They stand in the Cython source once more."""
    text = Path(exchange.__file__).with_name("_frames.pyx").read_text()
    for module, names in (
        (exchange, "MESSAGE SOURCE_ENDED TARGET_LOST DELIVERED STOPPED CLOSED BROKEN WOKEN TIMEOUT FULL PIPE FILE OWN"),
        (frames, "DATA END CREDIT STOP MESSAGES HEADER STREAMS PADDING STREAM LENGTH OVERRUN AFTER_END COUNT EXCESS"),
    ):
        for name in names.split():
            assert f"    {name} = {getattr(module, name)}\n" in text, name
    for name, bits in ("WINDOW", 16), ("WINDOW_MAX", 20), ("MAX_MESSAGE", 15):
        assert f"    {name} = 1 << {bits}\n" in text
        assert getattr(frames, name) == 1 << bits

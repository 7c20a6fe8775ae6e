"""Splice really is used: of a run under strace, the system calls by name, and the bytes that each of them moved."""

import fcntl
import os
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from support import HANG, Listener, command, pattern, started, summary, write_all
from support.exchange import KINDS, Ends, Way, exchange

MIB = 1 << 20
UP, DOWN = Way(64 * MIB), Way(64 * MIB + 1)
PAYLOAD = UP.size + DOWN.size
FEW = 4096  # bytes: the handshake, a wake-up
COPYING = ("read", "readv", "write", "writev", "recvfrom", "recvmsg", "sendto", "sendmsg", "pread64", "pwrite64")
TRACED = ("splice", "tee", "vmsplice", "sendfile", "poll", "ppoll", *COPYING)
# "7 splice(0<pipe:[1]>, NULL, ...) = 9", and "7 <... splice resumed>) = 9" for a call that another's line came into.
LINE = re.compile(r"\d+ +(?:<\.\.\. (\w+) resumed>|(\w+)\((?:\d+<(.*?)>)?).* = (-?\d+)")

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@dataclass
class Call:
    """A system call that returned."""

    name: str
    result: int


class Trace:
    """What a run did after its start-up."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def command(self, *arguments: str, engine: str) -> list[str]:
        """The real command, under strace."""
        calls = ",".join(f"?{name}" for name in ("connect", *TRACED))
        return ["strace", "-f", "-y", "-o", str(self._path), f"-etrace={calls}", *command(*arguments, engine=engine)]

    def calls(self, *names: str) -> list[Call]:
        """The calls of these names, without those on files: these are Python's own, which loads a module."""
        found = []
        lines = iter(self._path.read_text().splitlines())
        while " connect(" not in next(lines):
            pass
        loading: set[str] = set()  # threads in a call that reads a file
        for line in lines:
            thread = line.split(None, 1)[0]
            if "<unfinished" in line:
                loading -= {thread}
                if re.search(r"\(\d+</", line):
                    loading |= {thread}
            elif match := LINE.match(line):
                name, result = match[1] or match[2], int(match[4])
                on_file = thread in loading if match[1] else (match[3] or "").startswith("/")
                if name in names and not on_file:
                    found.append(Call(name, result))
        return found

    def moved(self, *names: str) -> int:
        """The bytes that these calls moved."""
        return sum(max(call.result, 0) for call in self.calls(*names))


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Of one run."""
    return Trace(tmp_path / "trace")


def relay(listener: Listener, trace: Trace, kind: str, engine: str) -> None:
    """Move the payloads through a traced run."""
    ends = Ends(kind)
    arguments = trace.command("--linger", "0", listener.uds, "5000", engine=engine)
    with started(arguments, stdin=ends.rfd, stdout=ends.wfd) as child:
        ends.close_theirs()
        assert exchange(ends, listener.accept(), UP, DOWN) == (UP.sum, DOWN.sum)
        assert child.wait(HANG) == 0


@pytest.mark.parametrize(("kind", "times"), [("pipe", 1), ("socketpair", 2)])
def test_the_payload_goes_through_splice_and_never_through_memory(
    listener: Listener, trace: Trace, kind: str, times: int
) -> None:
    relay(listener, trace, kind, "splice")
    assert trace.moved("splice") == times * PAYLOAD  # two sockets have a pipe between them
    assert trace.moved(*COPYING) < FEW
    assert trace.calls("tee", "vmsplice", "sendfile") == []


def test_a_chunk_takes_one_call_and_poll_is_asked_only_when_nothing_is_there(listener: Listener, trace: Trace) -> None:
    relay(listener, trace, "pipe", "splice")
    splices = trace.calls("splice")
    useful = [call for call in splices if call.result > 0]
    in_vain = [call for call in splices if call.result < 0]
    polls = trace.calls("poll")
    assert len(useful) < PAYLOAD / 8192
    # A poll follows a splice in vain, and a splice in vain a poll or a useful one: twice where the end was the other.
    assert len(in_vain) <= 2 * len(useful) + 10
    assert len(polls) <= len(in_vain) + 10


def test_a_full_pipe_takes_a_few_calls_and_no_poll_in_between(listener: Listener, trace: Trace) -> None:
    rfd, feed = os.pipe()
    try:
        size = fcntl.fcntl(feed, fcntl.F_SETPIPE_SZ, MIB)
    except PermissionError:  # a user's pipes are capped: pipe(7)
        size = fcntl.fcntl(feed, fcntl.F_GETPIPE_SZ)
    write_all(feed, pattern(size))
    os.close(feed)
    arguments = trace.command("--linger", "0", listener.uds, "5000", engine="splice")
    with open(rfd, "rb") as stdin, started(arguments, stdin=stdin) as child:
        with listener.accept() as far:
            arrived = b"".join(iter(partial(far.recv, MIB), b""))
        assert arrived == pattern(size)
        assert child.wait(HANG) == 0
    assert trace.moved("splice") == size
    # One would do where the socket's buffer takes it all; the last finds the end, and so does one of the way down.
    assert len(trace.calls("splice")) < 8
    assert len(trace.calls("poll")) < 8


def test_a_file_goes_through_sendfile(listener: Listener, trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(UP.payload)
    arguments = trace.command("--linger", "0", listener.uds, "5000", engine="splice")
    with path.open("rb") as stdin, started(arguments, stdin=stdin) as child:
        with listener.accept() as far:
            arrived = b"".join(iter(partial(far.recv, MIB), b""))
        assert summary(arrived) == UP.sum
        assert child.wait(HANG) == 0
    assert trace.moved("sendfile") == UP.size
    assert trace.moved("splice", *COPYING) < FEW
    assert len(trace.calls("sendfile")) < UP.size / 8192


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_engine_never_splices(listener: Listener, trace: Trace, kind: str) -> None:
    relay(listener, trace, kind, "copy")
    assert trace.calls("splice", "sendfile", "tee", "vmsplice") == []
    assert trace.moved("readv", "read") >= PAYLOAD
    assert trace.moved("write") >= PAYLOAD

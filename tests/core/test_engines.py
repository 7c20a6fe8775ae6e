"""The twins, one pump at a time, and the choice between them."""

import array
import errno
import fcntl
import inspect
import os
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastvsock import engines
from fastvsock.engines import EOF, IDLE, SOURCE, STOPPED, TARGET, UNSUPPORTED, _copy
from fastvsock.errors import EngineError
from support import HANG, pattern, read_exactly, write_all

splice = pytest.importorskip("fastvsock.engines._splice", reason="the splice engine is not built")


class Pair:
    """Two connected descriptors: what is written to `into` is read from `out`."""

    def __init__(self, out: int, into: int) -> None:
        self.out, self.into = out, into

    def close(self, *ends: str) -> None:
        for end in ends or ("out", "into"):
            if getattr(self, end) >= 0:
                os.close(getattr(self, end))
                setattr(self, end, -1)


@pytest.fixture
def twin(engine: str) -> ModuleType:
    """The module of each engine in turn."""
    return splice if engine == "splice" else _copy


@pytest.fixture
def pipe() -> Iterator[Pair]:
    """A pipe."""
    pair = Pair(*os.pipe())
    yield pair
    pair.close()


@pytest.fixture
def second_pipe() -> Iterator[Pair]:
    """Another pipe."""
    pair = Pair(*os.pipe())
    yield pair
    pair.close()


@pytest.fixture
def wake() -> Iterator[Pair]:
    """The pipe that wakes a pump."""
    pair = Pair(*os.pipe())
    yield pair
    pair.close()


@pytest.fixture
def sockets() -> Iterator[Pair]:
    """A Unix socket pair; `out` does not block, as the relay's own."""
    out, into = socket.socketpair()
    out.setblocking(False)
    pair = Pair(out.detach(), into.detach())
    yield pair
    pair.close()


def test_the_twins_have_the_same_face(pipe: Pair, wake: Pair) -> None:
    public = {name for name in vars(splice.Pump) if not name.startswith("_")}
    assert public == {name for name in dir(_copy.Pump(pipe.out, pipe.into, wake.out)) if not name.startswith("_")}
    ours = inspect.signature(_copy.Pump)
    assert list(ours.parameters) == ["source", "target", "wake", "down"]


def test_end_of_file(twin: ModuleType, pipe: Pair, sockets: Pair, wake: Pair) -> None:
    write_all(pipe.into, b"all")
    pipe.close("into")
    pump = twin.Pump(pipe.out, sockets.out, wake.out)
    assert pump.run() == (EOF, 0)
    assert pump.moved == 3
    assert os.read(sockets.into, 10) == b"all"


def test_a_source_that_breaks_is_named_after_what_it_gave(
    twin: ModuleType, pipe: Pair, sockets: Pair, wake: Pair
) -> None:
    os.write(sockets.out, b"unread")
    os.write(sockets.into, b"last words")
    sockets.close("into")  # with something unread, so that the other end is reset
    pump = twin.Pump(sockets.out, pipe.into, wake.out, True)
    assert pump.run() == (SOURCE, errno.ECONNRESET)
    assert os.read(pipe.out, 100) == b"last words"


def test_a_target_that_nobody_reads_is_named(twin: ModuleType, pipe: Pair, second_pipe: Pair, wake: Pair) -> None:
    write_all(pipe.into, b"x")
    second_pipe.close("out")
    assert twin.Pump(pipe.out, second_pipe.into, wake.out).run() == (TARGET, errno.EPIPE)


@pytest.mark.parametrize("engine", ["splice", "copy"])
def test_a_null_device_that_is_open_for_writing_only_is_no_end_of_file(engine: str, sockets: Pair, wake: Pair) -> None:
    with open(os.devnull, "wb") as null:
        pump = engines.Pump(null.fileno(), sockets.out, wake.out, engine=engine)
        assert pump.run() == (SOURCE, errno.EBADF)


@pytest.mark.parametrize("mode", ["rb", "r+b"])
@pytest.mark.parametrize("engine", ["splice", "copy"])
def test_a_null_device_is_at_its_end_of_file(engine: str, mode: str, sockets: Pair, wake: Pair) -> None:
    with open(os.devnull, mode) as null:
        assert engines.Pump(null.fileno(), sockets.out, wake.out, engine=engine).run() == (EOF, 0)


def test_down_a_target_that_nobody_reads_is_noticed_while_idle(
    twin: ModuleType, pipe: Pair, sockets: Pair, wake: Pair
) -> None:
    pipe.close("out")
    assert twin.Pump(sockets.out, pipe.into, wake.out, True).run() == (TARGET, errno.EPIPE)


def test_an_idle_pump_is_stopped_by_its_wake_descriptor(
    twin: ModuleType, pipe: Pair, sockets: Pair, wake: Pair
) -> None:
    pump = twin.Pump(pipe.out, sockets.out, wake.out)
    results = _in_thread(pump)
    os.write(wake.into, b"a signal")  # makes it look up, and no more
    time.sleep(0.1)
    pump.stop()
    os.write(wake.into, b"\0")
    assert results() == (STOPPED, 0)


def test_a_busy_pump_is_stopped_without_ever_waiting(twin: ModuleType, wake: Pair) -> None:
    with open("/dev/zero", "rb") as source, open("/dev/null", "wb") as target:
        pump = twin.Pump(source.fileno(), target.fileno(), wake.out)
        results = _in_thread(pump)
        while pump.moved < 1 << 20:
            time.sleep(0.001)
        pump.stop()
        assert results() == (STOPPED, 0)


def test_a_wake_up_does_not_make_a_full_target_look_writable(pipe: Pair, wake: Pair) -> None:
    ours, theirs = _blocking("unix socket")
    os.set_blocking(theirs, False)
    try:
        while True:
            os.write(theirs, bytes(1 << 16))
    except BlockingIOError:
        os.set_blocking(theirs, True)
    try:
        pump = _copy.Pump(pipe.out, theirs, wake.out)
        os.write(wake.into, b"\0")
        assert not pump._can_write()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("blocking", ["pipe", "unix socket", "tcp socket"])
def test_a_target_that_may_block_is_never_blocked_in(twin: ModuleType, pipe: Pair, wake: Pair, blocking: str) -> None:
    ours, theirs = _blocking(blocking)
    feeder = threading.Thread(target=_feed, args=(pipe.into,))
    feeder.start()
    try:
        pump = twin.Pump(pipe.out, theirs, wake.out)
        results = _in_thread(pump)
        before = -1
        while before != pump.moved or not before:  # until it is full
            before = pump.moved
            time.sleep(0.2)
        pump.stop()
        os.write(wake.into, b"\0")
        assert results() == (STOPPED, 0)
        assert not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK
    finally:
        pipe.close("out")
        feeder.join(HANG)
        os.close(ours)
        os.close(theirs)


def _blocking(kind: str) -> tuple[int, int]:
    if kind == "pipe":
        return os.pipe()
    if kind == "unix socket":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
    return ours.detach(), theirs.detach()


def _feed(fd: int) -> None:
    try:
        while True:
            os.write(fd, bytes(1 << 16))
    except BrokenPipeError:
        pass


def test_down_a_stalled_reader_does_not_keep_the_socket_full(
    twin: ModuleType, pipe: Pair, sockets: Pair, wake: Pair
) -> None:
    # Two MiB, one in the pipe and one in reserve, leave the socket, and so the VMM, though nobody reads. In pieces of
    # a page, as a larger one may take no more room in a pipe than a page does.
    payload = pattern(450 * 4096)
    pump = twin.Pump(sockets.out, pipe.into, wake.out, True)
    results = _in_thread(pump)
    for start in range(0, len(payload), 4096):
        write_all(sockets.into, payload[start : start + 4096])
    sockets.close("into")
    guard = time.monotonic() + HANG
    while _unread(sockets.out) and time.monotonic() < guard:
        time.sleep(0.05)
    assert not _unread(sockets.out)
    assert pump.moved < len(payload)
    assert read_exactly(pipe.out, len(payload)) == payload
    assert results() == (EOF, 0)


def _unread(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _in_thread(pump: Any) -> Callable[[], tuple[int, int]]:
    """Run a pump beside the test; the function returned joins it and tells its result."""
    results: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: results.append(pump.run()), daemon=True)
    thread.start()

    def join() -> tuple[int, int]:
        thread.join(HANG)
        return results[0]

    return join


def test_what_sits_between_is_not_lost_where_the_target_does_not_splice(
    sockets: Pair, wake: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file opened for appending takes no splice (EINVAL), which shows only when bytes have left the socket already.
    payload = pattern(150_000)
    write_all(sockets.into, payload)
    sockets.close("into")
    path = tmp_path / "appended"
    target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        bare = splice.Pump(sockets.out, target, wake.out, True)
        assert bare.run() == (UNSUPPORTED, errno.EINVAL)
        rest = bare.leftover()
        taken = read_exactly(rest, len(payload))
        assert payload.startswith(taken)
        assert taken
        monkeypatch.setattr(engines, "_may_splice", lambda source, target: True)
        pump = engines.Pump(sockets.out, target, wake.out, down=True, engine="splice")
        assert pump.run() == (EOF, 0)
        assert taken + path.read_bytes() == payload
        assert pump.moved == len(payload) - len(taken)
    finally:
        os.close(target)


def test_what_was_spliced_still_counts_after_a_change_to_copy(
    pipe: Pair, second_pipe: Pair, wake: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(splice.Pump):  # type: ignore[misc, name-defined]
        """The kernel refuses to splice once the pump has moved what there was."""

        def run(self, look: int = -1) -> tuple[int, int]:
            end, _ = super().run(look)
            return (UNSUPPORTED, errno.EINVAL) if end == IDLE else (end, 0)

    monkeypatch.setattr(splice, "Pump", Refused)
    pump = engines.Pump(pipe.out, second_pipe.into, wake.out, engine="splice")
    write_all(pipe.into, b"spliced")
    results: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: results.append(pump.run(50)), daemon=True)
    thread.start()
    thread.join(HANG)  # with IDLE, from the copy engine by now
    write_all(pipe.into, b"copied")
    pipe.close("into")
    assert results == [(IDLE, 0)]
    assert pump.run() == (EOF, 0)
    assert (pump.engine, pump.moved) == ("splice+copy", len(b"splicedcopied"))
    assert read_exactly(second_pipe.out, 13) == b"splicedcopied"
    assert pump.moved_at > 0


def test_a_python_signal_handler_that_raises_ends_run(twin: ModuleType, pipe: Pair, sockets: Pair, wake: Pair) -> None:
    import signal

    def interrupt(number: int, frame: object) -> None:
        raise InterruptedError("by the handler")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        with pytest.raises(InterruptedError, match="by the handler"):
            twin.Pump(pipe.out, sockets.out, wake.out).run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_environment_chooses_where_the_caller_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTVSOCK_ENGINE", raising=False)
    assert engines.choose() == "splice"
    monkeypatch.setenv("FASTVSOCK_ENGINE", "copy")
    assert engines.choose() == "copy"
    assert engines.choose("splice") == "splice"
    monkeypatch.setenv("FASTVSOCK_ENGINE", "warp")
    with pytest.raises(
        EngineError, match=r"unknown engine 'warp' \(from FASTVSOCK_ENGINE\): use auto, splice or copy$"
    ):
        engines.choose()
    with pytest.raises(EngineError, match=r"unknown engine 'weft': use auto, splice or copy$"):
        engines.choose("weft")


def test_without_the_extension_auto_copies_and_splice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(engines, "_splice", raising=False)
    monkeypatch.setitem(sys.modules, "fastvsock.engines._splice", None)
    assert engines.choose("auto") == "copy"
    with pytest.raises(EngineError, match="the splice engine is not installed"):
        engines.choose("splice")

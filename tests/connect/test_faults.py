"""What breaks in mid-transfer: the VMM, the reader, the limits, signals. No hang, no leak, no byte lost."""

import _thread
import gc
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fastvsock import api, errors
from fastvsock.relaying import Relay
from support import HANG, ROOT, Listener, connecting, descriptors, pattern, read_exactly, started, write_all
from support.exchange import KINDS, Ends, Shape, Way, commanding, exchange

MIB = 1 << 20
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
SETTLED = 0.3  # seconds without a byte moving, after which a producer counts as stopped

# A VMM in a process of its own: it answers, sends its pattern and tells how far it is, and reads nothing.
VMM = """
import socket, sys
from support import Listener, pattern
far = Listener(sys.argv[1]).accept()
sent = 0
while True:
    sent += far.send(pattern(65536, sent))
    print(sent, flush=True)
"""


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


# The VMM ends


@pytest.mark.parametrize("stall", [0, 800_000], ids=["reader reads", "reader stalls"])
@pytest.mark.parametrize("size", [300_000, 1_500_000])
@pytest.mark.parametrize("kind", KINDS)
def test_what_had_arrived_before_a_reset_is_delivered_whole(
    listener: Listener, engine: str, kind: str, size: int, stall: int
) -> None:
    ends = Ends(kind)
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        write_all(ends.feed, b"never read, so that closing is a reset")
        await_readable(far)
        reading = threading.Timer(stall / 1e6, lambda: arrived.append(read_exactly(ends.drain, 2 * size)))
        arrived: list[bytes] = []
        reading.start()
        pushed = size
        if stall:
            pushed = push(far.fileno(), pattern(size))
        else:
            far.sendall(pattern(size))
        far.close()
        reading.join(HANG)
        assert [len(part) for part in arrived] == [pushed]
        assert arrived == [pattern(pushed)]
        status, (line,) = complaint(child)
        assert (status, line[:45]) == (1, b"fastvsock: the connection to the guest broke ")
    ends.end_input()
    os.close(ends.drain)


def test_a_vmm_that_is_killed_loses_nothing_of_what_it_had_sent(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    with (
        started([sys.executable, "-c", VMM, str(path)], env=env) as vmm,
        connecting(str(path), 5000, "--wait", str(HANG), engine=engine) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        assert vmm.stdout is not None
        write_all(child.stdin.fileno(), b"never read")
        arrived = read_exactly(child.stdout.fileno(), 10 * MIB)
        vmm.kill()
        arrived += read_exactly(child.stdout.fileno(), 100 * MIB)
        sent = int(vmm.stdout.read().splitlines()[-1])
        assert len(arrived) >= sent
        assert arrived == pattern(len(arrived))
        status, (line,) = complaint(child)
        assert (status, line[:45]) == (1, b"fastvsock: the connection to the guest broke ")


# The reader ends


@pytest.mark.parametrize("flowing", [False, True], ids=["idle", "flowing"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_quietly_when_nobody_reads_stdout_any_more(
    listener: Listener, engine: str, kind: str, flowing: bool
) -> None:
    ends = Ends(kind)
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        far.sendall(b"x")
        assert os.read(ends.drain, 9) == b"x"
        if flowing:
            threading.Thread(target=keep_sending, args=(far,), daemon=True).start()
            read_exactly(ends.drain, MIB)
        os.close(ends.drain)
        if kind == "socketpair":  # the same socket is stdin: it has to go with it
            os.close(ends.feed)
        assert complaint(child) == (0, [])
    if kind == "pipe":
        os.close(ends.feed)


@pytest.mark.parametrize("held", [100_000, 600_000, 2_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_quietly_when_the_reader_goes_without_having_read(
    listener: Listener, engine: str, kind: str, held: int
) -> None:
    ends = Ends(kind)
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        push(far.fileno(), bytes(held))
        os.close(ends.drain)
        if kind == "socketpair":
            os.close(ends.feed)
        assert complaint(child) == (0, [])
    if kind == "pipe":
        os.close(ends.feed)


def keep_sending(far: socket.socket) -> None:
    """Send until it breaks."""
    try:
        while True:
            far.sendall(bytes(65536))
    except OSError:
        return


# Signals


def in_handshake(listener: Listener, child: subprocess.Popen[bytes]) -> socket.socket:
    """It has asked, and waits."""
    return listener.accept(b"")


def idle(listener: Listener, child: subprocess.Popen[bytes]) -> socket.socket:
    """It relays, and nothing moves."""
    far = listener.accept()
    say_hello(child, far)
    return far


def stalled(listener: Listener, child: subprocess.Popen[bytes]) -> socket.socket:
    """It is full: neither side reads."""
    far = idle(listener, child)
    assert child.stdin is not None
    push(child.stdin.fileno(), bytes(30 * MIB))
    push(far.fileno(), bytes(30 * MIB))
    return far


def lingering(listener: Listener, child: subprocess.Popen[bytes]) -> socket.socket:
    """Its stdin has ended."""
    far = idle(listener, child)
    assert child.stdin is not None
    child.stdin.close()
    time.sleep(0.1)
    return far


@pytest.mark.parametrize("phase", [in_handshake, idle, stalled, lingering])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_with_the_conventional_status_and_closes_the_connection(
    listener: Listener,
    engine: str,
    number: signal.Signals,
    phase: Callable[[Listener, subprocess.Popen[bytes]], socket.socket],
) -> None:
    with (
        connecting(listener.uds, 5000, "--linger", "inf", engine=engine) as child,
        phase(listener, child) as far,
    ):
        child.send_signal(number)
        assert complaint(child) == (128 + number, [])
        await_end(far)


def test_a_signal_ends_it_while_the_reader_of_a_socket_stalls(listener: Listener, engine: str) -> None:
    ends = Ends("socketpair")
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        push(far.fileno(), bytes(8 * MIB))
        child.terminate()
        assert complaint(child) == (128 + signal.SIGTERM, [])
        await_end(far)
    ends.end_input()
    os.close(ends.drain)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_tests_signals_end_what_they_start_however_they_were_started(number: signal.Signals) -> None:
    child = f"import os, signal; os.kill(os.getpid(), {number:d})"
    tests = f"import subprocess, sys, conftest; print(subprocess.call([sys.executable, '-c', {child!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", tests],
        cwd=ROOT / "tests",
        preexec_fn=partial(signal.signal, number, signal.SIG_IGN),
        capture_output=True,
        timeout=HANG,
        check=True,
    )
    assert int(done.stdout) == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(
    listener: Listener, engine: str, number: signal.Signals
) -> None:
    with connecting(
        listener.uds, 5000, engine=engine, preexec_fn=partial(signal.signal, number, signal.SIG_IGN)
    ) as child:
        with idle(listener, child) as far:
            child.send_signal(number)
            say_hello(child, far)
        assert complaint(child) == (0, [])


# Ctrl-C in the middle of the imports: a program, and the module at whose import it comes.
EARLY = """
import os, runpy, signal, sys
program, module, *sys.argv[1:] = sys.argv[1:]
class Interrupt:
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["fastvsock.errors", "fastvsock.handshake", "fastvsock.relaying"])
def test_ctrl_c_during_the_start_leaves_no_traceback(module: str) -> None:
    words = [sys.executable, "-c", EARLY, "fastvsock.entry", module]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_during_the_start_of_one_that_ignores_it_is_ignored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, "fastvsock.entry", "fastvsock.handshake", "--version"],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout[:20]) == (0, b"runcvm-vsock-connect")


def test_importing_the_program_leaves_ctrl_c_to_whoever_imports_it() -> None:
    look = "import signal; before = signal.getsignal(2); import fastvsock.entry; assert signal.getsignal(2) == before"
    subprocess.run([sys.executable, "-c", look], timeout=HANG, check=True)


def test_sigpipe_never_kills_it(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, 5000, engine=engine) as child:
        with idle(listener, child) as far:
            child.send_signal(signal.SIGPIPE)
            say_hello(child, far)
        assert complaint(child) == (0, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_storm_of_harmless_signals_costs_no_byte(listener: Listener, engine: str, kind: str) -> None:
    pauses = Shape([(9_000, 800)] * 500)
    up, down = Way(6 * MIB, pauses), Way(6 * MIB + 1, pauses)
    ends = Ends(kind)
    over = threading.Event()

    def storm() -> None:
        count = 0
        while not over.is_set() or count < 5000:
            for number in (signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG, signal.SIGSTOP, signal.SIGCONT):
                os.kill(child.pid, number)
                count += 1
            time.sleep(0.0005)

    with commanding(listener, ends, engine) as child, listener.accept() as far:
        storming = threading.Thread(target=storm)
        storming.start()
        try:
            assert exchange(ends, far, up, down) == (up.sum, down.sum)
        finally:
            over.set()
            storming.join(HANG)  # before anybody waits for the child: its number stays its own
            os.kill(child.pid, signal.SIGCONT)
        assert complaint(child) == (0, [])


# Limits

LIMITED = """
import resource, sys
from fastvsock import entry
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)),) * 2)
entry.main()
"""


@pytest.mark.parametrize("limit", range(3, 14))
@pytest.mark.parametrize("kind", KINDS)
def test_with_few_descriptors_it_works_or_tells_what_is_missing(
    listener: Listener, engine: str, kind: str, limit: int
) -> None:
    ends = Ends(kind)
    up, down = Way(300_000), Way(300_001)
    options = ["--linger", "0", "--engine", engine, listener.uds, "5000"]
    with started([sys.executable, "-c", LIMITED, str(limit), *options], stdin=ends.rfd, stdout=ends.wfd) as child:
        ends.close_theirs()
        arrived: list[tuple[bytes, bytes]] = []
        relaying = threading.Thread(target=lambda: arrived.append(exchange(ends, listener.accept(), up, down)))
        if limit > 3:  # or there is no socket to connect with
            relaying.start()
        status, lines = complaint(child)
        if limit > 3:
            relaying.join(HANG)
        if status:
            (line,) = lines
            assert (status, line[:11]) == (1, b"fastvsock: ")
            assert b"Too many open files" in line
        else:
            assert (arrived, lines) == ([(up.sum, down.sum)], [])
    assert status or limit > 4
    assert not status or limit < 13


def test_descriptors_that_run_out_in_mid_transfer_cost_no_byte(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, 5000, "--linger", "0", engine=engine) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with idle(listener, child) as far:
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (3, 3))
            pushed = push(far.fileno(), pattern(3 * MIB))
            child.stdin.close()
            await_end(far)
        assert read_exactly(child.stdout.fileno(), 4 * MIB) == pattern(pushed)
        assert complaint(child) == (0, [])


def test_a_relay_without_a_thread_says_so_and_leaks_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", fail)
    near, far = socket.socketpair()
    with near, far, Path(os.devnull).open("r+b") as null:
        before = descriptors(), threads()
        with pytest.raises(errors.RelayError, match="cannot relay: can't start new thread"):
            api.relay(near, null.fileno(), null.fileno(), engine=engine)
        assert settled(before) == before


def test_a_stalled_consumer_stops_the_producer_and_memory_does_not_grow(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, 5000, engine=engine) as child, idle(listener, child) as far:
        assert child.stdin is not None
        assert child.stdout is not None
        before = memory(child.pid)
        up = push(child.stdin.fileno(), pattern(64 * MIB))
        down = push(far.fileno(), pattern(64 * MIB))
        # Up: a raised pipe and the send buffer, of which the kernel makes twice the 4 MiB. Down: a raised pipe, what
        # the pump holds, and the socket. And something in between.
        assert up < 12 * MIB
        assert down < 5 * MIB
        assert memory(child.pid) - before < 3 * MIB
        assert read_exactly(child.stdout.fileno(), down) == pattern(down)
        arrived = b""
        while len(arrived) < up:
            arrived += far.recv(MIB)
        assert arrived == pattern(up)


def memory(pid: int) -> int:
    """The memory of a process, in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


# A thousand relays


def guest_closes(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """The guest says something and closes."""
    far.sendall(b"x" * 100)
    far.close()
    return relay.run().ended


def guest_resets(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """The guest closes with bytes unread."""

    def reset() -> None:
        await_readable(far)
        far.close()

    write_all(ends.feed, b"x")
    threading.Thread(target=reset).start()
    return relay.run().ended


def reader_goes(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """Nobody reads, and nobody writes: with a pair of sockets that is one event."""
    far.sendall(b"x")
    os.close(ends.drain)
    os.close(ends.feed)
    ends.drain = ends.feed = -1
    return relay.run().ended


def is_stopped(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """Somebody else stops it."""
    threading.Thread(target=relay.stop).start()
    return relay.run().ended


def test_a_thousand_relays_leak_no_descriptor_and_no_thread(engine: str) -> None:
    ways = [(guest_closes, "guest"), (guest_resets, "error"), (reader_goes, "reader"), (is_stopped, "stopped")]
    before = descriptors(), threads()
    for number in range(1000):
        way, ended = ways[number % 4]
        ends = Ends(KINDS[number // 4 % 2])
        near, far = socket.socketpair()
        with near, far:
            assert way(Relay(near, ends.rfd, ends.wfd, engine=engine), far, ends) == ended, (number, way)
        ends.close_theirs()
        for fd in {ends.feed, ends.drain} - {-1}:
            os.close(fd)
    assert settled(before) == before


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


def test_to_stop_a_relay_that_has_ended_touches_no_descriptor(engine: str) -> None:
    near, far = socket.socketpair()
    with near, far, Path(os.devnull).open("r+b") as null:
        relay = Relay(near, null.fileno(), null.fileno(), engine=engine)
        far.close()
        assert relay.run().ended == "guest"
        taken = [os.pipe() for _ in range(4)]  # the numbers that the relay had are given out again
        relay.stop()
        readable = select.select([rfd for rfd, _ in taken], [], [], 0)[0]
        for fd in (fd for pipe in taken for fd in pipe):
            os.close(fd)
        assert readable == []

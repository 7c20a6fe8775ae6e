"""Signals, in each phase: they end it with the conventional status, or cost no byte."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from support import HANG, ROOT, Listener, connecting
from support.exchange import KINDS, Ends, Shape, Way, commanding, exchange
from support.faults import await_end, complaint, idle, push, say_hello

MIB = 1 << 20
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def in_handshake(listener: Listener, child: subprocess.Popen[bytes]) -> socket.socket:
    """It has asked, and waits."""
    return listener.accept(b"")


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
    words = [sys.executable, "-c", EARLY, "fastvsock.runcvm_vsock_connect", module]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_during_the_start_of_one_that_ignores_it_is_ignored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, "fastvsock.runcvm_vsock_connect", "fastvsock.handshake", "--version"],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout[:20]) == (0, b"runcvm-vsock-connect")


def test_importing_the_program_leaves_ctrl_c_to_the_program_that_imports_it() -> None:
    look = "import signal; before = signal.getsignal(2); import fastvsock.runcvm_vsock_connect as it; "
    look += "assert signal.getsignal(2) == before"
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

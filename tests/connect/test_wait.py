"""--wait: what it waits through, for how long, and what ends it."""

import os
import signal
import time
from pathlib import Path

import pytest

from support import HANG, Listener, connecting, run
from support.sentences import outcome, sentence
from support.sockets import bound, take

PORT = 5003


def test_wait_goes_through_all_that_a_booting_guest_shows(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with connecting(str(path), PORT, "--wait", str(HANG)) as child:
        time.sleep(0.3)  # no such socket; too short for a slow child, and this is only an easier test
        with bound(path) as sock:
            time.sleep(0.3)  # connection refused
            sock.listen()
            take(sock).close()  # reset
            with take(sock) as connection:  # closed without OK
                connection.recv(100)
            with take(sock) as connection:
                connection.recv(100)
                connection.sendall(b"OK 1073741824\npayload")
            done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_wait_gives_up_with_the_last_cause(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--wait", "1") as child:
        connection = listener.accept(b"")
        os.unlink(listener.uds)
        connection.close()  # only now the first attempt fails, as refused; every later one finds no socket
        sentence(outcome(child), f"{listener.uds}: no such socket", str(PORT))


def test_wait_waits_as_long_as_it_says(listener: Listener) -> None:
    listener.close()
    before = time.monotonic()
    sentence(run("--wait", "1", listener.uds, str(PORT)), "connection refused")
    assert time.monotonic() - before >= 1


def test_wait_does_not_retry_what_waiting_cannot_mend(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--wait", str(HANG)) as child, listener.accept(b"SSH-2.0\n"):
        sentence(outcome(child), "the answer to CONNECT")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_quietly(number: signal.Signals, listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--wait", str(HANG)) as child:
        listener.accept(b"").close()
        child.send_signal(number)
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


def test_a_signal_ends_the_handshake_quietly(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--timeout", str(HANG)) as child, listener.accept(b"OK 10"):
        child.send_signal(signal.SIGINT)
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_wait_goes_through_attempts_that_get_no_answer(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--timeout", "0.5", "--wait", str(HANG)) as child:
        with listener.accept(b""), listener.accept(b""), listener.accept(b"OK 1073741824\npayload"):
            pass
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_an_attempt_that_can_be_repeated_is_short(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--timeout", str(2 * HANG), "--wait", str(2 * HANG)) as child:
        with listener.accept(b""), listener.accept(b"OK 1073741824\n"):
            pass  # the second comes long before the timeout of the first
        assert outcome(child).returncode == 0


def test_the_last_attempt_gets_the_whole_timeout(listener: Listener) -> None:
    before = time.monotonic()
    with connecting(listener.uds, PORT, "--timeout", "3", "--wait", "0.5") as child, listener.accept(b""):
        sentence(outcome(child), f"{listener.uds}: no answer for guest port {PORT} within 3 s")
    assert time.monotonic() - before >= 3

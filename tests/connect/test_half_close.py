"""The command and a guest that half-closes, as Cloud Hypervisor passes it on from 53.0; and a lost answer reported."""

import os
import socket
import threading

import pytest

from support import HANG, LATE_SOURCE, Endpoint, Listener, connecting, pattern, run, write_all
from support.exchange import KINDS, Ends
from support.faults import complaint, say_hello
from support.guests import drain

PAYLOAD = pattern(3_000_000)


def feed(ends: Ends) -> None:
    """The whole input, and its end."""
    write_all(ends.feed, PAYLOAD)
    ends.end_input()


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_sends_no_more_gets_everything_and_stdout_ends_at_once(
    listener: Listener, engine: str, kind: str
) -> None:
    ends = Ends(kind)
    with connecting(listener.uds, 5000, engine=engine, stdin=ends.rfd, stdout=ends.wfd) as child:
        ends.close_theirs()
        with listener.accept() as far:
            far.shutdown(socket.SHUT_WR)
            assert os.read(ends.drain, 10) == b""
            feeding = threading.Thread(target=feed, args=(ends,))
            feeding.start()
            assert drain(far) == PAYLOAD
            feeding.join(HANG)
        assert complaint(child) == (0, [])
    os.close(ends.drain)


def test_a_half_closed_guest_that_closes_ends_the_process_although_stdin_is_open(
    listener: Listener, engine: str
) -> None:
    with connecting(listener.uds, 5000, engine=engine) as child:
        with listener.accept() as far:
            say_hello(child, far)
            far.shutdown(socket.SHUT_WR)
            assert child.stdout.read() == b""
            write_all(child.stdin.fileno(), b"more")
            assert far.recv(10) == b"more"
        assert complaint(child) == (0, [])


def test_an_answer_that_comes_later_than_linger_is_reported_as_lost(endpoint: Endpoint, engine: str) -> None:
    done = run("--linger", "0.2", endpoint.uds, str(LATE_SOURCE), engine=engine, input=b"a question")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == (
        "fastvsock: the guest sent nothing after the connection was half-closed at the end of stdin: if an answer is "
        "missing, the VMM has dropped it (--linger SECONDS waits longer for an answer, --linger inf without limit)\n"
    )


def test_an_answer_after_the_half_close_comes_through_where_the_vmm_passes_it_on(
    listener: Listener, engine: str
) -> None:
    with connecting(listener.uds, 5000, "--linger", "0", engine=engine) as child:
        with listener.accept() as far:
            write_all(child.stdin.fileno(), b"a question")
            child.stdin.close()
            assert drain(far) == b"a question"
            far.sendall(b"an answer")
        assert child.stdout.read() == b"an answer"
        assert complaint(child) == (0, [])

"""A near end that is gone is noticed whatever it is, and an input that breaks costs no answer."""

import os
import pty
import socket
import time
from collections.abc import Callable

import pytest

from support import HANG, Listener, connecting, pattern
from support.faults import await_end, complaint, push, reset, say_hello

PORT = 5003
Pair = Callable[[], tuple[socket.socket, socket.socket]]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


@pytest.mark.parametrize("pair", [tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def test_a_socket_as_stdin_and_stdout_whose_peer_closes_ends_it(listener: Listener, engine: str, pair: Pair) -> None:
    ours, theirs = pair()
    with ours, connecting(listener.uds, PORT, engine=engine, stdin=theirs, stdout=theirs) as child:
        theirs.close()
        with listener.accept() as far:
            far.sendall(b"hello")
            assert ours.recv(10) == b"hello"
            ours.close()  # nothing was ever sent, so that there is no half-close either
            await_end(far)
        assert complaint(child) == (0, [])


@pytest.mark.parametrize("after", ["nothing", "a half-close", "more than the guest reads"])
def test_a_tcp_client_that_resets_ends_it_although_the_guest_is_silent(
    listener: Listener, engine: str, after: str
) -> None:
    ours, theirs = tcp_pair()
    options = ("--linger", "inf")
    with connecting(listener.uds, PORT, *options, engine=engine, stdin=theirs, stdout=theirs) as child:
        theirs.close()
        with ours, listener.accept() as far:
            ours.sendall(b"hello")
            assert far.recv(9) == b"hello"
            if after == "a half-close":
                ours.shutdown(socket.SHUT_WR)
                time.sleep(0.2)  # the relay has met the end of its input, and goes on
                far.sendall(b"answer")
                assert ours.recv(9) == b"answer"
            elif after == "more than the guest reads":
                push(ours.fileno(), bytes(20 << 20))
            reset(ours)
            assert complaint(child) == (0, [])
            await_end(far)


def test_a_half_close_of_a_tcp_client_is_not_its_end(listener: Listener, engine: str) -> None:
    ours, theirs = tcp_pair()
    with ours, connecting(listener.uds, PORT, engine=engine, stdin=theirs, stdout=theirs) as child:
        theirs.close()
        with listener.accept() as far:
            ours.sendall(b"ask")
            ours.shutdown(socket.SHUT_WR)
            assert far.recv(9) == b"ask"
            assert far.recv(9) == b"", "passed on after --linger"
            time.sleep(0.5)
            far.sendall(b"answer")
        assert ours.recv(9) == b"answer"
        assert ours.recv(9) == b""
        assert complaint(child) == (0, [])


def test_a_terminal_that_is_hung_up_ends_it(listener: Listener, engine: str) -> None:
    controller, terminal = pty.openpty()
    with connecting(listener.uds, PORT, engine=engine, stdin=terminal, stdout=terminal) as child:
        os.close(terminal)
        with listener.accept() as far:
            os.write(controller, b"x\n")
            assert far.recv(10) == b"x\n"
            os.close(controller)
            await_end(far)
        assert child.wait(HANG) in (0, 1)


def test_a_pipe_whose_reader_leaves_ends_it(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, engine=engine) as child, listener.accept() as far:
        say_hello(child, far)
        child.stdout.close()
        await_end(far)
        assert complaint(child) == (0, [])


def test_an_input_that_breaks_ends_like_any_other_and_is_reported_at_the_end(listener: Listener, engine: str) -> None:
    controller, terminal = pty.openpty()  # whose reader gets EIO once the terminal is closed
    answer = pattern(1_000_000)
    with connecting(listener.uds, PORT, engine=engine, stdin=controller) as child:
        os.write(terminal, b"q")
        with listener.accept() as far:
            assert far.recv(1) == b"q"
            os.close(terminal)
            time.sleep(0.2)  # the relay has met the error
            far.sendall(answer[:500_000])
            far.sendall(answer[500_000:])
        assert child.stdout.read() == answer
        assert complaint(child) == (1, [b"fastvsock: cannot read the input: Input/output error"])
    os.close(controller)

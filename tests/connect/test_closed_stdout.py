"""A closed stdout: it ends a connection as a closed pipe does, and does no harm where nothing is said."""

import pytest

from support import HANG, Listener, called, command, started

PORT = 5003
CLOSED = ["sh", "-c", 'exec "$@" >&-', "sh"]


@pytest.mark.parametrize("program", ["runcvm-vsock-connect", "fastvsock"])
def test_the_first_byte_for_a_closed_stdout_ends_it_as_one_for_a_closed_pipe_does(
    listener: Listener, engine: str, program: str
) -> None:
    words = [*called(program), *(["connect"] if program == "fastvsock" else [])]
    with (
        started([*CLOSED, *words, "--engine", engine, listener.uds, str(PORT)]) as child,
        listener.accept(b"OK 1073741824\n") as far,
    ):
        child.stdin.write(b"goes up all the same")
        assert far.recv(100) == b"goes up all the same"
        far.sendall(b"x")
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")


def test_a_closed_stdout_does_no_harm_where_nothing_is_said(listener: Listener, engine: str) -> None:
    with started([*CLOSED, *command(listener.uds, str(PORT), engine=engine)]) as child, listener.accept() as far:
        child.stdin.write(b"up")
        assert far.recv(100) == b"up"
        far.close()
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")

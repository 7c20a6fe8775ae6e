"""A place to listen at that is taken: what is there already comes to no harm."""

import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastvsock import errors
from fastvsock.host import addresses, listeners
from support import HANG, started
from support.services import FarEnd, ask, connect, pass_as, receive, service_command, serving


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The lock on a folder that anybody who may read it can hold."""
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(held)


def test_a_second_start_at_the_same_place_does_not_end_the_first(tmp_path: Path) -> None:
    words = service_command("listen", "--ready-fd", "2", str(tmp_path / "v.sock"), "5201")
    with started(words) as first:
        assert first.stderr.readline()
        second = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
        assert b"another process listens on it" in second.stderr
        with connect(f"unix:{tmp_path}/v.sock_5201") as guest:
            first.stdin.write(b"x")
            assert receive(guest, 1) == b"x", "the first connection is this one"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_any_kind_that_somebody_holds_is_left_alone(tmp_path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as held:
        held.bind(str(tmp_path / "held"))
        with pytest.raises(errors.FastvsockError, match="another process listens on it"):
            listeners.open_listener(addresses.Address(path=str(tmp_path / "held")))
    listeners.open_listener(addresses.Address(path=str(tmp_path / "held"))).close()  # nobody's now


def test_a_lock_on_the_folder_holds_up_neither_start_nor_end(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with locked(tmp_path), serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7") as proxy:
        assert ask(proxy.address, b"x") == b"x"
        assert proxy.end() == (0, "")
        assert not path.exists()


def test_a_stale_socket_that_is_locked_is_reported_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with locked(tmp_path), pytest.raises(errors.FastvsockError, match="another process keeps its folder locked"):
        listeners.open_listener(addresses.Address(path=str(tmp_path / "stale")))


def test_a_passed_socket_of_another_family_is_reported_in_a_sentence(far_end: FarEnd) -> None:
    try:
        passed = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        passed.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        passed.listen()
    except OSError as error:
        pytest.skip(f"this machine: no AF_VSOCK: {error}")
    with passed:
        done = subprocess.run(
            [*pass_as(passed.fileno(), 3), *service_command("proxy", far_end.uds, "7")],
            capture_output=True,
            pass_fds=[passed.fileno()],
            env=os.environ | {"LISTEN_FDS": "1"},
            timeout=HANG,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"fastvsock: descriptor 3 of LISTEN_FDS is neither a TCP nor a Unix socket\n"

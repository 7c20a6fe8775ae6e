"""`listen` to a datagram socket, such as a service manager's: one connection of the guest's is one message."""

import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import HANG
from support.listen import listening_on
from support.services import Running, connect, eventually, receive, serving

READY = b"READY=1\nSTATUS=up"


@pytest.fixture(params=["path", "long path", "abstract"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each way to name a Unix socket."""
    if request.param == "abstract":
        return f"@fastvsock-{os.getpid()}-{tmp_path.name}"
    folder = tmp_path / ("d" * (100 if request.param == "long path" else 1))
    folder.mkdir()
    return str(folder / "notify")


@pytest.fixture
def manager(name: str) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(HANG)
        if name.startswith("@"):
            sock.bind(f"\0{name[1:]}")
        else:
            folder = os.open(os.path.dirname(name), os.O_PATH)
            sock.bind(f"/proc/self/fd/{folder}/notify")
            os.close(folder)
        yield sock


def listening(target: str, tmp_path: Path, *options: str, kind: str = "--unix") -> list[str]:
    return ["listen", *options, kind, target, str(tmp_path / "v.sock"), "9"]


@pytest.mark.parametrize("kind", ["--unix", "--unix-datagram"])
def test_each_connection_is_one_message(name: str, manager: socket.socket, tmp_path: Path, kind: str) -> None:
    with serving(*listening(name, tmp_path, kind=kind)) as service:
        for message in (READY, b"STOPPING=1"):
            with connect(service.address) as guest:
                for start in range(0, len(message), 4):  # in pieces, which do not matter
                    guest.sendall(message[start : start + 4])
                guest.shutdown(socket.SHUT_WR)
                assert manager.recv(4096) == message
                assert receive(guest) == b"", "the guest is not left waiting"
        assert service.end() == (0, "")


def nothing_but(manager: socket.socket, service: Running, expected: bytes) -> str:
    """Send one more message; what the service said, if nothing else was delivered before."""
    with connect(service.address) as guest:
        guest.sendall(expected)
    assert manager.recv(4096) == expected
    status, said = service.end()
    assert status == 0
    return said


def test_an_idle_timeout_ends_a_message_whose_end_the_vmm_hides(
    name: str, manager: socket.socket, tmp_path: Path
) -> None:
    with serving(*listening(name, tmp_path, "--idle-timeout", "0.5")) as service:
        with connect(service.address) as guest:
            guest.sendall(READY)
            assert receive(guest) == b""
            assert manager.recv(4096) == READY
        said = nothing_but(manager, service, b"next")
    expected = f"the guest sent {len(READY)} bytes, then nothing for 0.5 s: delivered as they are"
    assert said == f"fastvsock: a connection: {expected}\n"


def test_a_connection_without_a_word_delivers_nothing(name: str, manager: socket.socket, tmp_path: Path) -> None:
    with serving(*listening(name, tmp_path, "--idle-timeout", "0.3")) as service:
        connect(service.address).close()
        with connect(service.address) as guest:
            assert receive(guest) == b""
        said = nothing_but(manager, service, b"next")
    assert said == "fastvsock: a connection: the guest sent nothing for 0.3 s (--idle-timeout SECONDS waits longer)\n"


def test_half_a_message_is_none(name: str, manager: socket.socket, tmp_path: Path) -> None:
    with serving(*listening(name, tmp_path)) as service:
        # A message that is too long is one way to break off; a Unix socket's peer has no other but unread input.
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(service.address.removeprefix("unix:"))
            guest.sendall(b"x" * ((1 << 18) + 1))
        eventually(lambda: "was not delivered" in service.child.stderr.readline().decode(), True)
        nothing_but(manager, service, READY)


def test_a_message_that_the_service_does_not_wait_for_is_not_delivered(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        words = listening(str(tmp_path / "notify"), tmp_path, "--grace", "0.3")
        with serving(*words) as service, connect(service.address) as guest:
            guest.sendall(READY[:4])
            assert service.end()[0] == 0
            with pytest.raises(BlockingIOError):
                manager.recv(4096)


def test_a_manager_that_is_not_there_is_reported_and_the_guest_gets_its_end(tmp_path: Path) -> None:
    with serving(*listening(str(tmp_path / "no"), tmp_path, kind="--unix-datagram")) as service:
        with connect(service.address) as guest:
            guest.sendall(READY)
            guest.shutdown(socket.SHUT_WR)
            assert receive(guest) == b""
        status, said = service.end()
    assert (status, said) == (
        0,
        f"fastvsock: a connection: cannot connect to {tmp_path}/no: No such file or directory\n",
    )


def test_a_manager_that_does_not_read_is_reported(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with serving(*listening(str(tmp_path / "notify"), tmp_path, "--timeout", "0.3")) as service:
            for _ in range(600):  # net.unix.max_dgram_qlen, and some
                with connect(service.address) as guest:
                    guest.sendall(READY)
                    guest.shutdown(socket.SHUT_WR)
                    receive(guest)
                if select_error(service):
                    break
            assert b"cannot deliver to " in service.child.stderr.readline()


def select_error(service: Running) -> bool:
    """Whether the service has said something."""
    return bool(select.select([service.child.stderr], (), (), 0)[0])


def test_a_stream_socket_is_still_joined_as_a_stream(tmp_path: Path) -> None:
    for target in (str(tmp_path / "target"), f"@fastvsock-{os.getpid()}-stream"):
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(HANG)
            server.bind(f"\0{target[1:]}" if target.startswith("@") else target)
            server.listen()
            with serving(*listening(target, tmp_path)) as service, connect(service.address) as guest:
                near, _ = server.accept()
                with near:
                    guest.sendall(b"x")
                    assert near.recv(1) == b"x"
                    near.sendall(b"y")
                    assert receive(guest, 1) == b"y"


def test_two_targets_are_wrong_usage(tmp_path: Path) -> None:
    words = listening_on(str(tmp_path / "v.sock"), "--unix", "/a", "--unix-datagram", "/b")
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 2

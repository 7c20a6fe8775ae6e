"""The emulator's socket file: replaced, left alone, removed."""

import errno
import fcntl
import os
import socket
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from fastvsock.emulator import DEFAULT_SERVICES, Emulator, Exec
from fastvsock.errors import EmulatorError
from fastvsock.host import socket_file
from support import HANG
from support.guests import SOON, connect, dial, failing


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(uds)
        old.listen()
    with Emulator(uds):
        connect(uds, 7).close()
    assert not os.path.exists(uds)


def test_a_live_socket_is_left_alone(tmp_path: Path, emulator: Emulator) -> None:
    with pytest.raises(EmulatorError, match="another process listens on it"):
        Emulator(emulator.uds).start()
    connect(emulator.uds, 7).close()


def test_a_listener_is_left_alone_without_being_connected_to(tmp_path: Path) -> None:
    # One that serves a single connection would have served it.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v.sock"))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(EmulatorError, match="another process listens on it"):
            Emulator(tmp_path / "v.sock").start()
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_socket_of_any_kind_that_a_process_has_open_is_left_alone(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX, kind) as bound:
        bound.bind(str(path))
        with pytest.raises(EmulatorError, match="another process listens on it"):
            Emulator(path).start()
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_a_file_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(EmulatorError, match="socket"):
        Emulator(path).start()
    assert path.read_text() == "data"


def test_a_socket_that_has_taken_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with Emulator(path):
        path.rename(tmp_path / "moved")  # else the new one might get the old one's inode number
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert stat.S_ISSOCK(path.lstat().st_mode)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="cannot listen there: No such file"):
        Emulator(tmp_path / "not" / "there").start()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    uds = str(folder / "v.sock")
    with Emulator(uds) as emulator:
        descriptor = os.open(folder, os.O_PATH)
        with closing(connect(f"/proc/self/fd/{descriptor}/v.sock", 7)) as host:
            host.sendall(b"x")
            assert host.recv(1) == b"x"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{descriptor}/v.sock_5")
            listener.listen()
            emulator.connect_to_host(5).close()
        os.close(descriptor)
    assert not os.path.lexists(uds)


def test_a_closed_emulator_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Emulator(tmp_path / "v.sock", {7: DEFAULT_SERVICES[7], 1: Exec(("cat",))}) as emulator:
        hosts = [connect(emulator.uds, port) for port in (7, 1)] + [dial(emulator.uds)]
        for host in hosts[:2]:
            host.sendall(b"x")
            assert host.recv(1) == b"x"
    for host in hosts:
        assert host.recv(1) == b""
        host.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_of_several_emulators_that_find_a_stale_socket_one_wins(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(uds)
    emulators = [Emulator(uds) for _ in range(8)]
    failures: list[BaseException] = []
    starters = [threading.Thread(target=failing, args=(emulator.start, failures)) for emulator in emulators]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(HANG)
    connect(uds, 7).close()
    for emulator in emulators:
        emulator.close()
    assert [type(failure) for failure in failures] == [EmulatorError] * 7
    assert not os.path.lexists(uds)


def test_an_emulator_waits_while_another_looks_at_a_stale_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_file, "LOCK_PATIENCE", HANG)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "v.sock"))
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    emulator = Emulator(tmp_path / "v.sock")
    starter = threading.Thread(target=emulator.start)
    starter.start()
    starter.join(SOON)
    assert starter.is_alive()
    os.close(folder)
    starter.join(HANG)
    connect(emulator.uds, 7).close()
    emulator.close()


def test_a_folder_that_another_process_keeps_locked_delays_neither_the_start_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_file, "LOCK_PATIENCE", 0.2)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with Emulator(tmp_path / "first") as running:
        with pytest.raises(EmulatorError, match="another process keeps its folder locked") as caught:
            Emulator(tmp_path / "stale").start()
        assert caught.value.errno == errno.EAGAIN
    assert not os.path.lexists(running.uds)
    os.close(folder)

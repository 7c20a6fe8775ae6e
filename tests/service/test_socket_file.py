"""The file of a listening Unix socket: what the emulator's and the services' tests do not reach."""

import errno
import fcntl
import os
import socket
import threading
from pathlib import Path

import pytest

from fastvsock.host import socket_file
from fastvsock.host.socket_file import SocketFile


def test_a_datagram_socket_with_a_peer_is_left_alone(tmp_path: Path) -> None:
    # It turns any other socket away with EPERM: unix_may_send() in net/unix/af_unix.c.
    path = tmp_path / "held"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held, socket.socket(socket.AF_UNIX, held.type) as peer:
        held.bind(str(path))
        peer.bind(str(tmp_path / "peer"))
        held.connect(str(tmp_path / "peer"))
        with SocketFile(str(path)) as file, pytest.raises(OSError, match=socket_file.IN_USE) as caught:
            file.listen(1)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.is_socket()


def test_a_listen_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with SocketFile(str(path)) as file, pytest.raises(OverflowError):
        file.listen(1 << 40)
    assert not os.path.lexists(path)


def test_the_folder_of_a_replaced_socket_stays_unlocked(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with SocketFile(str(path)) as file, file.listen(1):
        other = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_a_change_of_directory_does_not_keep_it_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SocketFile("v.sock") as file, file.listen(1):
        monkeypatch.chdir("/")
        file.remove()
    assert not os.path.lexists(tmp_path / "v.sock")


def test_one_thread_at_a_time_changes_the_umask() -> None:
    def change() -> None:
        with socket_file._umask(0o660):
            changed.set()

    changed = threading.Event()
    before = os.umask(0o22)
    with socket_file._umask(0o600):
        other = threading.Thread(target=change)
        other.start()
        assert not changed.wait(0.2)
    other.join()
    assert os.umask(before) == 0o22


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SocketFile(str(tmp_path / "not" / "v.sock"))

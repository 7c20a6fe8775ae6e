"""Where a service listens: ports, Unix sockets, and what is at that place already."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from fastvsock import errors
from fastvsock.host import addresses, listeners
from support.services import FarEnd, ask, connect, run_proxy, serving


def test_the_kernel_chooses_the_port_on_loopback(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as one, serving("proxy", far_end.uds, "7") as two:
        assert one.address.startswith("127.0.0.1:")
        assert 0 < one.port != two.port > 0


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:5"])
def test_an_address_that_is_not_loopback_must_be_allowed(far_end: FarEnd, address: str) -> None:
    done = run_proxy("--listen", address, far_end.uds, "7")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"fastvsock: {address} is reachable from other machines".encode())
    assert str(addresses.parse(address, remote=True)) == address


@pytest.mark.parametrize("address", ["", "80", "unix:", "127.0.0.1", "127.0.0.1:65536", "::1:80", "example.com:80"])
def test_an_invalid_address_is_reported_with_what_is_expected(address: str) -> None:
    with pytest.raises(errors.UsageError, match=r"^invalid --listen .* expected 127\.0\.0\.1:PORT"):
        addresses.parse(address, remote=True)


def test_a_port_that_is_taken_is_reported_in_a_sentence(far_end: FarEnd) -> None:
    with serving("proxy", far_end.uds, "7") as proxy:
        done = run_proxy("--listen", proxy.address, far_end.uds, "7")
    assert done.returncode == 1
    assert done.stderr == f"fastvsock: cannot listen on {proxy.address}: Address already in use\n".encode()


def test_a_socket_file_is_its_owners_alone_and_goes_with_the_proxy(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7", umask=0) as proxy:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(proxy.address, b"x") == b"x"
        assert proxy.end() == (0, "")
    assert not path.exists()


def test_the_mode_of_the_socket_file_can_be_chosen(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with serving("proxy", "--mode", "660", "--listen", f"unix:{path}", far_end.uds, "7", umask=0o77) as proxy:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert ask(proxy.address, b"x") == b"x"


def test_a_path_that_others_cannot_connect_to_is_reported_at_the_start(far_end: FarEnd, tmp_path: Path) -> None:
    fits = f"{tmp_path}/{'x' * (107 - len(f'{tmp_path}/'))}"
    uds = fits[:-2]  # with _9 behind it
    for arguments, size in (
        (["proxy", "--listen", f"unix:{fits}", far_end.uds, "7"], 0),
        (["proxy", "--listen", f"unix:{fits}x", far_end.uds, "7"], 108),
        (["listen", uds, "9", "--", "cat"], 0),
        (["listen", uds, "10", "--", "cat"], 108),
    ):
        with serving(*arguments) as service:
            status, said = service.end()
        assert status == 0
        expected = f" has {size} bytes, and a Unix socket address 107: most programs, a VMM among them, cannot connect"
        assert said.startswith("fastvsock: warning: ") == bool(size), said
        assert (expected in said) == bool(size)


def test_a_socket_file_is_never_open_to_others_not_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            seen.append(stat.S_IMODE(os.stat(str(address)).st_mode))

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(0)
    try:
        listeners.open_listener(addresses.Address(path=str(tmp_path / "listen"))).close()
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_stale_socket_file_is_replaced(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7") as proxy:
        assert ask(proxy.address, b"x") == b"x"


def test_a_live_socket_file_is_left_alone(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "listen"
    with serving("proxy", "--listen", f"unix:{path}", far_end.uds, "7") as proxy:
        done = run_proxy("--listen", f"unix:{path}", far_end.uds, "7")
        assert done.returncode == 1
        assert b"another process listens on it" in done.stderr
        assert ask(proxy.address, b"x") == b"x"


def test_what_is_no_socket_is_left_alone(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    done = run_proxy("--listen", f"unix:{path}", far_end.uds, "7")
    assert done.returncode == 1
    assert b"the path exists and is not a socket" in done.stderr
    assert path.read_text() == "data"


def test_of_many_that_find_one_stale_socket_file_one_gets_the_place(tmp_path: Path) -> None:
    address = addresses.Address(path=str(tmp_path / "listen"))
    umask = os.umask(0o22)
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(address.path)
        won: list[listeners.Listener] = []
        start = threading.Barrier(8)

        def one(won: list[listeners.Listener] = won, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                won.append(listeners.open_listener(address))
            except errors.FastvsockError:
                pass

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        connect(str(address)).close()
        won[0].close()
    assert os.umask(umask) == 0o22, "which is the whole process', and not one thread's"


def test_a_socket_file_that_another_process_has_put_there_since_is_left_alone(tmp_path: Path) -> None:
    address = addresses.Address(path=str(tmp_path / "listen"))
    first = listeners.open_listener(address)
    os.unlink(address.path)
    second = listeners.open_listener(address)
    first.close()
    connect(str(address)).close()
    second.close()


def test_a_path_longer_than_an_address_works(far_end: FarEnd, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    listener = listeners.open_listener(addresses.Address(path=str(folder / "listen")))
    held = os.open(folder, os.O_PATH)
    connect(f"unix:/proc/self/fd/{held}/listen").close()
    os.close(held)
    listener.close()
    assert not (folder / "listen").exists()

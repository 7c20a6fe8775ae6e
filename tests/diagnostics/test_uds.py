"""What `fastvsock doctor` finds out about a VMM's socket, and that it never connects without a request."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from fastvsock.diagnostics import uds
from support import ECHO, NOTHING, Endpoint, Listener, started
from support.bundles import findings


def test_a_vmm_that_answers_is_ok_with_the_time_that_it_took(endpoint: Endpoint) -> None:
    found = findings(endpoint.uds, str(ECHO))
    assert [found[name]["state"] for name in ("uds", "listener")] == ["ok", "ok"]
    assert found["handshake"]["state"] in ("ok", "warning")
    assert found["handshake"]["text"].startswith(f"guest port {ECHO} answered in ")
    assert found["handshake"]["text"].endswith(" ms")


def test_without_a_port_nothing_connects_and_the_finding_says_so(listener: Listener) -> None:
    found = findings(listener.uds, code=0)
    assert found["listener"]["text"].endswith("(checked without connecting)")
    assert found["handshake"]["text"].startswith("not tried: no guest port is given")
    listener._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_with_a_port_the_connection_carries_a_request_and_the_listener_is_named(tmp_path: Path) -> None:
    program = f"""
import os, socket
server = socket.socket(socket.AF_UNIX)
server.bind({str(tmp_path / "v.sock")!r})
server.listen()
print("listening", flush=True)
connection, _ = server.accept()
line = connection.recv(99)
connection.sendall(b"OK 1073741824\\n")
server.close()
print(line, flush=True)
"""
    with started([sys.executable, "-c", program]) as child:
        child.stdout.readline()
        found = findings(tmp_path / "v.sock", "22", code=0)
        assert child.stdout.readline() == b"b'CONNECT 22\\n'\n"
    assert found["vmm"]["text"].startswith("python")
    assert found["vmm"]["text"].endswith(f"listens (pid {child.pid})")


def test_every_connection_that_is_made_carries_a_request(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uds, "TIMEOUT", 0.1)
    findings(listener.uds, "22", code=1)
    listener._socket.setblocking(False)
    connection, _ = listener._socket.accept()
    with connection:
        assert connection.recv(99) == b"CONNECT 22\n"
    with pytest.raises(BlockingIOError):
        listener._socket.accept()


def test_a_listener_outside_of_the_pid_namespace_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uds, "peer_credentials", lambda sock: (0, 0, 0))
    one, other = socket.socketpair()
    with one, other:
        assert uds._vmm(one).text == "the process that listens is outside of this pid namespace"


def test_a_slow_answer_is_a_warning(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uds, "SLOW", 0.0)
    assert findings(endpoint.uds, str(ECHO), code=0)["handshake"]["state"] == "warning"


def test_a_port_where_nothing_listens_fails_the_handshake_only(endpoint: Endpoint) -> None:
    found = findings(endpoint.uds, str(NOTHING), code=1)
    assert found["listener"]["state"] == "ok"
    assert found["handshake"]["state"] == "failed"
    assert f"guest port {NOTHING} refused" in found["handshake"]["text"]
    assert "vmm" not in found


def test_a_uds_that_cannot_serve_is_reported_by_its_first_failure(tmp_path: Path, listener: Listener) -> None:
    listener.close()
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(tmp_path / "datagram"))
        for path, name, words in (
            (str(tmp_path / "none"), "uds", "No such file"),
            (str(tmp_path / "file"), "uds", "not a socket"),
            (listener.uds, "listener", "Connection refused"),
            (str(tmp_path / "datagram"), "listener", "not a stream socket"),
        ):
            found = findings(path, "22", code=1)
            assert found[name]["state"] == "failed"
            assert words in found[name]["text"]
            assert "handshake" not in found
            assert name == "listener" or "listener" not in found


@pytest.mark.skipif(os.getuid() != 0, reason="this machine: changing the user takes root")
def test_a_socket_that_this_user_may_not_use_is_a_failure_without_connecting(
    tmp_path: Path, listener: Listener
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.chmod(listener.uds, 0o600)
    os.seteuid(65534)
    try:
        found = uds._listener(listener.uds)
    finally:
        os.seteuid(0)
    assert (found.state, found.text) == ("failed", f"{listener.uds}: Permission denied")


def test_a_path_longer_than_an_address_is_not_a_failure(tmp_path: Path, endpoint: Endpoint) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    (deep / "v.sock").symlink_to(endpoint.uds)
    found = findings(str(deep / "v.sock"), str(ECHO), code=0)
    assert (found["listener"]["state"], found["vmm"]["state"]) == ("ok", "ok")


def test_a_short_path_is_checked_without_proc(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_proc(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        return real("/dev/null" if flags & os.O_PATH else path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", without_proc)
    assert findings(endpoint.uds, code=0)["listener"]["state"] == "ok"


def test_no_answer_is_reported_with_what_may_be_wrong_with_a_vmm(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uds, "TIMEOUT", 0.1)
    found = findings(listener.uds, "22", code=1)["handshake"]
    assert "no answer for guest port 22 within 0.1 s" in found["text"]
    assert found["advice"].startswith("check whether the VMM is paused, or out of file descriptors")

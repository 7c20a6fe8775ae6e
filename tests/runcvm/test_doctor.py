"""`fastvsock doctor`: each finding of this machine and of a VMM's socket, and what the command makes of it."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from fastvsock.cli import doctor
from fastvsock.diagnostics import machine, uds
from support import ECHO, NOTHING, Endpoint, Listener, started
from support.bundles import fastvsock, findings


def test_the_engine_and_why_it_is_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVSOCK_ENGINE", "copy")
    assert findings()["engine"]["text"] == "copy, since FASTVSOCK_ENGINE=copy"
    monkeypatch.setenv("FASTVSOCK_ENGINE", "quick")
    assert findings(code=1)["engine"]["state"] == "failed"
    monkeypatch.delenv("FASTVSOCK_ENGINE")
    monkeypatch.setitem(sys.modules, "fastvsock.engines._splice", None)
    monkeypatch.delattr("fastvsock.engines._splice", raising=False)
    found = findings(code=0)["engine"]
    assert found["state"] == "warning"
    assert found["text"].startswith("copy, which takes more CPU time: the splice engine is not there (")


def test_a_vmm_that_answers_is_well_and_says_how_fast(endpoint: Endpoint) -> None:
    found = findings(endpoint.uds, str(ECHO))
    assert [found[name]["state"] for name in ("uds", "connect")] == ["ok", "ok"]
    assert found["handshake"]["state"] in ("ok", "warning")
    assert found["handshake"]["text"].startswith(f"guest port {ECHO} answered in ")
    assert found["handshake"]["text"].endswith(" ms")


def test_without_a_port_no_handshake_is_made(endpoint: Endpoint) -> None:
    assert "handshake" not in findings(endpoint.uds, code=0)


def test_a_slow_answer_is_a_warning(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uds, "SLOW", 0.0)
    program = f"""
import socket
server = socket.socket(socket.AF_UNIX)
server.bind({listener.uds + ".slow"!r})
server.listen()
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    if connection.recv(99):
        connection.sendall(b"OK 1073741824\\n")
"""
    with started([sys.executable, "-c", program]) as child:
        child.stdout.readline()
        assert findings(listener.uds + ".slow", "22", code=0)["handshake"]["state"] == "warning"


def test_a_port_that_nobody_listens_on_fails_the_handshake_only(endpoint: Endpoint) -> None:
    found = findings(endpoint.uds, str(NOTHING), code=1)
    assert found["connect"]["state"] == "ok"
    assert found["handshake"]["state"] == "failed"
    assert f"guest port {NOTHING} refused" in found["handshake"]["text"]


def test_a_uds_that_cannot_serve_is_told_by_its_first_failure(tmp_path: Path, listener: Listener) -> None:
    listener.close()
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(tmp_path / "datagram"))
        for path, name, words in (
            (str(tmp_path / "none"), "uds", "No such file"),
            (str(tmp_path / "file"), "uds", "is no socket"),
            (listener.uds, "connect", "Connection refused"),
            (str(tmp_path / "datagram"), "connect", "Protocol wrong type"),
        ):
            found = findings(path, "22", code=1)
            assert found[name]["state"] == "failed"
            assert words in found[name]["text"]
            assert "handshake" not in found


def test_a_path_longer_than_an_address_is_no_failure(tmp_path: Path, endpoint: Endpoint) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    (deep / "v.sock").symlink_to(endpoint.uds)
    assert findings(str(deep / "v.sock"))["connect"]["state"] == "ok"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_whoever_holds_the_global_port_is_named(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    program = f"""
import socket, sys
server = socket.socket({int(family)})
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(({address!r}, {machine.GLOBAL_PORT}))
server.listen()
print("listening", flush=True)
sys.stdin.read()
"""
    assert findings()["port 22222"]["state"] == "ok"
    with started([sys.executable, "-c", program]) as child:
        assert child.stdout.readline() == b"listening\n"
        found = findings()["port 22222"]
    assert found["state"] == "warning"
    assert f"(pid {child.pid})" in found["text"]


def test_the_text_names_each_finding_and_what_to_do(tmp_path: Path) -> None:
    result = fastvsock("doctor", str(tmp_path / "none"))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith("ok       python") for line in lines)
    at = next(index for index, line in enumerate(lines) if line.startswith("failed   uds"))
    assert "-> start the VMM" in lines[at + 1]


def test_without_a_socket_it_says_that_none_was_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "UDS", str(tmp_path / "none"))
    found = findings(code=0)["uds"]
    assert found["state"] == "ok"
    assert found["text"] == f"not looked at: none is given, and there is none at {tmp_path}/none"


@pytest.mark.parametrize("arguments", [[""], ["", "22"]])
def test_an_empty_socket_path_is_wrong_usage(arguments: list[str]) -> None:
    result = fastvsock("doctor", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "UDS is empty" in result.stderr


def test_a_short_path_is_connected_to_without_proc(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_proc(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        return real("/dev/null" if flags & os.O_PATH else path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", without_proc)
    assert findings(endpoint.uds, code=0)["connect"]["state"] == "ok"


def test_no_answer_is_told_with_what_a_vmm_may_have(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uds, "TIMEOUT", 0.1)
    found = findings(listener.uds, "22", code=1)["handshake"]
    assert "no answer for guest port 22 within 0.1 s" in found["text"]
    assert "--timeout" not in found["text"]
    assert "--wait" not in findings(listener.uds, "22", code=1)["handshake"]["text"]
    assert found["advice"].startswith("see whether the VMM is paused, or out of file descriptors")


def test_a_refused_port_names_no_option_that_doctor_does_not_have(endpoint: Endpoint) -> None:
    assert "--" not in findings(endpoint.uds, str(NOTHING), code=1)["handshake"]["text"]


def test_the_global_port_is_that_of_this_network_namespace() -> None:
    assert findings()["port 22222"]["text"] == "nothing listens on 127.0.0.1:22222 in this network namespace"


def test_without_proc_nobody_can_tell_who_holds_the_global_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "PROC_NET", str(tmp_path / "net"))
    assert findings(code=0)["port 22222"]["state"] == "warning"


def test_a_port_that_is_none_is_an_error_and_no_finding() -> None:
    result = fastvsock("doctor", "/nowhere", "70000000000")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "is no guest port" in result.stderr
    assert os.path.basename(result.args[0]) == "doctor"

"""What `fastvsock doctor` finds on this machine: versions, limits, the engine, and RunCVM's global port."""

import os
import platform
import re
import resource
import socket
import sys
from pathlib import Path

import pytest

from fastvsock.diagnostics import machine
from fastvsock.host import process_tree, sock_diag
from support import started
from support.bundles import findings
from support.guests import until


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
    assert re.fullmatch(r"copy, which takes more CPU time: the splice engine is not installed \(.+\)", found["text"])
    assert found["advice"] == "install the wheel for this platform, or build with a C compiler"


def test_the_system_is_named_with_its_kernel_machine_and_libc() -> None:
    text = findings()["system"]["text"]
    for word in (platform.release(), platform.machine(), "glibc" if platform.libc_ver()[0] else "musl"):
        assert word in text


def test_a_libc_that_has_no_version_to_ask_for_is_found_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    monkeypatch.setattr(Path, "read_text", lambda path: "7f00-7f01 r-xp 0 0:0 1 /lib/ld-musl-x86_64.so.1\n")
    assert machine._libc() == "musl"


def test_a_libc_that_cannot_be_found_out_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> str:
        raise FileNotFoundError(2, "No such file or directory", "/proc/self/maps")

    monkeypatch.setattr(os, "confstr", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    found = findings()["system"]
    assert (found["state"], found["text"].rpartition(", ")[2]) == ("ok", "an unknown libc")


def test_the_limits_of_pipes_are_those_of_the_kernel() -> None:
    text = findings()["pipes"]["text"]
    for name in ("pipe-max-size", "pipe-user-pages-soft", "pipe-user-pages-hard"):
        assert f"fs.{name} {Path('/proc/sys/fs', name).read_text().strip()}" in text


def test_a_limit_that_the_machine_does_not_have_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pipe-max-size").write_text("1048576\n")
    monkeypatch.setattr(machine, "SYSCTLS", str(tmp_path))
    found = findings(code=0)["pipes"]
    assert found["text"] == "fs.pipe-max-size 1048576, fs.pipe-user-pages-soft unknown, fs.pipe-user-pages-hard unknown"


def test_the_limit_of_descriptors_is_reported_and_a_low_one_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    found = findings()["descriptors"]
    assert (found["state"], found["text"]) == ("ok", "open files: ulimit -n 1024, -Hn 4096")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert findings()["descriptors"]["state"] == "warning"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert findings()["descriptors"]["text"] == "open files: ulimit -n 1024, -Hn unlimited"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_the_process_that_holds_the_global_port_is_named(address: str) -> None:
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
        name = process_tree.name_of(child.pid)
    assert found["state"] == "warning"
    assert name.startswith("python")
    assert f"{name} (pid {child.pid})" in found["text"]


def test_another_port_or_another_address_is_not_the_global_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.2", 0)) as other:
        assert sock_diag.listening_inodes(server.getsockname()[1]) == {os.fstat(server.fileno()).st_ino}
        assert sock_diag.listening_inodes(other.getsockname()[1]) == set()


def test_a_connection_from_the_global_port_does_not_hold_it() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert sock_diag.listening_inodes(client.getsockname()[1]) == set()


def test_the_global_port_is_that_of_this_network_namespace() -> None:
    assert findings()["port 22222"]["text"] == "nothing listens on 127.0.0.1:22222 in this network namespace"


def test_without_proc_it_is_unknown_which_process_holds_the_global_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sock_diag, "PROC_NET", str(tmp_path / "net"))
    assert findings(code=0)["port 22222"]["state"] == "warning"


def test_a_name_that_the_kernel_cut_off_is_completed_from_the_program(tmp_path: Path) -> None:
    copy = tmp_path / "another-program-of-a-long-name"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o755)
    with started([str(copy), "100"]) as child:
        until(lambda: process_tree.name_of(child.pid) == copy.name)  # execve(2) sets it after its last error
    assert process_tree.name_of(child.pid) == ""

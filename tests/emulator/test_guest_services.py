"""The guest's services: built in, children, and TCP ports."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastvsock.emulator import VMMS, Emulator, Exec, Tcp, discard, launcher
from fastvsock.emulator import guest as guest_module
from support import HANG, pattern
from support.guests import SHELL, SOON, accepted, connect, dial, drain, receive, until


def test_echo_brings_all_back_under_load(emulator: Emulator) -> None:
    payload = pattern(1 << 24)
    with connect(emulator.uds, 7) as host:
        sender = threading.Thread(target=host.sendall, args=(payload,))
        sender.start()
        assert receive_much(host, len(payload)) == payload
        sender.join()


def receive_much(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view and (count := sock.recv_into(view)):
        view = view[count:]
    return bytes(data)


def test_chargen_sends_the_pattern_past_16_mib_where_it_repeats(emulator: Emulator) -> None:
    size = (1 << 24) + 100_000
    with connect(emulator.uds, 19) as host:
        assert receive_much(host, size) == pattern(size)


def test_discard_counts_but_its_answer_does_not_survive_a_half_close(emulator: Emulator) -> None:
    with connect(emulator.uds, 9) as host:
        host.sendall(bytes(100_000))
        host.shutdown(socket.SHUT_WR)
        assert drain(host) == b""


def test_discard_answers_the_count_where_it_can() -> None:
    host, end = socket.socketpair()
    with host, end:
        counter = threading.Thread(target=discard, args=(end,))
        counter.start()
        host.sendall(bytes(100_000))
        host.shutdown(socket.SHUT_WR)
        assert host.recv(100) == b"100000\n"
        counter.join()


def test_a_childs_stdio_is_the_connection_and_its_exit_the_end(emulator: Emulator) -> None:
    with connect(emulator.uds, SHELL) as host:
        host.sendall(b"echo $((6 * 7)); exit\n")
        assert drain(host) == b"42\n"


def test_each_connection_has_a_child_of_its_own_and_all_are_reaped(emulator: Emulator) -> None:
    numbers = set()
    for _ in range(3):
        with connect(emulator.uds, SHELL) as host:
            host.sendall(b"echo $$; exit\n")
            numbers.add(int(drain(host)))
    assert len(numbers) == 3
    for number in numbers:
        until(lambda number=number: not Path(f"/proc/{number}").exists())  # type: ignore[misc]


def test_a_child_moves_much_in_both_directions(tmp_path: Path) -> None:
    payload = pattern(1 << 24)
    with Emulator(tmp_path / "v.sock", {1: Exec.parse("cat")}) as emulator, connect(emulator.uds, 1) as host:
        sender = threading.Thread(target=host.sendall, args=(payload,))
        sender.start()
        assert receive_much(host, len(payload)) == payload
        sender.join()


def test_a_program_that_cannot_be_run_is_a_guest_that_accepts_and_closes(tmp_path: Path) -> None:
    log: list[str] = []
    services = {1: Exec(("/not/there",))}
    with Emulator(tmp_path / "v.sock", services, log.append) as emulator, connect(emulator.uds, 1) as host:
        assert host.recv(1) == b""
    assert any("cannot run /not/there: No such file" in sentence for sentence in log)


def test_many_hosts_at_once_are_answered_before_the_first_child_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, answered = threading.Event(), threading.Event()

    def spawn(*arguments: object, **options: object) -> None:
        """Starting a process takes as long as it takes all of the hosts to be answered."""
        started.set()
        assert answered.wait(HANG)
        raise OSError("enough")

    monkeypatch.setattr(subprocess, "Popen", spawn)
    with Emulator(tmp_path / "v.sock", {1: Exec(("cat",))}) as emulator, ExitStack() as stack:
        try:
            hosts = [stack.enter_context(dial(emulator.uds)) for _ in range(launcher.BUSY_ROUNDS // 3)]
            with emulator._lock:  # what comes meanwhile, it finds all at once
                for host in hosts:
                    host.sendall(b"CONNECT 1\n")
            assert all(accepted(host) for host in hosts)
        finally:
            answered.set()
        assert started.wait(HANG)
        assert [host.recv(1) for host in hosts] == [b""] * len(hosts)


def test_busy_connections_do_not_keep_a_child_from_being_started(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = emulator._poller.wait
    monkeypatch.setattr(emulator._poller, "wait", lambda block: wait(block=False) or [(-1, 0)])  # never idle
    with connect(emulator.uds, SHELL) as host:
        host.sendall(b"echo here; exit\n")
        assert drain(host) == b"here\n"


def test_hosts_that_wait_for_their_child_when_the_emulator_ends_see_the_end(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path / "v.sock", {1: Exec(("cat",))})
    emulator.listen()
    before = len(os.listdir("/proc/self/fd"))
    mine, theirs = socket.socketpair()
    emulator._launcher._due.append((Exec(("cat",)), theirs, "late"))
    with mine:
        emulator.close()
        assert mine.recv(1) == b""
    assert len(os.listdir("/proc/self/fd")) < before


@pytest.mark.parametrize("script", ["sleep 1000; :", "trap '' TERM; sleep 1000; :"])
def test_children_end_with_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(launcher, "PATIENCE", 0.3)
    with (
        Emulator(tmp_path / "v.sock", {1: Exec(("sh", "-c", f"echo $$; {script}"))}) as emulator,
        connect(emulator.uds, 1) as host,
    ):
        number = int(host.recv(100))
        time.sleep(0.1)
    assert not Path(f"/proc/{number}").exists()


def test_a_service_that_fails_closes_its_connection(tmp_path: Path) -> None:
    def fail(guest: socket.socket) -> None:
        raise OSError("as if the disk were full")

    log: list[str] = []
    with Emulator(tmp_path / "v.sock", {1: fail}, log.append) as emulator, connect(emulator.uds, 1) as host:
        assert drain(host) == b""
    assert any("disk were full" in sentence for sentence in log)


@contextmanager
def tcp_behind(folder: Path, vmm: str = "firecracker") -> Iterator[tuple[socket.socket, Emulator]]:
    """A TCP server, and an emulator whose guest has it at port 22."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(HANG)
        with Emulator(folder / "v.sock", {22: Tcp(*server.getsockname())}, vmm=vmm) as emulator:
            yield server, emulator


def test_a_tcp_port_is_joined_and_its_end_is_a_full_close(tmp_path: Path) -> None:
    with tcp_behind(tmp_path) as (server, emulator), connect(emulator.uds, 22) as host:
        with server.accept()[0] as tcp:
            host.sendall(b"up")
            assert receive(tcp, 2) == b"up"
            tcp.sendall(b"down")
        assert drain(host) == b"down"


@pytest.mark.parametrize("vmm", VMMS)
def test_a_tcp_server_that_half_closes_goes_on_reading(tmp_path: Path, vmm: str) -> None:
    with tcp_behind(tmp_path, vmm) as (server, emulator), connect(emulator.uds, 22) as host, server.accept()[0] as tcp:
        tcp.sendall(b"all I say")
        tcp.shutdown(socket.SHUT_WR)
        assert receive(host, 9) == b"all I say"
        time.sleep(SOON)  # a connection that ended would have ended by now
        sender = threading.Thread(target=host.sendall, args=(pattern(1_000_000),))
        sender.start()
        assert receive(tcp, 1_000_000) == pattern(1_000_000)
        sender.join(HANG)
        tcp.close()
        assert host.recv(1) == b""
        until(lambda: not emulator._connections)


def test_the_end_of_a_tcp_server_that_cannot_be_asked_about_is_a_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "other_end", lambda sock: None)  # as for one on another machine
    with tcp_behind(tmp_path) as (server, emulator), connect(emulator.uds, 22) as host, server.accept()[0] as tcp:
        tcp.shutdown(socket.SHUT_WR)
        assert host.recv(1) == b""


def test_small_pieces_to_a_tcp_port_do_not_wait_for_acknowledgements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    create = socket.create_connection

    def recorded(*arguments: Any, **options: Any) -> socket.socket:
        made.append(create(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(socket, "create_connection", recorded)
    with tcp_behind(tmp_path) as (server, emulator), connect(emulator.uds, 22) as host, server.accept()[0] as tcp:
        host.sendall(b"x")
        assert receive(tcp, 1) == b"x"
        assert [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in made] == [1]


def test_a_tcp_port_sees_the_end_of_the_host(tmp_path: Path) -> None:
    with tcp_behind(tmp_path) as (server, emulator):
        with connect(emulator.uds, 22) as host:
            tcp, _ = server.accept()
            host.sendall(b"up")
        with tcp:
            tcp.settimeout(HANG)
            assert drain(tcp) == b"up"

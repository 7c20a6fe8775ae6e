"""The children of a service: with which limits they start, and that none outlives the service."""

import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from fastvsock.host import processes
from fastvsock.services import connection, handlers
from fastvsock.services.terms import Terms
from support import HANG, started
from support.services import FarEnd, connect, eventually, is_alive, receive, script_command, serving

STUBBORN = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
SPAWNING = (
    "import os, resource; spawn = os.posix_spawnp\n"
    "def bent(*words, **more):\n"
    "    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True); return spawn(*words, **more)\n"
    "os.posix_spawnp = bent"
)
LIMITED = ["sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh"]


def test_a_command_has_its_limit_of_descriptors_from_its_first_moment(far_end: FarEnd) -> None:
    words = script_command(
        SPAWNING, "proxy", far_end.uds, "7", "--", "sh", "-c", "ulimit -Sn; sleep 0.3; cat /proc/$PPID/limits"
    )
    with started([*LIMITED, *words]) as proxy:
        at_the_spawn, in_the_command, *proxys = proxy.communicate(timeout=HANG)[0].decode().splitlines()
    assert (at_the_spawn, in_the_command) == ("200", "200")
    soft, hard = next(line for line in proxys if line.startswith("Max open files")).split()[3:5]
    assert soft == hard, "the proxy itself has its own limit back"


def test_so_has_each_child_of_listen(tmp_path: Path) -> None:
    words = script_command(SPAWNING, "listen", str(tmp_path / "v.sock"), "9", "--", "sh", "-c", "ulimit -Sn")
    with started([*LIMITED, *words]) as service:
        address = service.stdout.readline().decode().split()[-1]
        with connect(address) as guest:
            assert service.stdout.readline() == b"200\n"
            assert receive(guest) == b"200\n"


def test_a_hard_limit_that_was_lowered_meanwhile_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        if limits[0] == 100:
            raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert processes.spawn(["true"], limit=(100, 1 << 20)).wait() == 0


@pytest.mark.parametrize("script", [STUBBORN, f"exec <&-; {STUBBORN}"], ids=["open stdin", "closed stdin"])
def test_a_child_that_ignores_everything_does_not_outlive_the_service(tmp_path: Path, script: str) -> None:
    words = ("--grace", "0.2", str(tmp_path / "v.sock"), "9", "--", "sh", "-c", script)
    with serving("listen", *words) as service, connect(service.address) as guest:
        pid = int(guest.recv(100))
        assert service.end() == (0, "fastvsock: --grace expired: closed 1 open connection\n")
        assert not is_alive(pid)


def test_a_child_that_ends_by_sigterm_has_time_for_it(tmp_path: Path) -> None:
    script = f"trap 'sleep 0.3; echo tidy >{tmp_path}/done; exit' TERM; echo $$; while :; do sleep 0.05; done"
    words = ("--grace", "0.2", str(tmp_path / "v.sock"), "9", "--", "sh", "-c", script)
    with serving("listen", *words) as service, connect(service.address) as guest:
        guest.recv(100)
        assert service.end()[0] == 0
    assert (tmp_path / "done").read_text() == "tidy\n"


def test_a_connection_that_is_cut_before_its_child_starts_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(handlers, "spawn", refuse)
    sock, guest = socket.socketpair()
    with guest, sock:
        one = connection.Connection(sock, "it")
        one.cut()
        handlers.ToCommand(["cat"], Terms(), (1024, 1024))(one)
        assert receive(guest) == b""


def test_a_connection_that_is_cut_while_its_child_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spawning, spawn = threading.Event(), processes.spawn

    def slow(*words: object, **more: object) -> processes.Child:
        spawning.set()
        time.sleep(0.3)
        return spawn(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(handlers, "spawn", slow)
    sock, guest = socket.socketpair()
    serve = handlers.ToCommand(["sleep", str(HANG)], Terms(), (1024, 1024))
    with guest, sock:
        one = connection.Connection(sock, "it")
        one.start(serve)
        spawning.wait(HANG)
        one.cut()
        eventually(lambda: serve.status, 128 + signal.SIGTERM)


def test_a_child_that_may_not_be_signalled_any_more_is_no_failure() -> None:
    child = processes.spawn([sys.executable, "-c", ""], limit=(1024, 1 << 20))
    os.waitpid(child.pid, 0)
    child.send(signal.SIGTERM)
    child.end(0)
